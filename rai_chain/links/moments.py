"""Links that keep two moments of the gradients: Adam and its kin."""

import torch
from torch import Tensor

from ..core.link import elementwise
from ..data.hyper import Decay, NonNegative
from .memory import average, root, weight, wide, zeros


@elementwise(state=zeros("exp_avg", "exp_avg_sq", counts=True))
def scale_by_adam(
    grad: Tensor,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    *,
    state: dict[str, Tensor],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Divide the mean of the gradients by the root of the mean of their squares.

    Args:
        beta1: decay of the mean, 0 <= beta1 < 1.
        beta2: decay of the mean of squares, 0 <= beta2 < 1.
        eps: added to the root, >= 0.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> tx = scale_by_adam(eps=1.0)
        >>> tx.update(torch.tensor([1.0, -3.0]), tx.init(torch.zeros(2)))[0]
        tensor([ 0.5000, -0.7500])

    Source: Adam (Kingma and Ba 2015, arXiv 1412.6980).
    """
    grad, count = wide(grad), state["count"] + 1
    mean = average(state["exp_avg"], grad, beta1)
    square = average(state["exp_avg_sq"], grad * grad, beta2)
    new = {"exp_avg": mean, "exp_avg_sq": square, "count": count}
    return mean / weight(beta1, count) / (root(square / weight(beta2, count)) + eps), new


@elementwise(state=zeros("exp_avg", "exp_avg_sq", "max_exp_avg_sq", counts=True))
def scale_by_amsgrad(
    grad: Tensor,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    *,
    state: dict[str, Tensor],
) -> tuple[Tensor, dict[str, Tensor]]:
    """As `scale_by_adam`, with the largest mean of squares so far.

    Args:
        beta1: decay of the mean, 0 <= beta1 < 1.
        beta2: decay of the mean of squares, 0 <= beta2 < 1.
        eps: added to the root, >= 0.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> tx = scale_by_amsgrad(eps=1.0)
        >>> tx.update(torch.tensor([1.0, -3.0]), tx.init(torch.zeros(2)))[0]
        tensor([ 0.5000, -0.7500])

    Source: AMSGrad (Reddi et al. 2018, arXiv 1904.09237), as `torch.optim.Adam` has it.
    """
    grad, count = wide(grad), state["count"] + 1
    mean = average(state["exp_avg"], grad, beta1)
    square = average(state["exp_avg_sq"], grad * grad, beta2)
    largest = torch.maximum(state["max_exp_avg_sq"], square)
    new = {"exp_avg": mean, "exp_avg_sq": square, "max_exp_avg_sq": largest, "count": count}
    return mean / weight(beta1, count) / (root(largest / weight(beta2, count)) + eps), new
