"""Whether a state fits the leaves: by the shapes that a link starts with for them."""

from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..data.checks import name_of
from ..data.messages import told
from ..data.tree import Leaves, Spec

_KNOWN = 8  # shapes of leaves, of those that a link saw last


def check_kept(link: Any, columns: Mapping[str, Any], leaves: Leaves, spec: Spec) -> None:
    """Refuse what was kept of leaves of other shapes, by the name of the leaf.

    Args:
        link: whose state it is; its `fresh` says what the state would start with.
        columns: key -> what is kept for each leaf, or one tensor for all.
        leaves, spec: what comes in.
    """
    expected = _shapes(link, leaves, spec)
    for key, column in columns.items():
        shapes = expected.get(key)
        if isinstance(shapes, list):
            for i, (saved, shape) in enumerate(zip(column, shapes, strict=True)):
                if shape is not None and getattr(saved, "shape", None) != shape:
                    _refuse(key, saved, shape, leaves[i], name_of("updates", spec, i))
        elif shapes is not None and _form(column) != shapes:
            _refuse_once(link, key, shapes, column)


def check_once(link: Any, state: Mapping[str, Any], shapes: Mapping[str, Any]) -> None:
    """Refuse what is kept once where it is no tensor of its shape."""
    for key, value in state.items():
        if getattr(value, "shape", None) != shapes[key]:
            _refuse_once(link, key, shapes[key], value)


def _shapes(link: Any, leaves: Leaves, spec: Spec) -> dict[str, Any]:
    """Key -> the shapes of what is kept, learnt once for leaves of the same shapes."""
    shapes = tuple([None if leaf is None else leaf.shape for leaf in leaves])
    if torch.compiler.is_compiling():  # once for a graph, and its sizes may be symbols
        return _learnt(link, shapes, spec)
    known = link.__dict__.setdefault("_shapes", {})
    found = known.get(shapes)
    if found is None or (link.inners and found[0] != spec):
        while len(known) >= _KNOWN:
            known.pop(next(iter(known)))
        found = known[shapes] = spec, _learnt(link, shapes, spec)
    expected: dict[str, Any] = found[1]
    return expected


def _learnt(link: Any, shapes: Any, spec: Spec) -> dict[str, Any]:
    like = [None if shape is None else torch.zeros(shape, device="meta") for shape in shapes]
    try:
        made = link.fresh(like, spec)
    except Exception:  # a user's function that reads its tensor: nothing is known then
        return {}
    return {key: _form(kept) for key, kept in made.items()}


def _form(value: Any) -> Any:
    """The shape of a tensor, and those of a nest of some."""
    if isinstance(value, dict):
        return {key: _form(own) for key, own in value.items()}
    if isinstance(value, list):
        return list(map(_form, value))
    return value.shape if isinstance(value, Tensor) else None


def _refuse(key: str, saved: Any, shape: Any, leaf: Any, name: str) -> NoReturn:
    then = tuple(saved.shape) if isinstance(saved, Tensor) else told(saved)
    now = tuple(leaf.shape)
    if shape == leaf.shape:
        raise ValueError(f"`{name}` must have the shape that `init` saw, {then}  Got: {now}")
    raise ValueError(
        f"`{name}` must have the shape that `init` saw, which made `{key}` {then}  "
        f"Got: {now}, which makes it {tuple(shape)}"
    )


def _refuse_once(link: Any, key: str, shape: Any, value: Any) -> NoReturn:
    form = shape if isinstance(shape, dict) else f"a tensor of shape {tuple(shape)}"
    raise ValueError(
        f"`state[{key!r}]` must be {form} in the state of {link!r}  Got: {told(value)}"
    )
