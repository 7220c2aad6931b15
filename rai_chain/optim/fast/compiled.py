"""The whole step of an optimizer as one compiled graph: transform, inner step, project."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from ...core.link import FunctionLink, Link
from ...data.hyper import as_tensor
from ...data.tree import map_leaves
from ...engine.graph import graph_of
from ...engine.run import Phase, Run, run_links
from ...engine.sharded import has_shards
from ..bound import Bound
from ..states import Group
from . import inside
from .layer import bare_step

_LIMIT = 16  # graphs of one optimizer, beyond which it steps without one


class CompiledStep:
    """The graphs for parameters of these shapes, some of them with gradients; numbers are tensors.

    One graph, where the inner optimizer's rule can be in it; else one before its step, one after.
    """

    def __init__(self, optimizer: Any, work: list[Any]) -> None:
        self.inner, self.kind = optimizer.inner_opt, type(optimizer.inner_opt)
        self.keys = optimizer._inner_keys & work[0].bound.group.keys()
        runs = [(one.bound, one.bound.spec, one.bound.group["param_ndim"]) for one in work]
        rows = [
            {
                phase: [(bound.links[i], bound.pipeline.names[i], i) for i in places]
                for phase, places in bound.places.items()
            }
            for bound, _, _ in runs
        ]
        shapes = [(spec, ndim) for _, spec, ndim in runs]
        kind, inside_too = self.kind, self.kind in inside.STEPS

        def transform(phase: Phase, params: list[Any], leaves: list[Any], values: Any) -> None:
            for i, (spec, ndim) in enumerate(shapes):
                mine, run = rows[i][phase], Run(spec, params[i], ndim)
                run.writable = [True] * len(leaves[i])
                links, names = [link for link, _, _ in mine], [name for _, name, _ in mine]
                own = [values[i][j] for _, _, j in mine]
                run_links(links, names, leaves[i], [{}] * len(mine), run, own, phase)

        def whole(params: Any, grads: Any, values: Any, groups: list[Group], states: Any) -> None:
            transform("gradient", params, grads, values)
            for i, group in enumerate(groups):
                inside.step(kind, group, params[i], states[i])
            transform("parameter", params, params, values)

        parts: list[Any] = [whole] if inside_too else [transform, transform]
        self.graphs = [graph_of(part, dynamic=False) for part in parts]

    def __call__(self, work: list[Any]) -> None:
        params, grads = [one.bound.params for one in work], [one.leaves for one in work]
        values = [
            [
                {
                    n: as_tensor(v) if link.is_number(n, v) else v
                    for n, v in one.values.get(i, {}).items()
                }
                for i, link in enumerate(one.bound.links)
            ]
            for one in work
        ]
        if len(self.graphs) == 2:
            before, after = self.graphs
            before("gradient", params, grads, values)
            bare_step(self.inner)()
            if any(one.bound.places["parameter"] for one in work):
                after("parameter", params, params, values)
            return
        groups = [self._numbers({k: one.bound.group[k] for k in self.keys}) for one in work]
        state = self.inner.state
        off = [
            {"momentum_buffer"} if not one.bound.group.get("momentum", 1) else () for one in work
        ]
        states = [
            [
                {k: v for k, v in state[p].items() if torch.is_tensor(v) and k not in out}
                for p in own
            ]
            for own, out in zip(params, off, strict=True)
        ]
        self.graphs[0](params, grads, values, groups, states)

    def _numbers(self, group: Group) -> Group:
        """The inner optimizer's hyperparameters, the numbers among them as tensors."""
        names = inside.STEPS[self.kind][1]
        return {k: map_leaves(as_tensor, v) if k in names else v for k, v in group.items()}


def compiled_step(optimizer: Any, work: list[Any]) -> bool:
    """Take the step in one graph, once the inner optimizer has its state; whether it was taken."""
    inner, graphs = optimizer.inner_opt, optimizer._graphs
    check_compile(optimizer, [one.bound for one in work])
    if graphs is None:
        return False
    for one in work if type(inner) in inside.STEPS else ():
        for p in one.bound.params:
            state = inner.state.get(p, {})
            if p.grad is not None and inside.starts_anew(type(inner), one.bound.group, state):
                return False
    key = tuple(
        (
            tuple((p.shape, p.dtype, p.grad is None) for p in one.bound.params),
            one.bound.group["param_ndim"],
            *(tuple(places) for places in one.bound.places.values()),
        )
        for one in work
    )
    if key not in graphs and len(graphs) >= _LIMIT:
        return _give_up(optimizer)
    graph = graphs[key] = graphs.get(key) or CompiledStep(optimizer, work)
    graph(work)
    for one in work:
        one.skip("gradient", "parameter")
    return True


def _give_up(optimizer: Any) -> bool:
    optimizer._graphs = None
    warnings.warn(
        "`compile` made too many graphs, each for other gradients that are None or other shapes: "
        "this optimizer steps without one from now on",
        stacklevel=5,
    )
    return False


def check_compile(optimizer: Any, bounds: Sequence[Bound]) -> None:
    """Refuse what cannot go into one graph."""
    inner = optimizer.inner_opt
    if not type(inner).__module__.startswith("torch.optim"):
        raise ValueError(f"`compile` must be False for an `InnerOpt` not of torch  Got: {inner!r}")
    if isinstance(inner, torch.optim.LBFGS):
        raise ValueError("`compile` must be False for LBFGS, which calls its closure several times")
    for bound in bounds:
        if has_shards(bound.params):
            raise ValueError("`compile` must be False for parameters that are DTensors")
        for name in ("fused", "foreach"):
            if bound.group.get(name):
                raise ValueError(f"`{name}` must not be True with `compile`  Got: True")
        for i in (*bound.places["gradient"], *bound.places["parameter"]):
            link, values = bound.links[i], bound.values[i]
            if not _is_stateless(link, values):
                raise ValueError(
                    f"`compile` must be False for a link with a state or hooks  Got: {link!r}"
                )
            if link.needs:
                raise ValueError(
                    f"`compile` must be False for a link that needs {' and '.join(link.needs)}  "
                    f"Got: {link!r}"
                )


def _is_stateless(link: Link, values: Group) -> bool:
    if link.name == "inner":
        return True  # it runs the inner optimizer's schedules
    if not isinstance(link, FunctionLink):
        return False
    return not link.definition.keys and not link.definition.draw_is_needed(values)
