"""The nearest points of balls and the simplex, for rows: value, rounding and derivative.

Whether a row is inside is decided in twice the precision of float64. Inside it keeps its bits;
outside it lands on the boundary, each element rounded towards the center, so that no row ends
outside in exact arithmetic. An infinite element means the limit: as it grows, the nearest point
comes to rest, and several grow equally. NaN makes its row NaN.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..data.hyper import placed
from ..data.plain import is_plain
from . import fallback, native
from .norms import row_norm
from .operators import operator

SIMPLEX, L1, L2 = range(3)


def simplex(rows: Tensor, scale: Any, out: Tensor | None = None) -> Tensor:
    """The nearest row whose elements are >= 0 and sum to `scale`, (N, D).

    Args:
        rows: (N, D), any floating dtype.
        scale: a number or a tensor of shape (), (N,) or (N, 1), >= 0.
        out: where to write; may be `rows` itself. None: a new tensor.

    Source: Duchi et al., 2008; Michelot, 1986.
    """
    scale = column(scale, rows)
    if is_plain((rows, scale, out)):
        return project(rows.detach(), None, scale, SIMPLEX, out)
    value: Tensor = _operator(rows.detach(), None, scale.detach(), SIMPLEX)
    if is_plain((rows, scale), subclasses=True):
        return value
    x, active = rows.double(), value > 0
    shift = (torch.where(active, x, 0.0).sum(1, True) - scale) / count(active)
    return with_slope(value, torch.where(active, x - shift, 0.0))


def l1_ball(rows: Tensor, radius: Any, center: Any = None, out: Tensor | None = None) -> Tensor:
    """The nearest row within L1 distance `radius` of the center, (N, D).

    Args:
        rows: (N, D), any floating dtype.
        radius: a number or a tensor of shape (), (N,) or (N, 1), >= 0.
        center: a number, a tensor that broadcasts to (N, D), or None for the origin.
        out: where to write; may be `rows` itself. None: a new tensor.

    Source: Duchi et al., 2008; Michelot, 1986.
    """
    radius, center = column(radius, rows), _center(center, rows)
    if is_plain((rows, radius, center, out)):
        return project(rows.detach(), center, radius, L1, out)
    value = _nearest(rows, center, radius, L1)
    if is_plain((rows, radius, center), subclasses=True):
        return value
    outside, origin = _seen(value, rows, center)
    offset, active = rows.double() - origin, (value != origin) & outside
    size = offset.abs()
    shift = (torch.where(active, size, 0.0).sum(1, True) - radius) / count(active)
    moved = origin + torch.where(active, offset.detach().sign() * (size - shift), 0.0)
    return torch.where(outside, with_slope(value, moved), rows)


def l2_ball(rows: Tensor, radius: Any, center: Any = None, out: Tensor | None = None) -> Tensor:
    """The nearest row within Euclidean distance `radius` of the center, (N, D).

    Args: as in `l1_ball`.
    """
    radius, center = column(radius, rows), _center(center, rows)
    if is_plain((rows, radius, center, out)):
        return project(rows.detach(), center, radius, L2, out)
    value = _nearest(rows, center, radius, L2)
    if is_plain((rows, radius, center), subclasses=True):
        return value
    outside, origin = _seen(value, rows, center)
    offset = torch.where(outside, rows.double() - origin, 1.0)
    moved = origin + offset / row_norm(offset, 2) * torch.where(outside, radius, 1.0)
    return torch.where(outside, with_slope(value, moved), rows)


def linf_ball(x: Tensor, radius: Any, center: Any = None, out: Tensor | None = None) -> Tensor:
    """Each element within `radius` of the center: the nearest such number of the dtype.

    Args:
        x: any shape, any floating dtype.
        radius: a number or a tensor that broadcasts to x, >= 0.
        center: the same, or None for the origin.
        out: where to write; may be `x` itself. None: a new tensor.
    """
    if center is None and isinstance(radius, (int, float)) and is_plain((x, out)):
        bound = _number_inside(float(radius), x.dtype)
        return torch.clamp(x, -bound, bound, out=out)
    center = None if center is None else placed(center, x.device, x.dtype)
    radius = placed(radius, x.device)
    plain = is_plain((x, radius, center, out)) and native.takes(x)
    if plain and center is not None and radius.ndim == 0:
        return native.clip(x, center, radius, out)
    low, high = _bound(center, -radius, x.dtype), _bound(center, radius, x.dtype)
    return torch.clamp(x, low, high, out=out)


@lru_cache(maxsize=256)
def _number_inside(radius: float, dtype: torch.dtype) -> float:
    """The largest number of a dtype up to a radius."""
    return float(
        fallback.inwards(None, torch.tensor(radius, dtype=torch.float64, device="cpu"), dtype)
    )


def _bound(center: Tensor | None, radius: Tensor, dtype: torch.dtype) -> Tensor:
    value = fallback.inwards(None if center is None else center.detach(), radius.detach(), dtype)
    if is_plain((center, radius)):
        return value
    return with_slope(value, radius if center is None else center.double() + radius)


# ------------------------------------------------------------------ their arithmetic


def column(radius: Any, rows: Tensor) -> Tensor:
    """A radius for each row, (N, 1) float64."""
    return placed(radius, rows.device).reshape(-1, 1).expand(rows.shape[0], 1)


def as_rows(value: Any, rows: Tensor) -> Tensor:
    """A number for each element, (N, D) of the rows' dtype."""
    return placed(value, rows.device, rows.dtype).expand(rows.shape)


def _center(center: Any, rows: Tensor) -> Tensor | None:
    return None if center is None else as_rows(center, rows)


def _nearest(rows: Tensor, center: Tensor | None, radius: Tensor, kind: int) -> Tensor:
    center = None if center is None else center.detach()
    value: Tensor = _operator(rows.detach(), center, radius.detach(), kind)
    return value


def _seen(value: Tensor, rows: Tensor, center: Tensor | None) -> tuple[Tensor, Tensor]:
    """Which rows were moved, and the center in float64."""
    origin = rows.new_zeros((), dtype=torch.float64) if center is None else center.double()
    return (value != rows).any(1, keepdim=True), origin


def count(active: Tensor) -> Tensor:
    return active.sum(1, keepdim=True).clamp(min=1)


def with_slope(value: Tensor, formula: Tensor) -> Tensor:
    """The value of the one with the derivative of the other."""
    slope = formula.detach() - formula  # taken away, so that -0.0 stays
    return value - torch.where(slope == 0.0, slope, 0.0).to(value.dtype)


def project(
    rows: Tensor, center: Tensor | None, radius: Tensor, kind: int, out: Tensor | None = None
) -> Tensor:
    if not rows.numel():
        return rows.clone() if out is None else out
    if native.takes(rows):
        return native.project(rows, center, radius, kind, out)
    result = fallback.in_chunks(fallback.project, rows, center, radius, kind)
    return result if out is None else out.copy_(result)


def _fake(rows: Tensor, center: Tensor | None, radius: Tensor, kind: int) -> Tensor:
    return torch.empty_like(rows, memory_format=torch.contiguous_format)


_operator = operator(
    "project(Tensor rows, Tensor? center, Tensor radius, int kind) -> Tensor", project, _fake
)
