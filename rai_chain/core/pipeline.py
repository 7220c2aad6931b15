"""Gradient transformations: pure functions on trees of tensors, with named hyperparameters.

A *link* is one function with a declared scope (see `rai_chain.link`); a pipeline is a row of
links. Both are a `GradientTransformation`, and everything that runs one is in this file.
"""

from typing import Any, TypeVar

import torch
import torchopt.base
from torch import Tensor

from ..data.checks import add, check_leaves, check_shapes, overlaps, write_back
from ..data.hyper import find_keys
from ..data.tree import Leaves, Spec, Tree, flatten, leaves_like, unflatten
from ..engine.chunks import Call
from ..engine.run import Phase, Run, Scope, State, run_links, runs_plain

_Self = TypeVar("_Self", bound="GradientTransformation")


class _Field:
    """One of the two tuple fields: the method of the pipeline that holds it."""

    owner: Any

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.owner, self.name)(*args, **kwargs)


class GradientTransformation(torchopt.base.GradientTransformation):
    """A pipeline of links that owns no state: the pair ``(init, update)``, and `step`.

    Made by a link factory (``clamp(clamp_max=1.0)``) or by `chain`. TorchOpt accepts it, as it
    is a ``torchopt.base.GradientTransformation``; it pickles, deep-copies and prints.

    Attributes:
        links: the links, in order, nested chains flattened.
        hyperparams: key -> value of every hyperparameter, as `update` takes them.

    Example:
        >>> import torch
        >>> from rai_chain import chain, clamp, scale
        >>> tx = chain(clamp(clamp_max=1.0), scale(0.5))
        >>> tx
        chain(clamp(clamp_min=None, clamp_max=1.0), scale(grad_scale=0.5))
        >>> tx.hyperparams
        {'clamp_min': None, 'clamp_max': 1.0, 'grad_scale': 0.5}
        >>> state = tx.init(torch.zeros(2))
        >>> tx.update(torch.tensor([3.0, -3.0]), state)[0]
        tensor([ 0.5000, -1.5000])
    """

    links: "tuple[Link, ...]"
    names: tuple[str, ...]
    keys: list[dict[str, str]]

    def __new__(cls: type[_Self]) -> _Self:
        pair = _Field("init"), _Field("update")
        self = super().__new__(cls, *pair)
        for part in pair:
            part.owner = self
        return self

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        raise NotImplementedError

    @property
    def hyperparams(self) -> dict[str, Any]:
        """Key -> value of every hyperparameter."""
        pairs = zip(self.links, self.keys, strict=True)
        return {key: link.values[name] for link, own in pairs for name, key in own.items()}

    # ------------------------------------------------------------------ the protocol

    def init(self, params: Tree) -> State:
        """Make the state for parameters of this structure.

        Args:
            params: a tensor, or any nest of dict, list and tuple of tensors; None leaves pass.
                Floating dtype, any shape, any memory layout.

        Returns:
            Tensors in plain dicts and tuples; ``()`` for what needs none.

        Raises:
            TypeError: a leaf is no floating strided tensor.
            ValueError: `param_ndim` does not fit a leaf.
        """
        leaves, spec = flatten(params)
        check_leaves(leaves, spec, "params")
        run = Run(spec, leaves)
        return self._pack([link.start(leaves, run, link.values) for link in self.links])

    def update(
        self,
        updates: Tree,
        state: State,
        *,
        params: Tree = None,
        inplace: bool = False,
        hyperparams: dict[str, Any] | None = None,
    ) -> tuple[Tree, State]:
        """Transform updates.

        Args:
            updates: gradients, a tree like the params that `init` saw.
            state: from `init` or the last call.
            params: the parameters, where a link needs them (`ValueError` says so).
            inplace: write the result into the tensors of `updates`.
            hyperparams: values for this call: key -> number, tensor, or tree like the params.

        Returns:
            The new updates and the new state. Parameter links contribute
            ``project(params + updates) - params``.

        Raises:
            TypeError: a leaf or a value of the wrong type.
            ValueError: a tree, state, key or value that does not fit.
        """
        leaves, run, states, values = self._enter(updates, state, params, inplace, hyperparams)
        if self.links[-1:] and self.links[-1].phase != "gradient":
            new, states = self.advance(leaves, states, run, values)
            pairs = zip(new, run.params or (), leaves, strict=True)
            out: Leaves = [g if n is None or g is None else n - p for n, p, g in pairs]  # type: ignore[operator]
            if inplace:
                pairs_out = zip(leaves, out, strict=True)
                out = [o if g is None or o is None else write_back(g, o) for g, o in pairs_out]
        else:
            out, states = run_links(self.links, leaves, states, run, values, "gradient")
        return unflatten(out, run.spec), self._pack(states)

    def step(
        self,
        params: Tree,
        grads: Tree,
        state: State,
        *,
        hyperparams: dict[str, Any] | None = None,
    ) -> tuple[Tree, State]:
        """Transform gradients, apply them, and project the new parameters.

        The gradient links' result is added to the parameters (scale it by ``-lr`` to descend)
        unless the pipeline has a link that steps by itself, such as `from_torch` or
        `frank_wolfe`. A constraint holds exactly afterwards.

        Args:
            params: a tree of tensors.
            grads: a tree like `params`; a None leaf leaves its parameter to the projections.
            state: from `init` or the last call.
            hyperparams: values for this call, as in `update`.

        Returns:
            The new parameters and the new state; no input is written.

        Raises:
            TypeError: a leaf or a value of the wrong type.
            ValueError: a tree, state, key or value that does not fit.
        """
        leaves, run, states, values = self._enter(grads, state, params, False, hyperparams)
        if run.params is None:
            raise ValueError("`params` must be a tree like `grads`  Got: None")
        new, states = self.advance(leaves, states, run, values)
        return unflatten(new, run.spec), self._pack(states)

    def compile(self, **options: Any) -> "GradientTransformation":
        """The same pipeline, compiled: one graph for each tree, whatever the hyperparameters.

        Numbers enter the graph as tensors, so that new values and schedules compile nothing again.

        Args:
            **options: of `torch.compile`, such as ``backend`` and ``mode``.

        Returns:
            A `GradientTransformation` with the same states. The first call takes seconds to
            minutes; results equal the eager ones to rounding.

        Example:
            >>> import torch
            >>> from rai_chain import clamp
            >>> tx = clamp(clamp_max=2.0).compile(backend="eager")
            >>> tx.update(torch.tensor([1.0, 3.0]), (), hyperparams={"clamp_max": 2.5})[0]
            tensor([1.0000, 2.5000])

        Source: `torch.compile`.
        """
        return Compiled(self, options)

    # ------------------------------------------------------------------ how it runs

    def advance(
        self, leaves: Leaves, states: list[State], run: Run, values: list[dict[str, Any]]
    ) -> tuple[Leaves, list[State]]:
        """The new parameters: transform, step, project."""
        params = run.params or []
        run.writable = [False] * len(leaves)
        leaves, states = run_links(self.links, leaves, states, run, values, "gradient")
        phases = [link.phase for link in self.links]
        if "step" in phases:
            i = phases.index("step")
            new, states[i] = self.links[i].apply(leaves, states[i], run, values[i])
        else:
            new = [add(p, g) for p, g in zip(params, leaves, strict=True)]
            run.writable = [g is not None and run.plain for g in leaves]
        run.writable = [w and n is not p for w, n, p in zip(run.writable, new, params, strict=True)]
        return run_links(self.links, new, states, run, values, "parameter")

    def _enter(
        self, updates: Tree, state: State, params: Tree, inplace: bool, hyperparams: Any
    ) -> tuple[Leaves, Run, list[State], list[dict[str, Any]]]:
        """Everything that can be refused is refused here, before anything is computed."""
        leaves, spec = flatten(updates)
        check_leaves(leaves, spec, "updates")
        run = Run(spec, None)
        if params is not None:
            run.params = leaves_like(params, spec, "params", "`updates`")
            check_leaves(run.params, spec, "params")
            check_shapes(leaves, run.params, spec)
        states = self._unpack(state)
        found = find_keys(hyperparams, self.keys, self)
        values = []
        for link, own, override in zip(self.links, states, found, strict=True):
            if link.needs_params and run.params is None:
                raise ValueError(f"`params` is needed by {link!r}  Got: None")
            link.check_state(own, leaves, spec)
            values.append(link.resolve(override, own))
        run.plain = runs_plain([*leaves, *(run.params or ())], values)
        run.writable = [inplace and leaf is not None and not overlaps(leaf) for leaf in leaves]
        return leaves, run, states, values

    def _pack(self, states: list[State]) -> State:
        return tuple(states)

    def _unpack(self, state: State) -> list[State]:
        if not isinstance(state, (tuple, list)) or len(state) != len(self.links):
            raise ValueError(
                f"`state` must be the state of {self!r}: a tuple of {len(self.links)}  "
                f"Got: {state!r}"
            )
        return list(state)


