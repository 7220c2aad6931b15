"""Minimising and maximising functions with a pipeline: the loop around `step`."""

import importlib.util
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .core.chain import chain
from .core.pipeline import GradientTransformation
from .data.checks import check_leaves, check_shapes
from .data.hyper import Flag, Range
from .data.leaves import beside, device_of
from .data.messages import check_function, told
from .data.plain import is_differentiated, is_plain
from .data.random import check_seed, stream
from .data.tree import Tree, flatten, leaves_like, map_leaves, unflatten

__all__ = ["Solution", "maximize", "minimize"]

Stop = Callable[[Tree, Tensor], Tensor]
Function = Callable[[Tree], Tensor]


class Solution(NamedTuple):
    """What `minimize` and `maximize` found.

    Args:
        x: a tree like `x0`.
        values: the function there, one number for each example.
        history: the function at every point that was visited, (visits, ...): `steps` + 1 for each
            run, less where all examples stopped. ``plt.plot(history)`` draws a line for each
            example, ``history.cummin(0).values`` is the best so far.

    Example:
        >>> import torch
        >>> from rai_chain import sgd
        >>> x, values, history = minimize(lambda x: x**2, torch.tensor(1.0), sgd(0.25), steps=1)
        >>> x, values, history
        (tensor(0.5000), tensor(0.2500), tensor([1.0000, 0.2500]))
    """

    x: Tree
    values: Tensor
    history: Tensor


def minimize(
    fun: Function,
    x0: Tree,
    tx: GradientTransformation,
    steps: int,
    *,
    best: bool = True,
    restarts: int = 0,
    init: Callable[[Tree, Tensor], Tree] | None = None,
    stop: Stop | None = None,
    callback: Callable[[int, Tree, Tensor], Any] | None = None,
    progress: bool = False,
    seed: int | Tensor = 0,
) -> Solution:
    """Minimise a function with a pipeline, one example beside the other.

    An example is what has a value of its own. Where `fun` returns one number, all of `x` is one
    example. Where it returns (N,), the leaves of `x` are (N, ...), and row i belongs to value i,
    which must not depend on the other rows.

    Nothing is written, and what is returned is no part of autograd's graph; memory does not grow
    with the steps. `torch.func.grad` differentiates through it, `vmap` and
    ``torch.compile(fullgraph=True)`` take it as it is (the compiler unrolls the steps).

    Args:
        fun: ``x -> values``, a floating tensor, 0-dim or with leading dimensions of the leaves.
        x0: the start: a tensor, or any nest of dict, list and tuple of tensors, floating dtype.
        tx: a pipeline that descends, such as ``sgd(0.1)`` or ``chain(sign(), scale(-0.1),
            linf_ball(0.5))``. It gets the values as `value`, and the gradient function as
            `grad_fn`.
        steps: how many in each run, >= 0.
        best: whether the best point of all counts for each example, or the last one.
        restarts: runs besides the first, >= 0, each from a start of its own. For each example the
            best of them counts.
        init: ``(x0, key) -> x``, the start of each run, the first one too. The key is a 0-dim
            int64 tensor for `rai_chain.random`. None starts at `x0`.
        stop: ``(x, values) -> bool tensor`` like the values. An example for which it once is True
            rests there, and that point counts. Eagerly, all ends when all examples rest.
        callback: ``(visit, x, values)``, called at each point; `visit` is its row of `history`.
        progress: whether to show a progress bar, which needs tqdm.
        seed: an int or a 0-dim int64 tensor, that keys follow from.

    Returns:
        A `Solution`: x, values, history.

    Raises:
        TypeError: an argument of the wrong type, or `fun` returns no floating tensor.
        ValueError: a number outside its interval, restarts without `init`, or values that are
            not one for each example.
        ModuleNotFoundError: `progress` without tqdm.

    Example:
        >>> import torch
        >>> from rai_chain import sgd
        >>> found = minimize(lambda x: (x - 3.0) ** 2, torch.tensor([0.0, 1.0]), sgd(0.25), steps=2)
        >>> found.x
        tensor([2.2500, 2.5000])
        >>> found.history
        tensor([[9.0000, 4.0000],
                [2.2500, 1.0000],
                [0.5625, 0.2500]])

    Source: this library.
    """
    return _solve(1.0, fun, x0, tx, steps, best, restarts, init, stop, callback, progress, seed)


def maximize(
    fun: Function,
    x0: Tree,
    tx: GradientTransformation,
    steps: int,
    *,
    best: bool = True,
    restarts: int = 0,
    init: Callable[[Tree, Tensor], Tree] | None = None,
    stop: Stop | None = None,
    callback: Callable[[int, Tree, Tensor], Any] | None = None,
    progress: bool = False,
    seed: int | Tensor = 0,
) -> Solution:
    """Maximise a function with a pipeline: `minimize` of ``-fun``, with the values of `fun`.

    Args:
        fun, x0, tx, steps, best, restarts, init, stop, callback, progress, seed: as in
            `minimize`. `tx` still descends, on ``-fun``.

    Returns:
        A `Solution`: x, values, history.

    Raises:
        TypeError, ValueError, ModuleNotFoundError: as `minimize`.

    Example:
        >>> import torch
        >>> from rai_chain import box, chain, sgd
        >>> tx = chain(sgd(1.0), box(0.0, 2.0))
        >>> maximize(lambda x: x.sum(), torch.zeros(3), tx, steps=5).x
        tensor([2., 2., 2.])

    Source: this library.
    """
    return _solve(-1.0, fun, x0, tx, steps, best, restarts, init, stop, callback, progress, seed)


