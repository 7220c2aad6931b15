"""One link of a pipeline: its base class, and the link that is made of one function."""

import functools
from collections.abc import Mapping
from numbers import Real
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..data.checks import check_leaves, check_one_device
from ..data.hyper import Range, Several, evaluated, has_schedule, placed, show
from ..data.messages import told
from ..data.rows import UNSET, ParamNdim, check_param_ndim
from ..data.tree import (
    Leaves,
    Spec,
    Tree,
    flatten_given,
    is_container,
    leaf_names,
    present,
    unflatten,
)
from ..engine import fit
from ..engine import function as engine
from ..engine.chunks import Call
from ..engine.function import COUNTERS, Definition, Rows
from ..engine.run import Phase, Run, Scope, State, run_links, runs_plain
from .kept import check_kept, check_once
from .pipeline import GradientTransformation


class Link(GradientTransformation):
    """One link of a pipeline: the base of everything that `chain` joins.

    Attributes:
        name: the factory's name.
        scope: what the function sees: ``"element"``, ``"row"``, ``"leaf"`` or ``"tree"``.
        phase: ``"gradient"``, ``"step"`` (makes the new parameter) or ``"parameter"``.
        values: hyperparameter -> value.
        updates: whether the result is an update to add.
        trees: the keys of the state that hold a tree like the params.
        once: the keys that hold something once.
        completes: the first step adds to the state that `start` makes.

    Example:
        >>> from rai_chain import Link, scale
        >>> link = scale(0.5)
        >>> isinstance(link, Link), link.name, link.scope, link.phase, link.values
        (True, 'scale', 'element', 'gradient', {'grad_scale': 0.5})
    """

    name: str
    scope: Scope = "tree"
    phase: Phase = "gradient"
    values: dict[str, Any]
    needs_params: bool = False
    needs: frozenset[str] = frozenset()  # named inputs
    updates: bool = False
    trees: frozenset[str] = frozenset()
    once: frozenset[str] = frozenset()
    completes: bool = False
    reduces: bool = False  # the leaves that come in are (N, ...), one entry for each example
    takes_parts: bool = True  # of DTensors, see `engine.sharded`; else it gets these themselves
    inners: Mapping[str, GradientTransformation] = {}  # of a wrapper

    @property
    def links(self) -> "tuple[Link, ...]":  # type: ignore[override]
        """The link itself: a pipeline of one."""
        return (self,)

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The name in qualified keys."""
        return (f"{self.name}_0",)

    def with_links(self, links: tuple[Any, ...]) -> GradientTransformation:
        return links[0]  # type: ignore[no-any-return]

    def with_values(self, values: dict[str, Any]) -> "Link":
        """The same link with other values of some hyperparameters."""
        values = {**self.values, **values}
        self.check_values(values)
        return self.bound(values)

    def bound(self, values: dict[str, Any]) -> "Link":
        """The same link with these values, which were checked."""
        made: Link = GradientTransformation.__new__(type(self))
        made.__dict__.update(self.__dict__, values=values, _still=None)
        return made

    def start(self, leaves: Leaves, run: Run, values: dict[str, Any]) -> State:
        """The state before the first update."""
        return {}

    def apply(
        self, leaves: Leaves, state: State, run: Run, values: dict[str, Any]
    ) -> tuple[Leaves, State]:
        """Put leaves through the link; `values` are evaluated and checked."""
        raise NotImplementedError

    def map(self, tree: Tree, *, what: str = "tree") -> Tree:
        """Apply a stateless link, as a plain function of one tree, to gradients or parameters."""
        leaves, spec = flatten_given(tree)
        check_leaves(leaves, spec, what)
        if self.keeps(self.values) or self.phase == "step" or self.needs:
            raise ValueError(
                f"`map` must be called of a link that needs no more than one tree: use `init` and "
                f"`update` or `step`  Got: {self!r}"
            )
        run = Run(spec, leaves, writable=[False] * len(leaves))
        state = self.start(leaves, run, self.values)
        values = self.evaluate(self.values, state)
        run.plain = runs_plain(leaves, [values])
        self.check_fit(values, leaves, run)
        new, _ = run_links((self,), self.names, leaves, [state], run, [values], self.phase)
        return unflatten(new, spec)

    def elementwise_call(self, state: State, values: dict[str, Any]) -> Call | None:
        """The link as a function of any piece of any leaf, where that is what it is."""
        return None

    def tick(self, state: State) -> State:
        """The state after a step that changes nothing but the counter."""
        return {**state, "step": state["step"] + 1} if "step" in state else state

    @property
    def is_ours(self) -> bool:
        """Whether it is of this library, and does not raise where its values were checked."""
        return False

    def keeps(self, values: dict[str, Any]) -> bool:
        """Whether there is a state with these values."""
        return True

    def counters(self, values: dict[str, Any]) -> frozenset[str]:
        """The scalars that the state holds besides `trees` and `once`."""
        return frozenset()

    def lacks(self, once: Any, values: dict[str, Any]) -> bool:
        """Whether what is kept once, as it was saved, is not all that these values need."""
        return once is None

    def columns(self, state: State, spec: Spec) -> dict[str, list[Any]]:
        """What a state keeps for each leaf: key -> a value for each, None for nothing."""
        return {key: engine.column_of(state, key, spec) for key in self.trees}

    def with_columns(self, columns: dict[str, list[Any]], spec: Spec) -> State:
        """The part of a state of which `columns` made this."""
        return {key: present(column, spec) for key, column in columns.items()}

    @property
    def keeps_leaves(self) -> bool:
        """Whether the state has something for each leaf."""
        inside = (link for inner in self.inners.values() for link in inner.links)
        return bool(self.trees) or any(link.keeps_leaves for link in inside)

    def is_number(self, name: str, value: Any) -> bool:
        """Whether a value may become a tensor: a number that chooses nothing but a number."""
        return False

    def check_values(self, values: dict[str, Any]) -> None:
        """Refuse hyperparameters that do not fit."""

    def check_fit(self, values: dict[str, Any], leaves: Leaves, run: Run) -> None:
        """Refuse hyperparameters that do not fit the leaves."""

    def meets(self, values: dict[str, Any], run: Run) -> bool:
        """Whether leaves meet each other, or all of them what is kept once."""
        return False

    def check_devices(self, values: dict[str, Any], leaves: Leaves, run: Run) -> None:
        """Refuse leaves on several devices where they meet."""
        if self.meets(values, run):
            check_one_device(leaves, run.spec, "params", self)

    def check_state(self, state: State, leaves: Leaves, spec: Spec) -> None:
        """Refuse a state that is not this link's, or of another tree."""

    def fresh(self, leaves: Leaves, spec: Spec) -> dict[str, list[Any]]:
        """What the state starts with for each leaf, as `columns` gives it."""
        return {}

    def evaluate(self, values: dict[str, Any], state: State) -> dict[str, Any]:
        """The values of this call: schedules evaluated, and checked again."""
        return values

    def now(self, values: dict[str, Any], state: State) -> dict[str, Any]:
        """Hyperparameter -> its value in the next call, also of what is inside a wrapper."""
        if not any(map(has_schedule, values.values())):
            return values
        return {name: evaluated(value, state["step"]) for name, value in values.items()}

    def pack(self, states: list[State]) -> Any:
        return states[0]

    def unpack(self, state: Any) -> list[State]:
        return [{} if state == () else state]


