"""Schedules and values: what is written acts, what is scheduled shows, what is misspelt warns."""

import warnings
from functools import partial

import pytest
import torch
from helpers import leaf, leaves, parameters, step
from torch.optim import SGD
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR, ReduceLROnPlateau

import rai_chain as rc
from rai_chain.optim import (
    ChainedParamTransformingOptimizer,
    ClampedGradientOptimizer,
    LinfProjectedOptim,
    TopQGradientOptimizer,
)

Chain = ChainedParamTransformingOptimizer


def moves(optimizer, count, grad=1.0):
    """By how much each step moves the first parameter."""
    (p, *_), seen = parameters(optimizer), []
    for _ in range(count):
        before = p.detach().clone()
        step(optimizer, *[grad] * len(parameters(optimizer)))
        seen.append((p.detach() - before).flatten()[0].item())
    return seen


# ------------------------------------------------------------------ a number ends a schedule


def halving(step):
    return 0.5**step


@pytest.mark.parametrize("number", [2.0, torch.tensor(2.0)], ids=["number", "tensor"])
@pytest.mark.parametrize("home", ["around SGD", "by itself", "from torch"])
def test_a_number_written_over_a_schedule_ends_it(home, number):
    """It acts from the next step on, and the schedule does not come back."""
    (p,) = leaves(1, 1)
    optimizer = {
        "around SGD": lambda: Chain(rc.sign(), rc.scale(halving), params=[p], lr=1.0),
        "by itself": lambda: Chain(rc.sgd(halving), params=[p]),
        "from torch": lambda: Chain(rc.from_torch(SGD, lr=halving), params=[p]),
    }[home]()
    key = "scale_0.grad_scale" if home == "around SGD" else "lr"
    assert moves(optimizer, 2) == [-1.0, -0.5]
    optimizer.param_groups[0][key] = number
    assert moves(optimizer, 3) == [-2.0, -2.0, -2.0]


def test_a_number_that_equals_the_scheduled_value_ends_the_schedule_too():
    """A write is a write: the value that is shown may be the one that is kept."""
    (p,) = leaves(1, 1)
    optimizer = Chain(rc.sgd(lambda step: 0.5**step), params=[p])
    assert moves(optimizer, 1) == [-1.0]
    optimizer.param_groups[0]["lr"] = 0.5
    assert moves(optimizer, 3) == [-0.5, -0.5, -0.5]


def test_reduce_on_plateau_ends_a_schedule():
    """It multiplies the value that it finds, as it does with torch's own."""
    (p,) = leaves(1, 1)
    optimizer = Chain(rc.sgd(lambda step: 1.0 + 0.0 * step), params=[p])
    scheduler = ReduceLROnPlateau(optimizer, factor=0.25, patience=0)
    assert moves(optimizer, 1) == [-1.0]
    scheduler.step(1.0)
    scheduler.step(1.0)
    assert moves(optimizer, 2) == [-0.25, -0.25]


def test_a_new_schedule_written_over_an_old_one_goes_on_at_the_same_step():
    """Schedules are functions of the group's count."""
    (p,) = leaves(1, 1)
    optimizer = Chain(rc.sgd(lambda step: 0.5**step), params=[p])
    moves(optimizer, 2)
    optimizer.param_groups[0]["lr"] = lambda step: 4.0 * step
    assert moves(optimizer, 2) == [-8.0, -12.0]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_checkpoint_with_a_number_over_a_schedule_resumes_with_the_number(when):
    """Saved before or after the next step, the schedule does not come back in another process."""

    def made():
        return Chain(rc.sgd(lambda step: 0.5**step), params=leaves(1, 1))

    optimizer, other = made(), made()
    moves(optimizer, 1)
    optimizer.param_groups[0]["lr"] = 2.0
    moves(optimizer, 1 if when == "after" else 0)
    other.load_state_dict(optimizer.state_dict())
    assert moves(other, 2) == [-2.0, -2.0]


# ------------------------------------------------------------------ every_k


