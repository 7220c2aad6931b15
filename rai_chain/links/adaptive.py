"""Links that give each element a step size of its own, from the squares or signs of gradients."""

from typing import Annotated

import torch
from torch import Tensor

from ..core.define import elementwise
from ..data.hyper import Fraction, Hyper, NonNegative, Range
from .memory import average, begun, root, wide, zeros
from .transforms import clamped, sign

Growth = Annotated[Hyper, Range(1)]


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


@elementwise(state=zeros("sum", counts=True))
def scale_by_rss(
    grad: Tensor,
    initial_accumulator_value: NonNegative = 0.0,
    eps: NonNegative = 1e-10,
    lr_decay: NonNegative = 0.0,
    *,
    state: dict[str, Tensor],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Divide by the root of the sum of the squares of the gradients.

    ``g / (sqrt(sum) + eps) / (1 + t * lr_decay)``, where t steps were made before.

    Args:
        initial_accumulator_value: where the sum starts, >= 0.
        eps: added to the root, >= 0.
        lr_decay: what each step adds to the second divisor, >= 0.

    Raises:
        ValueError: a value is negative.

    Example:
        >>> import torch
        >>> tx = scale_by_rss(initial_accumulator_value=9.0)
        >>> tx.update(torch.tensor([4.0, 0.0]), tx.init(torch.zeros(2)))[0]
        tensor([0.8000, 0.0000])

    Source: AdaGrad (Duchi et al. 2011, "Adaptive Subgradient Methods for Online Learning and
    Stochastic Optimization"), as `torch.optim.Adagrad` has it.
    """
    grad = wide(grad)
    total = begun(state, "sum", initial_accumulator_value) + grad * grad
    divisor = (root(total) + eps) * (1 + lr_decay * state["count"].double())
    return grad / divisor, {"sum": total, "count": state["count"] + 1}


@elementwise(state=zeros("square_avg", "acc_delta"))
def scale_by_adadelta(
    grad: Tensor, rho: Fraction = 0.9, eps: NonNegative = 1e-6, *, state: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Divide by the root of the mean of the squares, times that of the results before.

    ``u = g * sqrt(mean(u**2) + eps) / sqrt(mean(g**2) + eps)``

    Args:
        rho: decay of both means, 0 <= rho <= 1.
        eps: added to both means, >= 0.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> tx = scale_by_adadelta(rho=0.0, eps=1.0)
        >>> tx.update(torch.tensor([0.0, 1.0]), tx.init(torch.zeros(2)))[0]
        tensor([0.0000, 0.7071])

    Source: Zeiler 2012, "ADADELTA", arXiv 1212.5701.
    """
    grad = wide(grad)
    square = average(state["square_avg"], grad * grad, rho)
    step = root(state["acc_delta"] + eps) / root(square + eps) * grad
    return step, {"square_avg": square, "acc_delta": average(state["acc_delta"], step * step, rho)}


@elementwise(state=zeros("prev", "step_size", counts=True))
def scale_by_rprop(
    grad: Tensor,
    init_step_size: NonNegative = 1e-2,
    eta_minus: Fraction = 0.5,
    eta_plus: Growth = 1.2,
    min_step_size: NonNegative = 1e-6,
    max_step_size: NonNegative = 50.0,
    *,
    state: dict[str, Tensor],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Replace each element by its sign times a step size, which grows until the sign turns.

    Where the sign turned the step size shrinks, and nothing moves.

    Args:
        init_step_size: >= 0.
        eta_minus: factor where the sign turned, in [0, 1].
        eta_plus: factor where it stayed, >= 1.
        min_step_size: >= 0.
        max_step_size: >= min_step_size.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> tx, g = scale_by_rprop(0.5), torch.tensor([3.0, -3.0])
        >>> first, state = tx.update(g, tx.init(g))
        >>> first, tx.update(torch.tensor([1.0, 1.0]), state)[0]
        (tensor([ 0.5000, -0.5000]), tensor([0.6000, 0.0000]))

    Source: Riedmiller and Braun 1993, "A direct adaptive method for faster backpropagation
    learning: the RPROP algorithm", as `torch.optim.Rprop` has it.
    """
    grad = wide(grad)
    turn = torch.sign(grad) * torch.sign(state["prev"])
    one = torch.ones_like(turn)
    factor = torch.where(turn > 0, eta_plus * one, torch.where(turn < 0, eta_minus * one, one))
    size = clamped(begun(state, "step_size", init_step_size) * factor, min_step_size, max_step_size)
    kept = torch.where(turn < 0, 0, grad)
    new = {"prev": kept, "step_size": size, "count": state["count"] + 1}
    return size * sign.function(kept), new
