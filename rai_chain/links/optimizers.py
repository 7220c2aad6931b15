"""Optimizers as chains of small stateful links.

Each is a pure function of tensors through and through, so it goes under `torch.func.vmap`, can be
differentiated in every hyperparameter, and compiles to one graph. Hyperparameters have torch's
names and defaults and count steps per leaf as torch does; links have optax's names. What a chain
returns is what `apply_updates` adds: it points downhill. In the stateful home it is added too,
where no inner optimizer is given.
"""

from typing import Any

from ..core.pipeline import GradientTransformation
from .adaptive import (
    scale_by_adadelta,
    scale_by_rms,
    scale_by_rprop,
    scale_by_rss,
    scale_by_stddev,
)
from .descent import descend, is_zero, optimizer, penalty, scale_by_learning_rate
from .momentum import scale_by_lion, trace


def sgd(
    lr: Any = 1e-3,
    momentum: Any = 0.0,
    dampening: Any = 0.0,
    weight_decay: Any = 0.0,
    nesterov: bool = False,
    *,
    maximize: bool = False,
    mask: Any = None,
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
        mask: bools like the params or their upper part, where weights decay; None for everywhere.

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
    moving = nesterov or not is_zero(momentum)
    return optimizer(
        maximize,
        penalty(weight_decay, mask),
        trace(momentum, dampening, nesterov) if moving else None,
        scale_by_learning_rate(lr),
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
    mask: Any = None,
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
        mask: bools like the params or their upper part, where weights decay; None for everywhere.

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
    return optimizer(
        maximize,
        penalty(weight_decay, mask),
        scale(alpha, eps),
        None if is_zero(momentum) else trace(momentum),
        scale_by_learning_rate(lr),
    )


def adagrad(
    lr: Any = 0.01,
    lr_decay: Any = 0.0,
    weight_decay: Any = 0.0,
    initial_accumulator_value: Any = 0.0,
    eps: Any = 1e-10,
    *,
    maximize: bool = False,
    mask: Any = None,
) -> GradientTransformation:
    """Make AdaGrad: steps that shrink with the sum of the squares of the gradients.

    Args:
        lr: learning rate, >= 0; like all that follow but the flag, a number, a tensor (0-dim)
            or a schedule.
        lr_decay: what each step adds to the divisor of the rate, >= 0.
        weight_decay: factor of the L2 penalty, >= 0; the Python number 0 leaves it out.
        initial_accumulator_value: where the sum of squares starts, >= 0.
        eps: added to the root of the sum, >= 0.
        maximize: climb, a Python bool.
        mask: bools like the params or their upper part, where weights decay; None for everywhere.

    Returns:
        A `GradientTransformation`.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> tx, x = adagrad(lr=0.1), torch.tensor([1.0])
        >>> tx.step(x, torch.tensor([5.0]), tx.init(x))[0]
        tensor([0.9000])

    Source: Duchi et al. 2011; `torch.optim.Adagrad`.
    """
    return optimizer(
        maximize,
        penalty(weight_decay, mask),
        scale_by_rss(initial_accumulator_value, eps, lr_decay),
        scale_by_learning_rate(lr),
    )


def adadelta(
    lr: Any = 1.0,
    rho: Any = 0.9,
    eps: Any = 1e-06,
    weight_decay: Any = 0.0,
    *,
    maximize: bool = False,
    mask: Any = None,
) -> GradientTransformation:
    """Make Adadelta, whose steps have the size of the steps before.

    Args:
        lr: learning rate, >= 0; like all that follow but the flag, a number, a tensor (0-dim)
            or a schedule.
        rho: decay of the means of squares, 0 <= rho <= 1.
        eps: added to the means of squares, >= 0.
        weight_decay: factor of the L2 penalty, >= 0; the Python number 0 leaves it out.
        maximize: climb, a Python bool.
        mask: bools like the params or their upper part, where weights decay; None for everywhere.

    Returns:
        A `GradientTransformation`.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> tx, x = adadelta(rho=0.0, eps=1.0), torch.tensor([1.0])
        >>> tx.step(x, torch.tensor([1.0]), tx.init(x))[0]
        tensor([0.2929])

    Source: Zeiler 2012, arXiv 1212.5701; `torch.optim.Adadelta`.
    """
    return optimizer(
        maximize,
        penalty(weight_decay, mask),
        scale_by_adadelta(rho, eps),
        scale_by_learning_rate(lr),
    )


def rprop(
    lr: Any = 0.01,
    eta_minus: Any = 0.5,
    eta_plus: Any = 1.2,
    min_step_size: Any = 1e-06,
    max_step_size: Any = 50.0,
    *,
    maximize: bool = False,
) -> GradientTransformation:
    """Make Rprop, which sees signs only: each step grows until the sign turns.

    Args:
        lr: the first step size, >= 0, which is the hyperparameter `init_step_size`; `lr` is a
            factor of all steps, 1 at first. Like all that follow but the flag, a number, a tensor
            (0-dim) or a schedule.
        eta_minus: factor of a step whose sign turned, in [0, 1].
        eta_plus: factor of a step whose sign stayed, >= 1.
        min_step_size: >= 0.
        max_step_size: >= min_step_size.
        maximize: climb, a Python bool.

    Returns:
        A `GradientTransformation`.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> tx, x = rprop(lr=0.1), torch.tensor([1.0])
        >>> tx.step(x, torch.tensor([5.0]), tx.init(x))[0]
        tensor([0.9000])

    Source: Riedmiller and Braun 1993; `torch.optim.Rprop`.
    """
    return optimizer(
        maximize,
        scale_by_rprop(lr, eta_minus, eta_plus, min_step_size, max_step_size),
        scale_by_learning_rate(1.0),
    )


def lion(
    lr: Any = 1e-4,
    betas: Any = (0.9, 0.99),
    weight_decay: Any = 0.0,
    *,
    maximize: bool = False,
    mask: Any = None,
) -> GradientTransformation:
    """Make Lion, with decoupled weight decay.

    It decays as torch does: where ``lr * weight_decay`` is below 6e-8, it is lost in float32.
    ``chain(scale_by_lion(), add_decayed_weights(weight_decay), scale_by_learning_rate(lr))``
    keeps it in the update.

    Args:
        lr: learning rate, >= 0; like all that follow but the flag, a number, a tensor (0-dim)
            or a schedule.
        betas: (beta1, beta2): decay of the mean whose sign is followed and of the one kept,
            each at least 0 and below 1.
        weight_decay: what each step of size lr takes off the parameters, >= 0; the Python
            number 0 leaves it out.
        maximize: climb, a Python bool.
        mask: bools like the params or their upper part, where weights decay; None for everywhere.

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
    return optimizer(
        maximize,
        scale_by_lion(betas),
        descend(lr, weight_decay, mask),
    )
