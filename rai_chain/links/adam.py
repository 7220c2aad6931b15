"""Adam and its kin, as chains of small stateful links: see optimizers.py."""

from typing import Any

from ..core.pipeline import GradientTransformation
from .descent import descend, descend_and_decay, optimizer, penalty, scale_by_learning_rate, where
from .moments import (
    scale_by_adam,
    scale_by_adamax,
    scale_by_adan,
    scale_by_amsgrad,
    scale_by_belief,
    scale_by_nadam,
    scale_by_radam,
    scale_by_yogi,
)


def adam(
    lr: Any = 1e-3,
    betas: Any = (0.9, 0.999),
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
    mask: Any = None,
) -> GradientTransformation:
    """Make Adam, with weight decay as an L2 penalty (see `adamw` for the decoupled one).

    Args:
        lr: learning rate, >= 0; like all that follow but the flags, a number, a tensor (0-dim)
            or a schedule.
        betas: (beta1, beta2): decay of the mean of gradients and decay of the mean of squares,
            each at least 0 and below 1.
        eps: added to the root of the mean of squares, >= 0.
        weight_decay: factor of the L2 penalty, >= 0; the Python number 0 leaves it out.
        amsgrad: keep the largest mean of squares, a Python bool.
        maximize: climb, a Python bool.
        mask: bools like the params or their upper part, where weights decay; None for everywhere.

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
    return optimizer(
        maximize,
        penalty(weight_decay, mask),
        scale(betas, eps),
        scale_by_learning_rate(lr),
    )


def adamw(
    lr: Any = 1e-3,
    betas: Any = (0.9, 0.999),
    eps: Any = 1e-8,
    weight_decay: Any = 1e-2,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
    mask: Any = None,
) -> GradientTransformation:
    """Make Adam with decoupled weight decay.

    It decays as torch does: where ``lr * weight_decay`` is below 6e-8, it is lost in float32.
    ``chain(scale_by_adam(), add_decayed_weights(weight_decay), scale_by_learning_rate(lr))``
    keeps it in the update.

    Args:
        lr: learning rate, >= 0; like all that follow but the flags, a number, a tensor (0-dim)
            or a schedule.
        betas: (beta1, beta2): decay of the mean of gradients and decay of the mean of squares,
            each at least 0 and below 1.
        eps: added to the root of the mean of squares, >= 0.
        weight_decay: what each step of size lr takes off the parameters, >= 0.
        amsgrad: keep the largest mean of squares, a Python bool.
        maximize: climb, a Python bool.
        mask: bools like the params or their upper part, where weights decay; None for everywhere.

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
    return optimizer(
        maximize,
        scale(betas, eps),
        descend_and_decay(lr, where(mask, weight_decay)),
    )


def adamax(
    lr: Any = 0.002,
    betas: Any = (0.9, 0.999),
    eps: Any = 1e-08,
    weight_decay: Any = 0.0,
    *,
    maximize: bool = False,
    mask: Any = None,
) -> GradientTransformation:
    """Make Adamax: Adam with the largest magnitude in the place of the root.

    Args:
        lr: learning rate, >= 0; like all that follow but the flag, a number, a tensor (0-dim)
            or a schedule.
        betas: (beta1, beta2): decay of the mean of gradients and decay of the largest magnitude,
            each at least 0 and below 1.
        eps: added to each magnitude, >= 0.
        weight_decay: factor of the L2 penalty, >= 0; the Python number 0 leaves it out.
        maximize: climb, a Python bool.
        mask: bools like the params or their upper part, where weights decay; None for everywhere.

    Returns:
        A `GradientTransformation`.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> tx, x = adamax(lr=0.1), torch.tensor([1.0])
        >>> tx.step(x, torch.tensor([5.0]), tx.init(x))[0]
        tensor([0.9000])

    Source: Kingma and Ba 2015, arXiv 1412.6980; `torch.optim.Adamax`.
    """
    return optimizer(
        maximize,
        penalty(weight_decay, mask),
        scale_by_adamax(betas, eps),
        scale_by_learning_rate(lr),
    )


def nadam(
    lr: Any = 0.002,
    betas: Any = (0.9, 0.999),
    eps: Any = 1e-08,
    weight_decay: Any = 0.0,
    momentum_decay: Any = 0.004,
    decoupled_weight_decay: bool = False,
    *,
    maximize: bool = False,
    mask: Any = None,
) -> GradientTransformation:
    """Make NAdam: Adam with a mean that looks ahead.

    Args:
        lr: learning rate, >= 0; like all that follow but the flags, a number, a tensor (0-dim)
            or a schedule.
        betas: (beta1, beta2): decay of the mean of gradients and decay of the mean of squares,
            each at least 0 and below 1.
        eps: added to the root of the mean of squares, >= 0.
        weight_decay: factor of the L2 penalty, >= 0; the Python number 0 leaves it out.
        momentum_decay: how fast the decay of the mean grows to beta1, >= 0.
        decoupled_weight_decay: take the decay off the parameters, as `adamw` does, a Python bool.
        maximize: climb, a Python bool.
        mask: bools like the params or their upper part, where weights decay; None for everywhere.

    Returns:
        A `GradientTransformation`.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> tx, x = nadam(lr=0.1), torch.tensor([1.0])
        >>> tx.step(x, torch.tensor([5.0]), tx.init(x))[0]
        tensor([0.8944])

    Source: Dozat 2016; `torch.optim.NAdam`.
    """
    return optimizer(
        maximize,
        None if decoupled_weight_decay else penalty(weight_decay, mask),
        scale_by_nadam(betas, eps, momentum_decay),
        descend(lr, weight_decay if decoupled_weight_decay else 0.0, mask),
    )


