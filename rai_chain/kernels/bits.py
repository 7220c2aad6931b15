"""Floats as bit patterns: without their sign, integers in the order of magnitudes, NaN last."""

import math
import threading
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
Dtype = np.dtype[Any]

BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}
INF = {t: int(torch.tensor(torch.inf, dtype=t).view(b)) for t, b in BITS.items()}


class _Scratch(threading.local):
    """Buffers of this thread, by name: fresh pages would cost more than the selection."""

    def __init__(self) -> None:
        self.buffers: dict[str, Array] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if name not in self.buffers or self.buffers[name].size < size:
            self.buffers.pop(name, None)  # before the larger one is there
            self.buffers[name] = np.empty(size, np.uint8)
        array: Array = self.buffers[name][:size].view(dtype).reshape(shape)
        return array


scratch = _Scratch()


def bits_of(tensor: Tensor) -> Array:
    array: Array = tensor.view(BITS[tensor.dtype]).numpy()
    return array


def float_of(bits: int, dtype: torch.dtype) -> float:
    return float(torch.tensor(bits, dtype=BITS[dtype]).view(dtype))


def largest(dtype: Dtype) -> int:
    return (1 << 8 * dtype.itemsize - 1) - 1


def magnitudes(bits: Array) -> Array:
    """In a buffer that the next call reuses."""
    buffer = scratch.get("magnitudes", bits.shape, bits.dtype)
    np.bitwise_and(bits, largest(bits.dtype), out=buffer)
    return buffer
