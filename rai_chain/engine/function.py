"""How leaves go through the function of a link, by its scope."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.checks import overlaps, shares_memory, write_back
from ..data.hyper import Rule, Several, as_tensor
from ..data.memory import written
from ..data.random import leaf_key, stream
from ..data.rows import TREE, ParamNdim, in_blocks, row_dims, to_rows
from ..data.tree import ONE, Leaves, Spec, is_container, present, presented, spread_over
from .run import Phase, Run, Scope, State
from .sharded import has_shards
from .sharded.leaves import on_shard
from .sharded.part import Part, rows_of
from .sharded.rounds import together

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
    shaped: frozenset[str] = frozenset()  # those under which an element link keeps one of its shape
    selects: Callable[[dict[str, Any], int], int] | None = None
    reduces: bool = False

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


class AmbiguousError(ValueError):
    """A value of a shape that could mean two: one for each row, or as torch broadcasts it."""


class Rows(NamedTuple):
    """How a link sees a leaf: its scope, and what a row is."""

    scope: Scope
    param_ndim: ParamNdim

    @property
    def joined(self) -> bool:
        """Whether all leaves together are one row."""
        return self.scope == "row" and self.param_ndim == TREE

    def view(self, leaf: Tensor) -> Tensor:
        """The leaf as the function sees it; elements are never 0-dim.

        With a 0-dim hyperparameter of a wider dtype torch would compute those in that. What may be
        summed is contiguous: in another order of memory torch sums in another order.
        """
        if self.scope == "element":
            return leaf if leaf.ndim else leaf.reshape(1)
        if isinstance(leaf, Part):
            return rows_of(leaf, self.split(leaf)) if self.scope == "row" else leaf
        return (to_rows(leaf, self.param_ndim) if self.scope == "row" else leaf).contiguous()

    def split(self, leaf: Tensor) -> int:
        """How many leading dimensions of a leaf separate rows; a function of a leaf has none."""
        inside = self.scope in ("leaf", "tree")
        return 0 if inside else leaf.ndim - row_dims(leaf.ndim, self.param_ndim)

    def value(self, rule: Rule, value: Any, leaf: Tensor) -> Any:
        """A tensor hyperparameter as the function sees it, beside a leaf.

        One for each row, (N,) or (N, 1) or the leaf's shape with 1 for the dimensions of a row; or
        what broadcasts to the leaf, unless the rule says that there is one for each row.

        Raises:
            ValueError: it fits the leaf in no way; `AmbiguousError`: in two.
        """
        if not isinstance(value, Tensor):
            if isinstance(value, (tuple, list)) and isinstance(rule, Several):
                return tuple(self.value(rule.each, one, leaf) for one in value)
            return value
        if value.ndim == 0 or (self.scope == "element" and value.shape == leaf.shape):
            return value
        shape, split = tuple(leaf.shape), self.split(leaf)
        n, size = math.prod(shape[:split]), math.prod(shape[split:])
        each = (*shape[:split], *(1 for _ in shape[split:]))
        aligned = (*(1 for _ in range(leaf.ndim - value.ndim)), *value.shape)
        fits = len(aligned) == leaf.ndim and all(
            a in (1, b) for a, b in zip(aligned, shape, strict=True)
        )
        per_row = getattr(rule, "per_row", False)
        if self.scope in ("element", "row") and value.shape in ((n,), (n, 1)):
            if fits and aligned != each and not per_row:
                raise AmbiguousError(each, aligned)
            aligned = each
        elif not fits or (per_row and math.prod(aligned[split:]) != 1):
            raise ValueError
        value = value.reshape(aligned)
        if self.scope != "row":
            return value
        if math.prod(aligned[split:]) == 1:
            return value.reshape(aligned[:split]).expand(shape[:split]).reshape(n, 1)
        return value.expand(shape).reshape(n, size)


def start(d: Definition, leaves: Leaves, spec: Spec, rows: Rows) -> State:
    """What the function keeps, before the first update."""
    if d.start is None:
        return {}
    if d.scope == "tree":
        return dict(d.start([rows.view(leaf) for leaf in leaves if leaf is not None]))
    if d.scope == "row" and has_shards(leaves):
        raise NotImplementedError(
            f"`{d.name}` keeps something for each row, which leaves that ranks share must not have "
            f"yet: make it a link of scope element or tree"
        )
    view = rows.view if d.scope != "element" else lambda leaf: leaf
    made = [None if leaf is None else d.start(view(leaf)) for leaf in leaves]
    for leaf, own in zip(leaves, made, strict=True):
        for key, value in (own or {}).items():
            if shares_memory(value, leaf):
                own[key] = value.clone()  # type: ignore[index]
    return {
        key: present([None if one is None else one[key] for one in made], spec)
        for key in sorted(d.keys)
    }


def apply(
    d: Definition, leaves: Leaves, state: State, run: Run, values: dict[str, Any], rows: Rows
) -> tuple[Leaves, State]:
    """Put leaves through the function of a link, with its values and its state."""
    if rows.joined:
        if run.sharded:
            raise NotImplementedError(
                f'`param_ndim` must not be "tree" where ranks share leaves  Got: {d.name}'
            )
        return _as_one_row(d, leaves, state, run, values)
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
        given = {**values, **given}

        def tree() -> Leaves:
            return _tree(d, leaves, state, new_state, run, dict(given), rows)

        return together({0: tree})[0] if run.sharded else tree(), new_state
    per_leaf = spread(d, values, leaves, run.spec)
    parts: dict[int, Any] = {}  # what ranks share: for all leaves together
    kept = {k: (column_of(state, k, run.spec), [None] * len(leaves)) for k in d.keys}
    out: Leaves = list(leaves)
    for i, leaf in enumerate(leaves):
        if leaf is None or leaf.numel() == 0:
            out[i] = run.params[i] if d.phase == "step" and run.params else leaf
            for old, new in kept.values():
                new[i] = old[i]
            continue
        extra = {n: rows.value(d.rules[n], v, leaf) for n, v in per_leaf(i).items()}
        extra.update(given)
        if key is not None:
            extra["key"] = leaf_key(key, run.first + i)
        if "param" in d.given and run.params is not None:
            extra["param"] = rows.view(run.params[i])  # type: ignore[arg-type]
        if "grad" in d.given:
            extra["grad"] = rows.view(run.extra["grad"][i])
        if kept:
            extra["state"] = {
                k: rows.view(old[i]) if k in d.shaped else old[i] for k, (old, _) in kept.items()
            }
        if run.sharded and isinstance(leaf, Part):
            parts[i] = functools.partial(_part, d, leaf, extra, kept, run, i, rows)
        else:
            out[i] = _leaf(d, leaf, extra, kept, run, i, rows)
    for i, result in together(parts).items() if parts else ():
        out[i] = result
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
    return spread_over(value, spec, name) if is_container(value) else None


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
    if "out" in d.given and run.plain and not _widens(extra, view):
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
            own = own.reshape(()) if leaf.ndim == 0 and key in d.shaped else own
            column[i] = own.clone() if any(shares_memory(own, x) for x in ours) else own
        if any(shares_memory(result, column[i]) for _, column in kept.values()):
            result = result.clone()  # whoever writes into the updates must not hit the state
    _check_result(d, result, view)
    kind = run.params[i] if d.phase == "step" and run.params else leaf
    shaped: Tensor = result.reshape(leaf.shape).to(kind.dtype)  # type: ignore[union-attr]
    if run.plain and shaped.stride() != leaf.stride() and not overlaps(leaf):
        shaped = torch.empty_like(leaf).copy_(shaped)  # it lies as the leaf does
    if writable and d.phase != "step":
        same = run.plain and shaped.data_ptr() == leaf.data_ptr()
        return leaf if same else write_back(leaf, shaped)
    run.writable[i] = out is not None
    return shaped


def _widens(values: dict[str, Any], leaf: Tensor) -> bool:
    """Whether the result has a wider dtype than the leaf, in which it is then to be computed."""
    for v in values.values():
        wide = isinstance(v, Tensor) and v.ndim and v.dtype != leaf.dtype
        if wide and torch.promote_types(v.dtype, leaf.dtype) != leaf.dtype:
            return True
    return False


def _as_one_row(
    d: Definition, leaves: Leaves, state: State, run: Run, values: dict[str, Any]
) -> tuple[Leaves, State]:
    """All leaves, one behind the other, as the one row that the function sees.

    It has the widest dtype among theirs; each leaf then rounds its part to its own.
    """
    places = [i for i, leaf in enumerate(leaves) if leaf is not None and leaf.numel()]
    seen: list[Any] = [leaves[i] for i in places]
    params: Any = run.params
    dtype = functools.reduce(torch.promote_types, [leaf.dtype for leaf in seen] or [torch.float32])

    def join(column: Sequence[Any]) -> Tensor | None:
        rows = [column[i].reshape(-1).to(dtype) for i in places]
        return torch.cat(rows) if rows else None

    def as_row(name: str, value: Any) -> Any:
        column = _column(d.rules[name], name, value, run.spec)
        shaped = isinstance(value, Tensor) and value.ndim > 0
        if column is None and (not shaped or getattr(d.rules[name], "per_row", False)):
            return value
        column = [value] * len(leaves) if column is None else column
        if all(column[i] is None for i in places):
            return None
        parts = [
            as_tensor(column[i], leaf.device).to(leaf.device).expand(leaf.shape).reshape(-1)
            for i, leaf in zip(places, seen, strict=True)
        ]
        return torch.cat(parts)

    part = replace(run, spec=ONE, params=None, writable=[run.plain])
    if params and ("param" in d.given or d.phase == "step"):
        part.params = [join(params)]
    if "grad" in d.given:
        part.extra = {**run.extra, "grad": [join(run.extra["grad"])]}
    own = {name: as_row(name, value) for name, value in values.items()}
    (row,), new_state = apply(d, [join(leaves)], state, part, own, Rows("row", None))
    out: Leaves = list(params if d.phase == "step" and params else leaves)
    start = 0
    for i, leaf in zip(places, seen, strict=True):
        piece = row[start : start + leaf.numel()].reshape(leaf.shape)  # type: ignore[index]
        start += leaf.numel()
        if run.writable[i] and d.phase != "step":
            out[i] = write_back(leaf, piece)
        elif run.plain:
            out[i], run.writable[i] = torch.empty_like(out[i]).copy_(piece), True  # type: ignore[arg-type]
        else:
            out[i] = piece.to(out[i].dtype, copy=True)  # type: ignore[union-attr]
    return out, new_state


def _part(d: Definition, leaf: Any, extra: Any, kept: Any, run: Run, i: int, rows: Rows) -> Tensor:
    """One leaf that ranks share."""

    def function(leaf: Any, extra: Any, kept: Any, run: Run, i: int) -> Tensor:
        return _leaf(d, leaf, extra, kept, run, i, rows)

    view: Any = rows.view(leaf)
    here = d.scope == "element"
    if d.scope == "row" and isinstance(view, Part):
        here = not view.spread.axes[1].splits
    return on_shard(function, leaf, view, extra, kept, run, i, here)


def _tree(
    d: Definition,
    leaves: Leaves,
    state: State,
    new_state: State,
    run: Run,
    values: dict[str, Any],
    rows: Rows,
) -> Leaves:
    def seen_of(column: Any) -> list[Any]:
        return [None if column[i] is None else rows.view(column[i]) for i in places]

    places = [i for i, leaf in enumerate(leaves) if leaf is not None]
    seen, out = seen_of(leaves), list(leaves)
    if "param" in d.given and run.params is not None:
        values["param"] = seen_of(run.params)
    if "grad" in d.given:
        values["grad"] = seen_of(run.extra["grad"])
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
        _check_result(d, new_leaf, leaves[i][0] if d.reduces else leaves[i])  # type: ignore[index]
        out[i] = new_leaf
    return written(leaves, out, run.writable)


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
