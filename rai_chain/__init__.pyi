"""Made by `make stubs`: the signatures that decorators and declarations make."""

from typing import Any, Literal, TypeAlias

from torch import Tensor

from . import attacks as attacks
from . import optim as optim
from . import perturbations as perturbations
from . import plot as plot
from . import random as random
from . import solve as solve
from .core.chain import chain as chain
from .core.chain import named_chain as named_chain
from .core.define import elementwise as elementwise
from .core.define import leafwise as leafwise
from .core.define import rowwise as rowwise
from .core.define import treewise as treewise
from .core.foreign import stateless as stateless
from .core.link import FunctionLink
from .core.link import Link as Link
from .core.pipeline import GradientTransformation as GradientTransformation
from .core.wrapper import Wrapper as Wrapper
from .data.hyper import Flag as Flag
from .data.hyper import Range as Range
from .data.hyper import Schedule
from .data.rows import ParamNdim
from .data.rows import to_batch as to_batch
from .links.adam import adabelief as adabelief
from .links.adam import adam as adam
from .links.adam import adamax as adamax
from .links.adam import adamw as adamw
from .links.adam import adan as adan
from .links.adam import nadam as nadam
from .links.adam import radam as radam
from .links.adam import yogi as yogi
from .links.affine import affine as affine
from .links.affine import project_affine as project_affine
from .links.apgd import apgd as apgd
from .links.averages import averaged_params as averaged_params
from .links.averages import incremental_update as incremental_update
from .links.averages import periodic_update as periodic_update
from .links.clipping import per_example_global_norm_clip as per_example_global_norm_clip
from .links.cycles import cosine_onecycle_schedule as cosine_onecycle_schedule
from .links.cycles import join_schedules as join_schedules
from .links.cycles import linear_onecycle_schedule as linear_onecycle_schedule
from .links.cycles import sgdr_schedule as sgdr_schedule
from .links.cycles import warmup_constant_schedule as warmup_constant_schedule
from .links.cycles import warmup_cosine_decay_schedule as warmup_cosine_decay_schedule
from .links.cycles import warmup_exponential_decay_schedule as warmup_exponential_decay_schedule
from .links.cycles import warmup_stable_decay_schedule as warmup_stable_decay_schedule
from .links.descent import apply_updates as apply_updates
from .links.feedback import error_feedback as error_feedback
from .links.feedback import momentum_correction as momentum_correction
from .links.from_torch import from_torch as from_torch
from .links.layerwise import lamb as lamb
from .links.layerwise import lars as lars
from .links.matrices import adafactor as adafactor
from .links.matrices import muon as muon
from .links.matrix_sets import project_group_l1_ball as project_group_l1_ball
from .links.matrix_sets import project_nuclear_ball as project_nuclear_ball
from .links.matrix_sets import project_orthogonal as project_orthogonal
from .links.optimizers import adadelta as adadelta
from .links.optimizers import adagrad as adagrad
from .links.optimizers import lion as lion
from .links.optimizers import rmsprop as rmsprop
from .links.optimizers import rprop as rprop
from .links.optimizers import sgd as sgd
from .links.parameter_free import polyak_sgd as polyak_sgd
from .links.parameter_free import prodigy as prodigy
from .links.parts import freeze as freeze
from .links.parts import masked as masked
from .links.parts import multi_transform as multi_transform
from .links.parts import partition as partition
from .links.parts import selective_transform as selective_transform
from .links.projections import project_box as project_box
from .links.projections import project_l1_ball as project_l1_ball
from .links.projections import project_l2_ball as project_l2_ball
from .links.projections import project_linf_ball as project_linf_ball
from .links.projections import project_simplex as project_simplex
from .links.record import global_norm as global_norm
from .links.record import monitor as monitor
from .links.record import record as record
from .links.record import records as records
from .links.record import sparsity as sparsity
from .links.schedule_free import schedule_free as schedule_free
from .links.schedules import constant_schedule as constant_schedule
from .links.schedules import cosine_decay_schedule as cosine_decay_schedule
from .links.schedules import exponential_decay as exponential_decay
from .links.schedules import inverse_sqrt_schedule as inverse_sqrt_schedule
from .links.schedules import linear_schedule as linear_schedule
from .links.schedules import piecewise_constant_schedule as piecewise_constant_schedule
from .links.schedules import piecewise_interpolate_schedule as piecewise_interpolate_schedule
from .links.schedules import polynomial_schedule as polynomial_schedule
from .links.sharpness import sam as sam
from .links.states import tree_get as tree_get
from .links.states import tree_set as tree_set
from .links.surfaces import project_halfspace as project_halfspace
from .links.surfaces import project_hyperplane as project_hyperplane
from .links.surfaces import project_l1_sphere as project_l1_sphere
from .links.surfaces import project_l2_sphere as project_l2_sphere
from .links.surfaces import project_non_negative as project_non_negative
from .links.wrappers import accumulate as accumulate
from .links.wrappers import apply_if_finite as apply_if_finite
from .links.wrappers import conditionally as conditionally
from .links.wrappers import conditionally_mask as conditionally_mask
from .links.wrappers import lookahead as lookahead
from .links.wrappers import skip_large_updates as skip_large_updates
from .links.wrappers import skip_not_finite as skip_not_finite

