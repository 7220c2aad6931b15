"""The scope decorators: one pure function becomes a link factory."""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, overload

import torch
from torch import Tensor

from ..data.checks import overlaps, write_back
from ..data.hyper import Range, Rule, rules_of
from ..data.random import fold
from ..data.rows import check_param_ndim, in_blocks, row_dims, to_rows
from ..data.tree import Leaves, Spec, flatten, is_container, leaf_names, leaves_like, unflatten
from ..engine.chunks import Call
from ..engine.run import Phase, Run, Scope, State
from .pipeline import Link

# What a function may ask for, as keyword-only parameters, besides its hyperparameters.
_GIVEN = frozenset({"out", "param", "state", "step", "key"})


class Factory(Protocol):
    """What the decorators return: hyperparameters -> link."""

    __name__: str
    definition: "Definition"

    def __call__(self, *args: Any, **kwargs: Any) -> "FunctionLink":
        """Make the link."""

    def function(self, *args: Any, **kwargs: Any) -> Any:
        """The undecorated function."""


class _Unset:
    """The `param_ndim` of a link that leaves it to the pipeline's home."""

    def __repr__(self) -> str:
        return "unset"

    def __reduce__(self) -> str:
        return "UNSET"


UNSET = _Unset()


@dataclass(frozen=True)
class Definition:
    """What a decorator reads off a link function."""

    function: Callable[..., Any]
    scope: Scope
    phase: Phase
    parameters: tuple[inspect.Parameter, ...]
    rules: dict[str, Rule]
    given: frozenset[str]
    start: Callable[..., dict[str, Tensor]] | None
    check: Callable[[dict[str, Any]], None] | None
    draws: str | None
    keys: frozenset[str]  # of the state that `start` makes

    def draw_is_needed(self, values: dict[str, Any]) -> bool:
        """Whether the function draws: not where the value that `draws` names is the number 0."""
        if "key" not in self.given or self.draws is None:
            return "key" in self.given
        value = values[self.draws]
        return isinstance(value, Tensor) or callable(value) or bool(value)


