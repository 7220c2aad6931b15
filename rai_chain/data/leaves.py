"""Leaf by leaf: what wrappers do with lists of tensors in which some are missing."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .tree import Leaves, Spec, Tree, flatten, leaves_like, present, unflatten


def device_of(leaves: Leaves) -> torch.device:
    """Where the leaves are."""
    return next((leaf.device for leaf in leaves if leaf is not None), torch.device("cpu"))


def choose(condition: Tensor, new: Any, old: Any) -> Any:
    """Leaf by leaf `new` where the condition holds, else `old`.

    A state that its first step completes, as that of `from_torch`, is chosen as a whole: the
    condition is read then, which is possible as such a link is never traced.

    Args:
        condition: 0-dim bool.
        new: a tree of tensors of any shape and dtype.
        old: a tree like it.

    Example:
        >>> choose(torch.tensor(False), [torch.ones(2)], [torch.zeros(2)])
        [tensor([0., 0.])]
    """
    leaves, spec = flatten(new)
    try:
        others = leaves_like(old, spec, "state", "the new state")
    except ValueError:
        return new if bool(condition) else old
    pairs = zip(leaves, others, strict=True)
    return unflatten(
        [torch.where(condition, a, b) if isinstance(a, Tensor) else a for a, b in pairs], spec
    )


def zeros(leaves: Leaves, spec: Spec) -> Tree:
    """A tree of zeros like the leaves, in float32 where they are of a half type.

    Args:
        leaves: the tensors, in order; None stays None.
        spec: what the tree is, as `run.spec` has it.

    Example:
        >>> leaves, spec = flatten({"w": torch.ones(2, dtype=torch.float16)})
        >>> zeros(leaves, spec)
        {'w': tensor([0., 0.])}
    """
    made: Leaves = [
        None
        if leaf is None
        else torch.zeros_like(leaf, dtype=torch.promote_types(leaf.dtype, torch.float32))
        for leaf in leaves
    ]
    return present(made, spec)


def both(function: Callable[[Any, Any], Any], a: Leaves, b: Leaves) -> Leaves:
    """A function of two tensors, leaf by leaf; None stays.

    Args:
        function: two tensors -> a tensor.
        a: tensors or None.
        b: as many.

    Example:
        >>> both(torch.add, [torch.ones(1), None], [torch.ones(1), torch.ones(1)])
        [tensor([2.]), None]
    """
    pairs = zip(a, b, strict=True)
    return [None if x is None or y is None else function(x, y) for x, y in pairs]


def remember(function: Callable[[Any, Any], Any], kept: Leaves, leaves: Leaves) -> Leaves:
    """What is kept, changed by each leaf that is there: ``function(kept, leaf)``.

    Args:
        function: what is kept and a leaf -> what is kept then.
        kept: tensors or None.
        leaves: as many; where one is None, what is kept stays.

    Example:
        >>> remember(torch.add, [torch.ones(1), torch.ones(1)], [torch.ones(1), None])
        [tensor([2.]), tensor([1.])]
    """
    pairs = zip(kept, leaves, strict=True)
    return [x if x is None or y is None else function(x, y) for x, y in pairs]


def beside(rows: Tensor, leaf: Tensor) -> Tensor:
    """What has the leading dimensions of a leaf, in a shape that broadcasts to it."""
    shaped = rows.reshape(rows.shape + (1,) * (leaf.ndim - rows.ndim))
    return shaped.to(leaf.dtype) if rows.is_floating_point() else shaped


def facts_of(looks: bool, leaf: Tensor | None) -> Any:
    """What is remembered of a tensor: which it was, where a function may look at it."""
    if leaf is None:
        return None
    return weakref.ref(leaf) if looks else (leaf.shape, leaf.dtype)


def are_those(leaves: Leaves, looks: bool, facts: list[Any]) -> bool:
    """Whether these are the tensors that are remembered, or some of them alike."""
    pairs = zip(leaves, facts, strict=True)
    if looks:
        return all(leaf is (fact and fact()) for leaf, fact in pairs)
    return all(leaf is None or fact == (leaf.shape, leaf.dtype) for leaf, fact in pairs)
