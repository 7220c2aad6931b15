"""What elementwise links do, read off one run of them, as numbers that native code follows."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...engine.chunks import Call

_ATEN, _MOST = torch.ops.aten, torch.finfo(torch.float32).max
_OPS: dict[Any, Callable[..., list[float]]] = {  # as `transform` of kernels/step.cpp has them
    _ATEN.clamp: lambda low=None, high=None: [0, _or(low, -math.inf), _or(high, math.inf), 0],
    _ATEN.mul: lambda factor: [1, factor, 0, 0],
    _ATEN.neg: lambda: [1, -1, 0, 0],
    _ATEN.add: lambda number: [2, number, 0, 0],
    _ATEN.nan_to_num: lambda nan=None, most=None, least=None: (
        [3, _or(nan, 0), _or(most, _MOST), _or(least, -_MOST)]
    ),
}


def _or(x: float | None, otherwise: float) -> float:
    return otherwise if x is None else x


class _Read(Tensor):
    """An element that knows what was done to it. No mode is set, which an interrupt could leave."""

    program: list[float]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        (x, *numbers), op, kwargs = args, _OPS.get(func.overloadpacket), kwargs or {}
        plain = all(number is None or isinstance(number, (int, float)) for number in numbers)
        if op is None or not plain or not isinstance(x, cls) or kwargs.keys() - {"out"}:
            raise NotImplementedError(f"{func} is not among what native code does")
        out: _Read = kwargs["out"] if kwargs else _element()
        out.program = x.program + op(*numbers)
        return out


def _element() -> _Read:
    x: _Read = Tensor._make_subclass(_Read, torch.ones(1, dtype=torch.float32, device="cpu"))
    x.program = []
    return x


def program_of(calls: Sequence[Call]) -> list[float] | None:
    """Four numbers for each thing that is done to an element; None where it cannot be read."""
    x: Any = _element()
    try:
        for call in calls:
            x = call(x, out=x)
        return x.program if isinstance(x, _Read) else None
    except NotImplementedError:
        return None
