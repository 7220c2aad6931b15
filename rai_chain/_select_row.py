"""The magnitude of a given rank in one long row, in few passes and without a copy of the row.

Rounding to bfloat16 keeps the order, so the search goes on in 16-bit keys, which are half as many
bytes, until what is left is few elements; only those are compared in full.
"""

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ._bits import INF, Array, Dtype, bits_of, largest, magnitudes, scratch

PIECE = 1 << 16  # elements worked on at once: they stay in cache
_FEW = 1 << 12  # elements not worth another pass
_SAMPLE = 1 << 15  # elements of a row that are looked at first, at most
_WORD = 8  # booleans looked at together
_KEY_INF = INF[torch.bfloat16]
_GUESSES = 6  # from the sample; after them the bracket is halved


def nth_magnitude(source: Tensor, drop: int) -> tuple[int, int, int]:
    """The bit pattern at sorted index `drop` of a row, how many are smaller, and how many equal.

    Every NaN is equal, whatever its payload, and is given as the pattern of infinity + 1.
    """
    bits, inf = bits_of(source), INF[source.dtype]
    sample, at = _sample(bits, inf), None
    if bits.itemsize > 2:
        floats = torch.from_numpy(sample).view(source.dtype)
        seen = np.minimum(magnitudes(bits_of(floats.bfloat16())), _KEY_INF + 1)
        near, _ = _near(seen, drop / bits.size)
        some = near.size >> 3
        if not (near[some:] == near[:-some]).any():  # else many elements would share a key
            keys = scratch.get("keys", bits.shape, np.int16)
            torch.from_numpy(keys).view(torch.bfloat16).copy_(source)
            keys &= largest(keys.dtype)
            low, below, count, at = _search(keys, seen, drop, _KEY_INF, signed=False)
            if low > _KEY_INF:
                return inf + 1, below, count
    if at is None:
        low, below, count, at = _search(bits, sample, drop, inf, signed=True)
    if at is None:
        return low, below, count
    found = bits.take(at) & bits.dtype.type(largest(bits.dtype))
    found.partition(drop - below)
    threshold = min(int(found[drop - below]), inf + 1)
    smaller = int(np.count_nonzero(found < threshold))
    equal = count - smaller if threshold > inf else int(np.count_nonzero(found == threshold))
    return threshold, below + smaller, equal


def _search(
    row: Array, sample: Array, drop: int, inf: int, signed: bool
) -> tuple[int, int, int, Array | None]:
    """A range of magnitudes that has sorted index `drop`: its low end, how many are below that, how
    many are in it, and where these few are; None where it is a single value.

    A sample gives a pivot; counting what is below it gives its exact rank; the sample's density
    about it gives a narrow range beside it.
    """
    size, few = row.size, max(_FEW, row.size >> 5)
    near, position = _near(sample, drop / size)
    low, below, high, above = 0, 0, inf + 2, size  # so many are below `low`, so many below `high`
    pivot, left, most, margin, guesses = int(near[position]), True, 0, 2.0, 0
    top, base = largest(row.dtype) + 1, 0
    while True:
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
        if high - low == 1:
            return low, below, above - below, None

        # The next pivot is a little beyond the target, seen from the end of nearer rank; between
        # the two where even so it was too many.
        first, last = near.searchsorted(low), near.searchsorted(high)
        left = drop - below <= above - drop
        error = (drop - below if left else above - drop) * sample.size / size
        step = int(error + margin * math.sqrt(error)) + 4
        guess = first + step if left else last - step
        if hit and most:
            guess = (first + last) >> 1
        guesses, most, margin = guesses + 1, few, margin if hit else min(2 * margin, 1e3)
        pivot = int(near[min(max(int(guess), 0), near.size - 1)]) + left
        if guesses > _GUESSES:
            pivot = (low + high) >> 1


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
    for piece, inside in zip(pieces(row), pieces(passed[: row.size]), strict=True):
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


def pieces(row: Array, backwards: bool = False) -> Iterator[Array]:
    """A row in pieces that stay in cache, so that what is made of them is small too."""
    starts = range(0, row.size, PIECE)
    for start in reversed(starts) if backwards else starts:
        yield row[start : start + PIECE]


def _sample(bits: Array, inf: int) -> Array:
    """Magnitudes at the positions of a Weyl sequence, which no regular structure follows."""
    count = min(_SAMPLE, 512 * max(8, bits.size >> 15))
    positions = np.multiply(_fractions()[:count], bits.size, dtype=np.uint64)
    positions >>= np.uint64(31)
    values = bits.take(positions.view(np.int64))
    values &= largest(values.dtype)
    return np.minimum(values, inf + 1, out=values)


def _near(sample: Array, quantile: float) -> tuple[Array, int]:
    """What is near a quantile of a sample, sorted, and the quantile's position there.

    Of blocks as long as numpy sorts in registers only the middle is kept, where it surely lies.
    """
    block = register_block(sample.dtype)
    runs = np.sort(sample.reshape(-1, block), axis=1)
    columns = middle_columns(block, quantile, 3)
    near = np.sort(runs[:, columns], axis=None)
    position = int((quantile * block - columns.start) * len(runs))
    return near, min(max(position, 0), near.size - 1)


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
