"""DTensors on their way in and out of a pipeline, and one of them through a function."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...data.random import drawn_at
from ...data.tree import Leaves, leaf_names, map_leaves
from .layout import home_of
from .part import Part, cut, local_of
from .rounds import asking


def entered(x: Any) -> Any:
    """The Part of a DTensor, which shares its memory; anything else as it is."""
    from torch.distributed.tensor import DTensor

    if not isinstance(x, DTensor):
        return x
    local = x._local_tensor
    if isinstance(local, torch.distributed._functional_collectives.AsyncCollectiveTensor):
        local = local.wait()
    shapes = tuple(x.shape), tuple(local.shape)
    world = torch.distributed.group.WORLD
    return Part(local, home_of(world, x.device_mesh, tuple(x.placements), *shapes))


def left(x: Any, old: Any = None) -> Any:
    """The DTensor of a Part: `old` itself, where its memory was written."""
    whole = entered(old)
    if not isinstance(x, Part):
        return whole.spread.home.wrap(x) if isinstance(whole, Part) and x is not None else x
    if old is not None and x.local is getattr(old, "_local_tensor", None):
        return old
    if x.spread.is_home:
        return x.spread.home.wrap(x.local, like=old)
    if x.spread.is_split:
        raise NotImplementedError(
            f"what a link keeps of a leaf that ranks share must have the shape of the leaf, or "
            f"be alike on all ranks  Got: {x.spread.shape}"
        )
    return x.local


def settled(leaf: Any, param: Any, name: str) -> Any:
    """A leaf cut as its parameter is: partial sums are summed, once.

    Raises:
        TypeError: one of both is a DTensor and the other is not.
        ValueError: the leaf is on another mesh or cut in another way.
    """
    from torch.distributed.tensor import DTensor, Replicate

    if leaf is None or (not isinstance(leaf, DTensor) and not isinstance(param, DTensor)):
        return leaf
    if isinstance(leaf, DTensor) != isinstance(param, DTensor):
        raise TypeError(
            f"`{name}` must be a DTensor where its parameter is one, and only there  "
            f"Got: {type(leaf).__name__} and {type(param).__name__}"
        )
    if leaf.device_mesh == param.device_mesh:
        wanted = param.placements
        if leaf is param and any(p.is_partial() for p in wanted):
            wanted = tuple(Replicate() if p.is_partial() else p for p in wanted)
        if leaf.placements == wanted:
            return leaf
        pairs = zip(leaf.placements, wanted, strict=True)
        if all(a == b or a.is_partial() or a.is_replicate() for a, b in pairs):
            return leaf.redistribute(placements=wanted)
    raise ValueError(
        f"`{name}` must be placed as its parameter is, {param.placements} on "
        f"{param.device_mesh}  Got: {leaf.placements} on {leaf.device_mesh}"
    )


def run_inside(
    run_links: Callable[..., Any],
    plain: Callable[..., bool],
    links: Any,
    names: Any,
    leaves: Leaves,
    states: list[Any],
    run: Any,
    values: list[Any],
    phase: Any,
) -> Any:
    """`run_links` of Parts in the place of DTensors."""
    for x in (*leaves, *(run.params or ())):
        if x is not None and x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                "Derivatives do not pass through a pipeline of tensors that ranks share: call it "
                "under `torch.no_grad()`"
            )
    for link in links:
        if link.reduces and link.phase == phase:
            raise NotImplementedError(f"`updates` must not be DTensors  Got: them, for {link!r}")
    like = run.params or leaves
    leaves = [
        settled(x, x if p is None else p, name)
        for x, p, name in zip(leaves, like, leaf_names(run.spec), strict=True)
    ]
    params = None if run.params is None else [entered(p) for p in run.params]
    parts, values = [entered(x) for x in leaves], [map_leaves(entered, own) for own in values]
    inside = replace(
        run,
        params=params,
        sharded=True,
        extra={k: map_leaves(entered, v) for k, v in run.extra.items()},
    )
    inside.plain = plain([*map(local_of, parts), *map(local_of, params or ())], [])
    with asking():
        states = [map_leaves(entered, own) for own in states]
        out, states = run_links(links, names, parts, states, inside, values, phase)
        old = [
            p if phase == "step" and run.params else x for x, p in zip(leaves, like, strict=True)
        ]
        run.writable, run.adds = inside.writable, inside.adds
        new = [left(x, was) for x, was in zip(out, old, strict=True)]
        return new, [map_leaves(left, own) for own in states]


def apply_outside(link: Any, leaves: Leaves, state: Any, run: Any, values: Any) -> Any:
    """A link that is made for DTensors, such as an optimizer of torch, within a run of Parts."""
    outside = replace(run, sharded=False, plain=False, writable=[False] * len(leaves))
    outside.params = None if run.params is None else [left(p) for p in run.params]
    outside.extra = {k: map_leaves(left, v) for k, v in run.extra.items()}
    given = [left(x) for x in leaves], map_leaves(left, state), outside, map_leaves(left, values)
    out, state = link.apply(*given)
    run.writable = [False] * len(leaves)
    return [entered(x) for x in out], map_leaves(entered, state)


def on_shard(
    function: Callable[..., Tensor],
    leaf: Part,
    view: Part,
    extra: dict[str, Any],
    kept: dict[str, tuple[list[Any], list[Any]]],
    run: Any,
    i: int,
    here: bool,
) -> Tensor:
    """One leaf through a function: of what is here, where nothing else is needed.

    Args:
        function: ``(leaf, extra, kept, run, i) -> result``.
        view: the leaf as the link's function sees it.
        here: whether this rank has all that an element of the result depends on.
    """
    layout = view.spread if isinstance(view, Part) else leaf.spread
    alone = (here and "key" not in extra) or not layout.is_split
    into: Callable[[Any], Any] = local_of if alone else (lambda x: x)
    one = replace(run, plain=run.plain and alone, writable=[run.writable[i]])
    one.params = None if run.params is None else [into(run.params[i])]
    columns: Any = {k: ([into(old[i])], [None]) for k, (old, _) in kept.items()}
    if alone:
        extra = {k: cut(v, layout) for k, v in extra.items()}
        if kept:
            extra["state"] = {k: old for k, ((old,), _) in columns.items()}
        result = function(leaf.local, extra, columns, one, 0)
    else:
        with drawn_at(lambda shape: _places(layout, shape, leaf.device)):
            result = function(leaf, extra, columns, one, 0)
    run.writable[i] = one.writable[0]
    for k, (old, new) in kept.items():
        (new[i],) = columns[k][1]
        if alone and isinstance(old[i], Part):
            new[i] = old[i] if new[i] is old[i].local else Part(new[i], old[i].spread)
    if isinstance(result, Part):
        return leaf if result.local is leaf.local else result
    return leaf if result is leaf.local else Part(result, leaf.spread)


def _places(layout: Any, shape: tuple[int, ...], device: torch.device) -> Tensor | None:
    index = layout.index(shape)
    return None if index is None else Part(index.to(device), layout)
