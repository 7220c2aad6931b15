"""How leaves go through the function of a link, by its scope."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.checks import overlaps, shares_memory, write_back
from ..data.hyper import Range, Rule, Several
from ..data.random import leaf_key, stream
from ..data.rows import in_blocks, row_dims, to_rows
from ..data.tree import (
    Leaves,
    Spec,
    is_container,
    leaf_names,
    leaves_like,
    present,
    presented,
)
from .run import Phase, Run, Scope, State

# What a function may ask for, as keyword-only parameters, besides its hyperparameters.
GIVEN = frozenset({"out", "param", "state", "step", "key", "value", "grad"})
COUNTERS = ("step", "seed")  # what a state holds besides what the function keeps


@dataclass(frozen=True)
class Definition:
    """What a decorator reads off a link function."""

    function: Callable[..., Any]
    scope: Scope
    phase: Phase
    rules: dict[str, Rule]
    given: frozenset[str]
    start: Callable[..., dict[str, Tensor]] | None
    check: Callable[[dict[str, Any]], None] | None
    draws: str | None
    updates: bool
    keys: frozenset[str]  # of the state that `start` makes

    @property
    def name(self) -> str:
        """The name of the function, and so of the link."""
        return self.function.__name__

    def draw_is_needed(self, values: dict[str, Any]) -> bool:
        """Whether the function draws: not where the value that `draws` names is the number 0."""
        if "key" not in self.given or self.draws is None:
            return "key" in self.given
        value = values[self.draws]
        return isinstance(value, Tensor) or callable(value) or bool(value)


class Rows(NamedTuple):
    """How a link sees a leaf: its scope, and what a row is."""

    scope: Scope
    param_ndim: int | None

    def view(self, leaf: Tensor) -> Tensor:
        """The leaf as the function sees it."""
        return to_rows(leaf, self.param_ndim) if self.scope == "row" else leaf

    def value(self, name: str, value: Any, leaf: Tensor) -> Any:
        """A tensor hyperparameter as the function sees it, beside a leaf.

        For rows: one for each row, (N,) or (N, 1), or one for each element.

        Raises:
            ValueError: it fits the leaf in no way.
        """
        if not isinstance(value, Tensor) or value.ndim == 0:
            return value
        shape = leaf.shape
        if self.scope != "row":
            if torch.broadcast_shapes(value.shape, shape) != shape:  # type: ignore[no-untyped-call]
                raise ValueError
            return value
        split = leaf.ndim - row_dims(leaf.ndim, self.param_ndim)
        n, size = math.prod(shape[:split]), math.prod(shape[split:])
        if value.shape in ((n,), (n, 1)) and value.shape != shape:
            return value.reshape(n, 1)
        if value.ndim == leaf.ndim and math.prod(value.shape[split:]) == 1:
            return value.reshape(value.shape[:split]).expand(shape[:split]).reshape(n, 1)
        return value.broadcast_to(shape).reshape(n, size)


def start(d: Definition, leaves: Leaves, spec: Spec, rows: Rows) -> State:
    """What the function keeps, before the first update."""
    if d.start is None:
        return {}
    if d.scope == "tree":
        return dict(d.start([leaf for leaf in leaves if leaf is not None]))
    made = [None if leaf is None else d.start(rows.view(leaf)) for leaf in leaves]
    for leaf, own in zip(leaves, made, strict=True):
        for key, value in (own or {}).items():
            if shares_memory(value, leaf):
                own[key] = value.clone()  # type: ignore[index]
    return {
        key: present([None if one is None else one[key] for one in made], spec)
        for key in sorted(d.keys)
    }


def must_fit(rule: Rule, value: Any) -> bool:
    """Whether a value has a shape that may not fit, or a size that the dtype may not hold."""
    if isinstance(rule, Several):
        return False
    if isinstance(value, (int, float)) or value is None:
        return getattr(rule, "fits", False) and value is not None
    return is_container(value) or (isinstance(value, Tensor) and value.ndim > 0)


def check_fit(
    d: Definition, values: dict[str, Any], leaves: Leaves, spec: Spec, rows: Rows
) -> None:
    """Refuse values that do not fit the leaves, by name, before anything is computed."""
    for name, value in values.items():
        rule = d.rules[name]
        column = leaves_like(value, spec, name, "`params`") if is_container(value) else None
        for i, leaf in enumerate(leaves):
            if leaf is None:
                continue
            own = value if column is None else column[i]
            if isinstance(rule, Range):
                rule.check_fit(name, own, leaf)
            try:
                if d.scope != "tree":
                    rows.value(name, own, leaf)
            except (ValueError, RuntimeError):
                lead = math.prod(leaf.shape[: leaf.ndim - row_dims(leaf.ndim, rows.param_ndim)])
                each = f", one for each of the {lead} rows" if d.scope == "row" else ""
                raise ValueError(
                    f"`{name}` must have one value{each}, or broadcast to the shape "
                    f"{tuple(leaf.shape)} of `{leaf_names(spec)[i]}`  "
                    f"Got: shape {tuple(own.shape)}"
                ) from None


def apply(
    d: Definition, leaves: Leaves, state: State, run: Run, values: dict[str, Any], rows: Rows
) -> tuple[Leaves, State]:
    """Put leaves through the function of a link, with its values and its state."""
    new_state = dict(state)
    given: dict[str, Any] = {}
    if "step" in state:
        new_state["step"] = state["step"] + 1
    for name in ("step", "value"):
        if name in d.given:
            given[name] = state["step"] if name == "step" else run.extra["value"]
    key = stream(state["seed"], state["step"], run.name) if d.draw_is_needed(values) else None
    if d.scope == "tree":
        if key is not None:
            given["key"] = leaf_key(key, run.first)
        return _tree(d, leaves, state, new_state, run, {**values, **given}), new_state
    per_leaf = spread(d, values, leaves, run.spec)
    kept = {k: (column_of(state, k, run.spec), [None] * len(leaves)) for k in d.keys}
    out: Leaves = list(leaves)
    for i, leaf in enumerate(leaves):
        if leaf is None or leaf.numel() == 0:
            out[i] = run.params[i] if d.phase == "step" and run.params else leaf
            for old, new in kept.values():
                new[i] = old[i]
            continue
        extra = {n: rows.value(n, v, leaf) for n, v in per_leaf(i).items()}
        extra.update(given)
        if key is not None:
            extra["key"] = leaf_key(key, run.first + i)
        if "param" in d.given and run.params is not None:
            extra["param"] = rows.view(run.params[i])  # type: ignore[arg-type]
        if "grad" in d.given:
            extra["grad"] = rows.view(run.extra["grad"][i])
        if kept:
            extra["state"] = {k: old[i] for k, (old, _) in kept.items()}
        out[i] = _leaf(d, leaf, extra, kept, run, i, rows)
    for k, (_, new) in kept.items():
        new_state[k] = present(new, run.spec)
    return out, new_state


def column_of(state: State, key: str, spec: Spec) -> list[Any]:
    """What a state keeps for each leaf under a key."""
    return presented(state[key], spec, "updates", f"the tree that `init` saw ({key})")


def spread(
    d: Definition, values: dict[str, Any], leaves: Sequence[Tensor | None], spec: Spec
) -> Callable[[int], dict[str, Any]]:
    """The values for leaf i, where some are trees with one value for each leaf."""
    columns = {}
    for k, v in values.items():
        column = _column(d.rules[k], k, v, spec)
        if column is not None:
            columns[k] = column
    if not columns:
        return lambda i: values
    return lambda i: {**values, **{k: column[i] for k, column in columns.items()}}


def _column(rule: Rule, name: str, value: Any, spec: Spec) -> list[Any] | None:
    """A value for each leaf, where a hyperparameter has one for each; else None."""
    if isinstance(rule, Several):
        parts = [_column(rule.each, name, one, spec) for one in value]
        if not any(parts):
            return None
        every = [p or [one] * spec.num_leaves for p, one in zip(parts, value, strict=True)]
        return list(zip(*every, strict=True))
    return leaves_like(value, spec, name, "`updates`") if is_container(value) else None


def checked(d: Definition, view: Tensor, **values: Any) -> Any:
    """The function on one view; its result has the view's shape."""
    result = d.function(view, **values)
    _check_result(d, result, view)
    return result


