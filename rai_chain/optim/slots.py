"""The members of an optimizer's chain, and what a param group is to them."""

import copyreg
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

from ..core.chain import as_links
from ..core.link import UNSET, Factory, FunctionLink, is_schedule
from ..core.pipeline import Link
from ..data.hyper import REQUIRED
from ..data.rows import check_param_ndim, to_batch
from ..data.tree import Leaves, Spec, flatten, is_container, map_leaves, unflatten
from ..engine.chunks import Call
from ..engine.run import Phase, Run, State, run_links, runs_plain
from ..links.from_torch import FromTorch
from ..links.transforms import draw_q, scale_bias

Group = dict[str, Any]
STATES = "link_states"  # the param-group key of the links' states, where there are any
COUNT = ".count"  # among them: the steps taken, where there are schedules
STEP = ".step"  # and the state of a link that steps the whole group
CHAIN_KEYS = frozenset({"grad_scale", "grad_bias", "param_ndim"})
HOOKS: dict[Phase, str] = {
    "gradient": "_pre_step_transform_",
    "parameter": "_post_step_transform_",
}


@dataclass
class GroupRun(Run):
    """One pass of a param group through the chain."""

    group: Group = field(default_factory=dict)


@dataclass(eq=False)
class Slot:
    """A member of an optimizer's chain: a link that reads its values from the param group."""

    link: Link
    bare: dict[str, str]  # hyperparameter -> its key, where no other member has that one
    defaults: Group = field(default_factory=dict)  # hyperparameter -> default value
    fixed: Group = field(default_factory=dict)  # hyperparameters that are no param-group key
    owner: Any = None  # whose `_generator` draws q
    given: str | None = None  # a name from `named_chain`
    name: str = ""
    keys: dict[str, str] = field(init=False)  # hyperparameter -> its param-group key

    def __post_init__(self) -> None:
        self.keys = dict(self.bare)

    @property
    def generator(self) -> Generator | None:
        """What draws q, where it is not a function of the link's state."""
        return None if self.owner is None else self.owner._generator

    @property
    def answers(self) -> dict[str, str]:
        """Bare key -> the key that is read instead, where several have the bare one."""
        return {bare: self.keys[name] for name, bare in self.bare.items()}

    def at(self, phase: Phase) -> Link | None:
        """The link that works in a phase: a class with hooks has one for each."""
        if isinstance(self.link, Hooks):
            return Hooks(self.link.owner, phase, self.link.values, self.link.param_ndim)
        return self.link if self.link.phase == phase else None

    def values(self, group: Group) -> Group:
        """The hyperparameters of a group, for the link."""
        drawn = {} if self.owner is None else {"dq": 0.0}
        return {**self.fixed, **{name: group[key] for name, key in self.keys.items()}, **drawn}

    def check(self, group: Group, owner: str) -> None:
        """Refuse values of a group that are missing or do not fit."""
        for name, key in self.keys.items():
            if key not in group:
                raise ValueError(
                    f"`{name}` must be given, to {owner} or in each param group  Got: no `{key}`"
                )
        self.link.check_values({n: group[k] for n, k in self.keys.items()} | self.fixed)
        if isinstance(self.link, FunctionLink) and self.link.param_ndim is not UNSET:
            check_param_ndim(self.link.param_ndim, *group["params"])

    def draws(self, group: Group) -> bool:
        """Whether a generator draws the q of each tensor of this group."""
        if self.owner is None:
            return False
        dq = group[self.keys["dq"]]
        return isinstance(dq, Tensor) or dq != 0


def slot_of(
    factory: Factory, *, fixed: Group | None = None, owner: Any = None, **bare: str
) -> Slot:
    """A slot for a link that reads its hyperparameters from the param group.

    Args:
        factory: a link factory.
        fixed: hyperparameters that are not read from the group.
        owner: whose `_generator` draws q.
        **bare: hyperparameter=key, where the key has another name.
    """
    names = factory.definition.rules
    fixed = fixed or {}
    link = FunctionLink(factory, {**dict.fromkeys(names), **fixed}, UNSET, 0, check=False)
    return Slot(link, {n: bare.get(n, n) for n in names if n not in fixed}, {}, fixed, owner)