__version__: str
Hyper: TypeAlias = float | Tensor | Schedule | dict[str, Any] | list[Any] | tuple[Any, ...]

def adaptive_grad_clip(
    clipping: Hyper, eps: Hyper = 0.001, *, param_ndim: ParamNdim = ...
) -> FunctionLink:
    """Scale each row down to a fraction of the norm of its parameters; `update` needs `params`."""

def add_decayed_weights(weight_decay: Hyper = 0.0) -> FunctionLink:
    """Add `weight_decay` times the parameter; `update` needs `params`."""

def add_noise(
    eta: Hyper | None = None,
    gamma: Hyper = 0.55,
    std: Hyper | None = None,
    *,
    seed: int | Tensor = 0,
) -> FunctionLink:
    """Add normal noise, a function of (seed, step, leaf)."""

def add_updates() -> FunctionLink:
    """Step by adding the updates to the parameters, as a pipeline without a stepping link does."""

def bias(grad_bias: Hyper = 0.0) -> FunctionLink:
    """Add `grad_bias`."""

def box(low: Hyper | None = None, high: Hyper | None = None) -> FunctionLink:
    """Keep each element in [low, high]."""

def centralize(*, param_ndim: ParamNdim = ...) -> FunctionLink:
    """Subtract from each row its mean; a row of one element is left as it is."""

def clamp(clamp_min: Hyper | None = None, clamp_max: Hyper | None = None) -> FunctionLink:
    """Clamp each element to [clamp_min, clamp_max]; NaN stays."""

def clip(max_delta: Hyper) -> FunctionLink:
    """Clamp each element to ``[-max_delta, max_delta]``; NaN stays."""

def clip_by_block_rms(threshold: Hyper) -> FunctionLink:
    """Scale each leaf whose root mean square exceeds `threshold` down to it."""

def clip_by_global_norm(max_norm: Hyper, p: float = 2.0) -> FunctionLink:
    """Scale all leaves by one factor so that the p-norm of all their elements is <= `max_norm`."""

def clip_by_norm(max_norm: Hyper, p: float = 2.0, *, param_ndim: ParamNdim = ...) -> FunctionLink:
    """Scale each row whose p-norm exceeds `max_norm` down to it; the others keep their bits."""

def descend_and_decay(lr: Hyper = 0.001, weight_decay: Hyper = 0.0) -> FunctionLink:
    """Multiply by ``-lr``, and move the parameter to ``1 - lr * weight_decay`` times itself."""

def descend_within(lr: Hyper = 0.01, weight_decay: Hyper = 0.0) -> FunctionLink:
    """As `descend_and_decay`, with steps of no more than one over the root of their count."""

def differentially_private_aggregate(
    l2_norm_clip: Hyper, noise_multiplier: Hyper, *, seed: int | Tensor = 0
) -> FunctionLink:
    """Clip the gradient of each example, sum, add normal noise, and divide by their number."""

def ef_sign(*, param_ndim: ParamNdim = ...) -> FunctionLink:
    """Replace each element by its sign, 0 for 0, times the mean magnitude of its row."""

def ema(decay: Hyper = 0.9, debias: bool = True) -> FunctionLink:
    """Replace updates by their exponential moving average."""

