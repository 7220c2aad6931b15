"""The nearest points of balls inside of boxes, for rows: value, rounding and derivative.

A ball takes what the box leaves of it: elements that its nearest point has outside of their
bounds are put there, the others share the rest of the radius, and so on until all are inside.
What is put to a bound would be there in the end, so that few rounds of the ball's own kernel are
enough, and its promises hold: rounding inwards, and the limits at infinity.
"""

from typing import Any

import torch
from torch import Tensor

from ..data.plain import is_plain
from . import fallback
from .norms import row_norm
from .operators import operator
from .sets import L1, as_rows, column, count, project, with_slope

SMALLER = 1.0 - 2.0**-51  # outweighs the roundings of what is left of a radius


def ball_in_box(rows: Tensor, radius: Any, center: Any, low: Any, high: Any, kind: int) -> Tensor:
    """The nearest row of the ball, `sets.L1` or `sets.L2`, with elements in [low, high], (N, D).

    Where no row is in both, the one in the box that is nearest to the center.

    Args:
        rows: (N, D), any floating dtype.
        radius: a number or a tensor of shape (), (N,) or (N, 1), >= 0.
        center: a number, a tensor that broadcasts to (N, D), or None for the origin.
        low, high: the same, low <= high; None for no bound.
    """
    radius = column(radius, rows)
    center = None if center is None else as_rows(center, rows)
    low = as_rows(-torch.inf if low is None else low, rows)
    high = as_rows(torch.inf if high is None else high, rows)
    if is_plain((rows, radius, center, low, high)):
        return _nearest(rows.detach(), center, radius, low, high, kind)
    fixed = (None if x is None else x.detach() for x in (center, radius, low, high))
    value = _operator(rows.detach(), *fixed, kind)
    boxed = torch.clamp(rows, low, high)
    outside = (value != boxed).any(1, keepdim=True)
    origin = radius.new_zeros(()) if center is None else center.double()
    at_low, at_high = value == low, (value == high) & (value != low)
    bound = torch.where(at_low, low, torch.where(at_high, high, 0.0)).double()
    held = torch.where(at_low | at_high, bound - origin, 0.0)
    free = outside & (value != origin) & ~(at_low | at_high)
    offset = torch.where(free, rows.double() - origin, 0.0 if kind == L1 else 1.0)
    radius = torch.where(outside, radius, 1.0)
    if kind == L1:
        size = offset.abs()
        whole = (size + held.abs()).sum(1, keepdim=True)
        way = offset.detach().sign() * (size - (whole - radius) / count(free))
    else:
        some, rest = torch.where(free, offset, 0.0), row_norm(held, 2)
        square = (radius - rest) * (radius + rest)
        square = torch.where(free.any(1, True) & (square > 0), square, 1.0)
        way = offset / torch.where(free.any(1, True), row_norm(some, 2), 1.0) * square.sqrt()
    moved = origin + torch.where(free, way, held)
    return torch.where(outside, with_slope(value, moved), boxed)


def _nearest(rows: Tensor, *args: Any) -> Tensor:
    return fallback.in_chunks(_nearest_of_chunk, rows, *args) if rows.numel() else rows.clone()


def _nearest_of_chunk(
    rows: Tensor, center: Tensor | None, radius: Tensor, low: Tensor, high: Tensor, kind: int
) -> Tensor:
    origin = torch.zeros_like(rows) if center is None else center
    held = torch.clamp(rows, low, high)
    inside = (project(held, center, radius, kind) == held).all(1, keepdim=True)
    fixed = inside | (held == torch.clamp(origin, low, high))  # all of its way is at a bound
    while True:
        free = torch.where(fixed, origin, rows)
        rest = _rest(torch.where(fixed, held, origin), center, radius, kind)
        nearest = torch.where(fixed, held, project(free, center, rest, kind))
        held = torch.clamp(nearest, low, high)
        up, down = held > nearest, held < nearest
        if not bool((up | down).any()):
            return torch.where(held.isnan().any(1, keepdim=True), torch.nan, held)
        # Where the box makes the way longer than it may be, the others have to be nearer to the
        # center: it holds for sure what it moved away from there; else what it moved there.
        away = (up & (held > origin)) | (down & (held < origin))
        long = project(held, center, radius, kind) != held if bool(away.any()) else away
        sure = torch.where(long.any(1, keepdim=True), away, (up | down) & ~away)
        fixed = fixed | torch.where(sure.any(1, keepdim=True), sure, up | down)


def _rest(held: Tensor, center: Tensor | None, radius: Tensor, kind: int) -> Tensor:
    """What the way to a point leaves of the radius, (N, 1), never too much."""
    way, lost = fallback.offset_of(held, center)
    unit = fallback.power_of_two(radius)
    if kind == L1:
        whole, whole_lost = radius, torch.zeros_like(radius)
        used, used_lost = fallback.exact_total(way.abs(), torch.where(way < 0, -lost, lost))
    else:
        whole, whole_lost = fallback.square(radius * unit)
        used, used_lost = fallback.exact_squares(way * unit, lost * unit)
    rest, rest_lost = fallback.two_sum(whole, -used)
    rest = (rest + (rest_lost + (whole_lost - used_lost))).clamp(min=0.0)
    rest = rest if kind == L1 else fallback.sqrt(rest) / unit
    return torch.where((used == 0) | radius.isinf(), radius, rest * SMALLER)


def _fake(rows: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(rows, memory_format=torch.contiguous_format)


_operator = operator(
    "ball_in_box(Tensor rows, Tensor? center, Tensor radius, Tensor low, Tensor high, int kind)"
    " -> Tensor",
    _nearest,
    _fake,
)
