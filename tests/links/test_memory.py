"""What links keep of the past: in float32 at least, whatever torch's global settings are."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import rai_chain as rc

HALF = [torch.float16, torch.bfloat16]
half = pytest.mark.parametrize("dtype", HALF, ids=str)

# torch's class, its options, ours with the same
SAME: dict[str, tuple[Any, dict[str, Any], Any]] = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9}, rc.sgd(0.01, momentum=0.9)),
    "nesterov": (
        torch.optim.SGD,
        {"momentum": 0.9, "nesterov": True},
        rc.sgd(0.01, momentum=0.9, nesterov=True),
    ),
    "adam": (torch.optim.Adam, {}, rc.adam(0.01)),
    "adam, eps": (torch.optim.Adam, {"eps": 1e-4}, rc.adam(0.01, eps=1e-4)),
    "amsgrad": (torch.optim.Adam, {"amsgrad": True}, rc.adam(0.01, amsgrad=True)),
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.1}, rc.adamw(0.01, weight_decay=0.1)),
    "rmsprop": (torch.optim.RMSprop, {}, rc.rmsprop(0.01)),
    "centered": (torch.optim.RMSprop, {"centered": True}, rc.rmsprop(0.01, centered=True)),
    "adagrad": (torch.optim.Adagrad, {}, rc.adagrad(0.01)),
    "adadelta": (torch.optim.Adadelta, {}, rc.adadelta(0.01)),
    "adamax": (torch.optim.Adamax, {}, rc.adamax(0.01)),
    "nadam": (torch.optim.NAdam, {}, rc.nadam(0.01)),
    "radam": (torch.optim.RAdam, {}, rc.radam(0.01)),
    "rprop": (torch.optim.Rprop, {}, rc.rprop(0.01)),
}


@half
@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("size", [1e-4, 1.0, 300.0])
def test_half_precision_optimizers_equal_torchs_in_float32(
    name: str, size: float, dtype: torch.dtype
) -> None:
    """On the same gradients; the direction is rounded once, and once times the learning rate."""
    kind, options, tx = SAME[name]
    generator = torch.Generator().manual_seed(0)
    params = torch.randn(40, generator=generator).to(dtype)
    exact = params.float().requires_grad_()
    theirs, state = kind([exact], lr=0.01, **options), tx.init(params)
    for _ in range(60):
        grads = (size * torch.randn(40, generator=generator)).to(dtype)
        exact.data.copy_(params)
        exact.grad = grads.float()
        theirs.step()
        updates, state = tx.update(grads, state, params=params)
        moved = (exact - params).detach()  # exact to the rounding of a float32 parameter
        parts = moved.abs() + 0.01 * options.get("weight_decay", 0.0) * params.float().abs()
        noise = 2.0**-23 * params.float().abs().max()
        bound = torch.finfo(dtype).eps * parts + noise + torch.finfo(dtype).smallest_normal
        assert ((updates.float() - moved).abs() <= bound).all()
        params = rc.apply_updates(params, updates)


@half
def test_lion_in_half_precision_keeps_a_mean_that_moves(dtype: torch.dtype) -> None:
    tx = rc.scale_by_lion(betas=(0.9, 0.999))
    state, g = tx.init(torch.zeros(1, dtype=dtype)), torch.ones(1, dtype=dtype)
    for _ in range(5000):
        _, state = tx.update(g, state)
    torch.testing.assert_close(state["exp_avg"], torch.tensor([1 - 0.999**5000]), rtol=1e-4, atol=0)


@half
def test_a_mean_of_ones_is_one_after_3000_steps(dtype: torch.dtype) -> None:
    tx = rc.ema(0.999)
    state, ones = tx.init(torch.zeros(3, dtype=dtype)), torch.ones(3, dtype=dtype)
    for _ in range(3000):
        mean, state = tx.update(ones, state)
    assert mean.dtype == dtype and torch.equal(mean, ones)


def test_a_leaf_without_a_gradient_counts_no_step_of_its_mean() -> None:
    tx, g = rc.ema(0.9), {"a": torch.ones(2), "b": torch.ones(2)}
    _, state = tx.update({"a": g["a"], "b": None}, tx.init(g))
    mean, _ = tx.update(g, state)
    torch.testing.assert_close(mean, g)


# ------------------------------------------------------------------ global settings


@pytest.fixture(params=["bfloat16", "float64", "meta"])
def elsewhere(request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    """Turns the default dtype to another, or the default device to one that holds no values."""

    def turn() -> None:
        if request.param == "meta":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(getattr(torch, request.param))

    yield turn
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


def links() -> dict[str, Any]:
    """Every public link with memory, a count, a draw or a schedule, and every optimizer."""
    return {
        "add_noise": rc.add_noise(0.1),
        "add_noise, gamma": rc.add_noise(0.1, gamma=2.5),
        "ema": rc.ema(0.99999),
        "scheduled": rc.scale(rc.warmup_cosine_decay_schedule(0.1, 1 / 3, 2, 9, 0.05)),
        "joined": rc.scale(rc.join_schedules([rc.exponential_decay(1.0, 3, 0.7), abs], [2])),
        "piecewise": rc.scale(rc.piecewise_constant_schedule(1 / 3, {1: 0.1, 3: 0.7})),
        "record": rc.record("norm", rc.global_norm),
        "record, number": rc.record("number", lambda updates: 0.1),
        "sgd": rc.sgd(0.1, momentum=0.9, dampening=0.3, weight_decay=0.01),
        "adam": rc.adam(0.1, betas=(0.9, 0.99999)),
        "amsgrad": rc.adam(0.1, amsgrad=True),
        "adamw": rc.adamw(0.1),
        "rmsprop": rc.rmsprop(0.1, centered=True, momentum=0.5),
        "lion": rc.lion(0.1, weight_decay=0.1),
        "adagrad": rc.adagrad(0.1, lr_decay=0.1, initial_accumulator_value=1 / 3),
        "adadelta": rc.adadelta(1 / 3, rho=0.99999),
        "adamax": rc.adamax(0.1, betas=(0.99999, 0.999)),
        "nadam": rc.nadam(0.1, momentum_decay=1 / 3),
        "radam": rc.radam(0.1, betas=(0.9, 0.9)),
        "rprop": rc.rprop(1 / 3, eta_plus=4 / 3),
        "adabelief": rc.adabelief(0.1, betas=(0.9, 0.99999)),
        "yogi": rc.yogi(0.1),
        "adan": rc.adan(0.1, betas=(0.98, 0.92, 0.99999)),
        "lamb": rc.lamb(0.1, weight_decay=1 / 3),
        "lars": rc.lars(0.1, trust_coefficient=1 / 3),
        "top_k, scheduled": rc.top_k(rc.linear_schedule(1.0, 3.0, 2), param_ndim=0),
        "random_k": rc.random_k(2, param_ndim=None),
        "qsgd": rc.qsgd(3, param_ndim=None),
        "terngrad": rc.terngrad(param_ndim=None),
        "ef_sign": rc.ef_sign(param_ndim=None),
        "clipped": rc.chain(rc.clip(1 / 3), rc.clip_by_block_rms(0.1)),
        "adaptive_grad_clip": rc.adaptive_grad_clip(1 / 3, param_ndim=None),
        "normalize_by_update_norm": rc.normalize_by_update_norm(1 / 3),
        "soft_threshold": rc.soft_threshold(1 / 3),
        "onecycle": rc.scale(rc.linear_onecycle_schedule(4, 1 / 3)),
        "inverse_sqrt": rc.scale(rc.inverse_sqrt_schedule(0.1, 1 / 3, 2)),
    }


def train(tx: Any, dtype: torch.dtype) -> Any:
    def draw(seed: int) -> dict[str, Tensor]:
        generator = torch.Generator("cpu").manual_seed(seed)
        make = {"dtype": dtype, "generator": generator, "device": "cpu"}
        return {"w": torch.randn(3, 4, **make), "s": torch.randn((), **make)}

    params = draw(0)
    state = tx.init(params)
    for seed in range(1, 5):
        params, state = tx.step(params, draw(seed), state)
    return params, state


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", links())
def test_nothing_depends_on_the_default_dtype_or_device(
    name: str, dtype: torch.dtype, elsewhere: Callable[[], None]
) -> None:
    tx = links()[name]
    expected = train(tx, dtype)
    elsewhere()
    found = train(tx, dtype)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_schedules_of_numbers_do_not_depend_on_them(elsewhere: Callable[[], None]) -> None:
    curve = rc.warmup_cosine_decay_schedule(0.1, 1 / 3, 2, 9, 0.05)
    expected = curve(5)
    elsewhere()
    assert curve(5) == expected and curve(5).dtype == torch.float64


def test_statistics_do_not_depend_on_them(elsewhere: Callable[[], None]) -> None:
    tree = [torch.tensor([1 / 3, 0.0]), torch.tensor(0.1)]
    elsewhere()
    for statistic in (rc.global_norm, rc.sparsity):
        assert statistic(tree).dtype == statistic([None]).dtype == torch.float32
        assert statistic(tree).device.type == statistic([]).device.type == "cpu"


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_global_norm_is_right_at_every_magnitude(size: float) -> None:
    tree = {"a": torch.tensor([3 * size]), "b": torch.tensor(4 * size)}
    torch.testing.assert_close(rc.global_norm(tree), torch.tensor(5 * size))
    assert rc.global_norm({"a": torch.zeros(2).half(), "none": None}) == 0


def test_the_first_of_a_long_mean_is_the_first_update() -> None:
    for g in (torch.tensor([1.0, -1 / 3]).double(), torch.tensor(0.1).double()):
        tx = rc.ema(0.99999)
        torch.testing.assert_close(tx.update(g, tx.init(g))[0], g, rtol=1e-11, atol=0)