def radam(
    lr: Any = 0.001,
    betas: Any = (0.9, 0.999),
    eps: Any = 1e-08,
    weight_decay: Any = 0.0,
    decoupled_weight_decay: bool = False,
    *,
    maximize: bool = False,
    mask: Any = None,
) -> GradientTransformation:
    """Make RAdam: Adam whose first steps are not divided by a root of few samples.

    Args:
        lr: learning rate, >= 0; like all that follow but the flags, a number, a tensor (0-dim)
            or a schedule.
        betas: (beta1, beta2): decay of the mean of gradients and decay of the mean of squares,
            each at least 0 and below 1.
        eps: added to the root of the mean of squares, >= 0.
        weight_decay: factor of the L2 penalty, >= 0; the Python number 0 leaves it out.
        decoupled_weight_decay: take the decay off the parameters, as `adamw` does, a Python bool.
        maximize: climb, a Python bool.
        mask: bools like the params or their upper part, where weights decay; None for everywhere.

    Returns:
        A `GradientTransformation`.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> tx, x = radam(lr=0.1), torch.tensor([1.0])
        >>> tx.step(x, torch.tensor([5.0]), tx.init(x))[0]
        tensor([0.5000])

    Source: Liu et al. 2020, arXiv 1908.03265; `torch.optim.RAdam`.
    """
    return optimizer(
        maximize,
        None if decoupled_weight_decay else penalty(weight_decay, mask),
        scale_by_radam(betas, eps),
        descend(lr, weight_decay if decoupled_weight_decay else 0.0, mask),
    )


def adabelief(
    lr: Any = 0.001,
    betas: Any = (0.9, 0.999),
    eps: Any = 1e-16,
    eps_root: Any = 1e-16,
    weight_decay: Any = 0.0,
    *,
    maximize: bool = False,
    mask: Any = None,
) -> GradientTransformation:
    """Make AdaBelief: Adam with the squared distance to the mean, and decoupled weight decay.

    Args:
        lr: learning rate, >= 0; like all that follow but the flag, a number, a tensor (0-dim)
            or a schedule.
        betas: (beta1, beta2): decay of the mean of gradients and of that of squared distances,
            each at least 0 and below 1.
        eps: added to the root, >= 0.
        eps_root: added to the mean of squared distances, in each step, >= 0.
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
        >>> tx, x = adabelief(lr=0.9), torch.tensor([1.0])
        >>> tx.step(x, torch.tensor([5.0]), tx.init(x))[0]
        tensor([0.])

    Source: Zhuang et al. 2020, arXiv 2010.07468; optax's of the same name.
    """
    return optimizer(
        maximize,
        scale_by_belief(betas, eps, eps_root),
        descend(lr, weight_decay, mask),
    )


def yogi(
    lr: Any = 0.01,
    betas: Any = (0.9, 0.999),
    eps: Any = 0.001,
    weight_decay: Any = 0.0,
    *,
    maximize: bool = False,
    mask: Any = None,
) -> GradientTransformation:
    """Make Yogi: Adam whose mean of squares grows slowly, with decoupled weight decay.

    Args:
        lr: learning rate, >= 0; like all that follow but the flag, a number, a tensor (0-dim)
            or a schedule.
        betas: (beta1, beta2): decay of the mean of gradients and decay of the mean of squares,
            each at least 0 and below 1.
        eps: added to the root of the mean of squares, >= 0.
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
        >>> tx, x = yogi(lr=0.1), torch.tensor([1.0])
        >>> tx.step(x, torch.tensor([5.0]), tx.init(x))[0]
        tensor([0.9000])

    Source: Zaheer et al. 2018, "Adaptive Methods for Nonconvex Optimization"; optax's of the
    same name.
    """
    return optimizer(
        maximize,
        scale_by_yogi(betas, eps),
        descend(lr, weight_decay, mask),
    )


def adan(
    lr: Any = 0.001,
    betas: Any = (0.98, 0.92, 0.99),
    eps: Any = 1e-08,
    eps_root: Any = 1e-08,
    weight_decay: Any = 0.0,
    *,
    maximize: bool = False,
    mask: Any = None,
) -> GradientTransformation:
    """Make Adan: Adam with a momentum of changes, and decoupled weight decay.

    Args:
        lr: learning rate, >= 0; like all that follow but the flag, a number, a tensor (0-dim)
            or a schedule.
        betas: (beta1, beta2, beta3): decay of the mean of gradients, decay of the mean of changes
            and decay of the mean of squares, each at least 0 and below 1.
        eps: added to the root of the mean of squares, >= 0.
        eps_root: added below the root, >= 0.
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
        >>> tx, x = adan(lr=0.1), torch.tensor([1.0])
        >>> tx.step(x, torch.tensor([5.0]), tx.init(x))[0]
        tensor([0.9000])

    Source: Xie et al. 2022, arXiv 2208.06677; optax's of the same name.
    """
    return optimizer(
        maximize,
        scale_by_adan(betas, eps, eps_root),
        descend(lr, weight_decay, mask),
    )