@pytest.mark.parametrize("home", ["optimizer", "pure"])
@pytest.mark.parametrize("when", [1, 3, 4, 5])
@pytest.mark.parametrize(("first", "second"), [(4, 3), (3, 4), (6, 2), (2, 5)])
def test_every_k_changed_in_the_middle_gives_the_mean_of_what_was_gathered(
    first, second, when, home
):
    """Gradients of 1 have the mean 1, however many there were."""
    tx, sent = rc.accumulate(rc.scale(1.0), first), []
    optimizer, state = Chain(tx, params=leaves(1, 1), lr=1.0), tx.init(torch.zeros(1))
    for time in range(16):
        if home == "optimizer":
            if time == when:
                optimizer.param_groups[0]["every_k"] = second
            sent += [-moved for moved in moves(optimizer, 1)]
        else:
            own = {"every_k": second} if time >= when else {}
            out, state = tx.update(torch.ones(1), state, hyperparams=own)
            sent.append(out.item())
    assert set(sent) == {0.0, 1.0}


# ------------------------------------------------------------------ keys of the group


def test_a_scheduled_key_inside_a_wrapper_is_in_the_group():
    """It shows the next step's value, and a number ends it, as outside of wrappers."""
    tx = rc.masked(rc.clamp(clamp_max=lambda step: 3.0 - step), [True])
    optimizer = Chain(tx, params=leaves(1, 1), lr=1.0)
    assert float(optimizer.param_groups[0]["clamp_max"]) == 3.0
    assert moves(optimizer, 1, 9.0) == [-3.0]
    assert float(optimizer.param_groups[0]["clamp_max"]) == 2.0
    optimizer.param_groups[0]["clamp_max"] = 5.0
    assert moves(optimizer, 2, 9.0) == [-5.0, -5.0]


def test_a_schedule_for_a_key_inside_a_wrapper_may_be_written_into_the_group():
    """As for any other key."""
    optimizer = Chain(rc.masked(rc.clamp(clamp_max=3.0), [True]), params=leaves(1, 1), lr=1.0)
    optimizer.param_groups[0]["clamp_max"] = lambda step: 1.0 + step
    assert moves(optimizer, 3, 9.0) == [-1.0, -2.0, -3.0]


@pytest.mark.parametrize("scale", [[2.0, 3.0], [[1.0], [1.0]], [[1.0, 2.0, 3.0]]])
def test_a_groups_own_scale_may_be_several_numbers(scale):
    x = torch.zeros(2, 3, requires_grad=True)
    scale = torch.tensor(scale)
    optimizer = Chain(rc.scale(2.0), params=[{"params": [x], "grad_scale": scale}], lr=1.0)
    x.grad = torch.ones(2, 3)
    optimizer.step()
    expected = -2.0 * (scale[:, None] if scale.ndim == 1 else scale).expand(2, 3)
    assert torch.equal(x, expected)


def test_the_optimizers_grad_scale_beside_a_links():
    """The layout that the pure home names: both keys, each its own meaning."""
    assert "grad_scale" in rc.chain(rc.sign(), rc.scale(2.0)).hyperparams
    group = {"params": leaves(1, 1), "grad_scale": 3.0, "scale_0.grad_scale": 5.0}
    optimizer = Chain(rc.clamp(clamp_max=1.0), rc.scale(2.0), params=[group], lr=1.0)
    assert moves(optimizer, 1, 9.0) == [-15.0]
    optimizer.param_groups[0]["grad_scale"] = 1.0
    assert moves(optimizer, 1, 9.0) == [-5.0]
    optimizer.add_param_group({"params": leaves(1, 1), "scale_0.grad_scale": 7.0})
    step(optimizer, 9.0, 9.0)
    assert parameters(optimizer)[1].item() == -7.0


