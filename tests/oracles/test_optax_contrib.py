"""optax's optimizers that ask for more than a gradient, on a loss: 100 steps, states and all.

What each asks for (the loss, a gradient function) is made by each library of the same loss.
"""

import os
import sys
from collections.abc import Callable
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
from optax import contrib

STEPS = 100
RANDOM = np.random.default_rng(0)
X, Y = RANDOM.standard_normal((12, 5)), RANDOM.standard_normal((12, 3))
START = {"b": RANDOM.standard_normal(3), "w": RANDOM.standard_normal((5, 3))}  # in jax's order


def loss(lib: Any, x: Any, y: Any, p: Any) -> Any:
    """Smooth, and convex in no part of its last term."""
    return lib.log(lib.cosh(x @ p["w"] + p["b"] - y)).mean() + 0.1 * lib.sin(p["w"]).mean()


class Optax:
    def __init__(self, dtype: Any) -> None:
        self.f = partial(loss, jnp, jnp.asarray(X, dtype), jnp.asarray(Y, dtype))
        self.start = tree_map(lambda x: jnp.asarray(x, dtype), START)
        self.grad, self.value = jax.grad(self.f), self.f

    def run(self, tx: Any, asks: Callable[..., Any]) -> Any:
        p, state = self.start, tx.init(self.start)

        @jax.jit
        def step(p: Any, state: Any) -> Any:
            u, state = tx.update(self.grad(p), state, p, **asks(self, p))
            return optax.apply_updates(p, u), state

        for _ in range(STEPS):
            p, state = step(p, state)
        return p, state


class Ours:
    def __init__(self, dtype: Any) -> None:
        self.f = partial(loss, torch, torch.tensor(X, dtype=dtype), torch.tensor(Y, dtype=dtype))
        self.start = tree_map(lambda x: torch.tensor(x, dtype=dtype), START)
        self.grad, self.value = torch.func.grad(self.f), self.f

    def run(self, tx: Any, asks: Callable[..., Any]) -> Any:
        p, state = self.start, tx.init(self.start)
        for _ in range(STEPS):
            p, state = tx.step(p, self.grad(p), state, **asks(self, p))
        return p, state


def nothing(home: Any, p: Any) -> dict[str, Any]:
    return {}


def value(home: Any, p: Any) -> dict[str, Any]:
    return {"value": home.value(p)}


def grad_fn(home: Any, p: Any) -> dict[str, Any]:
    return {"grad_fn": home.grad if isinstance(home, Ours) else lambda p, _: home.grad(p)}


def climb(rho: float) -> Any:
    return optax.chain(contrib.normalize(), optax.sgd(rho))


# name -> optax's, ours, what they ask for
CASES: dict[str, tuple[Any, Any, Any]] = {
    "polyak_sgd": (optax.polyak_sgd(0.7), rc.polyak_sgd(0.7), value),
    "polyak_sgd, sps+": (
        optax.polyak_sgd(0.9, f_min=0.3, eps=0.01, variant="sps+"),
        rc.polyak_sgd(0.9, f_min=0.3, eps=0.01, variant="sps+"),
        value,
    ),
    "scale_by_polyak": (
        optax.chain(optax.scale_by_polyak(0.1, 2.0), optax.scale(-0.5)),
        rc.chain(rc.scale_by_polyak(2.0, 0.1), rc.scale(-0.5)),
        value,
    ),
    "prodigy": (contrib.prodigy(), rc.prodigy(), nothing),
    "prodigy, all": (
        contrib.prodigy(0.5, (0.8, 0.99), 0.95, 1e-5, 1e-4, 0.7, 0.1, True),
        rc.prodigy(0.5, (0.8, 0.99), 0.95, 1e-5, 1e-4, 0.7, 0.1, True),
        nothing,
    ),
    "prodigy, schedule": (
        contrib.prodigy(lambda n: 1 / (1 + 0.01 * jnp.asarray(n, float))),
        rc.prodigy(lambda n: 1 / (1 + 0.01 * n.double())),
        nothing,
    ),
    "schedule_free": (
        contrib.schedule_free(optax.sgd(0.5), 0.5),
        rc.schedule_free(rc.sgd(0.5)),
        nothing,
    ),
    "schedule_free, adamw": (
        contrib.schedule_free(optax.adamw(0.01, 0.0, 0.99, weight_decay=0.1), 0.01, 0.8, 1.0),
        rc.schedule_free(rc.adamw(0.01, (0.0, 0.99), weight_decay=0.1), None, 0.8, 1.0),
        nothing,
    ),
    "schedule_free, warmup": (  # optax evaluates the one of the weights a step later
        contrib.schedule_free(
            optax.sgd(lambda n: jnp.minimum(0.5, 0.05 * jnp.asarray(n, float))),
            lambda n: jnp.minimum(0.5, 0.05 * jnp.asarray(n - 1, float)),
        ),
        rc.schedule_free(rc.sgd(lambda n: (0.05 * n.double()).clamp(max=0.5))),
        nothing,
    ),
    "sam": (
        contrib.sam(optax.sgd(0.5), climb(0.3), opaque_mode=True),
        rc.sam(rc.sgd(0.5), 0.3),
        grad_fn,
    ),
    "sam, adam": (
        contrib.sam(optax.adam(0.05), climb(0.1), opaque_mode=True),
        rc.sam(rc.adam(0.05), 0.1),
        grad_fn,
    ),
}


