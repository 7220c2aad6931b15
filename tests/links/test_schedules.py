"""The laws of the schedules: their closed forms, and that they are plain functions of tensors."""

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.func import grad, vmap

from rai_chain import chain, clamp
from rai_chain.optim import ChainedParamTransformingOptimizer
from rai_chain.optimizers import sgd
from rai_chain.schedules import (
    Schedule,
    constant_schedule,
    cosine_decay_schedule,
    cosine_onecycle_schedule,
    exponential_decay,
    inverse_sqrt_schedule,
    join_schedules,
    linear_onecycle_schedule,
    linear_schedule,
    piecewise_constant_schedule,
    piecewise_interpolate_schedule,
    polynomial_schedule,
    sgdr_schedule,
    warmup_constant_schedule,
    warmup_cosine_decay_schedule,
    warmup_exponential_decay_schedule,
    warmup_stable_decay_schedule,
)


def part(t: float, steps: float) -> float:
    return min(max(t / steps, 0.0), 1.0)


def cosine(t: float, steps: float) -> float:
    return 0.5 + 0.5 * math.cos(math.pi * part(t, steps))


# a schedule, its closed form
FORMS: list[tuple[Schedule, Callable[[int], float]]] = [
    (constant_schedule(0.3), lambda t: 0.3),
    (linear_schedule(2.0, -1.0, 7), lambda t: 2 - 3 * part(t, 7)),
    (linear_schedule(2.0, 5.0, 7, 3), lambda t: 2 + 3 * part(t - 3, 7)),
    (polynomial_schedule(2.0, 0.5, 3, 7, 2), lambda t: 1.5 * (1 - part(t - 2, 7)) ** 3 + 0.5),
    (cosine_decay_schedule(3.0, 8), lambda t: 3 * cosine(t, 8)),
    (cosine_decay_schedule(3.0, 8, 0.1, 2.0), lambda t: 3 * (0.9 * cosine(t, 8) ** 2 + 0.1)),
    (exponential_decay(2.0, 4, 0.7), lambda t: 2 * 0.7 ** (t / 4)),
    (exponential_decay(2.0, 4, 0.7, 3), lambda t: 2 * 0.7 ** max(0, (t - 3) / 4)),
    (exponential_decay(2.0, 4, 0.7, 3, True), lambda t: 2 * 0.7 ** max(0, (t - 3) // 4)),
    (exponential_decay(2.0, 2, 0.5, end_value=0.3), lambda t: max(0.3, 2 * 0.5 ** (t / 2))),
    (exponential_decay(2.0, 2, 1.5, end_value=5.0), lambda t: min(5.0, 2 * 1.5 ** (t / 2))),
    (piecewise_constant_schedule(2.0), lambda t: 2.0),
    (
        piecewise_constant_schedule(2.0, {9: 0.5, 4: 0.1}),
        lambda t: 2 * (0.1 if t >= 4 else 1) * (0.5 if t >= 9 else 1),
    ),
    (
        warmup_cosine_decay_schedule(0.5, 3.0, 4, 10, 0.2, 2.0),
        lambda t: 0.5 + 2.5 * t / 4 if t < 4 else 0.2 + 2.8 * cosine(t - 4, 6) ** 2,
    ),
    (
        join_schedules(
            [linear_schedule(0.0, 1.0, 4), constant_schedule(1.0), exponential_decay(1.0, 1, 0.5)],
            [4, 8],
        ),
        lambda t: t / 4 if t < 4 else 1.0 if t < 8 else 0.5 ** (t - 8),
    ),
    (
        warmup_cosine_decay_schedule(9.0, 3.0, 0, 6, 0.2),
        lambda t: 0.2 + 2.8 * cosine(t, 6),
    ),
    (
        piecewise_interpolate_schedule("linear", 2.0, {9: 0.5, 4: 3.0}),
        lambda t: 2 + 4 * part(t, 4) - 3 * part(t - 4, 5),
    ),
    (
        piecewise_interpolate_schedule("cosine", 2.0, {4: 3.0, 9: 0.5}),
        lambda t: 6 - 4 * cosine(t, 4) if t < 4 else 3 + 3 * cosine(t - 4, 5),
    ),
    (piecewise_interpolate_schedule("cosine", 2.0, {0: 3.0}), lambda t: 6.0),
    (piecewise_interpolate_schedule("linear", 2.0), lambda t: 2.0),
    (
        inverse_sqrt_schedule(0.1, 0.5, 4),
        lambda t: 0.1 + 0.4 * t / 4 if t < 4 else 0.5 * math.sqrt(4 / t),
    ),
    (warmup_constant_schedule(0.1, 0.5, 4), lambda t: 0.1 + 0.4 * part(t, 4)),
    (
        warmup_exponential_decay_schedule(0.1, 0.5, 4, 2, 0.7, 3),
        lambda t: 0.1 + 0.4 * t / 4 if t < 4 else 0.5 * 0.7 ** max(0, (t - 7) / 2),
    ),
    (
        warmup_stable_decay_schedule(0.1, 0.5, 4, 3, 5, 0.2),
        lambda t: 0.1 + 0.4 * part(t, 4) - 0.3 * part(t - 7, 5),
    ),
    (warmup_stable_decay_schedule(9.0, 0.5, 0, 3, 0, 0.2), lambda t: 0.5 if t < 3 else 0.2),
    (
        linear_onecycle_schedule(12, 2.0, 0.3, 0.85, 4.0, 10.0),
        lambda t: 0.5 + 1.5 * part(t, 3) - 1.5 * part(t - 3, 7) - 0.45 * part(t - 10, 2),
    ),
    (
        cosine_onecycle_schedule(12, 2.0, 0.3, 4.0, 10.0),
        lambda t: 2.0 - 1.5 * cosine(t, 3) if t < 3 else 0.05 + 1.95 * cosine(t - 3, 9),
    ),
    (
        sgdr_schedule(
            [
                {"init_value": 0.0, "peak_value": 1.0, "warmup_steps": 2, "decay_steps": 6},
                {"init_value": 0.1, "peak_value": 0.5, "warmup_steps": 1, "decay_steps": 4},
                {"init_value": 0.2, "peak_value": 0.2, "warmup_steps": 0, "decay_steps": 9},
            ]
        ),
        lambda t: (
            (t / 2 if t < 2 else cosine(t - 2, 4))
            if t < 6
            else (0.1 if t == 6 else 0.5 * cosine(t - 7, 3))
            if t < 10
            else 0.2 * cosine(t - 10, 9)
        ),
    ),
]
forms = pytest.mark.parametrize(("schedule", "form"), FORMS, ids=lambda x: type(x).__name__)
STEPS = torch.arange(16)


@forms
def test_closed_form(schedule: Schedule, form: Callable[[int], float]) -> None:
    expected = torch.tensor([form(int(t)) for t in STEPS], dtype=torch.float64)
    torch.testing.assert_close(schedule(STEPS), expected, rtol=1e-14, atol=1e-15)
    one = schedule(STEPS[5])
    assert one.shape == () and one.dtype == torch.float64
    torch.testing.assert_close(one, expected[5], rtol=1e-14, atol=0)


@forms
def test_vmaps_pickles_and_copies(schedule: Schedule, form: Callable[[int], float]) -> None:
    expected = schedule(STEPS)
    assert torch.equal(vmap(schedule)(STEPS), expected)
    for copied in (pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule)):
        assert repr(copied) == repr(schedule)
        assert torch.equal(copied(STEPS), expected)


@forms
def test_is_one_graph(schedule: Schedule, form: Callable[[int], float]) -> None:
    graphs = []

    def backend(module: Any, inputs: Any) -> Any:
        graphs.append(module)
        return module.forward

    torch._dynamo.reset()
    compiled = torch.compile(schedule.__call__, fullgraph=True, backend=backend)
    for t in (0, 3, 9):
        assert compiled(torch.tensor(t)) == schedule(torch.tensor(t))
    assert len(graphs) == 1


def test_begins_and_ends_exactly() -> None:
    for first, last in ((0.1, 0.3), (1e-3, 1e3)):
        for make in (
            linear_schedule(first, last, 7),
            polynomial_schedule(first, last, 2.5, 7),
            warmup_cosine_decay_schedule(first, 0.7, 3, 7, last),
        ):
            assert make(0).item() == first and make(7).item() == make(700).item() == last


def test_a_cycle_of_any_length_ends_where_it_should() -> None:
    for steps in range(1, 30):
        for make in (
            linear_onecycle_schedule(steps, 2.0),
            cosine_onecycle_schedule(steps, 2.0),
        ):
            curve, end = make(torch.arange(steps + 2)), torch.full((2,), 8e-6).double()
            assert curve.isfinite().all() and curve.max() <= 2.0
            torch.testing.assert_close(curve[-2:], end, rtol=1e-7, atol=0)


def test_lengths_of_parts_may_be_tensors_under_vmap_and_grad() -> None:
    def total(warmup: torch.Tensor, peak: torch.Tensor) -> torch.Tensor:
        curves = (
            warmup_stable_decay_schedule(0.0, peak, warmup, 2, 3),
            inverse_sqrt_schedule(0.0, peak, warmup),
            warmup_exponential_decay_schedule(0.0, peak, warmup, 2, 0.5),
            linear_onecycle_schedule(4 * warmup, peak),
            cosine_onecycle_schedule(4 * warmup, peak),
        )
        return torch.stack([curve(STEPS).sum() for curve in curves]).sum()

    warmups, peaks = torch.tensor([1.0, 3.0]).double(), torch.tensor([0.5, 2.0]).double()
    together = vmap(total)(warmups, peaks)
    for i in range(2):
        torch.testing.assert_close(together[i], total(warmups[i], peaks[i]))
        slopes = grad(total, argnums=(0, 1))(warmups[i], peaks[i])
        assert all(s.isfinite() for s in slopes)
        torch.testing.assert_close(slopes[1] * peaks[i], together[i])  # linear in the peak


def test_options_may_be_tensors_under_vmap_and_grad() -> None:
    def value(start: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        return warmup_cosine_decay_schedule(0.0, start, 2, length)(torch.tensor(3))

    starts, lengths = torch.tensor([1.0, 2.0]).double(), torch.tensor([4, 8])
    expected = [2.0 * f for f in (0.5 * cosine(1, 2), cosine(1, 6))]
    torch.testing.assert_close(
        vmap(value)(starts, lengths), torch.tensor(expected, dtype=torch.float64)
    )
    assert grad(value)(starts[0], lengths[0]) == cosine(1, 2)


def test_in_a_link_it_is_the_value_of_each_step() -> None:
    lr, bound = cosine_decay_schedule(0.3, 6), linear_schedule(1.0, 0.1, 5)
    tx, plain = chain(clamp(-1.0, bound), sgd(lr, momentum=0.5)), chain(clamp(-1.0), sgd(0.1, 0.5))
    x = y = torch.tensor([1.0, -2.0], dtype=torch.float64)
    state, other = tx.init(x), plain.init(y)
    compiled = torch.compile(tx.step, fullgraph=True, backend="eager")
    z, third = x, state
    for t in range(8):
        now = {"lr": lr(t), "clamp_max": bound(t)}
        x, state = tx.step(x, torch.cos(x + t), state)
        y, other = plain.step(y, torch.cos(y + t), other, hyperparams=now)
        z, third = compiled(z, torch.cos(z + t), third)
        assert torch.equal(x, y)
        torch.testing.assert_close(z, x)


def test_in_the_optimizer_it_is_the_value_of_each_step() -> None:
    tx = clamp(clamp_max=linear_schedule(1.0, 0.1, 5))
    p = torch.ones(2, requires_grad=True)
    optimizer = ChainedParamTransformingOptimizer(tx, params=[p], lr=0.1)
    optimizer = copy.deepcopy(optimizer)
    (p,) = optimizer.param_groups[0]["params"]
    x, state = torch.ones(2), tx.init(torch.ones(2))
    for t in range(4):
        p.grad = torch.tensor([0.5, 2.0]) - 0.1 * t
        g, state = tx.update(p.grad.clone(), state)
        optimizer.step()
        x = x - 0.1 * g
        torch.testing.assert_close(p.detach(), x)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (
            lambda: linear_schedule(1.0, 0.0, 0),
            ValueError,
            "`transition_steps` must satisfy 1 <= transition_steps  Got: 0",
        ),
        (
            lambda: linear_schedule(1.0, 0.0, 3, -1),
            ValueError,
            "`transition_begin` must satisfy 0.0 <= transition_begin  Got: -1",
        ),
        (
            lambda: constant_schedule(math.nan),
            ValueError,
            "`value` must satisfy -inf <= value <= inf  Got: nan",
        ),
        (
            lambda: constant_schedule("high"),
            TypeError,
            "`value` must be a number, a tensor or a schedule  Got: 'high'",
        ),
        (
            lambda: constant_schedule([1.0]),
            TypeError,
            "`value` must be a number or a tensor  Got: [1.0]",
        ),
        (
            lambda: cosine_decay_schedule(math.cos, 3),
            TypeError,
            "`init_value` must be a number or a tensor  Got: <built-in function cos>",
        ),
        (
            lambda: exponential_decay(1.0, 3, -0.5),
            ValueError,
            "`decay_rate` must satisfy 0.0 <= decay_rate  Got: -0.5",
        ),
        (
            lambda: exponential_decay(1.0, 3, 0.5, staircase=1),
            ValueError,
            "`staircase` must be one of False, True  Got: 1",
        ),
        (
            lambda: piecewise_constant_schedule(1.0, [3]),
            TypeError,
            "`boundaries_and_scales` must map steps to factors  Got: [3]",
        ),
        (
            lambda: piecewise_constant_schedule(1.0, {-3: 1.0}),
            ValueError,
            "`boundaries_and_scales` must satisfy 0 <= boundaries_and_scales  Got: -3",
        ),
        (
            lambda: warmup_cosine_decay_schedule(0.0, 1.0, 5, 5),
            ValueError,
            "`decay_steps` must satisfy warmup_steps(= 5) < decay_steps  Got: 5",
        ),
        (
            lambda: piecewise_interpolate_schedule("cubic", 1.0),
            ValueError,
            "`interpolate_type` must be one of 'linear', 'cosine'  Got: 'cubic'",
        ),
        (
            lambda: piecewise_interpolate_schedule("linear", 1.0, 3),
            TypeError,
            "`boundaries_and_scales` must map steps to factors  Got: 3",
        ),
        (
            lambda: linear_onecycle_schedule(9, 1.0, 0.5, 0.4),
            ValueError,
            "`pct_final` must satisfy pct_start(= 0.5) <= pct_final  Got: 0.4",
        ),
        (
            lambda: cosine_onecycle_schedule(9, 1.0, div_factor=0.5),
            ValueError,
            "`div_factor` must satisfy 1 <= div_factor  Got: 0.5",
        ),
        (
            lambda: sgdr_schedule([]),
            TypeError,
            "`cosine_kwargs` must hold dicts of arguments  Got: []",
        ),
        (
            lambda: join_schedules([], []),
            TypeError,
            "`schedules` must hold functions of the step  Got: []",
        ),
        (
            lambda: join_schedules([abs, abs, abs], [5, 3]),
            ValueError,
            "`boundaries` must be 2 ascending steps, one fewer than schedules  Got: [5, 3]",
        ),
        (
            lambda: join_schedules([abs, abs], []),
            ValueError,
            "`boundaries` must be 1 ascending steps, one fewer than schedules  Got: []",
        ),
    ],
)
def test_refuses(make: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as error:
        make()
    assert str(error.value) == message
