"""Optimizers as chains of small stateful links.

Each is a pure function of tensors through and through, so it goes under `torch.func.vmap`, can be
differentiated in every hyperparameter, and compiles to one graph. Hyperparameters have torch's
names and defaults and count steps per leaf as torch does; links have optax's names. What a chain
returns is what `apply_updates` adds: it points downhill. In the stateful home it is added too,
where no inner optimizer is given.
"""

from typing import Any

import torch
from torch import Tensor

from ..core.chain import chain
from ..core.link import elementwise
from ..core.pipeline import GradientTransformation
from ..data.hyper import Bool, Decay, Fraction, NonNegative, Number
from .transforms import sign

# ------------------------------------------------------------------ links without a state


@elementwise(phase="step")
def add_updates(grad: Tensor, *, param: Tensor) -> Tensor:
    """Step by adding the updates to the parameters, as a pipeline without a stepping link does.

    With it at its end the same pipeline is complete in every home: the optimizer then has no
    inner step of its own.

    Example:
        >>> import torch
        >>> from rai_chain import chain
        >>> from rai_chain.optim import ChainedParamTransformingOptimizer
        >>> tx = chain(scale_by_learning_rate(0.5), add_updates())
        >>> tx.step(torch.ones(2), torch.tensor([1.0, 2.0]), tx.init(torch.ones(2)))[0]
        tensor([0.5000, 0.0000])
        >>> x = torch.ones(2, requires_grad=True)
        >>> x.grad = torch.tensor([1.0, 2.0])
        >>> ChainedParamTransformingOptimizer(tx, params=[x]).step()
        >>> x
        tensor([0.5000, 0.0000], requires_grad=True)

    Source: `apply_updates` in optax.
    """
    return param + grad


@elementwise
def scale_by_learning_rate(
    grad: Tensor, lr: NonNegative = 1e-3, *, out: Tensor | None = None
) -> Tensor:
    """Multiply by ``-lr``: what descends when it is added to the parameter.

    Args:
        lr: learning rate, >= 0.

    Raises:
        ValueError: lr < 0.

    Example:
        >>> import torch
        >>> scale_by_learning_rate(0.5).update(torch.tensor([1.0, -2.0]), ())[0]
        tensor([-0.5000,  1.0000])

    Source: the function of the same name in optax.
    """
    return torch.mul(grad, -lr, out=out)


