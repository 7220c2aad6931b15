"""What links keep of past gradients: how it starts, how it averages, and what that weighs.

The memory of half-precision leaves is float32, and so is what is computed from it: a square of
300 leaves float16, and a mean of bfloat16 stops moving at 2**-8 of itself.
"""

from typing import Any

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """The tensor in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def zeros(*keys: str, counts: bool = False) -> Any:
    """The state of one leaf: zeros of its shape under each key, and its own count of steps."""

    def start(leaf: Tensor) -> dict[str, Tensor]:
        dtype = torch.promote_types(leaf.dtype, torch.float32)
        count = torch.zeros((), dtype=torch.int64, device=leaf.device)
        made = {key: torch.zeros_like(leaf, dtype=dtype) for key in keys}
        return {**made, "count": count} if counts else made

    return start


def begun(state: dict[str, Tensor], key: str, initial: Any) -> Tensor:
    """What is kept under a key, which begins at a value that only the first step knows."""
    return torch.where(state["count"] > 0, state[key], initial)


def average(old: Tensor, new: Tensor, decay: Any) -> Any:
    """The mean that forgets: `decay` of the old one remains."""
    return decay * old + (1 - decay) * new


def weight(decay: Any, count: Tensor) -> Any:
    """The weight that `count` steps of an average from zero sum to, in float64."""
    return 1 - decay ** count.double()


def root(square: Tensor) -> Any:
    """The square root with a finite derivative, 0, at 0; NaN stays."""
    return square.clamp(min=torch.finfo(square.dtype).tiny).sqrt()
