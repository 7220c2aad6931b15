"""Selection in Triton, for rows on a GPU that one program holds: the bits of the fallback.

Imported where rows on a GPU are first seen and Triton is there, and never without.
"""

import warnings
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..data.hyper import placed
from . import native
from .fallback import BITS, INF, keep_mask_by_sorting

LONGEST = 1 << 16  # bytes of a row that one program holds in its registers


@triton.jit  # type: ignore[untyped-decorator]
def _select(  # type: ignore[no-untyped-def]
    x,
    y,
    k,
    size,
    step,
    BLOCK: tl.constexpr,
    DIGITS: tl.constexpr,
    INFINITY: tl.constexpr,
    WIDE: tl.constexpr,
    EACH: tl.constexpr,
    MASK: tl.constexpr,
):
    """One row of x (N, D), as integers, to y; k is a number, or points to one for each row."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    inside = place < size
    bits = tl.load(x + row * size + place, mask=inside, other=0)
    keys = tl.minimum(bits.to(WIDE) & ((1 << DIGITS) - 1), INFINITY + 1)
    keys = tl.where(inside, keys, -1)
    if EACH:
        k = tl.load(k + row * step)
    bound = tl.full((), 0, WIDE)  # the largest that k keys reach, digit by digit
    digit = tl.full((), 1 << (DIGITS - 1), WIDE)
    for _ in range(DIGITS):
        reached = tl.sum((keys >= (bound | digit)).to(tl.int32), 0) >= k
        bound = tl.where(reached, bound | digit, bound)
        digit = digit >> 1
    equal = keys == bound
    left = k - tl.sum((keys > bound).to(tl.int32), 0)
    keep = (keys > bound) | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= left))
    kept = keep.to(tl.int8) if MASK else tl.where(keep, bits, 0)
    tl.store(y + row * size + place, kept, mask=inside)


def takes(rows: Tensor) -> bool:
    """Whether rows, which are on a GPU, fit a program, and Triton is right on that GPU."""
    fits = rows.dtype in BITS and rows.shape[1] * rows.element_size() <= LONGEST
    return fits and _is_right(rows.device, rows.dtype)


def keep_largest(rows: Tensor, k: int | Tensor, out: Tensor | None) -> Tensor:
    """Write the rows with all but the k largest magnitudes of each zeroed."""
    target = native.target_of(rows, out)
    _run(rows, k, target.view(BITS[rows.dtype]), False)
    return native.written(target, out)


def keep_mask(rows: Tensor, k: Tensor) -> Tensor:
    """Where these are; k is (N,)."""
    mask = torch.empty(rows.shape, dtype=torch.bool, device=rows.device)
    _run(rows, k, mask.view(torch.int8), True)
    return mask


def _run(rows: Tensor, k: int | Tensor, target: Tensor, mask: bool) -> None:
    n, size = rows.shape
    if not rows.numel():
        return
    bits = rows.resolve_neg().contiguous().view(BITS[rows.dtype])
    k = placed(k, rows.device, torch.int64).expand(n) if isinstance(k, Tensor) else k
    digits = 8 * bits.element_size() - 1
    block = triton.next_power_of_2(size)
    with torch.cuda.device_of(rows):  # type: ignore[no-untyped-call]
        _select[(n,)](
            bits,
            target,
            k,
            size,
            k.stride(0) if isinstance(k, Tensor) else 0,
            BLOCK=block,
            DIGITS=digits,
            INFINITY=INF[rows.dtype],
            WIDE=tl.int64 if digits > 31 else tl.int32,
            EACH=isinstance(k, Tensor),
            MASK=mask,
            num_warps=max(1, min(16, block // 512)),
            enable_fp_fusion=False,
        )


@cache
def _is_right(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether what Triton makes for a GPU gives the bits of the fallback: tried once."""
    rows = torch.arange(60, device=device).remainder(7).sub(3).to(dtype).view(3, 20).sqrt()
    k = torch.arange(3, device=device) * 9
    try:
        alike: Any = (keep_mask(rows, k) == keep_mask_by_sorting(rows, k)).all()
        if bool(alike):
            return True
        why = "it selects others"
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
    warnings.warn(f"Triton is not used on {device} for {dtype}: {why}", stacklevel=2)
    return False