class Compiled(GradientTransformation):
    """A pipeline whose `update` and `step` are compiled, see `compile`."""

    inner: GradientTransformation
    options: dict[str, Any]
    _constants: dict[str, Tensor]
    _update: Any
    _step: Any

    def __new__(cls, inner: GradientTransformation, options: dict[str, Any]) -> "Compiled":
        self = super().__new__(cls)
        self.inner, self.options = inner, options
        self.links, self.names, self.keys = inner.links, inner.names, inner.keys
        self._constants = {
            key: torch.tensor(link.values[name], dtype=torch.float64)
            for link, own in zip(self.links, self.keys, strict=True)
            for name, key in own.items()
            if link.is_number(name, link.values[name])
        }
        self._update = torch.compile(inner.update, fullgraph=True, **options)
        self._step = torch.compile(inner.step, fullgraph=True, **options)
        return self

    def __repr__(self) -> str:
        options = ", ".join(f"{k}={v!r}" for k, v in self.options.items())
        return f"{self.inner!r}.compile({options})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Compiled, (self.inner, self.options)

    def init(self, params: Tree) -> State:
        return self.inner.init(params)

    def update(
        self,
        updates: Tree,
        state: State,
        *,
        params: Tree = None,
        inplace: bool = False,
        hyperparams: dict[str, Any] | None = None,
    ) -> tuple[Tree, State]:
        values = self._tensors(hyperparams)
        out: tuple[Tree, State] = self._update(
            updates, state, params=params, inplace=inplace, hyperparams=values
        )
        return out

    def step(
        self,
        params: Tree,
        grads: Tree,
        state: State,
        *,
        hyperparams: dict[str, Any] | None = None,
    ) -> tuple[Tree, State]:
        values = self._tensors(hyperparams)
        out: tuple[Tree, State] = self._step(params, grads, state, hyperparams=values)
        return out

    def _tensors(self, hyperparams: dict[str, Any] | None) -> dict[str, Any]:
        """All numbers of the pipeline as tensors, so that the graph holds for any of them."""
        values: dict[str, Any] = dict(self._constants)
        found = find_keys(hyperparams, self.keys, self.inner)
        for link, keys, override in zip(self.links, self.keys, found, strict=True):
            if override:
                link.check_values({**link.values, **override})
            for name, value in override.items():
                number = link.is_number(name, value)
                values[keys[name]] = torch.tensor(value, dtype=torch.float64) if number else value
        return values


