"""Averages of what passes, and of parameters."""

from torch import Tensor

from ..core.link import elementwise
from ..data.hyper import Bool, Decay
from .memory import average, weight, wide, zeros


@elementwise(state=zeros("ema", counts=True))
def ema(
    grad: Tensor, decay: Decay = 0.9, debias: Bool = True, *, state: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Replace updates by their exponential moving average.

    Args:
        decay: weight of the past, 0 <= decay < 1.
        debias: divide by 1 - decay**count, so that the first average is the first update.

    Raises:
        ValueError: decay outside [0, 1).

    Example:
        >>> import torch
        >>> tx = ema(decay=0.5)
        >>> _, state = tx.update(torch.tensor(1.0), tx.init(torch.tensor(0.0)))
        >>> tx.update(torch.tensor(4.0), state)[0]
        tensor(3.)

    Source: the function of the same name in optax.
    """
    mean, count = average(state["ema"], wide(grad), decay), state["count"] + 1
    return mean / weight(decay, count) if debias else mean, {"ema": mean, "count": count}
