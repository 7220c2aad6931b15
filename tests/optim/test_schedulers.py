"""torch's schedulers over optimizers made of links: values and steps are those of torch's own."""

import io
import warnings

import numpy as np
import pytest
import torch
from torch.optim import swa_utils
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiplicativeLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

import rai_chain as rc
from rai_chain.optim import ChainedParamTransformingOptimizer as Chain
from rai_chain.optim import FrankWolfe, L1FrankWolfe, TopQGradientOptimizer


def cycles(optimizer):
    """What torch's schedulers ask before they cycle a momentum."""
    return "momentum" in optimizer.defaults or "betas" in optimizer.defaults


SCHEDULERS = {
    "ChainedScheduler": lambda o: ChainedScheduler([ConstantLR(o, 0.5, 2), ExponentialLR(o, 0.9)]),
    "ConstantLR": lambda o: ConstantLR(o, 0.5, 2),
    "CosineAnnealingLR": lambda o: CosineAnnealingLR(o, 4),
    "CosineAnnealingWarmRestarts": lambda o: CosineAnnealingWarmRestarts(o, 2),
    "CyclicLR": lambda o: CyclicLR(o, 0.01, 0.1, step_size_up=3, cycle_momentum=cycles(o)),
    "ExponentialLR": lambda o: ExponentialLR(o, 0.9),
    "LambdaLR": lambda o: LambdaLR(o, lambda epoch: 0.9**epoch),
    "LinearLR": lambda o: LinearLR(o, 0.25, 1.0, 4),
    "MultiplicativeLR": lambda o: MultiplicativeLR(o, lambda epoch: 0.9),
    "MultiStepLR": lambda o: MultiStepLR(o, [1, 3], 0.5),
    "OneCycleLR": lambda o: OneCycleLR(o, 0.1, total_steps=8, cycle_momentum=cycles(o)),
    "PolynomialLR": lambda o: PolynomialLR(o, 5),
    "ReduceLROnPlateau": lambda o: ReduceLROnPlateau(o, factor=0.5, patience=0),
    "SequentialLR": lambda o: SequentialLR(
        o, [LinearLR(o, 0.5, 1, 2), CosineAnnealingLR(o, 4)], [3]
    ),
    "StepLR": lambda o: StepLR(o, 2, 0.5),
    "SWALR": lambda o: swa_utils.SWALR(o, 0.05, anneal_epochs=3),
}
MOVING = {"momentum": 0.9}
PEERS = {
    "sgd": (torch.optim.SGD, MOVING),
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {}),
    "nadam": (torch.optim.NAdam, {}),
    "radam": (torch.optim.RAdam, {}),
    "adamax": (torch.optim.Adamax, {}),
    "rmsprop": (torch.optim.RMSprop, MOVING),
    "adagrad": (torch.optim.Adagrad, {}),
    "adadelta": (torch.optim.Adadelta, {}),
    "adafactor": (torch.optim.Adafactor, {}),
}
# torch's Rprop reads its rate only once, and its Muon computes in bfloat16
ALONE = {"rprop": {}, "muon": {}, "lion": {}, "adabelief": {}, "adan": {}, "lamb": {}, "yogi": {}}
ALONE["lars"] = MOVING
NATIVE = {**{name: options for name, (_, options) in PEERS.items()}, **ALONE}
every_scheduler = pytest.mark.parametrize("scheduler", SCHEDULERS)


def start():
    return torch.linspace(-1.0, 1.0, 12).view(4, 3).requires_grad_()


def gradient(time):
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(time))


def values(group):
    """What schedulers write, as Python numbers."""
    betas = tuple(map(float, group.get("betas", ())))
    return float(group["lr"]), float(group.get("momentum", 0.0)), betas


def steps(optimizer, scheduler, before=lambda time: None):
    """The values that each step had, under a scheduler."""
    (group,), seen = optimizer.param_groups, []
    scheduler = SCHEDULERS[scheduler](optimizer)
    for time in range(7):
        before(time)
        group["params"][0].grad = gradient(time)
        seen.append(values(group))
        optimizer.step()
        metric = (1.0 + time % 3,) if isinstance(scheduler, ReduceLROnPlateau) else ()
        scheduler.step(*metric)
    return seen


@pytest.mark.parametrize("rate", ["number", "tensor"])
@every_scheduler
@pytest.mark.parametrize("name", PEERS)
def test_a_native_optimizer_steps_as_torchs(name, scheduler, rate):
    kind, options = PEERS[name]
    p, q = start(), start()
    rates = [torch.tensor(0.1) if rate == "tensor" else 0.1 for _ in range(2)]
    foreach = {"foreach": False} if rate == "tensor" else {}
    ours = getattr(rc, name)(lr=rates[0], **options).optimizer([p])
    torchs = kind([q], lr=rates[1], **options, **foreach)
    assert steps(ours, scheduler) == steps(torchs, scheduler)
    torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@every_scheduler
