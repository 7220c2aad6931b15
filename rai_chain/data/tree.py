"""Trees of tensors: the one place that imports a pytree library.

A tree is a tensor, or any nest of dict, list and tuple of tensors; ``None`` is a leaf
that passes through everything.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils import _pytree

Tree = Any  # a tensor, or a nest of dicts, lists and tuples of tensors
Leaves = list[Tensor | None]
Spec = _pytree.TreeSpec


def flatten(tree: Any) -> tuple[list[Any], Spec]:
    """The leaves of a tree in a fixed order, and what `unflatten` needs to undo it."""
    return _pytree.tree_flatten(tree)


def unflatten(leaves: list[Any], spec: Spec) -> Any:
    """The tree of the given structure with the given leaves."""
    return _pytree.tree_unflatten(leaves, spec)


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """The tree with `function` applied to each leaf that is not None."""
    leaves, spec = flatten(tree)
    return unflatten([None if leaf is None else function(leaf) for leaf in leaves], spec)


def leaf_names(spec: Spec) -> list[str]:
    """A name for each leaf, for error messages: ``['layer']['bias']``."""
    named, _ = _pytree.tree_flatten_with_path(unflatten(list(range(spec.num_leaves)), spec))
    return [_pytree.keystr(path) or "(the tensor)" for path, _ in named]


def leaves_like(tree: Any, spec: Spec, name: str, other: str) -> Leaves:
    """The leaves of `tree`, which must have the structure `spec` that `other` has.

    Raises:
        ValueError: another structure; a list counts as the tuple of the same leaves.
    """
    leaves, own = flatten(tree)
    if own != spec and not _same_sequence(own, spec):
        raise ValueError(
            f"`{name}` must have the tree structure of {other}  "
            f"Got: {_outline(own)} for {_outline(spec)}"
        )
    return leaves


def is_container(value: Any) -> bool:
    """Whether `value` is a nest of values rather than one."""
    return isinstance(value, (dict, list, tuple))


def _same_sequence(a: Spec, b: Spec) -> bool:
    flat = (list, tuple)
    return a.type in flat and b.type in flat and a.children() == b.children()


def _outline(spec: Spec) -> str:
    return str(unflatten(["*"] * spec.num_leaves, spec)).replace("'*'", "*")
