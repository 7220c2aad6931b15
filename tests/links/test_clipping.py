"""What holds updates to a size: the bound holds, inside it nothing changes, and the edges."""

import pytest
import torch
from torch.func import grad, vmap

import rai_chain as rc


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_clip_by_block_rms_bounds_each_leaf_by_itself() -> None:
    tree = {"large": 5 * draw(3, 4), "small": 0.1 * draw(3, 4), "scalar": torch.tensor(-3.0)}
    out = rc.clip_by_block_rms(1.0).map(tree)
    assert torch.equal(out["small"], tree["small"])
    for key in ("large", "scalar"):
        torch.testing.assert_close(out[key].square().mean().sqrt(), torch.tensor(1.0))
        torch.testing.assert_close(
            out[key] / tree[key], out[key] * 0 + (out[key] / tree[key]).max()
        )


def test_adaptive_grad_clip_compares_rows_with_their_parameters() -> None:
    p, g = draw(6, 4), draw(6, 4, seed=1)
    p[0] = 0
    p[1] = 100
    tx = rc.adaptive_grad_clip(0.1, eps=1e-2)
    out, _ = tx.update(g, tx.init(p), params=p)
    bound = 0.1 * p.norm(dim=1).clamp(min=1e-2)
    assert torch.equal(out[1], g[1])
    torch.testing.assert_close(out.norm(dim=1), torch.minimum(g.norm(dim=1), bound))
    with pytest.raises(ValueError, match="`params`"):
        tx.update(g, tx.init(p))


def test_normalize_by_update_norm_leaves_a_tree_of_zeros() -> None:
    zeros = {"a": torch.zeros(2), "b": None}
    out = rc.normalize_by_update_norm(eps=0.0).map(zeros)
    assert torch.equal(out["a"], zeros["a"]) and out["b"] is None
    assert rc.normalize_by_update_norm().map({"b": None}) == {"b": None}


def test_set_to_zero_freezes_to_the_bit() -> None:
    p = {"a": torch.tensor([1.1, -0.0, torch.inf]), "b": torch.ones(2)}
    tx = rc.masked(rc.set_to_zero(), {"a": True, "b": False})
    moved, _ = tx.step(p, {"a": torch.tensor([torch.nan, -1.0, 0.0]), "b": p["b"]}, tx.init(p))
    assert torch.equal(moved["a"].view(torch.int32)[[0, 2]], p["a"].view(torch.int32)[[0, 2]])
    assert torch.equal(moved["b"], torch.full((2,), 2.0))
    zero = rc.set_to_zero().map(torch.tensor([-1.0, torch.nan]))
    assert torch.equal(zero.view(torch.int32), torch.zeros(2, dtype=torch.int32))


def test_per_example_clip_is_the_loop_over_examples() -> None:
    grads = {"w": draw(5, 3, 2), "b": 2 * draw(5, seed=1), "none": None}
    out, count = rc.per_example_global_norm_clip(grads, 1.5)
    clip, clipped = rc.clip_by_global_norm(1.5), 0
    total = {"w": torch.zeros(3, 2), "b": torch.zeros(())}
    for i in range(5):
        one = {"w": grads["w"][i], "b": grads["b"][i]}
        clipped += bool(rc.global_norm(one) > 1.5)
        small = clip.map(one)
        total = {k: v + small[k] for k, v in total.items()}
    assert out.pop("none") is None and int(count) == clipped and 0 < clipped < 5
    torch.testing.assert_close(out, total)


def test_per_example_clip_refuses_integers_instead_of_rounding_to_them() -> None:
    grads = {"w": draw(4, 2), "b": torch.tensor([0, 5, -3, 0])}
    with pytest.raises(TypeError, match=r"`grads\['b'\]` must have a floating dtype"):
        rc.per_example_global_norm_clip(grads, 1.0)


def test_per_example_clip_has_derivatives_and_bounds_of_examples() -> None:
    x = draw(4, 3).double()
    x[0] = 0
    slope = grad(lambda x: rc.per_example_global_norm_clip([x], 0.5)[0][0].sum())(x)
    assert slope.isfinite().all() and torch.equal(slope[0], torch.ones(3).double())
    bounds = torch.tensor([0.0, 0.5, 1.0, 9.0]).double()
    out, count = rc.per_example_global_norm_clip([x], bounds)
    norm = x.norm(dim=1).clamp(min=1e-9)
    expected = (x * (bounds / norm).clamp(max=1)[:, None]).sum(0)
    torch.testing.assert_close(out[0], expected)
    assert int(count) == int((x.norm(dim=1) > bounds).sum())
    many = vmap(lambda x: rc.per_example_global_norm_clip([x], 0.5)[0][0])(x[:, :, None])
    assert many.shape == (4, 1)


