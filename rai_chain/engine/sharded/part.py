"""This rank's part of a tensor that ranks share, with the shape of the full one."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ...kernels import norms, select, sets
from . import nearest, selection
from .layout import Axis, Layout, same_places, whole
from .rounds import Ask, Request, alike, answer, request

aten = torch.ops.aten
Rule = Callable[..., Any]
RULES: dict[Any, Rule] = {}
ALIKE = {  # of one tensor, whatever its elements are
    getattr(aten, name).default
    for name in (
        "alias", "clone", "copy_", "detach", "empty_like", "full_like", "lift_fresh", "ones_like",
        "zeros_like", "_to_copy",
    )
} | {aten.fill_.Scalar, aten.fill_.Tensor, aten.zero_.default}  # fmt: skip

MEANS = (aten.mean.default, aten.mean.dim)


class Part(Tensor):
    """This rank's part of a full tensor; elementwise functions run on what is here.

    What a reduction over other ranks will be is a Part too, with a request in the place of its
    elements.
    """

    spread: Layout
    _local_tensor: Tensor | None
    _request: Request | None

    @staticmethod
    def __new__(
        cls,
        local: Tensor | None,
        layout: Layout,
        asked: Request | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> "Part":
        if local is not None:
            dtype, device = local.dtype, local.device
        self: Part = torch.Tensor._make_wrapper_subclass(
            cls, layout.shape, dtype=dtype, device=device
        )
        self._local_tensor, self.spread, self._request = local, layout, asked
        return self

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Part of {self.spread.shape}: {self._local_tensor!r}"

    @property
    def local(self) -> Tensor:
        """What is here, (a.here for each axis)."""
        if self._local_tensor is None:
            assert self._request is not None
            self._local_tensor = answer(self._request)
        return self._local_tensor

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        parts = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Part)]
        if func in RULES:
            return RULES[func](*args, **kwargs)
        if torch.Tag.pointwise in func.tags or func in ALIKE:
            return _pointwise(func, args, kwargs, parts)
        args, kwargs = tree_map(_shared, (args, kwargs))
        if any(x.spread.is_split for x in tree_leaves((args, kwargs)) if isinstance(x, Part)):
            raise NotImplementedError(
                f"a link must not need a whole tensor that ranks share: {func} would gather it  "
                f"Got: {', '.join(str(part.spread.shape) for part in parts)}"
            )
        return func(*tree_map(local_of, args), **tree_map(local_of, kwargs))


def local_of(x: Any) -> Any:
    """What is here of a Part; anything else as it is."""
    return x.local if isinstance(x, Part) else x


def _shared(x: Any) -> Any:
    """A single element, which one rank has, for all of them; anything else as it is."""
    if not isinstance(x, Part) or x.numel() != 1 or not x.spread.is_split:
        return x
    return RULES[aten.amax.default](x, list(range(x.ndim)), True)


def part_of(local: Tensor, layout: Layout) -> Tensor:
    """The Part of what is here; a plain tensor, where that is all and no leaf's."""
    return Part(local, layout) if layout.is_split or layout.is_home else local


def on_parts(function: Callable[[list[Any]], list[Any]], leaves: Sequence[Any]) -> list[Any]:
    """An elementwise function of many tensors, of what is here of each."""
    new = function([local_of(leaf) for leaf in leaves])
    pairs = zip(leaves, new, strict=True)
    return [
        old if not isinstance(old, Part) or x is old.local else Part(x, old.spread)
        for old, x in pairs
    ]


def rows_of(leaf: Part, first: int) -> Tensor:
    """A leaf as rows, which its dimensions from `first` on make."""
    layout = leaf.spread.home.as_rows(first)
    return part_of(leaf.local.reshape([axis.here for axis in layout.axes]), layout)


