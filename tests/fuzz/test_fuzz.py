"""A minute of the fuzzer; RAI_CHAIN_FUZZ_SECONDS makes it longer or shorter."""

import os

import torch
from run import fuzz

from rai_chain.links import transforms

SECONDS = float(os.environ.get("RAI_CHAIN_FUZZ_SECONDS", "60"))


def test_drawn_cases():
    said = []
    count, failed = fuzz(0, SECONDS, say=said.append)
    assert not failed, "".join(said)
    assert count > 0


def test_a_fault_is_found(monkeypatch):
    """A norm in the dtype of its row leaves the range on the way."""

    def narrow(rows, p):
        return torch.linalg.vector_norm(rows, p, dim=1, keepdim=True).double()

    monkeypatch.setattr(transforms, "row_norm", narrow)
    said = []
    _, (seed,) = fuzz(0, 60.0, say=said.append)
    assert f"python tests/fuzz/run.py --seed {seed}" in said[0]
