"""One pass of leaves through a row of links: what both homes do."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ..data.plain import is_plain
from ..data.tree import Leaves, Spec, flatten, is_container
from .chunks import apply_elementwise

Scope = Literal["element", "row", "tree"]
Phase = Literal["gradient", "step", "parameter"]
State = Any
PHASES: tuple[Phase, ...] = ("gradient", "step", "parameter")


@dataclass
class Run:
    """What one pass through a pipeline knows besides the leaves themselves."""

    spec: Spec
    params: Leaves | None = None
    param_ndim: int | None = -1
    plain: bool = False  # eager, no autograd, no functorch: memory may be reused and written
    writable: list[bool] = field(default_factory=list)  # leaf i is ours to write


def run_links(
    links: Sequence[Any],
    leaves: Leaves,
    states: list[State],
    run: Run,
    values: list[dict[str, Any]],
    phase: Phase,
) -> tuple[Leaves, list[State]]:
    """Put leaves through the links of one phase: what both homes do."""
    leaves, states, waiting = list(leaves), list(states), []
    for i, link in enumerate(links):
        if link.phase != phase:
            continue
        call = link.elementwise_call(states[i], values[i]) if run.plain else None
        if call is not None:
            waiting.append(call)
            states[i] = link.tick(states[i])
            continue
        if waiting:
            leaves, waiting = apply_elementwise(waiting, leaves, run.writable), []
        leaves, states[i] = link.apply(leaves, states[i], run, values[i])
    if waiting:
        leaves = apply_elementwise(waiting, leaves, run.writable)
    return leaves, states


def runs_plain(tensors: Sequence[Tensor | None], values: Sequence[dict[str, Any]]) -> bool:
    """Whether leaves and hyperparameters are nothing but memory, see `is_plain`."""
    seen: list[object] = list(tensors)
    if torch.is_grad_enabled():
        for own in values:
            for value in own.values():
                seen += flatten(value)[0] if is_container(value) else (value,)
    return is_plain(seen)
