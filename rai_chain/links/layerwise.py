"""Steps in proportion to the parameters of a leaf."""

from typing import Any

import torch
from torch import Tensor

from ..core.define import leafwise
from ..core.pipeline import GradientTransformation
from ..data.hyper import NonNegative
from ..kernels.norms import row_norm
from .descent import optimizer, penalty, scale_by_learning_rate
from .moments import scale_by_adam
from .momentum import trace
from .transforms import clamped


@leafwise
def scale_by_trust_ratio(
    grad: Tensor,
    min_norm: NonNegative = 0.0,
    trust_coefficient: NonNegative = 1.0,
    eps: NonNegative = 0.0,
    *,
    param: Tensor,
) -> Any:
    """Scale each leaf to the norm of its parameter; `update` needs `params`.

    ``u * trust_coefficient * norm(param) / (norm(u) + eps)``; u as it is where a norm is 0.

    Args:
        min_norm: what both norms are at least, >= 0.
        trust_coefficient: the norm of the result over that of the parameter, >= 0.
        eps: added to the norm of the update, >= 0.

    Raises:
        ValueError: a value is negative, or no `params`.

    Example:
        >>> import torch
        >>> tx, p = scale_by_trust_ratio(), torch.tensor([6.0, 8.0])
        >>> tx.update(torch.tensor([0.0, 0.5]), (), params=p)[0]
        tensor([ 0., 10.])

    Source: LARS (You et al. 2017, arXiv 1708.03888); optax's of the same name.
    """
    own, of_param = (clamped(_norm(x), min_norm, None) for x in (grad, param))
    zero = (own == 0) | (of_param == 0)
    ratio = trust_coefficient * of_param / torch.where(zero, 1, own + eps)
    return grad * torch.where(zero, 1, ratio)


@leafwise
def scale_by_param_block_norm(grad: Tensor, min_scale: NonNegative = 1e-3, *, param: Tensor) -> Any:
    """Multiply each leaf by the norm of its parameter; `update` needs `params`.

    Args:
        min_scale: what the norm is at least, >= 0, so that a leaf at zero can move.

    Raises:
        ValueError: min_scale < 0, or no `params`.

    Example:
        >>> import torch
        >>> tx, p = scale_by_param_block_norm(), torch.tensor([6.0, 8.0])
        >>> tx.update(torch.tensor([0.0, 0.5]), (), params=p)[0]
        tensor([0., 5.])

    Source: the function of the same name in optax.
    """
    return grad * clamped(_norm(param), min_scale, None)


@leafwise
def scale_by_param_block_rms(grad: Tensor, min_scale: NonNegative = 1e-3, *, param: Tensor) -> Any:
    """Multiply each leaf by the root mean square of its parameter; `update` needs `params`.

    Args:
        min_scale: what the root mean square is at least, >= 0, so that a leaf at zero can move.

    Raises:
        ValueError: min_scale < 0, or no `params`.

    Example:
        >>> import torch
        >>> tx, p = scale_by_param_block_rms(), torch.tensor([1.0, 7.0])
        >>> tx.update(torch.tensor([0.0, 0.5]), (), params=p)[0]
        tensor([0.0000, 2.5000])

    Source: Adafactor (Shazeer and Stern 2018, arXiv 1804.04235); optax's of the same name.
    """
    return grad * clamped(_norm(param) / param.numel() ** 0.5, min_scale, None)


def _norm(leaf: Tensor) -> Tensor:
    """The Euclidean norm of a leaf, 0-dim."""
    return row_norm(leaf.reshape(1, -1), 2).reshape(())


def lamb(
    lr: Any = 1e-3,
    betas: Any = (0.9, 0.999),
    eps: Any = 1e-6,
    weight_decay: Any = 0.0,
    *,
    maximize: bool = False,
    mask: Any = None,
) -> GradientTransformation:
    """Make LAMB: Adam's direction, with weight decay, scaled to the norm of each leaf.

    Args:
        lr: learning rate, >= 0; like all that follow but the flag, a number, a tensor (0-dim)
            or a schedule.
        betas: (beta1, beta2): decay of the mean of gradients and decay of the mean of squares,
            each at least 0 and below 1.
        eps: added to the root of the mean of squares, >= 0.
        weight_decay: factor of what is added to the direction, >= 0; the Python number 0 leaves
            it out.
        maximize: climb, a Python bool.
        mask: bools like the params or their upper part, where weights decay; None for everywhere.

    Returns:
        A `GradientTransformation`; `update` needs `params`.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> tx, x = lamb(lr=0.1), torch.tensor([3.0, 4.0])
        >>> tx.step(x, torch.tensor([5.0, 0.0]), tx.init(x))[0]
        tensor([2.5000, 4.0000])

    Source: You et al. 2020, "Large Batch Optimization for Deep Learning", arXiv 1904.00962;
    optax's of the same name.
    """
    return optimizer(
        maximize,
        scale_by_adam(betas, eps),
        penalty(weight_decay, mask),
        scale_by_trust_ratio(),
        scale_by_learning_rate(lr),
    )


def lars(
    lr: Any = 1e-3,
    weight_decay: Any = 0.0,
    trust_coefficient: Any = 1e-3,
    eps: Any = 0.0,
    momentum: Any = 0.9,
    nesterov: bool = False,
    *,
    maximize: bool = False,
    mask: Any = None,
) -> GradientTransformation:
    """Make LARS: momentum over gradients scaled to the norm of each leaf.

    Args:
        lr: learning rate, >= 0; like all that follow but the flags, a number, a tensor (0-dim)
            or a schedule.
        weight_decay: factor of the L2 penalty, >= 0; the Python number 0 leaves it out.
        trust_coefficient: the norm of a step of size 1 over that of the leaf, >= 0.
        eps: added to the norm of the gradient, >= 0.
        momentum: decay of the sum of steps, >= 0.
        nesterov: look ahead, a Python bool.
        maximize: climb, a Python bool.
        mask: bools like the params or their upper part, where weights decay; None for everywhere.

    Returns:
        A `GradientTransformation`; `update` needs `params`.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> tx, x = lars(lr=0.1, trust_coefficient=1.0), torch.tensor([3.0, 4.0])
        >>> tx.step(x, torch.tensor([5.0, 0.0]), tx.init(x))[0]
        tensor([2.5000, 4.0000])

    Source: You et al. 2017, "Large Batch Training of Convolutional Networks", arXiv 1708.03888;
    optax's of the same name.
    """
    return optimizer(
        maximize,
        penalty(weight_decay, mask),
        scale_by_trust_ratio(trust_coefficient=trust_coefficient, eps=eps),
        scale_by_learning_rate(lr),
        trace(momentum, nesterov=nesterov),
    )
