"""The kernels of native.cpp through ctypes, where they were built."""

import ctypes
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
_LEVELS = ("plain", "avx2", "avx512")
_KERNELS = ("select", "project", "norm", "rescale", "clip", "sign", "histogram")
_INT, _LONG, _POINTER = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p


def _load() -> Any:
    """The library at its level, or None: not built, built for other code or machines, or off."""
    wanted = os.environ.get("RAI_CHAIN_KERNELS", "")
    if wanted not in ("", "off", *_LEVELS):
        raise ValueError(
            f"`RAI_CHAIN_KERNELS` must be one of off, {', '.join(_LEVELS)}  Got: {wanted}"
        )
    try:
        loaded: Any = ctypes.CDLL(str(Path(__file__).with_name("_native.so")))
        loaded.run.argtypes = (
            *(_INT, _INT, *[_POINTER] * 4, _LONG, _LONG, _POINTER, _LONG, _LONG, _INT),
        )
        loaded.step.argtypes = (*[_POINTER] * 3, _LONG, _POINTER, _LONG, _INT)
        if loaded.kernels() != len(_KERNELS):
            return None
    except (OSError, AttributeError):
        return None
    loaded.set_level(_LEVELS.index(wanted) if wanted in _LEVELS else len(_LEVELS))
    return None if wanted == "off" else loaded


library = _load()


def backend() -> str:
    """What runs: avx512, avx2, plain (native code without either), or fallback (none was built)."""
    return "fallback" if library is None else _LEVELS[library.set_level(-1)]


def takes(tensor: Tensor) -> bool:
    """Whether there is native code for a plain tensor."""
    return library is not None and tensor.is_cpu and tensor.dtype in _DTYPES


def keep_largest(rows: Tensor, k: int | Tensor, out: Tensor | None) -> Tensor:
    """Write the rows with all but the k largest magnitudes of each zeroed."""
    target = target_of(rows, out)
    if isinstance(k, Tensor):
        _run("select", rows, y=target, each=k.long().expand(rows.shape[0]))
    else:
        _run("select", rows, y=target, option=k)
    return written(target, out)


def keep_mask(rows: Tensor, k: Tensor) -> Tensor:
    """Where these are; k is (N,)."""
    mask = rows.new_empty(rows.shape, dtype=torch.bool)
    _run("select", rows, mask=mask, each=k.long())
    return mask


def histogram(rows: Tensor, low: Tensor, high: Tensor, shift: Tensor, bins: int) -> Tensor:
    """As `fallback.histogram`."""
    counts = rows.new_zeros((rows.shape[0], bins + 2), dtype=torch.int64)
    _run("histogram", rows, y=counts, each=torch.stack([low, high - 1, shift], 1), option=bins)
    return counts


def project(
    rows: Tensor, center: Tensor | None, radius: Tensor, kind: int, out: Tensor | None = None
) -> Tensor:
    """As `fallback.project`; the radius is (N, 1) float64."""
    target = target_of(rows, out)
    _run("project", rows, center, target, each=radius, option=kind)
    return written(target, out)


def norm(rows: Tensor, p: float) -> Tensor:
    """As `fallback.norm`, for p in 1, 2 and inf."""
    result = rows.new_empty((rows.shape[0], 1), dtype=torch.float64)
    _run("norm", rows, y=result, option=0 if p == torch.inf else int(p))
    return result


def rescale(rows: Tensor, factor: Tensor, divisor: Tensor | None, out: Tensor | None) -> Tensor:
    """``rows * factor``, or ``rows / divisor * factor``; both are (N, 1) float64."""
    target = target_of(rows, out)
    _run("rescale", rows, divisor, target, each=factor.contiguous())
    return written(target, out)


def clip(x: Tensor, center: Tensor, radius: Tensor, out: Tensor | None) -> Tensor:
    """Each element within a radius, () float64, of that of the center."""
    target = target_of(x, out)
    _run("clip", x.reshape(-1, 1), center.expand(x.shape), target, each=radius)
    return written(target, out)


def sign(x: Tensor, out: Tensor | None) -> Tensor:
    """-1, 0 or 1; NaN stays."""
    target = target_of(x, out)
    _run("sign", x.reshape(-1, 1), y=target)
    return written(target, out)


def target_of(x: Tensor, out: Tensor | None) -> Tensor:
    """Where to write: `out` itself where its memory is simple."""
    alike = out is not None and out.dtype == x.dtype and out.shape == x.shape
    if alike and out is not None and out.is_contiguous() and not out.is_neg():
        return out.detach()
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def written(target: Tensor, out: Tensor | None) -> Tensor:
    if out is not None and target.data_ptr() != out.data_ptr():
        return out.copy_(target)
    return target if out is None else out


def _run(
    name: str,
    x: Tensor,
    center: Tensor | None = None,
    y: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    each: Tensor | None = None,
    option: int = 0,
) -> None:
    """Call a kernel; `each` has a number for each row, or one."""
    x = x.resolve_neg().contiguous()
    center = None if center is None else center.resolve_neg().contiguous()
    step = 0 if each is None or each.ndim == 0 or each.stride(0) == 0 else 1
    each = each.contiguous() if step and each is not None else each
    memory = (None if t is None else t.data_ptr() for t in (x, center, y, mask))
    at = None if each is None else each.data_ptr()
    n, size = x.shape
    threads = torch.get_num_threads()
    kernel, dtype = _KERNELS.index(name), _DTYPES[x.dtype]
    if library.run(kernel, dtype, *memory, n, size, at, step, option, threads):
        raise MemoryError(f"No memory for the kernel {name} of a tensor of shape {(n, size)}")