# ------------------------------------------------------------------ the loop


class Kept:
    """The best point so far of each example.

    Attributes:
        sign: 1.0 where less is better, -1.0 where more is.
        x, values: the point, a tree, and its values; None before the first.
    """

    def __init__(self, sign: float = 1.0) -> None:
        self.sign, self.x, self.values = sign, None, None

    x: Any
    values: Tensor | None

    def beaten(self, values: Tensor) -> Tensor:
        """For which examples these values are better; a number is better than NaN."""
        if self.values is None:
            return torch.ones_like(values, dtype=torch.bool)
        better = values < self.values if self.sign > 0 else values > self.values
        return better | (self.values.isnan() & ~values.isnan())

    def take(self, x: Tree, values: Tensor, where: Tensor) -> None:
        """Keep another point for some examples; the first is kept for all."""
        if self.values is None:
            self.x, self.values = map_leaves(torch.clone, x), values.clone()
        else:
            self.x = choose_examples(where, x, self.x)
            self.values = torch.where(where, values, self.values)


def choose_examples(condition: Tensor, new: Tree, old: Tree) -> Tree:
    """`new` for the examples of a condition, else `old`; the condition has leading dimensions."""
    leaves, spec = flatten(new)
    pairs = zip(leaves, flatten(old)[0], strict=True)
    return unflatten(
        [a if a is None else torch.where(beside(condition, a), a, b) for a, b in pairs], spec
    )


class _Search:
    """What is known of a function on the way: the points to keep, and who rests."""

    def __init__(
        self, fun: Function, sign: float, best: bool, stop: Any, callback: Any, visits: int
    ) -> None:
        self.fun, self.sign, self.best, self.stop, self.callback = fun, sign, best, stop, callback
        self.kept, self.visits, self.visited = Kept(sign), visits, 0
        self.resting: Tensor | None = None
        self.over = False  # all rest
        self.run = 0

    def visit(self, x: Tree, last: bool = False) -> tuple[Tensor, Tree]:
        """The values at a point and the gradients of what is minimised; none at the last point."""
        values, grads = _evaluate(self.fun, x, None if last else self.sign)
        if not self.visited:  # small tensors kept one by one would leave holes in memory
            self.history = values.new_empty((self.visits, *values.shape))
        if is_plain(()):
            self.history[self.visited] = values
        else:  # lanes of vmap may part later than at the start
            rows = torch.arange(self.visits, device=values.device)
            here = rows.reshape(-1, *[1] * values.ndim) == self.visited
            self.history = torch.where(here, values, self.history)
        if self.callback is not None:
            self.callback(self.visited, x, values)
        self.visited += 1
        better = self.kept.beaten(values)
        if not self.best:
            better = torch.full_like(better, last) & (better | (self.run == 0))
        if self.stop is not None:
            said = _verdict(self.stop(x, values), values)
            resting = torch.zeros_like(said) if self.resting is None else self.resting
            better, self.resting = ~resting & (said | better), resting | said
            self.over = is_plain(()) and bool(self.resting.all())
        self.kept.take(x, values, better)
        return values, grads

    def move(self, x: Tree, moved: Tree) -> Tree:
        """The next point: an example that rests stays where it is."""
        return moved if self.resting is None else choose_examples(self.resting, x, moved)


def _solve(
    sign: float,
    fun: Function,
    x0: Tree,
    tx: Any,
    steps: int,
    best: bool,
    restarts: int,
    init: Any,
    stop: Stop | None,
    callback: Any,
    progress: bool,
    seed: int | Tensor,
) -> Solution:
    tx = tx if isinstance(tx, GradientTransformation) else chain(tx)
    check_function("fun", fun, "x")
    optional = (
        ("init", init, ("x0", "key")),
        ("stop", stop, ("x", "values")),
        ("callback", callback, ("visit", "x", "values")),
    )
    for name, function, inputs in optional:
        if function is not None:
            check_function(name, function, *inputs)
    _check(init, {"steps": steps, "restarts": restarts}, {"best": best, "progress": progress})
    keys = _keys(x0, seed)
    tx.init(x0)  # refuses leaves, and values that do not fit them
    quiet: AbstractContextManager[Any] = nullcontext() if is_differentiated() else torch.no_grad()
    gradient = lambda x: _evaluate(fun, x, sign)[1]  # noqa: E731
    search = _Search(fun, sign, best, stop, callback, (restarts + 1) * (steps + 1))
    with quiet, _bar(progress, (restarts + 1) * steps) as bar:
        for search.run in range(restarts + 1):
            x = x0 if init is None else _like(init(x0, keys(search.run)), x0)
            state = tx.init(x)
            for _ in range(steps):
                values, grads = search.visit(x)
                if search.over:
                    break
                moved, state = tx.step(x, grads, state, value=sign * values, grad_fn=gradient)
                x = search.move(x, moved)
                bar.update(1)
            else:
                search.visit(x, last=True)
            if search.over:
                break
    history = search.history[: search.visited]
    return Solution(search.kept.x, search.kept.values, history)  # type: ignore[arg-type]


