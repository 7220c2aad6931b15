"""Balls inside of boxes, against a bisection, a quadratic program and exact arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from exact import DTYPES, distance, hard_rows
from scipy.optimize import LinearConstraint, minimize
from torch.func import grad, vmap

from rai_chain.kernels import boxed, sets

INF, F64 = math.inf, torch.float64
KINDS = {1: sets.L1, 2: sets.L2}
dtypes = pytest.mark.parametrize("dtype", DTYPES)
both = pytest.mark.parametrize("p", [1, 2])


def ball(x, radius, center, low, high, p):
    return boxed.ball_in_box(x, radius, center, low, high, KINDS[p])


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def by_bisection(x, radius, center, low, high, p):
    """One row: the multiplier of the norm in the Lagrangian, which is a clipped shrinkage."""
    way = x - center

    def at(t):
        shrunk = np.sign(way) * np.maximum(np.abs(way) - t, 0) if p == 1 else way / (1 + t)
        return np.clip(center + shrunk, low, high)

    long = lambda t: np.linalg.norm(at(t) - center, p) > radius  # noqa: E731
    if not long(0.0):
        return at(0.0)
    near, far = 0.0, 1e12
    for _ in range(300):
        middle = (near * far) ** 0.5 if near else far / 2
        near, far = (middle, far) if long(middle) else (near, middle)
    return at(far)


def boxes(seed, size, kind):
    """A row, a center and a box: around the center, anywhere, or open to one side."""
    x, center, width, other = (draw(size, seed=4 * seed + i).numpy() for i in range(4))
    low, high = center - np.abs(width), center + np.abs(other)
    if kind == "anywhere":  # the center may be out of it, and the ball may miss it
        low, high = -np.abs(width), np.abs(other)
    return 3 * x, center, low, np.full(size, INF) if kind == "open" else high


@both
@pytest.mark.parametrize("kind", ["around", "anywhere", "open"])
def test_the_nearest_point_by_bisection(p, kind):
    for seed in range(60):
        x, center, low, high = boxes(seed, 1 + seed % 23, kind)
        radius = float(np.random.default_rng(seed).uniform(0.05, 4))
        row = [torch.tensor(v)[None] for v in (center, low, high)]
        ours = ball(torch.tensor(x)[None], radius, *row, p)[0].numpy()
        theirs = by_bisection(x, radius, center, low, high, p)
        np.testing.assert_allclose(ours, theirs, atol=1e-11)


@both
@pytest.mark.parametrize("seed", range(4))
def test_the_nearest_point_by_quadratic_programming(p, seed):
    """scipy's, which knows nothing of multipliers."""
    x, center = 2 * draw(4, seed=seed).numpy(), np.array([0.4, 0.4, 0.1, 1.2])
    ours = ball(torch.tensor(x)[None], 0.9, torch.tensor(center)[None], 0.0, 1.0, p)[0]
    options = {"ftol": 1e-15, "maxiter": 500}
    if p == 1:  # y = center + a - b with a, b >= 0
        split = np.concatenate([np.eye(4), -np.eye(4)], 1)
        inside = [
            LinearConstraint(np.ones((1, 8)), ub=0.9),
            LinearConstraint(split, -center, 1 - center),
        ]
        found = minimize(
            lambda v: ((center + split @ v - x) ** 2).sum(),
            np.zeros(8),
            bounds=[(0, None)] * 8,
            constraints=inside,
            method="SLSQP",
            options=options,
        )
        best = center + split @ found.x
    else:
        inside = {"type": "ineq", "fun": lambda y: 0.81 - ((y - center) ** 2).sum()}
        best = minimize(
            lambda y: ((y - x) ** 2).sum(),
            center.clip(0, 1),
            bounds=[(0, 1)] * 4,
            constraints=[inside],
            method="SLSQP",
            options=options,
        ).x
    np.testing.assert_allclose(ours, best, atol=1e-6)