@elementwise
def negate(grad: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Change the sign, so that what follows climbs: `maximize` of torch's optimizers.

    Example:
        >>> import torch
        >>> negate().update(torch.tensor([1.0, -2.0]), ())[0]
        tensor([-1.,  2.])

    Source: `torch.neg`.
    """
    return torch.neg(grad, out=out)


@elementwise
def add_decayed_weights(grad: Tensor, weight_decay: NonNegative = 0.0, *, param: Tensor) -> Tensor:
    """Add `weight_decay` times the parameter; `update` needs `params`.

    Args:
        weight_decay: factor, >= 0.

    Raises:
        ValueError: weight_decay < 0, or no `params`.

    Example:
        >>> import torch
        >>> tx = add_decayed_weights(0.5)
        >>> tx.update(torch.tensor([1.0]), (), params=torch.tensor([4.0]))[0]
        tensor([3.])

    Source: weight decay (Krogh and Hertz 1991, "A simple weight decay can improve generalization").
    """
    return torch.add(grad, weight_decay * param)


@elementwise
def descend_and_decay(
    grad: Tensor, lr: NonNegative = 1e-3, weight_decay: NonNegative = 0.0, *, param: Tensor
) -> Tensor:
    """Multiply by ``-lr``, and move the parameter to ``1 - lr * weight_decay`` times itself.

    It rounds as torch does, which matters in float32: a step's decay is often near 1e-7.

    Args:
        lr: learning rate, >= 0.
        weight_decay: what a step of size lr takes off the parameter, >= 0.

    Raises:
        ValueError: a value outside its range, or no `params`.

    Example:
        >>> import torch
        >>> tx = descend_and_decay(lr=0.5, weight_decay=0.5)
        >>> tx.update(torch.tensor([1.0]), (), params=torch.tensor([4.0]))[0]
        tensor([-1.5000])

    Source: decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101).
    """
    return torch.sub(param * (1 - lr * weight_decay) - param, lr * grad)


# ------------------------------------------------------------------ links with a state


def _zeros(*keys: str, counts: bool = False) -> Any:
    """The state of one leaf: zeros like it under each key, and its own count of steps."""

    def start(leaf: Tensor) -> dict[str, Tensor]:
        count = torch.zeros((), dtype=torch.int64, device=leaf.device)
        return {**{k: torch.zeros_like(leaf) for k in keys}, **({"count": count} if counts else {})}

    return start


def _average(old: Tensor, new: Tensor, decay: Any) -> Any:
    """The mean that forgets: `decay` of the old one remains."""
    return decay * old + (1 - decay) * new


def _bias(decay: Any, count: Tensor) -> Any:
    """The weight that `count` steps of an average from zero sum to, in float64."""
    return 1 - decay ** count.double()


def _root(square: Tensor) -> Any:
    """The square root with a finite derivative, 0, at 0; NaN stays.

    The floor is far below what eps hides, also in float16, whose `tiny` would not be.
    """
    return square.clamp(min=min(torch.finfo(square.dtype).tiny, 2.0**-24)).sqrt()


def _check_nesterov(values: dict[str, Any]) -> None:
    momentum, dampening = values["momentum"], values["dampening"]
    numbers = (int, float)
    if values["nesterov"] and isinstance(momentum, numbers) and momentum <= 0:
        raise ValueError(f"`momentum` must satisfy 0 < momentum with nesterov  Got: {momentum}")
    if values["nesterov"] and isinstance(dampening, numbers) and dampening != 0:
        raise ValueError(f"`dampening` must be 0 with nesterov  Got: {dampening}")


@elementwise(state=_zeros("momentum_buffer", counts=True), check=_check_nesterov)
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
    keep = 1 - dampening * (state["count"] > 0).double()
    buffer = momentum * state["momentum_buffer"] + keep * grad
    new = {"momentum_buffer": buffer, "count": state["count"] + 1}
    return (grad + momentum * buffer if nesterov else buffer), new


@elementwise(state=_zeros("exp_avg", "exp_avg_sq", counts=True))
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
    count = state["count"] + 1
    mean = _average(state["exp_avg"], grad, beta1)
    square = _average(state["exp_avg_sq"], grad * grad, beta2)
    root = _root(square / _bias(beta2, count))
    new = {"exp_avg": mean, "exp_avg_sq": square, "count": count}
    return mean / _bias(beta1, count) / (root + eps), new


@elementwise(state=_zeros("exp_avg", "exp_avg_sq", "max_exp_avg_sq", counts=True))
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
    count = state["count"] + 1
    mean = _average(state["exp_avg"], grad, beta1)
    square = _average(state["exp_avg_sq"], grad * grad, beta2)
    largest = torch.maximum(state["max_exp_avg_sq"], square)
    root = _root(largest / _bias(beta2, count))
    new = {"exp_avg": mean, "exp_avg_sq": square, "max_exp_avg_sq": largest, "count": count}
    return mean / _bias(beta1, count) / (root + eps), new


@elementwise(state=_zeros("square_avg"))
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
    square = _average(state["square_avg"], grad * grad, alpha)
    return grad / (_root(square) + eps), {"square_avg": square}


@elementwise(state=_zeros("grad_avg", "square_avg"))
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
    mean = _average(state["grad_avg"], grad, alpha)
    square = _average(state["square_avg"], grad * grad, alpha)
    new = {"grad_avg": mean, "square_avg": square}
    return grad / (_root(square - mean * mean) + eps), new


@elementwise(state=_zeros("exp_avg"))
def scale_by_lion(
    grad: Tensor, beta1: Decay = 0.9, beta2: Decay = 0.99, *, state: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the sign of a mean of the gradients; NaN stays NaN.

    Args:
        beta1: decay of the mean whose sign is returned, 0 <= beta1 < 1.
        beta2: decay of the mean that is kept, 0 <= beta2 < 1.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> tx = scale_by_lion()
        >>> tx.update(torch.tensor([0.1, 0.0, -20.0]), tx.init(torch.zeros(3)))[0]
        tensor([ 1.,  0., -1.])

    Source: Lion (Chen et al. 2023, arXiv 2302.06675).
    """
    mixed = _average(state["exp_avg"], grad, beta1)
    return sign.function(mixed), {"exp_avg": _average(state["exp_avg"], grad, beta2)}


# ------------------------------------------------------------------ optimizers


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