class Factory(Protocol):
    """What the decorators return: hyperparameters -> link."""

    __name__: str
    definition: Definition

    def __call__(self, *args: Any, **kwargs: Any) -> "FunctionLink":
        """Make the link."""

    def function(self, *args: Any, **kwargs: Any) -> Any:
        """The undecorated function."""


class Facts(NamedTuple):
    """What follows from the hyperparameters of a link, known once for its own."""

    scheduled: tuple[str, ...]  # the schedules
    counters: frozenset[str]  # the scalars that the state holds besides what the function keeps
    fitting: tuple[str, ...]  # what must fit the leaves
    draws: bool  # whether random numbers are drawn


class FunctionLink(Link):
    """A link made of one function: what the factories of `elementwise` and the rest return."""

    factory: Factory
    definition: Definition
    param_ndim: Any
    seed: Any
    _known: Facts
    _call: Call | None = None  # the link as a function of elements, with its own values
    _fits: frozenset[Any] = frozenset()  # the dtypes that hold its own values, all plain numbers

    def __new__(
        cls,
        factory: Factory,
        values: dict[str, Any],
        param_ndim: Any = UNSET,
        seed: Any = 0,
        *,
        check: bool = True,
    ) -> "FunctionLink":
        self: FunctionLink = super().__new__(cls)
        self.factory, self.values, self.param_ndim, self.seed = factory, values, param_ndim, seed
        self.definition = d = factory.definition
        self.name, self.scope, self.phase, self.updates = d.name, d.scope, d.phase, d.updates
        self.needs_params = self.phase != "gradient" or "param" in d.given
        self.needs, self.reduces = d.given & {"value", "grad"}, d.reduces
        empty: frozenset[str] = frozenset()
        self.trees, self.once = (empty, d.keys) if d.scope == "tree" else (d.keys, empty)
        if check:
            self.check_values(values)
        if param_ndim is not UNSET:
            check_param_ndim(param_ndim)
        self._known = self._facts_of(values)
        return self

    def with_rows(self, param_ndim: ParamNdim) -> "FunctionLink":
        """The same link with rows of its own."""
        return FunctionLink(self.factory, self.values, param_ndim, self.seed, check=False)

    def bound(self, values: dict[str, Any]) -> Link:
        made: Any = super().bound(values)
        made._known, made._call, made._fits = self._facts_of(values), None, frozenset()
        return made  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        shown = dict(self.values)
        if self.param_ndim is not UNSET:
            shown["param_ndim"] = self.param_ndim
        if "key" in self.definition.given and (isinstance(self.seed, Tensor) or self.seed != 0):
            shown["seed"] = self.seed
        return f"{self.name}({', '.join(f'{k}={show(v)}' for k, v in shown.items())})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _remake, (self.factory, self.values, self.param_ndim, self.seed)

    # ------------------------------------------------------------------ values

    def is_number(self, name: str, value: Any) -> bool:
        rule = self.definition.rules[name]
        if isinstance(rule, Several):
            return all(isinstance(one, (int, float)) for one in value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        is_switch = self.definition.draws == name and value == 0
        return isinstance(rule, Range) and not rule.static and not is_switch

    def check_values(self, values: dict[str, Any]) -> None:
        for name, rule in self.definition.rules.items():
            rule.check(name, values[name])
        fit.check_together(self.definition, values)

    def rows(self, run: Run) -> Rows:
        """How the link sees leaves: its own `param_ndim` wins over the home's."""
        return Rows(self.scope, run.param_ndim if self.param_ndim is UNSET else self.param_ndim)

    def check_fit(self, values: dict[str, Any], leaves: Leaves, run: Run) -> None:
        fitting, d = self.facts(values).fitting, self.definition
        if not fitting and self.scope != "row":
            return
        own = values is self.values
        if own and self._fits and all(x is None or x.dtype in self._fits for x in leaves):
            return
        rows = self.rows(run)
        if self.scope == "row":
            check_param_ndim(rows.param_ndim, *leaves, names=lambda: leaf_names(run.spec))
        fit.check_fit(d, values, fitting, leaves, run.spec, rows)
        if own and self.scope == "element" and all(isinstance(values[n], Real) for n in fitting):
            self._fits |= {leaf.dtype for leaf in leaves if leaf is not None}
        if run.warned is not None:
            fit.warn_of_nothing(d, values, leaves, run, rows)

    def evaluate(self, values: dict[str, Any], state: State) -> dict[str, Any]:
        scheduled, _, _, draws = self.facts(values)
        if scheduled:
            if "step" not in state:
                raise ValueError(
                    f"`{scheduled[0]}` must be given to {self.name}(...) as a schedule before "
                    f"`init`, which then keeps a step  Got: {values[scheduled[0]]!r}"
                )
            now = {name: evaluated(values[name], state["step"]) for name in scheduled}
            values = {**values, **now}
            self.check_values(values)
        if draws and "seed" not in state:
            raise ValueError(
                f"`{self.definition.draws}` must not be 0 in {self.name}(...) when `init` is "
                f"called, for the state to keep a seed  Got: {values[self.definition.draws or '']}"
            )
        return values

    # ------------------------------------------------------------------ state

    @property
    def is_ours(self) -> bool:
        return self.definition.function.__module__.startswith("rai_chain.")

    def draws(self, values: dict[str, Any]) -> bool:
        """Whether the link draws random numbers with these values."""
        return self.definition.draw_is_needed(values)

    def facts(self, values: dict[str, Any]) -> Facts:
        """What follows from these values."""
        return self._known if values is self.values else self._facts_of(values)

    def _facts_of(self, values: dict[str, Any]) -> Facts:
        d, draws = self.definition, self.draws(values)
        scheduled = tuple(name for name, value in values.items() if has_schedule(value))
        steps = draws or "step" in d.given or bool(scheduled)
        counters = frozenset(n for n, kept in zip(COUNTERS, (steps, draws), strict=True) if kept)
        fitting = tuple(n for n, value in values.items() if fit.must_fit(d.rules[n], value))
        return Facts(scheduled, counters, fitting, draws)

    def counters(self, values: dict[str, Any]) -> frozenset[str]:
        return self.facts(values).counters

    def keeps(self, values: dict[str, Any]) -> bool:
        return bool(self.definition.keys or self.counters(values))

    def lacks(self, once: Any, values: dict[str, Any]) -> bool:
        return not self.counters(values) | self.once <= set(once or ())

    def start(self, leaves: Leaves, run: Run, values: dict[str, Any]) -> State:
        device = next((leaf.device for leaf in leaves if leaf is not None), torch.device("cpu"))
        counts = {"step": 0, "seed": self.seed}
        state = {
            name: placed(counts[name], device, torch.int64)
            for name in COUNTERS
            if name in self.counters(values)
        }
        return {**state, **engine.start(self.definition, leaves, run.spec, self.rows(run))}

    def meets(self, values: dict[str, Any], run: Run) -> bool:
        joined = self.rows(run).joined
        return joined or self.scope == "tree" or bool(self.counters(values))

    def fresh(self, leaves: Leaves, spec: Spec) -> State:
        made = engine.start(self.definition, leaves, spec, self.rows(Run(spec)))
        return self.columns(made, spec) if self.trees else made

    def check_state(self, state: State, leaves: Leaves, spec: Spec) -> None:
        keys, counters = self.definition.keys, self.counters(self.values)
        if not isinstance(state, dict) or state.keys() != counters | keys:
            raise ValueError(f"`state` must be the state of {self!r}  Got: {told(state)}")
        if counters:
            kept = {name: state[name] for name in COUNTERS if name in counters}
            check_once(self, kept, dict.fromkeys(kept, ()))
        if keys:
            check_kept(self, self.columns(state, spec) or state, leaves, spec)

    # ------------------------------------------------------------------ apply

    def elementwise_call(self, state: State, values: dict[str, Any]) -> Call | None:
        d = self.definition
        if values is self.values and self._call is not None:
            return self._call
        if d.scope != "element" or d.given - {"out", "step"} or self.phase == "step":
            return None
        for value in values.values():
            if is_container(value) or (isinstance(value, Tensor) and value.ndim):
                return None
        if "step" in d.given:
            values = {**values, "step": state["step"]}
        if "out" not in d.given:
            return lambda x, out: engine.checked(d, x, **values)
        call = functools.partial(d.function, **values)
        if values is self.values:
            self._call = call
        return call

    def apply(
        self, leaves: Leaves, state: State, run: Run, values: dict[str, Any]
    ) -> tuple[Leaves, State]:
        return engine.apply(self.definition, leaves, state, run, values, self.rows(run))


def _remake(factory: Factory, values: dict[str, Any], param_ndim: Any, seed: Any) -> FunctionLink:
    return FunctionLink(factory, values, param_ndim, seed, check=False)
