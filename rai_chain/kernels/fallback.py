"""What native.cpp does, in numpy and torch and to the same bits: slower, on any device.

Sums are pairs of float64 numbers, the sum and what rounding lost of it, added up in one fixed
order. So a row is inside its ball or not, whatever the dtype, and nothing leaves the range.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}
INF = {t: int(torch.tensor(torch.inf, dtype=t, device="cpu").view(b)) for t, b in BITS.items()}
BLOCK = 1024  # terms that are added up by halving
CHUNK = 1 << 17  # elements worked on at once: they stay in cache
FEW = 4  # Newton steps from a start that is right to rounding
# Outweighs the roundings on the way to a point of a ball: those of float64, where sums are in twice
# that; those of sums in float64, where points are coarser by far.
INWARDS = {t: 1.0 - 2.0 ** (-50 if t is torch.float64 else -46) for t in BITS}

Pair = tuple[Tensor, Tensor]  # a sum, and what rounding lost of it


def in_chunks(function: Callable[..., Tensor], rows: Tensor, *args: Any) -> Tensor:
    """A function of rows on a few of them at a time, on a CPU, so that all stays in cache."""
    n, size = rows.shape
    step = max(1, CHUNK // max(1, size)) if rows.is_cpu else max(1, n)
    if step >= n:
        return function(rows, *args)
    result = None
    for i in range(0, n, step):
        part = slice(i, i + step)
        own = function(rows[part], *(a[part] if isinstance(a, Tensor) else a for a in args))
        result = own.new_empty((n, own.shape[1])) if result is None else result
        result[part] = own
    assert result is not None
    return result


# ------------------------------------------------------------------ selection


def keep_mask(rows: Tensor, k: Tensor) -> Tensor:
    """Where the k elements of largest magnitude of each row are, the first among equals."""
    if not rows.is_cpu:
        return keep_mask_by_sorting(rows, k)
    if not rows.numel():
        return rows.new_empty(rows.shape, dtype=torch.bool)
    return in_chunks(_keep_mask_of_chunk, rows, k)


def _keep_mask_of_chunk(rows: Tensor, k: Tensor) -> Tensor:
    keep, size = k.numpy(), rows.shape[1]
    bits = rows.contiguous().view(BITS[rows.dtype]).numpy()
    values = bits & np.iinfo(bits.dtype).max  # their order is that of the magnitudes
    np.minimum(values, INF[rows.dtype] + 1, out=values)  # NaN is NaN, whatever its payload
    drop = np.minimum(size - keep, size - 1)
    if (drop == drop[0]).all():
        bound = np.partition(values, drop[0], axis=1)[:, drop[0], None]
    else:
        bound = np.take_along_axis(np.sort(values, axis=1), drop[:, None], axis=1)
    mask = values >= bound
    surplus = np.count_nonzero(mask, axis=1) - keep
    for row in np.flatnonzero(surplus):  # the last among equals go
        mask[row, np.flatnonzero(values[row] == bound[row])[-surplus[row] :]] = False
    return torch.from_numpy(mask)


def keep_mask_by_sorting(rows: Tensor, k: Tensor) -> Tensor:
    """The same without a read on the host: other devices, and the tests."""
    n, size = rows.shape
    order = keys_of(rows.contiguous()).sort(dim=1, descending=True, stable=True).indices
    ranked = torch.arange(size, device=rows.device) < k.expand(n)[:, None]
    return torch.zeros_like(rows, dtype=torch.bool).scatter(1, order, ranked)


def keys_of(rows: Tensor) -> Tensor:
    """Integers in the order of the magnitudes, in which every NaN is alike and the largest."""
    bits = rows.view(BITS[rows.dtype])
    return (bits & torch.iinfo(bits.dtype).max).clamp(max=INF[rows.dtype] + 1)


def histogram(rows: Tensor, low: Tensor, high: Tensor, shift: Tensor, bins: int) -> Tensor:
    """How many keys of rows (N, D) are in bins of the width 2**shift from `low` on.

    Returns:
        (N, bins + 2) int64: those below `low`, those in each bin, and those from `high` on.
    """
    n, size = rows.shape
    counts = rows.new_zeros(n * (bins + 2), dtype=torch.int64)
    low, high, shift = low[:, None], high[:, None], shift[:, None]
    row = torch.arange(n, device=rows.device)[:, None] * (bins + 2)
    step = max(1, (CHUNK if rows.is_cpu else CHUNK << 6) // max(1, n))
    for start in range(0, size, step):
        keys = keys_of(rows[:, start : start + step]).long()
        place = torch.where(keys < low, 0, 1 + ((keys - low) >> shift))
        place = row + torch.where(keys >= high, bins + 1, place)
        counts += torch.bincount(place.reshape(-1), minlength=len(counts))
    return counts.view(n, bins + 2)


# ------------------------------------------------------------------ sums and norms


def two_sum(a: Tensor, b: Tensor) -> Pair:
    """a + b, and exactly what rounding lost of it (Knuth)."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def square(v: Tensor) -> Pair:
    """v * v, and exactly what rounding lost of it (Dekker)."""
    p = v * v
    high = (v.contiguous().view(torch.int64) & -(1 << 27)).view(torch.float64)
    low = v - high
    return p, ((high * high - p) + 2.0 * high * low) + low * low


