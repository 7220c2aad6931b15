"""Torch's optimizers as chains of small stateful links.

Each is a pure function of tensors through and through, so it goes under `torch.func.vmap`, can be
differentiated in every hyperparameter, and compiles to one graph. Hyperparameters have torch's
names and defaults and count steps per leaf as torch does; links have optax's names. What a chain
returns is what `apply_updates` adds: it points downhill. In the stateful home it is added too,
where no inner optimizer is given.
"""

from typing import Any

from ..core.chain import chain
from ..core.pipeline import GradientTransformation
from .adaptive import scale_by_rms, scale_by_stddev
from .descent import add_decayed_weights, descend_and_decay, negate, scale_by_learning_rate
from .moments import scale_by_adam, scale_by_amsgrad
from .momentum import scale_by_lion, trace


def sgd(
    lr: Any = 1e-3,
    momentum: Any = 0.0,
    dampening: Any = 0.0,
    weight_decay: Any = 0.0,
    nesterov: bool = False,
    *,
    maximize: bool = False,
) -> GradientTransformation:
    """Make stochastic gradient descent, with momentum.

    The Python number 0 as `momentum` or `weight_decay` leaves their link, its state and its
    hyperparameters out; give a tensor to override it later. With nesterov, momentum is needed.

    Args:
        lr: learning rate, >= 0; like all that follow but the flags, a number, a tensor (0-dim)
            or a schedule.
        momentum: decay of the sum of gradients, >= 0.
        dampening: what is taken off each gradient but the first, any number but NaN.
        weight_decay: factor of the L2 penalty, >= 0.
        nesterov: look ahead, a Python bool.
        maximize: climb, a Python bool.

    Returns:
        A `GradientTransformation`: `trace` and `scale_by_learning_rate`, and what else is needed.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> sgd(lr=0.1, momentum=0.9)
        chain(
            trace(momentum=0.9, dampening=0.0, nesterov=False),
            scale_by_learning_rate(lr=0.1),
        )
        >>> tx, x = sgd(lr=0.1), torch.tensor([1.0])
        >>> tx.step(x, torch.tensor([5.0]), tx.init(x))[0]
        tensor([0.5000])

    Source: `torch.optim.SGD`.
    """
    moving = nesterov or not _is_zero(momentum)
    return _optimizer(
        maximize,
        None if _is_zero(weight_decay) else add_decayed_weights(weight_decay),
        trace(momentum, dampening, nesterov) if moving else None,
        scale_by_learning_rate(lr),
    )


def adam(
    lr: Any = 1e-3,
    beta1: Any = 0.9,
    beta2: Any = 0.999,
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
) -> GradientTransformation:
    """Make Adam, with weight decay as an L2 penalty (see `adamw` for the decoupled one).

    Args:
        lr: learning rate, >= 0; like all that follow but the flags, a number, a tensor (0-dim)
            or a schedule.
        beta1: decay of the mean of gradients, 0 <= beta1 < 1.
        beta2: decay of the mean of squares, 0 <= beta2 < 1.
        eps: added to the root of the mean of squares, >= 0.
        weight_decay: factor of the L2 penalty, >= 0; the Python number 0 leaves it out.
        amsgrad: keep the largest mean of squares, a Python bool.
        maximize: climb, a Python bool.

    Returns:
        A `GradientTransformation`.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> tx, x = adam(lr=0.1), torch.tensor([1.0])
        >>> tx.step(x, torch.tensor([5.0]), tx.init(x))[0]
        tensor([0.9000])

    Source: Kingma and Ba 2015, arXiv 1412.6980; `torch.optim.Adam`.
    """
    scale = scale_by_amsgrad if amsgrad else scale_by_adam
    return _optimizer(
        maximize,
        None if _is_zero(weight_decay) else add_decayed_weights(weight_decay),
        scale(beta1, beta2, eps),
        scale_by_learning_rate(lr),
    )


