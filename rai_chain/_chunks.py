"""Elementwise functions, several in a row, over many tensors: one pass through the cache.

Nothing here knows a link. As the elements do not see each other, large tensors are cut into
pieces that stay in cache from the first function to the last, and small ones are gathered into
one piece, so that a thousand tensors cost as many calls as one.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ._tree import Leaves

PIECE = 1 << 17  # elements that stay in cache; also what is gathered at once
SMALL = 1 << 13  # tensors up to this size are gathered
Call = Callable[[Tensor, Tensor], Tensor]  # (input, destination) -> destination


def overlaps(tensor: Tensor) -> bool:
    """Whether several elements share memory, as in an expanded tensor: it cannot be written."""
    return not tensor.is_contiguous() and any(
        stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
    )


def apply_elementwise(calls: Sequence[Call], leaves: Leaves, writable: list[bool]) -> Leaves:
    """Put every leaf through the calls; `writable` says where in place, and then what is ours.

    Returns:
        The new leaves. A leaf that was not writable gets one new tensor, which is.
    """
    out = list(leaves)
    small: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for i, leaf in enumerate(leaves):
        if leaf is None or leaf.numel() == 0:
            continue
        if not writable[i] or overlaps(leaf):
            out[i] = torch.empty_like(leaf)
            writable[i] = True
        if leaf.numel() <= SMALL:
            small.setdefault((leaf.dtype, leaf.device), []).append(i)
        else:
            _one(calls, leaf, out[i])  # type: ignore[arg-type]
    for places in small.values():
        for some in _batches(places, leaves):
            if len(some) < 4:
                for i in some:
                    _one(calls, leaves[i], out[i])  # type: ignore[arg-type]
            else:
                _gathered(calls, [leaves[i] for i in some], [out[i] for i in some])  # type: ignore[misc]
    return out


def _one(calls: Sequence[Call], source: Tensor, target: Tensor) -> None:
    size = source.numel()
    if len(calls) == 1 or size <= 2 * PIECE or source.device.type != "cpu":
        _through(calls, source, target)
        return
    flat = _flat(source), _flat(target)
    if flat[0] is None or flat[1] is None or source.stride() != target.stride():
        _through(calls, source, target)
        return
    for a, b in zip(torch.split(flat[0], PIECE), torch.split(flat[1], PIECE), strict=True):
        _through(calls, a, b)


def _through(calls: Sequence[Call], source: Tensor, target: Tensor) -> None:
    for call in calls:
        result = call(source, target)
        if result is not target:
            target.copy_(result)
        source = target


def _gathered(calls: Sequence[Call], sources: list[Tensor], targets: list[Tensor]) -> None:
    buffer = torch._utils._flatten_dense_tensors(sources)  # type: ignore[no-untyped-call]
    _through(calls, buffer, buffer)
    parts = torch._utils._unflatten_dense_tensors(buffer, targets)  # type: ignore[no-untyped-call]
    torch._foreach_copy_(targets, parts)


def _batches(places: list[int], leaves: Leaves) -> Iterator[list[int]]:
    """Runs of leaves of at most PIECE elements together."""
    batch: list[int] = []
    total = 0
    for i in places:
        size = leaves[i].numel()  # type: ignore[union-attr]
        if batch and total + size > PIECE:
            yield batch
            batch, total = [], 0
        batch.append(i)
        total += size
    yield batch


def _flat(tensor: Tensor) -> Tensor | None:
    """All elements in the order they lie in memory, as a view; None where there are gaps."""
    if tensor.is_contiguous():
        return tensor.view(-1)
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return None
        expected *= size
    return tensor.as_strided((tensor.numel(),), (1,))
