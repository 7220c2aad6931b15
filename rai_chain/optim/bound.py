"""A pipeline bound to a param group: what `hyperparams=` is to one call, lastingly."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from operator import is_
from typing import Any

import torch
from torch import Tensor

from ..core.link import Link
from ..core.pipeline import Values
from ..core.wrapper import Wrapper
from ..data.checks import check_leaves, is_ordinary
from ..data.hyper import REQUIRED, check_number, has_schedule, plain
from ..data.messages import refuse_key
from ..data.rows import check_param_ndim
from ..data.tree import Leaves, Spec, flatten, is_container, leaf_names
from ..engine.chunks import Call
from ..engine.run import Phase, Run, State, run_links
from .layout import Pipeline, Scheduled, at_start
from .params import check_group, check_params
from .states import ENDED, STATES, Group, Keeper

_NUMBERS = (int, float, bool)


@dataclass
class GroupRun(Run):
    """One pass of a param group through the links."""

    group: Group = field(default_factory=dict)


def _shown(value: Any) -> Any:
    """A schedule's value as a group shows it: a number, where no device is waited for."""
    plain = isinstance(value, Tensor) and value.is_cpu and value.ndim == 0
    return value.item() if plain else value


def _same(a: Any, b: Any) -> bool:
    """Whether two values are one number; tensors are not read."""
    return a is b or (isinstance(a, _NUMBERS) and isinstance(b, _NUMBERS) and a == b)


