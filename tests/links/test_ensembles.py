"""The law of ensembles: networks trained together are the networks trained one by one.

Every warning is an error here, so that nothing falls back to torch's slow loop over members.
"""

import functools

import pytest
import torch
from torch import optim
from torch.func import grad, vmap
from torch.utils._pytree import tree_map

from rai_chain import (
    accumulate,
    adam,
    adamw,
    apply_if_finite,
    apply_updates,
    chain,
    clamp,
    clip_by_global_norm,
    error_feedback,
    from_torch,
    global_norm,
    l1_ball,
    l2_ball,
    linear_schedule,
    lion,
    lookahead,
    masked,
    partition,
    record,
    records,
    rmsprop,
    scale,
    sgd,
    top_q,
)

MEMBERS, STEPS, BATCH = 4, 20, 8
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(64, 5, generator=GENERATOR, dtype=torch.float64)
Y = torch.sin(X @ torch.randn(5, 3, generator=GENERATOR, dtype=torch.float64))

OPTIMIZERS = {  # name -> the optimizer, and what it has for each member besides `lr`
    "sgd": (sgd(momentum=0.9, weight_decay=0.01), {"momentum": (0.0, 0.9)}),
    "adam": (adam(weight_decay=0.01), {"betas": ((0.5, 0.9), (0.999, 0.999)), "eps": (1e-8, 1e-2)}),
    "adamw": (
        adamw(weight_decay=0.01),
        {"betas": ((0.9, 0.9), (0.9, 0.999)), "weight_decay": (0.0, 0.1)},
    ),
    "rmsprop": (rmsprop(momentum=0.5), {"alpha": (0.5, 0.99), "momentum": (0.0, 0.8)}),
    "lion": (lion(weight_decay=0.1), {"betas": ((0.5, 0.9), (0.9, 0.99))}),
}
BALLS = {"l1_ball": l1_ball, "l2_ball": l2_ball}
each = pytest.mark.parametrize("optimizer", OPTIMIZERS)
each_ball = pytest.mark.parametrize("ball", BALLS)


# ------------------------------------------------------------------ a member


def loss(params, x, y):
    hidden = torch.tanh(x @ params["in"] + params["bias"])
    return ((hidden @ params["out"] - y) ** 2).mean()


def slope(params, batch):
    return grad(loss)(params, X[batch], Y[batch])


def train(make, member):
    """One network from its own start, in its own order, with its own hyperparameters."""
    tx, params = make(member["seed"]), member["params"]
    state = tx.init(params)
    for batch in member["order"]:
        grads = slope(params, batch)
        params, state = tx.step(params, grads, state, hyperparams=member["hyperparams"])
    return params


def start(seed):
    g = torch.Generator().manual_seed(seed)
    shapes = {"in": (5, 6), "bias": (6,), "out": (6, 3)}
    return {
        "seed": torch.tensor(seed),
        "params": {k: torch.randn(s, generator=g, dtype=torch.float64) for k, s in shapes.items()},
        "order": torch.randint(len(X), (STEPS, BATCH), generator=g),
    }


def ensemble(**intervals):
    """Members that differ in everything: a tree of stacked tensors."""
    members = together([start(seed) for seed in range(MEMBERS)])

    def between(ends):
        if isinstance(ends[0], tuple):
            return tuple(map(between, ends))
        return torch.linspace(*ends, MEMBERS).double()

    spread = {k: between(ends) for k, ends in intervals.items()}
    return {**members, "hyperparams": spread}


def together(trees):
    return tree_map(lambda *leaves: torch.stack(leaves), *trees)


def one_by_one(make, members):
    rows = (tree_map(lambda leaf, i=i: leaf[i], members) for i in range(MEMBERS))
    return together([train(make, row) for row in rows])


@functools.cache
def sample(optimizer, ball):
    """A pipeline of a seed, the members to train with it, and each of them trained alone."""
    step, own = OPTIMIZERS[optimizer]

    def make(seed):
        return chain(top_q(0.5, dq=0.1, seed=seed), clamp(-1.0, 1.0), step, BALLS[ball](1.0))

    members = ensemble(
        lr=(1e-3, 3e-2),
        q=(0.1, 0.8),
        clamp_min=(-0.5, -0.01),
        clamp_max=(0.01, 0.5),
        epsilon=(0.3, 3.0),
        **own,
    )
    return make, members, one_by_one(make, members)


def assert_same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


# ------------------------------------------------------------------ the whole step under vmap


def test_the_slow_loop_over_members_would_be_an_error():
    ones = torch.ones(2, 3)
    with pytest.raises(UserWarning, match="performance drop"):
        vmap(lambda x, y: x.clone().addcmul_(y, y))(ones, ones)


@each
@each_ball
def test_the_whole_training_under_one_vmap(optimizer, ball):
    make, members, alone = sample(optimizer, ball)
    assert_same(vmap(functools.partial(train, make))(members), alone)


@each
@each_ball
@pytest.mark.parametrize("method", ["step", "update"])
def test_a_state_carried_from_vmap_to_vmap(optimizer, ball, method):
    make, members, alone = sample(optimizer, ball)
    params = members["params"]

    def step(seed, params, state, batch, hyperparams):
        tx, grads = make(seed), slope(params, batch)
        if method == "step":
            return tx.step(params, grads, state, hyperparams=hyperparams)
        updates, state = tx.update(grads, state, params=params, hyperparams=hyperparams)
        return apply_updates(params, updates), state

    state = vmap(lambda seed, p: make(seed).init(p))(members["seed"], params)
    for batch in members["order"].unbind(1):
        params, state = vmap(step)(members["seed"], params, state, batch, members["hyperparams"])
    assert_same(params, alone)


