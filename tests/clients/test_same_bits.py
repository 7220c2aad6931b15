"""Every client trains every chain to the bits of the loop by hand, straight and resumed."""

import in_huggingface
import in_lightning
import in_others
import inner
import pytest
import torch
from job import CHAINS

CLIENTS = in_lightning.CLIENTS | in_huggingface.CLIENTS | in_others.CLIENTS | inner.CLIENTS


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("client", CLIENTS)
def test_same_bits(client, chain, tmp_path, outcome):
    one = CLIENTS[client]
    if chain in one.refused:
        with pytest.raises((TypeError, ValueError)):
            one.run(chain, tmp_path, False)
        outcome(client, chain, f"refused: {one.refused[chain]}")
        return
    expected = one.expected(chain)
    for resume in (False, True):
        found = [p.detach() for p in one.run(chain, tmp_path, resume).parameters()]
        assert all(map(torch.equal, found, expected)), "resumed" if resume else "straight"
    outcome(client, chain, "equal bits")
