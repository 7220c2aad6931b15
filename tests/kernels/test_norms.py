"""The laws of the norms, against exact sums."""

import math

import pytest
import torch
from exact import DTYPES, LARGEST, hard_rows
from torch.func import grad, vmap

import rai_chain as rc
from rai_chain.kernels.norms import rescale, row_norm

dtypes = pytest.mark.parametrize("dtype", DTYPES)


def norm_of(row, p):
    """By `math.fsum`, in units of the largest element."""
    big = max(map(abs, row), default=0.0)
    if big == 0.0 or p == math.inf:
        return big
    return big * math.fsum(abs(v / big) ** p for v in row) ** (1 / p)


@dtypes
@pytest.mark.parametrize("p", [1, 1.5, 2, 3, 10, 100, math.inf])
def test_every_magnitude(dtype, p):
    largest = LARGEST[dtype]
    for exponent in (-largest - 6, -largest, -25, -3, 0, 3, largest // 2, largest):
        x = torch.randn(3, 40, generator=torch.Generator().manual_seed(exponent)).double()
        x = (x * 10.0**exponent).to(dtype).nan_to_num(0.0, 1.0, -1.0)
        expected = torch.tensor([[norm_of(row, p)] for row in x.tolist()], dtype=torch.float64)
        torch.testing.assert_close(row_norm(x, p), expected, rtol=2e-15, atol=5e-324)


@dtypes
@pytest.mark.parametrize("p", [1, 2, 3])
def test_a_long_row(dtype, p):
    x = torch.rand(1, 2_000_003, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert row_norm(x, p).item() == pytest.approx(norm_of(x[0].tolist(), p), rel=1e-15)


def test_special_rows():
    x = torch.tensor([[0.0, 0.0], [math.inf, 1.0], [math.nan, 1.0], [-math.inf, math.inf]])
    expected = torch.tensor([[0.0], [math.inf], [math.nan], [math.inf]], dtype=torch.float64)
    for p in (1, 2, 3, math.inf):
        torch.testing.assert_close(row_norm(x, p), expected, equal_nan=True)
    assert row_norm(torch.zeros(2, 0), 2).tolist() == [[0.0], [0.0]]
    assert row_norm(torch.zeros(0, 2), 2).shape == (0, 1)


def test_links_at_the_edges():
    whole = dict(param_ndim=None)
    for row in ([3e-25, 4e-25], [3e20, 4e20], [3e-45, 4e-45]):
        unit = rc.normalize(2, 1e-50, **whole).map(torch.tensor(row))
        right = torch.tensor(row).double() / norm_of(torch.tensor(row).tolist(), 2)
        torch.testing.assert_close(unit, right.float(), rtol=2e-7, atol=0)
    tenth = rc.normalize(10, **whole).map(torch.tensor([1e-5, 1e-5]))
    torch.testing.assert_close(tenth, torch.full((2,), 0.5**0.1), rtol=2e-7, atol=0)
    for eps in (1e-50, 0.0):
        assert torch.equal(rc.normalize(2, eps, **whole).map(torch.zeros(3)), torch.zeros(3))
    for make in (rc.clip_by_norm, rc.clip_by_global_norm):
        clipped = make(1.0).map(torch.full((1, 2), 1e25))
        torch.testing.assert_close(clipped, torch.full((1, 2), 0.5**0.5))
        clipped = make(1e-26).map(torch.full((1, 2), 1e-25))
        torch.testing.assert_close(clipped, torch.full((1, 2), 1e-26 * 0.5**0.5), rtol=1e-6, atol=0)
        assert torch.equal(make(0.0).map(torch.ones(1, 2)), torch.zeros(1, 2))
        assert torch.equal(make(2.0).map(torch.ones(1, 2)), torch.ones(1, 2))


@pytest.mark.parametrize("stride", [1, 2])
def test_the_norm_after_clipping_a_long_row(stride):
    x = torch.randn(10**6 * stride, generator=torch.Generator().manual_seed(0))[::stride]
    clipped = rc.clip_by_norm(1.0, param_ndim=None).map(x)
    assert math.fsum(v * v for v in clipped.tolist()) == pytest.approx(1.0, abs=1e-7)


@dtypes
def test_rescale_is_rounded_once(dtype):
    for seed in range(30):
        x = hard_rows(dtype, seed)[0]
        norm = row_norm(x, 2).clamp(min=1e-300)
        expected = (x.double() / norm).to(dtype)
        torch.testing.assert_close(rescale(x, norm), expected, rtol=torch.finfo(dtype).eps, atol=0)
        place = x.clone()
        assert rescale(place, norm, 2.0, place) is place
        assert torch.equal(place, rescale(x, norm, 2.0))
        traced = rescale(x.clone().requires_grad_(), norm, 2.0)
        assert torch.equal(traced.detach(), place)


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, math.inf])
@pytest.mark.parametrize("magnitude", [1e-300, 1.0, 1e300])
def test_derivatives(p, magnitude):
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    d = grad(lambda x: row_norm(x, p).sum())
    unit = torch.autograd.functional.jacobian(
        lambda x: torch.linalg.vector_norm(x, p, dim=1).sum(), x
    )
    torch.testing.assert_close(d(x * magnitude), unit)
    torch.testing.assert_close(vmap(d)(x[:, None] * magnitude)[:, 0], unit)
    second = grad(lambda x: d(x).square().sum())
    assert second(x).isfinite().all()
    zero = torch.zeros(1, 3, dtype=torch.float64)
    assert torch.equal(d(zero), zero) and torch.equal(second(zero), zero)