@pytest.mark.parametrize("name", NATIVE)
def test_a_native_optimizer_steps_as_the_pure_loop_with_the_groups_values(name, scheduler):
    tx = getattr(rc, name)(lr=0.1, **NATIVE[name])
    p, q = start(), start().detach()
    optimizer, state = tx.optimizer([p]), tx.init(q)
    seen = steps(optimizer, scheduler)
    keys = ("lr", "momentum", "betas")
    for time, now in enumerate(seen):
        own = {k: v for k, v in zip(keys, now, strict=True) if k in tx.hyperparams}
        q, state = tx.step(q, gradient(time), state, hyperparams=own)
    assert torch.equal(p, q) and len(set(seen)) > 1


@every_scheduler
def test_schedules_as_values_beside_a_scheduler_of_the_learning_rate(scheduler):
    """The scheduler moves what it writes; what it does not write goes on by itself."""
    p, q = start(), start()
    top, bound = (lambda step: 0.1 * step), (lambda step: 1.0 / (1 + step))
    links = (rc.top_q(top, param_ndim=None), rc.clamp(clamp_max=bound))
    optimizer = Chain(*links, params=[p], lr=0.1, momentum=0.9)
    plain = torch.optim.SGD([q], lr=0.1, momentum=0.9)

    def transform(time):
        grad = rc.top_q(0.1 * time, param_ndim=None).update(gradient(time), ())[0]
        grads.append(grad.clamp(max=1.0 / (1 + time)))

    grads: list = []
    seen = steps(optimizer, scheduler, transform)
    theirs = SCHEDULERS[scheduler](plain)
    for time, grad in enumerate(grads):
        q.grad = grad
        assert values(plain.param_groups[0]) == seen[time]
        plain.step()
        theirs.step(*((1.0 + time % 3,) if isinstance(theirs, ReduceLROnPlateau) else ()))
    torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
    assert optimizer.param_groups[0]["q"] == pytest.approx(0.7)


# ------------------------------------------------------------------ numbers of numpy


OPTIMIZERS = {
    "chain": lambda p: Chain(rc.top_q(0.5, param_ndim=None), params=[p], lr=0.1),
    "class": lambda p: TopQGradientOptimizer([p], q=0.5, lr=0.1, param_ndim=None),
    "native": lambda p: rc.adam(0.1).optimizer([p]),
    "torch's": lambda p: rc.chain(rc.from_torch(torch.optim.Adam, lr=0.1)).optimizer([p]),
    "Frank-Wolfe": lambda p: L1FrankWolfe([p], epsilon=1.0),
    "one that steps": lambda p: FrankWolfe([p]),
}


def loaded(optimizer):
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("when", ["before a step", "between", "after"])
@pytest.mark.parametrize("number", [np.float64(0.25), np.float32(0.25), np.int64(0)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_number_of_numpy_in_a_group_is_saved_as_pythons(name, number, when):
    p = start()
    optimizer = OPTIMIZERS[name](p)
    if when == "between":
        p.grad = gradient(0)
        optimizer.step()
    keys = optimizer.param_groups[0].keys() & {"lr", "q", "betas", "epsilon"}
    for key in keys:
        optimizer.param_groups[0][key] = (number, number) if key == "betas" else number
    if when == "after":
        p.grad = gradient(0)
        optimizer.step()
    (group,) = loaded(optimizer)["param_groups"]
    for key in keys:
        pair = (number.item(), number.item())
        assert group[key] == (pair if key == "betas" else number.item())
        assert type(group[key]) in (float, int, tuple)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_scheduler_with_numbers_of_numpy(name):
    p = start()
    optimizer = OPTIMIZERS[name](p)
    scheduler = OneCycleLR(optimizer, np.float64(0.1), total_steps=4, cycle_momentum=False)
    for time in range(3):
        loaded(optimizer)
        p.grad = gradient(time)
        optimizer.step()
        loaded(optimizer)
        scheduler.step()
    assert type(loaded(optimizer)["param_groups"][0]["lr"]) is float


def test_a_number_over_a_schedule_ends_it_in_a_checkpoint_of_an_optimizer_that_steps():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p = start()
        optimizer = FrankWolfe([p], lr=lambda step: 2.0 + 0.0 * step)
        optimizer.param_groups[0]["lr"] = 1.0
        fresh = FrankWolfe([start()], lr=lambda step: 2.0 + 0.0 * step)
        fresh.load_state_dict(loaded(optimizer))
        assert fresh.param_groups[0]["lr"] == 1.0
        fresh.param_groups[0]["params"][0].grad = gradient(0)
        fresh.step()
        assert fresh.param_groups[0]["lr"] == 1.0