@pytest.mark.parametrize("key", ["clamp_0.clamp_max", "clamp_max"])
@pytest.mark.parametrize("home", ["around SGD", "by itself"])
def test_the_qualified_key_is_accepted_in_a_param_group(key, home):
    """Where the bare one is unique, both name the same hyperparameter."""
    links = (rc.clamp(clamp_max=1.0), rc.top_q(0.0))
    group = {"params": leaves(1, 1), key: 4.0}
    if home == "around SGD":
        optimizer = Chain(*links, params=[group], lr=1.0)
    else:
        optimizer = rc.chain(*links, rc.scale_by_learning_rate(1.0)).optimizer([group])
    assert moves(optimizer, 1, 9.0) == [-4.0]
    optimizer.param_groups[0][key] = 2.0
    assert moves(optimizer, 1, 9.0) == [-2.0]
    optimizer.add_param_group({"params": leaves(1, 1), key: 3.0})
    step(optimizer, 9.0, 9.0)
    assert parameters(optimizer)[1].item() == -3.0


def test_the_qualified_key_is_accepted_as_a_default():
    """`defaults=` and `**values` take either."""
    own = {"clamp_0.clamp_max": 4.0}
    around = Chain(rc.clamp(clamp_max=1.0), params=leaves(1, 1), lr=1.0, defaults=own)
    tx = rc.chain(rc.clamp(clamp_max=1.0), rc.scale_by_learning_rate(1.0))
    for optimizer in (around, tx.optimizer(leaves(1, 1), **own)):
        assert moves(optimizer, 1, 9.0) == [-4.0]


# ------------------------------------------------------------------ keys that nobody reads

MISSPELT = {
    "clmp_max": "clamp_max",
    "Q": "q",
    "clamp_mx": "clamp_max",
    "clamp_0.clamp_maxx": "clamp_max",
}


def chained(group=None, **options):
    links = (rc.clamp(clamp_max=1.0), rc.top_q(0.5))
    return Chain(*links, params=[{"params": [leaf(2, 3)], **(group or {})}], lr=1.0, **options)


def single(group=None, **options):
    return TopQGradientOptimizer([{"params": [leaf(2, 3)], **(group or {})}], q=0.5, **options)


@pytest.mark.parametrize("key", MISSPELT)
def test_an_unknown_key_that_resembles_a_known_one_warns_wherever_it_enters(key):
    """One warning, which names the key and the nearest one."""
    near = rf"(?s){key}.*{MISSPELT[key]}"
    for enter in (
        lambda: chained({key: 0.5}),
        lambda: chained(defaults={key: 0.5}),
        lambda: chained().add_param_group({"params": [leaf(2, 3)], key: 0.5}),
    ):
        with pytest.warns(UserWarning, match=near) as found:
            enter()
        assert len(found) == 1


def test_an_unknown_key_written_into_a_live_group_warns_once():
    """At the next step, and not at each."""
    optimizer = chained()
    optimizer.param_groups[0]["clmp_max"] = 0.5
    with pytest.warns(UserWarning, match="clamp_max") as found:
        moves(optimizer, 3)
    assert len(found) == 1


def test_an_unknown_key_of_a_class_warns_too():
    """rai-toolbox's classes have the same groups."""
    with pytest.warns(UserWarning, match=r"(?s)Q.*\bq\b"):
        single({"Q": 0.1})


def test_a_default_that_nobody_reads_warns():
    """`defaults={"foo": 1}` can only be a mistake."""
    for make in (chained, single):
        with pytest.warns(UserWarning, match="foo") as found:
            make(defaults={"foo": 1})
        assert len(found) == 1


