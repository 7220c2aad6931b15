"""Puts this folder on the path, so that the tests in its folders find `helpers`."""

from pathlib import Path

import pytest
import torch

collect_ignore = [
    "clients",  # `make test-clients` runs them, in an environment of its own
    "links/on_a_device.py",  # these in processes of their own, which tests start
    "kernels/in_triton.py",
    "oracles/optax_shim.py",
    "oracles/optax_suite.py",
]


@pytest.fixture
def one_thread():
    """On a busy machine torch's threads wait for each other far longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


SHORT_ROWS = pytest.mark.filterwarnings("ignore:.* keeps nothing of :UserWarning")


def pytest_collection_modifyitems(items):
    """Tests take selections through rows of one element; examples and documentation do not."""
    for item in items:
        own = item.path.is_relative_to(Path(__file__).parent)
        if own and item.path.name != "test_examples.py":
            item.add_marker(SHORT_ROWS)
