"""`param_ndim`: what counts as one row of a tensor.

For a tensor of shape ``(d0, d1, d2)``:

=========  ===================
param_ndim rows
=========  ===================
None, 3    ``(1, d0*d1*d2)``
-1, 2      ``(d0, d1*d2)``
-2, 1      ``(d0*d1, d2)``
-3, 0      ``(d0*d1*d2, 1)``
=========  ===================

A positive number counts the dimensions of one row, a negative one the leading dimensions that
separate rows, and None makes the whole tensor one row. A tensor of 0 dimensions is one row of one
element, whatever `param_ndim` is. `TREE` makes all tensors of a tree together one row.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

TREE = "tree"
ParamNdim = int | Literal["tree"] | None
BLOCK = 1 << 18  # elements of the rows worked on at once: what is made of them stays in cache


class _Unset:
    """The `param_ndim` of a link that leaves it to the pipeline's home."""

    def __repr__(self) -> str:
        return "-1 or the group's"

    def __reduce__(self) -> str:
        return "UNSET"


UNSET = _Unset()


def check_param_ndim(
    param_ndim: ParamNdim, *tensors: Tensor | None, names: Callable[[], list[str]] | None = None
) -> None:
    """Refuse a `param_ndim` that is none of what it may be, or too large for one of the tensors."""
    if param_ndim is None or param_ndim == TREE:
        return
    if not isinstance(param_ndim, int) or isinstance(param_ndim, bool):
        raise TypeError(f'`param_ndim` must be an int, None or "tree"  Got: {param_ndim!r}')
    for i, tensor in enumerate(tensors):
        if tensor is not None and tensor.ndim and abs(param_ndim) > tensor.ndim:
            which = "a tensor" if names is None else f"`{names()[i]}`"
            raise ValueError(
                f"`param_ndim` must satisfy abs(param_ndim) <= ndim  "
                f"Got: {param_ndim} for {which} of shape {tuple(tensor.shape)}"
            )


def row_dims(ndim: int, param_ndim: ParamNdim) -> int:
    """How many trailing dimensions make one row."""
    if not isinstance(param_ndim, int) or ndim == 0:
        return ndim
    return param_ndim + ndim if param_ndim < 0 else param_ndim


def to_rows(tensor: Tensor, param_ndim: ParamNdim = -1) -> Tensor:
    """The tensor as (N, D), one row for each group of elements that belong together.

    A view where the memory layout allows one, else a copy.
    """
    check_param_ndim(param_ndim, tensor)
    split = tensor.ndim - row_dims(tensor.ndim, param_ndim)
    shape = tensor.shape
    return tensor.reshape(math.prod(shape[:split]), math.prod(shape[split:]))


def to_batch(tensor: Tensor, param_ndim: int | None = -1) -> Tensor:
    """View a tensor as a batch ``(N, d0, ...)`` whose items have `param_ndim` dimensions.

    Args:
        tensor: any shape, any dtype. Its `grad`, if there is one, is viewed likewise.
        param_ndim: dimensions of one item; a negative number counts from `tensor.ndim`,
            None takes the whole tensor as one item. abs(param_ndim) <= tensor.ndim. Links take
            ``"tree"`` too: then all leaves, one behind the other, are one row.

    Returns:
        A tensor of at least two dimensions: a view where the layout allows one, else a copy.

    Raises:
        TypeError: `tensor` is none, or `param_ndim` neither an int nor None.
        ValueError: abs(param_ndim) > tensor.ndim.

    Example:
        >>> import torch
        >>> x = torch.rand(3, 5, 2)
        >>> [tuple(to_batch(x, n).shape) for n in (None, -1, -2, -3)]
        [(1, 3, 5, 2), (3, 5, 2), (15, 2), (30, 1)]

    Source: the reshaping described for `param_ndim` in the documentation of rai-toolbox.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"`tensor` must be a tensor  Got: {tensor!r}")
    if isinstance(param_ndim, str):
        raise TypeError(f"`param_ndim` must be an int or None for one tensor  Got: {param_ndim!r}")
    check_param_ndim(param_ndim, tensor)
    kept = row_dims(tensor.ndim, param_ndim)
    split = tensor.ndim - kept
    item = tuple(tensor.shape[split:]) or (1,)
    batch = tensor.reshape(math.prod(tensor.shape[:split]), *item)
    if tensor.is_leaf and tensor.grad is not None:
        batch.grad = to_batch(tensor.grad, param_ndim)
    return batch


def in_blocks(function: Callable[..., Tensor], rows: Tensor, values: dict[str, Any]) -> Tensor:
    """A function of rows on a few of them at a time, so that what it makes on its way is small.

    No block is a single row where there are several: torch reduces a single row in another order.

    Args:
        function: sees each row by itself.
        rows: (N, D).
        values: its other arguments; a tensor of (N, ...) has one entry for each row.
    """
    n, size = rows.shape
    count = n // max(2, BLOCK // max(1, size))
    if count < 2 or not rows.is_cpu:
        return function(rows, **values)
    out = None
    for i in range(count):
        part = slice(n * i // count, n * (i + 1) // count)
        own = {k: v[part] if isinstance(v, Tensor) and v.ndim else v for k, v in values.items()}
        result = function(rows[part], **own)
        if out is None:
            out = torch.empty(rows.shape, dtype=result.dtype, device=rows.device)
        out[part] = result
    assert out is not None
    return out