def _leaf(
    d: Definition,
    leaf: Tensor,
    extra: dict[str, Any],
    kept: dict[str, tuple[list[Any], list[Any]]],
    run: Run,
    i: int,
    rows: Rows,
) -> Tensor:
    """One leaf through the function, in memory that may be written where there is some."""
    view = rows.view(leaf)
    writable = run.writable[i]
    out = None
    if "out" in d.given and run.plain:
        out = view if writable or view.data_ptr() != leaf.data_ptr() else torch.empty_like(view)
        result = d.function(view, **extra, out=out)
    elif d.scope == "row" and run.plain and d.given <= {"step"}:
        result = in_blocks(lambda part, **own: checked(d, part, **own), view, extra)
    else:
        result = d.function(view, **extra)
    if kept:
        result, new = _with_state(d, result)
        ours = [leaf, run.params[i] if run.params else None]
        for key, (old, column) in kept.items():  # a hyperparameter's dtype must not spread
            own = new[key].to(old[i].dtype)
            column[i] = own.clone() if any(shares_memory(own, x) for x in ours) else own
        if any(shares_memory(result, column[i]) for _, column in kept.values()):
            result = result.clone()  # whoever writes into the updates must not hit the state
    _check_result(d, result, view)
    kind = run.params[i] if d.phase == "step" and run.params else leaf
    shaped: Tensor = result.reshape(leaf.shape).to(kind.dtype)  # type: ignore[union-attr]
    if run.plain and shaped.stride() != leaf.stride() and not overlaps(leaf):
        shaped = torch.empty_like(leaf).copy_(shaped)  # later reductions see the same order
    if writable and d.phase != "step":
        same = run.plain and shaped.data_ptr() == leaf.data_ptr()
        return leaf if same else write_back(leaf, shaped)
    run.writable[i] = out is not None
    return shaped


