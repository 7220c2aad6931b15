"""Wrappers: links around pipelines, and what they are written with."""

from .core.wrapper import Wrapper
from .data.hyper import Flag, Range
from .data.leaves import both, choose, remember, zeros
from .links.apgd import apgd
from .links.feedback import error_feedback, momentum_correction
from .links.parts import freeze, masked, multi_transform, partition, selective_transform
from .links.wrappers import (
    accumulate,
    apply_if_finite,
    conditionally,
    conditionally_mask,
    lookahead,
)

__all__ = [
    "Flag",
    "Range",
    "Wrapper",
    "accumulate",
    "apgd",
    "apply_if_finite",
    "both",
    "choose",
    "conditionally",
    "conditionally_mask",
    "error_feedback",
    "freeze",
    "lookahead",
    "masked",
    "momentum_correction",
    "multi_transform",
    "partition",
    "remember",
    "selective_transform",
    "zeros",
]
