"""Links that give each element a step size of its own, from the squares or signs of gradients."""

from torch import Tensor

from ..core.link import elementwise
from ..data.hyper import Fraction, NonNegative
from .memory import average, root, wide, zeros


@elementwise(state=zeros("square_avg"))
def scale_by_rms(
    grad: Tensor, alpha: Fraction = 0.99, eps: NonNegative = 1e-8, *, state: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Divide by the root of the mean of the squares of the gradients.

    Args:
        alpha: decay of the mean, 0 <= alpha <= 1.
        eps: added to the root, >= 0.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> tx = scale_by_rms(alpha=0.75)
        >>> tx.update(torch.tensor([0.1, -20.0]), tx.init(torch.zeros(2)))[0]
        tensor([ 2.0000, -2.0000])

    Source: RMSProp (Tieleman and Hinton 2012, lecture 6.5 of "Neural networks for machine
    learning"), as `torch.optim.RMSprop` has it.
    """
    grad = wide(grad)
    square = average(state["square_avg"], grad * grad, alpha)
    return grad / (root(square) + eps), {"square_avg": square}


@elementwise(state=zeros("grad_avg", "square_avg"))
def scale_by_stddev(
    grad: Tensor, alpha: Fraction = 0.99, eps: NonNegative = 1e-8, *, state: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Divide by the standard deviation of the gradients, both moments with decay.

    Args:
        alpha: decay of the moments, 0 <= alpha <= 1.
        eps: added to the deviation, >= 0.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> tx = scale_by_stddev(alpha=0.5)
        >>> tx.update(torch.tensor([0.1, -20.0]), tx.init(torch.zeros(2)))[0]
        tensor([ 2.0000, -2.0000])

    Source: the centered RMSProp (Graves 2013, arXiv 1308.0850), as `torch.optim.RMSprop` has it.
    """
    grad = wide(grad)
    mean = average(state["grad_avg"], grad, alpha)
    square = average(state["square_avg"], grad * grad, alpha)
    new = {"grad_avg": mean, "square_avg": square}
    return grad / (root(square - mean * mean) + eps), new
