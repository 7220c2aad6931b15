"""The numpy kernels of exact selection on a CPU.

The order of magnitudes is the order of bit patterns without their sign, NaN last.
"""

import math
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_Array = NDArray[Any]
_Dtype = np.dtype[Any]

BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}
INF = {t: int(torch.tensor(torch.inf, dtype=t).view(b)) for t, b in BITS.items()}
_CHUNK = 1 << 17  # elements worked on at once: they stay in cache
_LONG_ROW = 1 << 15  # from here a row is worth its own calls


class _Scratch(threading.local):
    """Buffers of this thread, by name: fresh pages would cost more than the selection."""

    def __init__(self) -> None:
        self.buffers: dict[str, _Array] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: Any) -> _Array:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if name not in self.buffers or self.buffers[name].size < size:
            self.buffers.pop(name, None)  # before the larger one is there
            self.buffers[name] = np.empty(size, np.uint8)
        array: _Array = self.buffers[name][:size].view(dtype).reshape(shape)
        return array


_scratch = _Scratch()


def keep_rows(rows: Tensor, k: int | Tensor, out: Tensor) -> None:
    target = out if out.is_contiguous() else torch.empty(out.shape, dtype=out.dtype)
    source = rows if rows.is_contiguous() else target.copy_(rows)
    size = source.shape[1]
    for part, keep in _parts(source, k):
        if isinstance(keep, int) and keep in (0, size):
            if keep == 0:
                target[part] = 0
            elif target is not source:
                target[part] = source[part]
        elif size >= _LONG_ROW:
            _write_row(source[part][0], int(keep), target[part][0])
        else:
            bits = _bits(source[part])
            np.multiply(bits, _mask_rows(bits, keep, source.dtype), out=_bits(target[part]))
    if target is not out:
        out.copy_(target)


