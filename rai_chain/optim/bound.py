"""A pipeline bound to a param group: what `hyperparams=` is to one call, lastingly."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import is_
from typing import Any

import torch
from torch import Tensor

from ..core.link import Link
from ..core.pipeline import Values, refuse_key
from ..data.hyper import REQUIRED, has_schedule
from ..data.rows import check_param_ndim
from ..data.tree import Leaves, Spec, flatten, is_container, leaf_names
from ..engine.chunks import Call
from ..engine.run import Phase, Run, State, run_links, runs_plain
from .layout import Pipeline, Scheduled
from .states import ENDED, STATES, Group, Keeper


@dataclass
class GroupRun(Run):
    """One pass of a param group through the links."""

    group: Group = field(default_factory=dict)


def _shown(value: Any) -> Any:
    """A schedule's value as a group shows it: a number, where no device is waited for."""
    plain = isinstance(value, Tensor) and value.is_cpu and value.ndim == 0
    return value.item() if plain else value


class Bound:
    """What is known of one param group, as long as its values are the same objects."""

    spec: Spec
    params: list[Any]
    values: Values  # of each link, schedules among them
    moving: list[int]  # the links with schedules
    places: dict[Phase, list[int]]
    keepers: list[Keeper]
    calls: list[Call] | None  # the links as functions of any piece of a gradient
    safe: bool  # these do not raise in the middle
    on_cpu: bool
    numel: int  # elements of all parameters
    first: int = 0  # the place of the group's first parameter among all of them
    tried: bool = False  # the parameter links were run once

    def __init__(self, pipeline: Pipeline, group: Group, schedules: Group | None = None) -> None:
        self.pipeline, self.group = pipeline, group
        self.schedules: Group = dict(schedules or {})  # key -> schedule; the group has its value
        self.shown: Group = {}
        self.seen: list[tuple[str, Any]] | None = None
        self.size = 0

    def holds(self) -> bool:
        """Whether the group is as it was when it was read."""
        group = self.group
        if self.seen is None or len(group) - (STATES in group) != self.size:
            return False
        for key, value in self.seen:
            if group.get(key, REQUIRED) is not value:
                return False
        params = group["params"]
        return len(params) == len(self.params) and all(map(is_, params, self.params))

    def resumed(self, group: Group) -> "Bound":
        """This pipeline, bound to a group as it was saved: its schedules go on."""
        ended = group.get(STATES, {}).get(ENDED, {})
        schedules = {k: v for k, v in self.schedules.items() if k not in ended}
        new = Bound(self.pipeline, group, schedules)
        new.shown, new.tried = {k: group.get(k) for k in schedules}, True
        return new

    def read(self) -> "Bound":
        """The group read anew and checked; nothing is changed."""
        pipeline, group = self.pipeline, {**self.group}
        new = Bound(pipeline, self.group, self.schedules)
        new.tried = self.tried
        for alias in pipeline.aliases.keys() & group.keys():
            group[pipeline.aliases[alias]] = group.pop(alias)
        for key in sorted(pipeline.refused & group.keys()):
            refuse_key(key, pipeline.keys, "this optimizer")
        names, params = group.get("param_names"), list(group["params"])
        new.params, new.numel = params, sum(p.numel() for p in params)
        tree: Any = [None] * len(params)
        if names is not None and len(set(names)) == len(params):
            tree = dict.fromkeys(names)
        new.spec = flatten(tree)[1]
        if "param_ndim" in group:
            check_param_ndim(group["param_ndim"], *params, names=lambda: leaf_names(new.spec))
        for own in pipeline.keys:
            for name, key in own.items():
                if key not in group:
                    raise ValueError(
                        f"`{name}` must be given, to {pipeline.label or 'the optimizer'} or in "
                        f"each param group  Got: no `{key}`"
                    )
                if has_schedule(group[key]):
                    new.schedules[key] = group[key]
                elif key in new.schedules and group[key] is not self.shown.get(key, REQUIRED):
                    del new.schedules[key]  # a number written over it ends it
        new.values = [
            {**link.values, **{n: new.schedules.get(k, group[k]) for n, k in own.items()}}
            for link, own in zip(pipeline.links, pipeline.keys, strict=True)
        ]
        new.moving = [i for i, own in enumerate(new.values) if any(map(has_schedule, own.values()))]
        new.places = {p: pipeline.part(p, new.values) for p in ("gradient", "step", "parameter")}
        new.keepers = [Keeper(*pair) for pair in zip(pipeline.links, pipeline.names, strict=True)]
        run = new.run()
        for link, own in zip(pipeline.links, new.values, strict=True):
            link.check_values(own)
            link.check_fit(own, params, run)
        new.tried = True
        if not self.tried or any(self._is_new(key, group[key]) for key in new.projecting()):
            new.try_projections(group)
        new.read_group = group
        new.find_calls()
        return new

    def find_calls(self) -> None:
        """The gradient links as elementwise functions, where all is that and nothing is kept."""
        links = [(self.pipeline.links[i], self.values[i]) for i in self.places["gradient"]]
        calls = [k.elementwise_call({}, own) for k, own in links if not k.keeps(own)]
        known = [call for call in calls if call is not None]
        late = [(self.pipeline.links[i], self.values[i]) for i in self.places["parameter"]]
        busy = self.moving or self.places["step"] or any(k.keeps(own) for k, own in late)
        self.calls = None if busy or len(known) < len(links) else known
        self.safe = all(link.is_ours for link, _ in links)
        self.on_cpu = all(p.is_cpu for p in self.params)

    def begin(self, state: Mapping[Any, Any]) -> None:
        """Evaluate the schedules at the steps that the states have."""
        for i in self.moving:
            own = self.gather(i, state, [None] * len(self.params))
            self.pipeline.links[i].evaluate(self.values[i], own)
            self.shown |= self.show(i, own)

    def projecting(self) -> list[str]:
        """The keys that parameter links read."""
        return [k for i in self.places["parameter"] for k in self.pipeline.keys[i].values()]

    def _is_new(self, key: str, value: Any) -> bool:
        """Whether a value has a shape and is another than it was: it may not fit the tensors."""
        shaped = is_container(value) or (isinstance(value, Tensor) and value.ndim > 0)
        return shaped and dict(self.seen or ()).get(key) is not value

    def try_projections(self, group: Group) -> None:
        """Run the parameter links once, out of place, so that one that raises does it now."""
        if any(p.is_meta for p in self.params):
            return
        leaves = [p.detach() for p in self.params]
        for i in self.places["parameter"]:
            link, values, run = self.pipeline.links[i], self.values[i], self.run()
            if isinstance(link, Scheduled) or link.needs:
                continue  # a class's hook writes in place; there is no loss or gradient yet
            run.group, run.params = group, list(leaves)
            state = link.start(leaves, run, values)
            try:
                link.apply(leaves, state, run, link.evaluate(values, state))
            except (TypeError, ValueError):
                raise
            except Exception as error:
                shapes = ", ".join(str(tuple(p.shape)) for p in leaves)
                raise ValueError(
                    f"`{link!r}` must apply to every parameter of the group: {error}  Got: {shapes}"
                ) from error

    def accept(self, old: "Bound") -> None:
        """Make the group what was read: values in place of schedules, keys by one name."""
        group, read = self.group, self.read_group
        for key in [k for k in group if k not in read]:
            del group[key]
        group.update(read | self.shown)
        self._mark_ended(old.schedules.keys() - self.schedules.keys())
        self.note()
        unknown = set() if self.pipeline.known is None else group.keys() - self.pipeline.known
        for key in sorted(unknown - (old.read_group.keys() if old.seen else set())):
            self.pipeline.warn(key)

    read_group: Group

    def mark_ended(self) -> None:
        """Note in the group, for a checkpoint, over which schedules a number was written."""
        shown = self.shown.items() if self.seen is not None else ()
        over = {k for k, v in shown if k in self.schedules and self.group.get(k) is not v}
        self._mark_ended({k for k in over if not has_schedule(self.group.get(k))})

    def _mark_ended(self, keys: Collection[str]) -> None:
        states = self.group.get(STATES, {})
        before = states.get(ENDED, {})
        ended = {k: v for k, v in before.items() if k not in self.schedules}
        ended |= {k: torch.ones((), device="cpu") for k in keys}
        if ended or before:
            self.group[STATES] = {**states, ENDED: ended}

    def note(self) -> None:
        """Remember the values of the group, to see when they are others."""
        group = self.group
        self.seen = [
            (k, group.get(k, REQUIRED)) for own in self.pipeline.keys for k in own.values()
        ]
        self.seen += [(k, group[k]) for k in ("param_ndim", "param_names") if k in group]
        self.size = len(group) - (STATES in group)

    # ------------------------------------------------------------------ in a step

    def run(self, leaves: Leaves | None = None) -> GroupRun:
        """A pass of the group's tensors; those of `leaves` may be written."""
        group, write = self.group, leaves is not None
        run = GroupRun(self.spec, list(self.params), group.get("param_ndim", -1), group=group)
        run.writable, run.first = [write] * len(self.params), self.first
        return run

    def gather(self, i: int, state: Mapping[Any, Any], leaves: Leaves) -> State:
        """The state of link i."""
        found: State = self.keepers[i].gather(self.group, state, leaves, self.run(), self.values[i])
        return found

    def show(self, i: int, state: State) -> Group:
        """The current values of link i that are scheduled, by key."""
        link, keys = self.pipeline.links[i], self.pipeline.keys[i]
        now = link.now(self.values[i], state)
        return {key: _shown(now[name]) for name, key in keys.items() if key in self.schedules}


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
        for phase, leaves in (
            ("gradient", self.leaves),
            ("step", self.leaves),
            ("parameter", bound.params),
        ):
            for i in bound.places[phase]:  # type: ignore[index]
                pending = before is not None and i in before.states
                own = before.states[i] if pending and before else bound.gather(i, state, leaves)
                self.states[i] = own
                link = bound.pipeline.links[i]
                self.values[i] = link.evaluate(bound.values[i], own)
                if i in bound.moving:
                    link.check_fit(self.values[i], bound.params, bound.run())
        for i in bound.moving:
            if i in self.states:
                self.later |= bound.show(i, bound.pipeline.links[i].tick(self.states[i]))

    def links(self, phase: Phase) -> Iterator[tuple[Link, State, Group]]:
        """The links of a phase, each with its state and values."""
        for i in self.bound.places[phase]:
            yield self.bound.pipeline.links[i], self.states[i], self.values[i]

    def skip(self, *phases: Phase) -> None:
        """The leaves went through the links of these phases in another way."""
        for phase in phases:
            for i in self.bound.places[phase]:
                self.states[i] = self.bound.pipeline.links[i].tick(self.states[i])
        self.done |= set(phases)

    def through(self, phase: Phase, leaves: Leaves) -> None:
        """Put leaves through the links of a phase, in place."""
        bound, places = self.bound, self.bound.places[phase]
        if not places or phase in self.done:
            return
        links = [bound.pipeline.links[i] for i in places]
        names = [bound.pipeline.names[i] for i in places]
        values = [self.values[i] for i in places]
        run = bound.run(leaves)
        run.extra = self.extra
        run.plain = runs_plain([*leaves, *bound.params], values)
        states = [self.states[i] for i in places]
        out, states = run_links(links, names, leaves, states, run, values, phase)
        for old, new in zip(leaves, out, strict=True):
            if new is not old and old is not None and new is not None:
                old.copy_(new)
        for i, own in zip(places, states, strict=True):
            self.states[i] = own
            if i in bound.moving:
                self.later |= bound.show(i, own)

    def move(self) -> None:
        """Put the gradients through the link that steps, and write the new parameters."""
        bound = self.bound
        run = bound.run(self.leaves)
        run.writable = [False] * len(self.leaves)
        (link,) = bound.pipeline.links
        run.name, run.extra = bound.pipeline.names[0], self.extra
        run.plain = runs_plain([*self.leaves, *bound.params], [self.values[0]])
        new, self.states[0] = link.apply(self.leaves, self.states[0], run, self.values[0])
        for p, value in zip(bound.params, new, strict=True):
            if value is not None and value is not p:
                p.copy_(value)
        if bound.moving:
            self.later |= bound.show(0, self.states[0])

    def ask(self, loss: Any, *pipelines: Pipeline) -> None:
        """Keep what links ask for by name: the loss, and the gradients as they came."""
        for link in (link for pipeline in pipelines for link in pipeline.links if link.needs):
            if "value" in link.needs and loss is None:
                raise ValueError(f"`closure` must return the loss, which {link!r} needs  Got: None")
            if "grad" in link.needs and "grad" not in self.extra:
                self.extra["grad"] = [None if g is None else g.clone() for g in self.leaves]
            self.extra["value"] = loss

    def commit(self, state: Any) -> None:
        """Keep what the links keep, and show the schedules' values of the next step."""
        bound = self.bound
        for i, own in self.states.items():
            if own:
                seen = bound.params if i in bound.places["parameter"] else self.leaves
                bound.keepers[i].commit(bound.group, state, seen, own, bound.spec)
        if self.later:
            bound.group.update(self.later)
            bound.shown |= self.later
            bound.note()


