"""The links of an optimizer in order, with the param-group keys that they read."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.chain import link_names
from ..core.link import Link
from ..core.pipeline import Keys, Values
from ..data.hyper import REQUIRED, check_number, evaluated, has_schedule, keys_of
from ..data.messages import meant
from ..data.tree import Leaves, flatten, map_leaves
from ..engine.run import Phase, Run, State
from ..links.transforms import scale_bias
from .states import STATES, Group

OWN = frozenset({"param_ndim", "grad_scale", "grad_bias"})
NEUTRAL = {"grad_scale": 1.0, "grad_bias": 0.0}
SCALE_BIAS = ".scale_bias"  # the name of the link for a group's own scale and bias
SCHEDULED = ".inner"  # the name of the link that runs the inner optimizer's schedules
_TORCHS = frozenset({"params", "param_names", "initial_lr", "max_lr", "min_lr", "swa_lr"})
_TORCHS |= {"base_momentum", "max_momentum", "initial_momentum", STATES}


def at_start(values: Group) -> Group:
    """The values of the first step: schedules evaluated, to numbers."""
    return {k: _number(k, evaluated(v, _zero())) for k, v in values.items()}


def _number(name: str, value: Any) -> Any:
    for one in flatten(value)[0]:
        check_number(name, one)
    return map_leaves(lambda x: x.item() if isinstance(x, Tensor) else x, value)


def _zero() -> Tensor:
    return torch.zeros((), dtype=torch.int64, device="cpu")


def _read(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) and value.ndim == 0 else value


def _neutral(values: Group) -> bool:
    """Whether a group's own scale and bias are numbers that change nothing."""
    return all(not isinstance(values[n], Tensor) and values[n] == v for n, v in NEUTRAL.items())


class Entry(NamedTuple):
    """A link of an optimizer's chain."""

    link: Link
    names: tuple[str, ...]  # the hyperparameters that are read from the param group
    given: str | None = None  # the name from `named_chain`
    also: Link | None = None  # what it does to parameters, where it does something to both


class Scheduled(Link):
    """A link that does nothing but run schedules, such as those of the inner optimizer."""

    name = "inner"

    def __new__(cls, names: Iterable[str] = ()) -> Any:
        self: Scheduled = super().__new__(cls)
        self.values = dict.fromkeys(names, REQUIRED)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Scheduled, (tuple(self.values),)

    def keeps(self, values: Group) -> bool:
        return any(map(has_schedule, values.values()))

    def start(self, leaves: Leaves, run: Run, values: Group) -> State:
        return {"step": _zero()} if self.keeps(values) else {}

    def now(self, values: Group, state: State) -> Group:
        return {
            k: _number(k, evaluated(v, state["step"])) if state else v for k, v in values.items()
        }

    def evaluate(self, values: Group, state: State) -> Group:
        now = self.now(values, state)
        self.check_values(now)
        return now

    def apply(self, leaves: Leaves, state: State, run: Run, values: Group) -> tuple[Leaves, State]:
        return leaves, self.tick(state)


