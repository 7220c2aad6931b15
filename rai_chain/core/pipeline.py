"""Pipelines: pure functions on trees of tensors, with named hyperparameters, that own no state.

A *link* is one function with a declared scope (see `rai_chain.core.link`); a pipeline is a row of
links. Both are a `GradientTransformation`.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
import torchopt.base

from ..data.checks import add, check_leaves, check_made, check_shapes
from ..data.hyper import Flag, keys_of, plain
from ..data.memory import written
from ..data.messages import refuse_key, told
from ..data.tree import Leaves, Tree, flatten_given, leaves_like, unflatten
from ..engine.run import Run, State, named_inputs, one_of_each, run_links, runs_plain, to_write
from .drawing import Drawn

_Self = TypeVar("_Self", bound="GradientTransformation")
Keys = list[dict[str, str]]  # for each link: hyperparameter -> key
Values = list[dict[str, Any]]  # for each link: hyperparameter -> value


class GradientTransformation(Drawn, torchopt.base.GradientTransformation):
    """A pipeline of links that owns no state: the pair ``(init, update)``, and `step`.

    Made by a link factory or by `chain`; or, as in optax, of two functions. TorchOpt accepts it.

    Args:
        init: ``init(params) -> state``.
        update: ``update(updates, state, params) -> (updates, state)``.

    Attributes:
        links: the links, in order, nested chains flattened.
        names: the name of each, as it stands in qualified keys.
        hyperparams: key -> value of every hyperparameter, as `update` takes them.
        updates: whether the result is an update to add, as a native optimizer's is.

    Example:
        >>> import torch
        >>> from rai_chain import chain, clamp, scale
        >>> tx = chain(clamp(clamp_max=1.0), scale(0.5))
        >>> tx.hyperparams
        {'clamp_min': None, 'clamp_max': 1.0, 'grad_scale': 0.5}
        >>> state = tx.init(torch.zeros(2))
        >>> tx.update(torch.tensor([3.0, -3.0]), state)[0]
        tensor([ 0.5000, -1.5000])
    """

    links: "tuple[Any, ...]"
    names: tuple[str, ...]
    shared: frozenset[str] = frozenset()  # bare keys that several links read
    _still: bool | None = None

    def __new__(cls: type[_Self], init: Any = None, update: Any = None) -> Any:
        if cls is GradientTransformation:
            return MAKERS["pair"](init, update)
        nothing: Any = None  # the fields are the methods: nothing is held twice
        return super().__new__(cls, nothing, nothing)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.init, self.update))

    def __getitem__(self, place: Any) -> Any:
        return (self.init, self.update)[place]

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        raise NotImplementedError

    @property
    def updates(self) -> bool:
        """Whether the result is an update to add, as a native optimizer's is."""
        return any(link.updates for link in self.links if link.phase == "gradient")

    # ------------------------------------------------------------------ from a name to a value

    def keys(self) -> Keys:
        """For each link: hyperparameter -> key, which is qualified where several links have it."""
        return keys_of(self.names, [link.values for link in self.links], self.shared)

    def find(self, mapping: Mapping[str, Any] | None) -> Values:
        """Sort a mapping key -> value by link.

        Raises:
            ValueError: a key that no link has; one that is ambiguous lists the qualified keys.
        """
        found: Values = [{} for _ in self.links]
        if mapping is not None and not isinstance(mapping, Mapping):
            raise TypeError(f"`hyperparams` must be a dict key -> value  Got: {told(mapping)}")
        if not mapping:
            return found
        keys = self.keys()
        for key, value in mapping.items():
            owners = [
                (i, name)
                for i, own in enumerate(keys)
                for name, bare in own.items()
                if key in (bare, f"{self.names[i]}.{name}")
            ]
            if not owners:
                refuse_key(key, keys, self)
            for i, name in owners:
                found[i][name] = plain(value)
        return found

    def resolve(self, mapping: Mapping[str, Any] | None, states: list[State]) -> Values:
        """The values of one call: found, checked, schedules evaluated; nothing is written.

        Args:
            mapping: key -> value; what it lacks is the link's own.
            states: of the links, which hold the steps that schedules are evaluated at.
        """
        values = []
        for link, own, state in zip(self.links, self.find(mapping), states, strict=True):
            if own:
                own = {**link.values, **own}
                link.check_values(own)
            values.append(link.evaluate(own or link.values, state))
        return values

    @property
    def hyperparams(self) -> dict[str, Any]:
        """Key -> value of every hyperparameter."""
        pairs = zip(self.links, self.keys(), strict=True)
        return {key: link.values[name] for link, own in pairs for name, key in own.items()}

    def current(self, state: State) -> dict[str, Any]:
        """The values that the next call will use: schedules evaluated.

        Args:
            state: from `init` or the last call.

        Returns:
            key -> number or tensor.

        Example:
            >>> import torch
            >>> from rai_chain import scale
            >>> tx = scale(lambda step: 1.0 + step)
            >>> _, state = tx.update(torch.ones(1), tx.init(torch.ones(1)))
            >>> tx.current(state)
            {'grad_scale': tensor(2.)}
        """
        rows = zip(self.links, self.keys(), self.unpack(state), strict=True)
        return {
            keys[name]: value
            for link, keys, own in rows
            for name, value in link.now(link.values, own).items()
        }

    def replace(self, **hyperparams: Any) -> "GradientTransformation":
        """The same pipeline with other hyperparameters.

        Args:
            **hyperparams: key -> value; qualified keys by ``**{"clamp_0.clamp_max": 1.0}``.

        Raises:
            ValueError: an unknown key, or a value outside its interval.

        Example:
            >>> from rai_chain import top_q
            >>> top_q(0.5).replace(q=0.9)
            top_q(q=0.9, dq=0.0, at_least=0)
        """
        found = self.find(hyperparams)
        pairs = zip(self.links, found, strict=True)
        return self.with_links(tuple(k.with_values(own) if own else k for k, own in pairs))

    def with_links(self, links: tuple[Any, ...]) -> "GradientTransformation":
        """The same pipeline of other links."""
        raise NotImplementedError

    # ------------------------------------------------------------------ the protocol

    def init(self, params: Tree) -> Any:
        """Make the state for parameters of this structure.

        Args:
            params: a tensor, or any nest of dict, list and tuple of tensors; None leaves pass.
                Floating dtype, any shape, any memory layout. Of a module, detached:
                ``{name: p.detach() for name, p in net.named_parameters()}``.

        Returns:
            Tensors in plain dicts and lists; ``{}`` for a link that needs none.

        Raises:
            TypeError: a leaf is no floating strided tensor.
            ValueError: `param_ndim` or a value does not fit a leaf.
        """
        leaves, spec = flatten_given(params)
        check_made(leaves, spec, "params")
        run = Run(spec, leaves, warned=set())
        for run.name, link in zip(self.names, self.links, strict=True):
            link.check_fit(link.values, leaves, run)
            link.check_devices(link.values, leaves, run)
        return self.pack([link.start(leaves, run, link.values) for link in self.links])

    def update(
        self,
        updates: Tree,
        state: Any,
        params: Tree = None,
        *,
        inplace: bool = False,
        hyperparams: Mapping[str, Any] | None = None,
        **extra: Any,
    ) -> tuple[Tree, Any]:
        """Transform updates.

        Args:
            updates: gradients, a tree like the params that `init` saw.
            state: from `init` or the last call.
            params: the parameters, where a link needs them (`ValueError` says so).
            inplace: write the result into the tensors of `updates`.
            hyperparams: values for this call: key -> number, tensor, or tree like the params.
            **extra: named inputs that a link asks for: `value`, the loss; `grad`, the raw gradients
                where `updates` are others; `grad_fn`, a function of params to gradients.

        Returns:
            The new updates and the new state. Parameter links contribute
            ``project(params + updates) - params``.

        Raises:
            TypeError: a leaf or a value of the wrong type.
            ValueError: a tree, state, key or value that does not fit.
        """
        leaves, run, states, values = self._enter(
            updates, state, params, inplace, hyperparams, extra
        )
        projects = bool(self.links) and self.links[-1].phase != "gradient"
        if projects:
            new, states = self.advance(leaves, states, run, values)
            pairs = zip(new, run.params or (), leaves, strict=True)
            out: Leaves = [g if n is None or g is None else n - p for n, p, g in pairs]  # type: ignore[operator]
        else:
            out, states = run_links(self.links, self.names, leaves, states, run, values, "gradient")
        if inplace and (projects or torch.compiler.is_compiling()):
            out = written(leaves, out, [g is not None for g in leaves])
        return unflatten(out, run.spec), self.pack(states)

    def step(
        self,
        params: Tree,
        grads: Tree,
        state: Any,
        *,
        hyperparams: Mapping[str, Any] | None = None,
        **extra: Any,
    ) -> tuple[Tree, Any]:
        """Transform gradients, apply them, and project the new parameters.

        The gradient links' result is added to the parameters (scale it by ``-lr`` to descend)
        unless the pipeline has a link that steps by itself, such as `from_torch` or
        `frank_wolfe_step`. A constraint holds exactly afterwards.

        Args:
            params: a tree of tensors; where they require a gradient, the autograd graph grows.
            grads: a tree like `params`; a None leaf leaves its parameter to the projections.
            state: from `init` or the last call.
            hyperparams, **extra: as in `update`.

        Returns:
            The new parameters and the new state; no input is written.

        Raises:
            TypeError: a leaf or a value of the wrong type.
            ValueError: a tree, state, key or value that does not fit.
        """
        leaves, run, states, values = self._enter(grads, state, params, False, hyperparams, extra)
        if run.params is None:
            raise ValueError("`params` must be a tree like `grads`  Got: None")
        new, states = self.advance(leaves, states, run, values)
        return unflatten(new, run.spec), self.pack(states)

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
        return MAKERS["compiled"](self, options)  # type: ignore[no-any-return]

    def optimizer(self, params: Any, **values: Any) -> Any:
        """The pipeline as a `torch.optim.Optimizer`, which does what `step` does, to the bit.

        Its updates are added to the parameters, unless the pipeline has a link that steps by
        itself. It may be passed where a class is called, as ``cls(params, **values)``.

        Args:
            params: parameters, or dicts that define param groups.
            **values: `defaults`, `param_ndim` and `compile` as in
                `rai_chain.optim.ChainedParamTransformingOptimizer`; all else are hyperparameters,
                by key.

        Returns:
            A `rai_chain.optim.ChainedParamTransformingOptimizer`.

        Raises:
            TypeError, ValueError: as that class.

        Example:
            >>> import torch
            >>> from rai_chain import chain, clamp, scale
            >>> x = torch.zeros(2, requires_grad=True)
            >>> optim = chain(clamp(clamp_max=1.0), scale(-0.5)).optimizer([x], clamp_max=2.0)
            >>> x.grad = torch.tensor([1.0, 3.0])
            >>> optim.step()
            >>> x
            tensor([-0.5000, -1.0000], requires_grad=True)
        """
        return MAKERS["optimizer"](self, params, **values)

    # ------------------------------------------------------------------ how it runs

    def advance(
        self, leaves: Leaves, states: list[State], run: Run, values: Values
    ) -> tuple[Leaves, list[State]]:
        """The new parameters: transform, step, project."""
        params = run.params or []
        run.writable = [False] * len(leaves)
        names, links, phases = self.names, self.links, {link.phase for link in self.links}
        leaves, states = run_links(links, names, leaves, states, run, values, "gradient")
        if "step" in phases:
            new, states = run_links(links, names, leaves, states, run, values, "step")
        else:
            new = [add(p, g) for p, g in zip(params, leaves, strict=True)]
            run.writable = [g is not None and run.plain for g in leaves]
        if "parameter" not in phases:
            return new, states
        run.writable = [w and n is not p for w, n, p in zip(run.writable, new, params, strict=True)]
        return run_links(links, names, new, states, run, values, "parameter")

    def _enter(
        self, updates: Tree, state: Any, params: Tree, inplace: bool, hyperparams: Any, extra: Any
    ) -> tuple[Leaves, Run, list[State], Values]:
        """Everything that can be refused is refused here, before anything is computed."""
        if not isinstance(inplace, bool):
            Flag().check("inplace", inplace)
        leaves, spec = flatten_given(updates)
        check_leaves(leaves, spec, "updates")
        run, states = Run(spec, None), self.unpack(state)
        shaped = one_of_each(self.links, leaves, spec, inplace)
        if params is not None:
            run.params = leaves_like(params, spec, "params", "`updates`")
            check_leaves(run.params, spec, "params")
            check_shapes(shaped, run.params, spec)
        elif asks := [link for link in self.links if link.needs_params]:
            raise ValueError(f"`params` is needed by {asks[0]!r}  Got: None")
        still = not (hyperparams or extra) and self._is_still(states)
        if not still:
            run.extra = named_inputs(self.links, extra, leaves, run, inplace)
            for link, own in zip(self.links, states, strict=True):
                link.check_state(own, shaped, spec)
        values = (
            [link.values for link in self.links] if still else self.resolve(hyperparams, states)
        )
        for link, own in zip(self.links, values, strict=True):
            link.check_fit(own, shaped, run)
        at_once = inplace and not torch.compiler.is_compiling()
        if inplace:
            leaves = to_write(self.links, leaves, states, run, values)
        run.plain = runs_plain([*leaves, *(run.params or ())], () if still else values)
        run.writable = [at_once and leaf is not None for leaf in leaves]
        return leaves, run, states, values

    def _is_still(self, states: list[State]) -> bool:
        """Whether all links are of elements and numbers and keep nothing, as most calls are."""
        if self._still is None:
            self._still = all(
                link.scope == "element"
                and not (link.keeps(link.values) or link.needs)
                and all(isinstance(v, int | float | None) for v in link.values.values())
                for link in self.links
            )
        return self._still and states == [{}] * len(states)

    def pack(self, states: list[State]) -> Any:
        """The states of the links as one."""
        return states

    def unpack(self, state: Any) -> list[State]:
        """The state of each link; `ValueError` where it is another pipeline's."""
        if not isinstance(state, (tuple, list)) or len(state) != len(self.links):
            raise ValueError(
                f"`state` must be the state of {self!r}: a list of {len(self.links)}  "
                f"Got: {told(state)}"
            )
        return [one if one != () else {} for one in state]


# What later modules make: "pair", of two functions; "compiled" and "optimizer", of a pipeline.
MAKERS: dict[str, Callable[..., Any]] = {}
