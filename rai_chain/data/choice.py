"""What masks and labels choose: a value for each leaf, of a tree or a function."""

from collections.abc import Callable
from typing import Any

from .tree import Leaves, Spec, is_container, leaf_paths, spread_over, unflatten


def chosen_by(
    given: Any, leaves: Leaves, spec: Spec, name: str, allows: Callable[[Any], bool]
) -> list[Any]:
    """A value for each leaf: of a tree, of the upper part of one, or of a function.

    Args:
        given: the tree, or a function of a leaf's path, ``"layer.bias"``, or of the whole tree.
        leaves, spec: the params, or what is like them.
        name: of the argument, for messages.
        allows: whether a value is one of those that may come out.
    """
    if not callable(given):
        return spread_over(given, spec, name)
    try:  # a function of a tree may take a string for one, and find no leaves in it
        whole = given(unflatten(list(leaves), spec))
    except Exception:  # it takes a path
        whole = None
    if is_container(whole) or (spec.is_leaf() and whole is not None and allows(whole)):
        return spread_over(whole, spec, name)
    paths = leaf_paths(spec)
    try:
        found = [given(path) for path in paths]
    except Exception:
        if whole is None:
            raise
        return spread_over(whole, spec, name)
    for path, value in zip(paths, found, strict=True):
        if value is None:
            raise TypeError(f"`{name}` must return a value for each path  Got: None for {path!r}")
    return found
