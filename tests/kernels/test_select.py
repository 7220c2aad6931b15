"""The laws of `keep_largest`."""

import math
import signal
import threading
import warnings
from typing import Any

import pytest
import rai_toolbox.optim as rai_toolbox_optim
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, jvp, vmap

from rai_chain.kernels.fallback import keep_mask_by_sorting, keys_of
from rai_chain.kernels.select import histogram, keep_largest

BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}
DTYPES = list(BITS)
KINDS = [
    *("normal", "zeros50", "zeros90", "zeros99", "signed_zeros", "dominated", "sorted", "reversed"),
    *("constant", "signs", "nan", "inf", "denormal", "integers", "payloads", "close", "ladder"),
]
SIZES = [1, 2, 7, 256, 257, 511, 512, 513, 784, 1025, 1536, 4608]
LONG = 1 << 16  # a larger sample from here on


def make(kind: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    chance = torch.rand(shape, generator=generator)
    if kind.startswith("zeros"):
        x[chance < int(kind[5:]) / 100] = 0
    elif kind == "signed_zeros":
        x[chance < 0.8] = -0.0
        x[chance < 0.3] = 0.0
    elif kind == "dominated":
        x[chance < 0.6] = 0.7
    elif kind == "sorted":
        x = x.sort(dim=1).values
    elif kind == "reversed":
        x = x.abs().sort(dim=1, descending=True).values
    elif kind == "constant":
        x = torch.full(shape, -0.3)
    elif kind == "signs":
        x = x.sign()
    elif kind == "nan":
        x[chance < 0.1] = math.nan
    elif kind == "inf":
        x[chance < 0.3] = -math.inf
    elif kind == "denormal":
        x = x * 1e-42
    elif kind == "integers":
        x = (x * 10).round()
    elif kind == "close":  # one key for all
        x = 1 + x.to(dtype) * 1e-4
    elif kind == "ladder":  # every exponent
        x = torch.ldexp(x.sign(), (chance * 250 - 125).int())
    x = x.to(dtype)
    if kind == "payloads":
        bits, inf = x.view(BITS[dtype]), torch.tensor(math.inf, dtype=dtype).view(BITS[dtype])
        noise = torch.randint(1, 100, shape, generator=generator).to(bits.dtype)
        x = torch.where(chance < 0.4, inf + noise, bits).view(dtype)
    return x


def assert_same_bits(a: Tensor, b: Tensor) -> None:
    assert a.dtype == b.dtype and a.shape == b.shape
    assert torch.equal(a.contiguous().view(BITS[a.dtype]), b.contiguous().view(BITS[b.dtype]))


def check(rows: Tensor, k: int | Tensor) -> None:
    mask = keep_mask_by_sorting(rows, torch.as_tensor(k))
    expected = torch.where(mask, rows, 0)
    assert torch.equal(mask.sum(1), torch.as_tensor(k).expand(len(rows)))
    each = torch.as_tensor(k).expand(len(rows))
    assert torch.equal(torch.ops.rai_chain.keep_mask(rows, each), mask)
    before = rows.clone()
    assert_same_bits(keep_largest(rows, k), expected)
    assert_same_bits(rows, before)
    other = torch.full_like(rows, 5.0)
    assert keep_largest(rows, k, out=other) is other
    assert_same_bits(other, expected)
    assert keep_largest(rows, k, out=rows) is rows
    assert_same_bits(rows, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_reference(kind: str) -> None:
    for size in (7, 513, 784, 4608):
        for number, k in enumerate((0, 1, size // 10, size // 2, size - size // 10, size - 1)):
            check(make(kind, (3, size), DTYPES[(number + size) % 4], k), k)
            check(make(kind, (3, size), DTYPES[(number + size + 1) % 4], k), k)


@pytest.mark.parametrize("kind", KINDS)
def test_long_rows_equal_reference(kind: str) -> None:
    for number, size in enumerate((LONG, 40_009)):
        for k in (1, size // 100, size // 10, size // 2, size - 1):
            check(make(kind, (1, size), DTYPES[(k + number) % 4], k), k)
    check(make(kind, (2, LONG + 1), torch.float32), torch.tensor([3, LONG]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [0.0, 3.0, math.nan])
def test_a_regular_structure_misleads_no_sample(hidden: float, dtype: torch.dtype) -> None:
    for stride in (2, 3, 64, 1000):
        x = make("normal", (1, 70_000), dtype)
        x[0, ::stride] = hidden
        for k in (1, 3_000, 10_000, 44_000, 69_999):
            check(x.clone(), k)


@given(
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(DTYPES),
    n=st.integers(0, 5),
    size=st.sampled_from([0, *SIZES]),
    per_row=st.booleans(),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_any_rows_and_any_k(
    kind: str, dtype: torch.dtype, n: int, size: int, per_row: bool, data: st.DataObject
) -> None:
    ks = data.draw(st.lists(st.integers(0, size), min_size=n, max_size=n))
    k: int | Tensor = data.draw(st.integers(0, size))
    if per_row:
        k = torch.tensor(ks, dtype=torch.int64)
    check(make(kind, (n, size), dtype, data.draw(st.integers(0, 9))), k)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20), st.data())
@settings(max_examples=150, deadline=None)
def test_definition(values: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(0, len(values)))
    order = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[:k]
    expected = [v if i in order else 0.0 for i, v in enumerate(values)]
    assert_same_bits(keep_largest(torch.tensor([values]), k), torch.tensor([expected]))


@pytest.mark.parametrize("shape", [(1, 40_000), (50, 784), (1000, 1), (20_000, 3), (30, 4608)])
@pytest.mark.parametrize("q", [0.1, 0.5, 0.99])
def test_equals_rai_toolbox(shape: tuple[int, int], q: float) -> None:
    magnitudes = torch.stack([torch.randperm(shape[1]) + 1.0 for _ in range(shape[0])])
    rows = magnitudes * torch.randn(shape).sign()
    p = torch.nn.Parameter(torch.zeros(shape))
    p.grad = rows.clone()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # TypedStorage
        optimizer = rai_toolbox_optim.TopQGradientOptimizer(
            [p], torch.optim.SGD, lr=1.0, q=q, param_ndim=1
        )
        optimizer._apply_pre_step_transform_()
    assert torch.equal(keep_largest(rows, round((1 - q) * shape[1])), p.grad)


@pytest.mark.parametrize("size", [6, 900, LONG + 5])
def test_any_layout(size: int) -> None:
    base = make("integers", (size, 4), torch.float32)
    expected = keep_largest(base.t().contiguous(), size // 3)
    assert_same_bits(keep_largest(base.t(), size // 3), expected)
    strided = torch.zeros(4, 2 * size)[:, ::2]
    assert keep_largest(base.t(), size // 3, out=strided) is strided
    assert_same_bits(strided, expected)
    keep_largest(base.t(), size // 3, out=base.t())
    assert_same_bits(base.t(), expected)
    row = base[:, :1].t()
    assert_same_bits(keep_largest(row.expand(3, size), 2), keep_largest(row, 2).expand(3, size))


def test_vmap_equals_a_loop() -> None:
    x = make("integers", (5, 3, 40), torch.float32)
    k = torch.tensor([0, 1, 20, 39, 40])
    loop = torch.stack([keep_largest(x[i], k[i]) for i in range(5)])
    assert_same_bits(vmap(keep_largest)(x, k), loop)
    assert_same_bits(vmap(keep_largest, in_dims=(1, 0))(x.transpose(0, 1), k), loop)
    rows_k = torch.randint(0, 41, (5, 3))
    loop = torch.stack([keep_largest(x[i], rows_k[i]) for i in range(5)])
    assert_same_bits(vmap(keep_largest)(x, rows_k), loop)
    fixed = torch.stack([keep_largest(x[i], 7) for i in range(5)])
    assert_same_bits(vmap(lambda a: keep_largest(a, 7))(x), fixed)
    shared = torch.stack([keep_largest(x[0], k[i]) for i in range(5)])
    assert_same_bits(vmap(keep_largest, in_dims=(None, 0))(x[0], k), shared)


def test_vmap_of_vmap() -> None:
    x = make("normal", (2, 5, 3, 40), torch.float64)
    k = torch.tensor([1, 20])
    inner = vmap(keep_largest, in_dims=(0, None))
    loop = torch.stack([torch.stack([keep_largest(a, k[i]) for a in x[i]]) for i in range(2)])
    assert_same_bits(vmap(inner)(x, k), loop)


def square(x: Tensor, k: int | Tensor = 3) -> Tensor:
    return (keep_largest(x, k) ** 2).sum()


def test_derivatives() -> None:
    x = make("normal", (4, 3, 9), torch.float64)
    expected = 2 * torch.stack([keep_largest(a, 3) for a in x])
    assert torch.equal(vmap(grad(square))(x), expected)
    assert torch.equal(grad(lambda a: vmap(square)(a).sum())(x), expected)
    leaf = x[0].clone().requires_grad_()
    (slope,) = torch.autograd.grad(square(leaf), leaf)
    assert torch.equal(slope, expected[0])
    ones = torch.ones(3, 9, dtype=torch.float64)
    value, tangent = jvp(lambda a: keep_largest(a, 3), (x[0],), (ones,))[:2]
    assert torch.equal(tangent, (value != 0).double())
    assert torch.autograd.gradcheck(lambda a: keep_largest(a, 3), leaf, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda a: keep_largest(a, 3) ** 2, leaf)
    with pytest.raises(RuntimeError, match="leaf"):
        keep_largest(leaf, 3, out=leaf)
    with torch.no_grad():
        assert torch.equal(keep_largest(leaf, 3, out=leaf), value)


@pytest.mark.filterwarnings("ignore")
def test_compiled_equals_eager() -> None:
    torch._dynamo.reset()
    x = make("integers", (3, 50), torch.float32)
    compiled = torch.compile(lambda a, k: keep_largest(a * 2, k), fullgraph=True)
    for k in (5, torch.tensor(5), torch.tensor([0, 5, 50])):
        assert_same_bits(compiled(x, k), keep_largest(x * 2, k))
    both = torch.compile(vmap(grad(square)), fullgraph=True)
    ks = torch.tensor([1, 2])
    assert torch.equal(both(torch.stack((x, x)), ks), vmap(grad(square))(torch.stack((x, x)), ks))


@pytest.mark.filterwarnings("ignore")
def test_operator_is_sound() -> None:
    arguments = (make("normal", (3, 9), torch.float32), torch.tensor([1, 0, 9]))
    torch.library.opcheck(torch.ops.rai_chain.keep_mask.default, arguments)


def test_k_out_of_range() -> None:
    with pytest.raises(ValueError, match="`k` must satisfy 0 <= k <= 3  Got: 4"):
        keep_largest(torch.zeros(1, 3), 4)


def test_threads_do_not_share_scratch() -> None:
    inputs = [make("normal", (40, 784), torch.float32, seed) for seed in range(4)]
    expected = [keep_largest(x, 100) for x in inputs]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(20):
            if not torch.equal(keep_largest(inputs[i], 100), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_re_entrant() -> None:
    """A signal handler that selects during a selection."""
    inner = make("normal", (40, 784), torch.float32, 1)
    expected_inner = keep_largest(inner, 100)
    outer = make("normal", (1, 100_000), torch.float32)
    expected, wrong, calls = keep_largest(outer, 9_000), 0, 0

    def handler(*_: Any) -> None:
        nonlocal wrong, calls
        calls += 1
        wrong += not torch.equal(keep_largest(inner, 100), expected_inner)

    previous = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-4, 2e-4)
        while calls < 100:
            wrong += not torch.equal(keep_largest(outer, 9_000), expected)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert not wrong


@pytest.mark.parametrize("dtype", DTYPES)
def test_denormals_where_they_are_flushed(dtype: torch.dtype) -> None:
    x = torch.arange(1, 40_001, dtype=torch.int64).to(BITS[dtype])
    x = (x & 0x3F if dtype == torch.bfloat16 else x & 0x3FF).view(dtype)[None]
    expected = torch.where(keep_mask_by_sorting(x, torch.tensor(20_000)), x, 0)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor flushes none")
    try:
        assert_same_bits(keep_largest(x, 20_000), expected)
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["normal", "zeros90", "nan", "inf", "payloads", "ladder"])
def test_histogram_counts_each_magnitude_once(kind: str, dtype: torch.dtype) -> None:
    rows = make(kind, (3, 5_000), dtype)
    ordered = keys_of(rows).long().sort(1).values
    low, high = ordered[:, 1_000].clone(), ordered[:, 4_000] + 1
    high[0], low[1] = low[0] + 1, 0  # of one key; from the smallest on
    shift = torch.tensor([0, 40 if dtype == torch.float64 else 20, 7])
    shift = torch.maximum(shift, ((high - low - 1) >> 4).double().frexp().exponent)
    counts = histogram(rows, low, high, shift, 16)
    for row, own in enumerate(ordered):
        expected = [int((own < low[row]).sum())]
        for i in range(16):
            first = int(low[row]) + (i << int(shift[row]))
            last = min(first + (1 << int(shift[row])), int(high[row]))
            expected.append(int(((own >= first) & (own < last)).sum()) if first < last else 0)
        assert counts[row].tolist() == [*expected, int((own >= high[row]).sum())]
