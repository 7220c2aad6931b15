"""Puts this folder on the path, so that the tests in its folders find `helpers`."""

# `make test-clients` runs its tests in an environment of its own, `make test-optax` its suite.
collect_ignore = ["clients", "oracles/optax_shim.py", "oracles/optax_suite.py"]
