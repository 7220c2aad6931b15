"""The laws of `simplex_threshold`."""

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, jvp, vmap

from rai_chain.kernels.simplex import _LONG_ROW, simplex_support_reference, simplex_threshold

SHAPES = [(1, 1), (5, 1), (3, 7), (40, 255), (40, 513), (3, 4608), (2, _LONG_ROW), (1, 40_001)]
RADII = [0.0, 1e-6, 1.0, 30.0, 1e3, 1e7]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On a busy machine torch's threads wait for each other far longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def normal(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)


def check(rows: Tensor, radius: Tensor) -> None:
    theta = simplex_threshold(rows, radius)
    assert theta.shape == (len(rows), 1) and theta.dtype == torch.float64
    scale = float(rows.double().abs().max() + radius.abs().max())
    expected = simplex_support_reference(rows, radius)
    torch.testing.assert_close(theta, expected, rtol=1e-12, atol=1e-13 * scale)
    total = (rows.double() - theta).clamp(min=0).sum(1)
    bound = 1e-13 * scale * rows.shape[1]
    torch.testing.assert_close(total, radius.double().expand(len(rows)), rtol=1e-11, atol=bound)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_solves_the_equation(shape: tuple[int, int], dtype: torch.dtype) -> None:
    for radius in RADII:
        check(normal(shape, dtype), torch.tensor(radius))
        check(normal(shape, dtype).abs(), torch.tensor(radius))


@pytest.mark.parametrize("size", [9, 600, _LONG_ROW])
def test_adversarial_data(size: int) -> None:
    geometric = torch.logspace(0, -12, size, dtype=torch.float64)[None]
    one_large = torch.zeros(1, size)
    one_large[0, size // 2] = 1e6
    constant = torch.full((1, size), 0.3)
    integers = (normal((1, size)) * 3).round()
    for rows in (geometric, geometric.flip(1), one_large, constant, -constant, integers):
        for radius in (0.0, 1e-3, 1.0, 1e4):
            check(rows, torch.tensor(radius))


@given(
    st.lists(
        st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4),
        min_size=1,
        max_size=4,
    ),
    st.data(),
)
@settings(max_examples=100, deadline=None)
def test_any_rows(values: list[list[float]], data: st.DataObject) -> None:
    radii = st.lists(st.floats(0, 1e6), min_size=len(values), max_size=len(values))
    check(
        torch.tensor(values, dtype=torch.float64),
        torch.tensor(data.draw(radii), dtype=torch.float64),
    )


@pytest.mark.parametrize("size", [6, 600, _LONG_ROW + 1])
def test_nan_stays_and_inf_ends(size: int) -> None:
    rows, one = normal((3, size)), torch.tensor(1.0)
    clean = simplex_threshold(rows, one)
    for bad in (math.nan, math.inf, -math.inf):
        rows[1, size // 2] = bad
        for leaf in (rows, rows.clone().requires_grad_()):
            theta = simplex_threshold(leaf, one).detach()
            assert torch.equal(theta[[0, 2]], clean[[0, 2]])
            if math.isnan(bad):
                assert theta[1].isnan()
            elif bad > 0:
                assert theta[1] == math.inf
            else:
                assert theta[1].isfinite()
    simplex_threshold(torch.full((2, size), math.inf), one)
    simplex_threshold(torch.full((2, size), -math.inf), one)
    simplex_threshold(rows, torch.tensor(math.inf))
    simplex_threshold(rows, torch.tensor(-1.0))
    assert simplex_threshold(rows, torch.tensor(math.nan)).isnan().all()


def test_empty() -> None:
    assert simplex_threshold(torch.zeros(0, 3), torch.tensor(1.0)).shape == (0, 1)
    assert simplex_threshold(torch.zeros(3, 0), torch.tensor(1.0)).shape == (3, 1)


def test_any_layout() -> None:
    rows = normal((50, 3))
    expected = simplex_threshold(rows.t().contiguous(), torch.tensor(1.0))
    assert torch.equal(simplex_threshold(rows.t(), torch.tensor(1.0)), expected)


@pytest.mark.filterwarnings("ignore:.*jit.script.*")
def test_derivatives() -> None:
    rows = normal((3, 8)).requires_grad_()
    radius = torch.tensor([0.5, 1.0, 9.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(simplex_threshold, (rows, radius), check_forward_ad=True)
    assert torch.autograd.gradcheck(simplex_threshold, (rows, radius.sum()))
    at_zero = grad(lambda a: simplex_threshold(a, torch.tensor(0.0)).sum())(rows.detach())
    assert torch.equal(at_zero, (rows == rows.amax(1, keepdim=True)).double())

    def project(x: Tensor, r: Tensor) -> Tensor:
        return (x - simplex_threshold(x, r)).clamp(min=0)

    assert torch.autograd.gradcheck(project, (rows, radius))
    assert torch.autograd.gradgradcheck(lambda x, r: project(x, r) ** 2, (rows, radius))
    batched = normal((4, 3, 8)).requires_grad_()
    assert torch.autograd.gradcheck(vmap(project, in_dims=(0, None)), (batched, radius))


@pytest.mark.filterwarnings("ignore:.*jit.script.*")
def test_transforms_equal_a_loop_bit_for_bit() -> None:
    rows, radius = normal((4, 3, 8)), torch.rand(4, 3, dtype=torch.float64)
    loop = torch.stack([simplex_threshold(a, r) for a, r in zip(rows, radius, strict=True)])
    assert torch.equal(vmap(simplex_threshold)(rows, radius), loop)
    assert torch.equal(vmap(simplex_threshold, in_dims=(1, 0))(rows.transpose(0, 1), radius), loop)
    same = torch.stack([simplex_threshold(a, radius[0]) for a in rows])
    assert torch.equal(vmap(simplex_threshold, in_dims=(0, None))(rows, radius[0]), same)
    nested = vmap(vmap(simplex_threshold, in_dims=(0, None)), in_dims=(0, 0))
    ones = torch.stack([simplex_threshold(a, torch.tensor(1.0)) for a in rows])
    assert torch.equal(nested(torch.stack((rows, rows)), torch.ones(2)), torch.stack((ones, ones)))

    def total(x: Tensor, r: Tensor) -> Tensor:
        return (simplex_threshold(x, r) ** 2).sum()

    for argnum in (0, 1):
        d = grad(total, argnums=argnum)
        each = torch.stack([d(a, r) for a, r in zip(rows, radius, strict=True)])
        assert torch.equal(vmap(d)(rows, radius), each)
    value, tangent = jvp(simplex_threshold, (rows[0], radius[0]), (rows[0], radius[0]))[:2]
    assert torch.equal(value, loop[0])
    torch.testing.assert_close(tangent, value)  # homogeneous of degree one


@pytest.mark.filterwarnings("ignore")
def test_compiled_equals_eager() -> None:
    torch._dynamo.reset()
    rows, radius = normal((3, 8)), torch.ones(3)
    compiled = torch.compile(simplex_threshold, fullgraph=True)
    assert torch.equal(compiled(rows, radius), simplex_threshold(rows, radius))
    d = grad(lambda x: (simplex_threshold(x, radius) ** 2).sum())
    torch.testing.assert_close(torch.compile(vmap(d), fullgraph=True)(rows[None]), d(rows)[None])


@pytest.mark.filterwarnings("ignore")
def test_operator_is_sound() -> None:
    operator = torch.ops.rai_chain.simplex_support.default
    torch.library.opcheck(operator, (normal((3, 9)), torch.ones(3)))
