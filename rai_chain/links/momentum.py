"""Sums and means of the gradients that are followed themselves."""

from typing import Any

from torch import Tensor

from ..core.define import elementwise
from ..data.hyper import Betas, Bool, NonNegative, Number
from .memory import average, wide, zeros
from .transforms import sign


def _check_nesterov(values: dict[str, Any]) -> None:
    momentum, dampening = values["momentum"], values["dampening"]
    numbers = (int, float)
    if values["nesterov"] and isinstance(momentum, numbers) and momentum <= 0:
        raise ValueError(f"`momentum` must satisfy 0 < momentum with nesterov  Got: {momentum}")
    if values["nesterov"] and isinstance(dampening, numbers) and dampening != 0:
        raise ValueError(f"`dampening` must be 0 with nesterov  Got: {dampening}")


@elementwise(state=zeros("momentum_buffer", counts=True), check=_check_nesterov)
def trace(
    grad: Tensor,
    momentum: NonNegative = 0.9,
    dampening: Number = 0.0,
    nesterov: Bool = False,
    *,
    state: dict[str, Tensor],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum gradients with decay: ``b <- momentum * b + (1 - dampening) * grad``.

    As in torch, the first gradient of a leaf is not dampened.

    Args:
        momentum: decay of the sum, >= 0.
        dampening: what is taken off each later gradient, any number but NaN.
        nesterov: return ``grad + momentum * b`` rather than b; a Python bool.

    Raises:
        ValueError: a value outside its range, or nesterov with no momentum or with dampening.

    Example:
        >>> import torch
        >>> tx = trace(momentum=0.5)
        >>> grad = torch.ones(1)
        >>> _, state = tx.update(grad, tx.init(grad))
        >>> tx.update(grad, state)[0]
        tensor([1.5000])

    Source: `torch.optim.SGD` (Sutskever et al. 2013, "On the importance of initialization and
    momentum in deep learning").
    """
    grad = wide(grad)
    keep = 1 - dampening * (state["count"] > 0).double()
    buffer = momentum * state["momentum_buffer"] + keep * grad
    new = {"momentum_buffer": buffer, "count": state["count"] + 1}
    return (grad + momentum * buffer if nesterov else buffer), new


@elementwise(state=zeros("exp_avg"))
def scale_by_lion(
    grad: Tensor, betas: Betas = (0.9, 0.99), *, state: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the sign of a mean of the gradients; NaN stays NaN.

    Args:
        betas: (beta1, beta2): decay of the mean whose sign is returned and of the one kept,
            each at least 0 and below 1.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> tx = scale_by_lion()
        >>> tx.update(torch.tensor([0.1, 0.0, -20.0]), tx.init(torch.zeros(3)))[0]
        tensor([ 1.,  0., -1.])

    Source: Lion (Chen et al. 2023, arXiv 2302.06675).
    """
    beta1, beta2 = betas
    grad = wide(grad)
    mixed = average(state["exp_avg"], grad, beta1)
    return sign.function(mixed), {"exp_avg": average(state["exp_avg"], grad, beta2)}