class FunctionLink(Link):
    """A link made of one function: what the factories of `elementwise` and the rest return."""

    factory: Factory
    definition: Definition
    param_ndim: Any
    seed: Any

    def __new__(
        cls,
        factory: Factory,
        values: dict[str, Any],
        param_ndim: Any = UNSET,
        seed: Any = 0,
        *,
        check: bool = True,
    ) -> "FunctionLink":
        self = super().__new__(cls)
        self.factory, self.values, self.param_ndim, self.seed = factory, values, param_ndim, seed
        self.definition = factory.definition
        self.name = factory.__name__
        self.scope, self.phase = self.definition.scope, self.definition.phase
        self.needs_params = self.phase != "gradient" or "param" in self.definition.given
        if check:
            self.check_values(values)
        if param_ndim is not UNSET:
            check_param_ndim(param_ndim)
        return self

    def with_rows(self, param_ndim: int | None) -> "FunctionLink":
        """The same link with rows of its own."""
        return FunctionLink(self.factory, self.values, param_ndim, self.seed, check=False)

    def __repr__(self) -> str:
        shown = dict(self.values)
        if self.param_ndim is not UNSET:
            shown["param_ndim"] = self.param_ndim
        return f"{self.name}({', '.join(f'{k}={show(v)}' for k, v in shown.items())})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _remake, (self.factory, self.values, self.param_ndim, self.seed)

    def is_number(self, name: str, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        rule = self.definition.rules[name]
        is_switch = self.definition.draws == name and value == 0
        return isinstance(rule, Range) and not rule.static and not is_switch

    def check_values(self, values: dict[str, Any]) -> None:
        for name, rule in self.definition.rules.items():
            rule.check(name, values[name])
        if self.definition.check is not None:
            self.definition.check(values)

    def rows_ndim(self, run: Run) -> int | None:
        """The `param_ndim` in force: the link's own, else the home's."""
        ndim: int | None = run.param_ndim if self.param_ndim is UNSET else self.param_ndim
        return ndim

    # ------------------------------------------------------------------ state

    def start(self, leaves: Leaves, run: Run, values: dict[str, Any]) -> State:
        d = self.definition
        tensors = [leaf for leaf in leaves if leaf is not None]
        if d.scope == "row":
            check_param_ndim(self.rows_ndim(run), *tensors)
        device = tensors[0].device if tensors else None
        state: dict[str, Any] = {}
        counters = self._counters(values)
        if "step" in counters:
            state["step"] = torch.zeros((), dtype=torch.int64, device=device)
        if "seed" in counters:
            state["seed"] = torch.as_tensor(self.seed, dtype=torch.int64, device=device)
        if d.start is not None and d.scope == "tree":
            state.update(d.start(tensors))
        elif d.start is not None:
            made = [None if leaf is None else d.start(self._view(leaf, run)) for leaf in leaves]
            for key in sorted({k for one in made if one is not None for k in one}):
                column = [None if one is None else one[key] for one in made]
                state[key] = unflatten(column, run.spec)
        return state or ()

    def _counters(self, values: dict[str, Any]) -> set[str]:
        """The scalars that the state holds besides what `start` makes."""
        draws = self.definition.draw_is_needed(values)
        steps = draws or "step" in self.definition.given or any(map(is_schedule, values.values()))
        return {name for name, held in (("step", steps), ("seed", draws)) if held}

    def check_state(self, state: State, leaves: Leaves, spec: Spec) -> None:
        d, counters = self.definition, self._counters(self.values)
        keys = set(state) if isinstance(state, dict) else set()
        trees = keys - {"step", "seed"}
        plain = isinstance(state, dict) or state == ()
        makes = d.keys if any(leaf is not None for leaf in leaves) else frozenset()
        if not plain or keys - trees != counters or trees != makes:
            raise ValueError(f"`state` must be the state of {self!r}  Got: {state!r}")
        if d.scope == "tree":
            return
        for key in trees:
            own = leaves_like(state[key], spec, "updates", f"the tree that `init` saw ({key})")
            for i, (saved, leaf) in enumerate(zip(own, leaves, strict=True)):
                if leaf is not None and (
                    saved is None
                    or (
                        (d.scope == "element" and saved.shape != leaf.shape)
                        and saved.is_floating_point()
                    )  # else it is a leaf's own count
                ):
                    shape = None if saved is None else tuple(saved.shape)
                    raise ValueError(
                        f"`updates{leaf_names(spec)[i]}` must have the shape that `init` saw, "
                        f"{shape}  Got: {tuple(leaf.shape)}"
                    )

    def resolve(self, override: dict[str, Any], state: State) -> dict[str, Any]:
        values = super().resolve(override, state)
        scheduled = {k: v for k, v in values.items() if is_schedule(v)}
        if scheduled:
            for name in scheduled:
                if "step" not in state:
                    raise ValueError(
                        f"`{name}` must be given to {self.name}(...) as a schedule before `init`, "
                        f"which then keeps a step  Got: {scheduled[name]!r}"
                    )
            values = {**values, **{k: v(state["step"]) for k, v in scheduled.items()}}
            self.check_values(values)
        if self.definition.draw_is_needed(values) and "seed" not in state:
            raise ValueError(
                f"`{self.definition.draws}` must not be 0 in {self.name}(...) when `init` is "
                f"called, for the state to keep a seed  Got: {values[self.definition.draws or '']}"
            )
        return values

    # ------------------------------------------------------------------ apply

    def elementwise_call(self, state: State, values: dict[str, Any]) -> Call | None:
        d = self.definition
        if d.scope != "element" or d.given - {"out", "step"} or self.phase == "step":
            return None
        for value in values.values():
            if is_container(value) or (isinstance(value, Tensor) and value.ndim):
                return None
        if "step" in d.given:
            values = {**values, "step": state["step"]}
        if "out" in d.given:
            return functools.partial(d.function, **values)
        return functools.partial(self._without_out, values)

    def _checked(self, view: Tensor, **values: Any) -> Any:
        result = self.definition.function(view, **values)
        self._check_result(result, view)
        return result

    def _without_out(self, values: dict[str, Any], x: Tensor, out: Tensor) -> Any:
        return self._checked(x, **values)

    def stateless_call(self, values: dict[str, Any]) -> Call | None:
        return None if self._counters(values) else self.elementwise_call((), values)

    def apply(
        self, leaves: Leaves, state: State, run: Run, values: dict[str, Any]
    ) -> tuple[Leaves, State]:
        d = self.definition
        given: dict[str, Any] = {}
        new_state = state
        if state:
            new_state = dict(state)
            if "step" in state:
                new_state["step"] = state["step"] + 1
                if "step" in d.given:
                    given["step"] = state["step"]
        if d.scope == "tree":
            return self._apply_tree(leaves, state, new_state, run, {**values, **given}), new_state
        draws = d.draw_is_needed(values)
        per_leaf = spread(values, leaves, run.spec)
        columns = {
            key: (flatten(state[key])[0], [None] * len(leaves))
            for key in (state if d.start is not None else ())
            if key not in ("step", "seed")
        }
        out: Leaves = list(leaves)
        for i, leaf in enumerate(leaves):
            if leaf is None or leaf.numel() == 0:
                out[i] = run.params[i] if d.phase == "step" and run.params else leaf
                _carry(columns, i)
                continue
            extra = {**per_leaf(i), **given}
            if draws:
                extra["key"] = fold(state["seed"], state["step"], i)
            if "param" in d.given and run.params is not None:
                extra["param"] = self._view(run.params[i], run)  # type: ignore[arg-type]
            if columns:
                extra["state"] = {key: old[i] for key, (old, _) in columns.items()}
            out[i] = self._on_leaf(leaf, extra, columns, run, i)
        for key, (_, new) in columns.items():
            new_state[key] = unflatten(new, run.spec)
        return out, new_state

    def _on_leaf(
        self, leaf: Tensor, extra: dict[str, Any], columns: dict[str, Any], run: Run, i: int
    ) -> Tensor:
        """One leaf through the function, in memory that may be written where there is some."""
        view = self._view(leaf, run)
        if self.scope == "row":
            split = leaf.ndim - row_dims(leaf.ndim, self.rows_ndim(run))
            extra = {k: self._like_rows(k, v, leaf, view, split) for k, v in extra.items()}
        writable = run.writable[i]
        out = None
        if "out" in self.definition.given and run.plain:
            out = view if writable or view.data_ptr() != leaf.data_ptr() else torch.empty_like(view)
            result = self.definition.function(view, **extra, out=out)
        elif self.scope == "row" and run.plain and self.definition.given <= {"step"}:
            result = in_blocks(self._checked, view, extra)
        else:
            result = self.definition.function(view, **extra)
        if columns:
            result, new = self._with_state(result)
            for key, (old, column) in columns.items():  # a hyperparameter's dtype must not spread
                column[i] = new[key].to(old[i].dtype)
            if any(result is kept for kept in new.values()):
                result = result.clone()  # whoever writes into the updates must not hit the state
        self._check_result(result, view)
        kind = run.params[i] if self.phase == "step" and run.params else leaf
        shaped: Tensor = result.reshape(leaf.shape).to(kind.dtype)  # type: ignore[union-attr]
        if run.plain and shaped.stride() != leaf.stride() and not overlaps(leaf):
            shaped = torch.empty_like(leaf).copy_(shaped)  # later reductions see the same order
        if writable and self.phase != "step":
            same = run.plain and shaped.data_ptr() == leaf.data_ptr()
            return leaf if same else write_back(leaf, shaped)
        run.writable[i] = out is not None
        return shaped

    def _apply_tree(
        self, leaves: Leaves, state: State, new_state: State, run: Run, values: dict[str, Any]
    ) -> Leaves:
        d = self.definition
        places = [i for i, leaf in enumerate(leaves) if leaf is not None]
        seen = [leaves[i] for i in places]
        if "param" in d.given and run.params is not None:
            values["param"] = [run.params[i] for i in places]
        if d.draw_is_needed(values):
            values["key"] = fold(state["seed"], state["step"], 0)
        if "state" in d.given:
            own = {k: v for k, v in state.items() if k not in ("step", "seed")}
            result, new = self._with_state(d.function(seen, **values, state=own))
            new_state.update(new)
        else:
            result = d.function(seen, **values)
        out = list(leaves)
        if not isinstance(result, (list, tuple)) or len(result) != len(seen):
            raise ValueError(f"`{self.name}` must return {len(seen)} tensors  Got: {result!r}")
        for i, new_leaf in zip(places, result, strict=True):
            old = leaves[i]
            self._check_result(new_leaf, old)
            out[i] = write_back(old, new_leaf) if old is not None and run.writable[i] else new_leaf
        return out

    def _with_state(self, result: Any) -> tuple[Any, dict[str, Tensor]]:
        """What a function with a state returned: its result and its new state."""
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
            raise TypeError(
                f"`{self.name}` must return (result, new state), as it keeps a state  "
                f"Got: {type(result).__name__}"
            )
        if result[1].keys() != self.definition.keys:
            raise ValueError(
                f"`{self.name}` must return a state with the keys {sorted(self.definition.keys)}  "
                f"Got: {sorted(result[1])}"
            )
        return result

    def _check_result(self, result: Any, given: Tensor | None) -> None:
        """Refuse a result of another shape: it would broadcast without a word."""
        if not isinstance(result, Tensor):
            raise TypeError(f"`{self.name}` must return a tensor  Got: {type(result).__name__}")
        if given is not None and result.shape != given.shape:
            raise ValueError(
                f"`{self.name}` must return the shape that it was given, {tuple(given.shape)}  "
                f"Got: {tuple(result.shape)}"
            )

    def _view(self, leaf: Tensor, run: Run) -> Tensor:
        return to_rows(leaf, self.rows_ndim(run)) if self.scope == "row" else leaf

    def _like_rows(self, name: str, value: Any, leaf: Tensor, rows: Tensor, split: int) -> Any:
        """A tensor value as rows: one for each row, (N,) or (N, 1), or one for each element."""
        if not isinstance(value, Tensor) or value.ndim == 0 or name not in self.values:
            return value
        n = rows.shape[0]
        if value.shape in ((n,), (n, 1)) and value.shape != leaf.shape:
            return value.reshape(n, 1)
        try:
            if value.ndim == leaf.ndim and math.prod(value.shape[split:]) == 1:
                return value.reshape(value.shape[:split]).expand(leaf.shape[:split]).reshape(n, 1)
            return value.broadcast_to(leaf.shape).reshape(rows.shape)
        except RuntimeError:
            raise ValueError(
                f"`{name}` must have one value, one for each of the {n} rows, or broadcast to "
                f"{tuple(leaf.shape)}  Got: shape {tuple(value.shape)}"
            ) from None


def _remake(factory: Factory, values: dict[str, Any], param_ndim: Any, seed: Any) -> FunctionLink:
    return FunctionLink(factory, values, param_ndim, seed, check=False)


def is_schedule(value: Any) -> bool:
    """Whether a hyperparameter is a function of the step."""
    return callable(value) and not isinstance(value, Tensor)


def show(value: Any) -> str:
    """A hyperparameter in a repr: numbers as they are, schedules by name, tensors by shape."""
    if isinstance(value, Tensor) and value.ndim:
        return f"tensor{tuple(value.shape)}"
    return getattr(value, "__name__", None) or repr(value)


def spread(
    values: dict[str, Any], leaves: Sequence[Tensor | None], spec: Spec
) -> Callable[[int], dict[str, Any]]:
    """The values for leaf i, where some are trees with one value for each leaf."""
    trees = {k: v for k, v in values.items() if is_container(v)}
    if not trees:
        return lambda i: values
    columns = {k: leaves_like(v, spec, k, "`updates`") for k, v in trees.items()}
    return lambda i: {**values, **{k: column[i] for k, column in columns.items()}}


def _carry(columns: dict[str, Any], i: int) -> None:
    for old, new in columns.values():
        new[i] = old[i]


class Decorator:
    """A scope decorator, with or without options; see `elementwise`."""

    def __init__(self, scope: Scope, doc: str) -> None:
        self.scope, self.__doc__ = scope, doc

    @overload
    def __call__(self, function: Callable[..., Any]) -> Factory: ...

    @overload
    def __call__(
        self,
        *,
        phase: Phase = "gradient",
        state: Callable[..., dict[str, Tensor]] | None = None,
        check: Callable[[dict[str, Any]], None] | None = None,
        draws: str | None = None,
    ) -> Callable[[Callable[..., Any]], Factory]: ...

    def __call__(
        self,
        function: Callable[..., Any] | None = None,
        *,
        phase: Phase = "gradient",
        state: Callable[..., dict[str, Tensor]] | None = None,
        check: Callable[[dict[str, Any]], None] | None = None,
        draws: str | None = None,
    ) -> Any:
        if function is None:
            return lambda f: _factory(f, self.scope, phase, state, check, draws)
        return _factory(function, self.scope, phase, state, check, draws)


def _factory(
    function: Callable[..., Any],
    scope: Scope,
    phase: Phase,
    start: Callable[..., dict[str, Tensor]] | None,
    check: Callable[[dict[str, Any]], None] | None,
    draws: str | None,
) -> Factory:
    parameters = list(inspect.signature(function).parameters.values())[1:]
    given = frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY) & _GIVEN
    own = tuple(p for p in parameters if p.name not in given)
    misplaced = [p.name for p in own if p.name in _GIVEN]
    if misplaced:
        raise TypeError(
            f"`{misplaced[0]}` must be a keyword-only parameter of `{function.__name__}`, behind a "
            f"`*`  Got: {inspect.signature(function)}"
        )
    if (start is None) != ("state" not in given):
        raise TypeError(
            f"`state` must be both an option of the decorator and a keyword-only parameter of "
            f"`{function.__name__}`  Got: {inspect.signature(function)}"
        )
    tiny = torch.zeros(1, 1)
    keys = frozenset(() if start is None else start([tiny] if scope == "tree" else tiny))
    rules = rules_of(function, own)
    definition = Definition(function, scope, phase, own, rules, given, start, check, draws, keys)
    structural = ["param_ndim"] * (scope == "row") + ["seed"] * ("key" in given)
    signature = inspect.Signature(
        [
            *own,
            *(
                inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None)
                for n in structural
            ),
        ]
    )

    @functools.wraps(function)
    def factory(*args: Any, **kwargs: Any) -> FunctionLink:
        param_ndim = kwargs.pop("param_ndim", UNSET) if scope == "row" else UNSET
        seed = kwargs.pop("seed", 0) if "key" in given else 0
        try:
            bound = inspect.Signature(own).bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{function.__name__}{inspect.Signature(own)}: {error}") from None
        bound.apply_defaults()
        return FunctionLink(made, dict(bound.arguments), param_ndim, seed)

    made: Any = factory
    made.definition, made.function, made.__signature__ = definition, function, signature
    del made.__wrapped__
    result: Factory = made
    return result


