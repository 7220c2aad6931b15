"""Signs that keep NaN."""

import torch
from torch import Tensor

from ..data.plain import is_plain
from . import native


def sign(x: Tensor, out: Tensor | None = None) -> Tensor:
    """-1, 0 or 1 for each element; NaN stays NaN, which `torch.sign` makes 0.

    Args:
        x: any shape, any floating dtype.
        out: where to write; may be `x` itself. None: a new tensor.
    """
    if is_plain((x, out)) and native.takes(x):
        return native.sign(x.detach(), out)
    nan = x.detach().clamp(0.0, 0.0)  # zero, but for NaN; `where` on a random mask is slow
    return torch.add(torch.sign(x, out=out), nan, out=out)
