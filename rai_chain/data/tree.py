"""Trees of tensors: the one place that imports a pytree library.

A tree is a tensor, or any nest of dict, list and tuple of tensors; ``None`` is a leaf
that passes through everything.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from .plain import ORDINARY

Tree = Any  # a tensor, or a nest of dicts, lists and tuples of tensors
Leaves = list[Tensor | None]
Spec = _pytree.TreeSpec
_DEPTH = 300  # what Python's stack holds, in all that walks through a tree
_TOO_DEEP = f"a tree must be nested at most {_DEPTH} deep  Got: a deeper one"


def flatten(tree: Any) -> tuple[list[Any], Spec]:
    """The leaves of a tree in a fixed order, and what `unflatten` needs to undo it."""
    kind = type(tree)
    if kind in ORDINARY:
        return [tree], ONE
    if kind is dict and not torch.compiler.is_compiling():
        for key, value in tree.items():
            if type(value) not in ORDINARY or type(key) is not str:
                break
        else:
            return list(tree.values()), _of_keys(tuple(tree))
    return _pytree.tree_flatten(tree)


ONE = _pytree.tree_flatten(None)[1]  # of a tree that is one leaf


@functools.lru_cache(maxsize=256)
def _of_keys(keys: tuple[str, ...]) -> Spec:
    """The structure of a dict of tensors; the same object for the same keys."""
    return _pytree.tree_flatten(dict.fromkeys(keys))[1]


def flatten_given(tree: Any) -> tuple[list[Any], Spec]:
    """`flatten` for a tree that comes from outside; ValueError where it is too deep."""
    try:
        leaves, spec = flatten(tree)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if spec.num_nodes - spec.num_leaves > _DEPTH:  # else it cannot be so deep
        depth, level = 0, [spec]
        while level := [child for node in level for child in node.children()]:
            depth += 1
        if depth > _DEPTH:
            raise ValueError(_TOO_DEEP)
    return leaves, spec


def unflatten(leaves: list[Any], spec: Spec) -> Any:
    """The tree of the given structure with the given leaves."""
    if spec is ONE and len(leaves) == 1:
        return leaves[0]
    if spec.type is dict and spec.num_nodes == spec.num_leaves + 1 == len(leaves) + 1:
        return dict(zip(spec.context, leaves, strict=True))
    return _pytree.tree_unflatten(leaves, spec)


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """The tree with `function` applied to each leaf that is not None."""
    leaves, spec = flatten(tree)
    return unflatten([None if leaf is None else function(leaf) for leaf in leaves], spec)


def leaf_names(spec: Spec) -> list[str]:
    """A name for each leaf, for error messages: ``['layer']['bias']``."""
    named, _ = _pytree.tree_flatten_with_path(unflatten(list(range(spec.num_leaves)), spec))
    return [_pytree.keystr(path) or "(the tensor)" for path, _ in named]


def leaf_paths(spec: Spec) -> list[str]:
    """The path of each leaf as parameters are named: ``layer.bias``; a place in a list is ``0``."""
    named, _ = _pytree.tree_flatten_with_path(unflatten(list(range(spec.num_leaves)), spec))
    return [".".join(map(_part, path)) for path, _ in named]


def leaves_like(tree: Any, spec: Spec, name: str, other: str) -> list[Any]:
    """The leaves of `tree`, which must have the structure `spec` that `other` has.

    A list counts as the tuple of the same leaves, and a dict may have its keys in another order.

    Raises:
        ValueError: another structure.
    """
    leaves, own = flatten(tree)
    if own is not spec and own != spec:
        leaves = []
        if not _collect(tree, spec, leaves, prefix=False):
            raise ValueError(
                f"`{name}` must have the tree structure of {other}  "
                f"Got: {outline(own)} for {outline(spec)}"
            )
    return leaves


def spread_over(tree: Any, spec: Spec, name: str, other: str = "`params`") -> list[Any]:
    """A value for each leaf of `spec`: one that stands above several counts for all of them.

    Raises:
        ValueError: `tree` is no tree like `spec`, nor the upper part of one.
    """
    leaves: list[Any] = []
    if not _collect(tree, spec, leaves, prefix=True):
        raise ValueError(
            f"`{name}` must have the tree structure of {other}, or of its upper part  "
            f"Got: {outline(flatten(tree)[1])} for {outline(spec)}"
        )
    return leaves


def finer(a: Any, b: Any) -> Any:
    """The tree of which both are the upper part, where there is one."""
    if not is_container(a) or not is_container(b):
        return a if is_container(a) else b
    if isinstance(a, dict) and isinstance(b, dict):
        return {k: finer(v, b.get(k)) for k, v in a.items()}
    if isinstance(a, dict) or isinstance(b, dict) or len(a) != len(b):
        return a
    return [finer(x, y) for x, y in zip(a, b, strict=True)]


def present(leaves: list[Any], spec: Spec) -> Any:
    """The tree of the leaves; where some are None, a dict path -> leaf of the others.

    A state holds no None: `vmap` takes none, and distributed checkpoints lose it.
    """
    if all(leaf is not None for leaf in leaves):
        if _is_flat(spec):
            rows = zip(spec.context or (), leaves, strict=False)
            return list(leaves) if spec.type is list else dict(rows)
        return unflatten(leaves, spec)
    return {p: x for p, x in zip(leaf_paths(spec), leaves, strict=True) if x is not None}


def presented(tree: Any, spec: Spec, name: str, other: str) -> list[Any]:
    """The leaves that `present` was given; ValueError where they are another tree's."""
    if _is_flat(spec) and type(tree) is spec.type and len(tree) == spec.num_leaves:
        if spec.type is list:
            return list(tree)
        if list(tree) == spec.context:
            return list(tree.values())
    leaves, own = flatten(tree)
    if own == spec:
        return leaves
    if isinstance(tree, dict):
        paths = leaf_paths(spec)
        if set(tree) <= set(paths):
            return [tree.get(path) for path in paths]
    return leaves_like(tree, spec, name, other)


