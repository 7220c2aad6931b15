"""What the combinators have in common: a link around pipelines."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..data.hyper import Rule
from ..data.tree import (
    Leaves,
    Spec,
    Tree,
    flatten,
    is_container,
    leaf_names,
    leaves_like,
    unflatten,
)
from ..engine.run import Phase, Run, State, run_links
from .link import show
from .pipeline import GradientTransformation, Link

Inner = dict[str, GradientTransformation]


class Wrapper(Link):
    """A link around pipelines. Subclasses say what happens in `wrap`.

    The state is a dict: ``inner`` holds the states of the pipelines, the rest is the wrapper's.
    """

    label: ClassVar[str]  # the combinator's name
    inners: Inner  # prefix -> pipeline
    options: dict[str, Any]  # the arguments besides the pipelines
    own: ClassVar[dict[str, Rule]] = {}  # the hyperparameters among them
    ticks: bool = True  # whether the state has a step
    keeps: tuple[str, ...] = ()  # what else it has, besides the inner states

    def __new__(cls, inners: Inner, **options: Any) -> Any:
        self = super().__new__(cls)
        self.inners, self.options = inners, options
        self.name = cls.label
        self.phase = common_phase(self.name, inners.values())
        self.values = {name: options[name] for name in cls.own}
        for prefix, inner in inners.items():
            for key, value in inner.hyperparams.items():
                self.values[f"{prefix}{key}"] = value
        self.needs_params = any(k.needs_params for t in inners.values() for k in t.links)
        self.check_values(self.values)
        return self

    def __repr__(self) -> str:
        parts = [repr(inner) for inner in self.inners.values()]
        parts += [f"{k}={show(v)}" for k, v in self.options.items()]
        return f"{self.name}({', '.join(parts)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.inners, self.options)

    def check_values(self, values: dict[str, Any]) -> None:
        for name, rule in self.own.items():
            rule.check(name, values[name])
        for prefix, inner in self.inners.items():
            for link, keys in zip(inner.links, inner.keys, strict=True):
                link.check_values({n: values[f"{prefix}{key}"] for n, key in keys.items()})

    def check_state(self, state: State, leaves: Leaves, spec: Spec) -> None:
        names = {"inner", *self.keeps, *(["step"] if self.ticks else [])}
        inside = state.get("inner") if isinstance(state, dict) else None
        if not isinstance(inside, dict) or set(state) != names or set(inside) != set(self.inners):
            raise ValueError(f"`state` must be the state of {self!r}  Got: {state!r}")
        for prefix, inner in self.inners.items():
            run = self.part(prefix, leaves, Run(spec))
            mine = [leaves[i] for i in run.places]
            for link, own in zip(inner.links, inner._unpack(inside[prefix]), strict=True):
                link.check_state(own, mine, run.spec)

    def start(self, leaves: Leaves, run: Run, values: dict[str, Any]) -> State:
        state: dict[str, Any] = {"inner": {}}
        for prefix, inner in self.inners.items():
            part = self.part(prefix, leaves, run)
            mine = [leaves[i] for i in part.places]
            started = [
                link.start(mine, part, {n: values[f"{prefix}{k}"] for n, k in keys.items()})
                for link, keys in zip(inner.links, inner.keys, strict=True)
            ]
            state["inner"][prefix] = inner._pack(started)
        if self.ticks:
            device = next((leaf.device for leaf in leaves if leaf is not None), None)
            state["step"] = torch.zeros((), dtype=torch.int64, device=device)
        return {**state, **self.begin(leaves, run.spec)}

    def apply(
        self, leaves: Leaves, state: State, run: Run, values: dict[str, Any]
    ) -> tuple[Leaves, State]:
        # What is decided later must not be written before: no memory is given to what is inside.
        inside = replace(run, writable=[False] * len(leaves))
        own = {name: values[name] for name in self.own}
        out, new = self.wrap(leaves, state, inside, values, **own)
        if self.ticks:
            new = {**new, "step": state["step"] + 1}
        for i, (leaf, result) in enumerate(zip(leaves, out, strict=True)):
            if leaf is not None and result is not None and self.phase != "step":
                out[i] = leaf.copy_(result) if run.writable[i] else result
            else:
                run.writable[i] = False
        return out, new

    # -------------------------------------------------------------- for subclasses

    def begin(self, leaves: Leaves, spec: Spec) -> dict[str, Any]:
        """The wrapper's own part of the state."""
        return {}

    def chosen(self, prefix: str, leaves: Leaves, spec: Spec) -> list[bool] | None:
        """Which leaves an inner pipeline sees; None for all."""
        return None

    def part(self, prefix: str, leaves: Leaves, run: Run) -> "Part":
        """The run of an inner pipeline, over a dict of the leaves it sees by their names."""
        flags = self.chosen(prefix, leaves, run.spec)
        if flags is None:
            whole = Part(run.spec, run.params, run.param_ndim, run.plain, [*run.writable])
            whole.places = list(range(len(leaves)))
            return whole
        places = [i for i, flag in enumerate(flags) if flag]
        names = leaf_names(run.spec)
        return Part(
            flatten({names[i]: None for i in places})[1],
            None if run.params is None else [run.params[i] for i in places],
            run.param_ndim,
            run.plain,
            [False] * len(places),
            places=places,
        )

    def wrap(
        self, leaves: Leaves, state: State, run: Run, values: dict[str, Any], **own: Any
    ) -> tuple[Leaves, State]:
        """The new leaves and the new state, all of it but ``step``."""
        raise NotImplementedError

    def through(
        self, prefix: str, leaves: Leaves, state: State, run: Run, values: dict[str, Any]
    ) -> tuple[Leaves, State]:
        """Put leaves through an inner pipeline: the result, and that pipeline's new state."""
        inner, part = self.inners[prefix], self.part(prefix, leaves, run)
        states = inner._unpack(state["inner"][prefix])
        if len(part.places) < len(leaves):  # a tree of values loses the leaves that are not seen
            values = {k: _only(v, part.places, run.spec) for k, v in values.items()}
        resolved = [
            link.resolve({n: values[f"{prefix}{k}"] for n, k in keys.items()}, own)
            for link, keys, own in zip(inner.links, inner.keys, states, strict=True)
        ]
        mine = [leaves[i] for i in part.places]
        if self.phase == "step":
            out, states = inner.advance(mine, states, part, resolved)
        else:
            out, states = run_links(inner.links, mine, states, part, resolved, self.phase)
        return out, inner._pack(states)


