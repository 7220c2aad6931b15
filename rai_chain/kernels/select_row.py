"""The magnitude of a given rank in one long row, in few passes and without a copy of the row.

Rounding to bfloat16 keeps the order, so the search goes on in 16-bit keys, which are half as many
bytes, until what is left is few elements; only those are compared in full.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .bits import INF, Array, Dtype, bits_of, largest, magnitudes, scratch

PIECE = 1 << 17  # elements whose magnitudes are made at once: they stay in cache
_KEYS = 1 << 20  # keys looked at at once: smaller calls cost more than they save
_FEW = 1 << 12  # elements not worth another pass
_SAMPLE = 1 << 15  # elements of a row that are looked at first, at most
_WORD = 8  # booleans looked at together
_KEY_INF = INF[torch.bfloat16]
_GUESSES = 6  # from the sample; after them the bracket is halved


def cut(source: Tensor, keep: int) -> tuple[int, int]:
    """The smallest kept bit pattern t, and the index from which elements equal to t are dropped.

    Every NaN is equal, whatever its payload, and has the pattern of infinity + 1.

    Args:
        source: (D,), contiguous.
        keep: 0 < keep < D.
    """
    bits, inf = bits_of(source), INF[source.dtype]
    drop = bits.size - keep
    threshold, below, equal, same = _nth(source, drop)
    surplus = drop - below
    if surplus == 0:
        return threshold, bits.size
    if same is None:
        same = _rank(bits, threshold, inf, signed=True)[2]
    if same.dtype != bool:
        return threshold, int(same[-surplus])
    if surplus > equal - surplus:
        return threshold, _place(same, equal - surplus) + 1
    return threshold, bits.size - 1 - _place(same[::-1], surplus)


def _place(marks: Array, nth: int) -> int:
    """Where the nth True is."""
    for start, piece in zip(range(0, marks.size, PIECE), pieces(marks), strict=True):
        count = int(np.count_nonzero(piece))
        if count >= nth:
            return start + int(np.flatnonzero(piece)[nth - 1])
        nth -= count
    raise AssertionError("unreachable")


def _nth(source: Tensor, drop: int) -> tuple[int, int, int, Array | None]:
    """The bit pattern at sorted index `drop` of a row, how many are smaller, how many equal, and
    where these are: positions, or a mask, or None where that was not seen on the way.
    """
    bits, inf, at = bits_of(source), INF[source.dtype], None
    if bits.itemsize > 2:
        keys = scratch.get("keys", bits.shape, np.int16)
        torch.from_numpy(keys).view(torch.bfloat16).copy_(source)
        keys &= largest(keys.dtype)
        near = _Near.of(_sample(keys), drop / bits.size, _KEY_INF)
        if not near.shared or near.shared > _KEY_INF:  # else a key of many values
            low, below, count, at = _search(keys, near, drop, _KEY_INF, signed=False)
            if low > _KEY_INF:
                return inf + 1, below, count, at
    if at is None:
        near = _Near.of(_sample(bits), drop / bits.size, inf)
        low, below, count, at = _search(bits, near, drop, inf, signed=True)
    if at is None or at.dtype == bool:
        return low, below, count, at
    found = bits.take(at) & bits.dtype.type(largest(bits.dtype))
    np.minimum(found, inf + 1, out=found)
    threshold = int(np.partition(found, drop - below)[drop - below])
    same = at[found == threshold]
    return threshold, below + int(np.count_nonzero(found < threshold)), same.size, same


def _search(
    row: Array, near: "_Near", drop: int, inf: int, signed: bool
) -> tuple[int, int, int, Array | None]:
    """A range of magnitudes that has sorted index `drop`: its low end, how many are below that, how
    many are in it, and where these few are; a mask, or None, where it is a single value.

    A sample gives a pivot; counting what is below it gives its exact rank; the sample's density
    about it gives a narrow range beside it.
    """
    few, top = max(_FEW, row.size >> 5), largest(row.dtype) + 1
    seen, density, shared = near.values, near.sampled / row.size, near.shared
    low, below, high, above = 0, 0, inf + 2, row.size  # so many are below `low`, below `high`
    if shared is not None:
        smaller, equal, same = _rank(row, shared, inf, signed)
        if smaller <= drop < smaller + equal:
            return shared, smaller, equal, same if signed or shared > inf else None
        if drop < smaller:
            high, above = shared, smaller
        else:
            low, below = shared + 1, smaller + equal

    base, margin, guesses, crowd = 0, 2.0, 0, False
    while high - low > 1:
        # The pivot is a little beyond the target, seen from the end of nearer rank; at first, when
        # neither is known, at the target; and midway where there were too many up to it.
        first, last = seen.searchsorted(low), seen.searchsorted(high)
        left, most = drop - below <= above - drop, few
        error = (drop - below if left else above - drop) * density
        step = int(error + margin * math.sqrt(error)) + 4
        guess = (first + last) >> 1 if crowd else first + step if left else last - step
        pivot = int(seen[min(max(int(guess), 0), seen.size - 1)]) + left
        if low == 0 and high == inf + 2:
            pivot, left, most = int(seen[near.position]), True, 0
        guesses += 1
        if guesses > _GUESSES:
            pivot = (low + high) >> 1
        pivot = min(max(pivot, low + 1), high - 1)
        if above - below <= _FEW:
            pivot, left, most = high, True, few

        start, stop = (low, pivot) if left else (pivot, high)
        width = (stop if stop < inf + 2 else top) - start
        count, at = _within(row, start if signed else start - base, width, most, signed)
        base = start
        middle = below + count if left else above - count
        hit = left == (drop < middle)
        if drop < middle:
            high, above = pivot, middle
        else:
            low, below = pivot, middle
        if hit and at is not None:
            return low, below, count, at
        crowd = hit and most > 0
        if not hit and most:
            margin = min(2 * margin, 1e3)
    return low, below, above - below, None


def _rank(row: Array, value: int, inf: int, signed: bool) -> tuple[int, int, Array]:
    """How many magnitudes are below a value, how many equal to it, and which these are."""
    alike = np.equal if value <= inf else np.greater_equal
    passed, smaller = scratch.get("passed", row.shape, bool), 0
    step = PIECE if signed else _KEYS
    for piece, own in zip(pieces(row, step), pieces(passed, step), strict=True):
        values = magnitudes(piece) if signed else piece
        if value:
            smaller += int(np.count_nonzero(np.less(values, value, out=own)))
        alike(values, value, out=own)
    return smaller, int(np.count_nonzero(passed)), passed


def _within(
    row: Array, start: int, width: int, most: int, signed: bool
) -> tuple[int, Array | None]:
    """How many magnitudes are in [start, start + width), and where; None for more than `most`.

    An unsigned row is ours, and is left with `start` subtracted. The few are sought a word of
    booleans at a time.
    """
    padded = -(-row.size // _WORD) * _WORD
    passed = scratch.get("passed", (padded,), bool)
    passed[row.size :] = False
    step = PIECE if signed else _KEYS
    for piece, inside in zip(pieces(row, step), pieces(passed[: row.size], step), strict=True):
        values = magnitudes(piece) if signed else piece
        if start:
            values -= start
        np.less(values.view(f"u{row.itemsize}"), width, out=inside)  # below wraps around
    if not most:
        return int(np.count_nonzero(passed)), None
    hits = passed.view(np.uint64) != 0
    if np.count_nonzero(hits) > most:
        return int(np.count_nonzero(passed)), None
    words = np.flatnonzero(hits)
    at = np.flatnonzero(passed.reshape(-1, _WORD).take(words, axis=0))
    return at.size, words.take(at >> 3) * _WORD + (at & 7) if at.size <= most else None


def pieces(row: Array, size: int = PIECE) -> Iterator[Array]:
    """A row in pieces that stay in cache, so that what is made of them is small too."""
    for start in range(0, row.size, size):
        yield row[start : start + size]


def _sample(bits: Array) -> Array:
    """Magnitudes at the positions of a Weyl sequence, which no regular structure follows."""
    count = min(_SAMPLE, 512 * max(8, bits.size >> 15))
    positions = np.multiply(_fractions()[:count], bits.size, dtype=np.uint64)
    positions >>= np.uint64(31)
    values = bits.take(positions.view(np.int64))
    values &= largest(values.dtype)
    return values


class _Near(NamedTuple):
    """What of a sample is near a quantile.

    Of blocks as long as numpy sorts in registers only the middle is kept, where it surely lies.
    """

    values: Array  # sorted
    position: int  # of the quantile among them
    sampled: int  # the size of the sample

    @classmethod
    def of(cls, sample: Array, quantile: float, inf: int) -> "_Near":
        block = register_block(sample.dtype)
        runs = np.sort(sample.reshape(-1, block), axis=1)
        columns = middle_columns(block, quantile, 3)
        values = np.sort(runs[:, columns], axis=None)
        np.minimum(values, inf + 1, out=values)
        position = int((quantile * block - columns.start) * len(runs))
        return cls(values, min(max(position, 0), values.size - 1), sample.size)

    @property
    def shared(self) -> int | None:
        """A value that many elements near the quantile share."""
        some = self.values.size >> 3
        alike = np.flatnonzero(self.values[some:] == self.values[:-some])
        return int(self.values[alike[0]]) if alike.size else None


@lru_cache(maxsize=1)
def _fractions() -> Array:
    """The sequence, times 2**31."""
    steps = np.arange(_SAMPLE, dtype=np.uint64) * np.uint64(11400714819323198485)
    return (steps >> np.uint64(33)).astype(np.uint32)


def register_block(dtype: Dtype) -> int:
    """As many as numpy sorts in registers."""
    return min(512, 2048 // dtype.itemsize)


def middle_columns(size: int, quantile: float, deviations: float) -> slice:
    """Where this quantile of a population lies in a sorted sample of it."""
    margin = deviations * math.sqrt(size * quantile * (1 - quantile)) + 3
    return slice(max(0, int(size * quantile - margin)), min(size, int(size * quantile + margin)))