class Link(GradientTransformation):
    """One link of a pipeline: the base of everything that `chain` joins.

    Attributes:
        name: the factory's name.
        scope: what the function sees: ``"element"``, ``"row"`` or ``"tree"``.
        phase: ``"gradient"``, ``"step"`` (makes the new parameter) or ``"parameter"``.
        values: hyperparameter -> value.
    """

    name: str
    scope: Scope = "tree"
    phase: Phase = "gradient"
    values: dict[str, Any]
    needs_params: bool = False

    @property
    def links(self) -> "tuple[Link, ...]":  # type: ignore[override]
        """The link itself: a pipeline of one."""
        return (self,)

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The name in qualified keys."""
        return (f"{self.name}_0",)

    @property
    def keys(self) -> list[dict[str, str]]:  # type: ignore[override]
        """Each hyperparameter under its own name."""
        return [{name: name for name in self.values}]

    def start(self, leaves: Leaves, run: Run, values: dict[str, Any]) -> State:
        """The state before the first update."""
        return ()

    def apply(
        self, leaves: Leaves, state: State, run: Run, values: dict[str, Any]
    ) -> tuple[Leaves, State]:
        """Put leaves through the link; `values` are resolved and checked."""
        raise NotImplementedError

    def map(self, tree: Tree) -> Tree:
        """Apply a stateless link, as a plain function of one tree, to gradients or parameters."""
        leaves, spec = flatten(tree)
        check_leaves(leaves, spec, "tree")
        plain = runs_plain(leaves, [self.values])
        run = Run(spec, leaves, plain=plain, writable=[False] * len(leaves))
        return unflatten(self.apply(leaves, (), run, self.resolve({}, ()))[0], spec)

    def elementwise_call(self, state: State, values: dict[str, Any]) -> Call | None:
        """The link as a function of any piece of any leaf, where that is what it is."""
        return None

    def stateless_call(self, values: dict[str, Any]) -> Call | None:
        """The same, where the link keeps no state with these values."""
        return None

    def tick(self, state: State) -> State:
        """The state after a step that changes nothing but the counter."""
        return {**state, "step": state["step"] + 1} if state else state

    def is_number(self, name: str, value: Any) -> bool:
        """Whether a value may become a tensor: a number that chooses nothing but a number."""
        return False

    def check_values(self, values: dict[str, Any]) -> None:
        """Refuse hyperparameters that do not fit."""

    def check_state(self, state: State, leaves: Leaves, spec: Spec) -> None:
        """Refuse a state that is not this link's, or of another tree."""

    def resolve(self, override: dict[str, Any], state: State) -> dict[str, Any]:
        """The values of this call: the link's own, overridden, schedules evaluated."""
        values = self.values
        if override:
            values = {**values, **override}
            self.check_values(values)
        return values

    def _pack(self, states: list[State]) -> State:
        return states[0]

    def _unpack(self, state: State) -> list[State]:
        return [state]


def apply_updates(params: Tree, updates: Tree) -> Tree:
    """Add updates to parameters.

    Args:
        params: a tree of tensors, floating dtype.
        updates: a tree like `params`; a None leaf leaves its parameter as it is.

    Returns:
        ``params + updates``, in the dtypes of `params`; no input is written.

    Raises:
        ValueError: the trees or the shapes differ.

    Example:
        >>> import torch
        >>> apply_updates({"w": torch.ones(2)}, {"w": torch.tensor([0.5, -1.0])})
        {'w': tensor([1.5000, 0.0000])}

    Source: the function of the same name in optax.
    """
    leaves, spec = flatten(params)
    moves = leaves_like(updates, spec, "updates", "`params`")
    check_leaves(leaves, spec, "params")
    check_leaves(moves, spec, "updates")
    check_shapes(moves, leaves, spec)
    return unflatten([add(p, u) for p, u in zip(leaves, moves, strict=True)], spec)