def _tree(
    d: Definition, leaves: Leaves, state: State, new_state: State, run: Run, values: dict[str, Any]
) -> Leaves:
    places = [i for i, leaf in enumerate(leaves) if leaf is not None]
    seen: list[Any] = [leaves[i] for i in places]
    out = list(leaves)
    if "param" in d.given and run.params is not None:
        values["param"] = [run.params[i] for i in places]
    if "grad" in d.given:
        values["grad"] = [run.extra["grad"][i] for i in places]
    if "state" in d.given:
        own = {k: v for k, v in state.items() if k in d.keys}
        result, new = _with_state(d, d.function(seen, **values, state=own))
        ours = [*seen, *(result if isinstance(result, (list, tuple)) else ()), *(run.params or ())]
        for k, v in new.items():
            new_state[k] = v.clone() if any(shares_memory(v, x) for x in ours) else v
    else:
        result = d.function(seen, **values)
    if not isinstance(result, (list, tuple)) or len(result) != len(seen):
        raise ValueError(f"`{d.name}` must return {len(seen)} tensors  Got: {result!r}")
    for i, new_leaf in zip(places, result, strict=True):
        old = leaves[i]
        _check_result(d, new_leaf, old)
        out[i] = write_back(old, new_leaf) if old is not None and run.writable[i] else new_leaf
    return out


def _with_state(d: Definition, result: Any) -> tuple[Any, dict[str, Tensor]]:
    """What a function with a state returned: its result and its new state."""
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
        raise TypeError(
            f"`{d.name}` must return (result, new state), as it keeps a state  "
            f"Got: {type(result).__name__}"
        )
    if result[1].keys() != d.keys:
        raise ValueError(
            f"`{d.name}` must return a state with the keys {sorted(d.keys)}  "
            f"Got: {sorted(result[1])}"
        )
    return result


def _check_result(d: Definition, result: Any, given: Tensor | None) -> None:
    """Refuse a result of another shape: it would broadcast without a word."""
    if not isinstance(result, Tensor):
        raise TypeError(f"`{d.name}` must return a tensor  Got: {type(result).__name__}")
    if given is not None and result.shape != given.shape:
        raise ValueError(
            f"`{d.name}` must return the shape that it was given, {tuple(given.shape)}  "
            f"Got: {tuple(result.shape)}"
        )