@each
def test_members_learn_and_differ(optimizer):
    _, members, alone = sample(optimizer, "l2_ball")
    before, after = (vmap(loss, (0, None, None))(p, X, Y) for p in (members["params"], alone))
    assert (after < before).all() and len(after.unique()) == MEMBERS


WRAPPED = {
    "masked": lambda tx: masked(tx, {"in": True, "bias": False, "out": True}),
    "partition": lambda tx: partition(
        {"big": tx, "small": scale(-0.01)}, lambda path: "small" if "bias" in path else "big"
    ),
    "accumulate": lambda tx: accumulate(tx, every_k=3),
    "apply_if_finite": lambda tx: apply_if_finite(tx, max_consecutive_errors=2),
    "error_feedback": lambda tx: chain(error_feedback(top_q(0.7)), tx),
    "lookahead": lambda tx: lookahead(tx, sync_period=4),
    "record": lambda tx: chain(record("norm", global_norm), tx),
    "clip_by_global_norm": lambda tx: chain(clip_by_global_norm(0.1), tx),
    "schedule": lambda tx: chain(clamp(clamp_max=linear_schedule(0.3, 0.1, STEPS)), tx),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrappers_and_schedules(wrapper):
    tx = WRAPPED[wrapper](sgd(lr=torch.tensor(0.1), momentum=0.9))
    (key,) = (key for key in tx.hyperparams if key.endswith("lr"))
    members = ensemble(**{key: (1e-3, 1e-1)})
    make = lambda seed: tx  # noqa: E731
    assert_same(vmap(functools.partial(train, make))(members), one_by_one(make, members))


def test_a_record_for_each_member():
    tx = chain(record("before", global_norm), top_q(0.5, param_ndim=None))
    grads = {"w": torch.tensor([[3.0, 4.0], [6.0, 8.0]])}
    _, state = vmap(lambda g: tx.update(g, tx.init(g)))(grads)
    mine = [records(tree_map(lambda leaf, i=i: leaf[i], state))["before"] for i in range(2)]
    assert [m.tolist() for m in mine] == [[5.0], [10.0]]


# ------------------------------------------------------------------ one update of stacked leaves


def for_each(values, params):
    """One value a member, shaped to broadcast over each stacked leaf."""
    return tree_map(lambda p: values.reshape(-1, *[1] * (p.ndim - 1)), params)


def train_stacked(tx, members, hyperparams):
    params = members["params"]
    state = tx.init(params)
    for batch in members["order"].unbind(1):
        params, state = tx.step(params, vmap(slope)(params, batch), state, hyperparams=hyperparams)
    return params


@each
@each_ball
@pytest.mark.parametrize(("alone", "stacked"), [(None, -1), (-1, -2)])
def test_one_update_of_stacked_leaves(optimizer, ball, alone, stacked):
    """A member's whole leaf is a row of the stack; its rows are rows behind two dimensions."""
    step, own = OPTIMIZERS[optimizer]
    members = ensemble(lr=(1e-3, 3e-2), clamp_max=(0.01, 0.5), **own)

    def make(param_ndim):
        rows = {"param_ndim": param_ndim}
        return chain(top_q(0.5, **rows), clamp(clamp_max=1.0), step, BALLS[ball](1.0, **rows))

    hyperparams = {
        k: tuple(for_each(x, members["params"]) for x in v)
        if isinstance(v, tuple)
        else for_each(v, members["params"])
        for k, v in members["hyperparams"].items()
    }
    together = train_stacked(make(stacked), members, hyperparams)
    assert_same(together, one_by_one(lambda seed: make(alone), members))


@each_ball
def test_a_radius_for_each_row_of_the_stack(ball):
    members = ensemble(epsilon=(0.3, 3.0))
    make = lambda param_ndim: chain(adam(lr=0.1), BALLS[ball](1.0, param_ndim=param_ndim))  # noqa: E731
    together = train_stacked(make(-1), members, members["hyperparams"])
    assert_same(together, one_by_one(lambda seed: make(None), members))


@pytest.mark.parametrize(
    "kind",
    [
        *(optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop, optim.Adagrad, optim.NAdam),
        *(optim.RAdam, optim.Adamax, optim.Adadelta, optim.ASGD, optim.Rprop),
    ],
)
def test_torch_optimizers_step_a_stack(kind):
    tx, members = from_torch(kind, lr=0.01), ensemble()
    assert_same(train_stacked(tx, members, {}), one_by_one(lambda seed: tx, members))


def test_what_sees_a_whole_leaf_or_tree_is_not_for_stacks():
    for tx in (from_torch(optim.Adafactor, lr=0.1), chain(clip_by_global_norm(0.1), sgd())):
        members = ensemble()
        together = train_stacked(tx, members, {})
        with pytest.raises(AssertionError):
            assert_same(together, one_by_one(lambda seed, tx=tx: tx, members))


def test_a_member_that_diverges_leaves_the_others_alone():
    members = ensemble(lr=(0.1, 0.1))
    members["hyperparams"]["lr"][0] = 1e300
    tx = sgd(momentum=0.9)
    lr = {"lr": for_each(members["hyperparams"]["lr"], members["params"])}
    whole = vmap(functools.partial(train, lambda seed: tx))(members)
    for result in (whole, train_stacked(tx, members, lr)):
        assert not result["out"][0].isfinite().all()
        assert all(leaf[1:].isfinite().all() for leaf in result.values())
