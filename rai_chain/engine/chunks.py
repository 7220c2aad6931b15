"""Elementwise functions, several in a row, over many tensors: one pass through the cache.

Nothing here knows a link. As the elements do not see each other, large tensors are cut into
pieces that stay in cache from the first function to the last, and small ones are gathered into
one piece, so that a thousand tensors cost as many calls as one.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..data.tree import Leaves

PIECE = 1 << 19  # elements that stay in cache
GATHERED = 1 << 15  # what is gathered at once
SMALL = 1 << 13  # tensors up to this size are gathered
FEW = 4  # but not so few of them
Call = Callable[..., Tensor]  # (input, out=destination) -> destination


def apply_elementwise(calls: Sequence[Call], leaves: Leaves, writable: list[bool]) -> Leaves:
    """Put every leaf through the calls; `writable` says where in place, and then what is ours.

    No call sees a tensor of 0 dimensions, see `Rows.view`.

    Returns:
        The new leaves. A leaf that was not writable gets one new tensor, which is.
    """
    out = list(leaves)
    gather = len(leaves) >= FEW
    small: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for i, leaf in enumerate(leaves):
        if leaf is None:
            continue
        if not writable[i]:
            out[i], writable[i] = torch.empty_like(leaf), True
        if gather and leaf.numel() <= SMALL:
            small.setdefault((leaf.dtype, leaf.device), []).append(i)
        else:
            _one(calls, leaf, out[i])  # type: ignore[arg-type]
    for places in small.values():
        sources: Any = [leaves[i] for i in places]
        targets: Any = sources if out is leaves else [out[i] for i in places]
        sizes = [source.numel() for source in sources]
        for part in _batches(sizes):
            if part.stop - part.start < FEW:
                for source, target in zip(sources[part], targets[part], strict=True):
                    _one(calls, source, target)
            else:
                _gathered(calls, sources[part], targets[part], sizes[part])
    return out


def _one(calls: Sequence[Call], source: Tensor, target: Tensor) -> None:
    if source.ndim == 0:
        source, target = source.view(1), target.view(1)
    if source.numel() <= PIECE or len(calls) == 1 or not source.is_cpu:
        _through(calls, source, target)
        return
    views = flat(source), flat(target)
    if views[0] is None or views[1] is None or source.stride() != target.stride():
        _through(calls, source, target)
        return
    for a, b in zip(pieces_of(views[0]), pieces_of(views[1]), strict=True):
        _through(calls, a, b)


def _through(calls: Sequence[Call], source: Tensor, target: Tensor) -> None:
    for call in calls:
        result = call(source, out=target)
        if result is not target:
            target.copy_(result)
        source = target


def _gathered(
    calls: Sequence[Call], sources: list[Tensor], targets: list[Tensor], sizes: list[int]
) -> None:
    buffer = torch.cat([s if s.ndim == 1 else s.reshape(-1) for s in sources])
    _through(calls, buffer, buffer)
    parts: Any = torch.split(buffer, sizes)
    pairs = zip(parts, targets, strict=True)
    torch._foreach_copy_(targets, [p if t.ndim == 1 else p.view(t.shape) for p, t in pairs])


def _batches(sizes: list[int]) -> Iterator[slice]:
    """Runs of tensors of at most GATHERED elements together."""
    start = total = 0
    for i, size in enumerate(sizes):
        if total + size > GATHERED and i > start:
            yield slice(start, i)
            start, total = i, 0
        total += size
    yield slice(start, len(sizes))


def pieces_of(tensor: Tensor, size: int = PIECE) -> Iterator[Tensor]:
    """Views of the pieces of a flat tensor, one at a time: a million of them would be memory."""
    for start in range(0, tensor.numel(), size):
        yield tensor[start : start + size]


def flat(tensor: Tensor) -> Tensor | None:
    """All elements in the order they lie in memory, as a view; None where there are gaps."""
    if tensor.is_contiguous():
        return tensor.view(-1)
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return None
        expected *= size
    return tensor.as_strided((tensor.numel(),), (1,))
