"""optax as an oracle: every name that both have, on updates, parameters and states.

A case makes, from a random generator and a tree of parameters, optax's transformation and ours.
Both get the same gradients. optax in float64 is the truth for ours in float64, for ours in float32
and for optax in float32; an error is the largest difference over the largest magnitude of a leaf,
and NaN and inf must agree.
"""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

import rai_chain as rc

if sys.version_info < (3, 11):
    pytest.skip("the jax that optax needs is for Python 3.11 and newer", allow_module_level=True)

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
import jax
import jax.numpy as jnp
import optax
import optax.contrib
from optax import projections

INF, F32, F64 = float("inf"), np.float32, np.float64
STEPS, TRIALS = 40, 2

# What differs on purpose: a case, or a schedule with its arguments or at steps of a kind -> why.
DIFFERENCES = {
    "adagrad, eps": "eps is added to the root, as in torch; optax's below it",
    "nadam": "the momentum has torch's schedule; optax's has none",
    "rprop": "as torch; optax 0.2.8 makes the update of the step before",
    "scale_by_amsgrad": "the largest square before it is debiased, as in torch; optax's after",
    "rmsprop, schedule": "the rate multiplies the sum of updates, as in torch; optax sums with it",
    "cosine_decay_schedule at negative": "constant before step 0; optax mirrors the cosine",
    "cosine_onecycle_schedule at negative": "constant before step 0; optax is 0",
    "exponential_decay(1.0, 3, 0.0)": "decays to 0; optax is constant at rate 0",
    "linear_onecycle_schedule at negative": "constant before step 0; optax is 0",
    "piecewise_interpolate_schedule at negative": "constant before step 0; optax is 0",
    "warmup_cosine_decay_schedule(0.5, 0.0, 4, 10, 0.2)": (
        "ends at end_value; optax ends at 0 where the peak is 0"
    ),
}
# Names of both that are not compared -> why.
LEFT_OUT = {
    "adafactor": "torch is its oracle",
    "muon": "torch is its oracle",
    "scale_by_factored_rms": "as adafactor",
    "scale_by_muon": "as muon",
    "scale_by_rprop": "as rprop",
    "scale_by_rss": "as adagrad",
    "GradientTransformation": "a type",
    **dict.fromkeys(
        ("polyak_sgd", "prodigy", "sam", "scale_by_polyak", "schedule_free"),
        "asks for more than a gradient: test_optax_contrib.py",
    ),
    "differentially_private_aggregate": "compared without noise: test_optax_contrib.py",
    "monitor": "keeps them as record does, which tests/links/test_wrappers.py reads",
    "add_noise": "draws other numbers, of the variance that its own test asks for",
    "perturbations": "rai-toolbox's, where optax has perturbed optimizers",
    "join_schedules": "is what schedules of several parts are made of",
}


# ------------------------------------------------------------------ trees, errors


def to_jax(tree: Any, dtype: Any) -> Any:
    return tree_map(lambda x: jnp.asarray(x, dtype), tree)


def to_torch(tree: Any, dtype: Any) -> Any:
    return tree_map(lambda x: torch.tensor(np.asarray(x, dtype)), tree)


def error(found: Any, true: Any) -> float:
    """The largest difference of two trees over the largest magnitude of its leaf."""
    worst = 0.0
    for a, b in zip(tree_leaves(found), tree_leaves(true), strict=True):
        a, b = np.asarray(a, F64), np.asarray(b, F64)
        differ = ~((a == b) | (np.isnan(a) & np.isnan(b)))
        if differ.any():
            with np.errstate(invalid="ignore"):
                difference = np.abs(a - b)[differ].max()
            top = np.abs(b[np.isfinite(b)]).max(initial=1e-300)
            worst = max(worst, difference / top if np.isfinite(difference) else INF)
    return worst