def slots_of_links(transformation: Any, place: int = 0) -> list[Slot]:
    """The slots of a pure pipeline in an optimizer; a link that steps is none."""
    links = as_links(transformation, place)
    given = getattr(transformation, "given", (None,) * len(links))
    slots = []
    for link, name in zip(links, given, strict=True):
        if link.phase != "step":
            keys = group_keys(link)
            fixed = {n: v for n, v in link.values.items() if n not in keys}
            slots.append(Slot(link, {n: n for n in keys}, dict(link.values), fixed, given=name))
    return slots


def group_keys(link: Link) -> list[str]:
    """The hyperparameters that a param group may have: not a schedule that a wrapper runs."""
    runs = not isinstance(link, (FunctionLink, FromTorch))
    return [name for name, value in link.values.items() if not (runs and has_schedule(value))]


def has_schedule(value: Any) -> bool:
    """Whether a hyperparameter is a schedule or a nest with some."""
    if is_container(value):
        return any(map(is_schedule, flatten(value)[0]))
    return is_schedule(value)


class Hooks(Link):
    """A user's class with hooks of its own, as a link on the tensors of a group."""

    owner: Any
    param_ndim: Any

    def __new__(
        cls, owner: Any, phase: Phase = "gradient", names: Iterable[str] = (), ndim: Any = UNSET
    ) -> "Hooks":
        self = super().__new__(cls)
        self.owner, self.phase, self.param_ndim = owner, phase, ndim
        self.name, self.values = type(owner).__name__, dict.fromkeys(names)
        return self

    def __repr__(self) -> str:
        return f"{self.name}.{HOOKS[self.phase]}"

    def __reduce__(self) -> tuple[Any, ...]:
        return copyreg.__newobj__, (Hooks, None), self.__dict__  # type: ignore[attr-defined]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def check_values(self, values: Group) -> None:
        for slot in self.owner._slots:
            slot.check({**values, "params": ()}, self.name)

    def apply(self, leaves: Leaves, state: State, run: Run, values: Group) -> tuple[Leaves, State]:
        assert isinstance(run, GroupRun) and run.params is not None
        group = run.group
        if any(group.get(name) is not value for name, value in values.items()):
            group = {**group, **values}  # bare keys that have another meaning in the chain
        ndim = run.param_ndim if self.param_ndim is UNSET else self.param_ndim
        for param, leaf in zip(run.params, leaves, strict=True):
            if param is not None and leaf is not None:
                self._call(param, ndim, group)
        return leaves, state

    def _call(self, param: Tensor, ndim: int | None, group: Group) -> None:
        """The hook on one parameter; a layout without a view is written back."""
        batch = to_batch(param, ndim)
        seen = batch.grad
        getattr(self.owner, HOOKS[self.phase])(batch, optim_group=group)
        if batch.grad is not seen:
            raise ValueError(
                f"`{self!r}` must modify `param.grad` in place  "
                "Got: another tensor, set as `param.grad`"
            )
        for target, result in ((param, batch), (param.grad, batch.grad)):
            if target is not None and result is not None and result.data_ptr() != target.data_ptr():
                target.copy_(result.reshape(target.shape))


# ------------------------------------------------------------------ groups


@dataclass
class Members:
    """Links of one phase, with the values that a group gives them."""

    slots: list[Slot]
    links: list[Link]
    values: list[Group]

    @classmethod
    def of(cls, slots: Sequence[Slot], phase: Phase, group: Group) -> "Members":
        """Those of the slots that work in a phase."""
        found = [(slot, link) for slot in slots if (link := slot.at(phase)) is not None]
        return cls(
            [s for s, _ in found], [k for _, k in found], [s.values(group) for s, _ in found]
        )

    def calls(self, group: Group) -> list[Call] | None:
        """The links as elementwise functions, where all of them are and none keeps a state."""
        pairs = zip(self.links, self.values, strict=True)
        made = [link.stateless_call(values) for link, values in pairs]
        known = [call for call in made if call is not None]
        return known if len(known) == len(made) else None


