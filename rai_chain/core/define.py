"""The scope decorators: one pure function becomes a link factory."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor

from ..data.hyper import plain, rules_of, shown_type
from ..data.messages import arguments, told
from ..data.random import check_seed
from ..data.rows import UNSET, ParamNdim
from ..engine.function import GIVEN, Definition
from ..engine.run import PHASES, Phase, Scope
from .link import Factory, FunctionLink

State = Callable[..., dict[str, Tensor]]
Check = Callable[[dict[str, Any]], None]
Selects = Callable[[dict[str, Any], int], int]


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
        state: State | None = None,
        check: Check | None = None,
        draws: str | None = None,
        updates: bool = False,
        selects: Selects | None = None,
        reduces: bool = False,
    ) -> Callable[[Callable[..., Any]], Factory]: ...

    def __call__(
        self,
        function: Callable[..., Any] | None = None,
        *,
        phase: Phase = "gradient",
        state: State | None = None,
        check: Check | None = None,
        draws: str | None = None,
        updates: bool = False,
        selects: Selects | None = None,
        reduces: bool = False,
    ) -> Any:
        options = (self.scope, phase, state, check, draws, updates, selects, reduces)
        if function is None:
            return lambda f: _factory(f, *options)
        return _factory(function, *options)


def _factory(
    function: Callable[..., Any],
    scope: Scope,
    phase: Phase,
    start: State | None,
    check: Check | None,
    draws: str | None,
    updates: bool,
    selects: Selects | None,
    reduces: bool,
) -> Factory:
    if not callable(function) or not hasattr(function, "__name__"):
        raise TypeError(f"`function` must be a function of a tensor  Got: {told(function)}")
    name = function.__name__
    first, *parameters = inspect.signature(function).parameters.values() or (None,)
    if first is None or first.kind is first.KEYWORD_ONLY:
        raise TypeError(f"`{name}` must take a tensor as its first argument  Got: no argument")
    if check is not None and not callable(check):
        raise TypeError(f"`check` must be a function of the values  Got: {check!r}")
    given = frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY) & GIVEN
    own = tuple(p for p in parameters if p.name not in given)
    if phase not in PHASES:
        raise ValueError(f"`phase` must be one of {', '.join(PHASES)}  Got: {phase!r}")
    for p in own:
        if p.name in GIVEN - {"value", "grad"}:
            raise TypeError(
                f"`{p.name}` must be a keyword-only parameter of `{name}`, behind a `*`  "
                f"Got: {inspect.signature(function)}"
            )
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            raise TypeError(f"`{name}` must name each of its hyperparameters  Got: {p}")
    if (start is None) != ("state" not in given):
        raise TypeError(
            f"`state` must be both an option of the decorator and a keyword-only parameter of "
            f"`{name}`  Got: {inspect.signature(function)}"
        )
    rules = rules_of(function, own)
    if draws is not None and (draws not in rules or "key" not in given):
        raise ValueError(
            f"`draws` must name a hyperparameter of `{name}`, which asks for `key`  Got: {draws!r}"
        )
    if reduces and (scope != "tree" or phase != "gradient"):
        raise ValueError(f"`reduces` must be False but for a gradient link of trees  Got: `{name}`")
    own_options = start, check, draws, updates, *_keys(start, scope), selects, reduces
    definition = Definition(function, scope, phase, rules, given, *own_options)
    structure = {"param_ndim": UNSET} if scope == "row" else {}
    counters = {"seed": 0} if "key" in given else {}
    kinds = {"param_ndim": ParamNdim, "seed": int | Tensor}
    signature = inspect.Signature(
        [
            *(p.replace(annotation=shown_type(rules[p.name])) for p in own),
            *(
                inspect.Parameter(
                    n, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kinds[n]
                )
                for n, default in (structure | counters).items()
            ),
        ]
    )

    @functools.wraps(function)
    def factory(*args: Any, **kwargs: Any) -> FunctionLink:
        given = arguments(name, signature, args, kwargs)
        values = {key: plain(value) for key, value in given.items()}
        param_ndim, seed = values.pop("param_ndim", UNSET), values.pop("seed", 0)
        check_seed(seed)
        return FunctionLink(made, values, param_ndim, seed)

    made: Any = factory
    made.definition, made.function, made.__signature__ = definition, function, signature
    del made.__wrapped__
    result: Factory = made
    return result


def _keys(start: State | None, scope: Scope) -> tuple[frozenset[str], frozenset[str]]:
    """The keys of the state that `start` makes, and those with a tensor of an element link's shape.

    They are learnt by calling it with zeros.
    """
    if start is None:
        return frozenset(), frozenset()
    tiny = torch.zeros(1, 1, dtype=torch.float32, device="cpu")
    made: Any = start
    if callable(start):
        try:
            made = start([tiny] if scope == "tree" else tiny)
        except TypeError as error:
            raise TypeError(f"`state` must be a function of a tensor  Got: {error}") from error
    tensors = isinstance(made, dict) and all(isinstance(v, Tensor) for v in made.values())
    if not callable(start) or not tensors:
        raise TypeError(f"`state` must be a function that makes a dict of tensors  Got: {made!r}")
    if reserved := sorted({"step", "seed"} & set(made)):
        raise ValueError(f"`state` must not have the key {reserved[0]!r}, which links keep")
    alike = {k for k, v in made.items() if scope == "element" and v.shape == tiny.shape}
    return frozenset(made), frozenset(alike)


elementwise = Decorator(
    "element",
    """Make a link of a function of one tensor whose elements do not see each other.

    Args:
        function: ``f(grad, hyper=default, ..., *, given...) -> tensor`` of the same shape. The
            given ones, asked for by name: `out` (the destination, where there is one; may be
            `grad`), `param` (its parameter), `step` (0-dim int64), `key` (for random numbers,
            see `rai_chain.random`), `value` (the loss), `grad` (the raw gradient) and `state`
            (then the result is ``(tensor, new_state)``).
        phase: "gradient", "step" (the result is the new parameter) or "parameter" (the function
            maps parameters, after the step).
        state: ``tensor -> dict of tensors``, the state of one tensor before the first update. It
            is called once with zeros of shape (1, 1), to learn the keys.
        check: raises on values that do not fit each other; gets a dict of all of them, and where
            some are trees, of those of each leaf in turn.
        draws: the hyperparameter that switches drawing off when it is the number 0.
        updates: whether the result is an update to add, as `scale_by_learning_rate` makes it;
            an optimizer then adds it rather than descend.
        selects: of a link that sees rows, see `rowwise`; nothing is asked of another.
        reduces: of a link that sees the tree, see `treewise`; False for another.

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
            A tensor hyperparameter shaped like the leaf arrives as rows too, one with a value for
            each row as (N, 1). Of many rows it sees some at a time, with their own part of such a
            hyperparameter. Under ``param_ndim="tree"`` it sees all leaves as one row.
        phase, state, check, draws, updates, reduces: as in `elementwise`.
        selects: ``(values, D) -> how many of the D elements of a row remain at most``. A leaf of
            which nothing would remain is warned about when the state is made.

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