def feasible(low: Hyper | None = None, high: Hyper | None = None) -> FunctionLink:
    """Zero each element whose descent would leave an interval; `update` needs `params`."""

def frank_wolfe_step(
    lr: Hyper = 2.0,
    use_default_lr_schedule: bool = True,
    div_by_zero_eps: Hyper = 1.1754943508222875e-38,
    grad_scale: Hyper = 1.0,
) -> FunctionLink:
    """Step towards what an oracle answered: w <- (1 - a) w + a s, with a = lr / (lr + step)."""

def group_l1_ball(epsilon: Hyper, group_ndim: int | None = -1) -> FunctionLink:
    """Keep the sum of the Euclidean norms of the rows of each leaf at `epsilon` or below."""

def group_soft_threshold(threshold: Hyper, *, param_ndim: ParamNdim = ...) -> FunctionLink:
    """Shorten each row by `threshold`, and no further than to 0."""

def halfspace(normal: Hyper, offset: Hyper = 0.0, *, param_ndim: ParamNdim = ...) -> FunctionLink:
    """Move each row to the nearest one whose product with `normal` is at most `offset`."""

def hyperplane(normal: Hyper, offset: Hyper = 0.0, *, param_ndim: ParamNdim = ...) -> FunctionLink:
    """Move each row to the nearest one whose product with `normal` is `offset`."""

def identity() -> FunctionLink:
    """Return updates as they are."""

def l1_ball(
    epsilon: Hyper,
    center: Hyper | None = None,
    *,
    low: Hyper | None = None,
    high: Hyper | None = None,
    param_ndim: ParamNdim = ...,
) -> FunctionLink:
    """Keep each row within L1 distance `epsilon` of `center`: the nearest such point."""

def l1_oracle(
    epsilon: Hyper, center: Hyper | None = None, *, param_ndim: ParamNdim = ...
) -> FunctionLink:
    """Replace each row g by the point s of the L1 ball that minimises <g, s>: a signed vertex."""

def l1_sphere(
    epsilon: Hyper, center: Hyper | None = None, *, param_ndim: ParamNdim = ...
) -> FunctionLink:
    """Move each row to L1 distance `epsilon` of `center`: to the nearest such point."""

def l1q_oracle(
    q: Hyper, epsilon: Hyper, center: Hyper | None = None, *, param_ndim: ParamNdim = ...
) -> FunctionLink:
    """Replace each row g by -epsilon times the L1-normalised signs of its largest elements."""

def l2_ball(
    epsilon: Hyper,
    center: Hyper | None = None,
    *,
    low: Hyper | None = None,
    high: Hyper | None = None,
    param_ndim: ParamNdim = ...,
) -> FunctionLink:
    """Keep each row within Euclidean distance `epsilon` of `center`."""

def l2_oracle(
    epsilon: Hyper, center: Hyper | None = None, *, param_ndim: ParamNdim = ...
) -> FunctionLink:
    """Replace each row g by the point s of the L2 ball that minimises <g, s>."""

def l2_sphere(
    epsilon: Hyper, center: Hyper | None = None, *, param_ndim: ParamNdim = ...
) -> FunctionLink:
    """Move each row to Euclidean distance `epsilon` of `center`; from there, to one such point."""

def linf_ball(
    epsilon: Hyper,
    center: Hyper | None = None,
    *,
    low: Hyper | None = None,
    high: Hyper | None = None,
) -> FunctionLink:
    """Keep each element within `epsilon` of `center`."""

def linf_oracle(epsilon: Hyper, center: Hyper | None = None) -> FunctionLink:
    """Replace g by the point s of the Linf ball that minimises <g, s>."""

def nan_to_num(
    nan: float = 0.0, posinf: float | None = None, neginf: float | None = None
) -> FunctionLink:
    """Replace NaN by `nan`, inf by `posinf` and -inf by `neginf`."""

def negate() -> FunctionLink:
    """Change the sign, so that what follows climbs: `maximize` of torch's optimizers."""

def non_negative() -> FunctionLink:
    """Keep each element at 0 or above; NaN stays."""

def normalize(
    p: float = 2.0, div_by_zero_eps: Hyper = 1.1754943508222875e-38, *, param_ndim: ParamNdim = ...
) -> FunctionLink:
    """Divide each row by max(its p-norm, `div_by_zero_eps`); a zero row stays zero."""