elementwise = Decorator(
    "element",
    """Make a link of a function of one tensor whose elements do not see each other.

    Args:
        function: ``f(grad, hyper=default, ..., *, given...) -> tensor`` of the same shape. The
            given ones, asked for by name: `out` (the destination, where there is one; may be
            `grad`), `param` (its parameter), `step` (0-dim int64), `key` (for random numbers,
            see `rai_chain.random`) and `state` (then the result is ``(tensor, new_state)``).
        phase: "gradient", "step" (the result is the new parameter) or "parameter" (the function
            maps parameters, after the step).
        state: ``tensor -> dict of tensors``, the state of one tensor before the first update. It
            is called once with zeros of shape (1, 1), to learn the keys.
        check: raises on values that do not fit each other; gets a dict of all of them.
        draws: the hyperparameter that switches drawing off when it is the number 0.

    Returns:
        A factory: hyperparameters -> `GradientTransformation`.

    Example:
        >>> import torch, rai_chain
        >>> @rai_chain.elementwise
        ... def cube(grad, factor=1.0):
        ...     return factor * grad**3
        >>> cube(factor=2.0)
        cube(factor=2.0)
        >>> tx = cube()
        >>> tx.update(torch.tensor([1.0, -2.0]), tx.init(torch.zeros(2)))[0]
        tensor([ 1., -8.])

    Source: the scope "element" of this library's design.
    """,
)

