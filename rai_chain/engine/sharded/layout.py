"""Where the elements of a local tensor lie in the full one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from math import prod
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Axis:
    """A dimension of the full tensor, and how many of its places are here."""

    size: int
    here: int
    splits: tuple[int, ...] = ()  # the mesh dimensions that split it
    find: Callable[[], Tensor] | None = None
    parts: "tuple[Axis, ...]" = ()  # the dimensions that were merged into it
    ranks: int = 1  # that share it

    @cached_property
    def places(self) -> Tensor:
        """The place in the full dimension of each place here, (here,) int64 on the host."""
        if self.find is not None:
            found = self.find()
            if len(found) != self.here:
                raise ValueError(
                    f"a shard must be cut as torch cuts it: {len(found)} of {self.size} places  "
                    f"Got: {self.here}"
                )
            return found
        number = torch.zeros(1, dtype=torch.int64, device="cpu")
        for axis in self.parts or (Axis(self.size, self.size, (), lambda: _count(self.size)),):
            number = (number[:, None] * axis.size + axis.places).reshape(-1)
        return number


def whole(size: int) -> Axis:
    """A dimension that every rank has all of."""
    return Axis(size, size)


def _count(size: int) -> Tensor:
    return torch.arange(size, device="cpu")


def _merged(axes: Sequence[Axis]) -> Axis:
    if len(axes) == 1:
        return axes[0]
    parts = tuple(part for a in axes for part in a.parts or (a,))
    sizes = prod(a.size for a in axes), prod(a.here for a in axes)
    splits = tuple(i for a in axes for i in a.splits)
    return Axis(*sizes, splits, parts=parts, ranks=prod(a.ranks for a in axes))


def same_places(a: Axis, b: Axis) -> bool:
    """Whether both have the same places here."""
    return a is b or (a.size == b.size and not a.splits and not b.splits)


@dataclass(eq=False)
class Home:
    """The layout of a DTensor; what is made of its local tensors has layouts that refer to it."""

    mesh: Any
    placements: tuple[Any, ...]
    axes: tuple[Axis, ...]
    views: dict[tuple[int, ...], "Layout"] = field(default_factory=dict)
    rows: dict[int, "Layout"] = field(default_factory=dict)  # of which a dimension is the first

    def as_rows(self, first: int) -> "Layout":
        """The layout of rows that the dimensions from `first` on make."""
        if first not in self.rows:
            groups = self.axes[:first], self.axes[first:]
            axes = tuple(_merged(group) if group else whole(1) for group in groups)
            self.rows[first] = Layout(self, axes)
        return self.rows[first]

    def wrap(self, local: Tensor, like: Any = None) -> Any:
        """The DTensor of a local tensor; its strides are those of `like`, where it has its own."""
        from torch.distributed.tensor import DTensor

        shape = torch.Size(axis.size for axis in self.axes)
        stride = torch.empty(shape, device="meta").stride()
        if like is not None and local.stride() == like._local_tensor.stride():
            stride = like.stride()
        return DTensor.from_local(
            local, self.mesh, self.placements, run_check=False, shape=shape, stride=stride
        )


@dataclass(frozen=True, eq=False)
class Layout:
    """What each dimension of a tensor is: those of a DTensor, merged or reduced."""

    home: Home
    axes: tuple[Axis, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the full tensor."""
        return tuple(axis.size for axis in self.axes)

    @property
    def is_split(self) -> bool:
        """Whether a rank has less than all of it."""
        return any(axis.splits for axis in self.axes)

    @property
    def is_home(self) -> bool:
        """Whether it is that of a DTensor."""
        same = len(self.axes) == len(self.home.axes)
        return same and all(map(same_places, self.axes, self.home.axes))

    def viewed(self, shape: Sequence[int]) -> "Layout":
        """The layout of a reshape that merges or separates dimensions.

        Raises:
            NotImplementedError: a dimension of the new shape is no product of old ones.
        """
        shape = _settled(tuple(shape), self.shape)
        base = [part for axis in self.axes for part in axis.parts or (axis,)]
        views = self.home.views
        mine = [a for a in base if a.size > 1 or a.splits]
        is_all = mine == [a for a in self.home.axes if a.size > 1 or a.splits]
        if is_all and shape in views:
            return views[shape]
        if shape == self.shape:
            return self
        axes = []
        for size in shape:
            group: list[Axis] = []
            while mine and prod(a.size for a in group) < size:
                group.append(mine.pop(0))
            if prod(a.size for a in group) != size:
                raise NotImplementedError(
                    f"a tensor that ranks share must keep its dimensions, or merge some  "
                    f"Got: a reshape of {self.shape} to {shape}"
                )
            axes.append(_merged(group) if group else whole(1))
        if mine and axes:  # of size 1
            axes[-1:] = [_merged([*axes[-1:], *mine])]
        layout = Layout(self.home, tuple(axes))
        if is_all:
            views[shape] = layout
        return layout

    def without(self, dims: Sequence[int], keepdim: bool) -> "Layout":
        """The layout after a reduction."""
        axes = [None if d in dims else axis for d, axis in enumerate(self.axes)]
        if keepdim:
            return Layout(self.home, tuple(axis or whole(1) for axis in axes))
        return Layout(self.home, tuple(axis for axis in axes if axis is not None))

    def index(self, shape: Sequence[int]) -> Tensor | None:
        """The place of each element here among all of a tensor of this shape, in row-major order.

        A dimension of the shape is one of the layout, or 1; else None.
        """
        if len(shape) != len(self.axes):
            return None
        number = torch.zeros((), dtype=torch.int64, device="cpu")
        for axis, size in zip(self.axes, shape, strict=True):
            if size not in (1, axis.size):
                return None
            own = axis if size == axis.size else whole(1)
            number = number[..., None] * size + own.places
        return number


