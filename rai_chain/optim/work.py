"""One step of a param group: gathered, checked, taken, and kept when it has been taken whole."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from ..data.tree import Leaves
from ..engine.run import Phase, State, run_links, runs_plain
from .bound import Bound
from .layout import Pipeline
from .states import Group


@dataclass(eq=False)
class Work:
    """One group in one step: its leaves, and the states of its links before and after."""

    bound: Bound
    leaves: Leaves  # gradients
    states: dict[int, State] = field(default_factory=dict)
    values: dict[int, Group] = field(default_factory=dict)  # schedules evaluated
    later: Group = field(default_factory=dict)  # the schedules' values after this step
    extra: Group = field(default_factory=dict)  # what links ask for by name
    done: set[Phase] = field(default_factory=set)  # the phases that were taken in a faster way

    def prepare(self, state: Mapping[Any, Any], before: "Work | None" = None) -> None:
        """Gather states and evaluate schedules: what raises, raises before anything is written."""
        bound = self.bound
        for phase, places in bound.places.items():
            leaves = bound.params if phase == "parameter" else self.leaves
            for i in places:
                if i in bound.fixed:
                    self.states[i], self.values[i] = bound.fixed[i]
                    continue
                own = bound.gather(i, state, leaves)
                if before is not None and i in before.states:  # a closure that is called again
                    own = bound.keepers[i].joined(before.states[i], own, bound.spec)
                self.states[i] = own
                self.values[i] = bound.links[i].evaluate(bound.values[i], own)
                if i in bound.moving:
                    bound.links[i].check_fit(self.values[i], bound.params, bound.run())
                    self.later |= bound.show(i, bound.links[i].tick(own))

    def skip(self, *phases: Phase) -> None:
        """The leaves went through the links of these phases in another way."""
        for phase in phases:
            for i in self.bound.places[phase]:
                self.states[i] = self.bound.links[i].tick(self.states[i])
        self.done |= set(phases)

    def through(self, phase: Phase, leaves: Leaves, targets: Leaves | None = None) -> None:
        """Put leaves through the links of a phase, in place, or into `targets`."""
        bound, places = self.bound, self.bound.places[phase]
        if not places or phase in self.done:
            return
        links = [bound.links[i] for i in places]
        names = [bound.pipeline.names[i] for i in places]
        values = [self.values[i] for i in places]
        run = bound.run(leaves)
        run.extra = self.extra
        graph, seen = torch.is_grad_enabled(), leaves  # of an inner step that is differentiable
        if graph:
            run.writable = [False] * len(leaves)
            seen = [None if x is None else x.clone() for x in leaves]
        run.plain = runs_plain([*leaves, *bound.params], values)
        states = [self.states[i] for i in places]
        out, states = run_links(links, names, seen, states, run, values, phase)
        rows = zip(targets or leaves, seen, out, strict=True)
        for i, (old, before, new) in enumerate(rows):
            if old is None or new is None or new is old or (graph and new is before):
                continue
            if graph and phase == "gradient":
                leaves[i] = bound.params[i].grad = new
            else:
                old.copy_(new)
        for i, own in zip(places, states, strict=True):
            self.states[i] = own
            if i in bound.moving and bound.links[i].inners:  # which may have waited
                self.later |= bound.show(i, own)

    def move(self) -> None:
        """Put the gradients through the link that steps, and write the new parameters."""
        bound = self.bound
        run = bound.run(self.leaves)
        run.writable = [False] * len(self.leaves)
        links, names, values = bound.links, bound.pipeline.names, [self.values[0]]
        run.extra = self.extra
        run.plain = runs_plain([*self.leaves, *bound.params], values)
        new, (self.states[0],) = run_links(
            links, names, self.leaves, [self.states[0]], run, values, "step"
        )
        for p, value in zip(bound.params, new, strict=True):
            if value is not None and value is not p:
                p.copy_(value)
        if bound.moving:
            self.later |= bound.show(0, self.states[0])

    def ask(self, loss: Any, regrad: Any, *pipelines: Pipeline) -> None:
        """Keep what links ask for by name: the loss, the gradients as they came and elsewhere."""
        for link in (link for pipeline in pipelines for link in pipeline.links if link.needs):
            if "grad_fn" in link.needs and regrad is None:
                raise ValueError(f"`closure` must be given to step, for {link!r}  Got: None")
            if "value" in link.needs and loss is None:
                raise ValueError(f"`closure` must return the loss, which {link!r} needs  Got: None")
            if "grad" in link.needs and "grad" not in self.extra:
                self.extra["grad"] = [None if g is None else g.clone() for g in self.leaves]
            self.extra["value"] = loss
            self.extra["grad_fn"] = partial(regrad, self.bound.params) if regrad else None

    def commit(self, state: Any) -> None:
        """Keep what the links keep, and show the schedules' values of the next step."""
        bound = self.bound
        for i, own in self.states.items():
            if own and i not in bound.fixed:
                seen = bound.params if i in bound.places["parameter"] else self.leaves
                bound.keepers[i].commit(bound.group, state, seen, own, bound.spec)
        if self.later:
            bound.group.update(self.later)
            bound.shown |= self.later
            bound.note()


def again_of(closure: Any, groups: list[Group]) -> Any:
    """A function of some parameters and of where they are to be, to the gradients there."""
    every = [p for group in groups for p in group["params"]]
    return None if closure is None else partial(_regrad, closure, every)


def _regrad(closure: Callable[[], Any], every: Leaves, params: Leaves, moved: Leaves) -> Leaves:
    """The gradients of a closure where some parameters are moved; all is put back, to the bit.

    Args:
        closure: leaves gradients.
        every: all parameters of the optimizer.
        params, moved: those of a group, and where they are to be; None for where they are.
    """
    before = [(p, p.grad) for p in every if p is not None]
    kept = [None if x is None else p.detach().clone() for p, x in zip(params, moved, strict=True)]  # type: ignore[union-attr]
    try:
        _write(params, moved)
        for p, _ in before:
            p.grad = None
        with torch.enable_grad():
            closure()
        return [None if p is None else p.grad for p in params]
    finally:
        _write(params, kept)
        for p, grad in before:
            p.grad = grad


def _write(params: Leaves, values: Leaves) -> None:
    with torch.no_grad():
        for p, value in zip(params, values, strict=True):
            if p is not None and value is not None:
                p.copy_(value)