def test_what_is_feasible_leaves_the_places_to_others() -> None:
    """A selection behind it takes no element that the box would take back."""
    p, g = torch.tensor([0.0, 1.0, 0.5, 0.5]), torch.tensor([9.0, -8.0, 2.0, -1.0])
    box = rc.box(0.0, 1.0)
    for tx, moved in (
        (rc.chain(rc.top_k(1, param_ndim=None), rc.sign(), rc.sgd(0.1), box), [0, 1, 0.5, 0.5]),
        (
            rc.chain(
                rc.feasible(0.0, 1.0), rc.top_k(1, param_ndim=None), rc.sign(), rc.sgd(0.1), box
            ),
            [0, 1, 0.4, 0.5],
        ),
    ):
        torch.testing.assert_close(tx.step(p, g, tx.init(p))[0], torch.tensor(moved))
    with pytest.raises(ValueError, match="`low` or `high` must be given"):
        rc.feasible()
    with pytest.raises(ValueError, match="`low` must satisfy low <= high"):
        rc.feasible(1.0, 0.0)


def test_group_soft_threshold_is_nearest_with_the_penalty() -> None:
    x, t = 3 * draw(5, 4).double(), 1.7
    y = rc.group_soft_threshold(t).map(x)
    moving = y.norm(dim=1) > 0
    residual = (x - y)[moving] - t * (y / y.norm(dim=1, keepdim=True))[moving]
    torch.testing.assert_close(residual, torch.zeros_like(residual))
    assert (x.norm(dim=1)[~moving] <= t).all()
    assert torch.equal(rc.group_soft_threshold(9e9).map(x), torch.zeros_like(x))


def test_soft_threshold_solves_the_lasso() -> None:
    """ISTA on an orthogonal design ends where the closed form says."""
    q, _ = torch.linalg.qr(draw(8, 8).double())
    target = 2 * draw(8, seed=1).double()
    tx = rc.chain(rc.scale_by_learning_rate(0.5), rc.soft_threshold(0.5 * 0.7))
    x = torch.zeros(8, dtype=torch.float64)
    state = tx.init(x)
    for _ in range(80):
        x, state = tx.step(x, q.T @ (q @ x - target), state)
    exact = q.T @ target
    torch.testing.assert_close(x, exact.sign() * (exact.abs() - 0.7).clamp(min=0))
    assert (x == 0).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_parameter_that_box_put_to_a_bound_is_at_it(dtype: torch.dtype) -> None:
    """A bound of another dtype is rounded as `box` rounds it."""
    ends = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    for low, high in ((ends, ends + 0.02), (ends[3].item(), ends[4].item()), (ends[3], ends[4])):
        for start in (-9.0, 9.0):
            p = rc.box(low, high).map(torch.full((19,), start, dtype=dtype))
            out = torch.full_like(p, -start)  # its descent leaves
            assert not rc.feasible(low, high).update(out, (), params=p)[0].any()
            assert torch.equal(rc.feasible(low, high).update(-out, (), params=p)[0], -out)


def test_what_is_feasible_keeps_nan_and_has_a_derivative() -> None:
    nan = torch.nan
    p, g = torch.tensor([0.0, nan, 1.0, 0.5, nan]), torch.tensor([nan, 1.0, -1.0, nan, nan])
    kept = rc.feasible(0.0, 1.0).update(g, (), params=p)[0]
    assert torch.equal(kept.isnan(), g.isnan()) and kept[1] == 1.0 and kept[2] == 0.0
    p = torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0, -3.0], dtype=torch.float64)
    g = torch.tensor([2.0, -2.0, 1.0, 2.0, -2.0, 1.0], dtype=torch.float64, requires_grad=True)
    move = lambda g: rc.feasible(0.0, 1.0).update(g, (), params=p)[0]  # noqa: E731
    assert torch.autograd.gradcheck(move, g)
    assert torch.autograd.gradgradcheck(lambda g: move(g).square(), g)
    (slope,) = torch.autograd.grad(move(g).sum(), g)
    assert slope.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    each = torch.tensor([[0.0], [0.5]])  # a bound for each row
    rows = torch.tensor([[0.0, 0.5], [0.0, 0.5]])
    kept = rc.feasible(each).update(torch.ones(2, 2), (), params=rows)[0]
    assert torch.equal(kept, torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    batched = torch.func.vmap(lambda g, p, low: rc.feasible(low).update(g, (), params=p)[0])
    assert torch.equal(batched(torch.ones(2, 2), rows, each[:, 0]), kept)