def _settled(shape: tuple[int, ...], old: tuple[int, ...]) -> tuple[int, ...]:
    known = prod(size for size in shape if size != -1)
    return tuple(prod(old) // max(1, known) if size == -1 else size for size in shape)


@lru_cache(maxsize=4096)
def home_of(
    world: Any,
    mesh: Any,
    placements: tuple[Any, ...],
    shape: tuple[int, ...],
    local: tuple[int, ...],
) -> Layout:
    """The layout of a DTensor with a local tensor of this shape.

    Args:
        world: the process group of all, as equal meshes of another one are not the same.
    """
    if mesh.get_coordinate() is None:
        raise ValueError(f"a leaf must be on a mesh that this rank is in  Got: {mesh}")
    splits: list[list[int]] = [[] for _ in shape]
    for i, placement in enumerate(placements):
        if hasattr(placement, "dim") and mesh.size(i) > 1:  # _StridedShard is no Shard
            splits[placement.dim].append(i)
    axes = []
    for d, own in enumerate(splits):
        find = partial(_places, mesh, placements, d, shape[d]) if own else None
        ranks = prod(mesh.size(i) for i in own)
        axes.append(Axis(shape[d], local[d], tuple(own), find, ranks=ranks))
    home = Home(mesh, placements, tuple(axes))
    layout = home.views[tuple(shape)] = Layout(home, home.axes)
    return layout


def _places(mesh: Any, placements: tuple[Any, ...], dim: int, size: int) -> Tensor:
    """The places of a dimension that mesh dimensions split, one after the other."""
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    own, at = _count(size), mesh.get_coordinate()
    for i, placement in enumerate(placements):
        if getattr(placement, "dim", None) == dim:
            factor = getattr(placement, "split_factor", None)
            along: Any = Shard(0) if factor is None else _StridedShard(0, split_factor=factor)
            parts, _ = along._split_tensor(own, mesh.size(i), with_padding=False)
            own = parts[at[i]] if at[i] < len(parts) else own[:0]
    return own
