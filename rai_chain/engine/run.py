"""One pass of leaves through a row of links: what all homes do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.compiler import is_compiling

from ..data.checks import check_leaves, check_shapes, check_writable, name_of
from ..data.memory import separated
from ..data.messages import check_function, told
from ..data.plain import is_plain
from ..data.rows import ParamNdim
from ..data.tree import Leaves, Spec, flatten, is_container, leaf_names, leaves_like, unflatten
from .chunks import Call, apply_elementwise
from .sharded import has_shards
from .sharded.leaves import apply_outside, run_inside
from .sharded.part import on_parts

Scope = Literal["element", "row", "leaf", "tree"]
Phase = Literal["gradient", "step", "parameter"]
State = dict[str, Any]  # of one link: tensors in dicts and lists
PHASES: tuple[Phase, ...] = ("gradient", "step", "parameter")


@dataclass
class Run:
    """What one pass through a pipeline knows besides the leaves themselves."""

    spec: Spec
    params: Leaves | None = None
    param_ndim: ParamNdim = -1
    plain: bool = False  # eager, no autograd, no functorch: memory may be reused and written
    writable: list[bool] = field(default_factory=list)  # leaf i is ours to write
    extra: dict[str, Any] = field(default_factory=dict)  # named inputs: `value`, `grad`
    name: str = ""  # of the link that runs, with the wrappers around it
    adds: bool = False  # the leaves are updates to add, made by a link that says so
    first: int = 0  # the place of leaf 0 among all leaves, in an optimizer with several groups
    warned: set[Any] | None = None  # of what was warned about; None where nobody warns
    sharded: bool = False  # leaves are parts of DTensors


def run_links(
    links: Sequence[Any],
    names: Sequence[str],
    leaves: Leaves,
    states: list[State],
    run: Run,
    values: list[dict[str, Any]],
    phase: Phase,
) -> tuple[Leaves, list[State]]:
    """Put leaves through the links of one phase."""
    if not (run.plain or run.sharded or is_compiling()) and has_shards(leaves, run.params):
        return run_inside(run_links, runs_plain, links, names, leaves, states, run, values, phase)  # type: ignore[no-any-return]
    leaves, states, waiting = list(leaves), list(states), []
    around = run.name
    for i, link in enumerate(links):
        if link.phase != phase:
            continue
        call = link.elementwise_call(states[i], values[i]) if run.plain else None
        if call is not None:
            waiting.append(call)
            states[i] = link.tick(states[i])
            run.adds |= link.updates
            continue
        if waiting:
            leaves, waiting = elementwise(waiting, leaves, run.writable, run.spec, run.sharded), []
        run.name = around + names[i]
        try:
            if run.sharded and not link.takes_parts:
                leaves, states[i] = apply_outside(link, leaves, states[i], run, values[i])
            else:
                leaves, states[i] = link.apply(leaves, states[i], run, values[i])
        except RuntimeError:
            check_places([link], leaves, [states[i]], run, [values[i]])
            raise
        run.adds |= link.updates
    if waiting:
        leaves = elementwise(waiting, leaves, run.writable, run.spec, run.sharded)
    run.name = around
    return leaves, states


def elementwise(
    calls: Sequence[Call], leaves: Leaves, writable: list[bool], spec: Spec, sharded: bool = False
) -> Leaves:
    """All leaves through elementwise functions; an error names the leaf."""
    if sharded:
        return on_parts(lambda here: elementwise(calls, here, writable, spec), leaves)
    try:
        return apply_elementwise(calls, leaves, writable)
    except (TypeError, ValueError):
        for i, leaf in enumerate(leaves):
            try:
                apply_elementwise(calls, [leaf], [False])
            except (TypeError, ValueError) as error:
                where = leaf_names(spec)[i]
                raise type(error)(f"{error}  in `{where}`") from None
        raise


def check_places(
    links: Sequence[Any],
    leaves: Leaves,
    states: Sequence[State],
    run: Run,
    values: Sequence[dict[str, Any]],
) -> None:
    """Refuse tensors that are not on the devices of the leaves that they go with."""
    for link, state, own in zip(links, states, values, strict=True):
        beside: list[tuple[str, list[Any]]] = [("params", list(run.params or ()))]
        beside += [(f"state: {key}", col) for key, col in link.columns(state, run.spec).items()]
        beside += [(name, [v] * len(leaves)) for name, v in own.items() if isinstance(v, Tensor)]
        for what, column in beside:
            for i, (leaf, other) in enumerate(zip(leaves, column, strict=False)):
                if leaf is None or not isinstance(other, Tensor) or other.device == leaf.device:
                    continue
                if what not in own or other.ndim or not other.is_cpu:
                    name, place = name_of("updates", run.spec, i), name_of(what, run.spec, i)
                    raise ValueError(
                        f"`{what if what in own else place}` must be on {leaf.device} like "
                        f"`{name}`, in {link!r}  Got: {other.device}"
                    )


def to_write(
    links: Sequence[Any], leaves: Leaves, states: Sequence[State], run: Run, values: Any
) -> Leaves:
    """The leaves as they may be written, whatever else is read: see `separated`.

    Refuses leaves that cannot be written, or would be written in part.
    """
    check_writable(leaves, run.spec, "updates")
    check_places(links, leaves, states, run, values)
    if is_compiling():  # a graph writes at the end
        return leaves
    leaves = separated(leaves, [*(run.params or ()), *tensors_of(values)])
    if "grad" in run.extra:
        run.extra["grad"] = separated(run.extra["grad"], leaves)
    return leaves


def runs_plain(tensors: Sequence[Tensor | None], values: Sequence[dict[str, Any]]) -> bool:
    """Whether leaves and hyperparameters are nothing but memory, see `is_plain`."""
    seen: list[object] = list(tensors)
    if torch.is_grad_enabled():
        seen += tensors_of(values)
    return is_plain(seen)


def tensors_of(values: Sequence[dict[str, Any]]) -> list[Tensor]:
    """The tensors among the values of links."""
    found = []
    for own in values:
        for value in own.values():
            if isinstance(value, Tensor):
                found.append(value)
            elif is_container(value):
                found += [x for x in flatten(value)[0] if isinstance(x, Tensor)]
    return found


def one_of_each(links: Sequence[Any], leaves: Leaves, spec: Spec, inplace: bool) -> Leaves:
    """The first entry of each leaf (N, ...) where the first link takes such, else the leaves.

    Refuses other leaves then, and writing in their place.
    """
    if not links or not links[0].reduces:
        return leaves
    if inplace:
        raise ValueError("`inplace` must be False, as the updates change shape  Got: True")
    sizes = {leaf.shape[0] if leaf.ndim else 0 for leaf in leaves if leaf is not None}
    for i, leaf in enumerate(leaves):
        if leaf is not None and (len(sizes) > 1 or sizes == {0}):
            raise ValueError(
                f"`{name_of('updates', spec, i)}` must be (N, ...), an entry for each example, "
                f"with one N >= 1 for all leaves  Got: {tuple(leaf.shape)}"
            )
    return [None if leaf is None else leaf[0] for leaf in leaves]


def named_inputs(
    links: Sequence[Any], extra: Mapping[str, Any], leaves: Leaves, run: Run, inplace: bool
) -> dict[str, Any]:
    """The inputs that links ask for by name; a tree of gradients as its leaves."""
    for name, value in extra.items():
        if name not in ("value", "grad", "grad_fn"):
            raise TypeError(f"`{name}` must be `value`, `grad` or `grad_fn`  Got: {told(value)}")
        if name == "value" and not isinstance(value, (int, float, Tensor, type(None))):
            raise TypeError(f"`value` must be the loss, a number or a tensor  Got: {told(value)}")
    found = {name: value for name, value in extra.items() if value is not None}
    if "grad" in found:
        found["grad"] = leaves_like(found["grad"], run.spec, "grad", "`updates`")
        check_leaves(found["grad"], run.spec, "grad")
    if "grad_fn" in found:
        check_function("grad_fn", found["grad_fn"], "params")
        found["grad_fn"] = partial(_gradients, found["grad_fn"], run.spec, run.params or [])
    for link in links:
        if missing := sorted(link.needs - found.keys()):
            if missing != ["grad"] or links[0].reduces:
                raise ValueError(f"`{missing[-1]}` is needed by {link!r}  Got: nothing")
            found["grad"] = [g.clone() if inplace and g is not None else g for g in leaves]
    return found


def _gradients(function: Any, spec: Spec, params: Leaves, moved: Leaves) -> Leaves:
    """The gradients where some parameters are moved; None for those that are not."""
    whole = [p if x is None else x for p, x in zip(params, moved, strict=True)]
    grads = leaves_like(function(unflatten(whole, spec)), spec, "grad_fn", "`updates`")
    check_leaves(grads, spec, "grad_fn")
    check_shapes(grads, params, spec, "grad_fn")
    return grads
