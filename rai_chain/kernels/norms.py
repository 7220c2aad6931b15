"""Norms of rows, and rows divided by them, right at every magnitude."""

from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm

from ..data.hyper import placed
from ..data.plain import is_plain
from . import fallback, native
from .operators import operator


def row_norm(rows: Tensor, p: float) -> Tensor:
    """The p-norm of each row, (N, 1) float64: no overflow and no underflow on the way.

    Args:
        rows: (N, D), any floating dtype.
        p: the order, 1 <= p <= inf.

    Example:
        >>> row_norm(torch.tensor([[3e-25, 4e-25]]), 2)
        tensor([[5.0000e-25]], dtype=torch.float64)
    """
    if is_plain((rows,)) or not rows.numel():
        return _norm(rows, p)
    norm: Tensor = _operator(rows.detach(), p)
    if is_plain((rows,), subclasses=True):
        return norm
    # The value is the operator's, the derivative that of n * norm(rows / n), where n is fixed.
    usual = (norm > 0) & norm.isfinite()
    unit = torch.where(usual, rows.double() / torch.where(usual, norm, 1.0), 1.0)
    slope = norm * vector_norm(unit, p, dim=1, keepdim=True)
    return norm + torch.where(usual, slope - slope.detach(), 0.0)


def joint_norm(parts: list[Tensor], p: float = 2.0) -> Tensor:
    """The p-norm of each row, (N, 1) float64, of which each tensor (N, D) has a part.

    Args:
        parts: one at least, of any floating dtypes.
        p: as in `row_norm`.

    Example:
        >>> joint_norm([torch.tensor([[3.0]]), torch.tensor([[4.0]])])
        tensor([[5.]], dtype=torch.float64)
    """
    return row_norm(torch.cat([row_norm(part, p) for part in parts], 1), p)


def rescale(rows: Tensor, divisor: Tensor, factor: Any = 1.0, out: Tensor | None = None) -> Tensor:
    """``rows / divisor * factor``, rounded once.

    Args:
        rows: (N, D), any floating dtype.
        divisor: (N, 1), float64, not 0.
        factor: a number, or a tensor that broadcasts to (N, 1).
        out: where to write, (N, D); may be `rows` itself. None: a new tensor.
    """
    double = rows.dtype == torch.float64
    if double or isinstance(factor, Tensor):
        factor = placed(factor, rows.device).expand(divisor.shape)
    if not double:  # one multiplication is right there
        factor = factor / divisor
    if is_plain((rows, factor, divisor, out)) and native.takes(rows):
        return native.rescale(rows, factor, divisor if double else None, out)
    if double:
        rows = torch.div(rows, divisor, out=out)
    return torch.mul(rows, factor, out=out).to(rows.dtype)


def _norm(rows: Tensor, p: float) -> Tensor:
    if not rows.numel():
        return rows.new_zeros((rows.shape[0], 1), dtype=torch.float64)
    rows = rows.detach()
    if p in (1, 2, torch.inf) and native.takes(rows):
        return native.norm(rows, p)
    return fallback.in_chunks(fallback.norm, rows, p)


def _fake(rows: Tensor, p: float) -> Tensor:
    return torch.empty((rows.shape[0], 1), dtype=torch.float64, device=rows.device)


_operator = operator("norm(Tensor rows, float p) -> Tensor", _norm, _fake)
