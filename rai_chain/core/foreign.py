"""Links made of functions of whole trees: TorchOpt's transformations, and a user's functions."""

from collections.abc import Callable
from typing import Any

import torchopt.base

from ..data.hyper import show
from ..data.memory import written
from ..data.messages import check_function
from ..data.tree import Leaves, Spec, Tree, flatten, leaves_like, unflatten
from ..engine.run import Run
from .link import Link
from .pipeline import MAKERS

_KEPT = 8  # structures of states, of the trees that were seen last


class TreeLink(Link):
    """A link whose function sees and returns whole trees."""

    takes_parts = False
    values: dict[str, Any] = {}  # noqa: RUF012

    def call(self, tree: Tree, state: Any, params: Tree, run: Run) -> tuple[Tree, Any]:
        """The new tree and the new state."""
        raise NotImplementedError

    def apply(
        self, leaves: Leaves, state: Any, run: Run, values: dict[str, Any]
    ) -> tuple[Leaves, Any]:
        params = None if run.params is None else unflatten(run.params, run.spec)
        tree, state = self.call(unflatten(list(leaves), run.spec), state, params, run)
        out = leaves_like(tree, run.spec, "updates", f"what {self!r} was given")
        out = written(leaves, out, run.writable)
        for i, (leaf, result) in enumerate(zip(leaves, out, strict=True)):
            run.writable[i] &= leaf is not None and result is leaf
        return out, state


class Foreign(TreeLink):
    """A transformation of TorchOpt."""

    inner: torchopt.base.GradientTransformation
    _structures: dict[str, Spec]

    def __new__(cls, inner: torchopt.base.GradientTransformation) -> "Foreign":
        self: Foreign = super().__new__(cls)
        self.inner, self._structures = inner, {}
        self.name = getattr(inner.update, "__qualname__", type(inner).__name__).split(".")[0]
        return self

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Foreign, (self.inner,)

    def start(self, leaves: Leaves, run: Run, values: dict[str, Any]) -> Any:
        return flatten(self.inner.init(unflatten(leaves, run.spec)))[0]

    def call(self, tree: Tree, state: Any, params: Tree, run: Run) -> tuple[Tree, Any]:
        key = str(run.spec)
        if key not in self._structures:  # its state holds NamedTuples, ours only their leaves
            while len(self._structures) >= _KEPT:
                self._structures.pop(next(iter(self._structures)))
            self._structures[key] = flatten(self.inner.init(tree))[1]
        own = unflatten(list(state), self._structures[key])
        new, own = self.inner.update(tree, own, params=params, inplace=False)
        return new, flatten(own)[0]


class Pair(TreeLink):
    """Two functions, as optax's transformations are; what they keep is under ``state``."""

    def __new__(cls, init: Any, update: Any) -> "Pair":
        for name, function in (("init", init), ("update", update)):
            if not callable(function):
                raise TypeError(f"`{name}` must be a function  Got: {function!r}")
        self: Pair = super().__new__(cls)
        self.functions = init, update
        self.name = getattr(update, "__name__", "pair").strip("<>_")
        return self

    functions: tuple[Callable[[Tree], Any], Callable[[Tree, Any, Tree], tuple[Tree, Any]]]

    def __repr__(self) -> str:
        return f"GradientTransformation({', '.join(map(show, self.functions))})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Pair, self.functions

    def start(self, leaves: Leaves, run: Run, values: dict[str, Any]) -> Any:
        return {"state": self.functions[0](unflatten(list(leaves), run.spec))}

    def call(self, tree: Tree, state: Any, params: Tree, run: Run) -> tuple[Tree, Any]:
        new, own = self.functions[1](tree, state["state"], params)
        return new, {"state": own}


class Stateless(TreeLink):
    """One plain function of updates and parameters."""

    def __new__(cls, function: Callable[[Tree, Tree], Tree]) -> "Stateless":
        check_function("function", function, "updates", "params")
        self: Stateless = super().__new__(cls)
        self.function = function
        self.name = getattr(function, "__name__", "stateless").strip("<>_")
        return self

    function: Callable[[Tree, Tree], Tree]

    def __repr__(self) -> str:
        return f"stateless({show(self.function)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Stateless, (self.function,)

    def keeps(self, values: dict[str, Any]) -> bool:
        return False

    def call(self, tree: Tree, state: Any, params: Tree, run: Run) -> tuple[Tree, Any]:
        return self.function(tree, params), state


def stateless(function: Callable[[Tree, Tree], Tree]) -> Link:
    """Make a link of a plain function of whole trees.

    Args:
        function: ``(updates, params) -> updates``, trees of tensors; `params` is None where the
            caller gives none.

    Returns:
        A link without a state.

    Raises:
        TypeError: `function` is none.

    Example:
        >>> import torch
        >>> tx = stateless(lambda updates, params: {k: -g for k, g in updates.items()})
        >>> tx.update({"w": torch.ones(2)}, {})[0]
        {'w': tensor([-1., -1.])}

    Source: the function of the same name in optax.
    """
    return Stateless(function)


MAKERS["pair"] = Pair
