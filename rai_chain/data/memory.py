"""Tensors that share memory, kept apart before one of them is written."""

from collections.abc import Iterable
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checks import overlaps, write_back
from .tree import Leaves

_WORK = 10_000  # of an exact answer, beyond which two tensors count as sharing an element


def separated(leaves: list[Any], others: Iterable[Any] = ()) -> list[Any]:
    """The leaves, each in memory of its own: one may be written, whatever is read later.

    Copied is a leaf that shares an element with an earlier one, with one of `others`, or with
    itself. Where none does, as almost always, the result is the list itself.

    Args:
        leaves: tensors, or None.
        others: what is only read, likewise.
    """
    if are_apart(leaves, others):
        return leaves
    read = [x for x in others if x is not None]
    mine = [x for x in leaves if x is not None]
    if not _meet([*read, *mine]) and not any(map(overlaps, mine)):
        return leaves
    kept: dict[int, list[Tensor]] = {}
    for x in read:
        kept.setdefault(_storage(x), []).append(x)
    out = list(leaves)
    for i, x in enumerate(leaves):
        if x is None:
            continue
        near = kept.setdefault(_storage(x), [])
        if overlaps(x) or any(_share(x, other) for other in near):
            out[i] = x.clone()
        else:
            near.append(x)
    return leaves if all(map(is_, out, leaves)) else out


def are_apart(leaves: list[Any], others: Iterable[Any]) -> bool:
    """Whether that is seen at once: each tensor has a storage of its own, each leaf no gaps."""
    try:
        where = [x.untyped_storage().data_ptr() for x in (*others, *leaves) if x is not None]
    except (NotImplementedError, RuntimeError):
        return False
    if len(set(where)) < len(where):
        return False
    for x in leaves:  # noqa: SIM110  (faster than `all`)
        if x is not None and not x.is_contiguous():
            return False
    return True


def written(targets: Leaves, results: Leaves, writable: list[bool]) -> Leaves:
    """The results, in the memory of their targets where that may be written.

    A result in the memory of another target is copied before that is written. A traced graph
    cannot tell: there every result is one of its own, and its target gets a copy.
    """
    if torch.compiler.is_compiling() and any(writable):
        out = [x if x is None else x.clone() for x in results]
        for target, result, own in zip(targets, out, writable, strict=True):
            if own and target is not None and result is not None:
                write_back(target, result)
        return out
    out = list(results)
    pairs: Any = list(zip(targets, out, writable, strict=True))
    pairs = [(i, a, b) for i, (a, b, own) in enumerate(pairs) if own and a is not None]
    moved = [(i, a, b) for i, a, b in pairs if b is not None and a is not b]
    if len(pairs) > 1 and moved:
        memory = {_storage(a) for _, a, _ in pairs}
        moved = [(i, a, b.clone() if _storage(b) in memory else b) for i, a, b in moved]
    for i, target, result in moved:
        out[i] = write_back(target, result)
    return out


def _storage(x: Tensor) -> int:
    """What tells the memory of a tensor; of one that shows none, the tensor."""
    try:
        return x.untyped_storage().data_ptr() or id(x)
    except (NotImplementedError, RuntimeError):
        return id(x)


def _span(x: Tensor) -> tuple[int, int]:
    """Where a tensor begins and ends."""
    start: int = _storage(x)
    if start == id(x):
        return start, start + 1
    reach = sum(stride * (size - 1) for stride, size in zip(x.stride(), x.shape, strict=True))
    size = x.element_size()
    start += int(x.storage_offset()) * size
    return start, start + (reach + 1) * size if x.numel() else start


def _meet(tensors: list[Tensor]) -> bool:
    """Whether some may have an element in common, by their beginnings and ends."""
    end = 0
    for start, stop in sorted(map(_span, tensors)):
        if start < min(end, stop):
            return True
        end = max(end, stop)
    return False


class _Place:
    """The memory of a tensor as numpy sees it; no value is ever read."""

    def __init__(self, x: Tensor) -> None:
        size = x.element_size()
        self.__array_interface__ = {
            "version": 3,
            "typestr": f"|V{size}",
            "shape": tuple(x.shape),
            "strides": tuple(stride * size for stride in x.stride()),
            "data": (x.data_ptr(), True),
        }


def _share(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have an element in common."""
    if a is b or not _meet([a, b]):
        return a is b
    try:
        return np.shares_memory(*map(np.asarray, map(_Place, (a, b))), max_work=_WORK)  # type: ignore
    except np.exceptions.TooHardError:
        return True