def normalize_by_update_norm(scale_factor: Hyper = 1.0, eps: Hyper = 1e-06) -> FunctionLink:
    """Divide all leaves by the Euclidean norm of all their elements."""

def normalize_std(
    eps: Hyper = 1.1754943508222875e-38, *, param_ndim: ParamNdim = ...
) -> FunctionLink:
    """Divide each row by its standard deviation; one whose deviation is below `eps` stays."""

def nuclear_ball(epsilon: Hyper) -> FunctionLink:
    """Keep the sum of the singular values of each matrix at `epsilon` or below."""

def one_hot_sign(*, param_ndim: ParamNdim = ...) -> FunctionLink:
    """Keep the sign of the largest magnitude of each row, the first among equals; zero the rest."""

def orthogonal() -> FunctionLink:
    """Replace each matrix by the nearest one with orthonormal rows, or columns if it is tall."""

def params_ema(decay: Hyper = 0.999) -> FunctionLink:
    """Keep an exponential moving average of the parameters, which stay; see `averaged_params`."""

def qsgd(levels: Hyper, *, param_ndim: ParamNdim = ..., seed: int | Tensor = 0) -> FunctionLink:
    """Round each magnitude, as a part of the row's norm, up or down to one of some levels."""

def random_k(k: Hyper, *, param_ndim: ParamNdim = ..., seed: int | Tensor = 0) -> FunctionLink:
    """Keep k elements of each row, drawn at random, times D / k; zero the rest."""

def scale(grad_scale: Hyper = 1.0) -> FunctionLink:
    """Multiply by `grad_scale`."""

def scale_bias(grad_scale: Hyper = 1.0, grad_bias: Hyper = 0.0) -> FunctionLink:
    """Multiply by `grad_scale`, then add `grad_bias`."""

def scale_by_adadelta(rho: Hyper = 0.9, eps: Hyper = 1e-06) -> FunctionLink:
    """Divide by the root of the mean of the squares, times that of the results before."""

def scale_by_adam(betas: tuple[Hyper, ...] = ..., eps: Hyper = 1e-08) -> FunctionLink:
    """Divide the mean of the gradients by the root of the mean of their squares."""

def scale_by_adamax(betas: tuple[Hyper, ...] = ..., eps: Hyper = 1e-08) -> FunctionLink:
    """Divide the mean of the gradients by the largest of them, which decays."""

def scale_by_adan(
    betas: tuple[Hyper, ...] = ..., eps: Hyper = 1e-08, eps_root: Hyper = 0.0
) -> FunctionLink:
    """Divide means of the gradients and of their changes by the root of a mean of squares."""

def scale_by_amsgrad(betas: tuple[Hyper, ...] = ..., eps: Hyper = 1e-08) -> FunctionLink:
    """As `scale_by_adam`, with the largest mean of squares so far."""

def scale_by_belief(
    betas: tuple[Hyper, ...] = ..., eps: Hyper = 1e-16, eps_root: Hyper = 1e-16
) -> FunctionLink:
    """Divide the mean of the gradients by the root of the mean of their squared distance to it."""

def scale_by_factored_rms(beta2_decay: Hyper = -0.8, eps: Hyper | None = None) -> FunctionLink:
    """Divide by the root of the mean of squares, kept for rows and columns of a matrix only."""

def scale_by_learning_rate(lr: Hyper = 0.001) -> FunctionLink:
    """Multiply by ``-lr``: what descends when it is added to the parameter."""

def scale_by_lion(betas: tuple[Hyper, ...] = ...) -> FunctionLink:
    """Return the sign of a mean of the gradients; NaN stays NaN."""

def scale_by_muon(
    momentum: Hyper = 0.95,
    nesterov: bool = True,
    eps: Hyper = 1e-07,
    ns_steps: int = 5,
    adjust_lr_fn: Literal["original", "match_rms_adamw"] = "original",
) -> FunctionLink:
    """Replace each matrix by the orthogonal part of a mean of its gradients, about."""

def scale_by_nadam(
    betas: tuple[Hyper, ...] = ..., eps: Hyper = 1e-08, momentum_decay: Hyper = 0.004
) -> FunctionLink:
    """As `scale_by_adam`, with a mean that looks ahead and whose decay grows to `beta1`."""