@dataclass
class Plan:
    """What is known of one param group, as long as its values are the same objects."""

    schedules: Group = field(default_factory=dict)  # key -> schedule; the group has its value
    tried: bool = False  # the parameter links were run once
    watched: Group = field(default_factory=dict)  # key -> value, of what was read
    spec: Spec = field(default_factory=lambda: flatten([])[1])
    members: dict[Phase, Members] = field(default_factory=dict)
    started: set[Phase] = field(default_factory=set)  # the links' states are in the group
    calls: list[Call] | None = None  # the gradient links, where they are nothing but these
    is_elementwise: bool = False  # the gradients go through `calls` and nothing else happens
    may_cut: bool = False  # these do not raise in the middle, and the tensors are on a CPU
    numel: int = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return Plan, (self.schedules, self.tried)

    def read(self, group: Group, keys: Iterable[str], slots: Sequence[Slot]) -> None:
        """Plan the steps of a group that was checked."""
        self.watched = {key: group.get(key, REQUIRED) for key in keys}
        self.members = {phase: Members.of(slots, phase, group) for phase in HOOKS}
        self.calls = self.members["gradient"].calls(group)
        self.is_elementwise = self.calls is not None and not self.schedules
        ours = all(
            isinstance(link, FunctionLink)
            and link.definition.function.__module__.startswith("rai_chain.")
            for link in self.members["gradient"].links
        )
        self.may_cut = self.is_elementwise and ours and all(p.is_cpu for p in group["params"])
        self.numel = sum(p.numel() for p in group["params"])
        self.spec = flatten([None] * len(group["params"]))[1]
        self.tried, self.started = True, set()

    def forget(self) -> None:
        """Read the group again before the next step."""
        self.watched = {}

    def is_new(self, key: str, value: Any) -> bool:
        """Whether a value has a shape and is another than it was: it may not fit the tensors."""
        shaped = is_container(value) or (isinstance(value, Tensor) and value.ndim > 0)
        return shaped and self.watched.get(key) is not value

    def holds(self, group: Group) -> bool:
        """Whether the group is as it was."""
        for key, value in self.watched.items():
            if group.get(key, REQUIRED) is not value:
                return False
        return bool(self.watched) and self.spec.num_leaves == len(group["params"])


def run_in_place(
    members: Members,
    leaves: Leaves,
    states: dict[str, State],
    run: GroupRun,
    phase: Phase,
    fresh: bool,
) -> dict[str, State]:
    """Put the tensors of a group through links, in place; returns the links' new states."""
    slots, links = members.slots, members.links
    values = _draw(members, leaves, run.group)
    params = run.params or []
    run.plain = runs_plain([*leaves, *params], values)
    own = [states.get(slot.name, ()) for slot in slots]
    if fresh:
        for i, slot in enumerate(slots):
            if slot.name not in states:
                own[i] = links[i].start(params, run, values[i])
    out, own = run_links(links, leaves, own, run, values, phase)
    for old, new in zip(leaves, out, strict=True):
        if new is not old and old is not None and new is not None:
            old.copy_(new)
    return {**states, **{slot.name: state for slot, state in zip(slots, own, strict=True) if state}}


def _draw(members: Members, leaves: Leaves, group: Group) -> list[Group]:
    """The values, with the q of each tensor drawn from the generators, tensor by tensor."""
    drawing = [i for i, slot in enumerate(members.slots) if slot.draws(group)]
    if not drawing:
        return members.values
    values = [dict(own) for own in members.values]
    drawn: dict[int, list[Any]] = {i: [] for i in drawing}
    for leaf in leaves:
        for i in drawing:
            slot, generator = members.slots[i], members.slots[i].generator
            assert generator is not None
            q = None
            if leaf is not None:
                u = torch.rand((), generator=generator, device=generator.device)
                q = draw_q(values[i]["q"], group[slot.keys["dq"]], u)
                q = q.item() if q.is_cpu else q.to(leaf.device)
            drawn[i].append(q)
    for i in drawing:
        values[i]["q"] = drawn[i]
    return values


def group_run(group: Group, spec: Spec | None = None) -> GroupRun:
    """A pass of the tensors of a group; without a `spec`, none of them may be written."""
    params, write = group["params"], spec is not None
    spec = spec or flatten([None] * len(params))[1]
    return GroupRun(spec, params, group["param_ndim"], writable=[write] * len(params), group=group)