class Bound:
    """What is known of one param group, as long as its values are the same objects."""

    spec: Spec
    params: list[Any]
    links: list[Link]  # of the pipeline, with the group's values, schedules among them
    values: Values  # of each link
    moving: list[int]  # the links with schedules
    fixed: dict[int, tuple[State, Group]]  # of the links that keep nothing: state, and values
    places: dict[Phase, list[int]]
    keepers: list[Keeper]
    calls: list[Call] | None  # the links as functions of any piece of a gradient
    safe: bool  # these are of this library: they do nothing else, and the same at each step
    ordinary: bool  # all parameters are of a kind that links take, and each is there once
    first: int = 0  # the place of the group's first parameter among all of them
    tried: bool = False  # the parameter links were run once
    warns: bool = True  # of what a selection keeps nothing: not of a group that was saved

    def __init__(self, pipeline: Pipeline, group: Group, schedules: Group | None = None) -> None:
        self.pipeline, self.group = pipeline, group
        self.schedules: Group = dict(schedules or {})  # key -> schedule; the group has its value
        self.shown: Group = {}
        self.links, self.keepers, self.values, self.moving, self.fixed = [], [], [], [], {}
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
        for key in self.pipeline.numbers:
            value = group.get(key, 0)
            if type(value) not in _NUMBERS and (
                not isinstance(value, Tensor) or value.numel() != 1
            ):
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
        new.tried, new.warns = self.tried, self.seen is not None or not self.tried
        for alias in pipeline.aliases.keys() & group.keys():
            group[pipeline.aliases[alias]] = group.pop(alias)
        for key in sorted(pipeline.refused & group.keys()):
            refuse_key(key, [*pipeline.keys, pipeline.beside], "this optimizer")
        group.update({k: plain(v) for k, v in group.items() if k not in ("params", STATES)})
        for key in pipeline.numbers:  # of torch's optimizer, which takes them as they are
            if type(group.get(key, 0)) not in _NUMBERS:
                check_number(key, group[key])
        same = new._read_tensors(group, self)
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
        for i, (link, own) in enumerate(zip(pipeline.links, pipeline.keys, strict=True)):
            values = {**link.values, **{n: new.schedules.get(k, group[k]) for n, k in own.items()}}
            if same and all(map(is_, values.values(), self.values[i].values())):
                new._take(i, self)
            else:
                new._read_link(i, values)
        new.places = {p: pipeline.part(p, new.values) for p in ("gradient", "step", "parameter")}
        new.tried = True
        if not self.tried or any(self._is_new(key, group[key]) for key in new.projecting()):
            new.try_projections(group)
        new.read_group = group
        new.find_calls()
        return new

    def _read_tensors(self, group: Group, old: "Bound") -> bool:
        """Read the parameters, their names and rows; whether they are the ones that were known."""
        params = self.params = list(group["params"])
        seen = dict(old.seen or ())
        names, ndim = group.get("param_names"), group.get("param_ndim", -1)
        same = names is seen.get("param_names") and ndim is seen.get("param_ndim", -1)
        same = same and bool(old.seen) and len(params) == len(old.params)
        if same and all(map(is_, params, old.params)):
            self.spec, self.ordinary = old.spec, old.ordinary
            return True
        by_name = names is not None and len(set(names)) == len(params)
        tree: Any = dict.fromkeys(names or ()) if by_name else [None] * len(params)
        self.spec = flatten(tree)[1]
        check_params(params, self.spec)
        self.ordinary = all(map(is_ordinary, params)) and len({*map(id, params)}) == len(params)
        if "param_ndim" in group:
            check_param_ndim(ndim, *params, names=lambda: leaf_names(self.spec))
        return False

    def _take(self, i: int, old: "Bound") -> None:
        """Bind link i as it was bound."""
        self.links.append(old.links[i])
        self.values.append(old.values[i])
        self.keepers.append(old.keepers[i])
        self.moving += [i] if i in old.moving else []
        self.fixed |= {i: old.fixed[i]} if i in old.fixed else {}

    def _read_link(self, i: int, values: Group) -> None:
        """Check the values of link i, and bind it to them."""
        self.pipeline.links[i].check_values(values)
        link, run = self.pipeline.links[i].bound(values), self.run()
        if not self.ordinary and self.pipeline.acts(i, values):
            learn: Leaves = [p if p.requires_grad else None for p in self.params]
            self._check_seen(link, learn, "params")
        run.name, run.warned = self.pipeline.names[i], self.pipeline.warned if self.warns else None
        link.check_fit(values, self.params, run)
        link.check_devices(values, self.params, run)
        self.links.append(link)
        self.values.append(values)
        self.keepers.append(Keeper(link, self.pipeline.names[i]))
        if any(map(has_schedule, values.values())):
            self.moving.append(i)
        if not link.keeps(values):
            none: Leaves = [None] * len(self.params)
            state = self.keepers[i].gather(self.group, {}, none, run, values)
            self.fixed[i] = state, link.evaluate(values, state)

    def _check_seen(self, link: Link, leaves: Leaves, what: str) -> None:
        """Refuse leaves that a link does not take, where it looks at them."""
        if isinstance(link, Wrapper):
            leaves = link.looks_at(leaves, self.run())
        if type(link) is not Scheduled:
            check_leaves(leaves, self.spec, what)

    def check_grads(self, grads: Leaves) -> bool:
        """Refuse gradients that a link does not take; whether all are of a kind that links take.

        Sparse and complex ones pass to the inner optimizer where no link looks at them.
        """
        if all(map(is_ordinary, grads)):
            return True
        for i in (*self.places["gradient"], *self.places["step"]):
            self._check_seen(self.links[i], grads, "grads")
        return False

    def find_calls(self) -> None:
        """The gradient links as elementwise functions, where all is that and nothing is kept."""
        links = [(self.links[i], self.values[i]) for i in self.places["gradient"]]
        calls = [k.elementwise_call({}, own) for k, own in links if not k.keeps(own)]
        known = [call for call in calls if call is not None]
        late = [(self.links[i], self.values[i]) for i in self.places["parameter"]]
        busy = self.moving or self.places["step"] or any(k.keeps(own) for k, own in late)
        self.calls = None if busy or len(known) < len(links) else known
        self.safe = all(link.is_ours for link, _ in links)

    def begin(self, state: Mapping[Any, Any]) -> None:
        """Evaluate the schedules at the steps that the states have."""
        for i in self.moving:
            own = self.gather(i, state, [None] * len(self.params))
            self.links[i].evaluate(self.values[i], own)
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
            link, values, run = self.links[i], self.values[i], self.run()
            if isinstance(link, Scheduled) or link.needs:
                continue  # a class's hook writes in place; there is no loss or gradient yet
            run.group, run.params = group, list(leaves)
            state = link.start(leaves, run, values)
            try:
                values = link.evaluate(values, state)
                run_links(
                    [link], [self.pipeline.names[i]], leaves, [state], run, [values], "parameter"
                )
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
        link, keys = self.links[i], self.pipeline.keys[i]
        now = link.now(self.values[i], state)
        return {key: _shown(now[name]) for name, key in keys.items() if key in self.schedules}


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
        check_group(param_group, "param_group")
        params = [p[1] if isinstance(p, tuple) else p for p in param_group["params"]]
        new = {**self.defaults, **param_group, "params": params}
        return self._read(Bound(self._pipeline, new))

    def _bound_of(self, group: Group) -> Bound:
        """What is known of a group."""
        bound = self._bounds.get(id(group))
        if bound is not None and bound.group is group:
            return bound
        new = Bound(self._pipeline, group)
        if self._bounds:  # else the first groups of all
            new.schedules, new.shown = self._going_on(group)
        return new

    def _going_on(self, group: Group) -> tuple[Group, Group]:
        """The schedules that a group goes on with, and what it shows of them.

        They are those of the group in whose place it was put, which has the same parameters, or of
        the defaults; a number that is not the schedule's ends it.
        """
        params = list(group["params"])
        for old in reversed(self._bounds.values()):
            own = old.group["params"]
            if len(own) == len(params) and all(map(is_, own, params)):
                schedules, shown = old.schedules, old.shown
                break
        else:
            keys = {key for row in self._pipeline.keys for key in row.values()}
            schedules = {k: v for k, v in self.defaults.items() if k in keys and has_schedule(v)}
            shown = at_start(schedules)
        same = [k for k in schedules if _same(group.get(k, REQUIRED), shown.get(k))]
        return {k: schedules[k] for k in same}, {k: group[k] for k in same}

    def _before_saving(self) -> None:
        """Make the groups what a checkpoint takes: no numbers of numpy; ended schedules noted."""
        for group in self.param_groups:
            group.update({k: plain(v) for k, v in group.items() if k not in ("params", STATES)})
        for bound in self._bounds.values():
            bound.mark_ended()

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
