"""Norms and nearest points of rows whose columns ranks share.

The definitions and their arithmetic are those of `kernels.fallback`; sums go over ranks.
"""

from collections.abc import Callable, Generator

import torch
from torch import Tensor

from ...kernels import fallback
from ...kernels.norms import row_norm
from ...kernels.sets import L2, SIMPLEX
from .layout import Axis
from .rounds import Ask, Wish

Pair = tuple[Tensor, Tensor]
UNIT = 20  # the sums of scaled numbers are whole in units of 2**-20, then of 2**-60 and 2**-100


def norm(rows: Tensor, p: float, axis: Axis | None = None) -> Ask:
    """The p-norm of full rows, (n, 1) float64, in one reduction: nothing leaves the range.

    Powers of numbers of different order are summed apart; with p = 2 in float32 all are of one.
    """
    own = row_norm(rows, p)
    if p in (1, torch.inf):
        (found,) = yield [("sum" if p == 1 else "max", own)]
        return found
    width = int(900 / p)  # exponents of two that are of one order
    largest = torch.tensor(torch.finfo(rows.dtype).max, dtype=torch.float64, device="cpu")
    reach = round((int(largest.frexp().exponent) + 50) / width)
    order = (own.frexp().exponent / width).round().long().clamp(-reach, reach)
    order = torch.where(own.isfinite(), order, reach)
    terms = _scaled(own, -width * order) ** p
    sums = own.new_zeros(len(own), 2 * reach + 1).scatter(1, order + reach, terms)
    (sums,) = yield [("sum", sums)]
    orders = torch.arange(-reach, reach + 1, device=own.device).expand(sums.shape)
    top = torch.where(sums != 0, orders, -reach).amax(1, keepdim=True)
    shares = _scaled(torch.ones_like(sums), ((orders - top) * int(width * p)).clamp(-2000, 0))
    total = torch.where((orders <= top) & (shares > 0), sums * shares, 0.0).sum(1, keepdim=True)
    root = fallback.sqrt(total) if p == 2 else total ** (1.0 / p)
    off = (root**p / total - 1.0) / p  # 1 / p was rounded, which tells far from 1
    root = torch.where((total > 0) & total.isfinite(), root - root * off, root)
    return _scaled(root, width * top)