class Binding:
    """What an optimizer with a pipeline has: the pipeline bound to each param group."""

    _pipeline: Pipeline
    _bounds: dict[int, Bound]
    param_groups: list[Group]
    defaults: Group
    state: Any

    def _bind(self) -> Sequence[Bound]:
        """A bound pipeline for each group; where a value is another, all are checked first."""
        groups, bounds = self.param_groups, self._bounds
        known = [bounds.get(id(group)) for group in groups]
        first = 0
        for bound, group in zip(known, groups, strict=True):
            if bound is None or bound.group is not group or not bound.holds():
                break
            if bound.first != first:
                break
            first += len(bound.params)
        else:
            if len(known) == len(bounds):
                return known  # type: ignore[return-value]
        found = []
        for group in groups:
            bound = bounds[id(group)] = self._bound_of(group)
            found.append(bound)
        if len(bounds) > len(groups):
            self._bounds = {id(bound.group): bound for bound in found}
        changed = [i for i, bound in enumerate(found) if not bound.holds()]
        if changed:
            news = [self._read(found[i]) for i in changed]
            for i, new in zip(changed, news, strict=True):
                new.accept(found[i])
                found[i] = self._bounds[id(new.group)] = new
        first = 0
        for bound in found:
            bound.first = first
            first += len(bound.params)
        return found

    def _read(self, bound: Bound, check: Callable[[Bound], None] | None = None) -> Bound:
        """The group read anew and checked; an optimizer may check more."""
        new = bound.read()
        if check is not None:
            check(new)
        new.begin(self.state)
        return new

    def _read_new(self, param_group: Group) -> Bound:
        """A param group that is to be added, read and checked."""
        params = param_group["params"]
        if not isinstance(params, (Tensor, set)):
            param_group["params"] = params = list(params)
        items = [params] if isinstance(params, Tensor) else params
        tensors = [p[1] if isinstance(p, tuple) else p for p in items]
        known = [p for p in tensors if isinstance(p, Tensor)]  # torch refuses the others
        new = {**self.defaults, **param_group, "params": known}
        return self._read(Bound(self._pipeline, new))

    def _bound_of(self, group: Group) -> Bound:
        """What is known of a group."""
        bound = self._bounds.get(id(group))
        known = bound is not None and bound.group is group
        return bound if known else Bound(self._pipeline, group)  # type: ignore[return-value]

    def _schedules(self) -> list[Group]:
        """The schedules of each group that still run, for copies and pickles."""
        rows = [(self._bound_of(group), group) for group in self.param_groups]
        return [
            {k: v for k, v in bound.schedules.items() if group.get(k) is bound.shown.get(k)}
            for bound, group in rows
        ]

    def _rebind(self, schedules: Sequence[Group]) -> None:
        """Bind groups that were loaded or copied, with the schedules of each."""
        self._bounds = {}
        for group, own in zip(self.param_groups, schedules, strict=False):
            old = Bound(self._pipeline, group, own)
            old.tried = True
            self._bounds[id(group)] = old.resumed(group)