def scale_by_param_block_norm(min_scale: Hyper = 0.001) -> FunctionLink:
    """Multiply each leaf by the norm of its parameter; `update` needs `params`."""

def scale_by_param_block_rms(min_scale: Hyper = 0.001) -> FunctionLink:
    """Multiply each leaf by the root mean square of its parameter; `update` needs `params`."""

def scale_by_polyak(
    max_learning_rate: Hyper = 1.0,
    f_min: Hyper = 0.0,
    eps: Hyper = 0.0,
    variant: Literal["sps", "sps+"] = "sps",
) -> FunctionLink:
    """Multiply by Polyak's step size, which follows from the loss; `update` needs `value`."""

def scale_by_radam(betas: tuple[Hyper, ...] = ..., eps: Hyper = 1e-08) -> FunctionLink:
    """As `scale_by_adam`, with the root rectified for its few samples, left out in the first steps."""

def scale_by_rms(alpha: Hyper = 0.99, eps: Hyper = 1e-08) -> FunctionLink:
    """Divide by the root of the mean of the squares of the gradients."""

def scale_by_rprop(
    init_step_size: Hyper = 0.01,
    eta_minus: Hyper = 0.5,
    eta_plus: Hyper = 1.2,
    min_step_size: Hyper = 1e-06,
    max_step_size: Hyper = 50.0,
) -> FunctionLink:
    """Replace each element by its sign times a step size, which grows until the sign turns."""

def scale_by_rss(
    initial_accumulator_value: Hyper = 0.0, eps: Hyper = 1e-10, lr_decay: Hyper = 0.0
) -> FunctionLink:
    """Divide by the root of the sum of the squares of the gradients."""

def scale_by_stddev(alpha: Hyper = 0.99, eps: Hyper = 1e-08) -> FunctionLink:
    """Divide by the standard deviation of the gradients, both moments with decay."""

def scale_by_trust_ratio(
    min_norm: Hyper = 0.0, trust_coefficient: Hyper = 1.0, eps: Hyper = 0.0
) -> FunctionLink:
    """Scale each leaf to the norm of its parameter; `update` needs `params`."""

def scale_by_yogi(
    betas: tuple[Hyper, ...] = ..., eps: Hyper = 0.001, initial_accumulator_value: Hyper = 1e-06
) -> FunctionLink:
    """As `scale_by_adam`, with a mean of squares that moves by no more than a square."""

def set_to_zero() -> FunctionLink:
    """Replace each element by 0, NaN too: what freezes a parameter, to the bit."""

def sign() -> FunctionLink:
    """Replace each element by its sign: -1, 0 or 1; NaN stays NaN."""

def simplex(scale: Hyper = 1.0, *, param_ndim: ParamNdim = ...) -> FunctionLink:
    """Replace each row by the nearest one whose elements are >= 0 and sum to `scale`."""

def soft_threshold(threshold: Hyper) -> FunctionLink:
    """Move each parameter towards 0 by `threshold`, and no further; NaN stays."""

def terngrad(*, param_ndim: ParamNdim = ..., seed: int | Tensor = 0) -> FunctionLink:
    """Replace each element by 0 or the signed largest magnitude of its row, at random."""

def threshold(threshold: Hyper) -> FunctionLink:
    """Zero each element whose magnitude is below a threshold; NaN stays."""

def top_k(k: Hyper, *, param_ndim: ParamNdim = ...) -> FunctionLink:
    """Keep the k elements of largest magnitude in each row, zero the rest."""

def top_q(
    q: Hyper,
    dq: Hyper = 0.0,
    at_least: Hyper = 0,
    *,
    param_ndim: ParamNdim = ...,
    seed: int | Tensor = 0,
) -> FunctionLink:
    """Keep exactly round((1 - q) * D) elements of largest magnitude in each row, zero the rest."""

def trace(momentum: Hyper = 0.9, dampening: Hyper = 0.0, nesterov: bool = False) -> FunctionLink:
    """Sum gradients with decay: ``b <- momentum * b + (1 - dampening) * grad``."""

def zero_nans() -> FunctionLink:
    """Replace NaN by 0; inf and -inf stay."""
