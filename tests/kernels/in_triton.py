"""Selection in Triton's interpreter, in a process of its own: tests/kernels/test_triton.py."""

import pytest
import torch
from test_select import BITS, DTYPES, KINDS, assert_same_bits, make

from rai_chain.kernels import native, select, triton_rows
from rai_chain.kernels.fallback import keep_mask_by_sorting


@pytest.fixture(autouse=True)
def backend(monkeypatch):
    """Rows on the CPU go where those on a GPU do."""
    monkeypatch.setattr(native, "takes", lambda rows: False)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)


def check(rows, k):
    mask = keep_mask_by_sorting(rows, torch.as_tensor(k))
    expected, before = torch.where(mask, rows, 0), rows.clone()
    assert_same_bits(select.keep_largest(rows, k), expected)
    assert_same_bits(rows, before)
    assert select.keep_largest(rows, k, out=rows) is rows
    assert_same_bits(rows, expected)


@pytest.fixture
def calls(monkeypatch):
    seen, real = [], triton_rows._run
    monkeypatch.setattr(triton_rows, "_run", lambda *args: seen.append(args) or real(*args))
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_equals_reference(kind, calls):
    number = KINDS.index(kind)
    size = 33 + 10 * number
    for dtype in (DTYPES[number % 4], DTYPES[(number + 1) % 4]):
        check(make(kind, (3, size), dtype), torch.tensor([1, size // 2, size - 1]))
    assert len(calls) >= 4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 784])
def test_any_count(size, dtype):
    for k in {0, 1, size // 3, size}:
        check(make("integers", (1, size), dtype), k)
    check(make("integers", (2, size), dtype), torch.tensor(size // 2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_longest_row(dtype, calls):
    size = triton_rows.LONGEST // torch.finfo(dtype).bits * 8
    check(make("integers", (1, size), dtype), size // 3)
    taken = len(calls)
    assert taken == 2 + (size // 3 == 0)
    check(make("integers", (1, size + 1), dtype), size // 3)
    assert len(calls) == taken  # the fallback


def test_any_layout_and_none():
    base = make("integers", (40, 3), torch.float32)
    expected = select.keep_largest(base.t().contiguous(), 7)
    assert_same_bits(select.keep_largest(base.t(), 7), expected)
    strided = torch.zeros(3, 80)[:, ::2]
    assert select.keep_largest(base.t(), 7, out=strided) is strided
    assert_same_bits(strided, expected)
    for shape in ((0, 3), (2, 0)):
        assert select.keep_largest(torch.zeros(shape), 0).shape == shape


def test_under_transforms(calls):
    """There the operator asks for the mask."""
    x, k = make("integers", (2, 3, 40), torch.float64), torch.tensor([5, 30])
    batched = torch.func.vmap(select.keep_largest)(x, k)
    for i in range(2):
        mask = keep_mask_by_sorting(x[i], k[i])
        assert_same_bits(batched[i], torch.where(mask, x[i], 0))
    assert any(args[2].dtype == torch.int8 for args in calls)


def test_where_triton_fails_the_fallback_runs(monkeypatch):
    def broken(*_):
        raise RuntimeError("no C compiler")

    triton_rows._is_right.cache_clear()
    monkeypatch.setattr(triton_rows, "_run", broken)
    x = make("integers", (2, 9), torch.float32)
    with pytest.warns(UserWarning, match="not used on cpu for torch.float32: RuntimeError: no C"):
        kept = select.keep_largest(x, 4)
    assert_same_bits(kept, torch.where(keep_mask_by_sorting(x, torch.tensor(4)), x, 0))
    assert BITS.keys() == triton_rows.BITS.keys()
    triton_rows._is_right.cache_clear()