def _scaled(x: Tensor, exponent: Tensor) -> Tensor:
    """x * 2**exponent, where the power alone may leave the range."""
    for part in (exponent // 2, exponent - exponent // 2):
        x = x * ((1023 + part) << 52).view(torch.float64)
    return x


def project(rows: Tensor, center: Tensor | None, radius: Tensor, kind: int, *, axis: Axis) -> Ask:
    """As `fallback.project`, of full rows."""
    if kind == SIMPLEX:
        return _simplex(rows, radius, axis.size)
    return _l2(rows, center, radius) if kind == L2 else _l1(rows, center, radius, axis.size)


def _simplex(rows: Tensor, radius: Tensor, size: int) -> Ask:
    values = rows.double()
    sums = torch.cat([_sum(values), (~(rows >= 0)).sum(1, keepdim=True).double()], 1)
    top, sums = yield [("max", _largest(values)), ("sum", sums)]
    near = (sums[:, :1] - radius).abs() <= torch.finfo(rows.dtype).eps * radius
    scale = fallback._unit(radius)
    over, whole = yield from _over_threshold(values, top, radius * scale, scale, size, -torch.inf)
    nearest = (over * (radius * scale / whole)) / scale
    return torch.where(near & (sums[:, 1:] == 0), rows, nearest.to(rows.dtype))


def _l1(rows: Tensor, center: Tensor | None, radius: Tensor, size: int) -> Ask:
    offset, lost = fallback.offset_of(rows, center)
    length, lost = offset.abs(), torch.where(offset < 0, -lost, lost).expand(offset.shape)
    (top,) = yield [("max", _largest(length))]
    near_one = _near_one(top)
    pair = _exact(fallback.exact_total, length * near_one, lost * near_one)
    (limbs,) = yield [("sum", _limbs(pair, top))]
    hi, lo = _of_limbs(limbs)
    inside = ((hi - radius * near_one) + lo <= 0.0) & top.isfinite()
    far = (hi > 1e290 * near_one) & top.isfinite()
    scale = torch.where(far, near_one, fallback._unit(radius))
    over, whole = yield from _over_threshold(length, top, radius * scale, scale, size, 0.0)
    share = radius * scale / whole * fallback.INWARDS[rows.dtype]
    moved = torch.copysign(fallback._unscaled(over * share, scale), offset)
    outside = fallback.inwards(center, moved, rows.dtype)
    return torch.where(inside | (radius == torch.inf), rows, outside)


def _l2(rows: Tensor, center: Tensor | None, radius: Tensor) -> Ask:
    offset, lost = fallback.offset_of(rows, center)
    ends = offset.isinf()
    top, count = yield [
        ("max", _largest(offset.abs())),
        ("sum", ends.sum(1, keepdim=True).double()),
    ]
    near_one = _near_one(top)
    offset, lost = offset * near_one, (lost * near_one).expand(offset.shape)
    pair = _exact(fallback.exact_squares, offset, lost)
    (limbs,) = yield [("sum", _limbs(pair, top))]
    hi, lo = _of_limbs(limbs)
    near, near_lost = fallback.square((radius * near_one).clamp(max=1e150))
    inside = ((hi - near) + (lo - near_lost) <= 0.0) & top.isfinite()
    far = top == torch.inf  # the limit: infinite elements are equally large, the rest is nothing
    offset = torch.where(far, torch.where(ends, offset.sign(), 0.0), offset)
    root = fallback.sqrt(torch.where(far, count, hi + lo))
    root = torch.where(top.isnan(), torch.nan, root)
    scale = fallback._unit(radius)
    moved = fallback._unscaled(
        offset * (radius * scale / root * fallback.INWARDS[rows.dtype]), scale
    )
    outside = fallback.inwards(center, moved, rows.dtype)
    return torch.where(inside | (radius == torch.inf), rows, outside)


def _over_threshold(
    values: Tensor, top: Tensor, radius: Tensor, scale: Tensor, size: int, least: float
) -> Generator[list[Wish], list[Tensor], Pair]:
    """As the one of `fallback`: max(values - theta, 0) that sums to the radius, and that sum."""
    below = torch.where(values == top, 0.0, (values - top) * scale)
    (mean,) = yield [("sum", _sum(torch.maximum(below, -radius)))]
    first = torch.fmax(-radius, (least - top) * scale)
    theta = torch.maximum((mean - radius) / size, first)
    while True:
        active = below > theta
        sums = [active.sum(1, keepdim=True).double(), _sum(torch.where(active, below, 0.0))]
        (found,) = yield [("sum", torch.cat(sums, 1))]
        step = (found[:, 1:] - radius) / found[:, :1]
        if not bool((step > theta).any()):
            over = (below - theta).clamp(min=0.0)
            (whole,) = yield [("sum", _sum(over))]
            return over, whole.clamp(min=torch.finfo(torch.float64).tiny)
        theta = torch.where(step > theta, step, theta)


# ------------------------------------------------------------------ sums


def _largest(x: Tensor) -> Tensor:
    return x.amax(1, keepdim=True) if x.shape[1] else x.new_full((len(x), 1), -torch.inf)


def _sum(x: Tensor) -> Tensor:
    return fallback.total(x) if x.numel() else x.new_zeros(len(x), 1)


def _exact(total: Callable[[Tensor, Tensor], Pair], x: Tensor, lost: Tensor) -> Pair:
    zero = x.new_zeros(len(x), 1)
    return total(x, lost) if x.numel() else (zero, zero)


def _near_one(top: Tensor) -> Tensor:
    """The power of two that brings the largest of a row near 1."""
    usual = (top > 0) & top.isfinite()
    return torch.where(usual, fallback.power_of_two(torch.where(usual, top, 1.0)), 1.0)


def _limbs(pair: Pair, top: Tensor) -> Tensor:
    """Numbers below 2**40 as three integers, (n, 3), whose sums are exact in any order of ranks."""
    limbs = torch.zeros(len(top), 3, dtype=torch.int64, device=top.device)
    for number in pair:
        number = torch.where(top.isfinite(), number, 0.0)
        for i in range(3):
            unit = 2.0 ** (UNIT + 40 * i)
            whole = (number * unit).trunc()
            limbs[:, i : i + 1] += whole.long()
            number = number - whole / unit
    return limbs


def _of_limbs(limbs: Tensor) -> Pair:
    """The number that integers are the parts of, and what rounding lost of it."""
    hi = lo = torch.zeros(len(limbs), 1, dtype=torch.float64, device=limbs.device)
    for i in range(3):
        limb = limbs[:, i : i + 1]
        for part in (limb >> 32 << 32, limb & 0xFFFFFFFF):
            hi, lost = fallback.two_sum(hi, part.double() / 2.0 ** (UNIT + 40 * i))
            lo = lo + lost
    return fallback.two_sum(hi, lo)
