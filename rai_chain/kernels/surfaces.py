"""The nearest points of spheres, planes and groups of rows: value and derivative.

They are computed in float64. A row that is there already, as far as its dtype can tell, keeps its
bits, so that projecting twice is projecting once.
"""

from typing import Any

import torch
from torch import Tensor

from ..data.hyper import placed
from . import fallback, sets
from .norms import row_norm
from .sets import column, with_slope

FINE = torch.finfo(torch.float64).eps


def l2_sphere(rows: Tensor, radius: Any, center: Any = None) -> Tensor:
    """The nearest row at Euclidean distance `radius` of the center; of the center, one of them.

    Args:
        rows: (N, D), any floating dtype.
        radius: a number or a tensor of shape (), (N,) or (N, 1), >= 0.
        center: a number, a tensor that broadcasts to (N, D), or None for the origin.
    """
    radius, origin = column(radius, rows), _origin(center, rows)
    offset = _direction(rows.double() - origin)
    none = row_norm(offset, 2) == 0
    first = torch.arange(rows.shape[1], device=rows.device) == 0
    offset = torch.where(none, first.double(), offset)
    moved = origin + offset / row_norm(offset, 2) * radius
    gap = row_norm(rows.double() - origin, 2) - radius
    return _settled(rows, moved, gap, row_norm(rows, 2))


def l1_sphere(rows: Tensor, radius: Any, center: Any = None) -> Tensor:
    """The nearest row at L1 distance `radius` of the center; an element at it moves up, if at all.

    Args: as in `l2_sphere`.
    """
    radius, origin = column(radius, rows), _origin(center, rows)
    offset = rows.double() - origin
    sign = torch.where(offset < 0, -1.0, 1.0)
    moved = origin + sign * sets.simplex(sign * offset, radius)
    return _settled(rows, moved, row_norm(offset, 1) - radius, row_norm(rows, 1))


def hyperplane(rows: Tensor, normal: Any, offset: Any, *, half: bool = False) -> Tensor:
    """The nearest row whose product with the normal is `offset`, or no more than that.

    Args:
        rows: (N, D), any floating dtype.
        normal: a number, or a tensor that broadcasts to (N, D); where it is 0 nothing moves.
        offset: a number or a tensor of shape (), (N,) or (N, 1).
        half: whether less than `offset` is as good.
    """
    normal = placed(normal, rows.device).expand(rows.shape)
    size = row_norm(normal, 2)
    size = torch.where(size == 0, 1.0, size)
    unit, level = normal / size, column(offset, rows) / size

    def along(x: Tensor) -> Tensor:
        return torch.where(unit == 0, 0.0, unit * x)

    def gap_of(x: Tensor) -> Tensor:
        return level - along(x).sum(1, keepdim=True)

    gap = gap_of(rows.double())
    gap = gap.clamp(max=0.0) if half else gap
    gap = torch.where((unit == 0).all(1, keepdim=True), 0.0, gap)
    gap = torch.where(gap.isinf(), torch.nan, gap)
    moved = rows.double() + unit * gap
    lost = torch.where(gap == 0, 0.0, unit * gap_of(moved)).detach()  # in a far row
    return _settled(rows, moved + lost, gap, row_norm(along(rows.double()), 1))


def affine(rows: Tensor, matrix: Tensor, offset: Tensor, inverse: Tensor) -> Tensor:
    """The nearest row x for which ``matrix @ x`` is `offset`, in least squares.

    Args:
        rows: (N, D), any floating dtype.
        matrix: (M, D), float64.
        offset: (M,), float64.
        inverse: (D, M), the pseudo-inverse of the matrix.
    """
    matrix, offset, inverse = (x.to(rows.device) for x in (matrix, offset, inverse))

    def way_from(x: Tensor) -> Tensor:
        return (x @ matrix.mT - offset) @ inverse.mT

    way = way_from(rows.double())
    way = torch.where(way.isfinite().all(1, keepdim=True), way, torch.nan)
    moved = rows.double() - way
    lost = way_from(moved).detach()
    size = rows.double().abs() @ matrix.abs().mT @ inverse.abs().mT
    return _settled(rows, moved - lost, row_norm(way, 2), row_norm(size, 2))


def group_l1_ball(rows: Tensor, radius: Any) -> Tensor:
    """The nearest rows whose Euclidean norms have a sum of at most `radius`, (N, D).

    Args:
        rows: (N, D), any floating dtype.
        radius: a number or a tensor of one element, >= 0.
    """
    norms = row_norm(rows, 2)
    kept = sets.l1_ball(norms.mT, radius).mT
    ways = _direction(rows.double())
    size = row_norm(ways, 2)
    moved = ways * (kept / torch.where(size == 0, 1.0, size))
    value = fallback.inwards(None, moved.detach() * fallback.INWARDS[rows.dtype], rows.dtype)
    return torch.where((kept == norms).all(), rows, with_slope(value, moved))


# ------------------------------------------------------------------ their arithmetic


def _origin(center: Any, rows: Tensor) -> Tensor:
    return placed(0.0 if center is None else center, rows.device)


def _direction(ways: Tensor) -> Tensor:
    """A way, or its limit: infinite elements are equally large, the rest is nothing."""
    ends = ways.isinf()
    return torch.where(ends.any(1, keepdim=True), torch.where(ends, ways.sign(), 0.0), ways)


def _settled(rows: Tensor, moved: Tensor, gap: Tensor, size: Tensor) -> Tensor:
    """What was moved, but for rows that are there up to what rounding makes of their size."""
    rounding = 2 * torch.finfo(rows.dtype).eps + rows.shape[1] ** 0.5 * FINE
    there = gap.detach().abs() < rounding * size.detach()
    return with_slope(torch.where(there, rows, moved.to(rows.dtype)).detach(), moved)
