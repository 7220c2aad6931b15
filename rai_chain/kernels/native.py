"""The kernels of native.cpp through ctypes, where they were built."""

import ctypes
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
_LEVELS = ("plain", "avx2", "avx512")
_INT, _LONG, _POINTER = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
_SIGNATURES = {
    "set_level": (_INT,),
    "select_rows": (_INT, *[_POINTER] * 3, _LONG, _LONG, _POINTER, _LONG, _INT),
    "project_rows": (_INT, *[_POINTER] * 3, _LONG, _LONG, _INT, _POINTER, _LONG, _INT),
    "norm_rows": (_INT, _POINTER, _POINTER, _LONG, _LONG, _INT, _INT),
    "rescale_rows": (_INT, *[_POINTER] * 2, _LONG, _LONG, *[_POINTER] * 2, _INT),
    "clip": (_INT, *[_POINTER] * 3, _LONG, _POINTER, _INT),
    "sign": (_INT, *[_POINTER] * 2, _LONG, _INT),
}


def _load() -> Any:
    """The library at its level, or None: not built, built for another machine, or switched off."""
    wanted = os.environ.get("RAI_CHAIN_KERNELS", "")
    if wanted not in ("", "off", *_LEVELS):
        raise ValueError(
            f"`RAI_CHAIN_KERNELS` must be one of off, {', '.join(_LEVELS)}  Got: {wanted}"
        )
    try:
        loaded: Any = ctypes.CDLL(str(Path(__file__).with_name("_native.so")))
        for name, types in _SIGNATURES.items():
            getattr(loaded, name).argtypes = types
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
    rows, target = _dense(rows), _target(rows, out)
    _select(rows, k, target.data_ptr(), None)
    return _written(target, out)


def keep_mask(rows: Tensor, k: Tensor) -> Tensor:
    """Where these are."""
    mask = torch.empty(rows.shape, dtype=torch.bool)
    _select(_dense(rows), k, None, mask.data_ptr())
    return mask


def _select(rows: Tensor, k: int | Tensor, target: int | None, mask: int | None) -> None:
    n, size = rows.shape
    each = k.expand(n).contiguous() if isinstance(k, Tensor) else None
    keeps, keep = (None, k) if each is None else (each.data_ptr(), 0)
    _call("select_rows", rows, target, mask, n, size, keeps, keep)


def project(
    rows: Tensor, center: Tensor | None, radius: Tensor, kind: int, out: Tensor | None = None
) -> Tensor:
    """As `fallback.project`; the radius is (N, 1) float64."""
    rows, target = _dense(rows), _target(rows, out)
    center = None if center is None else _dense(center)
    at = None if center is None else center.data_ptr()
    radius, step = (radius, 0) if radius.stride(0) == 0 else (radius.contiguous(), 1)
    _call("project_rows", rows, at, target.data_ptr(), *rows.shape, kind, radius.data_ptr(), step)
    return _written(target, out)


def norm(rows: Tensor, p: float) -> Tensor:
    """As `fallback.norm`, for p in 1, 2 and inf."""
    result = torch.empty((rows.shape[0], 1), dtype=torch.float64)
    order = 0 if p == torch.inf else int(p)
    _call("norm_rows", _dense(rows), result.data_ptr(), *rows.shape, order)
    return result


def rescale(rows: Tensor, factor: Tensor, divisor: Tensor | None, out: Tensor | None) -> Tensor:
    """``rows * factor``, or ``rows / divisor * factor``; both are (N, 1) float64."""
    rows, target = _dense(rows), _target(rows, out)
    factor = factor.contiguous()
    divisor = None if divisor is None else divisor.contiguous()
    over = None if divisor is None else divisor.data_ptr()
    _call("rescale_rows", rows, target.data_ptr(), *rows.shape, over, factor.data_ptr())
    return _written(target, out)


def clip(x: Tensor, center: Tensor, radius: Tensor, out: Tensor | None) -> Tensor:
    """Each element within a radius, () float64, of that of the center."""
    x, center, target = _dense(x), _dense(center.expand(x.shape)), _target(x, out)
    _call("clip", x, center.data_ptr(), target.data_ptr(), x.numel(), radius.data_ptr())
    return _written(target, out)


def sign(x: Tensor, out: Tensor | None) -> Tensor:
    """-1, 0 or 1; NaN stays."""
    x, target = _dense(x), _target(x, out)
    _call("sign", x, target.data_ptr(), x.numel())
    return _written(target, out)


def _dense(tensor: Tensor) -> Tensor:
    return tensor.resolve_neg().contiguous()


def _target(x: Tensor, out: Tensor | None) -> Tensor:
    """Where to write: `out` itself where its memory is simple."""
    if out is not None and out.is_contiguous() and not out.is_neg() and out.dtype == x.dtype:
        return out.detach()
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _written(target: Tensor, out: Tensor | None) -> Tensor:
    if out is not None and target.data_ptr() != out.data_ptr():
        return out.copy_(target)
    return target if out is None else out


def _call(name: str, tensor: Tensor, *args: Any) -> None:
    function = getattr(library, name)
    threads = torch.get_num_threads()
    if function(_DTYPES[tensor.dtype], tensor.data_ptr(), *args, threads):
        raise MemoryError(f"No memory for {name} of a tensor of shape {tuple(tensor.shape)}")