def _parts(rows: Tensor, k: int | Tensor) -> Iterator[tuple[slice, int | _Array]]:
    """Cut into pieces that fit in cache, each with its k: one for all its rows where it can be."""
    n, size = rows.shape
    step = max(1, _CHUNK // max(1, size)) if size < _LONG_ROW else 1
    counts = None if isinstance(k, int) or k.ndim == 0 else k.numpy()
    for start in range(0, n if size else 0, step):
        part = slice(start, start + step)
        first = int(k if counts is None else counts[start])
        if counts is None or (counts[part] == first).all():
            yield part, first
        else:
            yield part, counts[part]


def _bits(tensor: Tensor) -> _Array:
    array: _Array = tensor.view(BITS[tensor.dtype]).numpy()
    return array


def _largest(dtype: _Dtype) -> int:
    return (1 << 8 * dtype.itemsize - 1) - 1


def _magnitudes(bits: _Array, name: str = "magnitudes") -> _Array:
    scratch = _scratch.get(name, bits.shape, bits.dtype)
    np.bitwise_and(bits, _largest(bits.dtype), out=scratch)
    return scratch


def _cut(source: Tensor, keep: int) -> tuple[int, int]:
    """The smallest kept bit pattern t, and the index from which elements equal to t are dropped."""
    bits, inf, size = _bits(source), INF[source.dtype], source.shape[0]
    magnitudes = _magnitudes(bits)
    drop = size - keep
    threshold, below = _nth(magnitudes, drop)
    if threshold > inf:  # every NaN is equal, whatever its payload
        threshold = inf + 1
        below = int(np.count_nonzero(_magnitudes(bits) < threshold))
    surplus = drop - below
    for end in range(size, 0, -_CHUNK):
        if surplus == 0:
            return threshold, end
        start = max(0, end - _CHUNK)
        piece = _magnitudes(bits[start:end], "piece")
        equal = piece == threshold if threshold <= inf else piece > inf
        count = int(np.count_nonzero(equal))
        if count >= surplus:
            return threshold, start + int(np.flatnonzero(equal)[-surplus])
        surplus -= count
    return threshold, 0


def _write_row(source: Tensor, keep: int, target: Tensor) -> None:
    threshold, cut = _cut(source, keep)
    _drop_up_to(source[:cut], threshold - 1, target[:cut])
    _drop_up_to(source[cut:], threshold, target[cut:])


def _drop_up_to(source: Tensor, bound: int, target: Tensor) -> None:
    if not source.numel():
        return
    if bound > INF[source.dtype]:
        target.zero_()
    elif bound >= 0:
        dtype = BITS[source.dtype]
        value = torch.tensor(bound, dtype=dtype).view(source.dtype).item()
        torch.hardshrink(source, value, out=target)
    elif target.data_ptr() != source.data_ptr():
        target.copy_(source)


def _nth(magnitudes: _Array, drop: int) -> tuple[int, int]:
    """The element at sorted index `drop` of one row, and how many are smaller. May permute the row.

    Where numpy's partition is slow: a sample gives a pivot, its exact rank and the sample's local
    density give a narrow bracket, and only what lies in the bracket is partitioned.
    """
    size = magnitudes.size
    if size < _LONG_ROW or _plan(magnitudes.dtype.str).partition_long:
        return _nth_by_partition(magnitudes, drop)
    block = _block(magnitudes.dtype)
    runs = magnitudes.take(_sample_positions(size)).reshape(-1, block)
    runs.sort(axis=1)
    columns = _middle(block, drop / size, 3)
    near = np.sort(runs[:, columns], axis=None)

    # Pivot: its exact rank, and that of the element after its equals where it seems to have some.
    position = int((drop / size * block - columns.start) * len(runs))
    position = min(max(position, 1), near.size - 2)
    pivot = int(near[position])
    first, last = near.searchsorted(pivot), near.searchsorted(pivot, "right")
    below = _count(np.less, magnitudes, pivot)
    floor, ceiling, position = 0, _largest(near.dtype), int(first)
    if drop < below:
        ceiling = pivot - 1
    elif last - first == 1:
        floor = pivot
    else:
        equal = _count(np.equal, magnitudes, pivot)
        if drop < below + equal:
            return pivot, below
        floor, below, position = pivot + 1, below + equal, int(last)

    # Bracket: from the sample's density about the pivot; wider each time it misses.
    error = (drop - below) / size * runs.size
    margin = 3 * math.sqrt(abs(error)) + 4
    for _ in range(4):
        left, right = int(position + error - margin), int(position + error + margin)
        low = max(floor, int(near[min(left, near.size - 1)]) if left >= 0 else 0)
        high = min(ceiling, int(near[max(right, 0)]) if right < near.size else ceiling)
        if low > high:
            low, high = floor, ceiling
        below, found = _between(magnitudes, low, high)
        up_to = below + (
            _count(np.less_equal, magnitudes, high) - below if found is None else found.size
        )
        if drop < below:
            ceiling = low - 1
        elif drop >= up_to:
            floor = high + 1
        elif found is not None:
            threshold, smaller = _nth_by_partition(found, drop - below)
            return threshold, below + smaller
        else:  # one value fills the bracket: look at its ends
            equal = _count(np.equal, magnitudes, low)
            if drop < below + equal:
                return low, below
            equal = _count(np.equal, magnitudes, high)
            if drop >= up_to - equal:
                return high, up_to - equal
            floor, ceiling = low + 1, high - 1
        margin *= 4
    return _nth_by_partition(magnitudes, drop)


def _pieces(row: _Array) -> Iterator[_Array]:
    """A row in pieces that stay in cache, so that what is made of them is small too."""
    for start in range(0, row.size, _CHUNK):
        yield row[start : start + _CHUNK]


def _count(test: Any, row: _Array, bound: int) -> int:
    """How many elements of a row pass a comparison with a bound."""
    passed = _scratch.get("passed", (_CHUNK,), bool)
    return sum(
        int(np.count_nonzero(test(piece, bound, out=passed[: piece.size])))
        for piece in _pieces(row)
    )


def _between(row: _Array, low: int, high: int) -> tuple[int, _Array | None]:
    """How many elements are below `low`, and those in [low, high]; None for too many of them."""
    passed, most = _scratch.get("passed", (2, _CHUNK), bool), row.size >> 3
    below, found, total = 0, [], 0
    for piece in _pieces(row):
        less = np.less(piece, low, out=passed[0, : piece.size])
        inside = np.less_equal(piece, high, out=passed[1, : piece.size])
        below += int(np.count_nonzero(less))
        if total <= most:
            found.append(piece.take(np.flatnonzero(np.logical_xor(less, inside, out=inside))))
            total += found[-1].size
    return below, np.concatenate(found) if total <= most else None


def _nth_by_partition(magnitudes: _Array, drop: int) -> tuple[int, int]:
    magnitudes.partition(drop)
    threshold, rest = magnitudes[drop], magnitudes[:drop]
    if drop and rest.max() == threshold:
        return int(threshold), drop - int(np.count_nonzero(rest == threshold))
    return int(threshold), drop


@lru_cache(maxsize=64)
def _sample_positions(size: int) -> _Array:
    """Positions that no regular structure of the data follows (a Weyl sequence)."""
    count = 512 * min(64, max(8, size >> 15))
    steps = np.arange(count, dtype=np.uint64) * np.uint64(11400714819323198485)
    return ((steps >> np.uint64(33)) * np.uint64(size) >> np.uint64(31)).astype(np.intp)


def _block(dtype: _Dtype) -> int:
    """As many as numpy sorts in registers."""
    return min(512, 2048 // dtype.itemsize)


def _middle(size: int, quantile: float, deviations: float) -> slice:
    """Where this quantile of a population lies in a sorted sample of it."""
    margin = deviations * math.sqrt(size * quantile * (1 - quantile)) + 3
    return slice(max(0, int(size * quantile - margin)), min(size, int(size * quantile + margin)))


def _mask_rows(bits: _Array, keep: int | _Array, dtype: torch.dtype) -> _Array:
    """The mask of the kept elements, in a buffer that the next call reuses."""
    size, inf = bits.shape[1], INF[dtype]
    magnitudes = _magnitudes(bits)
    if isinstance(keep, int):
        threshold, tied = _nth_of_rows(magnitudes, size - keep)
    else:
        ordered = np.sort(magnitudes, axis=1)
        threshold = ordered[np.arange(len(bits)), np.minimum(size - keep, size - 1)]
        tied = np.full(len(bits), True)
    if threshold.max() > inf:  # every NaN is equal, whatever its payload
        tied |= threshold > inf
        np.minimum(magnitudes, inf + 1, out=magnitudes)
        np.minimum(threshold, inf + 1, out=threshold)
    mask = _scratch.get("mask", bits.shape, bool)
    np.greater_equal(magnitudes, threshold[:, None], out=mask)
    if tied.any():
        equal = magnitudes[tied] == threshold[tied, None]
        rank = equal.cumsum(axis=1, dtype=np.int32)
        surplus = np.count_nonzero(mask, axis=1)[tied] - np.broadcast_to(keep, len(bits))[tied]
        mask[tied] &= ~(equal & (rank > (rank[:, -1] - surplus)[:, None]))
    return mask


def _nth_of_rows(magnitudes: _Array, drop: int) -> tuple[_Array, NDArray[np.bool_]]:
    """The element at sorted index `drop` of every row, and whether a smaller index may equal it.

    Where numpy's partition is slow: sort short blocks, which is done in registers, and of each
    keep the middle, where the quantile surely lies. A row that shows otherwise is done again.
    """
    n = len(magnitudes)
    method, width, _ = _plan(magnitudes.dtype.str)
    values = _scratch.get("values", magnitudes.shape, width)
    np.copyto(values, magnitudes)
    low = np.full(n, -1, width)
    high = np.full(n, _largest(width), width)
    index, deviations, block = drop, 3, _block(width)
    while method == "blocks" and values.shape[1] > block:
        length = block if values.shape[1] >= 3 * block else block // 2
        count = values.shape[1] // length
        columns = _middle(length, index / values.shape[1], deviations)
        blocks = values[:, : count * length].reshape(n, count, length)
        blocks.sort(axis=2)
        if columns.start:
            np.maximum(low, blocks[:, :, columns.start - 1].max(axis=1), out=low)
        if columns.stop < length:
            np.minimum(high, blocks[:, :, columns.stop].min(axis=1), out=high)
        middle = blocks[:, :, columns].reshape(n, -1)
        values = np.concatenate((middle, values[:, count * length :]), axis=1)
        index -= count * columns.start
        deviations = 9  # what is left is sorted runs, and spreads more than a sample would
    values.partition(index, axis=1)
    found = values[:, index].copy()
    tied = found == low
    if index:
        tied |= values[:, :index].max(axis=1) == found
    for row in np.flatnonzero((found < low) | (found > high)):
        found[row] = np.partition(magnitudes[row], drop)[drop]
        tied[row] = True
    return found.astype(magnitudes.dtype, copy=False), tied


class _Plan(NamedTuple):
    method: str
    width: _Dtype
    partition_long: bool


@lru_cache
def _plan(dtype: str) -> _Plan:
    """How rows of this dtype are best done here: found by trying, for it is the processor's matter.

    (AVX512 partition is 10 times slower than AVX2 on AMD Zen 4; 16-bit integers have a fast one
    only with AVX512_ICL.)
    """
    own = np.dtype(dtype)
    values = np.random.default_rng(0).integers(0, 1 << 15, (16, 1024), dtype=np.int16)
    times: dict[tuple[str, _Dtype], float] = {}
    for width in {own, max(own, np.dtype(np.int32))}:
        wide = values.astype(width)
        short = wide.reshape(-1, _block(width))
        times["partition", width] = _best_time(np.partition, wide, 512)
        times["blocks", width] = 2 * _best_time(np.sort, short)
    one_pass = _best_time(np.bitwise_and, values.astype(own), 1)
    method, width = min(times, key=lambda plan: times[plan])
    return _Plan(method, width, times["partition", own] < 10 * one_pass)


def _best_time(function: Callable[..., object], *args: object) -> float:
    times = []
    for _ in range(5):
        start = perf_counter()
        function(*args)
        times.append(perf_counter() - start)
    return min(times)


def keep_mask(rows: Tensor, k: Tensor) -> Tensor:
    rows = rows.contiguous()
    mask = torch.empty(rows.shape, dtype=torch.bool)
    for part, keep in _parts(rows, k):
        source = rows[part]
        if isinstance(keep, int) and keep in (0, source.shape[1]):
            mask[part] = keep > 0
        elif source.shape[1] >= _LONG_ROW:
            threshold, cut = _cut(source[0], int(keep))
            magnitudes = _magnitudes(_bits(source)[0])
            np.greater_equal(magnitudes[:cut], threshold, out=mask[part][0, :cut].numpy())
            if threshold > INF[rows.dtype]:
                mask[part, cut:] = False
            else:
                np.greater(magnitudes[cut:], threshold, out=mask[part][0, cut:].numpy())
        else:
            mask[part] = torch.from_numpy(_mask_rows(_bits(source), keep, rows.dtype))
    return mask