rowwise = Decorator(
    "row",
    """Make a link of a function of rows (N, D), each of which is transformed by itself.

    Args:
        function: like that of `elementwise`, but of a tensor (N, D). Which elements make a row
            is the caller's choice: the factory takes `param_ndim`, see `rai_chain.to_batch`.
            A tensor hyperparameter shaped like the leaf arrives as rows too. Of many rows it
            sees some at a time, with their own part of such a hyperparameter.
        phase, state, check, draws: as in `elementwise`.

    Returns:
        A factory: hyperparameters and `param_ndim` -> `GradientTransformation`.

    Example:
        >>> import torch, rai_chain
        >>> @rai_chain.rowwise
        ... def max_norm(rows, floor=1e-20):
        ...     return rows / rows.abs().amax(1, keepdim=True).clamp(min=floor)
        >>> tx = max_norm(param_ndim=1)
        >>> tx.update(torch.tensor([[1.0, 2.0], [20.0, 10.0]]), ())[0]
        tensor([[0.5000, 1.0000],
                [1.0000, 0.5000]])

    Source: the scope "row" of this library's design.
    """,
)

treewise = Decorator(
    "tree",
    """Make a link of a function of all tensors of the tree at once.

    Args:
        function: like that of `elementwise`, but of the list of all leaves that are not None,
            and returns such a list. `param` is then a list too, and `state` any dict of tensors.
        phase, state, check, draws: as in `elementwise`; `state` gets the list.

    Returns:
        A factory: hyperparameters -> `GradientTransformation`. In an optimizer, one param
        group is one tree.

    Example:
        >>> import torch, rai_chain
        >>> @rai_chain.treewise
        ... def share(leaves):
        ...     total = sum(leaf.sum() for leaf in leaves)
        ...     return [leaf / total for leaf in leaves]
        >>> tx = share()
        >>> tx.update({"a": torch.tensor(1.0), "b": torch.tensor(3.0)}, ())[0]
        {'a': tensor(0.2500), 'b': tensor(0.7500)}

    Source: the scope "tree" of this library's design.
    """,
)