def _is_flat(spec: Spec) -> bool:
    """Whether it is the structure of a list or dict of leaves, which is read without a library."""
    return spec.type in (list, dict) and spec.num_nodes == spec.num_leaves + 1


def at_leaves(tree: Any, spec: Spec) -> list[Any]:
    """What stands in `tree` where `spec` has its leaves: tensors, or whole nests."""
    return spec.flatten_up_to(tree)


def is_container(value: Any) -> bool:
    """Whether `value` is a nest of values rather than one."""
    return isinstance(value, (dict, list, tuple))


def _part(key: Any) -> str:
    return str(next(getattr(key, a) for a in ("key", "idx", "name") if hasattr(key, a)))


def _collect(tree: Any, spec: Spec, found: list[Any], *, prefix: bool) -> bool:
    """Append the leaves of `tree` in the order of `spec`; False where it has another structure."""
    if not is_container(tree):
        found += [tree] * spec.num_leaves
        return prefix or spec.is_leaf()
    if spec.is_leaf():
        return False
    children = spec.children()
    keyed = isinstance(spec.type, type) and issubclass(spec.type, dict)
    if isinstance(tree, dict) and keyed:
        keys = list(unflatten(list(range(spec.num_leaves)), spec))
        if set(keys) != set(tree):
            return False
        parts = [tree[key] for key in keys]
    elif isinstance(tree, dict) or keyed or len(tree) != len(children):
        return False
    else:
        parts = list(tree)
    pairs = zip(parts, children, strict=True)
    return all(_collect(part, child, found, prefix=prefix) for part, child in pairs)


def outline(spec: Spec) -> str:
    """The structure of a tree, a star for each leaf: ``{'a': *, 'b': [*, *]}``."""
    return str(unflatten(["*"] * spec.num_leaves, spec)).replace("'*'", "*")
