"""Every public link on a simulated device, in a process of its own: tests/links/test_devices.py."""

import pytest
import torch
from device import Device, There, here, register, there
from test_laws import NAMES, draw, make, same, tensorable
from test_wrappers import step
from torch.optim import SGD, AdamW
from torch.utils._pytree import tree_leaves

import rai_chain as rc
from rai_chain import chain
from rai_chain.kernels import sets
from rai_chain.optim import ChainedParamTransformingOptimizer

register()
# A ball inside of a box looks how many rounds are left; CUDA's decompositions look whether they
# came to an end.
WAITING = {
    *("l1_ball", "l1_ball, behind", "l1_ball, tree", "l2_ball", "l2_ball, behind", "l2_ball, tree"),
    *("orthogonal", "nuclear_ball", "nuclear_ball, inside"),
}
CHAINS = {
    "elements": lambda: (rc.clamp(clamp_max=0.5), rc.scale(0.5), rc.bias(0.1)),
    "slide": lambda: (rc.top_q(0.6, dq=0.2), rc.sign(), rc.normalize(1), rc.l1_ball(0.8)),
    "l2": lambda: (rc.normalize(2), rc.l2_ball(0.8, center=0.1)),
    "linf": lambda: (rc.sign(), rc.linf_ball(0.3), rc.box(-0.4, 0.4)),
    "simplex": lambda: (rc.clip_by_global_norm(0.7), rc.simplex(1.0)),
    "kept": lambda: (rc.add_noise(0.1), rc.ema(0.9), rc.trace(0.9)),
    "wrapped": lambda: (rc.error_feedback(rc.top_k(2)), rc.accumulate(rc.scale(0.5), every_k=2)),
    "scheduled": lambda: (rc.scale(rc.cosine_decay_schedule(1.0, 10)), rc.clip_by_norm(0.5)),
}


def tree(seed):
    return {"a": draw(3, 4, seed=seed), "b": [draw(2, 5, seed=seed + 1), None], "c": draw(2, 3)}


def check(tx, waits=False, times=3):
    """The numbers of the CPU; no wait, and no copy."""
    p, grads = tree(0), [tree(10 * i) for i in range(1, times + 1)]
    state = tx.init(p)
    own, other = there(p), None
    for g in grads:
        p, state = step(tx, p, g, state)
        with Device() as device:
            other = tx.init(own) if other is None else other
            own, other = step(tx, own, there(g), other)
        assert bool(device.waits) == waits, device.waits
        assert not device.copies, device.copies
        assert all(isinstance(x, There) for x in tree_leaves((own, other)) if x is not None)
    assert same(here((own, other)), (p, state))


@pytest.mark.parametrize("name", NAMES)
def test_a_step_waits_for_nothing(name):
    with torch.no_grad():
        check(make(name), name in WAITING)


@pytest.mark.parametrize("name", [n for n in NAMES if tensorable(n) and n not in WAITING])
def test_nor_does_a_schedule(name):
    with torch.no_grad():
        for key, value in tensorable(name).items():
            scheduled = make(name, **{key: lambda step, value=value: value * (1.0 - 0.1 * step)})
            check(scheduled, times=2)


@pytest.mark.parametrize(
    "tx",
    [
        *(rc.sgd(0.1, momentum=0.9), rc.adamw(0.1), rc.lion(0.1), rc.lamb(0.1), rc.adamax(0.1)),
        rc.from_torch(SGD, lr=0.1, momentum=0.9),
        rc.adamw(rc.warmup_cosine_decay_schedule(0.0, 0.1, 2, 10)),
    ],
    ids=repr,
)
def test_nor_does_a_chain_that_descends(tx):
    with torch.no_grad():
        check(tx)


@pytest.mark.parametrize("name", [n for n in NAMES if tensorable(n)])
def test_a_number_may_be_on_the_host(name):
    """As it is in a compiled pipeline; some are copied then."""
    with torch.no_grad():
        for key, value in tensorable(name).items():
            tx = make(name, **{key: torch.tensor(value, dtype=torch.float64)})
            p, g = tree(0), tree(10)
            expected, state = step(tx, p, g, tx.init(p))
            with Device():
                own, other = step(tx, there(p), there(g), tx.init(there(p)))
            assert same(here((own, other)), (expected, state))


@pytest.mark.parametrize("kind", [None, SGD, AdamW])
@pytest.mark.parametrize("name", sorted(CHAINS))
def test_an_optimizer_waits_for_nothing(name, kind):
    def made(p):
        if kind is None:
            return chain(*CHAINS[name]()).optimizer(p)
        return ChainedParamTransformingOptimizer(
            chain(*CHAINS[name]()), params=p, InnerOpt=kind, lr=0.1
        )

    params = [draw(3, 4), draw(4, 5, seed=1), draw(6, 2, seed=2)]
    params, own = [p.requires_grad_() for p in params], [p.requires_grad_() for p in there(params)]
    reference, optimizer = made(params), None
    for i in range(4):
        grads = [draw(*p.shape, seed=10 * i + j) for j, p in enumerate(params)]
        for p, q, g in zip(params, own, grads, strict=True):
            p.grad, q.grad = g.clone(), there(g)
        reference.step()
        with Device() as device:
            optimizer = made(own) if optimizer is None else optimizer
            optimizer.step()
        assert not device.waits
        assert not device.copies, device.copies
    assert same([p.own for p in own], [p.detach() for p in params])


@pytest.mark.parametrize("size", [1, 7, 700, 5000])
def test_thresholds_have_the_bits_of_the_cpu(size):
    """Though no step looks whether another is needed."""
    x = draw(2, size)
    rows = [x, x.round(), x.double() * torch.exp(6 * draw(2, size, seed=1)), torch.ones(2, size)]
    rows += [2.0 ** -torch.arange(2.0 * size).view(2, size), x.bfloat16(), x.half()]
    rows += [x.clone().index_fill(1, torch.tensor([0]), value) for value in (1e30, torch.inf)]
    for own in rows:
        for radius in (0.0, 1e-200, 1e-3, 1.0, 100.0, torch.inf):
            for ball in (sets.simplex, sets.l1_ball):
                with Device() as device:
                    result = ball(there(own), radius)
                assert same(result.own, ball(own, radius))
                assert not device.waits and not device.copies


def test_the_device_notices():
    x = there(torch.ones(3))
    with Device() as device:
        assert bool((x > 0).all())
        _ = x[x > 0], x.cpu()
        assert device.waits == ["_local_scalar_dense", "index", "_to_copy"]
        _ = torch.tensor(2.0, device=x.device), torch.where(x > 0, torch.tensor(1.0), x)
        _ = x + torch.tensor(2.0), x * 3.0
        assert device.copies == ["_to_copy", "where"]
