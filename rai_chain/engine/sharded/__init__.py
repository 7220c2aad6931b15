"""Leaves that are DTensors: this rank's part of each, and what is asked of the other ranks.

Nothing is gathered. `Part` is the local tensor with the shape of the full one: torch's elementwise
functions run on what is here, reductions and this library's kernels over the ranks that split
what they reduce, and everything else is refused by name.
"""

import sys
from collections.abc import Sequence
from typing import Any


def has_shards(*columns: Sequence[Any] | None) -> bool:
    """Whether a leaf is a DTensor; torch's module of them is not loaded to know it."""
    module = sys.modules.get("torch.distributed.tensor")
    kind = getattr(module, "DTensor", None)
    return kind is not None and any(isinstance(x, kind) for c in columns for x in c or ())
