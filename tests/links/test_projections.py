"""The constraint sets against definitions nobody here wrote."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

import rai_chain as rc

BALLS = {"linf": rc.linf_ball, "l2": rc.l2_ball, "l1": rc.l1_ball}
NORMS = {"linf": float("inf"), "l2": 2, "l1": 1}


def draw(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def by_sorting(x, radius):
    """Projection of one row onto the L1 ball, by the sort of Duchi et al., figure 1, in float64."""
    x = np.asarray(x, dtype=np.float64)
    if radius == 0:
        return np.zeros_like(x)
    if np.abs(x).sum() <= radius:
        return x
    u = np.sort(np.abs(x))[::-1]
    sums = np.cumsum(u) - radius
    rho = np.nonzero(u * np.arange(1, len(u) + 1) > sums)[0][-1]
    return np.sign(x) * np.maximum(np.abs(x) - sums[rho] / (rho + 1), 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.just(0.0) | st.floats(1e-9, 5.0), st.integers(0, 10**6))
def test_l1_is_the_euclidean_projection(size, radius, seed):
    x = draw(3, size, seed=seed, dtype=torch.float64)
    ours = rc.project_l1_ball(x, radius)
    for row, result in zip(x, ours, strict=True):
        np.testing.assert_allclose(result, by_sorting(row, radius), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("seed", range(3))
def test_l1_and_simplex_against_quadratic_programming(seed):
    x = draw(4, seed=seed, dtype=torch.float64).numpy()
    distance = lambda y: ((y - x) ** 2).sum()  # noqa: E731
    options = {"ftol": 1e-14, "maxiter": 500}
    total = {"type": "eq", "fun": lambda y: y.sum() - 1.5}
    best = minimize(
        distance, np.full(4, 0.375), bounds=[(0, None)] * 4, constraints=total, options=options
    )
    simplex = rc.project_simplex(torch.tensor(x)[None], 1.5)[0]
    np.testing.assert_allclose(simplex, best.x, atol=1e-6)
    signs = np.sign(x)
    inside = {"type": "ineq", "fun": lambda y: 0.7 - (signs * y).sum()}
    bounds = [(0, None) if s > 0 else (None, 0) for s in signs]
    best = minimize(distance, 0.1 * signs, bounds=bounds, constraints=inside, options=options)
    np.testing.assert_allclose(rc.project_l1_ball(torch.tensor(x)[None], 0.7)[0], best.x, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(BALLS)),
    st.floats(1e-3, 10.0),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.integers(0, 10**6),
    st.booleans(),
)
def test_the_constraint_holds_to_the_last_bit(kind, epsilon, dtype, seed, around):
    """Measured in float64, with epsilon as the dtype holds it."""
    epsilon = float(torch.tensor(epsilon, dtype=dtype))
    p, g = draw(5, 33, seed=seed, dtype=dtype), draw(5, 33, seed=seed + 1, dtype=dtype)
    center = draw(5, 33, seed=seed + 2, dtype=dtype) if around else None
    new, _ = BALLS[kind](epsilon, center=center).step(p, g, ())
    offset = new.double() if center is None else new.double() - center.double()
    size = torch.linalg.vector_norm(offset, NORMS[kind], dim=1)
    assert (size <= epsilon * (1 + 1e-14)).all()


@pytest.mark.parametrize("kind", sorted(BALLS))
def test_inside_points_keep_their_bits_and_projecting_again_changes_nothing(kind):
    p, zero = draw(6, 9), torch.zeros(6, 9)
    tx = BALLS[kind](3.0, center=0.2)
    once, _ = tx.step(p * 1e-3 + 0.2, zero, ())
    assert torch.equal(once, p * 1e-3 + 0.2)
    outside, _ = tx.step(100 * p, zero, ())
    assert torch.equal(tx.step(outside, zero, ())[0], outside)


@pytest.mark.parametrize("kind", sorted(BALLS))
def test_a_ball_of_radius_zero_is_its_center(kind):
    p = draw(4, 5)
    assert torch.equal(BALLS[kind](0.0).step(p, p, ())[0], torch.zeros(4, 5))
    center = draw(4, 5, seed=1)
    assert torch.equal(BALLS[kind](0.0, center=center).step(p, p, ())[0], center)


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_no_point_of_the_ball_is_nearer(kind):
    x = 3 * draw(50, 6, dtype=torch.float64)
    near = (x - BALLS[kind](1.0).map(x)).norm(dim=1)
    for seed in range(20):
        y = draw(50, 6, seed=seed + 1, dtype=torch.float64)
        y = y / torch.linalg.vector_norm(y, NORMS[kind], dim=1, keepdim=True)
        assert (near <= (x - y).norm(dim=1) + 1e-12).all()


def test_box_with_bounds_for_each_element():
    p, low, high = draw(3, 4), -draw(3, 4, seed=1).abs(), draw(3, 4, seed=2).abs()
    new, _ = rc.box(low, high).step(5 * p, torch.zeros(3, 4), ())
    assert torch.equal(new, torch.minimum(torch.maximum(5 * p, low), high))


def test_update_returns_the_projected_move():
    p, g = draw(3, 4), draw(3, 4, seed=1)
    tx = rc.chain(rc.scale(-1.0), rc.l2_ball(1.0))
    moved, _ = tx.update(g, tx.init(p), params=p)
    assert torch.equal(moved, tx.step(p, g, tx.init(p))[0] - p)


def test_parameters_without_gradient_are_projected_and_others_kept():
    p = {"a": 5 * torch.ones(2, 2), "b": None, "c": torch.full((2, 2), 0.1)}
    tx = rc.chain(rc.scale(-1.0), rc.box(-1.0, 1.0))
    new, _ = tx.step(p, {"a": None, "b": None, "c": None}, tx.init(p))
    assert torch.equal(new["a"], torch.ones(2, 2)) and torch.equal(new["c"], p["c"])
    assert torch.equal(p["a"], 5 * torch.ones(2, 2)) and new["b"] is None


def test_plain_functions_take_trees_and_say_what_they_take():
    p = {"a": 3 * torch.ones(2, 2), "n": None}
    out = rc.project_box(p, 0.0, 1.0)
    assert torch.equal(out["a"], torch.ones(2, 2)) and out["n"] is None
    assert torch.equal(p["a"], 3 * torch.ones(2, 2))
    with pytest.raises(ValueError, match="`epsilon` must satisfy"):
        rc.project_l1_ball(p, -1.0)
    assert "param_ndim" in str(__import__("inspect").signature(rc.project_l1_ball))


def test_derivative_of_the_radius_and_the_center():
    x = 2 * draw(3, 5, dtype=torch.float64)
    center = draw(3, 5, seed=1, dtype=torch.float64).requires_grad_()
    epsilon = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    for ball in BALLS.values():
        move = lambda c, e, ball=ball: ball(e, center=c).map(x)  # noqa: E731
        assert torch.autograd.gradcheck(move, (center, epsilon))


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_the_radius_is_used_where_a_ball_and_then_a_box_leaves_much_of_it(kind):
    """Images of zeros and ones: the box stops half of the ways."""
    image = (draw(50, 784) > 0.8).double()
    x = image + 0.3 * draw(50, 784, seed=1)
    epsilon, p = {"l1": (12.0, 1), "l2": (2.0, 2)}[kind]
    both = BALLS[kind](epsilon, image, low=0.0, high=1.0).map(x)
    after = rc.chain(BALLS[kind](epsilon, image), rc.box(0.0, 1.0)).step(x, 0 * x, [{}, {}])[0]
    assert both.min() == 0 and both.max() == 1
    used = [torch.linalg.vector_norm(y - image, p, dim=1) / epsilon for y in (both, after)]
    assert ((used[0] - 1).abs() < 1e-12).all() and used[1].mean() < 0.8
    assert ((x - both).norm(dim=1) < (x - after).norm(dim=1)).all()


@pytest.mark.parametrize("kind", sorted(BALLS))
def test_a_ball_in_a_box_has_bounds_for_each_row_and_element_in_every_home(kind):
    x, low, high = draw(4, 9), -draw(4, 9, seed=1).abs(), torch.linspace(0.1, 0.4, 4)
    tx = rc.chain(rc.scale(-1.0), BALLS[kind](0.5, 0.1, low=low, high=high[:, None]))
    new, _ = tx.step(x, draw(4, 9, seed=2), tx.init(x))
    assert (new >= low).all() and (new <= high[:, None]).all()
    leaf = x.clone().requires_grad_()
    optimizer = tx.optimizer([leaf])
    leaf.grad = draw(4, 9, seed=2)
    optimizer.step()
    assert torch.equal(leaf, new)
    with pytest.raises(ValueError, match=r"`low` must satisfy low <= high\(= 0.0\)  Got: 1.0"):
        BALLS[kind](0.5, low=1.0, high=0.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_linf_ball_in_a_box_is_the_nearest_of_both_for_each_element(dtype):
    for seed in range(20):
        x, c = draw(9, seed=3 * seed, dtype=dtype), draw(9, seed=3 * seed + 1, dtype=dtype)
        low = c - draw(9, seed=3 * seed + 2, dtype=dtype).abs()
        y = rc.linf_ball(0.3, c, low=low, high=0.7).map(x)
        ball = rc.linf_ball(0.3, c)
        ends = [ball.map(torch.full_like(x, end)) for end in (-9.0, 9.0)]
        near, far = torch.maximum(low, ends[0]), ends[1].clamp(max=0.7)
        meet = near <= far  # else the one of the box that is nearest to the center
        expected = torch.where(meet, x.clamp(near, far), c.clamp(low, torch.full_like(x, 0.7)))
        assert torch.equal(y, expected)
