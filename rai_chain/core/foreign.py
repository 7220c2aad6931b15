"""Transformations that are not ours, TorchOpt's say, as links."""

from typing import Any

import torchopt.base

from ..data.checks import write_back
from ..data.tree import Leaves, Spec, flatten, leaves_like, unflatten
from ..engine.run import Run, State
from .pipeline import Link


class Foreign(Link):
    """A transformation that is not ours, TorchOpt's say, as a link."""

    def __new__(cls, inner: torchopt.base.GradientTransformation) -> "Foreign":
        self = super().__new__(cls)
        self.inner, self.values = inner, {}
        self.name = getattr(inner.update, "__qualname__", type(inner).__name__).split(".")[0]
        self._structures = {}
        return self

    inner: torchopt.base.GradientTransformation
    _structures: dict[str, Spec]

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Foreign, (self.inner,)

    def start(self, leaves: Leaves, run: Run, values: dict[str, Any]) -> State:
        return tuple(flatten(self.inner.init(unflatten(leaves, run.spec)))[0])

    def apply(
        self, leaves: Leaves, state: State, run: Run, values: dict[str, Any]
    ) -> tuple[Leaves, State]:
        tree = unflatten(leaves, run.spec)
        params = None if run.params is None else unflatten(run.params, run.spec)
        key = str(run.spec)
        if key not in self._structures:  # its state holds NamedTuples, ours only their leaves
            self._structures[key] = flatten(self.inner.init(tree))[1]
        own = unflatten(list(state), self._structures[key])
        new, own = self.inner.update(tree, own, params=params, inplace=False)
        out = leaves_like(new, run.spec, "updates", f"what {self!r} was given")
        for i, (leaf, result) in enumerate(zip(leaves, out, strict=True)):
            if run.writable[i] and leaf is not None and result is not None:
                out[i] = write_back(leaf, result)
        return out, tuple(flatten(own)[0])
