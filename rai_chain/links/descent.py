"""From a gradient to a step: the learning rate, its sign, and weight decay."""

from typing import Any

import torch
from torch import Tensor

from ..core.chain import chain
from ..core.define import elementwise
from ..core.pipeline import GradientTransformation
from ..data.checks import add, check_leaves, check_shapes
from ..data.hyper import Flag, NonNegative
from ..data.tree import Tree, flatten, leaves_like, map_leaves, unflatten
from .memory import wide


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


@elementwise(updates=True)
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
def set_to_zero(grad: Tensor) -> Tensor:
    """Replace each element by 0, NaN too: what freezes a parameter, to the bit.

    Example:
        >>> import torch
        >>> set_to_zero().update(torch.tensor([-1.0, float("nan")]), ())[0]
        tensor([0., 0.])

    Source: the function of the same name in optax.
    """
    return torch.zeros_like(grad)


@elementwise
def add_decayed_weights(grad: Tensor, weight_decay: NonNegative = 0.0, *, param: Tensor) -> Any:
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
    return wide(grad) + weight_decay * wide(param)


@elementwise(updates=True)
def descend_and_decay(
    grad: Tensor, lr: NonNegative = 1e-3, weight_decay: NonNegative = 0.0, *, param: Tensor
) -> Any:
    """Multiply by ``-lr``, and move the parameter to ``1 - lr * weight_decay`` times itself.

    It rounds as torch does: where ``lr * weight_decay`` is below half an ulp of 1 (6e-8 in float32,
    as with lr 1e-5 and decay 1e-3) no decay is left. ``chain(add_decayed_weights(weight_decay),
    scale_by_learning_rate(lr))`` keeps it in the update.

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
    param = wide(param)
    return param * (1 - lr * weight_decay) - param - lr * wide(grad)


def apply_updates(params: Tree, updates: Tree) -> Tree:
    """Add updates to parameters.

    Args:
        params: a tree of tensors, floating dtype.
        updates: a tree like `params`; a None leaf leaves its parameter as it is.

    Returns:
        ``params + updates``, in the dtypes of `params`; no input is written.

    Raises:
        ValueError: the trees or the shapes differ.

    Example:
        >>> import torch
        >>> apply_updates({"w": torch.ones(2)}, {"w": torch.tensor([0.5, -1.0])})
        {'w': tensor([1.5000, 0.0000])}

    Source: the function of the same name in optax.
    """
    leaves, spec = flatten(params)
    moves = leaves_like(updates, spec, "updates", "`params`")
    check_leaves(leaves, spec, "params")
    check_leaves(moves, spec, "updates")
    check_shapes(moves, leaves, spec)
    return unflatten([add(p, u) for p, u in zip(leaves, moves, strict=True)], spec)


# ------------------------------------------------------------------ what optimizers are made of


def optimizer(maximize: bool, *links: Any) -> GradientTransformation:
    """The chain of the links that are not None; climbing negates what comes in, as torch does."""
    Flag().check("maximize", maximize)
    links = (negate() if maximize else None, *links)
    return chain(*(link for link in links if link is not None))


def penalty(weight_decay: Any, mask: Any) -> GradientTransformation | None:
    """An L2 penalty; the Python number 0 leaves it out."""
    return None if is_zero(weight_decay) else add_decayed_weights(where(mask, weight_decay))


def descend(lr: Any, weight_decay: Any, mask: Any) -> GradientTransformation:
    """The last link, with decoupled weight decay; the Python number 0 leaves that out."""
    if is_zero(weight_decay):
        return scale_by_learning_rate(lr)
    return descend_and_decay(lr, where(mask, weight_decay))


def where(mask: Any, weight_decay: Any) -> Any:
    """The weight decay of each leaf: 0, which changes no bit, where the mask is False."""
    if mask is None:
        return weight_decay
    if not all(isinstance(m, bool) for m in flatten(mask)[0]):
        raise TypeError(
            "`mask` must be bools like the params or their upper part; for a function use "
            f"`masked(add_decayed_weights(...), function)`  Got: {mask!r}"
        )
    return map_leaves(lambda decays: weight_decay if decays else 0.0, mask)


def is_zero(value: Any) -> bool:
    """Whether a value is the Python number 0, and no tensor or schedule."""
    return isinstance(value, (int, float)) and value == 0
