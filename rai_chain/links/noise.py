"""Noise on what passes, a pure function of seed, step and leaf."""

from typing import Annotated, Any

import torch
from torch import Tensor

from ..core.define import elementwise
from ..data.hyper import Hyper, NonNegative, Range
from ..data.random import normal

Deviation = Annotated[Hyper, Range(0.0, optional=True)]


def _check_noise(values: dict[str, Any]) -> None:
    if (values["eta"] is None) == (values["std"] is None):
        given = f"{values['eta']} and {values['std']}"
        raise ValueError(f"`eta` or `std` must be given, and not both  Got: {given}")


@elementwise(check=_check_noise)
def add_noise(
    grad: Tensor,
    eta: Deviation = None,
    gamma: NonNegative = 0.55,
    std: Deviation = None,
    *,
    key: Tensor,
    step: Tensor,
) -> Tensor:
    """Add normal noise, a function of (seed, step, leaf).

    Of variance ``eta / (1 + step)**gamma``, or of the standard deviation `std`.

    Args:
        eta: variance at the first step, >= 0.
        gamma: how fast it decays, >= 0.
        std: standard deviation of every step, >= 0, in the place of eta.
        seed: an integer.

    Raises:
        ValueError: a value is negative, or not one of eta and std is given.

    Example:
        >>> import torch
        >>> tx = add_noise(eta=0.0)
        >>> tx.update(torch.ones(2), tx.init(torch.ones(2)))[0]
        tensor([1., 1.])

    Source: Neelakantan et al. 2015, "Adding Gradient Noise Improves Learning for Very Deep
    Networks", arXiv 1511.06807.
    """
    deviation = (eta / (1.0 + step.double()) ** gamma) ** 0.5 if std is None else std
    noise = normal(key, tuple(grad.shape)).to(torch.promote_types(grad.dtype, torch.float32))
    noisy: Tensor = grad + deviation * noise
    return noisy