def test_keys_that_resemble_none_are_the_users_own():
    """Schedulers and frameworks keep their own notes in param groups."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = chained({"name": "backbone", "initial_lr": 1.0, "layer_index": 3})
        moves(optimizer, 2)
        OneCycleLR(optimizer, 0.5, total_steps=4, cycle_momentum=False)
        moves(optimizer, 2)


# ------------------------------------------------------------------ hyperparameters of wrappers


def scheduled_pairs():
    yield "every_k", lambda v: rc.accumulate(rc.trace(0.5), v), lambda s: 1 + s // 2
    yield "sync_period", lambda v: rc.lookahead(rc.scale(-1.0), v, 0.5), lambda s: 2 + s // 4
    yield "slow_step_size", lambda v: rc.lookahead(rc.scale(-1.0), 2, v), lambda s: 1 / (1 + s)
    yield (
        "max_consecutive_errors",
        lambda v: rc.apply_if_finite(rc.nan_to_num(7.0), v),
        lambda s: 3 - s // 2,
    )


PAIRS = {name: (make, schedule) for name, make, schedule in scheduled_pairs()}


@pytest.mark.parametrize("name", PAIRS)
def test_every_hyperparameter_of_a_wrapper_may_be_a_schedule(name):
    """Equal to the run in which each step's number is given by hand, in both homes."""
    make, schedule = PAIRS[name]
    scheduled, fixed = make(schedule), make(schedule(0))
    p = q = torch.zeros(3)
    state, own = scheduled.init(p), fixed.init(q)
    r = torch.zeros(3, requires_grad=True)
    optimizer = rc.chain(make(schedule)).optimizer([r])
    for time in range(8):
        grad = torch.full((3,), torch.nan if name.startswith("max") else 1.0 + time)
        p, state = scheduled.step(p, grad, state)
        now = schedule(torch.tensor(time))
        q, own = fixed.step(q, grad, own, hyperparams={name: now})
        step(optimizer, grad)
        assert torch.equal(p, q) and torch.equal(r, q)


def test_a_schedule_of_a_wrapper_is_checked_at_each_step():
    """With the message of a number."""
    tx = rc.accumulate(rc.scale(1.0), lambda step: 2 - int(step))
    state = tx.init(torch.zeros(1))
    for _ in range(2):
        _, state = tx.update(torch.ones(1), state)
    with pytest.raises(ValueError, match=r"`every_k` must satisfy 1.0 <= every_k"):
        tx.update(torch.ones(1), state)


@pytest.mark.parametrize("how", ["argument", "group", "partial"])
def test_the_learning_rate_of_an_inner_optimizer_may_be_a_schedule(how):
    """As any other value of the group."""

    def rate(step):
        return 1.0 / (1 + step)

    p = {"params": leaves(1, 1), **({"lr": rate} if how == "group" else {})}
    own = {"lr": rate} if how == "argument" else {}
    kind = partial(SGD, lr=rate) if how == "partial" else SGD
    optimizer = Chain(rc.sign(), params=[p], InnerOpt=kind, **own)
    assert moves(optimizer, 4) == pytest.approx([-1.0, -1 / 2, -1 / 3, -1 / 4])


def test_a_schedule_for_the_inner_optimizer_of_a_class():
    """rai-toolbox's classes take it as well."""
    optimizer = ClampedGradientOptimizer(leaves(1, 1), lr=lambda step: 1.0 + step, clamp_max=1.0)
    assert moves(optimizer, 3, 9.0) == [-1.0, -2.0, -3.0]


@pytest.mark.parametrize("home", ["pure", "optimizer", "mixed"])
def test_a_tree_of_schedules_has_one_for_each_leaf(home):
    """Beside them numbers, where a leaf needs no schedule."""
    last = 5.0 if home == "mixed" else (lambda step: 5.0 + 0.0 * step)
    tree = [lambda step: 1.0 + step, last]
    if home == "pure":
        tx, seen = rc.scale(tree), []
        state = tx.init([torch.zeros(1), torch.zeros(1)])
        for _ in range(3):
            out, state = tx.update([torch.ones(1), torch.ones(1)], state)
            seen.append([t.item() for t in out])
    else:
        optimizer, seen = Chain(rc.scale(tree), params=leaves(2, 1), lr=1.0), []
        for _ in range(3):
            step(optimizer, 1.0, 1.0)
            seen.append([p.grad.item() for p in parameters(optimizer)])
    assert seen == [[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]]