def total(terms: Tensor) -> Tensor:
    """The sum of each row, (N, 1): in blocks of 1024, the second half onto the first."""
    n = len(terms)
    while terms.shape[1] > 1:
        terms = _blocks(terms)
        while terms.shape[1] > 1:
            a, b = terms.chunk(2, dim=1)
            terms = a + b
        terms = terms.view(n, -1)
    return terms


def exact_total(hi: Tensor, lo: Tensor) -> Pair:
    """The same of pairs, in twice the precision."""
    n = len(hi)
    while hi.shape[1] > 1:
        hi, lo = _blocks(hi), _blocks(lo)
        while hi.shape[1] > 1:
            (a, b), (c, d) = hi.chunk(2, dim=1), lo.chunk(2, dim=1)
            hi, e = two_sum(a, b)
            lo = (c + d).add_(e)
        hi, lo = hi.view(n, -1), lo.view(n, -1)
    return hi, torch.where(hi.isfinite(), lo, 0.0)


def _blocks(terms: Tensor) -> Tensor:
    size = terms.shape[1]
    width = BLOCK if size > BLOCK else 1 << (size - 1).bit_length()
    return (pad(terms, (0, -size % width)) if size % width else terms).reshape(-1, width)


def norm(rows: Tensor, p: float) -> Tensor:
    """The p-norm of each row, (N, 1), float64."""
    values = rows.double()
    if p == 2:
        squares = total(values * values)
        scale = _scale_of_squares(values, squares)
        return sqrt(squares) if scale is None else sqrt(total((values * scale) ** 2)) / scale
    values = values.abs()
    if p == 1:
        return total(values)
    big = values.amax(1, keepdim=True)
    if p == torch.inf:
        return big
    safe = torch.where((big > 0) & (big < torch.inf), big, 1.0)
    return safe * total((values / safe) ** p) ** (1.0 / p)


def _scale_of_squares(values: Tensor, squares: Tensor) -> Tensor | None:
    """A power of two for each row, so that its squares keep to the range; None: no need."""
    odd = ~((squares > 1e-200) & (squares < 1e200))
    if odd.is_cpu and not bool(odd.any()):
        return None
    big = values.abs().amax(1, keepdim=True)
    odd &= (big > 0) & (big < torch.inf)
    return torch.where(odd, power_of_two(big), 1.0)


def power_of_two(big: Tensor) -> Tensor:
    """The power of two, of at most 1000, that brings a number near 1."""
    exponent = torch.frexp(big).exponent.long().clamp(-1000, 1000)
    return ((1023 - exponent) << 52).view(torch.float64)


def sqrt(x: Tensor) -> Tensor:
    """Rounded as IEEE 754 has it, which torch's is not on a CPU."""
    return torch.from_numpy(np.sqrt(x.numpy())) if x.is_cpu else x.sqrt()


# ------------------------------------------------------------------ sets


def project(rows: Tensor, center: Tensor | None, radius: Tensor, kind: int) -> Tensor:
    """The nearest point of the simplex (kind 0), the L1 ball (1) or the L2 ball (2) of each row."""
    return (_simplex, _l1, _l2)[kind](rows, center, radius)


def _simplex(rows: Tensor, _: Tensor | None, radius: Tensor) -> Tensor:
    values = rows.double()
    near = (total(values) - radius).abs() <= torch.finfo(rows.dtype).eps * radius
    scale = _unit(radius)
    over, whole = _over_threshold(values, radius * scale, scale, -torch.inf, rows.dtype)
    nearest = (over * (radius * scale / whole)) / scale
    return torch.where(near & (rows >= 0).all(1, keepdim=True), rows, nearest.to(rows.dtype))


def _l1(rows: Tensor, center: Tensor | None, radius: Tensor) -> Tensor:
    offset, lost = offset_of(rows, center)
    size = offset.abs()
    hi, lo = exact_total(size, torch.where(offset < 0, -lost, lost))
    inside = (hi - radius) + lo <= 0.0
    far = power_of_two(size.amax(1, keepdim=True))
    scale = torch.where((hi > 1e290) & size.isfinite().all(1, True), far, _unit(radius))
    over, whole = _over_threshold(size, radius * scale, scale, 0.0, rows.dtype)
    share = radius * scale / whole * INWARDS[rows.dtype]
    moved = torch.copysign(_unscaled(over * share, scale), offset)
    return torch.where(inside | (radius == torch.inf), rows, inwards(center, moved, rows.dtype))


