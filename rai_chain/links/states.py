"""Reading and setting what a state keeps, by key."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..data.messages import meant, told
from ..data.tree import flatten, leaves_like, unflatten


def tree_get(state: Any, key: str) -> Any:
    """What a state keeps under a key, wherever in the nest.

    Args:
        state: of any pipeline, or any nest of dicts, lists and tuples.
        key: such as ``"exp_avg"``; a path or the end of one, ``"0.count"``, where several have it.

    Returns:
        A tensor, or a tree like the params where there is one for each leaf.

    Raises:
        TypeError: `key` is no string.
        ValueError: nothing is kept under the key, or several things are.

    Example:
        >>> import torch
        >>> from rai_chain import adam
        >>> state = adam(0.1).init({"w": torch.zeros(2)})
        >>> tree_get(state, "exp_avg")
        {'w': tensor([0., 0.])}

    Source: the function of the same name in optax.
    """
    return _place(state, key)[1]


def tree_set(state: Any, key: str, value: Any) -> Any:
    """A state with another value under a key; nothing is written.

    Args:
        state: of any pipeline, or any nest of dicts, lists and tuples.
        key: as in `tree_get`.
        value: a number, which fills what is there, or a tensor or tree of the same shapes. It
            gets the dtype and device of what is there.

    Returns:
        A state of the same structure.

    Raises:
        TypeError: `key` is no string.
        ValueError: nothing is kept under the key, several things are, or `value` does not fit.

    Example:
        >>> import torch
        >>> from rai_chain import chain, ema, scale
        >>> tx, g = chain(ema(0.5), scale(-1.0)), torch.ones(2)
        >>> state = tree_set(tx.init(g), "ema", 4.0)
        >>> tx.update(g, tree_set(state, "count", 9))[0]
        tensor([-2.5024, -2.5024])

    Source: the function of the same name in optax.
    """
    path, old = _place(state, key)
    leaves, spec = flatten(old)
    number = isinstance(value, (int, float))
    given = [value] * len(leaves) if number else leaves_like(value, spec, "value", f"`{key}`")
    new = [_like(key, a, b) for a, b in zip(leaves, given, strict=True)]
    return _replaced(state, path, unflatten(new, spec))


def _like(key: str, old: Any, new: Any) -> Any:
    """A value in the place of a tensor."""
    if not isinstance(old, Tensor):
        return new
    if isinstance(new, (int, float)):
        return torch.full_like(old, new)
    if not isinstance(new, Tensor) or new.shape != old.shape:
        raise ValueError(
            f"`value` must have the shape of `{key}`, {tuple(old.shape)}  Got: {told(new)}"
        )
    return new.to(old, copy=True)


def _place(state: Any, key: str) -> tuple[tuple[Any, ...], Any]:
    """The path of the one thing under a key, and that thing."""
    if not isinstance(key, str):
        raise TypeError(f"`key` must be a string  Got: {told(key)}")
    found = list(_under(state, lambda path: f".{path}".endswith(f".{key}")))
    whole = [(path, part) for path, part in found if _name(path) == key]
    if len(whole or found) == 1:
        return (whole or found)[0]
    if not found:
        names = {str(path[-1]) for path, _ in _under(state, lambda path: False, every=True)}
        raise ValueError(f"`key` must be in the state{meant(key, names)}  Got: {key!r}")
    paths = ", ".join(_name(path) for path, _ in found)
    raise ValueError(f"`key` must say which, as the state has {paths}  Got: {key!r}")


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


def _under(
    nest: Any,
    wanted: Callable[[str], bool],
    path: tuple[Any, ...] = (),
    every: bool = False,
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The parts of a nest whose paths are wanted, the upper of two; or every part."""
    items: Any = ()
    if isinstance(nest, dict):
        items = nest.items()
    elif isinstance(nest, (list, tuple)):
        items = enumerate(nest)
    for name, part in items:
        here = (*path, name)
        if every or wanted(_name(here)):
            yield here, part
        if every or not wanted(_name(here)):
            yield from _under(part, wanted, here, every)


def _replaced(nest: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of the nest with another part at a path; what is beside it is the same object."""
    if not path:
        return value
    name, *rest = path
    new = _replaced(nest[name], tuple(rest), value)
    if isinstance(nest, dict):
        return {**nest, name: new}
    parts = [new if i == name else part for i, part in enumerate(nest)]
    return parts if isinstance(nest, list) else tuple(parts)
