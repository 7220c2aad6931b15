"""Exact selection of the k largest magnitudes of every row: one function, and its operator."""

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ..data.hyper import placed
from ..data.plain import is_plain
from . import fallback, native
from .operators import operator


def keep_largest(rows: Tensor, k: int | Tensor, *, out: Tensor | None = None) -> Tensor:
    """Keep the k elements of largest magnitude of every row, zero the rest.

    Among equal magnitudes the lowest index is kept. NaN counts as largest. A kept element keeps
    its bits.

    Args:
        rows: (N, D), float64, float32, bfloat16 or float16, any strides.
        k: How many to keep, 0 <= k <= D: a number, or an int64 tensor of shape () or (N,).
        out: Where to write, (N, D); may be `rows` itself. None: a new tensor.

    Example:
        >>> keep_largest(torch.tensor([[1.0, -3.0, 2.0]]), 2)
        tensor([[ 0., -3.,  2.]])
    """
    n, size = rows.shape
    if isinstance(k, int) and not 0 <= k <= size:
        raise ValueError(f"`k` must satisfy 0 <= k <= {size}  Got: {k}")
    plain = is_plain((rows, k, out))
    kernels = _kernels(rows) if plain else None
    if kernels is not None:
        kept: Tensor = kernels.keep_largest(rows.detach(), k, out)
        return kept
    mask: Tensor = _operator(rows.detach(), placed(k, rows.device, torch.int64).expand(n))
    if plain:
        return _masked(rows.detach(), mask, out)
    kept = torch.where(mask, rows, 0)
    return kept if out is None else out.copy_(kept)


def histogram(rows: Tensor, low: Tensor, high: Tensor, shift: Tensor, bins: int) -> Tensor:
    """How many magnitudes of rows, as integers, are in each bin, see `fallback.histogram`."""
    backend: Any = native if native.takes(rows) else fallback
    counts: Tensor = backend.histogram(rows, low, high, shift, bins)
    return counts


def _masked(rows: Tensor, mask: Tensor, out: Tensor | None) -> Tensor:
    """As `where` does, which is slow on a random mask."""
    target, bits = native.target_of(rows, out), fallback.BITS[rows.dtype]
    torch.mul(rows.resolve_neg().contiguous().view(bits), mask, out=target.view(bits))
    return native.written(target, out)


def _keep_mask(rows: Tensor, k: Tensor) -> Tensor:
    mask: Tensor = (_kernels(rows) or fallback).keep_mask(rows, k)
    return mask


def _kernels(rows: Tensor) -> Any:
    """The module with code for such rows, or None."""
    if native.takes(rows):
        return native
    made = _triton() if rows.is_cuda else None
    return made if made is not None and made.takes(rows) else None


@cache
def _triton() -> Any:
    """Triton's kernels, where it is installed; it is not imported before a GPU is used."""
    return import_module(".triton_rows", __package__) if find_spec("triton") else None


def _fake(rows: Tensor, k: Tensor) -> Tensor:
    return torch.empty(rows.shape, dtype=torch.bool, device=rows.device)


_operator = operator("keep_mask(Tensor rows, Tensor k) -> Tensor", _keep_mask, _fake)