@dtypes
@both
def test_in_exact_arithmetic_with_the_center_in_the_box(p, dtype):
    """What is in both keeps its bits; all else ends in both, and stays there."""
    moved = kept = 0
    for seed in range(120):
        x, center, radius = hard_rows(dtype, seed)
        origin = torch.zeros_like(x) if center is None else center
        reach = x.abs().amax() * draw(*x.shape, seed=seed).abs()
        low = (origin.double() - reach).to(dtype).minimum(origin).nan_to_num(0, INF, -INF)
        high = (origin.double() + reach.flip(1)).to(dtype).maximum(origin).nan_to_num(0, INF, -INF)
        y = ball(x, radius, center, low, high, p)
        assert (y >= low).all() and (y <= high).all()
        bound = Fraction(radius) ** p
        for i, (before, after, c) in enumerate(
            zip(x.tolist(), y.tolist(), origin.tolist(), strict=True)
        ):
            assert distance(after, c, p) <= bound
            boxed_row = bool(((x >= low) & (x <= high))[i].all())
            if boxed_row and distance(before, c, p) <= bound:
                kept += 1
                assert before == after
            else:
                moved += 1
        assert torch.equal(ball(y, radius, center, low, high, p), y)
    assert moved > 100 and kept > 20


@both
def test_with_the_center_elsewhere_it_holds_to_rounding_and_stays(p):
    for seed in range(60):
        x, center, low, high = (
            torch.tensor(v)[None] for v in boxes(seed, 1 + seed % 23, "anywhere")
        )
        radius = 2.0
        y = ball(x, radius, center, low, high, p)
        assert (y >= low).all() and (y <= high).all()
        least = torch.linalg.vector_norm(center.clamp(low, high) - center, p)
        size = torch.linalg.vector_norm(y - center, p)
        assert size <= max(radius, float(least)) * (1 + 1e-15)
        if least > radius:
            assert torch.equal(y, center.clamp(low, high))
        torch.testing.assert_close(ball(y, radius, center, low, high, p), y, rtol=1e-15, atol=1e-15)


@dtypes
@both
def test_a_box_that_is_not_in_the_way_leaves_the_bits_of_the_ball(p, dtype):
    alone = {1: sets.l1_ball, 2: sets.l2_ball}[p]
    for seed in range(60):
        x, center, radius = hard_rows(dtype, seed)
        expected = alone(x, radius, center)
        for low, high in ((None, None), (-INF, INF), (expected, None), (None, expected)):
            if (low is None or (x >= low).all()) and (high is None or (x <= high).all()):
                assert torch.equal(ball(x, radius, center, low, high, p), expected)


@dtypes
@both
def test_an_infinite_element_is_the_limit(p, dtype):
    """Infinite elements share the radius equally, as far as the box lets them; the rest is left."""
    x = torch.tensor([[INF, INF, 3.0, 0.0], [INF, -INF, 1e4, 2.0]], dtype=dtype)
    y = ball(x, 3.0, None, -0.5, torch.tensor([1.0, INF, 1.0, 1.0]), p).double()
    limit = {1: [[1, 2, 0, 0], [1, -0.5, 1, 0.5]], 2: [[1, 8**0.5, 0, 0], [1, -0.5, 1, 1]]}[p]
    torch.testing.assert_close(y, torch.tensor(limit, dtype=F64), rtol=0.01, atol=1e-3)
    assert torch.equal(ball(x, INF, None, None, 5.0, p), x.clamp(max=5.0))


def test_far_points_that_the_box_holds_take_their_part_and_no_more():
    x = torch.tensor([[1e300, 2.0, 1.0], [1e16, 1e16 + 4, 0.0]], dtype=F64)
    high = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.25, 1.0]], dtype=F64)
    y = ball(x, 2.0, None, 0.0, high, 1)
    torch.testing.assert_close(y, torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.25, 0.0]], dtype=F64))
    twins = torch.full((1, 2), 1e300, dtype=F64)
    for p, rest in ((1, 0.4), (2, 0.24**0.5)):
        y = ball(twins, 0.5, None, None, torch.tensor([1.0, 0.1], dtype=F64), p)
        torch.testing.assert_close(y, torch.tensor([[rest, 0.1]], dtype=F64))