def test_a_tree_of_schedules_in_a_dict():
    """Like the parameters, in whatever order the keys come."""
    tx = rc.scale({"b": lambda step: 1.0 + step, "a": 7.0})
    params = {"a": torch.zeros(1), "b": torch.zeros(1)}
    state = tx.init(params)
    for expected in (1.0, 2.0):
        out, state = tx.update({k: torch.ones(1) for k in params}, state)
        assert (out["a"].item(), out["b"].item()) == (7.0, expected)


# ------------------------------------------------------------------ betas


@pytest.mark.parametrize("name", ["adam", "adamw", "lion"])
def test_betas_are_one_key_as_in_torch(name):
    """A pair, so that code written for torch's classes reads and writes it."""
    optimizer = getattr(rc, name)(0.1).optimizer(leaves(1, 3))
    expected = (0.9, 0.99) if name == "lion" else (0.9, 0.999)
    assert tuple(optimizer.param_groups[0]["betas"]) == expected
    tx = getattr(rc, name)(0.1, betas=(0.5, 0.75))
    assert tuple(tx.hyperparams["betas"]) == (0.5, 0.75)


@pytest.mark.parametrize("scheduler", ["one cycle", "cyclic"])
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_torchs_schedulers_cycle_betas(name, scheduler):
    """Step by step the values and, to rounding, the parameters of torch's class."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    ours = getattr(rc, name)(0.1).optimizer([leaf(5)])
    torchs = kind([leaf(5)], lr=0.1, foreach=False)
    for optimizer in (ours, torchs):
        options = {"cycle_momentum": True}
        cycle = (
            OneCycleLR(optimizer, 0.1, total_steps=8, **options)
            if scheduler == "one cycle"
            else CyclicLR(optimizer, 0.01, 0.1, step_size_up=3, **options)
        )
        optimizer.seen = []
        for time in range(7):
            step(optimizer, torch.linspace(-1.0, 1.0 + time, 5))
            cycle.step()
            optimizer.seen.append(tuple(map(float, optimizer.param_groups[0]["betas"])))
    assert ours.seen == torchs.seen and len(set(ours.seen)) > 3
    torch.testing.assert_close(parameters(ours)[0], parameters(torchs)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [(0.9,), (0.9, 1.0), (-0.1, 0.9), 0.9, "no"])
def test_betas_that_do_not_fit_are_refused(bad):
    """The message names `betas`."""
    with pytest.raises((TypeError, ValueError), match="`betas` must"):
        rc.adam(0.1, betas=bad)


def test_a_class_with_hyperparameters_of_its_own_keeps_its_keys():
    """What a scheduler writes into a class's group acts as in a chain."""
    optimizer = LinfProjectedOptim(leaves(1, 1), epsilon=lambda step: 1.0 + step, lr=9.0)
    assert moves(optimizer, 2) == [-1.0, -1.0]
    optimizer.param_groups[0]["epsilon"] = 5.0
    assert moves(optimizer, 2) == [-3.0, 0.0]


def test_a_key_of_what_is_in_a_wrapper_is_no_other_links_qualified_key():
    """Two links of one name inside, and one beside the wrapper: each has its own value."""
    inner = rc.chain(rc.scale(2.0), rc.scale(3.0))
    tx, p = rc.chain(rc.accumulate(inner, 1), rc.scale(5.0)), torch.zeros(2)
    q = p.clone().requires_grad_()
    optimizer, key = tx.optimizer([q]), "accumulate_0.scale_0.grad_scale"
    step(optimizer, 1.0)
    assert torch.equal(q, tx.step(p, torch.ones(2), tx.init(p))[0])
    assert q.tolist() == [30.0, 30.0]
    optimizer.param_groups[0][key] = 7.0
    step(optimizer, 1.0)
    assert q.tolist() == [135.0, 135.0]
    for given, right in (({key: 7.0}, 105.0), ({"scale_0.grad_scale": 1.0}, 6.0)):
        out, _ = tx.update(torch.ones(2), tx.init(p), hyperparams=given)
        assert out.tolist() == [right, right]
