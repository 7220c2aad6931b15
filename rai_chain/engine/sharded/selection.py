"""Exact selection of the largest magnitudes of rows whose columns ranks share."""

from collections.abc import Callable, Generator

import torch
from torch import Tensor

from ...kernels import select
from ...kernels.fallback import BITS, INF, keys_of
from .layout import Axis
from .rounds import Ask, Wish

SAMPLE = 1 << 10  # elements by which the cut is guessed

# low, high, the log2 of a bin's width -> how many of each row's keys here are below, in each bin,
# and above.
Count = Callable[[Tensor, Tensor, Tensor], Tensor]


def keep_mask(rows: Tensor, k: Tensor, *, axis: Axis) -> Ask:
    """Where the k largest magnitudes of full rows are, the lowest column among equals.

    A sample guesses two bounds of the cut. Histograms between them, of all ranks, narrow it down
    until all within is kept, or is of one magnitude: of these the columns are then narrowed down
    in the same way. What a rank has to keep is then its own largest. Rows that weigh less than two
    histograms are put together instead, by a sum.

    Args:
        rows: (n, d), this rank's columns.
        k: (n,) int64, how many of each full row are kept.
        axis: the columns; the places of those here ascend.
    """
    size, limit = axis.size, INF[rows.dtype] + 2
    rows, k = rows.contiguous(), k.to(rows.device)
    bits = 12  # narrower where histograms of many short rows would weigh more than the rows
    while bits > 2 and len(rows) << bits > max(512, len(rows) * size // axis.ranks // 16):
        bits -= 1
    bins = 1 << bits
    if size * max(4, rows.element_size()) <= max(8 * bins, 400):
        yield []  # to be sent with the first histograms of others
        return (yield from _put_together(rows, k, axis))
    low, high = _guess(rows, k / size, limit)
    low, high = yield [("max", ~low), ("max", high)]
    bounds = ~low, high

    def magnitudes(low: Tensor, high: Tensor, shift: Tensor) -> Tensor:
        return select.histogram(rows, low, high, shift, bins)

    kept, rest, cut = yield from _narrowed(magnitudes, k, bounds, limit, size, bits)
    if bool((rest > 0).any()):
        row, column = (keys_of(rows) == cut[:, None]).nonzero().unbind(1)
        last = 1 << (size - 1).bit_length()
        order = last - 1 - axis.places.to(rows.device)[column]

        def places(low: Tensor, high: Tensor, shift: Tensor) -> Tensor:
            place = torch.where(order < low[row], 0, 1 + ((order - low[row]) >> shift[row]))
            place = torch.where(order < high[row], place, bins + 1) + row * (bins + 2)
            return torch.bincount(place, minlength=len(k) * (bins + 2)).view(-1, bins + 2)

        bounds = torch.zeros_like(k), torch.full_like(k, last)
        tied, _, _ = yield from _narrowed(places, rest, bounds, last, size, bits)
        kept = kept + tied
    mask: Tensor = select._operator(rows, kept)
    return mask


def _put_together(rows: Tensor, k: Tensor, axis: Axis) -> Ask:
    """`keep_mask` of full rows, whose bits are 0 where they are not here."""
    bits, places = rows.view(BITS[rows.dtype]), axis.places.to(rows.device)
    wide = torch.int64 if rows.dtype == torch.float64 else torch.int32
    own = bits.new_zeros(len(rows), axis.size, dtype=wide)
    own[:, places] = bits.to(wide)
    (every,) = yield [("sum", own)]
    mask: Tensor = select._operator(every.to(bits.dtype).view(rows.dtype), k)
    return mask[:, places]


def _narrowed(
    count: Count, k: Tensor, bounds: tuple[Tensor, Tensor], limit: int, size: int, bits: int
) -> Generator[list[Wish], list[Tensor], tuple[Tensor, Tensor, Tensor]]:
    """How many of the k largest keys of full rows are here.

    Args:
        bounds: of each row, a guess: the key of rank k is probably in [low, high).
        limit: above all keys.
        bits: how many bins there are, as a power of two.

    Returns:
        How many of each row; and where the cut is among equal keys, that are not in this number,
        how many of these full rows have to keep, and their key.
    """
    low, high = bounds
    while True:
        shift = torch.frexp(((high - low - 1) >> bits).double()).exponent.long()
        own = count(low, high, shift)
        (every,) = yield [("sum", own.int() if size < 1 << 31 else own)]
        upto, mine = (x.flip(1).cumsum(1).flip(1) for x in (every, own))  # in a bin and above
        place = ((upto >= k.clamp(min=1)[:, None]).sum(1, keepdim=True) - 1).clamp(min=0)
        upto, mine, every, own = (x.gather(1, place)[:, 0] for x in (upto, mine, every, own))
        below, beyond = place[:, 0] == 0, place[:, 0] > 1 << bits  # the guess was wrong
        first = low + ((place[:, 0] - 1) << shift)
        end = first + torch.minimum(1 << shift, high - first)
        low, high = (
            torch.where(below, 0, torch.where(beyond, high, first)),
            torch.where(below, low, torch.where(beyond, limit, end)),
        )
        done = (upto == k) | (k == 0)
        if bool((done | (high - low == 1)).all()):
            kept = torch.where(k == 0, 0, mine - torch.where(done, 0, own))
            return kept, torch.where(done, 0, k - upto + every), low


def _guess(rows: Tensor, share: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Bounds of the cut above which a share of each row lies, by a sample of what is here."""
    n, d = rows.shape
    sample = keys_of(rows[:, :: n * d // SAMPLE | 1]).long().sort(1).values
    count = sample.shape[1]
    if not count:  # neutral beside those of other ranks
        return torch.full_like(share, limit, dtype=torch.int64), torch.zeros_like(share).long()
    middle = count * (1 - share)
    spread = 4 * (middle * share).clamp(min=0).sqrt() + 2
    ends = sample.new_full((n, 1), 0), sample, sample.new_full((n, 1), limit - 1)
    places = [(middle + x).long().clamp(0, count + 1)[:, None] for x in (-spread, spread + 1)]
    low, high = torch.cat(ends, 1).gather(1, torch.cat(places, 1)).unbind(1)
    return low, high + 1