@dataclass
class Part(Run):
    """The run of an inner pipeline; `places` are its leaves' among the wrapper's."""

    places: list[int] = field(default_factory=list)


def _only(value: Any, places: list[int], spec: Spec) -> Any:
    if not is_container(value) or flatten(value)[1] != spec:
        return value
    leaves = flatten(value)[0]
    return [leaves[i] for i in places]


def common_phase(name: str, inners: Iterable[GradientTransformation]) -> Phase:
    """The phase of a wrapper: "step" where something inside steps, else the common one."""
    phases = {link.phase for inner in inners for link in inner.links}
    if "step" in phases:
        return "step"
    if len(phases) > 1:
        raise ValueError(
            f"`inner` of {name} must be all gradient links, all parameter links, or step  "
            f"Got: both gradient and parameter links, which belong in {name}s of their own"
        )
    return phases.pop() if phases else "gradient"


def choose(condition: Tensor, new: Any, old: Any) -> Any:
    """Leaf by leaf `new` where the condition holds, else `old`.

    A state that its first step completes, as that of `from_torch`, is chosen as a whole: the
    condition is read then, which is possible as such a link is never traced.
    """
    leaves, spec = flatten(new)
    if spec != flatten(old)[1]:
        return new if bool(condition) else old
    pairs: Any = zip(leaves, leaves_like(old, spec, "state", "the new state"), strict=True)
    chosen = [torch.where(condition, a, b) if isinstance(a, Tensor) else a for a, b in pairs]
    return unflatten(chosen, spec)


def zeros(leaves: Leaves, spec: Spec) -> Tree:
    """A tree of zeros like the leaves."""
    return unflatten([None if leaf is None else torch.zeros_like(leaf) for leaf in leaves], spec)


def both(function: Callable[[Any, Any], Any], a: Leaves, b: Leaves) -> Leaves:
    """A function of two tensors, leaf by leaf; None stays."""
    pairs = zip(a, b, strict=True)
    return [None if x is None or y is None else function(x, y) for x, y in pairs]


def _rebuild(cls: Any, inners: Inner, options: dict[str, Any]) -> Link:
    made: Link = cls(inners, **options)
    return made
