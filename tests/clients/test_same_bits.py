"""Every client trains every chain to the bits of the loop by hand, straight and resumed."""

import in_huggingface
import in_lightning
import in_others
import inner
import pytest
import torch
from job import CHAINS, by_hand, optimizer, values

import rai_chain as rc

CLIENTS = in_lightning.CLIENTS | in_huggingface.CLIENTS | in_others.CLIENTS | inner.CLIENTS


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("client", CLIENTS)
def test_same_bits(client, chain, tmp_path, outcome):
    one = CLIENTS[client]
    if chain in one.refused:
        with pytest.raises((TypeError, ValueError), match="must"):
            one.run(chain, tmp_path, False)
        outcome(client, chain, f"refused: {one.refused[chain]}")
        return
    expected = one.expected(chain)
    for resume in (False, True):
        found = [p.detach() for p in one.run(chain, tmp_path, resume).parameters()]
        assert equal(found, expected), "resumed" if resume else "straight"
    outcome(client, chain, "equal bits")


def test_trainer_evaluates_at_the_average_that_the_chain_keeps(tmp_path, monkeypatch):
    """It calls `eval` and `train`, and saves in between."""
    monkeypatch.setitem(CHAINS, "average", lambda: [rc.clamp(-0.5, 0.5), rc.params_ema(0.9)])
    expected = by_hand("average", clip=0.5, adapter=optimizer, begin=eval_at_the_end)
    for resume in (False, True):
        found = in_huggingface.trainer("average", tmp_path / str(resume), resume, scheduled=False)
        assert equal(values(found), expected)


def equal(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def eval_at_the_end(epoch, net, optim):
    if epoch == 2:
        optim.eval()
