"""Random numbers that are a pure function of tensors: same key, same numbers.

A key is a 0-dim int64 tensor, which a link asks for by the name `key`. Everything here is integer
arithmetic on tensors, so it means the same eagerly, under `vmap`, in a compiled graph and on
every device.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from .hyper import Range
from .messages import told

_SHARE = Range(0.0, 1.0)
_ODD = -0x61C8864680B583EB  # 2**64 over the golden ratio, as a signed integer


def stream(seed: Tensor, step: Tensor, name: str) -> Tensor:
    """The key of one link at one step; `leaf_key` makes one for each tensor of it.

    Args:
        seed: 0-dim int64.
        step: 0-dim int64.
        name: the link's name in its pipeline, with the wrappers around it.
    """
    return mix(mix(mix(seed) + _place(name)) + step)


def leaf_key(key: Tensor, leaf: int) -> Tensor:
    """The key of one tensor, of the key of the link."""
    return mix(key + leaf)


@contextmanager
def drawn_at(places: Callable[[tuple[int, ...]], Tensor | None]) -> Iterator[None]:
    """Draw for some of a tensor's elements only: a draw is a function of the place of each.

    Args:
        places: shape of a draw -> the place of each element among all of that shape, or None.
    """
    token = _places.set(places)
    try:
        yield
    finally:
        _places.reset(token)


_places: ContextVar[Callable[[tuple[int, ...]], Tensor | None] | None] = ContextVar(
    "rai_chain_places", default=None
)


def _place(name: str) -> int:
    """A number for a name: a polynomial of its characters, modulo a prime."""
    number = 0
    for character in name:
        number = (number * 257 + ord(character)) % 0x7FFFFFFFFFE7
    return number


def uniform(key: Tensor, shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float32) -> Tensor:
    """Values in [0, 1), uniform on the multiples of 2**-24, in float64 of 2**-53.

    Args:
        key: 0-dim int64.
        shape: of the result.
        dtype: float32 or float64.

    Returns:
        A tensor on the device of `key`.

    Raises:
        TypeError: `key` is no 0-dim int64 tensor, or `shape` no tuple of ints.
        ValueError: another dtype.

    Example:
        >>> uniform(torch.tensor(7), (3,))
        tensor([0.3898, 0.0168, 0.9008])

    Source: SplitMix64 (Steele et al. 2014, "Fast splittable pseudorandom number generators").
    """
    check_key(key)
    whole = isinstance(shape, (tuple, list)) and all(isinstance(n, int) for n in shape)
    if not whole and not torch.compiler.is_compiling():
        raise TypeError(f"`shape` must be a tuple of ints  Got: {shape!r}")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"`dtype` must be torch.float32 or torch.float64  Got: {dtype}")
    bits = 24 if dtype == torch.float32 else 53
    find = None if torch.compiler.is_compiling() else _places.get()
    count = None if find is None or not shape else find(shape)
    # `& -1` changes nothing; without it inductor multiplies places itself, beyond 64 bits.
    if count is None:
        count = torch.arange(math.prod(shape), device=key.device).reshape(shape) & -1
    return _shift(mix(key + count * _ODD), 64 - bits).to(dtype) * 2.0**-bits


def normal(key: Tensor, shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal values.

    Args:
        key: 0-dim int64.
        shape: of the result.
        dtype: float32 or float64.

    Returns:
        A tensor on the device of `key`.

    Raises:
        TypeError, ValueError: as `uniform`.

    Example:
        >>> normal(torch.tensor(7), (3,))
        tensor([ 0.5541, -0.1531, -1.2171])

    Source: the transform of two uniform values (Box and Muller 1958).
    """
    radius = torch.sqrt(-2.0 * torch.log(1.0 - uniform(key, shape, dtype)))
    return radius * torch.cos(2.0 * math.pi * uniform(mix(key) + 1, shape, dtype))


def bernoulli(key: Tensor, p: float | Tensor, shape: tuple[int, ...] = ()) -> Tensor:
    """True with probability `p`, to a multiple of 2**-24.

    Args:
        key: 0-dim int64.
        p: probability, 0 <= p <= 1; a number, or a tensor that broadcasts to `shape`.
        shape: of the result.

    Returns:
        A bool tensor on the device of `key`.

    Raises:
        TypeError: as `uniform`, or `p` is neither a number nor a tensor.
        ValueError: a number outside [0, 1].

    Example:
        >>> bernoulli(torch.tensor(7), 0.5, (3,))
        tensor([ True,  True, False])

    Source: its definition.
    """
    _SHARE.check("p", p)
    return uniform(key, shape) < p


def mix(x: Tensor) -> Tensor:
    """A bijection of the 64-bit integers that scatters them (SplitMix64)."""
    x = x + _ODD
    x = (x ^ _shift(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shift(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def check_key(key: Any) -> None:
    """Refuse a key that is none."""
    if not isinstance(key, Tensor) or key.dtype != torch.int64 or key.ndim:
        raise TypeError(f"`key` must be a 0-dim int64 tensor  Got: {told(key)}")


def check_seed(seed: Any) -> None:
    """Refuse a seed that is no whole number of 64 bits, nor a tensor of one."""
    if isinstance(seed, Tensor):
        fits = seed.dtype in (torch.int64, torch.int32) and seed.ndim == 0
    else:
        fits = isinstance(seed, int) and not isinstance(seed, bool)
        if fits and not -(2**63) <= seed < 2**63:
            raise ValueError(f"`seed` must satisfy -2**63 <= seed < 2**63  Got: {seed}")
    if not fits:
        raise TypeError(f"`seed` must be an int or a 0-dim int64 tensor  Got: {told(seed)}")
