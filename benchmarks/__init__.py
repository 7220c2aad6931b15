"""What rai_chain costs, beside its peers: `python -m benchmarks`."""