@dtypes
@both
def test_nan_stays_in_its_row(p, dtype):
    x = torch.tensor([[1.0, 2.0], [math.nan, 0.0]], dtype=dtype)
    y = ball(x, 1.0, None, 0.0, 1.0, p)
    assert y[0].isfinite().all() and y[1].isnan().all()


@both
def test_empty_zero_and_strided(p):
    x = draw(6, 50).float()
    expected = ball(x, 0.5, 0.1, -0.1, 0.2, p)
    assert torch.equal(ball(x.t().contiguous().t(), 0.5, 0.1, -0.1, 0.2, p), expected)
    each = torch.full((6, 1), 0.5)
    assert torch.equal(ball(x, each, 0.1, torch.full((6, 50), -0.1), 0.2, p), expected)
    assert ball(x[:0], 0.5, None, 0.0, None, p).shape == (0, 50)
    assert ball(x[:, :0], 0.5, None, 0.0, None, p).shape == (6, 0)
    assert torch.equal(ball(x, 0.0, None, 0.0, None, p), torch.zeros_like(x))


# ------------------------------------------------------------------ derivatives


def leaves(kind, seed):
    parts = [torch.tensor(v)[None] for v in boxes(seed, 6, kind)]
    parts[3] = parts[3].clamp(max=9.0)
    return [v.requires_grad_() for v in (*parts, torch.tensor(1.3, dtype=F64))]


@both
@pytest.mark.parametrize("kind", ["around", "anywhere", "open"])
def test_the_derivative_of_everything_by_finite_differences(p, kind):
    move = lambda x, c, low, high, r: ball(x, r, c, low, high, p)  # noqa: E731
    for seed in range(3):
        assert torch.autograd.gradcheck(move, leaves(kind, seed))
    square = lambda *args: move(*args).square()  # noqa: E731
    assert torch.autograd.gradgradcheck(square, leaves(kind, 0))


@both
def test_the_derivative_is_finite_at_ties_corners_and_ends(p):
    for x in (torch.zeros(1, 3), torch.ones(1, 3), torch.tensor([[1.0, 0.5, 0.0]])):
        for radius in (0.0, 1e-12, 0.5, 1.0, 1.5, 1e9, INF):
            r = torch.tensor(radius, dtype=F64)
            move = lambda x, r: ball(x, r, 0.0, 0.0, 0.5, p).sum()  # noqa: E731
            assert grad(move)(x.double(), r).isfinite().all()
            assert grad(move, 1)(x.double(), r).isfinite()


@dtypes
@both
def test_traced_equals_plain_to_the_bit(p, dtype):
    x, c = (draw(4, 3, 7, seed=s).to(dtype) for s in range(2))
    move = lambda x, c, r: ball(x, r, c, c - 0.3, 0.5, p)  # noqa: E731
    radius = torch.linspace(0.2, 2.0, 4, dtype=F64)
    loop = torch.stack([move(*args) for args in zip(x, c, radius, strict=True)])
    assert torch.equal(vmap(move)(x, c, radius), loop)
    assert torch.equal(move(x[0].clone().requires_grad_(), c[0], 0.2), loop[0])


@pytest.mark.filterwarnings("ignore")
@both
def test_the_operator_is_sound(p):
    x, radius = draw(3, 9).float(), torch.full((3, 1), 1.5, dtype=F64)
    low, high = torch.full_like(x, -0.5), torch.full_like(x, 0.7)
    args = (x, None, radius, low, high, KINDS[p])
    torch.library.opcheck(torch.ops.rai_chain.ball_in_box.default, args)