def cut(value: Any, layout: Layout) -> Any:
    """What a rank needs of a tensor that broadcasts to a layout, beside what is here of that."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return local_of(value)
    own = value.spread.axes if isinstance(value, Part) else tuple(map(whole, value.shape))
    local: Tensor = local_of(value)
    for d in range(-min(value.ndim, len(layout.axes)), 0):
        axis, mine = layout.axes[d], own[d]
        if mine is axis or not (mine.splits or axis.splits):
            continue
        if mine.splits:
            raise NotImplementedError(
                f"tensors that are used together must be cut alike by the ranks  "
                f"Got: {mine.size} and {axis.size} elements, split by {mine.splits} and "
                f"{axis.splits} of the mesh"
            )
        if mine.size == axis.size:  # else it is 1, and broadcast
            local = local.index_select(d, axis.places.to(local.device))
    return local


# ------------------------------------------------------------------ what is local


def _pointwise(func: Any, args: Any, kwargs: Any, parts: list[Part]) -> Any:
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    layout = _broadcast(tensors, parts)
    result = func(*tree_map(lambda x: cut(x, layout), args), **_cut_all(kwargs, layout))
    if func._schema.is_mutable:
        return kwargs.get("out", args[0])
    return tree_map(lambda x: part_of(x, layout) if isinstance(x, Tensor) else x, result)


def _cut_all(kwargs: dict[str, Any], layout: Layout) -> dict[str, Any]:
    return {k: cut(v, layout) for k, v in kwargs.items()}


def _broadcast(tensors: Sequence[Tensor], parts: Sequence[Part]) -> Layout:
    """The layout of what tensors broadcast to."""
    first = parts[0]
    if all(x.ndim == 0 or getattr(x, "spread", None) is first.spread for x in tensors):
        return first.spread
    axes: list[Axis] = []
    for d in range(-max(x.ndim for x in tensors), 0):
        rows = [x for x in tensors if x.ndim >= -d]
        own = [p.spread.axes[d] for p in rows if isinstance(p, Part)]
        sizes = [whole(x.shape[d]) for x in rows]
        axes.append(max([*own, *sizes], key=lambda axis: (axis.size, bool(axis.splits))))
    for part in parts:
        if len(axes) == len(part.spread.axes) and all(map(same_places, axes, part.spread.axes)):
            return part.spread
    return Layout(parts[0].spread.home, tuple(axes))


def _rule(*functions: Any) -> Callable[[Rule], Rule]:
    def add(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(functions, rule))
        return rule

    return add


@_rule(aten.view.default, aten.reshape.default, aten._unsafe_view.default)
def _view(x: Part, shape: Sequence[int]) -> Tensor:
    if not shape:
        x = _shared(x)
    layout = x.spread.viewed(shape)
    return part_of(x.local.reshape([axis.here for axis in layout.axes]), layout)


@_rule(aten.expand.default)
def _expand(x: Part, shape: Sequence[int], implicit: bool = False) -> Tensor:
    axes = [whole(1)] * (len(shape) - x.ndim) + list(x.spread.axes)
    pairs = zip(axes, shape, strict=True)
    axes = [axis if size in (-1, axis.size) else whole(size) for axis, size in pairs]
    return part_of(x.local.expand([axis.here for axis in axes]), Layout(x.spread.home, tuple(axes)))


def _made(func: Any) -> Rule:
    def rule(x: Part, size: Sequence[int], *args: Any, **kwargs: Any) -> Tensor:
        if tuple(size) != x.spread.shape:
            made: Tensor = func(x.local, size, *args, **kwargs)
            return made
        here = [axis.here for axis in x.spread.axes]
        return part_of(func(x.local, here, *args, **kwargs), x.spread)

    return rule


for _function in (aten.new_zeros, aten.new_ones, aten.new_empty, aten.new_full):
    RULES[_function.default] = _made(_function.default)


# ------------------------------------------------------------------ what goes over ranks


def check_alike(value: Tensor, shared: Part, what: str) -> Request:
    """See that all ranks of a mesh have the same value, with the next round of their requests."""
    mesh = shared.spread.home.mesh
    groups = tuple((mesh, i) for i in range(mesh.ndim) if mesh.size(i) > 1)
    return request(groups, alike(value, what))


def _asked(
    x: Part, dims: Sequence[int], keepdim: bool, ask: Callable[[Tensor], Ask], dtype: torch.dtype
) -> Part:
    """What a reduction over some dimensions will be."""
    splits = sorted({i for d in dims for i in x.spread.axes[d].splits})
    groups = tuple((x.spread.home.mesh, i) for i in splits)
    made = request(groups, ask(x.local))
    return Part(None, x.spread.without(dims, keepdim), made, dtype, x.device)


def _reduction(func: Any, operation: str, partial: Callable[..., Tensor]) -> None:
    """A rule for a reduction: of what is here by `partial`, of ranks by `operation`."""

    def rule(x: Part, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Any:
        dims = [dim] if isinstance(dim, int) else list(dim or range(x.ndim))
        dims = [d % max(1, x.ndim) for d in dims] if x.ndim else []
        args = () if dim is None else (dim, keepdim)
        if not any(x.spread.axes[d].splits for d in dims):
            return part_of(func(x.local, *args, **kwargs), x.spread.without(dims, keepdim))
        dtype = func(torch.empty((1,) * x.ndim, dtype=x.dtype, device="cpu"), *args, **kwargs).dtype

        def ask(local: Tensor) -> Ask:
            (found,) = yield [(operation, partial(local, dims, keepdim))]
            if func in MEANS:
                found = found / prod(x.shape[d] for d in dims)
            return found.to(dtype)

        return _asked(x, dims, keepdim, ask, dtype)

    RULES[func] = rule


def _wide_sum(x: Tensor, dims: list[int], keepdim: bool) -> Tensor:
    dtype = torch.float64 if x.is_floating_point() else torch.int64
    return x.sum(dims, keepdim, dtype=dtype)


def _extreme(largest: bool, *, flags: bool = False) -> Callable[..., Tensor]:
    def partial(x: Tensor, dims: list[int], keepdim: bool) -> Tensor:
        if flags:
            x = (x != 0).long()
        if not x.numel():  # torch refuses the maximum of nothing
            info = torch.finfo(x.dtype) if x.is_floating_point() else torch.iinfo(x.dtype)
            lowest = -torch.inf if x.is_floating_point() else info.min
            highest = torch.inf if x.is_floating_point() else info.max
            shape = [max(1, n) if d in dims else n for d, n in enumerate(x.shape)]
            x = x.new_full(shape, lowest if largest else highest)
        return x.amax(dims, keepdim) if largest else x.amin(dims, keepdim)

    return partial


for _name in ("default", "dim_IntList"):
    _reduction(getattr(aten.sum, _name), "sum", _wide_sum)
for _op in MEANS:
    _reduction(_op, "sum", _wide_sum)
for _op in (aten.amax.default, aten.max.default):
    _reduction(_op, "max", _extreme(True))
for _op in (aten.amin.default, aten.min.default):
    _reduction(_op, "min", _extreme(False))
for _name in ("default", "dim", "dims"):
    _reduction(getattr(aten.any, _name), "max", _extreme(True, flags=True))
    _reduction(getattr(aten.all, _name), "min", _extreme(False, flags=True))


@_rule(aten.linalg_vector_norm.default)
def _vector_norm(
    x: Part, p: float = 2.0, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    if p < 1:
        raise NotImplementedError(f"`ord` must satisfy ord >= 1 over ranks  Got: {p}")
    dims = sorted(d % x.ndim for d in (dim if dim else range(x.ndim)))

    def ask(local: Tensor) -> Ask:
        rest = [d for d in range(local.ndim) if d not in dims]
        kept = [local.shape[d] for d in rest]
        rows = local.permute(*rest, *dims).reshape(*kept, -1).reshape(torch.Size(kept).numel(), -1)
        found = yield from nearest.norm(rows, p)
        shape = [1 if d in dims else n for d, n in enumerate(local.shape)] if keepdim else kept
        return found.reshape(shape).to(dtype or x.dtype)

    return _asked(x, dims, keepdim, ask, dtype or x.dtype)


def _kernel(
    func: Any, ask: Callable[..., Ask], *, decides: int | None = None, dtype: Any = None
) -> None:
    """A rule for a kernel of rows (N, D).

    Args:
        ask: the kernel of what is here: ``(rows, *values, axis) -> request``.
        decides: which value the number of rounds depends on; None: it is a reduction.
        dtype: of the result, where it is not that of the rows.
    """

    def rule(rows: Any, *values: Any) -> Any:
        if not isinstance(rows, Part):
            raise NotImplementedError(f"rows must be shared where values of {func} are")
        own = tuple(cut(v, _like(v, rows.spread)) for v in values)
        axis, kept = rows.spread.axes[1], rows.spread
        if decides is None:
            kept = kept.without([1], True)
        if not axis.splits:
            return part_of(func(rows.local, *own), kept)
        if decides is not None and not isinstance(values[decides], Part):
            check_alike(values[decides], rows, "hyperparameters must be alike on all ranks")
        found = _asked(
            rows, [1], True, lambda local: ask(local, *own, axis=axis), dtype or rows.dtype
        )
        return Part(None, kept, found._request, dtype or rows.dtype, rows.device)

    RULES[func.default] = rule


def _like(value: Any, layout: Layout) -> Layout:
    """The part of a layout of rows that a value beside rows has: (N,) is one for each."""
    one_each = isinstance(value, Tensor) and value.ndim == 1
    return layout.without([1], False) if one_each else layout


_kernel(norms._operator, nearest.norm, dtype=torch.float64)
_kernel(select._operator, selection.keep_mask, decides=0, dtype=torch.bool)
_kernel(sets._operator, nearest.project, decides=1)
