"""When tensors are nothing but memory."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Buffer, Parameter

ORDINARY = frozenset({Tensor, Parameter, Buffer})


def is_plain(values: Iterable[object], *, subclasses: bool = False) -> bool:
    """Whether nothing but the values matters: no tracing, no transform, no derivative, no subclass.

    Then results may go into memory that is ours, and be computed by what autograd cannot see.

    Args:
        values: tensors, and what else a function is given.
        subclasses: whether those of `Tensor` may be among them: nothing but their values matters.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._functorch.maybe_current_level() is not None
        or forward_ad._current_level >= 0
    ):
        return False
    grad = torch.is_grad_enabled()
    for value in values:
        if type(value) in ORDINARY:
            if grad and value.requires_grad:  # type: ignore[attr-defined]
                return False
        elif isinstance(value, Tensor) and not (subclasses and not (grad and value.requires_grad)):
            return False
    return True


def is_differentiated() -> bool:
    """Whether a transform around this call, or a compiler, may take derivatives of it."""
    if torch.compiler.is_compiling() or forward_ad._current_level >= 0:
        return True
    around = torch._C._functorch.get_interpreter_stack() or ()
    return any(one.key() != torch._C._functorch.TransformType.Vmap for one in around)