def error(found: Any, true: Any) -> float:
    pairs = zip(tree_leaves(found), tree_leaves(true), strict=True)
    return max(
        float(
            np.abs(np.asarray(a, float) - np.asarray(b, float)).max() / np.abs(np.asarray(b)).max()
        )
        for a, b in pairs
    )


def averaged(home: Any, p: Any, state: Any) -> Any:
    if isinstance(home, Optax):
        return contrib.schedule_free_eval_params(state, p)
    return rc.averaged_params(state)


@pytest.mark.parametrize("name", CASES)
def test_equals_optax_over_100_steps(name: str) -> None:
    theirs, ours, asks = CASES[name]
    with jax.enable_x64(True):
        home = Optax(np.float64)
        true, state = home.run(theirs, asks)
        average = averaged(home, true, state) if name.startswith("schedule_free") else None
    with jax.enable_x64(False):
        rough, _ = Optax(np.float32).run(theirs, asks)
    single = max(1e-6, 3 * error(rough, true))
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, single)):
        home = Ours(dtype)
        end, state = home.run(ours, asks)
        assert error(end, home.start) > 0.1  # it went somewhere
        assert error(end, true) < bound
        if average is not None:
            assert error(averaged(home, end, state), average) < bound


def test_a_scaled_polyak_step_is_that_of_its_formula() -> None:
    """optax 0.2.8 measures the norm of what is scaled already; its docstring and ours do not."""
    home, tx = Ours(torch.float64), rc.polyak_sgd(10.0, 0.5)
    g, f = home.grad(home.start), home.value(home.start)
    new, _ = tx.step(home.start, g, tx.init(home.start), value=f)
    square = sum((x**2).sum() for x in g.values())
    for key, p in home.start.items():
        torch.testing.assert_close(new[key], p - 0.5 * f / square * g[key], rtol=1e-13, atol=0)


def test_what_is_nan_in_optax_stands_still() -> None:
    zero, p = torch.zeros(3), torch.ones(3)
    for tx, asked in (
        (rc.prodigy(), {}),
        (rc.sam(rc.sgd(0.1)), {"grad_fn": lambda p: p * 0}),
        (rc.polyak_sgd(), {"value": 1.0}),
    ):
        assert torch.equal(tx.step(p, zero, tx.init(p), **asked)[0], p)


def test_private_gradients_without_noise_and_the_deviation_of_it() -> None:
    grads = [RANDOM.standard_normal((7, 3, 2)), RANDOM.standard_normal((7,))]
    with jax.enable_x64(True):
        theirs = contrib.differentially_private_aggregate(1.3, 0.0, jax.random.key(0))
        params = [jnp.zeros((3, 2)), jnp.zeros(())]
        true, _ = theirs.update(tree_map(jnp.asarray, grads), theirs.init(params), params)
        zero = [jnp.zeros((2, 10000))]
        theirs = contrib.differentially_private_aggregate(1.3, 0.7, jax.random.key(0))
        noise, _ = theirs.update(zero, theirs.init([zero[0][0]]), [zero[0][0]])
        theirs_std = float(noise[0].std())
    tx = rc.differentially_private_aggregate(1.3, 0.0)
    assert error(tx.update(tree_map(torch.tensor, grads), ())[0], true) < 1e-12
    tx = rc.differentially_private_aggregate(1.3, 0.7)
    ours, _ = tx.update(torch.zeros(2, 10000), tx.init(torch.zeros(10000)))
    assert abs(float(ours.std()) / theirs_std - 1) < 0.05
