"""The whole step of an optimizer as one compiled graph: transform, inner step, project."""

import inspect
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch.optim import Optimizer

from ...core.link import FunctionLink
from ...core.pipeline import Link
from ...data.tree import Leaves
from ...engine.run import Run, run_links
from ..slots import Group, Plan

Work = list[tuple[Group, Plan, Leaves]]


class CompiledStep:
    """Compiles when it is first called, once; numbers enter the graph as tensors.

    Hyperparameters of the chain and learning rates may then change without compiling again. A
    change of the inner optimizer's other numbers, or of which gradients are there, compiles
    another graph.
    """

    def __init__(self, inner: Optimizer, work: Work, keys: Collection[str]) -> None:
        refuse_state(inner, [(group, plan) for group, plan, _ in work])
        self.inner = inner
        self.groups: list[Group] = [
            {key: value for key, value in group.items() if key not in keys} for group, _, _ in work
        ]
        bare = inspect.unwrap(type(inner).step)
        parts = [
            (plan.members["gradient"].links, plan.members["parameter"].links, plan.spec, group)
            for group, plan, _ in work
        ]
        params = [list(group["params"]) for group, _, _ in work]
        rows = [group["param_ndim"] for group, _, _ in work]

        def step(grads: list[Leaves], values: list[list[list[Group]]]) -> None:
            for i, (links, _, spec, _) in enumerate(parts):
                run = Run(spec, params[i], rows[i], False, [True] * len(grads[i]))
                run_links(links, grads[i], [()] * len(links), run, values[i][0], "gradient")
            bare(inner)
            for i, (_, links, spec, _) in enumerate(parts):
                run = Run(spec, params[i], rows[i], False, [True] * len(params[i]))
                run_links(links, params[i], [()] * len(links), run, values[i][1], "parameter")

        self.graph: Any = torch.compile(step, fullgraph=True, dynamic=False)

    def __call__(self, work: Work) -> None:
        values = [
            [_tensors(plan.members[phase]) for phase in ("gradient", "parameter")]
            for _, plan, _ in work
        ]
        shared = self.inner.param_groups
        # The graph depends on every number in the groups it sees: it sees the inner optimizer's.
        for own, group in zip(self.groups, shared, strict=True):
            own.update({key: group[key] for key in own})
            if isinstance(own.get("lr"), float):
                own["lr"] = torch.tensor(own["lr"])
        try:
            self.inner.param_groups = self.groups
            self.graph([grads for _, _, grads in work], values)
        finally:
            self.inner.param_groups = shared


def _tensors(members: Any) -> list[Group]:
    """The values of links, the numbers among them as tensors."""
    return [
        {
            name: torch.tensor(value, dtype=torch.float64) if link.is_number(name, value) else value
            for name, value in values.items()
        }
        for link, values in zip(members.links, members.values, strict=True)
    ]


def refuse_state(inner: Optimizer, planned: Iterable[tuple[Group, Plan]]) -> None:
    """Refuse what cannot go into one graph."""
    if not type(inner).__module__.startswith("torch.optim."):
        raise ValueError(f"`compile` must be False for an `InnerOpt` not of torch  Got: {inner!r}")
    for group, plan in planned:
        for members in plan.members.values():
            for slot, link, values in zip(
                members.slots, members.links, members.values, strict=True
            ):
                if not is_stateless(link, values) or slot.draws(group):
                    raise ValueError(
                        f"`compile` must be False for a link with a state or hooks  Got: {link!r}"
                    )


def is_stateless(link: Link, values: dict[str, Any]) -> bool:
    """Whether a link is a function of its inputs and nothing else."""
    return (
        isinstance(link, FunctionLink) and not link.definition.keys and not link._counters(values)
    )
