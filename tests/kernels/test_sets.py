"""The laws of the balls and the simplex, in exact arithmetic."""

import math
from fractions import Fraction

import pytest
import torch
from exact import DTYPES, distance, hard_rows, simplex
from torch.func import grad, vmap

from rai_chain.kernels import sets

BALLS = {1: sets.l1_ball, 2: sets.l2_ball}
INF = math.inf
dtypes = pytest.mark.parametrize("dtype", DTYPES)


@dtypes
@pytest.mark.parametrize("p", [1, 2])
def test_inside_keeps_its_bits_and_outside_never_ends_outside(p, dtype):
    moved = 0
    for seed in range(150):
        x, center, radius = hard_rows(dtype, seed)
        y = BALLS[p](x, radius, center)
        origin = torch.zeros_like(x) if center is None else center
        bound = Fraction(radius) ** p
        for before, after, c in zip(x.tolist(), y.tolist(), origin.tolist(), strict=True):
            if distance(before, c, p) <= bound:
                assert before == after
            else:
                moved += 1
                assert distance(after, c, p) <= bound
        assert torch.equal(BALLS[p](y, radius, center), y)
    assert moved > 50


@dtypes
def test_linf_is_the_nearest_number_of_the_dtype(dtype):
    for seed in range(150):
        x, center, radius = hard_rows(dtype, seed)
        y = sets.linf_ball(x, radius, center)
        origin = torch.zeros_like(x) if center is None else center
        away = y.nextafter(torch.where(x > origin, INF, -INF).to(dtype))
        columns = (t.flatten().tolist() for t in (x, y, origin, away))
        for before, after, c, next_one in zip(*columns, strict=True):
            bound, c = Fraction(radius), Fraction(c)
            if abs(Fraction(before) - c) <= bound:
                assert before == after
            else:
                assert abs(Fraction(after) - c) <= bound
                assert math.isinf(next_one) or abs(Fraction(next_one) - c) > bound


@dtypes
def test_simplex_in_exact_arithmetic(dtype):
    eps, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).smallest_normal
    for seed in range(100):
        x, _, scale = hard_rows(dtype, seed)
        if scale > torch.finfo(dtype).max:
            continue
        y = sets.simplex(x, scale)
        assert (y >= 0).all()
        for before, after in zip(x.tolist(), y.tolist(), strict=True):
            best = simplex(before, Fraction(scale))
            error = max(abs(Fraction(a) - b) for a, b in zip(after, best, strict=True))
            assert error <= 1.01 * eps * scale + tiny


