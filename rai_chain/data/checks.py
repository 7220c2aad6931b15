"""What may enter, and writing where it may be written."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from .messages import told
from .tree import Leaves, Spec, leaf_names

_FLOATING = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})


def overlaps(tensor: Tensor) -> bool:
    """Whether several elements share memory, as in an expanded tensor: it cannot be written."""
    if tensor.layout is not torch.strided or tensor.is_contiguous():
        return False
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += stride * (size - 1)
    return False


def shares_memory(a: Tensor, b: Tensor | None) -> bool:
    """Whether a write into one may be seen in the other; when compiling, whether they are one."""
    if a is b or b is None or torch.compiler.is_compiling():
        return a is b
    try:
        return a.numel() > 0 and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        here = getattr(a, "_local_tensor", a)  # of what ranks share
        beside = getattr(b, "_local_tensor", b)
        return here is not None and not (here is a and beside is b) and shares_memory(here, beside)


def name_of(what: str, spec: Spec, i: int) -> str:
    """The name of a leaf in a message: ``params['layer']['bias']``, or ``params`` of a tensor."""
    return what if spec.is_leaf() else f"{what}{leaf_names(spec)[i]}"


def is_ordinary(leaf: Tensor | None) -> bool:
    """Whether a leaf is None, or a floating strided tensor, as all links take it."""
    return leaf is None or (leaf.dtype in _FLOATING and leaf.layout is torch.strided)


def check_leaves(leaves: Sequence[Any], spec: Spec, what: str) -> None:
    """Refuse leaves that are not floating strided tensors, by name and with what to do."""
    for i, leaf in enumerate(leaves):
        if leaf is None:
            continue
        if not isinstance(leaf, Tensor):
            raise TypeError(
                f"`{name_of(what, spec, i)}` must be a tensor or None{_instead(leaf)}  "
                f"Got: {told(leaf)}"
            )
        if is_ordinary(leaf):
            continue
        name = f"`{name_of(what, spec, i)}`"
        if leaf.layout is not torch.strided:
            raise TypeError(f"{name} must be dense: call `.to_dense()`  Got: {leaf.layout}")
        if leaf.is_complex():
            raise TypeError(f"{name} must be real: use `torch.view_as_real`  Got: {leaf.dtype}")
        raise TypeError(f"{name} must have a floating dtype: use `.float()`  Got: {leaf.dtype}")


def _instead(value: Any) -> str:
    """What to give instead of something that is no tensor."""
    if isinstance(value, (nn.ParameterDict, Mapping)):
        return ": use `dict(...)` of it"
    if isinstance(value, (nn.ParameterList, Set, Sequence)) and not isinstance(value, str):
        return ": use `list(...)` of it"
    if isinstance(value, (nn.Module, Iterator)):
        return ": use `dict(net.named_parameters())`"
    if dataclasses.is_dataclass(value):
        return ": use `vars(...)` of it"
    if isinstance(value, (int, float, numpy.ndarray, numpy.generic)):
        return ": use `torch.as_tensor(...)` of it"
    return ""


def check_made(leaves: Leaves, spec: Spec, what: str) -> None:
    """`check_leaves`, and refuse parameters of a lazy module, which have no shape yet."""
    check_leaves(leaves, spec, what)
    check_shaped(leaves, spec, what)


def check_shaped(leaves: Leaves, spec: Spec, what: str) -> None:
    """Refuse parameters of a lazy module, which have no shape yet."""
    for i, leaf in enumerate(() if torch.compiler.is_compiling() else leaves):
        if leaf is not None and torch.nn.parameter.is_lazy(leaf):
            raise ValueError(
                f"`{name_of(what, spec, i)}` must have a shape: run its module once before  "
                f"Got: an {type(leaf).__name__}"
            )


def check_writable(leaves: Leaves, spec: Spec, what: str) -> None:
    """Refuse leaves into which nothing may be written."""
    for i, leaf in enumerate(() if torch.compiler.is_compiling() else leaves):
        if leaf is None:
            continue
        if leaf.is_inference() and not torch.is_inference_mode_enabled():
            raise ValueError(
                f"`{name_of(what, spec, i)}` must be made outside `torch.inference_mode()`, as it "
                "is written in place: use `.clone()` of it  Got: an inference tensor"
            )
        if leaf.requires_grad and leaf.is_leaf and torch.is_grad_enabled():
            raise ValueError(
                f"`{name_of(what, spec, i)}` must not require a gradient to be written in place: "
                "use `torch.no_grad()` or `.detach()`  Got: requires_grad=True"
            )


def elsewhere(leaves: Leaves) -> int | None:
    """The place of the first leaf on another device than those before it."""
    first = next((leaf.device for leaf in leaves if leaf is not None), None)
    places = (i for i, leaf in enumerate(leaves) if leaf is not None and leaf.device != first)
    return next(places, None)


def check_one_device(leaves: Leaves, spec: Spec, what: str, link: Any) -> None:
    """Refuse leaves on several devices, for a link in which they meet."""
    i = elsewhere(leaves)
    if i is not None:
        first = next(leaf.device for leaf in leaves if leaf is not None)
        raise ValueError(
            f"`{name_of(what, spec, i)}` must be on {first} like the leaves before it, as they "
            f"meet in {link!r}: use a pipeline or a param group for each device  "
            f"Got: {leaves[i].device}"  # type: ignore[union-attr]
        )


def check_shapes(
    leaves: Leaves, params: Leaves, spec: Spec, what: str = "updates", beside: str = "parameter"
) -> None:
    """Refuse leaves that differ in shape from the parameters."""
    for i, (leaf, param) in enumerate(zip(leaves, params, strict=True)):
        if leaf is None:
            continue
        if param is None or leaf.shape != param.shape:
            shape = None if param is None else tuple(param.shape)
            raise ValueError(
                f"`{name_of(what, spec, i)}` must have the shape of its {beside}, {shape}  "
                f"Got: {tuple(leaf.shape)}"
            )


def check_single(kind: type, values: Mapping[str, Any]) -> None:
    """Refuse a tensor of several numbers where an optimizer of torch takes one."""
    for name, value in values.items() if kind.__module__.startswith("torch.optim") else ():
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(f"`{name}` must be one number  Got: {told(value)}")


def write_back(target: Tensor, result: Tensor) -> Tensor:
    """`result` in the memory of `target`; where that cannot be written, `result` itself."""
    if target is result or overlaps(target):
        return result
    return target.copy_(result)


def add(param: Tensor | None, update: Tensor | None) -> Tensor | None:
    """The parameter moved by an update, in the parameter's dtype."""
    if param is None or update is None:
        return param
    moved = param + update
    return moved if moved.dtype == param.dtype else moved.to(param.dtype)
