"""What costs the time: exact selection of a row, and the threshold of a simplex."""
