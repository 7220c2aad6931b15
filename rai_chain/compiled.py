"""A pipeline compiled once, whatever the values of its hyperparameters."""

from typing import Any

import torch
from torch import Tensor

from ._hyper import Range, find_keys
from .base import GradientTransformation, Link, State, Tree
from .link import FunctionLink


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
            if is_number(link, name, link.values[name])
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
                number = is_number(link, name, value)
                values[keys[name]] = torch.tensor(value, dtype=torch.float64) if number else value
        return values


def is_number(link: Link, name: str, value: Any) -> bool:
    """Whether a value may become a tensor: a number that chooses nothing but a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    if not isinstance(link, FunctionLink):
        return False
    rule = link.definition.rules[name]
    is_switch = link.definition.draws == name and value == 0
    return isinstance(rule, Range) and not rule.static and not is_switch