def adamw(
    lr: Any = 1e-3,
    beta1: Any = 0.9,
    beta2: Any = 0.999,
    eps: Any = 1e-8,
    weight_decay: Any = 1e-2,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
) -> GradientTransformation:
    """Make Adam with decoupled weight decay.

    Args:
        lr: learning rate, >= 0; like all that follow but the flags, a number, a tensor (0-dim)
            or a schedule.
        beta1: decay of the mean of gradients, 0 <= beta1 < 1.
        beta2: decay of the mean of squares, 0 <= beta2 < 1.
        eps: added to the root of the mean of squares, >= 0.
        weight_decay: what each step of size lr takes off the parameters, >= 0.
        amsgrad: keep the largest mean of squares, a Python bool.
        maximize: climb, a Python bool.

    Returns:
        A `GradientTransformation`; `update` needs `params`.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> tx, x = adamw(lr=0.1, weight_decay=0.5), torch.tensor([1.0])
        >>> tx.step(x, torch.tensor([5.0]), tx.init(x))[0]
        tensor([0.8500])

    Source: Loshchilov and Hutter 2019, arXiv 1711.05101; `torch.optim.AdamW`.
    """
    scale = scale_by_amsgrad if amsgrad else scale_by_adam
    return _optimizer(
        maximize,
        scale(beta1, beta2, eps),
        descend_and_decay(lr, weight_decay),
    )


def rmsprop(
    lr: Any = 1e-2,
    alpha: Any = 0.99,
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    momentum: Any = 0.0,
    centered: bool = False,
    *,
    maximize: bool = False,
) -> GradientTransformation:
    """Make RMSProp, with momentum.

    Args:
        lr: learning rate, >= 0; like all that follow but the flags, a number, a tensor (0-dim)
            or a schedule.
        alpha: decay of the mean of squares, 0 <= alpha <= 1.
        eps: added to the root of the mean of squares, >= 0.
        weight_decay: factor of the L2 penalty, >= 0; the Python number 0 leaves it out.
        momentum: decay of the sum of updates, >= 0; the Python number 0 leaves it out.
        centered: divide by the standard deviation, a Python bool.
        maximize: climb, a Python bool.

    Returns:
        A `GradientTransformation`.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> tx, x = rmsprop(lr=0.1, alpha=0.75), torch.tensor([1.0])
        >>> tx.step(x, torch.tensor([5.0]), tx.init(x))[0]
        tensor([0.8000])

    Source: Tieleman and Hinton 2012; `torch.optim.RMSprop`.
    """
    scale = scale_by_stddev if centered else scale_by_rms
    return _optimizer(
        maximize,
        None if _is_zero(weight_decay) else add_decayed_weights(weight_decay),
        scale(alpha, eps),
        None if _is_zero(momentum) else trace(momentum),
        scale_by_learning_rate(lr),
    )


def lion(
    lr: Any = 1e-4,
    beta1: Any = 0.9,
    beta2: Any = 0.99,
    weight_decay: Any = 0.0,
    *,
    maximize: bool = False,
) -> GradientTransformation:
    """Make Lion, with decoupled weight decay.

    Args:
        lr: learning rate, >= 0; like all that follow but the flag, a number, a tensor (0-dim)
            or a schedule.
        beta1: decay of the mean whose sign is followed, 0 <= beta1 < 1.
        beta2: decay of the mean that is kept, 0 <= beta2 < 1.
        weight_decay: what each step of size lr takes off the parameters, >= 0; the Python
            number 0 leaves it out.
        maximize: climb, a Python bool.

    Returns:
        A `GradientTransformation`.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> tx, x = lion(lr=0.1), torch.tensor([1.0])
        >>> tx.step(x, torch.tensor([5.0]), tx.init(x))[0]
        tensor([0.9000])

    Source: Chen et al. 2023, arXiv 2302.06675.
    """
    return _optimizer(
        maximize,
        scale_by_lion(beta1, beta2),
        scale_by_learning_rate(lr)
        if _is_zero(weight_decay)
        else descend_and_decay(lr, weight_decay),
    )


def _optimizer(maximize: bool, *links: Any) -> GradientTransformation:
    """The chain of the links; climbing negates what comes in, as torch does."""
    links = (negate() if maximize else None, *links)
    return chain(*(link for link in links if link is not None))


def _is_zero(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == 0
