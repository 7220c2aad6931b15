"""Puts this folder on the path, so that the tests in its folders find `helpers`."""

collect_ignore = ["clients"]  # `make test-clients` runs them, in an environment of its own
