"""Random numbers and points that are a pure function of a key.

A link asks for its key by the name `key`; elsewhere a key is a tensor such as ``torch.tensor(0)``.
"""

from .data.random import bernoulli, normal, uniform
from .links.sampling import (
    box,
    l1_ball,
    l1_sphere,
    l2_ball,
    l2_sphere,
    linf_ball,
    linf_sphere,
    simplex,
)

__all__ = [
    "bernoulli",
    "box",
    "l1_ball",
    "l1_sphere",
    "l2_ball",
    "l2_sphere",
    "linf_ball",
    "linf_sphere",
    "normal",
    "simplex",
    "uniform",
]
