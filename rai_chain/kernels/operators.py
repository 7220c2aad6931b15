"""Kernels as opaque operators: what autograd, vmap and the compiler see of them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_library: Any = torch.library.Library("rai_chain", "FRAGMENT")  # type: ignore[no-untyped-call]


def operator(schema: str, kernel: Callable[..., Tensor], fake: Callable[..., Tensor]) -> Any:
    """Make an operator of a function of rows: each of its tensors has one entry for each row.

    It has no derivative: whoever calls it adds one.
    """
    name = schema.partition("(")[0]
    _library.define(schema)
    _library.impl(name, kernel, "CompositeExplicitAutograd")
    function = getattr(torch.ops.rai_chain, name)

    def batched(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        """A batch of rows is more rows."""

        def fold(value: Any, dim: int | None) -> Any:
            if not isinstance(value, Tensor):
                return value
            if dim is None:
                return value.expand(info.batch_size, *value.shape).flatten(0, 1)
            return value.movedim(dim, 0).flatten(0, 1)

        result = function(*map(fold, args, in_dims))
        return result.unflatten(0, (info.batch_size, -1)), 0

    torch.library.register_fake(f"rai_chain::{name}", fake, lib=_library)
    torch.library.register_vmap(f"rai_chain::{name}", batched, lib=_library)
    return function
