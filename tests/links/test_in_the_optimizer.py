"""The links with memory and draws in the stateful home: the pure home's bits, over a checkpoint."""

import copy
from typing import Any

import pytest
import torch

import rai_chain as rc

PIPELINES: dict[str, Any] = {
    "muon": rc.muon(0.1),
    "adafactor": rc.adafactor(0.1, weight_decay=0.1),
    "lamb": rc.lamb(0.1, weight_decay=0.1),
    "lars": rc.lars(0.1, momentum=0.5),
    "rprop": rc.rprop(0.1),
    "nadam": rc.nadam(0.1),
    "adan": rc.adan(0.1),
    "mask": rc.adamw(0.1, mask=[True, False]),
    "average": rc.chain(rc.adam(0.1), rc.params_ema(0.9)),
    "compressed": rc.chain(rc.error_feedback(rc.top_k(2)), rc.sgd(0.1)),
    "drawn": rc.chain(rc.random_k(2, seed=3), rc.qsgd(4), rc.sgd(0.1)),
    "clipped": rc.chain(rc.adaptive_grad_clip(0.1), rc.clip_by_block_rms(0.05), rc.sgd(0.1)),
    "frozen": rc.chain(rc.sgd(0.1), rc.masked(rc.set_to_zero(), [True, False])),
    "in a box": rc.chain(
        rc.sgd(0.1), rc.l1_ball(0.6, low=-0.1, high=[0.2, 0.1]), rc.l2_ball(0.3, low=-0.1)
    ),
    "surfaces": rc.chain(rc.sgd(0.1), rc.l1_sphere(0.6), rc.halfspace(0.5, 0.1), rc.l2_sphere(1.0)),
    "of the tree": rc.chain(rc.sgd(0.1), rc.hyperplane(1.0, 2.0, param_ndim="tree")),
    "matrices": rc.chain(rc.sgd(0.1), rc.group_l1_ball(1.0), rc.nuclear_ball(0.6)),
    "orthogonal": rc.chain(rc.adam(0.1), rc.orthogonal()),
    "proximal": rc.chain(rc.sgd(rc.linear_onecycle_schedule(6, 0.1)), rc.soft_threshold(0.01)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", PIPELINES)
def test_the_optimizer_gives_the_bits_of_the_pure_step(name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw() -> list[torch.Tensor]:
        return [torch.randn(s, generator=generator).to(dtype) for s in ((4, 3), (5,))]

    tx, pure = PIPELINES[name], draw()
    leaves = [p.clone().requires_grad_() for p in pure]
    optimizer, state = tx.optimizer(leaves), tx.init(pure)
    for t in range(6):
        grads = draw()
        pure, state = tx.step(pure, grads, state)
        for leaf, g in zip(leaves, grads, strict=True):
            leaf.grad = g.clone()
        optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(leaves, pure, strict=True))
        if t == 2:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = tx.optimizer(leaves)
            optimizer.load_state_dict(saved)
