"""What may enter, and writing where it may be written."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .tree import Leaves, Spec, leaf_names

_FLOATING = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})


def overlaps(tensor: Tensor) -> bool:
    """Whether several elements share memory, as in an expanded tensor: it cannot be written."""
    return not tensor.is_contiguous() and any(
        stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
    )


def shares_memory(a: Tensor, b: Tensor | None) -> bool:
    """Whether a write into one may be seen in the other; when compiling, whether they are one."""
    if a is b or b is None or torch.compiler.is_compiling():
        return a is b
    try:
        return a.numel() > 0 and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return False


def check_leaves(leaves: Sequence[Any], spec: Spec, what: str) -> None:
    """Refuse leaves that are not floating strided tensors, by name and with what to do."""
    for i, leaf in enumerate(leaves):
        if leaf is None:
            continue
        if not isinstance(leaf, Tensor):
            raise TypeError(
                f"`{what}{leaf_names(spec)[i]}` must be a tensor or None  Got: {leaf!r}"
            )
        if leaf.dtype in _FLOATING and leaf.layout is torch.strided:
            continue
        name = f"`{what}{leaf_names(spec)[i]}`"
        if leaf.layout is not torch.strided:
            raise TypeError(f"{name} must be dense: call `.to_dense()`  Got: {leaf.layout}")
        if leaf.is_complex():
            raise TypeError(f"{name} must be real: use `torch.view_as_real`  Got: {leaf.dtype}")
        raise TypeError(f"{name} must have a floating dtype: use `.float()`  Got: {leaf.dtype}")


def check_shapes(leaves: Leaves, params: Leaves, spec: Spec, what: str = "updates") -> None:
    """Refuse leaves that differ in shape from the parameters."""
    for i, (leaf, param) in enumerate(zip(leaves, params, strict=True)):
        if leaf is None:
            continue
        if param is None or leaf.shape != param.shape:
            shape = None if param is None else tuple(param.shape)
            raise ValueError(
                f"`{what}{leaf_names(spec)[i]}` must have the shape of its parameter, {shape}  "
                f"Got: {tuple(leaf.shape)}"
            )


def write_back(target: Tensor, result: Tensor) -> Tensor:
    """`result` in the memory of `target`; where that cannot be written, `result` itself."""
    if target is result or overlaps(target):
        return result
    return target.copy_(result)


def add(param: Tensor | None, update: Tensor | None) -> Tensor | None:
    """The parameter moved by an update, in the parameter's dtype."""
    if param is None or update is None:
        return param
    return (param + update).to(param.dtype)