def try_projections(slots: Sequence[Slot], group: Group) -> None:
    """Run the parameter links once, out of place, so that one that raises does it now."""
    if any(p.is_meta for p in group["params"]):
        return
    for slot in slots:
        link, values, run = slot.link, slot.values(group), group_run(group)
        leaves = [p.detach() for p in group["params"]]
        try:
            link.apply(leaves, link.start(leaves, run, values), run, values)
        except (TypeError, ValueError):
            raise
        except Exception as error:
            shapes = ", ".join(str(tuple(p.shape)) for p in leaves)
            raise ValueError(
                f"`{link!r}` must apply to every parameter of the group: {error}  Got: {shapes}"
            ) from error


def values_at(schedules: Group, group: Group, ahead: int = 0) -> Group:
    """The values of schedules at a group's count of steps."""
    if not schedules:
        return {}
    return evaluated(schedules, count_of(group) + ahead)


def evaluated(schedules: Group, step: Tensor) -> Group:
    """The values of schedules, and of nests with some, at a step."""
    return {
        key: map_leaves(lambda value: value(step) if is_schedule(value) else value, nest)
        for key, nest in schedules.items()
    }


def count_of(group: Group) -> Tensor:
    """How many steps a group has taken, on its device."""
    device = group["params"][0].device if group["params"] else None
    saved = group.get(STATES, {}).get(COUNT)
    zero = torch.zeros((), dtype=torch.int64, device=device)
    return zero if saved is None else saved.to(zero.device)


def schedules_of(group: Group, keys: Iterable[str]) -> Group:
    """The schedules among the values of a group."""
    return {key: group[key] for key in keys if has_schedule(group.get(key))}


# ------------------------------------------------------------------ states


def generators_of(slots: Sequence[Slot], prefix: str = "") -> dict[str, Generator]:
    """The generators in a chain, by the key of their saved state."""
    found = {}
    for slot in slots:
        if isinstance(slot.link, Hooks):
            found.update(generators_of(slot.link.owner._slots, f"{prefix}{slot.name}."))
        elif slot.generator is not None:
            found[f"{prefix}{slot.name}.generator"] = slot.generator
    return found


def check_states(states: Group, slots: Sequence[Slot], group: Group) -> None:
    """Refuse saved states that are not those of this chain."""
    known = {slot.name for slot in slots} | set(generators_of(slots)) | {COUNT, STEP}
    for name in states:
        if name not in known:
            raise ValueError(f"`{STATES}` must be of this chain  Got: the state of {name!r}")
    for key, generator in generators_of(slots).items():
        if key in states:
            Generator(generator.device).set_state(states[key].cpu())
    run = group_run(group)
    started = {slot.link.phase for slot in slots if slot.name in states}  # all at the first step
    for slot in slots:
        if slot.link.phase in started:
            fresh = slot.link.start(group["params"], run, slot.values(group))
            if not _alike(states.get(slot.name, ()), fresh):
                raise ValueError(
                    f"`{STATES}` must be of this chain and these parameters  "
                    f"Got: {states.get(slot.name)!r} for {slot.name!r}"
                )


def _alike(saved: State, fresh: State) -> bool:
    """Whether two states are of one link; counters may be idle in one of them."""
    if isinstance(saved, dict) and isinstance(fresh or {}, dict):
        fresh = {**{k: v for k, v in saved.items() if k in ("step", "seed")}, **(fresh or {})}
    old, own = flatten(_sorted(saved)), flatten(_sorted(fresh))
    shapes = [[getattr(t, "shape", None) for t in leaves] for leaves in (old[0], own[0])]
    return old[1] == own[1] and shapes[0] == shapes[1]


def _sorted(state: State) -> State:
    """A state with the keys of its dicts in order, in which trees compare."""
    if isinstance(state, dict):
        return {key: _sorted(state[key]) for key in sorted(state)}
    return type(state)(map(_sorted, state)) if isinstance(state, (tuple, list)) else state


def moved(states: Group, device: torch.device) -> Group:
    """The links' states on the device of the parameters; generators' states on the host."""
    leaves, spec = flatten(states)
    there = [t.to(device) if isinstance(t, Tensor) else t for t in leaves]
    return {
        key: states[key].cpu() if key.endswith(".generator") else value
        for key, value in unflatten(there, spec).items()
    }


SCALE_BIAS = slot_of(scale_bias)


def scales(group: Group) -> bool:
    """Whether a group's own scale and bias do something."""
    scale, bias = group["grad_scale"], group["grad_bias"]
    return isinstance(scale, Tensor) or isinstance(bias, Tensor) or scale != 1 or bias != 0