def wide(schedule: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """At an int32 step optax's schedules are float32, even with x64."""
    return lambda count: schedule(jnp.asarray(count, float))


# ------------------------------------------------------------------ cases


class Draw:
    """Random hyperparameters, as attributes and in ranges."""

    def __init__(self, name: str, trial: int) -> None:
        self.random = np.random.default_rng([trial, *map(ord, name)])
        shapes = {"a": {"k": (2, 3, 2, 2), "w": (3, 5)}, "b": (4,), "l": [(7,), (1, 3)]}
        is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
        self.params = tree_map(self.leaf, shapes, is_leaf=is_shape)
        self.mask = tree_map(lambda x: self.flag(), self.params)
        self.betas = self.between(0.5, 0.99), self.between(0.9, 0.9999)
        eps = self.power(-8, -2)
        self.adam, self.paired = (*self.betas, eps), (self.betas, eps)
        self.lr, self.x, self.decay = self.power(-4, -0.5), self.power(-1, 1), self.power(-4, -1)

    def leaf(self, shape: tuple[int, ...], low: float = -2, high: float = 2) -> Any:
        return F32(self.random.standard_normal(shape) * self.power(low, high))

    def between(self, low: float, high: float) -> float:
        return float(self.random.uniform(low, high))

    def power(self, low: float, high: float) -> float:
        return float(10 ** self.between(low, high))

    def whole(self, low: int, high: int) -> int:
        return int(self.random.integers(low, high))

    def flag(self) -> bool:
        return bool(self.random.integers(2))


@dataclass
class Case:
    """Two transformations and how they compare."""

    theirs: Any
    ours: Any
    states: dict[str, str] = field(default_factory=dict)  # our key of a state -> optax's field
    moves: bool = True  # else a link that steps, which rounds p + u, not u: the parameters only
    bad: float = 0.0  # the chance of a NaN or inf in a step
    positive: bool = False  # start at positive parameters
    slow: bool = False  # optax wraps the parameters of lookahead


TRACE = {"momentum_buffer": "trace"}
ADAM = {"exp_avg": "mu", "exp_avg_sq": "nu"}
RMS = {"square_avg": "nu", "grad_avg": "mu"}


def number(theirs: Any, ours: Any, **options: Any) -> Callable[[Draw], Case]:
    """A case of two factories that take one number."""
    return lambda d: Case(theirs(d.x), ours(d.x), **options)


def scheduled(d: Draw) -> Case:
    args = (d.lr, 9, 0.8, 3, True)
    theirs = optax.scale_by_learning_rate(wide(optax.exponential_decay(*args)))
    return Case(theirs, rc.scale_by_learning_rate(rc.exponential_decay(*args)))


def block_rms(d: Draw) -> Case:
    bound = tree_map(lambda x: d.x * x.size**0.5, d.params)
    return Case(optax.clip_by_block_rms(d.x), rc.clip_by_norm(bound, param_ndim=None))


def adaptive_clip(d: Draw) -> Case:
    """Theirs has weights as (inputs, outputs), and takes a vector as one row."""
    turn = partial(tree_map, lambda x: x.T)
    clipping, eps = d.power(-2, 0), d.power(-3, 0)
    inner = optax.adaptive_grad_clip(clipping, eps)
    theirs = optax.GradientTransformation(
        inner.init, lambda u, state, p: (turn(inner.update(turn(u), state, turn(p))[0]), state)
    )
    d.params = {"b": d.leaf((4,)), "w": d.leaf((3, 5))}
    row = rc.adaptive_grad_clip(clipping, eps, param_ndim=1)
    return Case(theirs, row)


def update_norm(d: Draw) -> Case:
    args = d.x, d.power(-8, -1)
    return Case(optax.normalize_by_update_norm(*args), rc.normalize_by_update_norm(*args))


def ema(d: Draw, debias: bool = True) -> Case:
    decay = 1 - d.power(-4, -0.3)
    return Case(optax.ema(decay, debias), rc.ema(decay, debias), {"ema": "ema"})


def trace(d: Draw) -> Case:
    momentum, nesterov = d.between(0.1, 0.99), d.flag()
    return Case(optax.trace(momentum, nesterov), rc.trace(momentum, 0.0, nesterov), TRACE)


def decayed(d: Draw) -> Case:
    theirs, ours = optax.add_decayed_weights, rc.add_decayed_weights
    args = (0.1, 0.01, 30)
    return [
        Case(theirs(d.lr), ours(d.lr)),
        Case(theirs(0.1, d.mask), rc.masked(ours(0.1), d.mask)),
        Case(theirs(wide(optax.linear_schedule(*args))), ours(rc.linear_schedule(*args))),
    ][d.whole(0, 3)]


def nonnegative(d: Draw) -> Case:
    theirs = optax.chain(optax.scale(-0.1), optax.keep_params_nonnegative())
    ours = rc.chain(rc.scale(-0.1), rc.box(low=0.0))
    return Case(theirs, ours, moves=False, positive=True)


def roots(theirs: Any, ours: Any) -> Callable[[Draw], Case]:
    return lambda d: Case(
        theirs(d.betas[0], d.adam[2], eps_in_sqrt=False), ours(d.betas[0], d.adam[2]), RMS
    )


def sgd(d: Draw) -> Case:
    if d.flag():
        return Case(optax.sgd(d.lr), rc.sgd(d.lr))
    m, nesterov = d.between(0.1, 0.99), d.flag()
    return Case(optax.sgd(d.lr, m, nesterov), rc.sgd(d.lr, m, nesterov=nesterov), TRACE)


def adam(d: Draw) -> Case:
    args = d.lr, 30, 0.1
    warm = 0.0, d.lr, 9, 30, d.lr / 7
    penalty = optax.add_decayed_weights(d.decay)
    theirs, ours = [
        (optax.adam(d.lr, *d.adam), rc.adam(d.lr, *d.paired)),
        (
            optax.adam(wide(optax.cosine_decay_schedule(*args)), *d.adam),
            rc.adam(rc.cosine_decay_schedule(*args), *d.paired),
        ),
        (
            optax.adam(wide(optax.warmup_cosine_decay_schedule(*warm)), *d.adam),
            rc.adam(rc.warmup_cosine_decay_schedule(*warm), *d.paired),
        ),
        (
            optax.chain(penalty, optax.adam(d.lr, *d.adam)),
            rc.adam(d.lr, *d.paired, weight_decay=d.decay),
        ),
    ][d.whole(0, 4)]
    return Case(theirs, ours, ADAM)


def adamw(d: Draw) -> Case:
    theirs = partial(optax.adamw, d.lr, *d.adam, weight_decay=d.decay)
    if d.flag():
        return Case(theirs(), rc.adamw(d.lr, *d.paired, d.decay), ADAM, moves=False)
    masked = rc.masked(rc.add_decayed_weights(d.decay), d.mask)
    ours = rc.chain(rc.scale_by_adam(*d.paired), masked, rc.scale_by_learning_rate(d.lr))
    return Case(theirs(mask=d.mask), ours, ADAM)


def rmsprop(d: Draw) -> Case:
    centered, momentum = d.flag(), d.between(0.1, 0.95) if d.flag() else None
    theirs = optax.rmsprop(
        d.lr, d.betas[0], d.adam[2], eps_in_sqrt=False, centered=centered, momentum=momentum
    )
    ours = rc.rmsprop(d.lr, d.betas[0], d.adam[2], momentum=momentum or 0.0, centered=centered)
    return Case(theirs, ours, RMS)


def scheduled_rmsprop(d: Draw) -> Case:
    rate, args = (0.1, 0.01, 30), (d.betas[0], d.adam[2])
    theirs = optax.rmsprop(
        wide(optax.linear_schedule(*rate)), *args, eps_in_sqrt=False, momentum=0.9
    )
    return Case(theirs, rc.rmsprop(rc.linear_schedule(*rate), *args, momentum=0.9), RMS)


def lion(d: Draw) -> Case:
    args = d.lr, d.between(0.5, 0.99), d.between(0.5, 0.999)
    decay = d.decay if d.flag() else 0.0
    theirs = optax.lion(*args, weight_decay=decay)
    return Case(theirs, rc.lion(args[0], args[1:], decay), {"exp_avg": "mu"}, moves=False)


def moments(theirs: Any, ours: Any, **states: str) -> Callable[[Draw], Case]:
    """A case of beta1, beta2, eps."""
    return lambda d: Case(theirs(*d.adam), ours(*d.paired), states or ADAM)


def rates(theirs: Any, ours: Any, **states: str) -> Callable[[Draw], Case]:
    """A case of a learning rate, beta1, beta2, eps."""
    return lambda d: Case(theirs(d.lr, *d.adam), ours(d.lr, *d.paired), states or ADAM)


def radam(d: Draw) -> Case:
    """With eps = 0, as theirs is added after the root is debiased, torch's before."""
    return Case(optax.radam(d.lr, *d.betas, 0.0), rc.radam(d.lr, d.betas, 0.0), ADAM)


def adan(d: Draw, link: bool = False) -> Case:
    args = (*d.betas, d.between(0.5, 0.99), d.power(-8, -2), d.power(-8, -2))
    states = {"exp_avg": "m", "exp_avg_diff": "v", "exp_avg_sq": "n", "previous_grad": "g"}
    if link:
        return Case(optax.scale_by_adan(*args), rc.scale_by_adan(args[:3], *args[3:]), states)
    ours = rc.adan(d.lr, args[:3], *args[3:], weight_decay=d.decay)
    return Case(optax.adan(d.lr, *args, d.decay), ours, states, moves=False)


def adadelta(d: Draw) -> Case:
    args = d.lr, d.betas[0], d.power(-8, -2)
    states = {"square_avg": "e_g", "acc_delta": "e_x"}
    return Case(optax.adadelta(*args), rc.adadelta(*args), states)


def rss(d: Draw) -> Case:
    """With eps = 0, as theirs is in the root, torch's outside."""
    start = d.power(-3, 0)
    states = {"sum": "sum_of_squares"}
    return Case(optax.adagrad(d.lr, start, 0.0), rc.adagrad(d.lr, 0.0, 0.0, start, 0.0), states)


def trust_ratio(d: Draw) -> Case:
    args = d.power(-3, 1), d.power(-3, 0), d.power(-3, 0)
    return Case(optax.scale_by_trust_ratio(*args), rc.scale_by_trust_ratio(*args))


def lamb(d: Draw) -> Case:
    theirs = optax.lamb(d.lr, *d.adam, weight_decay=d.decay)
    return Case(theirs, rc.lamb(d.lr, *d.paired, d.decay), ADAM)


def lars(d: Draw) -> Case:
    args = d.power(-3, 0), d.power(-3, 0)
    momentum = d.between(0.1, 0.99), d.flag()
    theirs = optax.lars(d.lr, d.decay, True, args[0], args[1], True, *momentum)
    return Case(theirs, rc.lars(d.lr, d.decay, *args, *momentum), TRACE)


def chains(d: Draw) -> Case:
    clip, inner = optax.clip(d.x), rc.clamp(-d.x, d.x)
    theirs = optax.named_chain(("c", optax.chain(clip, optax.trace(0.9))), ("s", optax.scale(-0.1)))
    ours = rc.named_chain(("c", rc.chain(inner, rc.trace(0.9))), ("s", rc.scale(-0.1)))
    return Case(theirs, ours)


def stateless(d: Draw) -> Case:
    decay = partial(tree_map, lambda u, p: u - 0.1 * p)
    return Case(optax.stateless(decay), rc.stateless(decay))


def masked(d: Draw) -> Case:
    if d.flag():
        theirs = optax.masked(optax.adam(0.1, *d.adam), d.mask)
        return Case(theirs, rc.masked(rc.adam(0.1, *d.paired), d.mask))
    wide_leaves = partial(tree_map, lambda x: x.ndim > 1)
    return Case(optax.masked(optax.scale(0.0), wide_leaves), rc.masked(rc.scale(0.0), wide_leaves))


def partition(d: Draw) -> Case:
    labels = tree_map(lambda m: "one" if m else "two", d.mask)
    theirs = {"one": optax.adam(d.lr, *d.adam), "two": optax.sgd(0.1, 0.9)}
    ours = {"one": rc.adam(d.lr, *d.paired), "two": rc.sgd(0.1, 0.9)}
    return Case(optax.partition(theirs, labels), rc.partition(ours, labels))


def if_finite(d: Draw) -> Case:
    n = d.whole(0, 3)
    ours = rc.apply_if_finite(rc.adam(0.1), n)
    return Case(optax.apply_if_finite(optax.adam(0.1), n), ours, bad=0.5)


def conditionally(d: Draw) -> Case:
    k, args = d.whole(2, 6), d.adam
    theirs = optax.conditionally_transform(optax.scale_by_adam(*args), lambda step: step % k != 0)
    return Case(
        theirs, rc.conditionally(rc.scale_by_adam(*d.paired), lambda _, step: step % k != 0)
    )


def multi_steps(d: Draw) -> Case:
    k, args, mean = d.whole(1, 5), (d.lr, d.lr / 9, 20), d.flag()
    inner = optax.adamw(wide(optax.linear_schedule(*args)))
    theirs = optax.MultiSteps(inner, k, mean, accumulator_dtype=None).gradient_transformation()
    inner = rc.adamw(rc.linear_schedule(*args), weight_decay=1e-4)
    return Case(theirs, rc.accumulate(inner, k, "mean" if mean else "sum"), moves=False)


def skipping(d: Draw) -> Case:
    """k as a schedule of the steps made, and calls that are skipped: NaN, inf, or too large."""
    ks, bound = lambda made: 1 + made % 3, d.power(-2, 6)
    skip, ours_skip = optax.skip_not_finite, rc.skip_not_finite
    if d.flag():
        skip = partial(optax.skip_large_updates, max_squared_norm=bound)
        ours_skip = partial(rc.skip_large_updates, max_squared_norm=bound)
    theirs = optax.MultiSteps(
        optax.adam(0.1, *d.adam), ks, should_skip_update_fn=skip, accumulator_dtype=None
    )
    ours = rc.accumulate(rc.adam(0.1, *d.paired), ks, skip=ours_skip, schedule_counts="steps")
    return Case(theirs.gradient_transformation(), ours, bad=0.3, moves=False)


def conditionally_mask(d: Draw) -> Case:
    k, args = d.whole(2, 6), d.adam
    theirs = optax.conditionally_mask(optax.adam(0.1, *args), lambda step: step % k != 0)
    return Case(theirs, rc.conditionally_mask(rc.adam(0.1, *d.paired), lambda _, n: n % k != 0))


def frozen(theirs: Any, ours: Any) -> Callable[[Draw], Case]:
    """A case of a mask behind an optimizer, or around one."""
    return lambda d: Case(
        theirs(optax.adam(d.lr, *d.adam), d.mask), ours(rc.adam(d.lr, *d.paired), d.mask)
    )


def lookahead(d: Draw) -> Case:
    args = d.whole(1, 5), d.between(0, 1)
    theirs = optax.lookahead(optax.adam(0.1, *d.adam), *args)
    return Case(theirs, rc.lookahead(rc.adam(0.1, *d.paired), *args), slow=True, moves=False)


CASES: dict[str, Callable[[Draw], Case]] = {
    "clamp": number(optax.clip, lambda x: rc.clamp(-x, x)),
    "scale": number(optax.scale, rc.scale),
    "scale_by_learning_rate": number(optax.scale_by_learning_rate, rc.scale_by_learning_rate),
    "scale_by_learning_rate, schedule": scheduled,
    "clip": number(optax.clip, rc.clip),
    "clip_by_block_rms": number(optax.clip_by_block_rms, rc.clip_by_block_rms),
    "adaptive_grad_clip": adaptive_clip,
    "normalize_by_update_norm": update_norm,
    "set_to_zero": lambda d: Case(optax.set_to_zero(), rc.set_to_zero(), bad=0.2),
    "zero_nans": lambda d: Case(optax.zero_nans(), rc.zero_nans(), bad=0.2),
    "sign": lambda d: Case(optax.scale_by_sign(), rc.sign()),
    "identity": lambda d: Case(optax.identity(), rc.identity()),
    "nan_to_num": lambda d: Case(optax.zero_nans(), rc.nan_to_num(0.0, INF, -INF), bad=0.2),
    "centralize": lambda d: Case(optax.centralize(), rc.centralize()),
    "clip_by_global_norm": number(optax.clip_by_global_norm, rc.clip_by_global_norm),
    "clip_by_global_norm, bad": number(optax.clip_by_global_norm, rc.clip_by_global_norm, bad=0.2),
    "clip_by_norm": block_rms,
    "trace": trace,
    "ema": ema,
    "ema, biased": partial(ema, debias=False),
    "add_decayed_weights": decayed,
    "box": nonnegative,
    "scale_by_adam": lambda d: Case(
        optax.scale_by_adam(*d.adam), rc.scale_by_adam(*d.paired), ADAM
    ),
    "scale_by_amsgrad": lambda d: Case(
        optax.scale_by_amsgrad(*d.adam), rc.scale_by_amsgrad(*d.paired)
    ),
    "scale_by_rms": roots(optax.scale_by_rms, rc.scale_by_rms),
    "scale_by_stddev": roots(optax.scale_by_stddev, rc.scale_by_stddev),
    "scale_by_lion": lambda d: Case(
        optax.scale_by_lion(*d.betas), rc.scale_by_lion(d.betas), {"exp_avg": "mu"}
    ),
    "scale_by_adamax": moments(
        optax.scale_by_adamax, rc.scale_by_adamax, exp_avg="mu", exp_inf="nu"
    ),
    "scale_by_radam": lambda d: Case(
        optax.scale_by_radam(*d.betas, 0.0), rc.scale_by_radam(d.betas, 0.0), ADAM
    ),
    "scale_by_belief": moments(
        optax.scale_by_belief, rc.scale_by_belief, exp_avg="mu", exp_avg_var="nu"
    ),
    "scale_by_yogi": moments(optax.scale_by_yogi, rc.scale_by_yogi),
    "scale_by_adan": partial(adan, link=True),
    "scale_by_trust_ratio": trust_ratio,
    "scale_by_param_block_norm": number(
        optax.scale_by_param_block_norm, rc.scale_by_param_block_norm
    ),
    "scale_by_param_block_rms": number(optax.scale_by_param_block_rms, rc.scale_by_param_block_rms),
    "adamax": rates(optax.adamax, rc.adamax, exp_avg="mu", exp_inf="nu"),
    "radam": radam,
    "adabelief": rates(optax.adabelief, rc.adabelief, exp_avg="mu", exp_avg_var="nu"),
    "yogi": rates(optax.yogi, rc.yogi),
    "adan": adan,
    "adadelta": adadelta,
    "scale_by_adadelta": lambda d: Case(
        optax.scale_by_adadelta(d.betas[0]), rc.scale_by_adadelta(d.betas[0])
    ),
    "adagrad": rss,
    "adagrad, eps": lambda d: Case(optax.adagrad(0.1, eps=0.1), rc.adagrad(0.1, 0, 0, 0.1, 0.1)),
    "nadam": rates(optax.nadam, rc.nadam),
    "rprop": lambda d: Case(optax.rprop(0.1), rc.rprop(0.1)),
    "lamb": lamb,
    "lars": lars,
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "rmsprop": rmsprop,
    "rmsprop, schedule": scheduled_rmsprop,
    "lion": lion,
    "chain, named_chain": chains,
    "stateless": stateless,
    "masked": masked,
    "partition, multi_transform": partition,
    "freeze": frozen(
        lambda tx, mask: optax.chain(tx, optax.freeze(mask)),
        lambda tx, mask: rc.chain(tx, rc.freeze(mask)),
    ),
    "selective_transform": frozen(
        lambda tx, mask: optax.selective_transform(tx, freeze_mask=mask),
        lambda tx, mask: rc.selective_transform(tx, freeze_mask=mask),
    ),
    "apply_if_finite": if_finite,
    "conditionally": conditionally,
    "accumulate": multi_steps,
    "accumulate, skip_not_finite, skip_large_updates": skipping,
    "conditionally_mask": conditionally_mask,
    "lookahead": lookahead,
}


# ------------------------------------------------------------------ transformations


def kept(state: Any, names: list[str]) -> dict[str, list[Any]]:
    """What a state keeps under each of the names, in order, wherever in the nest."""
    found: dict[str, list[Any]] = {name: [] for name in names}

    def search(part: Any) -> None:
        fields = part._asdict() if hasattr(part, "_asdict") else part
        if isinstance(fields, dict):
            for key, value in fields.items():
                if key in found:
                    found[key] += tree_leaves(value)
                else:
                    search(value)
        elif isinstance(fields, (list, tuple)):
            for value in fields:
                search(value)

    search(state)
    return found


def run_optax(case: Case, params: Any, grads: list[Any], dtype: Any) -> tuple[Any, Any, Any]:
    with jax.enable_x64(dtype is F64):
        params = to_jax(params, dtype)
        if case.slow:
            params = optax.LookaheadParams.init_synced(params)
        state, moves, update = case.theirs.init(params), [], jax.jit(case.theirs.update)
        for g in grads:
            updates, state = update(to_jax(g, dtype), state, params)
            params = optax.apply_updates(params, updates)
            moves.append(tree_map(np.asarray, updates.fast if case.slow else updates))
        return moves, params.fast if case.slow else params, kept(state, [*case.states.values()])


def run_ours(case: Case, params: Any, grads: list[Any], dtype: Any) -> tuple[Any, Any, Any]:
    params, moves = to_torch(params, dtype), []
    state = case.ours.init(params)
    for g in grads:
        updates, state = case.ours.update(to_torch(g, dtype), state, params=params)
        params = rc.apply_updates(params, updates)
        moves.append(updates)
    return moves, params, kept(state, [*case.states])


def draw_grads(d: Draw, bad: float) -> Iterator[Any]:
    for _ in range(STEPS):
        grads = tree_map(lambda x: d.leaf(x.shape, -3, 1), d.params)
        if d.random.random() < bad:
            grads["b"].flat[d.whole(0, 4)] = d.random.choice([np.nan, INF, -INF])
        yield grads


def errors(name: str, trial: int) -> tuple[float, float, float]:
    """Of ours in float64, ours in float32 and optax in float32."""
    d = Draw(name, trial)
    case = CASES[name](d)
    params = tree_map(np.abs, d.params) if case.positive else d.params
    grads = list(draw_grads(d, case.bad))
    moves, end, state = run_optax(case, params, grads, F64)
    found = []
    for run, dtype in ((run_ours, F64), (run_ours, F32), (run_optax, F32)):
        own_moves, own_end, own_state = run(case, params, grads, dtype)
        worst = error(own_end, end)
        if case.moves:
            worst = max(worst, *map(error, own_moves, moves))
        for key, field_name in case.states.items():
            own = own_state[key if run is run_ours else field_name]
            worst = max(worst, error(own, state[field_name]))
        found.append(worst)
    return found[0], found[1], found[2]


@pytest.mark.parametrize("trial", range(TRIALS))
@pytest.mark.parametrize("name", CASES)
def test_equals_optax(name: str, trial: int) -> None:
    double, single, theirs = errors(name, trial)
    if name in DIFFERENCES:
        assert double > 1e-3  # else it belongs in no list
    else:
        assert double < 1e-11
        assert single < max(1e-5, 3 * theirs)


# ------------------------------------------------------------------ schedules

NUMBERS: dict[str, Any] = {
    "steps": range(70),
    "fractions": np.arange(0, 60, 0.37),
    "negative": [-1, -3, -40],
    "huge": [10**6, 2**31 - 2, 2**31 + 5, 2**53],
}
CYCLES = [
    {"init_value": 0.0, "peak_value": 1.0, "warmup_steps": 5, "decay_steps": 20},
    {"init_value": 0.1, "peak_value": 0.5, "warmup_steps": 1, "decay_steps": 30, "exponent": 2.0},
]
SCHEDULES: dict[str, list[tuple[Any, ...]]] = {
    "constant_schedule": [(0.3,)],
    "linear_schedule": [(2.0, -1.0, 7), (0.1, 0.3, 20, 5)],
    "polynomial_schedule": [(2.0, 0.5, 3, 7, 2), (1.0, 0.0, 0.5, 33), (1.0, 0.2, 0, 9)],
    "cosine_decay_schedule": [(3.0, 8), (3.0, 40, 0.1, 2.0), (1.0, 5, 0.3, 0.0)],
    "exponential_decay": [
        (2.0, 4, 0.7),
        (2.0, 4, 0.7, 3, True),
        (2.0, 2, 0.5, 0, False, 0.3),
        (2.0, 9, 1.5, 3, False, 5.0),
        (1.0, 3, 0.0),
    ],
    "piecewise_constant_schedule": [
        (2.0, {9: 0.5, 4: 0.1}),
        (-1.0, {5: 0.0}),
        (2.0, None),
        (1.0, {0: 0.5}),
    ],
    "warmup_cosine_decay_schedule": [
        (0.5, 3.0, 4, 10, 0.2, 2.0),
        (0.0, 1.0, 10, 60),
        (0.5, 0.0, 4, 10, 0.2),
    ],
    "warmup_constant_schedule": [(0.5, 3.0, 4)],
    "warmup_exponential_decay_schedule": [
        (0.5, 3.0, 4, 6, 0.7),
        (0.5, 3.0, 4, 6, 0.7, 3, True, 0.4),
    ],
    "piecewise_interpolate_schedule": [
        ("linear", 2.0, {9: 0.5, 4: 3.0}),
        ("cosine", 2.0, {9: 0.5, 4: 3.0, 30: 0.0}),
        ("cosine", 2.0, {0: 0.5, 7: 3.0}),
        ("linear", 2.0, None),
    ],
    "linear_onecycle_schedule": [(50, 2.0), (33, 0.1, 0.2, 0.5, 3.0, 20.0)],
    "cosine_onecycle_schedule": [(50, 2.0), (33, 0.1, 0.2, 3.0, 20.0)],
    "sgdr_schedule": [(CYCLES,)],
}


def schedule_error(name: str, args: tuple[Any, ...], kind: str) -> float:
    numbers = list(NUMBERS[kind])
    with jax.enable_x64(True):
        theirs = np.asarray(jax.vmap(getattr(optax, name)(*args))(jnp.asarray(numbers, F64)))
    return error(getattr(rc, name)(*args)(torch.tensor(numbers)), theirs)


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize(
    ("name", "args"), [(name, args) for name, many in SCHEDULES.items() for args in many]
)
def test_schedule_equals_optax(name: str, args: tuple[Any, ...], kind: str) -> None:
    if not {f"{name}{args}", f"{name} at {kind}"} & set(DIFFERENCES):
        assert schedule_error(name, args, kind) < 1e-12


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_differs_where_the_list_says_so(name: str) -> None:
    for args in SCHEDULES[name]:
        if f"{name}{args}" in DIFFERENCES:
            assert max(schedule_error(name, args, kind) for kind in NUMBERS) > 1e-3
    for kind in NUMBERS:
        if f"{name} at {kind}" in DIFFERENCES:
            assert max(schedule_error(name, args, kind) for args in SCHEDULES[name]) > 1e-3


# ------------------------------------------------------------------ functions of arrays


def _as_row(tree: Any, library: Any) -> Any:
    """All leaves of a tree as one array of one dimension."""
    return library.concatenate([leaf.reshape(-1) for leaf in tree_leaves(tree)])


tree_hyperplane = partial(rc.project_hyperplane, param_ndim="tree")
tree_halfspace = partial(rc.project_halfspace, param_ndim="tree")


def across(x: torch.Tensor) -> torch.Tensor:
    """The vectors at a right angle to one, as rows."""
    return torch.linalg.svd(x.double().reshape(1, -1))[2][1:]


FUNCTIONS: dict[str, tuple[Any, Any]] = {  # optax's and ours, of an array and a positive number
    "project_l1_ball": (
        projections.projection_l1_ball,
        partial(rc.project_l1_ball, param_ndim=None),
    ),
    "project_l2_ball": (
        projections.projection_l2_ball,
        partial(rc.project_l2_ball, param_ndim=None),
    ),
    "project_linf_ball": (projections.projection_linf_ball, rc.project_linf_ball),
    "project_simplex": (
        projections.projection_simplex,
        partial(rc.project_simplex, param_ndim=None),
    ),
    **{
        f"{ours.__name__}, tree": (
            lambda x, s, theirs=theirs: _as_row(theirs({"a": x, "b": [x[0], x[:, 0]]}, s), jnp),
            lambda x, s, ours=ours: _as_row(
                ours({"a": x, "b": [x[0], x[:, 0]]}, s, param_ndim="tree"), torch
            ),
        )
        for theirs, ours in (
            (projections.projection_l1_ball, rc.project_l1_ball),
            (projections.projection_l2_ball, rc.project_l2_ball),
            (projections.projection_simplex, rc.project_simplex),
        )
    },
    "project_box": (
        lambda x, s: projections.projection_box(x, -s, 2 * s),
        lambda x, s: rc.project_box(x, -s, 2 * s),
    ),
    "project_box, hypercube": (
        projections.projection_hypercube,
        lambda x, s: rc.project_box(x, 0.0, s),
    ),
    "project_box, non-negative": (
        lambda x, s: projections.projection_non_negative(x),
        lambda x, s: rc.project_box(x, low=0.0),
    ),
    "project_non_negative": (
        lambda x, s: projections.projection_non_negative(x),
        lambda x, s: rc.project_non_negative(x),
    ),
    "project_l1_sphere": (
        projections.projection_l1_sphere,
        partial(rc.project_l1_sphere, param_ndim=None),
    ),
    "project_l2_sphere": (
        projections.projection_l2_sphere,
        partial(rc.project_l2_sphere, param_ndim=None),
    ),
    "project_hyperplane": (  # the way there, of which the far ones lose no digits
        lambda x, s: projections.projection_hyperplane([x, x[0]], [x[::-1], x[-1]], s)[0] - x,
        lambda x, s: (
            rc.project_hyperplane([x, x[0]], [x.flip(0), x[-1]], s, param_ndim="tree")[0] - x
        ),
    ),
    "project_halfspace": (
        lambda x, s: projections.projection_halfspace([x, x[0]], [x[::-1], x[-1]], -s)[0] - x,
        lambda x, s: (
            rc.project_halfspace([x, x[0]], [x.flip(0), x[-1]], -s, param_ndim="tree")[0] - x
        ),
    ),
    "project_affine, vector": (  # the points of a line, as the solutions of what is across it
        lambda x, s: projections.projection_vector(x, x[::-1]),
        lambda x, s: rc.project_affine(x, across(x.flip(0)), param_ndim=None),
    ),
    "normalize": (
        projections.projection_l2_sphere,
        lambda x, s: s * rc.normalize(2, param_ndim=None).map(x),
    ),
    "clip_by_norm": (
        lambda x, s: jax.vmap(lambda y: optax.clip_by_global_norm(s).update(y, None)[0])(x),
        lambda x, s: rc.clip_by_norm(s).map(x),
    ),
    "per_example_global_norm_clip": (
        lambda x, s: optax.per_example_global_norm_clip([x, x[:, 0]], s)[0][0],
        lambda x, s: rc.per_example_global_norm_clip([x, x[:, 0]], s)[0][0],
    ),
    "per_example_global_norm_clip, count": (
        lambda x, s: optax.per_example_global_norm_clip([x, x[:, 0]], s)[1],
        lambda x, s: rc.per_example_global_norm_clip([x, x[:, 0]], s)[1],
    ),
    "global_norm": (
        lambda x, s: optax.tree.norm({"a": x, "b": [x[0]]}),
        lambda x, s: rc.global_norm({"a": x, "b": [x[0]]}),
    ),
    "incremental_update": (
        lambda x, s: optax.incremental_update([x], [x[::-1]], s / 1e3)[0],
        lambda x, s: rc.incremental_update([x], [x.flip(0)], s / 1e3)[0],
    ),
    "periodic_update": (
        lambda x, s: optax.periodic_update([x], [x[::-1]], jnp.int32(s), 3)[0],
        lambda x, s: rc.periodic_update([x], [x.flip(0)], torch.tensor(int(s)), 3)[0],
    ),
    "apply_updates": (
        lambda x, s: optax.apply_updates([x], [x[::-1] * s])[0],
        lambda x, s: rc.apply_updates([x], [x.flip(0) * s])[0],
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_equals_optax(name: str) -> None:
    theirs, ours = FUNCTIONS[name]
    compiled = jax.jit(theirs)
    for trial in range(40):
        random = np.random.default_rng([trial, *map(ord, name)])
        shape = ((1, 7), (3, 40), (5, 1), (2, 16))[trial % 4]
        x = F32(random.standard_normal(shape) * 10 ** random.uniform(-3, 3))
        size = F32(10 ** random.uniform(-3, 3))
        with jax.enable_x64(True):
            true = np.asarray(compiled(jnp.asarray(x, F64), F64(size)))
        with jax.enable_x64(False):
            rough = error([np.asarray(compiled(jnp.asarray(x), size))], [true])
        assert error([ours(torch.tensor(x).double(), float(size))], [true]) < 1e-11
        assert error([ours(torch.tensor(x), float(size))], [true]) < max(1e-6, 3 * rough)


# ------------------------------------------------------------------ completeness


def test_every_name_that_both_have_is_compared() -> None:
    both = set(rc.__all__) & (set(dir(optax)) | set(dir(optax.contrib)))
    told = {part for name in [*CASES, *FUNCTIONS] for part in name.split(", ")} | {*SCHEDULES}
    assert both - told == set(LEFT_OUT)
    listed = {key.split("(")[0].split(" at ")[0] for key in DIFFERENCES}
    assert listed <= {*CASES, *SCHEDULES}
