"""Functional gradient transforms for PyTorch: pure links, composed by `chain`, in three homes."""

from . import optim
from .core.chain import chain, named_chain
from .core.link import elementwise, rowwise, treewise
from .core.pipeline import GradientTransformation, apply_updates
from .data.rows import to_batch
from .links.adaptive import scale_by_rms, scale_by_stddev
from .links.averages import ema
from .links.descent import (
    add_decayed_weights,
    add_updates,
    descend_and_decay,
    negate,
    scale_by_learning_rate,
)
from .links.frank_wolfe import (
    frank_wolfe_step,
    l1_oracle,
    l1q_oracle,
    l2_oracle,
    linf_oracle,
    one_hot_sign,
)
from .links.from_torch import from_torch
from .links.moments import scale_by_adam, scale_by_amsgrad
from .links.momentum import scale_by_lion, trace
from .links.optimizers import adam, adamw, lion, rmsprop, sgd
from .links.projections import (
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
from .links.record import global_norm, record, records, sparsity
from .links.schedules import (
    constant_schedule,
    cosine_decay_schedule,
    exponential_decay,
    join_schedules,
    linear_schedule,
    piecewise_constant_schedule,
    polynomial_schedule,
    warmup_cosine_decay_schedule,
)
from .links.transforms import (
    add_noise,
    bias,
    centralize,
    clamp,
    clip_by_global_norm,
    clip_by_norm,
    identity,
    nan_to_num,
    normalize,
    scale,
    scale_bias,
    sign,
    top_q,
)
from .links.wrappers import (
    accumulate,
    apply_if_finite,
    conditionally,
    error_feedback,
    lookahead,
    masked,
    partition,
)

__version__ = "0.1.0"
__all__ = [
    "GradientTransformation",
    "accumulate",
    "adam",
    "adamw",
    "add_decayed_weights",
    "add_noise",
    "add_updates",
    "apply_if_finite",
    "apply_updates",
    "bias",
    "box",
    "centralize",
    "chain",
    "clamp",
    "clip_by_global_norm",
    "clip_by_norm",
    "conditionally",
    "constant_schedule",
    "cosine_decay_schedule",
    "descend_and_decay",
    "elementwise",
    "ema",
    "error_feedback",
    "exponential_decay",
    "frank_wolfe_step",
    "from_torch",
    "global_norm",
    "identity",
    "join_schedules",
    "l1_ball",
    "l1_oracle",
    "l1q_oracle",
    "l2_ball",
    "l2_oracle",
    "linear_schedule",
    "linf_ball",
    "linf_oracle",
    "lion",
    "lookahead",
    "masked",
    "named_chain",
    "nan_to_num",
    "negate",
    "normalize",
    "one_hot_sign",
    "optim",
    "partition",
    "piecewise_constant_schedule",
    "polynomial_schedule",
    "project_box",
    "project_l1_ball",
    "project_l2_ball",
    "project_linf_ball",
    "project_simplex",
    "record",
    "records",
    "rmsprop",
    "rowwise",
    "scale",
    "scale_bias",
    "scale_by_adam",
    "scale_by_amsgrad",
    "scale_by_learning_rate",
    "scale_by_lion",
    "scale_by_rms",
    "scale_by_stddev",
    "sgd",
    "sign",
    "simplex",
    "sparsity",
    "to_batch",
    "top_q",
    "trace",
    "treewise",
    "warmup_cosine_decay_schedule",
]