@dataclass(eq=False)
class Pipeline:
    """The links of an optimizer, with the param-group keys that they read."""

    links: list[Link] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    keys: Keys = field(default_factory=list)  # what is not there is the link's own value
    aliases: dict[str, str] = field(default_factory=dict)  # qualified key -> key
    refused: frozenset[str] = frozenset()  # bare keys that could mean several
    beside: Mapping[str, str] = field(default_factory=dict)  # name -> key that the step has for it
    known: frozenset[str] | None = None  # all keys that mean something; None for any
    label: str = ""  # of the optimizer, in messages
    warned: set[Any] = field(default_factory=set)
    numbers: tuple[str, ...] = ()  # the keys under which an optimizer of torch takes one number

    def warn(self, key: str, always: bool = False) -> None:
        """Warn once of a key that nobody reads, where it resembles one that is read, or always."""
        near = meant(key, self.known or (), 0.0 if always else 0.7)
        if near and key not in self.warned:
            self.warned.add(key)
            warnings.warn(
                f"`{key}` is no key of this optimizer{near}",
                stacklevel=2,
            )

    def acts(self, i: int, values: Group) -> bool:
        """Whether link i does something."""
        return not (self.names[i] == SCALE_BIAS and _neutral(values))

    def part(self, phase: Phase, values: Values) -> list[int]:
        """The places of the links of a phase that do something."""
        rows = enumerate(zip(self.links, values, strict=True))
        return [i for i, (link, own) in rows if link.phase == phase and self.acts(i, own)]

    def check_numbers(self, group: Group) -> None:
        """Refuse values outside their interval, also where they are tensors of one number."""
        for link, keys in zip(self.links, self.keys, strict=True):
            values = {n: _read(group.get(k, link.values[n])) for n, k in keys.items()}
            link.check_values({**link.values, **values})

    def check_alone(self) -> None:
        """Refuse parameter links that need what only a step has."""
        for link in self.links:
            if link.phase == "parameter" and link.needs:
                raise ValueError(
                    f"`step` must be called, as {link!r} needs {' and '.join(sorted(link.needs))}, "
                    "which a projection alone has not  Got: a projection alone"
                )

    def defaults(self) -> Group:
        """Key -> the default value of each hyperparameter that has one."""
        rows = zip(self.links, self.keys, strict=True)
        found = {key: link.values[name] for link, own in rows for name, key in own.items()}
        return {key: value for key, value in found.items() if value is not REQUIRED}

    def add(self, link: Link, name: str, keys: dict[str, str]) -> None:
        """One more link."""
        if link.reduces:
            raise ValueError(
                f"`{link.name}` must be in a pure pipeline, as it takes one gradient for each "
                "example, which a parameter's `.grad` has not  Got: an optimizer"
            )
        self.links.append(link)
        self.names.append(name)
        self.keys.append(keys)


def lay_out(
    entries: list[Entry],
    below: list[Entry],
    inner_keys: frozenset[str],
    *,
    qualify: bool,
    shared: frozenset[str],
    step_keys: Mapping[str, str],
    scheduled: tuple[str, ...],
) -> Pipeline:
    """The pipeline of an optimizer: its links, the group's scale and bias, the inner's schedules.

    Args:
        entries: the links.
        below: those of the inner optimizers, whose states are in the same param groups.
        inner_keys: the keys of the inner optimizer.
        qualify: whether a key that several read gets a name for each of them.
        shared: bare keys that several links read together.
        step_keys: qualified key -> key of what a link that steps reads.
        scheduled: arguments of the inner optimizer that are schedules.
    """
    every = [*below, *entries]
    names = link_names(tuple(e.link for e in every), tuple(e.given for e in every))[len(below) :]
    steps = {k.rpartition(".")[2]: k for k in step_keys}
    beside = {n: k for n, k in steps.items() if k == step_keys[k]}
    reserved = inner_keys - shared.intersection(steps) | OWN if qualify else frozenset()
    own = [entry.names for entry in entries]
    read = frozenset(n for row in own for n in row)
    keys = keys_of([*names, ""], [*own, beside], shared if qualify else read, reserved)
    rows = list(zip(entries, names, keys, strict=False))
    bare = {f"{name}.{n}": n for _, name, row in rows for n, key in row.items() if n == key}
    pipeline = Pipeline(beside=beside, aliases={**bare, **step_keys})
    for entry, name, row in rows:
        if entry.link.phase != "parameter":
            pipeline.add(entry.link, name, row)
    pipeline.add(scale_bias(), SCALE_BIAS, {n: n for n in NEUTRAL})
    if scheduled:
        pipeline.add(Scheduled(scheduled), SCHEDULED, {n: n for n in scheduled})
    for entry, name, row in rows:
        if entry.also is not None or entry.link.phase == "parameter":
            pipeline.add(entry.also or entry.link, name, row)
    seen = frozenset(key for row in pipeline.keys for key in row.values())
    if qualify:
        pipeline.refused = read - reserved - seen
    if all(entry.also is None for entry in entries):
        known = seen | pipeline.aliases.keys() | pipeline.refused
        pipeline.known = known | inner_keys | OWN | _TORCHS
    return pipeline
