"""Averages of what passes, and of parameters."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.define import elementwise
from ..data.checks import check_leaves, check_shapes
from ..data.hyper import Bool, Decay, Range
from ..data.tree import Tree, flatten, leaves_like, unflatten
from .memory import average, weight, wide, zeros

AVERAGES = ("params_ema", "schedule_free")  # the keys under which links keep one of parameters


@elementwise(state=zeros("ema", counts=True))
def ema(
    grad: Tensor, decay: Decay = 0.9, debias: Bool = True, *, state: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Replace updates by their exponential moving average.

    Args:
        decay: weight of the past, 0 <= decay < 1.
        debias: divide by 1 - decay**count, so that the first average is the first update.

    Raises:
        ValueError: decay outside [0, 1).

    Example:
        >>> import torch
        >>> tx = ema(decay=0.5)
        >>> _, state = tx.update(torch.tensor(1.0), tx.init(torch.tensor(0.0)))
        >>> tx.update(torch.tensor(4.0), state)[0]
        tensor(3.)

    Source: the function of the same name in optax.
    """
    mean, count = average(state["ema"], wide(grad), decay), state["count"] + 1
    return mean / weight(decay, count) if debias else mean, {"ema": mean, "count": count}


@elementwise(phase="parameter", state=zeros("params_ema", counts=True))
def params_ema(
    x: Tensor, decay: Decay = 0.999, *, state: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Keep an exponential moving average of the parameters, which stay; see `averaged_params`.

    It is debiased: after the first step it is the parameters, whatever the decay.

    Args:
        decay: weight of the past, 0 <= decay < 1.

    Raises:
        ValueError: decay outside [0, 1).

    Example:
        >>> import torch
        >>> from rai_chain import chain, scale
        >>> tx, p = chain(scale(-1.0), params_ema(0.5)), torch.tensor(3.0)
        >>> state = tx.init(p)
        >>> for _ in range(2):
        ...     p, state = tx.step(p, torch.tensor(1.0), state)
        >>> p, averaged_params(state)
        (tensor(1.), tensor(1.3333))

    Source: Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging".
    """
    count = state["count"] + 1
    rate = (1 - decay) / weight(decay, count)
    moved = state["params_ema"] + rate * (wide(x) - state["params_ema"])
    return x, {"params_ema": moved, "count": count}


def averaged_params(state: Any) -> Tree:
    """The average that a `params_ema` or `schedule_free` keeps, a tree like the params.

    Args:
        state: of any pipeline with one of them in it.

    Returns:
        The tree; of parameters of a half type in float32.

    Raises:
        ValueError: the state has none, or several.

    Example:
        >>> import torch
        >>> tx, p = params_ema(), {"w": torch.ones(2)}
        >>> averaged_params(tx.step(p, p, tx.init(p))[1])
        {'w': tensor([2., 2.])}

    Source: this library.
    """
    if isinstance(state, torch.optim.Optimizer):
        raise TypeError(
            "`state` must be of a pipeline, or of one parameter of an optimizer, as in "
            f"`averaged_params(optimizer.state[p])`  Got: {type(state).__name__}"
        )
    found = averages_in(state)
    if len(found) != 1:
        raise ValueError(
            f"`state` must have one `params_ema` or `schedule_free`  Got: {len(found)} of them"
        )
    return found[0]


def averages_in(state: Any) -> list[Tree]:
    """All averages of parameters in a nest of states."""
    if not isinstance(state, (dict, list, tuple)):
        return []
    mine = [state[key] for key in AVERAGES if key in state] if isinstance(state, dict) else []
    parts = state.values() if isinstance(state, dict) else state
    return mine or [tree for part in parts for tree in averages_in(part)]


def incremental_update(new_tensors: Tree, old_tensors: Tree, step_size: Any) -> Tree:
    """Move a tree towards another: ``step_size * new + (1 - step_size) * old``.

    Args:
        new_tensors: a tree of tensors; a None leaf leaves the old one.
        old_tensors: a tree like it, whose dtypes the result has.
        step_size: part of the way, a number or a 0-dim tensor.

    Raises:
        TypeError: a leaf is no floating tensor.
        ValueError: trees of two structures, or leaves of two shapes.

    Example:
        >>> import torch
        >>> target = {"w": torch.zeros(2)}
        >>> incremental_update({"w": torch.ones(2)}, target, step_size=0.25)
        {'w': tensor([0.2500, 0.2500])}

    Source: the function of the same name in optax; target networks (Lillicrap et al. 2016,
    arXiv 1509.02971).
    """
    Range().check("step_size", step_size)
    return _both(
        lambda new, old: average(wide(old), wide(new), 1 - step_size), new_tensors, old_tensors
    )


def periodic_update(new_tensors: Tree, old_tensors: Tree, steps: Any, update_period: Any) -> Tree:
    """Take a tree every `update_period` steps, and keep another in between.

    Args:
        new_tensors: a tree of tensors; a None leaf leaves the old one.
        old_tensors: a tree like it, whose dtypes the result has.
        steps: how many were made, an integer or a 0-dim tensor of one.
        update_period: an integer >= 1.

    Raises:
        TypeError: a leaf is no floating tensor.
        ValueError: trees of two structures, leaves of two shapes, or `update_period` below 1.

    Example:
        >>> import torch
        >>> new, old = torch.ones(2), torch.zeros(2)
        >>> periodic_update(new, old, 5, 2), periodic_update(new, old, 6, 2)
        (tensor([0., 0.]), tensor([1., 1.]))

    Source: the function of the same name in optax; target networks (Mnih et al. 2015,
    "Human-level control through deep reinforcement learning").
    """
    Range(1, whole=True).check("update_period", update_period)
    due = steps % update_period == 0
    return _both(
        lambda new, old: torch.where(torch.as_tensor(due, device=old.device), new, old),
        new_tensors,
        old_tensors,
    )


def _both(function: Callable[[Tensor, Tensor], Tensor], new: Tree, old: Tree) -> Tree:
    leaves, spec = flatten(old)
    others = leaves_like(new, spec, "new_tensors", "`old_tensors`")
    check_leaves(leaves, spec, "old_tensors")
    check_leaves(others, spec, "new_tensors")
    check_shapes(others, leaves, spec, "new_tensors", "old one")
    pairs = zip(others, leaves, strict=True)
    return unflatten([b if a is None else function(a, b).to(b.dtype) for a, b in pairs], spec)
