"""Links around pipelines: what `masked`, `accumulate` and the other combinators have in common."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch

from ..data.checks import add, shares_memory
from ..data.hyper import Rule, evaluated, has_schedule, plain, show
from ..data.leaves import are_those, device_of, facts_of
from ..data.memory import written
from ..data.messages import told
from ..data.tree import (
    Leaves,
    Spec,
    Tree,
    present,
    presented,
)
from ..engine.fit import check_one
from ..engine.run import Phase, Run, State, run_links
from .chain import Chain, as_links, chain
from .kept import check_kept, check_once
from .link import Link
from .pipeline import GradientTransformation, Keys

Inners = Mapping[str, GradientTransformation]


class Wrapper(Link):
    """A link around pipelines. A subclass says what happens, in `wrap`, and what it keeps.

    It is made of the pipeline, or of a dict prefix -> pipeline, and of its options by name. The
    hyperparameters of what is inside are its own, with the prefix before their names. Its state
    is a dict: ``inner`` has the states of the pipelines, ``step`` counts, the rest is in `trees`
    and `once`.

    Args:
        inner: the pipeline, or a dict prefix -> pipeline.
        options: the options by name.

    Attributes:
        label: the name of the link; else that of the class.
        own: the options that are hyperparameters, each with its rule.
        trees: the keys of the state that hold a tree like the params.
        once: the keys of the state that hold one tensor.
        needs: the named inputs that it asks for itself, in ``run.extra``.
        ticks: whether the state has a step; it has one where an option is a schedule.

    Example:
        >>> import torch
        >>> from rai_chain import Range, Wrapper, chain, scale
        >>> from rai_chain.wrappers import choose
        >>> class Every(Wrapper):
        ...     own = {"n": Range(1, whole=True)}
        ...
        ...     def wrap(self, leaves, state, run, values, n):
        ...         new, inside = self.through(leaves, state, run, values)
        ...         now = state["step"] % n == 0
        ...         out = choose(now, new, self.idle(leaves, run))
        ...         return out, {"inner": {"": choose(now, inside, state["inner"][""])}}
        >>> tx = Every(scale(-0.5), n=2)
        >>> tx.hyperparams
        {'n': 2, 'grad_scale': -0.5}
        >>> _, state = tx.update(torch.ones(1), tx.init(torch.ones(1)))
        >>> tx.update(torch.ones(1), state)[0]
        tensor([0.])
    """

    label: ClassVar[str]
    own: ClassVar[Mapping[str, Rule]] = {}
    trees: frozenset[str] = frozenset()
    ticks: bool = True
    options: dict[str, Any]
    _known: dict[str, Any]  # what each pipeline saw of the last tree
    _slots: list[tuple[str, GradientTransformation, Keys]]  # what each link inside reads

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.label = cls.__dict__.get("label", cls.__name__)

    def __new__(cls, inner: Any = None, **options: Any) -> Any:
        self: Wrapper = super().__new__(cls)
        inners = inner if isinstance(inner, Mapping) else {"": inner} if inner is not None else {}
        self.inners = {
            prefix: t if isinstance(t, GradientTransformation) else chain(t)
            for prefix, t in inners.items()
        }
        self.options = {name: plain(value) for name, value in options.items()}
        options, self.name = self.options, cls.label
        self._known = {}
        if missing := sorted(set(cls.own) - set(options)):
            raise TypeError(f"`{missing[0]}` must be given to {cls.label}  Got: nothing")
        inside = [link for t in self.inners.values() for link in t.links]
        if reducing := next((link for link in inside if link.reduces), None):
            raise ValueError(
                f"`{reducing.name}` must be the first link of a chain, as it takes one gradient "
                f"for each example  Got: inside {cls.label}"
            )
        self.phase = self.common_phase({link.phase for link in inside})
        self.updates = cls.updates or any(t.updates for t in self.inners.values())
        self.completes = any(link.completes for link in inside)
        self.needs = cls.needs.union(*(link.needs for link in inside))
        needed = cls.needs_params or any(link.needs_params for link in inside)
        self.needs_params = self.phase != "gradient" or needed
        self.values = {name: options[name] for name in cls.own}
        for prefix, t in self.inners.items():
            self.values |= {f"{prefix}{key}": value for key, value in t.hyperparams.items()}
        self._slots = [
            (prefix, t, [{n: f"{prefix}{k}" for n, k in own.items()} for own in t.keys()])
            for prefix, t in self.inners.items()
        ]
        self.check_values(self.values)
        return self

    def __repr__(self) -> str:
        parts = [repr(inner) for inner in self.inners.values()]
        parts += [f"{k}={show(v)}" for k, v in self.options.items()]
        return f"{self.name}({', '.join(parts)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.inners, self.options)

    def bound(self, values: dict[str, Any]) -> Link:
        made: Any = super().bound(values)
        made.options = {k: values[k] if k in self.own else v for k, v in self.options.items()}
        made._slots = []
        for prefix, t, keys in self._slots:
            rows = zip(t.links, self._inside(values)[prefix], strict=True)
            made._slots.append((prefix, t.with_links(tuple(k.bound(own) for k, own in rows)), keys))
        made.inners, made._known = {prefix: t for prefix, t, _ in made._slots}, {}
        return made  # type: ignore[no-any-return]

    # ------------------------------------------------------------------ for subclasses

    def wrap(
        self, leaves: Leaves, state: State, run: Run, values: Any, **own: Any
    ) -> tuple[Leaves, State]:
        """The new leaves and the new state; ``step``, where it does not count calls.

        Args:
            leaves: gradients, or parameters where everything inside is a parameter link; None
                where there is none.
            state: as `begin` and the last call made it.
            run: what else is known of this pass; `run.params` are the parameters.
            values: for `through`.
            **own: the wrapper's hyperparameters, schedules evaluated.
        """
        raise NotImplementedError

    def begin(self, leaves: Leaves, spec: Spec) -> State:
        """The wrapper's own part of the state: `trees` and `once`."""
        return {}

    def seen(self, prefix: str, leaves: Leaves, spec: Spec) -> list[bool] | None:
        """Which leaves an inner pipeline sees; None for all."""
        return None

    def common_phase(self, phases: set[Phase]) -> Phase:
        """The phase of the whole: one that steps where what is inside has several."""
        return "step" if len(phases) > 1 else next(iter(phases), "gradient")

    def through(
        self, leaves: Leaves, state: State, run: Run, values: Any, prefix: str = ""
    ) -> tuple[Leaves, Any]:
        """Put leaves through an inner pipeline.

        Returns:
            The result, new parameters in the phase "step", and that pipeline's new state.
        """
        inner = self.inners[prefix]
        mine, part = self._part(prefix, leaves, run)
        states = inner.unpack(state["inner"][prefix])
        if self.phase == "step":
            out, states = inner.advance(mine, states, part, values[prefix])
        else:
            links = inner.links, inner.names
            out, states = run_links(*links, mine, states, part, values[prefix], self.phase)
        return out, inner.pack(states)

    def idle(self, leaves: Leaves, run: Run) -> Leaves:
        """What comes out where nothing is to move: zeros, or the parameters as they are.

        The zero of an update to add is -0: with 0, a parameter of -0 would become 0.
        """
        if self.phase == "gradient":
            zero = -0.0 if self.updates or run.adds else 0.0
            return [None if leaf is None else torch.full_like(leaf, zero) for leaf in leaves]
        return list(leaves if self.phase == "parameter" else run.params or [])

    def looks_at(self, leaves: Leaves, run: Run) -> Leaves:
        """The leaves that it looks at, with None for those that pass as they are."""
        return leaves

    def passed(self, leaves: Leaves, run: Run) -> Leaves:
        """What comes out where there is no wrapper: the leaves, or the parameters moved by them."""
        if self.phase != "step":
            return list(leaves)
        return [add(p, leaf) for p, leaf in zip(run.params or [], leaves, strict=True)]

    # ------------------------------------------------------------------ the link

    def keeps(self, values: dict[str, Any]) -> bool:
        own, inside = self.trees or self.once or self.counters(values), self._inside(values)
        return bool(own) or any(
            link.keeps(mine)
            for prefix, t in self.inners.items()
            for link, mine in zip(t.links, inside[prefix], strict=True)
        )

    def lacks(self, once: Any, values: dict[str, Any]) -> bool:
        once = once or {}
        own = self.once | self.counters(values)
        inside = self._inside(values)
        return not own <= set(once) or any(
            link.keeps(mine) and link.lacks(once.get("inner", {}).get(f"{prefix}{name}"), mine)
            for prefix, inner, _ in self._slots
            for name, link, mine in zip(inner.names, inner.links, inside[prefix], strict=True)
        )

    def counters(self, values: dict[str, Any]) -> frozenset[str]:
        counts = self.ticks or any(has_schedule(values[name]) for name in self.own)
        return frozenset({"step"} if counts else ())

    def check_values(self, values: dict[str, Any]) -> None:
        for name, rule in self.own.items():
            rule.check(name, values[name])
        for _, inner, keys in self._slots:
            for link, own in zip(inner.links, keys, strict=True):
                link.check_values({n: values[k] for n, k in own.items()})

    def check_fit(self, values: dict[str, Any], leaves: Leaves, run: Run) -> None:
        for name, rule in self.own.items():
            check_one(rule, name, values[name])
        inside = values if "inner" in values else {**values, "inner": self._inside(values)}
        for prefix, inner, _ in self._slots:
            mine, _ = self._part(prefix, leaves, run)
            for link, own in zip(inner.links, inside["inner"][prefix], strict=True):
                link.check_fit(own, mine, run)

    def check_devices(self, values: dict[str, Any], leaves: Leaves, run: Run) -> None:
        super().check_devices(values, leaves, run)
        inside = self._inside(values)
        for prefix, inner, _ in self._slots:
            mine, part = self._part(prefix, leaves, run)
            for link, own in zip(inner.links, inside[prefix], strict=True):
                link.check_devices(own, mine, part)

    def meets(self, values: dict[str, Any], run: Run) -> bool:
        return bool(self.once | self.counters(values))

    def fresh(self, leaves: Leaves, spec: Spec) -> State:
        made = self.begin(leaves, spec)
        return {**made, **self.columns(made, spec)}

    def check_state(self, state: State, leaves: Leaves, spec: Spec) -> None:
        names = {"inner", *self.trees, *self.once, *self.counters(self.values)}
        inside = state.get("inner") if isinstance(state, dict) else None
        if not isinstance(inside, dict) or set(state) != names or set(inside) != set(self.inners):
            raise ValueError(f"`state` must be the state of {self!r}  Got: {told(state)}")
        if "step" in names:
            check_once(self, {"step": state["step"]}, {"step": ()})
        if self.trees or self.once:
            check_kept(self, {**state, **self.columns(state, spec)}, leaves, spec)
        for prefix, inner in self.inners.items():
            mine, _ = self._part(prefix, leaves, Run(spec))
            for link, own in zip(inner.links, inner.unpack(inside[prefix]), strict=True):
                link.check_state(own, mine, spec)

    def _inside(self, values: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
        """The values for what is inside, of the flat ones."""
        if values is self.values:
            return {prefix: [link.values for link in t.links] for prefix, t, _ in self._slots}
        return {
            prefix: [{n: values[k] for n, k in own.items()} for own in keys]
            for prefix, _, keys in self._slots
        }

    def evaluate(self, values: dict[str, Any], state: State) -> dict[str, Any]:
        now = {name: values[name] for name in self.own}
        if any(map(has_schedule, now.values())):
            if "step" not in state:
                name = next(n for n, v in now.items() if has_schedule(v))
                raise ValueError(
                    f"`{name}` must be given to {self.name} as a schedule before `init`, which "
                    f"then keeps a step  Got: {show(now[name])}"
                )
            now = {n: evaluated(v, state["step"]) for n, v in now.items()}
            for name, rule in self.own.items():
                rule.check(name, now[name])
        inside = self._inside(values)
        for prefix, inner, _ in self._slots:
            rows = zip(
                inner.links, inside[prefix], inner.unpack(state["inner"][prefix]), strict=True
            )
            inside[prefix] = [link.evaluate(own, saved) for link, own, saved in rows]
        return {**now, "inner": inside}

    def now(self, values: dict[str, Any], state: State) -> dict[str, Any]:
        found = super().now({name: values[name] for name in self.own}, state)
        for prefix, inner, keys in self._slots:
            saved = inner.unpack(state["inner"][prefix])
            given = self._inside(values)[prefix]
            for link, own, mine, names in zip(inner.links, given, saved, keys, strict=True):
                found |= {names[n]: v for n, v in link.now(own, mine).items()}
        return found

    def start(self, leaves: Leaves, run: Run, values: dict[str, Any]) -> State:
        state: State = {"inner": {}}
        inside = self._inside(values)
        for prefix, inner in self.inners.items():
            mine, part = self._part(prefix, leaves, run)
            rows = zip(inner.links, inside[prefix], strict=True)
            state["inner"][prefix] = inner.pack([k.start(mine, part, v) for k, v in rows])
        if self.counters(values):
            state["step"] = torch.zeros((), dtype=torch.int64, device=device_of(leaves))
        return {**state, **self.begin(leaves, run.spec)}

    def apply(
        self, leaves: Leaves, state: State, run: Run, values: dict[str, Any]
    ) -> tuple[Leaves, State]:
        # What is decided later must not be written before: no memory is given to what is inside.
        inside = replace(run, writable=[False] * len(leaves))
        own = {name: values[name] for name in self.own}
        out, new = self.wrap(leaves, state, inside, values["inner"], **own)
        for key in self.trees:
            new[key] = self._unshared(new[key], leaves, out, run)
        if "step" in state:
            new = {"step": state["step"] + 1, **new}
        for i, (leaf, result) in enumerate(zip(leaves, out, strict=True)):
            if leaf is None or result is None or self.phase == "step":
                run.writable[i] = False
        return written(leaves, out, run.writable), new

    def _unshared(self, tree: Tree, leaves: Leaves, out: Leaves, run: Run) -> Tree:
        """What is kept, in memory that no later step writes."""
        kept = presented(tree, run.spec, "state", "`updates`")
        for i, x in enumerate(kept):
            others = (leaves[i], out[i], run.params[i] if run.params else None)
            if x is not None and any(shares_memory(x, other) for other in others):
                kept[i] = x.clone()
        return present(kept, run.spec)

    def _part(self, prefix: str, leaves: Leaves, run: Run) -> tuple[Leaves, Run]:
        """What an inner pipeline sees: the same tree, with None for what it does not see."""
        part = replace(run, writable=[False] * len(leaves), name=f"{run.name}/{prefix}")
        flags = self._flags(prefix, leaves if run.params is None else run.params, run.spec)
        if flags is None:
            return leaves, part
        if run.params is not None:
            part.params = [p if flag else None for p, flag in zip(run.params, flags, strict=True)]
        return [x if flag else None for x, flag in zip(leaves, flags, strict=True)], part

    def _flags(self, prefix: str, leaves: Leaves, spec: Spec) -> list[bool] | None:
        """`seen`, asked once for each tree; one that may look at tensors, for the same tensors."""
        if torch.compiler.is_compiling() or type(self).seen is Wrapper.seen:
            return self.seen(prefix, leaves, spec)
        known: Any = self._known.get(prefix)
        same = known is not None and (known[0] is spec or known[0] == spec)
        if not same or not are_those(leaves, *known[1:3]):
            looks = any(map(callable, self.options.values()))
            facts = [facts_of(looks, leaf) for leaf in leaves]
            known = self._known[prefix] = spec, looks, facts, self.seen(prefix, leaves, spec)
        flags: list[bool] | None = known[3]
        return flags


class Sorted(Chain):
    """A wrapper in two links, one around gradient links and one around parameter links."""

    sorts = True


def by_phase(kind: type[Wrapper], inners: Inners, **options: Any) -> GradientTransformation:
    """A wrapper that only chooses leaves: its parameter links run where parameter links do."""
    phases = {link.phase for inner in inners.values() for link in as_links(inner)}
    if phases != {"gradient", "parameter"}:
        made: Link = kind(inners, **options)
        return made
    parts = []
    for phase in ("gradient", "parameter"):
        part = {}
        for prefix, inner in inners.items():
            rows = zip(chain(inner).links, chain(inner).names, strict=True)
            mine = [(link, name) for link, name in rows if link.phase == phase]
            part[prefix] = Chain(tuple(k for k, _ in mine), tuple(n for _, n in mine))
        parts.append(kind(part, **options))
    return Sorted(tuple(parts), (None, None))


def _rebuild(cls: Any, inners: Inners, options: dict[str, Any]) -> Link:
    made: Link = cls(inners, **options)
    return made
