"""Functional gradient transforms for PyTorch: pure links, composed by `chain`, in three homes."""

from . import optim
from ._rows import to_batch
from .base import GradientTransformation, apply_updates
from .combine import chain, identity, named_chain
from .frank_wolfe import (
    frank_wolfe_step,
    l1_oracle,
    l1q_oracle,
    l2_oracle,
    linf_oracle,
    one_hot_sign,
)
from .link import elementwise, rowwise, treewise
from .projections import (
    box,
    l1_ball,
    l2_ball,
    linf_ball,
    project_box,
    project_l1_ball,
    project_l2_ball,
    project_linf_ball,
    project_simplex,
    simplex,
)
from .torch_optim import from_torch
from .transforms import (
    bias,
    clamp,
    clip_by_global_norm,
    clip_by_norm,
    nan_to_num,
    normalize,
    scale,
    scale_bias,
    sign,
    top_q,
)

__version__ = "0.1.0"
__all__ = [
    "GradientTransformation",
    "apply_updates",
    "bias",
    "box",
    "chain",
    "clamp",
    "clip_by_global_norm",
    "clip_by_norm",
    "elementwise",
    "frank_wolfe_step",
    "from_torch",
    "identity",
    "l1_ball",
    "l1_oracle",
    "l1q_oracle",
    "l2_ball",
    "l2_oracle",
    "linf_ball",
    "linf_oracle",
    "named_chain",
    "nan_to_num",
    "normalize",
    "one_hot_sign",
    "optim",
    "project_box",
    "project_l1_ball",
    "project_l2_ball",
    "project_linf_ball",
    "project_simplex",
    "rowwise",
    "scale",
    "scale_bias",
    "sign",
    "simplex",
    "to_batch",
    "top_q",
    "treewise",
]
