"""What links keep of past gradients: how it starts, how it averages, and what that weighs."""

from typing import Any

import torch
from torch import Tensor


def zeros(*keys: str, counts: bool = False) -> Any:
    """The state of one leaf: zeros like it under each key, and its own count of steps."""

    def start(leaf: Tensor) -> dict[str, Tensor]:
        count = torch.zeros((), dtype=torch.int64, device=leaf.device)
        return {**{k: torch.zeros_like(leaf) for k in keys}, **({"count": count} if counts else {})}

    return start


def average(old: Tensor, new: Tensor, decay: Any) -> Any:
    """The mean that forgets: `decay` of the old one remains."""
    return decay * old + (1 - decay) * new


def weight(decay: Any, count: Tensor) -> Any:
    """The weight that `count` steps of an average from zero sum to, in float64."""
    return 1 - decay ** count.double()


def root(square: Tensor) -> Any:
    """The square root with a finite derivative, 0, at 0; NaN stays.

    The floor is far below what eps hides, also in float16, whose `tiny` would not be.
    """
    return square.clamp(min=min(torch.finfo(square.dtype).tiny, 2.0**-24)).sqrt()
