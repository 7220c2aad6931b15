"""Exact selection of the k largest magnitudes of every row: one function, and its operator."""

from typing import Any

import torch
from torch import Tensor

from ..data.plain import is_plain
from . import select_numpy
from .bits import BITS, INF


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
    if isinstance(k, int) and not 0 <= k <= rows.shape[1]:
        raise ValueError(f"`k` must satisfy 0 <= k <= {rows.shape[1]}  Got: {k}")
    if is_plain((rows, k, out)) and rows.is_cpu and not rows.is_neg():
        if out is None:
            out = torch.empty_like(rows, memory_format=torch.contiguous_format)
        select_numpy.keep_rows(rows.detach(), k, out.detach())
        return out
    if isinstance(k, int):
        k = torch.full((), k, dtype=torch.int64, device=rows.device)
    kept = torch.where(torch.ops.rai_chain.keep_mask(rows, k), rows, 0)
    return kept if out is None else out.copy_(kept)


def keep_mask_reference(rows: Tensor, k: Tensor) -> Tensor:
    """The same mask in plain torch, without a read on the host: other devices, and the tests."""
    n, size = rows.shape
    bits = rows.contiguous().view(BITS[rows.dtype])
    magnitude = (bits & torch.iinfo(bits.dtype).max).clamp(max=INF[rows.dtype] + 1)
    order = magnitude.sort(dim=1, descending=True, stable=True).indices
    ranked = torch.arange(size, device=rows.device) < k.expand(n)[:, None]
    return torch.zeros_like(rows, dtype=torch.bool).scatter(1, order, ranked)


def _keep_mask_fake(rows: Tensor, k: Tensor) -> Tensor:
    return torch.empty(rows.shape, dtype=torch.bool, device=rows.device)


def _keep_mask_vmap(
    info: Any, in_dims: tuple[int | None, int | None], rows: Tensor, k: Tensor
) -> tuple[Tensor, int]:
    size = info.batch_size
    rows_dim, k_dim = in_dims
    rows = rows.expand(size, *rows.shape) if rows_dim is None else rows.movedim(rows_dim, 0)
    n = rows.shape[1]
    k = k[None] if k_dim is None else k.movedim(k_dim, 0)
    k = k.reshape(k.shape[0], -1).expand(size, n)
    mask = torch.ops.rai_chain.keep_mask(rows.flatten(0, 1), k.flatten())
    return mask.view(rows.shape), 0


_library: Any = torch.library.Library("rai_chain", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("keep_mask(Tensor rows, Tensor k) -> Tensor")
_library.impl("keep_mask", keep_mask_reference, "CompositeExplicitAutograd")
_library.impl("keep_mask", select_numpy.keep_mask, "CPU")
torch.library.register_fake("rai_chain::keep_mask", _keep_mask_fake, lib=_library)
torch.library.register_vmap("rai_chain::keep_mask", _keep_mask_vmap, lib=_library)
