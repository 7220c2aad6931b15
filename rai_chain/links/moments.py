"""Links that keep two moments of the gradients: Adam and its kin."""

import torch
from torch import Tensor

from ..core.define import elementwise
from ..data.hyper import Betas, NonNegative, ThreeBetas
from .memory import average, begun, root, weight, wide, zeros


@elementwise(state=zeros("exp_avg", "exp_avg_sq", counts=True))
def scale_by_adam(
    grad: Tensor,
    betas: Betas = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    *,
    state: dict[str, Tensor],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Divide the mean of the gradients by the root of the mean of their squares.

    Args:
        betas: (beta1, beta2): decay of the mean and decay of the mean of squares,
            each at least 0 and below 1.
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
    beta1, beta2 = betas
    grad, count = wide(grad), state["count"] + 1
    mean = average(state["exp_avg"], grad, beta1)
    square = average(state["exp_avg_sq"], grad * grad, beta2)
    new = {"exp_avg": mean, "exp_avg_sq": square, "count": count}
    return mean / weight(beta1, count) / (root(square / weight(beta2, count)) + eps), new


@elementwise(state=zeros("exp_avg", "exp_avg_sq", "max_exp_avg_sq", counts=True))
def scale_by_amsgrad(
    grad: Tensor,
    betas: Betas = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    *,
    state: dict[str, Tensor],
) -> tuple[Tensor, dict[str, Tensor]]:
    """As `scale_by_adam`, with the largest mean of squares so far.

    Args:
        betas: (beta1, beta2): decay of the mean and decay of the mean of squares,
            each at least 0 and below 1.
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
    beta1, beta2 = betas
    grad, count = wide(grad), state["count"] + 1
    mean = average(state["exp_avg"], grad, beta1)
    square = average(state["exp_avg_sq"], grad * grad, beta2)
    largest = torch.maximum(state["max_exp_avg_sq"], square)
    new = {"exp_avg": mean, "exp_avg_sq": square, "max_exp_avg_sq": largest, "count": count}
    return mean / weight(beta1, count) / (root(largest / weight(beta2, count)) + eps), new


@elementwise(state=zeros("exp_avg", "exp_inf", counts=True))
def scale_by_adamax(
    grad: Tensor,
    betas: Betas = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    *,
    state: dict[str, Tensor],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Divide the mean of the gradients by the largest of them, which decays.

    ``n <- max(beta2 * n, abs(g) + eps)``

    Args:
        betas: (beta1, beta2): decay of the mean and decay of the largest magnitude,
            each at least 0 and below 1.
        eps: added to each magnitude, >= 0.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> tx = scale_by_adamax(eps=1.0)
        >>> tx.update(torch.tensor([1.0, -3.0]), tx.init(torch.zeros(2)))[0]
        tensor([ 0.5000, -0.7500])

    Source: AdaMax (Kingma and Ba 2015, arXiv 1412.6980), as `torch.optim.Adamax` has it.
    """
    beta1, beta2 = betas
    grad, count = wide(grad), state["count"] + 1
    mean = average(state["exp_avg"], grad, beta1)
    largest = torch.maximum(beta2 * state["exp_inf"], grad.abs() + eps)
    divisor = weight(beta1, count) * largest.clamp(min=torch.finfo(largest.dtype).tiny)
    return mean / divisor, {"exp_avg": mean, "exp_inf": largest, "count": count}


def _start_nadam(leaf: Tensor) -> dict[str, Tensor]:
    started: dict[str, Tensor] = zeros("exp_avg", "exp_avg_sq", counts=True)(leaf)
    product = torch.ones((), dtype=torch.float64, device=leaf.device)
    return {**started, "mu_product": product}


@elementwise(state=_start_nadam)
def scale_by_nadam(
    grad: Tensor,
    betas: Betas = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    momentum_decay: NonNegative = 4e-3,
    *,
    state: dict[str, Tensor],
) -> tuple[Tensor, dict[str, Tensor]]:
    """As `scale_by_adam`, with a mean that looks ahead and whose decay grows to `beta1`.

    The decay of step t is ``mu(t) = beta1 * (1 - 0.96**(t * momentum_decay) / 2)``; the state
    has the product of them.

    Args:
        betas: (beta1, beta2): decay of the mean in the end and decay of the mean of squares,
            each at least 0 and below 1.
        eps: added to the root, >= 0.
        momentum_decay: how fast the decay of the mean grows, >= 0.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> tx = scale_by_nadam(eps=1.0)
        >>> tx.update(torch.tensor([1.0, -3.0]), tx.init(torch.zeros(2)))[0]
        tensor([ 0.5282, -0.7923])

    Source: Dozat 2016, "Incorporating Nesterov Momentum into Adam", as `torch.optim.NAdam` has it.
    """
    beta1, beta2 = betas
    grad, count = wide(grad), state["count"] + 1
    mu, ahead = (
        beta1 * (1 - 0.5 * 0.96 ** (t.double() * momentum_decay)) for t in (count, count + 1)
    )
    mean = average(state["exp_avg"], grad, beta1)
    square = average(state["exp_avg_sq"], grad * grad, beta2)
    product = mu * state["mu_product"]
    direction = (1 - mu) / (1 - product) * grad + ahead / (1 - ahead * product) * mean
    new = {"exp_avg": mean, "exp_avg_sq": square, "mu_product": product, "count": count}
    return direction / (root(square / weight(beta2, count)) + eps), new


@elementwise(state=zeros("exp_avg", "exp_avg_sq", counts=True))
def scale_by_radam(
    grad: Tensor,
    betas: Betas = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    *,
    state: dict[str, Tensor],
) -> tuple[Tensor, dict[str, Tensor]]:
    """As `scale_by_adam`, with the root rectified for its few samples, left out in the first steps.

    The mean of squares is worth ``rho = limit - 2 * t * beta2**t / (1 - beta2**t)`` samples, where
    ``limit = 2 / (1 - beta2) - 1``; to 5 of them the mean of the gradients is not divided.

    Args:
        betas: (beta1, beta2): decay of the mean and decay of the mean of squares,
            each at least 0 and below 1.
        eps: added to the root before it is debiased, >= 0.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> tx = scale_by_radam()
        >>> tx.update(torch.tensor([1.0, -3.0]), tx.init(torch.zeros(2)))[0]
        tensor([ 1., -3.])

    Source: RAdam (Liu et al. 2020, arXiv 1908.03265), as `torch.optim.RAdam` has it.
    """
    beta1, beta2 = betas
    grad, count = wide(grad), state["count"] + 1
    mean = average(state["exp_avg"], grad, beta1)
    square = average(state["exp_avg_sq"], grad * grad, beta2)
    summed, t = weight(beta2, count), count.double()
    limit = 2 / (1 - beta2) - 1 + 0 * t
    rho = limit - 2 * t * (1 - summed) / summed
    enough = rho > 5
    limit, rho = (torch.where(enough, x, 6.0) for x in (limit, rho))  # no untaken 0 / 0
    rectified = ((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho) * summed).sqrt()
    divided = rectified / (root(square) + eps)
    new = {"exp_avg": mean, "exp_avg_sq": square, "count": count}
    return mean / weight(beta1, count) * torch.where(enough, divided, 1.0), new


@elementwise(state=zeros("exp_avg", "exp_avg_var", counts=True))
def scale_by_belief(
    grad: Tensor,
    betas: Betas = (0.9, 0.999),
    eps: NonNegative = 1e-16,
    eps_root: NonNegative = 1e-16,
    *,
    state: dict[str, Tensor],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Divide the mean of the gradients by the root of the mean of their squared distance to it.

    ``s <- beta2 * s + (1 - beta2) * (g - mean)**2 + eps_root``

    Args:
        betas: (beta1, beta2): decay of the mean and decay of the mean of squared distances,
            each at least 0 and below 1.
        eps: added to the root, >= 0.
        eps_root: added to the mean of squared distances, in each step, >= 0.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> tx = scale_by_belief()
        >>> tx.update(torch.tensor([1.0, -3.0]), tx.init(torch.zeros(2)))[0]
        tensor([ 1.1111, -1.1111])

    Source: AdaBelief (Zhuang et al. 2020, arXiv 2010.07468).
    """
    beta1, beta2 = betas
    grad, count = wide(grad), state["count"] + 1
    mean = average(state["exp_avg"], grad, beta1)
    spread = average(state["exp_avg_var"], (grad - mean) ** 2, beta2) + eps_root
    new = {"exp_avg": mean, "exp_avg_var": spread, "count": count}
    return mean / weight(beta1, count) / (root(spread / weight(beta2, count)) + eps), new


@elementwise(state=zeros("exp_avg", "exp_avg_sq", counts=True))
def scale_by_yogi(
    grad: Tensor,
    betas: Betas = (0.9, 0.999),
    eps: NonNegative = 1e-3,
    initial_accumulator_value: NonNegative = 1e-6,
    *,
    state: dict[str, Tensor],
) -> tuple[Tensor, dict[str, Tensor]]:
    """As `scale_by_adam`, with a mean of squares that moves by no more than a square.

    ``v <- v - (1 - beta2) * sign(v - g**2) * g**2``

    Args:
        betas: (beta1, beta2): decay of the mean and 1 minus the part of a square by which v moves,
            each at least 0 and below 1.
        eps: added to the root, >= 0.
        initial_accumulator_value: where both means start, >= 0.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> tx = scale_by_yogi(eps=1.0, initial_accumulator_value=0.0)
        >>> tx.update(torch.tensor([1.0, -3.0]), tx.init(torch.zeros(2)))[0]
        tensor([ 0.5000, -0.7500])

    Source: Yogi (Zaheer et al. 2018, "Adaptive Methods for Nonconvex Optimization").
    """
    beta1, beta2 = betas
    grad, count = wide(grad), state["count"] + 1
    mean = average(begun(state, "exp_avg", initial_accumulator_value), grad, beta1)
    old, square = begun(state, "exp_avg_sq", initial_accumulator_value), grad * grad
    new_square = old - (1 - beta2) * torch.sign(old - square) * square
    new = {"exp_avg": mean, "exp_avg_sq": new_square, "count": count}
    return mean / weight(beta1, count) / (root(new_square / weight(beta2, count)) + eps), new


@elementwise(state=zeros("exp_avg", "exp_avg_diff", "exp_avg_sq", "previous_grad", counts=True))
def scale_by_adan(
    grad: Tensor,
    betas: ThreeBetas = (0.98, 0.92, 0.99),
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    *,
    state: dict[str, Tensor],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Divide means of the gradients and of their changes by the root of a mean of squares.

    With the change ``d = g - previous g``, 0 in the first step, it is
    ``(mean(g) + (1 - beta2) * mean(d)) / (sqrt(mean((g + (1 - beta2) * d)**2) + eps_root) + eps)``.

    Args:
        betas: (beta1, beta2): decay of the mean of gradients, decay of the mean of changes and
            decay of the mean of squares; each at least 0 and below 1.
        eps: added to the root, >= 0.
        eps_root: added below the root, >= 0.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> tx = scale_by_adan(eps=1.0)
        >>> tx.update(torch.tensor([1.0, -3.0]), tx.init(torch.zeros(2)))[0]
        tensor([ 0.5000, -0.7500])

    Source: Adan (Xie et al. 2022, arXiv 2208.06677).
    """
    beta1, beta2, beta3 = betas
    grad, count = wide(grad), state["count"] + 1
    change = grad - torch.where(state["count"] > 0, state["previous_grad"], grad)
    mean = average(state["exp_avg"], grad, beta1)
    drift = average(state["exp_avg_diff"], change, beta2)
    square = average(state["exp_avg_sq"], (grad + (1 - beta2) * change) ** 2, beta3)
    direction = mean / weight(beta1, count) + (1 - beta2) * drift / weight(beta2, count)
    new = {
        "exp_avg": mean,
        "exp_avg_diff": drift,
        "exp_avg_sq": square,
        "previous_grad": grad.clone(),  # whoever writes into the gradient must not hit the state
        "count": count,
    }
    return direction / (root(square / weight(beta3, count) + eps_root) + eps), new
