"""Random numbers that are a pure function of tensors: same key, same numbers.

A key is a 0-dim int64 tensor. Everything here is integer arithmetic on tensors, so it means
the same eagerly, under `vmap`, in a compiled graph and on every device.
"""

import math

import torch
from torch import Tensor


def fold(seed: Tensor, step: Tensor, leaf: int) -> Tensor:
    """One key for each (seed, step, leaf)."""
    return mix(mix(mix(seed) + step) + leaf)


def uniform(key: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
    """Float32 values in [0, 1), uniform on the multiples of 2**-24."""
    count = torch.arange(math.prod(shape), device=key.device).reshape(shape)
    return ((mix(key + count * _ODD) >> 40) & 0xFFFFFF).to(torch.float32) * 2.0**-24


def normal(key: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Float32 standard normal values, by the Box-Muller transform of two uniform ones."""
    radius = torch.sqrt(-2.0 * torch.log(1.0 - uniform(key, shape)))
    return radius * torch.cos(2.0 * math.pi * uniform(mix(key) + 1, shape))


def mix(x: Tensor) -> Tensor:
    """A bijection of the 64-bit integers that scatters them (SplitMix64; Steele et al. 2014)."""
    x = x + _ODD
    x = (x ^ _shift(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shift(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _shift(x, 31)


_ODD = -0x61C8864680B583EB  # 2**64 over the golden ratio, as a signed integer


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)