@pytest.mark.parametrize("link", [rc.normalize(2), rc.normalize(1), rc.clip_by_norm(0.5)])
def test_links_have_derivatives_of_two_orders(link):
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(link.map, x.requires_grad_())
    assert torch.autograd.gradgradcheck(link.map, x)
    zero = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(link.map(zero).sum(), zero)
    assert slope.isfinite().all()


def test_traced_equals_plain_to_the_bit():
    for seed in range(20):
        for dtype in DTYPES:
            x = hard_rows(dtype, seed)[0]
            for p in (1, 2, 3, math.inf):
                plain = row_norm(x, p)
                assert torch.equal(row_norm(x.clone().requires_grad_(), p).detach(), plain)
                assert torch.equal(vmap(lambda x, p=p: row_norm(x, p))(x[None])[0], plain)


@pytest.mark.parametrize("p", [1, 2, math.inf])
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_a_leaf_without_elements_has_a_derivative(p, shape):
    x = torch.zeros(shape, requires_grad=True)
    beside = torch.tensor([3.0, 4.0], requires_grad=True)
    for link in (rc.normalize(p), rc.clip_by_norm(1.0, p), rc.clip_by_global_norm(1.0, p)):
        alone = link.map(beside)
        for tree in ({"a": x}, {"a": x, "b": beside}, {"b": beside, "a": x}):
            out = link.map(tree)
            assert out["a"].shape == shape
            assert "b" not in tree or torch.equal(out["b"], alone)
            slopes = torch.autograd.grad(out["a"].sum(), x, allow_unused=True)
            assert slopes[0] is None or slopes[0].shape == shape


@pytest.mark.filterwarnings("ignore")
def test_the_operator_is_sound():
    torch.library.opcheck(torch.ops.rai_chain.norm.default, (torch.randn(3, 9), 2.0))


@dtypes
def test_centralize_at_any_magnitude_and_in_any_layout(dtype):
    whole = dict(param_ndim=None)
    high = torch.finfo(dtype).max / 4 if dtype != torch.float64 else 1e300
    x = torch.tensor([1.0, 0.5, 0.25, 0.25] * 16, dtype=dtype) * high
    right = torch.tensor([0.5, 0.0, -0.25, -0.25] * 16, dtype=dtype) * high
    assert torch.equal(rc.centralize(**whole).map(x), right)
    x = torch.randn(50, 200, generator=torch.Generator().manual_seed(0)).to(dtype)
    right = rc.centralize(**whole).map(x)
    gaps, turned = torch.stack([x, x], -1)[..., 0], x.t().contiguous().t()
    for other in (gaps, turned):
        assert torch.equal(rc.centralize(**whole).map(other), right)


@dtypes
def test_oracles_are_rounded_once(dtype):
    """The part of a small element in a long row is below what float16 holds; times epsilon not."""
    whole = dict(param_ndim=None)
    x = torch.tensor([-0.0081, 65504.0], dtype=dtype)
    right = (x.double() / -math.hypot(*x.tolist()) * 234.0).to(dtype)
    close = {"rtol": 8 * torch.finfo(dtype).eps, "atol": 0.0}
    torch.testing.assert_close(rc.l2_oracle(234.0, **whole).map(x), right, **close)
    ones = torch.ones(70_000, dtype=dtype)
    shares = rc.l1q_oracle(0.0, 700.0, **whole).map(ones)
    torch.testing.assert_close(shares, torch.full_like(ones, -0.01), **close)
