"""The numpy kernels of exact selection on a CPU: long rows one by one, short ones many at once."""

from collections.abc import Callable, Iterator
from functools import lru_cache
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .bits import INF, Array, Dtype, bits_of, float_of, largest, magnitudes, scratch
from .select_row import cut, middle_columns, pieces, register_block

_CHUNK = 1 << 18  # elements worked on at once: they stay in cache
_LONG_ROW = 1 << 15  # from here a row is worth its own calls
_TINY = 1 << 11  # elements up to which calls cost more than what they do


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
            bits = bits_of(source[part])
            np.multiply(bits, _mask_rows(bits, keep, source.dtype), out=bits_of(target[part]))
    if target is not out:
        out.copy_(target)


def _parts(rows: Tensor, k: int | Tensor) -> Iterator[tuple[slice, int | Array]]:
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


def _write_row(source: Tensor, keep: int, target: Tensor) -> None:
    threshold, end = cut(source, keep)
    _drop_up_to(source[:end], threshold - 1, target[:end])
    _drop_up_to(source[end:], threshold, target[end:])


def _drop_up_to(source: Tensor, bound: int, target: Tensor) -> None:
    if not source.numel():
        return
    if bound > INF[source.dtype]:
        target.zero_()
    elif bound >= 0:
        torch.hardshrink(source, float_of(bound, source.dtype), out=target)
    elif target.data_ptr() != source.data_ptr():
        target.copy_(source)


def _mask_rows(bits: Array, keep: int | Array, dtype: torch.dtype) -> Array:
    """The mask of the kept elements, in a buffer that the next call reuses."""
    size, inf = bits.shape[1], INF[dtype]
    if bits.size <= _TINY and bits.itemsize < 8 and isinstance(keep, int):
        return _mask_tiny(bits, keep, inf)
    values = magnitudes(bits)
    if isinstance(keep, int):
        threshold, tied = _nth_of_rows(values, size - keep)
    else:
        ordered = np.sort(values, axis=1)
        threshold = ordered[np.arange(len(bits)), np.minimum(size - keep, size - 1)]
        tied = np.full(len(bits), True)
    if threshold.max() > inf:  # every NaN is equal, whatever its payload
        tied |= threshold > inf
        np.minimum(values, inf + 1, out=values)
        np.minimum(threshold, inf + 1, out=threshold)
    mask = scratch.get("mask", bits.shape, bool)
    np.greater_equal(values, threshold[:, None], out=mask)
    if tied.any():
        equal = values[tied] == threshold[tied, None]
        rank = equal.cumsum(axis=1, dtype=np.int32)
        surplus = np.count_nonzero(mask[tied], axis=1) - np.broadcast_to(keep, len(bits))[tied]
        mask[tied] &= ~(equal & (rank > (rank[:, -1] - surplus)[:, None]))
    return mask


def _mask_tiny(bits: Array, keep: int, inf: int) -> Array:
    """The same in few calls: with the index in its low bits no number has an equal."""
    size = bits.shape[1]
    numbers = np.minimum(bits & largest(bits.dtype), inf + 1).astype(np.int64)
    numbers <<= 16
    numbers -= np.arange(size)
    bound = np.partition(numbers, size - keep, axis=1)[:, size - keep]
    mask: Array = numbers >= bound[:, None]
    return mask


def _nth_of_rows(rows: Array, drop: int) -> tuple[Array, NDArray[np.bool_]]:
    """The element at sorted index `drop` of every row, and whether a smaller index may equal it.

    Where numpy's partition is slow: sort short blocks, which is done in registers, and of each
    keep the middle, where the quantile surely lies. A row that shows otherwise is done again.
    """
    n = len(rows)
    method, width = _plan(rows.dtype.str)
    values = scratch.get("values", rows.shape, width)
    np.copyto(values, rows)
    low = np.full(n, -1, width)
    high = np.full(n, largest(width), width)
    index, deviations, block = drop, 3, register_block(width)
    while method == "blocks" and values.shape[1] > block:
        length = block if values.shape[1] >= 3 * block else block // 2
        count = values.shape[1] // length
        columns = middle_columns(length, index / values.shape[1], deviations)
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
        found[row] = np.partition(rows[row], drop)[drop]
        tied[row] = True
    return found.astype(rows.dtype, copy=False), tied


class _Plan(NamedTuple):
    method: str
    width: Dtype


@lru_cache
def _plan(dtype: str) -> _Plan:
    """How rows of this dtype are best done here: found by trying, for it is the processor's matter.

    (AVX512 partition is 10 times slower than AVX2 on AMD Zen 4; 16-bit integers have a fast one
    only with AVX512_ICL.)
    """
    own = np.dtype(dtype)
    values = np.random.default_rng(0).integers(0, 1 << 15, (16, 1024), dtype=np.int16)
    times: dict[tuple[str, Dtype], float] = {}
    for width in {own, max(own, np.dtype(np.int32))}:
        wide = values.astype(width)
        short = wide.reshape(-1, register_block(width))
        times["partition", width] = _best_time(np.partition, wide, 512)
        times["blocks", width] = 2 * _best_time(np.sort, short)
    return _Plan(*min(times, key=lambda plan: times[plan]))


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
            threshold, end = cut(source[0], int(keep))
            bits, kept, inf = bits_of(source)[0], mask[part][0].numpy(), INF[rows.dtype]
            _mark_above(bits[:end], threshold - 1, kept[:end], inf)
            _mark_above(bits[end:], threshold, kept[end:], inf)
        else:
            mask[part] = torch.from_numpy(_mask_rows(bits_of(source), keep, rows.dtype))
    return mask


def _mark_above(bits: Array, bound: int, kept: Array, inf: int) -> None:
    top = bound if bound <= inf else largest(bits.dtype)
    for piece, marks in zip(pieces(bits), pieces(kept), strict=True):
        np.greater(magnitudes(piece), top, out=marks)