def _evaluate(fun: Function, x: Tree, sign: float | None) -> tuple[Tensor, Tree]:
    """The values, and the gradients of ``sign`` times their sum; no gradients where it is None."""
    leaves, spec = flatten(x)
    places = [i for i, leaf in enumerate(leaves) if leaf is not None]

    def total(*some: Tensor) -> tuple[Tensor, Tensor]:
        full: list[Any] = [None] * len(leaves)
        for i, leaf in zip(places, some, strict=True):
            full[i] = leaf
        values = _values(fun(unflatten(full, spec)), some)
        return values.sum() * (sign or 1.0), values

    present = [leaves[i] for i in places]
    if sign is None:
        return total(*present)[1], None
    if is_plain(()):
        with torch.enable_grad():
            present = [leaf.detach().requires_grad_() for leaf in present]
            cost, values = total(*present)
            if not cost.requires_grad:
                raise ValueError("`fun` must return values that depend on `x`  Got: a constant")
            found: Any = torch.autograd.grad(cost, present, materialize_grads=True)
        values = values.detach()
    else:
        derivative = torch.func.grad(total, tuple(range(len(present))), has_aux=True)
        found, values = derivative(*present)
    grads: list[Any] = [None] * len(leaves)
    for i, gradient in zip(places, found, strict=True):
        grads[i] = gradient
    return values, unflatten(grads, spec)


# ------------------------------------------------------------------ what is refused


def _check(init: Any, counts: dict[str, Any], flags: dict[str, Any]) -> None:
    for name, count in counts.items():
        Range(0, static=True, whole=True).check(name, count)
        if not isinstance(count, int):
            raise TypeError(f"`{name}` must be an int  Got: {told(count)}")
    for name, flag in flags.items():
        Flag().check(name, flag)
    if counts["restarts"] and init is None:
        raise ValueError(
            "`init` must be given with restarts, which else repeat the first run  Got: None"
        )
    if flags["progress"] and importlib.util.find_spec("tqdm") is None:
        raise ModuleNotFoundError("`progress` needs tqdm: pip install tqdm")


def _keys(x0: Tree, seed: int | Tensor) -> Callable[[int], Tensor]:
    """The key of each run."""
    leaves, spec = flatten(x0)
    check_leaves(leaves, spec, "x0")
    if all(leaf is None for leaf in leaves):
        raise ValueError(f"`x0` must have a tensor  Got: {told(x0)}")
    check_seed(seed)
    device = device_of(leaves)
    own = torch.as_tensor(seed, dtype=torch.int64, device=device)
    return lambda run: stream(own, torch.tensor(run, device=device), "solve")


def _like(x: Tree, x0: Tree) -> Tree:
    """What `init` returned, which must be a tree like `x0`."""
    leaves, spec = flatten(x0)
    own = leaves_like(x, spec, "init(x0, key)", "`x0`")
    check_leaves(own, spec, "init(x0, key)")
    check_shapes(own, leaves, spec, "init(x0, key)")
    return unflatten(own, spec)


def _values(values: Any, leaves: Sequence[Tensor]) -> Tensor:
    if not isinstance(values, Tensor) or not values.is_floating_point():
        raise TypeError(f"`fun` must return a floating tensor  Got: {told(values)}")
    for leaf in leaves:
        if leaf.shape[: values.ndim] != values.shape:
            raise ValueError(
                "`fun` must return one number, or one for each example: leading dimensions of a "
                f"leaf of shape {tuple(leaf.shape)}  Got: shape {tuple(values.shape)}"
            )
    return values


def _verdict(said: Any, values: Tensor) -> Tensor:
    if not isinstance(said, Tensor) or said.dtype != torch.bool or said.shape != values.shape:
        raise TypeError(
            f"`stop` must return a bool tensor of the shape of the values, {tuple(values.shape)}  "
            f"Got: {told(said)}"
        )
    return said


def _bar(progress: bool, total: int) -> Any:
    """A progress bar, or what does nothing in its place."""
    if not progress:
        return _NoBar()
    from tqdm import tqdm  # type: ignore[import-untyped]

    return tqdm(total=total)


class _NoBar(nullcontext["_NoBar"]):
    def __enter__(self) -> "_NoBar":
        return self

    def update(self, count: int) -> None:
        """Nothing."""