def _l2(rows: Tensor, center: Tensor | None, radius: Tensor) -> Tensor:
    offset, lost = offset_of(rows, center)
    hi, lo = exact_squares(offset, lost)
    scale = _scale_of_squares(offset, hi)
    if scale is not None:
        offset, lost = offset * scale, lost * scale
        hi, lo = exact_squares(offset, lost)
    near, near_lost = square((radius if scale is None else radius * scale).clamp(max=1e150))
    inside = (hi - near) + (lo - near_lost) <= 0.0
    ends = offset.isinf()  # the limit: infinite elements are equally large, the rest is nothing
    far = ends.any(1, keepdim=True) & (hi == torch.inf)
    offset = torch.where(far, torch.where(ends, offset.sign(), 0.0), offset)
    whole = hi + lo if rows.dtype == torch.float64 else total(offset * offset)
    root = sqrt(torch.where(far, ends.sum(1, keepdim=True).double(), whole))
    scale = _unit(radius)
    moved = _unscaled(offset * (radius * scale / root * INWARDS[rows.dtype]), scale)
    return torch.where(inside | (radius == torch.inf), rows, inwards(center, moved, rows.dtype))


def exact_squares(v: Tensor, e: Tensor) -> Pair:
    hi, lo = square(v)
    return exact_total(hi, lo + 2.0 * v * e)


def offset_of(rows: Tensor, center: Tensor | None) -> Pair:
    if center is None:
        return rows.double(), rows.new_zeros((), dtype=torch.float64)
    return two_sum(rows.double(), -center.double())


def _over_threshold(
    values: Tensor, radius: Tensor, scale: Tensor, least: float, dtype: torch.dtype
) -> Pair:
    """max(values - theta, 0) with the theta that makes their sum the radius, and that sum.

    Newton's method from below, relative to the largest: far points lose no digits. Active sets
    only shrink, so it ends. The values are in units of 1 / scale; theta is `least` or more.
    """
    top = values.amax(1, keepdim=True)
    below = torch.where(values == top, 0.0, (values - top) * scale)
    mean = (total(torch.maximum(below, -radius)) - radius) / values.shape[1]
    theta = torch.maximum(mean, torch.fmax(-radius, (least - top) * scale))
    if values.is_cpu:
        while bool(((new := _newton_step(below, radius, theta)) > theta).any()):
            theta = new
    else:  # nobody waits for it
        theta = torch.maximum(theta, _threshold_of_sorted(below, radius))
        for _ in range(FEW):
            theta = _newton_step(below, radius, theta)
    over = (below - theta).clamp(min=0.0)
    if dtype == torch.float64:
        hi, lo = exact_total(over, torch.zeros_like(over))
        whole = hi + lo
    else:
        whole = total(over)
    return over, whole.clamp(min=torch.finfo(torch.float64).tiny)


def _newton_step(values: Tensor, radius: Tensor, theta: Tensor) -> Tensor:
    """The next theta, never a smaller one."""
    active = values > theta
    count = active.sum(1, keepdim=True).double()
    step = (total(torch.where(active, values, 0.0)) - radius) / count
    return torch.where(step > theta, step, theta)


def _threshold_of_sorted(values: Tensor, radius: Tensor) -> Tensor:
    """The theta that a sorted row shows, or one barely below: few steps are left from there."""
    sums = values.sort(dim=1, descending=True).values
    for i in range((values.shape[1] - 1).bit_length()):  # each is the sum of all up to there
        sums = sums + pad(sums, (1 << i, 0))[:, : -(1 << i)]
    count = torch.arange(1, values.shape[1] + 1, device=values.device)
    return ((sums - radius) / count).amax(1, keepdim=True) * (1.0 + 2.0**-46)


def _unit(radius: Tensor) -> Tensor:
    """The scale in which a radius and its parts are no denormal numbers."""
    return torch.ones_like(radius).masked_fill(radius < 1e-180, 2.0**600)


def _unscaled(moved: Tensor, scale: Tensor) -> Tensor:
    """moved / scale, rounded towards zero where it is rounded at all."""
    result = moved / scale
    return torch.where(result.abs() * scale > moved.abs(), result.nextafter(0.0 * moved), result)


def inwards(center: Tensor | None, moved: Tensor, dtype: torch.dtype) -> Tensor:
    """center + moved in this dtype, never farther from the center than `moved`."""
    if center is None:
        origin, s, e = torch.zeros_like(moved, dtype=dtype), moved, torch.zeros_like(moved)
    else:
        origin, (s, e) = center, two_sum(center.double(), moved)
    nearest = s.to(dtype)
    error = (nearest.double() - s) - e
    far = torch.where(moved > 0.0, error > 0.0, error < 0.0)
    return torch.where(far, nearest.nextafter(origin), nearest)
