"""The first cases of the fuzzer, the same on every machine; `make fuzz` goes on."""

import torch
from run import fuzz

from rai_chain.links import transforms

CASES = 4000  # about a minute


def test_drawn_cases():
    said = []
    count, empty, failed = fuzz(range(CASES), say=said.append)
    assert not failed, "".join(said)
    assert count == CASES
    assert empty < 0.02 * CASES


def test_a_fault_is_found(monkeypatch):
    """A norm in the dtype of its row leaves the range on the way."""

    def narrow(rows, p):
        return torch.linalg.vector_norm(rows, p, dim=1, keepdim=True).double()

    monkeypatch.setattr(transforms, "row_norm", narrow)
    said = []
    *_, (seed,) = fuzz(range(CASES), say=said.append)
    assert f"python tests/fuzz/run.py --seed {seed}" in said[0]