leafwise = Decorator(
    "leaf",
    """Make a link of a function of one whole tensor in its own shape, such as a matrix function.

    Args:
        function: like that of `elementwise`, but its elements may see each other.
        phase, state, check, draws, updates, selects, reduces: as in `elementwise`.

    Returns:
        A factory: hyperparameters -> `GradientTransformation`.

    Example:
        >>> import torch, rai_chain
        >>> @rai_chain.leafwise
        ... def whiten(grad):
        ...     u, _, v = torch.linalg.svd(grad, full_matrices=False)
        ...     return u @ v
        >>> whiten().update(torch.tensor([[3.0, 0.0], [0.0, 0.5]]), {})[0].abs()
        tensor([[1., 0.],
                [0., 1.]])

    Source: the scope "leaf" of this library's design.
    """,
)

treewise = Decorator(
    "tree",
    """Make a link of a function of all tensors of the tree at once.

    Args:
        function: like that of `elementwise`, but of the list of all leaves that are not None,
            and returns such a list. `param` is then a list too, and `state` any dict of tensors.
        phase, state, check, draws, updates, selects: as in `elementwise`; `state` gets the list.
        reduces: whether it takes leaves (N, ...), one entry for each example, and makes of each
            one without that dimension. It is then the first link of a pure pipeline.

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