@pytest.mark.parametrize("p", [1, 2])
def test_a_zero_stays_zero_where_a_row_is_hardly_outside(p):
    moved = 0
    for seed in range(200):
        x = torch.randn(1, 40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        x[:, ::2] = 0.0
        size = torch.linalg.vector_norm(x, p).item()
        y = BALLS[p](x, math.nextafter(size, 0.0))
        assert (y[:, ::2] == 0).all()
        moved += not torch.equal(x, y)
    assert moved > 50


@dtypes
@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("around", [False, True])
def test_the_boundary_is_reached(dtype, p, around):
    x = torch.randn(5, 300, generator=torch.Generator().manual_seed(0)).to(dtype)
    center = x.flip(0) * 0.01 if around else None
    y = BALLS[p](x, 2.0, center).double() - (center.double() if around else 0.0)
    size = torch.linalg.vector_norm(y, p, dim=1)
    assert (size > 2.0 * (1 - 8 * torch.finfo(dtype).eps) - (0.1 if around else 0.0)).all()


def test_a_long_row_of_half_precision():
    ones = torch.ones(1, 1_000_000).half()
    assert 0.9 < math.fsum(sets.l1_ball(ones, 1.0)[0].tolist()) <= 1.0
    assert 0.99 < math.fsum(v * v for v in sets.l2_ball(ones, 1.0)[0].tolist()) <= 1.0


def test_far_points():
    one = torch.tensor([[1.0, 0.0, 0.0]])
    for far in (1e16, 1e30, INF):
        assert torch.equal(sets.simplex(one * far, 1.0).nan_to_num(), one) or far == INF
        assert torch.equal(sets.l1_ball(torch.tensor([[far, 0.0, 0.0]]), 1.0), one * (1 - 2**-24))
    huge = torch.full((1, 2), 1e308, dtype=torch.float64)
    for ball, value in ((sets.l1_ball, 0.5), (sets.l2_ball, 0.5**0.5)):
        torch.testing.assert_close(ball(huge, 1.0), torch.full_like(huge, value))
    tiny = torch.tensor([[3e-320, 4e-320]], dtype=torch.float64)
    torch.testing.assert_close(
        sets.l2_ball(tiny, 5e-321).norm(), torch.tensor(5e-321).double(), rtol=0.01, atol=0
    )


@dtypes
def test_an_infinite_element_is_the_limit(dtype):
    x = torch.tensor([[INF, 3.0, -INF, 0.0], [INF, 3.0, 1.0, 0.0]], dtype=dtype)
    limits = {
        sets.l1_ball: [[0.5, 0, -0.5, 0], [1, 0, 0, 0]],
        sets.l2_ball: [[0.5**0.5, 0, -(0.5**0.5), 0], [1, 0, 0, 0]],
        sets.linf_ball: [[1, 1, -1, 0], [1, 1, 1, 0]],
        sets.simplex: [[1, 0, 0, 0], [1, 0, 0, 0]],
    }
    close = {"rtol": 8 * torch.finfo(dtype).eps, "atol": 0.0}
    for function, limit in limits.items():
        torch.testing.assert_close(function(x, 1.0), torch.tensor(limit, dtype=dtype), **close)
        if function in BALLS.values():
            far = function(x, 1.0, torch.ones_like(x)) - 1
            torch.testing.assert_close(far, torch.tensor(limit, dtype=dtype), rtol=0.01, atol=0.01)
            assert torch.equal(function(x, INF), x)
    below = torch.full((1, 4), -INF, dtype=dtype)
    assert torch.equal(sets.simplex(below, 1.0), torch.full((1, 4), 0.25, dtype=dtype))


@dtypes
def test_nan_stays_in_its_row(dtype):
    x = torch.tensor([[1.0, 2.0], [math.nan, 0.0]], dtype=dtype)
    for function in (*BALLS.values(), sets.simplex):
        y = function(x, 1.0)
        assert y[0].isfinite().all() and y[1].isnan().all()
    y = sets.linf_ball(x, 1.0, torch.zeros_like(x))
    assert torch.equal(y.isnan(), x.isnan())


@pytest.mark.parametrize("function", [*BALLS.values(), sets.linf_ball, sets.simplex])
def test_any_layout_and_place(function):
    x = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    expected = function(x, 0.5)
    assert torch.equal(function(x.t().contiguous().t(), 0.5), expected)
    strided = torch.zeros(6, 100)[:, ::2]
    assert function(x, 0.5, out=strided) is strided and torch.equal(strided, expected)
    assert torch.equal(function(x, torch.full((6, 1), 0.5)), expected)
    place = x.clone()
    assert function(place, 0.5, out=place) is place and torch.equal(place, expected)
    assert function(x[:0], 0.5).shape == (0, 50) and function(x[:, :0], 0.5).shape == (6, 0)


# ------------------------------------------------------------------ derivatives


def slope(function, x, twice=True):
    x = x.double()
    d = grad(lambda x: function(x).sum())(x)
    leaf = x.clone().requires_grad_()
    (other,) = torch.autograd.grad(function(leaf).sum(), leaf, create_graph=True)
    assert torch.equal(d, other.detach())
    if twice and other.requires_grad:
        (second,) = torch.autograd.grad(other.square().sum(), leaf)
        assert second.isfinite().all()
    return d


@pytest.mark.parametrize("function", [*BALLS.values(), sets.linf_ball])
@pytest.mark.parametrize("radius", [5.0, INF, 1e300, 1e-300])
def test_the_derivative_inside_is_one(function, radius):
    for row in (torch.zeros(1, 3), torch.full((1, 3), 1e-302)):
        row = row.double()
        if row.abs().sum() < radius:
            assert torch.equal(slope(lambda x: function(x, radius), row), torch.ones_like(row))


@pytest.mark.parametrize("magnitude", [1e-300, 1e-160, 1.0, 1e160, 1e300])
def test_the_derivative_outside_at_every_magnitude(magnitude):
    x = torch.tensor([[3.0, 4.0]], dtype=torch.float64) * magnitude
    twice = magnitude >= 1.0  # else the second derivative is beyond the range
    d = slope(lambda x: sets.l2_ball(x, magnitude), x, twice)
    torch.testing.assert_close(d, torch.tensor([[4 / 125, -3 / 125]]).double())
    d = slope(lambda x: sets.l1_ball(x, magnitude), x)
    torch.testing.assert_close(d, torch.tensor([[0.0, 0.0]]).double())
    d = slope(lambda x: sets.l2_ball(x, 1e-3 * magnitude), x, twice)
    torch.testing.assert_close(d, torch.tensor([[4 / 125, -3 / 125]]).double() * 1e-3)


def test_derivatives_at_ties_corners_and_radius_zero():
    x = torch.tensor([[1.0, -1.0, 1.0, 0.0]], dtype=torch.float64)
    for function in (*BALLS.values(), sets.linf_ball, sets.simplex):
        for radius in (0.0, 1e-12, 1.0, 3.0, 1e9):
            assert slope(lambda x, r=radius, f=function: f(x, r), x).isfinite().all()
            r = torch.tensor(radius, dtype=torch.float64)
            assert grad(lambda r, f=function: f(x, r).sum())(r).isfinite()


@pytest.mark.parametrize("function", [*BALLS.values(), sets.linf_ball])
def test_derivatives_against_finite_differences(function):
    generator = torch.Generator().manual_seed(0)
    x, c = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    leaves = [t.requires_grad_() for t in (2 * x, torch.rand(3, 1).double() + 0.1, c)]
    move = lambda x, r, c: function(x, r, c)  # noqa: E731
    assert torch.autograd.gradcheck(move, leaves)
    assert torch.autograd.gradgradcheck(lambda x, r, c: move(x, r, c).square(), leaves)
    simplex_leaves = [leaves[0], leaves[1]]
    assert torch.autograd.gradcheck(sets.simplex, simplex_leaves)


@dtypes
def test_traced_equals_plain_to_the_bit(dtype):
    for seed in range(20):
        x, center, radius = hard_rows(dtype, seed, n=3)
        for function in (sets.l1_ball, sets.l2_ball, sets.linf_ball, sets.simplex):
            args = (radius,) if function is sets.simplex else (radius, center)
            plain = function(x, *args)
            assert torch.equal(function(x.clone().requires_grad_(), *args).detach(), plain)
            own = [vmap(lambda x, args=args, f=function: f(x, *args))(x[None])[0]]
            if center is not None and function is not sets.simplex:
                both = vmap(lambda x, c, f=function: f(x, radius, c))  # noqa: B023
                own.append(both(x[None], center[None])[0])
            assert all(torch.equal(o, plain) for o in own)


@pytest.mark.filterwarnings("ignore")
def test_the_operator_is_sound():
    x, r = torch.randn(3, 9), torch.ones(3, 1).double()
    for args in ((x, None, r, 0), (x, x.flip(0), r, 1), (x, None, r, 2)):
        torch.library.opcheck(torch.ops.rai_chain.project.default, args)


def test_a_radius_for_each_row_with_threads():
    """Rows, and blocks of a long row, may be another thread's."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((40, 9000), (1, 400_000)):
        x = torch.randn(shape, generator=generator)
        center, radius = x.flip(1) * 0.1, torch.rand(shape[0], 1, generator=generator) + 0.5
        functions = (sets.l1_ball, sets.l2_ball)
        alone = [f(x, radius, center) for f in functions] + [sets.simplex(x, radius)]
        torch.set_num_threads(3)
        both = [f(x, radius, center) for f in functions] + [sets.simplex(x, radius)]
        torch.set_num_threads(1)
        assert all(torch.equal(a, b) for a, b in zip(alone, both, strict=True))
        rows = [f(x[:1], float(radius[0]), center[:1]) for f in functions]
        assert all(torch.equal(a[:1], b) for a, b in zip(alone, rows, strict=False))
