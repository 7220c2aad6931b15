"""A pipeline compiled once for each tree, whatever the values of its hyperparameters."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..data.hyper import as_tensor
from ..data.tree import Tree, flatten
from ..engine.graph import graph_of
from ..engine.run import State
from ..engine.sharded import has_shards
from .pipeline import MAKERS, GradientTransformation, Values

_GRAPHS = 64  # of one pipeline, for the trees that were seen last


class Compiled(GradientTransformation):
    """A pipeline whose `update` and `step` are compiled, see `compile`."""

    inner: GradientTransformation
    options: dict[str, Any]
    _constants: dict[str, Tensor]
    _graphs: dict[Any, Any]

    def __new__(cls, inner: GradientTransformation, options: dict[str, Any]) -> "Compiled":
        self: Compiled = super().__new__(cls)
        self.inner, self.options = inner, options
        self.links, self.names, self.shared = inner.links, inner.names, inner.shared
        self._constants = self._numbers([link.values for link in self.links])
        self._graphs = {}
        return self

    def __repr__(self) -> str:
        options = ", ".join(f"{k}={v!r}" for k, v in self.options.items())
        return f"{self.inner!r}.compile({options})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Compiled, (self.inner, self.options)

    def with_links(self, links: tuple[Any, ...]) -> GradientTransformation:
        return Compiled(self.inner.with_links(links), self.options)

    def pack(self, states: list[State]) -> Any:
        return self.inner.pack(states)

    def unpack(self, state: Any) -> list[State]:
        return self.inner.unpack(state)

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
        graph, values = self._graph("update", updates), self._tensors(hyperparams)
        try:
            out: tuple[Tree, Any] = graph(
                updates, state, params, inplace=inplace, hyperparams=values, **extra
            )
        except Exception:  # outside a graph it says what does not fit
            self.inner.update(updates, state, params, hyperparams=hyperparams, **extra)
            raise
        return out

    def step(
        self,
        params: Tree,
        grads: Tree,
        state: Any,
        *,
        hyperparams: Mapping[str, Any] | None = None,
        **extra: Any,
    ) -> tuple[Tree, Any]:
        graph, values = self._graph("step", grads), self._tensors(hyperparams)
        try:
            out: tuple[Tree, Any] = graph(params, grads, state, hyperparams=values, **extra)
        except Exception:
            self.inner.step(params, grads, state, hyperparams=hyperparams, **extra)
            raise
        return out

    def _graph(self, name: str, tree: Tree) -> Any:
        """The graph of a method for trees of this structure."""
        leaves, spec = flatten(tree)
        if has_shards(leaves):
            raise ValueError("`compile` must not be called for leaves that are DTensors")
        key = name, str(spec)
        if key not in self._graphs:
            while len(self._graphs) >= _GRAPHS:
                self._graphs.pop(next(iter(self._graphs)))
            self._graphs[key] = graph_of(getattr(self.inner, name), **self.options)
        return self._graphs[key]

    def _tensors(self, hyperparams: Mapping[str, Any] | None) -> dict[str, Any]:
        """All numbers of the pipeline as tensors, so that the graph holds for any of them."""
        found = self.find(hyperparams)
        for link, own in zip(self.links, found, strict=True):
            if own:
                link.check_values({**link.values, **own})
        given = {
            key: own[name]
            for own, keys in zip(found, self.keys(), strict=True)
            for name, key in keys.items()
            if name in own
        }
        return {**self._constants, **given, **self._numbers(found)}

    def _numbers(self, values: Values) -> dict[str, Tensor]:
        return {
            keys[name]: as_tensor(value)
            for link, keys, own in zip(self.links, self.keys(), values, strict=True)
            for name, value in own.items()
            if link.is_number(name, value)
        }


MAKERS["compiled"] = Compiled
