"""What hyperparameters must satisfy: beside each other, and beside the leaves."""

import functools
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..data.hyper import Range, Rule, Several
from ..data.tree import Leaves, Spec, finer, flatten, is_container, leaf_names, spread_over
from .function import AmbiguousError, Definition, Rows, spread
from .run import Run
from .sharded import has_shards


def must_fit(rule: Rule, value: Any) -> bool:
    """Whether a value has a shape or a device that may not fit, or a size beyond the dtype's."""
    if isinstance(rule, Several):
        return any(must_fit(rule.each, one) for one in value)
    if isinstance(value, (int, float)) or value is None:
        return getattr(rule, "fits", False) and value is not None
    return is_container(value) or (isinstance(value, Tensor) and (value.ndim > 0 or value.is_meta))


def check_together(d: Definition, values: dict[str, Any]) -> None:
    """Refuse values that do not fit each other; those of trees leaf by leaf."""
    if d.check is None:
        return
    trees = _trees(d, values)
    if not trees:
        d.check(values)
        return
    first = next(iter(trees))
    spec = flatten(functools.reduce(finer, trees.values()))[1]
    columns = {n: spread_over(tree, spec, n, f"`{first}`") for n, tree in trees.items()}
    for i, name in enumerate(leaf_names(spec)):
        own = {n: column[i] for n, column in columns.items()}
        if any(value is not None for value in own.values()):  # else there may be no such leaf
            _check_at(d.check, {**values, **own}, name)


def _trees(d: Definition, values: dict[str, Any]) -> dict[str, Any]:
    """The values that are trees, with one for each leaf."""
    several = {n for n, rule in d.rules.items() if isinstance(rule, Several)}
    return {n: v for n, v in values.items() if is_container(v) and n not in several}


def _check_at(check: Callable[[dict[str, Any]], None], values: dict[str, Any], name: str) -> None:
    try:
        check(values)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{error}  in `{name}`") from error


def check_fit(
    d: Definition,
    values: dict[str, Any],
    fitting: Sequence[str],
    leaves: Leaves,
    spec: Spec,
    rows: Rows,
) -> None:
    """Refuse values that do not fit the leaves, by name, before anything is computed.

    Args:
        values: all of them.
        fitting: the names of those that may not fit, see `must_fit`.
    """
    if rows.joined and d.keys:
        raise ValueError(
            f"`param_ndim` must be an int or None for {d.name}, which keeps a state of each "
            f"leaf's rows  Got: {rows.param_ndim!r}"
        )
    if not fitting:
        return
    if rows.joined or d.scope == "tree":
        for name in fitting:
            check_one(d.rules[name], name, values[name], rows.joined)
    own = spread(d, {name: values[name] for name in fitting}, leaves, spec)
    seen = Rows("leaf", None) if rows.joined else rows
    for i, leaf in enumerate(leaves):
        for name, value in own(i).items() if leaf is not None else ():
            _check_beside(d.rules[name], name, value, leaves, i, spec, seen)
    if d.check is not None and _trees(d, values):
        every = spread(d, values, leaves, spec)
        for i, leaf in enumerate(leaves):
            if leaf is not None:
                _check_at(d.check, every(i), leaf_names(spec)[i])


def check_one(rule: Rule, name: str, value: Any, joined: bool = False) -> None:
    """Refuse several values of a rule `per_row` where there is one row, or one tree."""
    for one in value if isinstance(rule, Several) else ():
        check_one(rule.each, name, one, joined)  # type: ignore[union-attr]
    if not getattr(rule, "per_row", False):
        return
    if is_container(value) or (isinstance(value, Tensor) and value.numel() != 1):
        given = "a tree" if is_container(value) else f"shape {tuple(value.shape)}"
        why = ', as `param_ndim="tree"` makes all leaves one row' if joined else ""
        raise ValueError(f"`{name}` must have one value{why}  Got: {given}")


def _check_beside(
    rule: Rule, name: str, value: Any, leaves: Leaves, i: int, spec: Spec, rows: Rows
) -> None:
    """Refuse a value that does not fit leaf i, with what would."""
    if isinstance(rule, Several):
        for one in value:
            _check_beside(rule.each, name, one, leaves, i, spec, rows)
        return
    leaf: Any = leaves[i]
    if isinstance(rule, Range):
        rule.check_fit(name, value, leaf)
    if rows.scope == "tree":
        return
    shape, n = tuple(leaf.shape), math.prod(leaf.shape[: rows.split(leaf)])
    try:
        # Of a DTensor its shape is enough.
        beside = torch.empty(value.shape, device="meta") if has_shards([value]) else value
        rows.value(rule, beside, leaf)
        return
    except AmbiguousError as error:
        each, aligned = error.args
        needs = (
            f"have the shape {each}, one for each row, or {aligned}, along the last dimensions, "
            f"as beside the shape {shape} of `{leaf_names(spec)[i]}` it could mean either"
        )
    except ValueError:
        rowwise, per_row = rows.scope in ("element", "row"), getattr(rule, "per_row", False)
        where = f"`{leaf_names(spec)[i]}` of shape {shape}"
        each = f" one for each of the {n} rows" if rowwise else ""
        if per_row:
            needs = f"have one value{f', or{each} of' if each else ' for'} {where}"
        else:
            needs = f"have one value{each and ','}{each}, or broadcast to {where}"
    raise ValueError(f"`{name}` must {needs}  Got: shape {tuple(value.shape)}")


# ------------------------------------------------------------------ what is kept of a leaf


def warn_of_nothing(
    d: Definition, values: dict[str, Any], leaves: Leaves, run: Run, rows: Rows
) -> None:
    """Warn, once for each leaf, of a selection that keeps nothing of it, as its rows are short."""
    warned = run.warned
    if warned is None or d.selects is None or torch.compiler.is_compiling():
        return
    own = spread(d, values, leaves, run.spec)
    total = sum(leaf.numel() for leaf in leaves if leaf is not None)
    empty: dict[int, str] = {}
    ways = {}  # what would keep something
    for i, leaf in enumerate(leaves):
        if leaf is None or not leaf.numel() or (run.name, d.name, id(leaf)) in warned:
            continue
        size = total if rows.joined else math.prod(leaf.shape[rows.split(leaf) :])
        if d.selects(own(i), size) == 0:
            empty[i] = f"rows of {size}" if size > 1 else "rows of 1 element"
            for way, longer in (("None", leaf.numel()), ('"tree"', total)):
                if d.selects(own(i), longer):
                    ways[way] = f"`param_ndim={way}` makes {_WHOLE[way]}, or "
    if not empty:
        return
    if "at_least" in values:
        ways["at_least"] = f"`{d.name}(..., at_least=1)` keeps one of each row, or "
    names, given = leaf_names(run.spec), ", ".join(f"{k}={v!r}" for k, v in values.items())
    which = ", ".join(f"`{names[i]}` ({size})" for i, size in list(empty.items())[:5])
    more = f" and {len(empty) - 5} more leaves" if len(empty) > 5 else ""
    warnings.warn(
        f"`{d.name}({given})` keeps nothing of {which}{more}: {''.join(ways.values())}`masked` "
        "leaves them out",
        stacklevel=_outside(),
    )
    warned.update((run.name, d.name, id(leaves[i])) for i in empty)


_WHOLE = {"None": "each leaf one row", '"tree"': "all leaves together one row"}


def _outside() -> int:
    """The `stacklevel`, for whoever asks, of the first caller outside of this library and torch."""
    frame: Any = sys._getframe(1)
    level = 1
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in (
        "rai_chain",
        "torch",
    ):
        frame, level = frame.f_back, level + 1
    return level
