"""State follows its parameter and its group: what torch.optim does in the same place."""

import gc
import io
import itertools
import weakref
from collections import defaultdict
from functools import partial

import pytest
import torch
from helpers import give, identical, leaf, leaves, parameters, step, steps, tensors_in, values
from torch.optim import SGD, Adam

import rai_chain as rc
from rai_chain.optim import (
    ChainedParamTransformingOptimizer,
    SignedGradientOptim,
    TopQGradientOptimizer,
)

Chain = ChainedParamTransformingOptimizer

# ------------------------------------------------------------------ as torch's momentum

# A trace of .5 before plain steps is SGD with a momentum of .5, to the bit.
HOMES = {
    "around SGD": lambda params: Chain(rc.trace(0.5), params=params, lr=1.0),
    "by itself": lambda params: rc.chain(rc.trace(0.5), rc.scale_by_learning_rate(1.0)).optimizer(
        params
    ),
    "wrapped": lambda params: Chain(rc.apply_if_finite(rc.trace(0.5), 3), params=params, lr=1.0),
}
GRADS = (100.0, 1.0, 10.0, 7.0, 3.0)


def two_groups():
    a, b, c, d = leaves(4, 3)
    return [{"params": [a, b]}, {"params": [c, d], "lr": 0.25}]


def take_out(optimizer):
    optimizer.param_groups[0]["params"].pop(0)


def reverse(optimizer):
    optimizer.param_groups[0]["params"].reverse()


def append(optimizer):
    optimizer.param_groups[0]["params"].append(torch.zeros(3, requires_grad=True))


def insert(optimizer):
    optimizer.param_groups[0]["params"].insert(0, torch.zeros(3, requires_grad=True))


def replace(optimizer):
    optimizer.param_groups[0]["params"][0] = torch.zeros(3, requires_grad=True)


def new_list(optimizer):
    optimizer.param_groups[0]["params"] = optimizer.param_groups[0]["params"][::-1]


def move_between_groups(optimizer):
    first, second = optimizer.param_groups
    second["params"].append(first["params"].pop(0))


def clear_the_state(optimizer):
    optimizer.state.clear()


def forget_one(optimizer):
    del optimizer.state[parameters(optimizer)[1]]


def assign_a_state(optimizer):
    optimizer.state = defaultdict(dict)


def assign_groups(optimizer):
    optimizer.param_groups = [dict(group) for group in optimizer.param_groups[::-1]]


def assign_fewer_groups(optimizer):
    optimizer.param_groups = optimizer.param_groups[1:]


def delete_a_group(optimizer):
    del optimizer.param_groups[0]


def reverse_the_groups(optimizer):
    optimizer.param_groups.reverse()


CHANGES = (
    take_out,
    reverse,
    append,
    insert,
    replace,
    new_list,
    move_between_groups,
    clear_the_state,
    forget_one,
    assign_a_state,
    assign_groups,
    assign_fewer_groups,
    delete_a_group,
    reverse_the_groups,
)


def test_the_trace_of_a_parameter_that_was_taken_out_is_not_anothers():
    """The numbers of the report: -91 was another parameter's momentum."""
    a, b = leaves(2)
    optimizer = Chain(rc.trace(0.9), params=[a, b], lr=1.0)
    step(optimizer, 100.0, 1.0)
    optimizer.param_groups[0]["params"].pop(0)
    step(optimizer, 0.0)
    assert torch.equal(b, torch.tensor(-1.9))


@pytest.mark.parametrize("home", HOMES)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_after_a_change_of_params_groups_or_state_it_steps_as_sgd_with_momentum(change, home):
    """Whatever users do to a torch optimizer in place, they may do to this one."""
    ours = HOMES[home](two_groups())
    torchs = SGD(two_groups(), lr=1.0, momentum=0.5)
    for group in ours.param_groups:
        group.setdefault("lr", 1.0)
    for optimizer in (ours, torchs):
        step(optimizer, *GRADS[:4])
        change(optimizer)
        for time in range(2):
            count = len(parameters(optimizer))
            step(optimizer, *[g - time for g in GRADS[:count]])
    assert identical([*map(torch.detach, parameters(ours))], [*parameters(torchs)])


@pytest.mark.parametrize("change", [assign_a_state, assign_groups, assign_fewer_groups])
def test_what_is_assigned_to_the_inner_optimizer_is_assigned_to_both(change):
    """`param_groups` and `state` are one object each, on whichever side they are assigned."""
    ours = HOMES["around SGD"](two_groups())
    torchs = SGD(two_groups(), lr=1.0, momentum=0.5)
    for optimizer, assigned in ((ours, ours.inner_opt), (torchs, torchs)):
        step(optimizer, *GRADS[:4])
        change(assigned)
        step(optimizer, *GRADS[: len(parameters(optimizer))])
    assert identical([*map(torch.detach, parameters(ours))], [*parameters(torchs)])
    assert ours.param_groups is ours.inner_opt.param_groups and ours.state is ours.inner_opt.state


@pytest.mark.parametrize("side", ["outer", "inner"])
@pytest.mark.parametrize("name", ["param_groups", "state", "defaults"])
def test_an_assigned_object_stays_the_optimizers_own(name, side):
    """A step keeps the very object that was assigned."""
    optimizer = HOMES["around SGD"](two_groups())
    step(optimizer, *GRADS[:4])
    old = getattr(optimizer, name)
    new = [*old] if name == "param_groups" else dict(old)
    if name == "state":
        new = defaultdict(dict, old)
    setattr(optimizer if side == "outer" else optimizer.inner_opt, name, new)
    step(optimizer, *GRADS[:4])
    assert getattr(optimizer, name) is new and getattr(optimizer.inner_opt, name) is new


def test_schedules_go_with_their_groups():
    """Reversed or deleted groups keep their own schedule and their own count."""
    key, (p, q) = "scale_0.grad_scale", leaves(2, 1)
    rising, falling = (lambda step: 2.0 ** (1 + step)), (lambda step: 0.5 ** (1 + step))
    groups = [{"params": [p], key: rising}, {"params": [q], key: falling}]
    optimizer = Chain(rc.scale(1.0), params=groups, lr=1.0)
    step(optimizer, 1.0, 1.0)
    optimizer.param_groups.reverse()
    step(optimizer, 1.0, 1.0)
    assert (p.item(), q.item()) == (-2.0 - 4.0, -0.5 - 0.25)
    del optimizer.param_groups[0]
    step(optimizer, 1.0)
    assert (p.item(), q.item()) == (-2.0 - 4.0 - 8.0, -0.5 - 0.25)


def test_a_group_that_is_inserted_starts_its_own_count():
    """Counts belong to the group object, not to its place."""
    key, (p, q) = "bias_0.grad_bias", leaves(2, 1)
    optimizer = Chain(rc.bias(lambda step: 1.0 * step), params=[p], lr=1.0)
    step(optimizer, 0.0)
    step(optimizer, 0.0)
    new = {**optimizer.defaults, key: lambda step: 10.0 * step, "params": [q]}
    optimizer.param_groups.insert(0, new)
    step(optimizer, 0.0, 0.0)
    step(optimizer, 0.0, 0.0)
    assert (q.item(), p.item()) == (-10.0, -6.0)


@pytest.mark.parametrize("home", HOMES)
def test_a_checkpoint_loads_after_groups_were_assigned(home):
    """Finetuning callbacks assign the saved groups to a new optimizer and load then."""
    saved, whole = HOMES[home](two_groups()), HOMES[home](two_groups())
    for optimizer in (saved, whole):
        step(optimizer, *GRADS[:4])
    a, b, c, d = leaves(4, 3)
    resumed = HOMES[home]([a, b])
    resumed.param_groups = [
        {**group, "params": params}
        for group, params in zip(saved.state_dict()["param_groups"], ([a, b], [c, d]), strict=True)
    ]
    resumed.load_state_dict(saved.state_dict())
    give([a, b, c, d], [0.0] * 4)
    with torch.no_grad():
        for p, old in zip((a, b, c, d), parameters(saved), strict=True):
            p.copy_(old)
    for optimizer in (resumed, whole):
        step(optimizer, *GRADS[:4])
    assert identical([*map(torch.detach, (a, b, c, d))], [p.detach() for p in parameters(whole)])


# ------------------------------------------------------------------ where states are


def test_what_a_link_keeps_for_a_parameter_is_in_the_parameters_state():
    """Found as `state[p]["links"][<link>]`, beside the inner optimizer's own state."""
    p, q = leaf(2, 3), leaf(4)
    optimizer = Chain(rc.scale(2.0), rc.ema(0.5), params=[p, q], InnerOpt=Adam)
    steps(optimizer, 1)
    for one in (p, q):
        assert torch.equal(optimizer.state[one]["links"]["ema_0"]["ema"], 0.5 * one.grad)
        assert {"step", "exp_avg", "exp_avg_sq"} < set(optimizer.state[one])


def test_what_a_link_keeps_once_is_in_its_group():
    """A counter, a seed and a record are of the group: `link_states[<link>]`."""
    links = rc.named_chain(
        ("noise", rc.add_noise(0.1)), ("norms", rc.record("norm", rc.global_norm))
    )
    optimizer = Chain(links, params=[leaf(3), leaf(4)])
    steps(optimizer, 2)
    states = optimizer.param_groups[0]["link_states"]
    assert int(states["noise"]["step"]) == 2
    assert rc.records(states["norms"])["norm"].shape == (2,)


LINKS_WITH_A_STATE = {
    "ema": lambda: rc.ema(0.9),
    "trace": lambda: rc.trace(0.9),
    "scale_by_adam": rc.scale_by_adam,
    "add_noise": lambda: rc.add_noise(0.1),
    "masked": lambda: rc.masked(rc.ema(0.9), lambda tree: [True, False]),
    "partition": lambda: rc.partition({"a": rc.ema(0.9), "b": rc.trace(0.9)}, ["a", "b"]),
    "accumulate": lambda: rc.accumulate(rc.ema(0.9), 2),
    "error_feedback": lambda: rc.error_feedback(rc.top_q(0.5)),
    "conditionally": lambda: rc.conditionally(rc.ema(0.9), lambda updates, step: step >= 1),
    "apply_if_finite": lambda: rc.apply_if_finite(rc.chain(rc.ema(0.9), rc.ema(0.5)), 2),
    "record": lambda: rc.record("norm", rc.global_norm),
    "lookahead": lambda: rc.lookahead(rc.adam(0.1), 2),
}


@pytest.mark.parametrize("name", LINKS_WITH_A_STATE)
def test_states_are_tensors_in_dicts_and_lists(name):
    """Distributed checkpoints take a tuple for one rank's own object."""
    pipeline = LINKS_WITH_A_STATE[name]()
    optimizer = Chain(pipeline, params=[leaf(2, 3), leaf(4)])
    steps(optimizer, 2)
    assert tensors_in(optimizer.state_dict())
    assert tensors_in(pipeline.init([leaf(2, 3), leaf(4)]))


# Draws and records see all of the tree, and masks and labels here are for two leaves.
APART = sorted(LINKS_WITH_A_STATE.keys() - {"add_noise", "record", "masked", "partition"})


@pytest.mark.parametrize("name", APART)
def test_a_parameter_that_comes_later_starts_a_state_of_its_own(name):
    """The others step as if it were not there."""
    late, p, alone = leaf(4, seed=1), leaf(2, 3), leaf(2, 3)
    optimizer = Chain(LINKS_WITH_A_STATE[name](), params=[p])
    plain = Chain(LINKS_WITH_A_STATE[name](), params=[alone])
    for time in range(4):
        if time == 2:
            optimizer.param_groups[0]["params"].insert(0, late)
        grad = values(2, 3, seed=time)
        step(plain, grad)
        step(optimizer, *([values(4, seed=9)] * (time >= 2)), grad)
    assert torch.equal(p, alone)


# ------------------------------------------------------------------ half precision and old files


@pytest.mark.parametrize(
    "link",
    [rc.scale_by_adam(), rc.trace(0.9), rc.ema(0.9), rc.scale_by_rms()],
    ids=lambda link: link.name,
)
def test_counts_and_float32_states_survive_loading_into_bfloat16(link):
    """torch casts every state that is not keyed `step` to the dtype of the parameter."""

    def made():
        p = leaf(5, dtype=torch.bfloat16)
        return Chain(rc.chain(link, rc.scale_by_learning_rate(0.1)), params=[p])

    optimizer, other = made(), made()
    for time in range(3):
        step(optimizer, values(5, seed=time))
    states = optimizer.state[parameters(optimizer)[0]]["links"]
    floating = [t for t in tensors_in(states) if t.is_floating_point()]
    assert floating and all(t.dtype == torch.float32 for t in floating)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert identical(other.state_dict(), optimizer.state_dict())


@pytest.mark.parametrize("size", [3, (1 << 19) + 8])
def test_an_old_checkpoint_whose_momentum_buffer_is_none(size):
    """Momentum turned on later is torch's: -0.561 after three steps, for small and large."""
    results = []
    for make in (lambda p: Chain(rc.scale(1.0), params=[p], lr=0.1), lambda p: SGD([p], lr=0.1)):
        p = torch.zeros(size, requires_grad=True)
        optimizer = make(p)
        saved = optimizer.state_dict()
        optimizer.load_state_dict({**saved, "state": {0: {"momentum_buffer": None}}})
        optimizer.param_groups[0]["momentum"] = 0.9
        for _ in range(3):
            step(optimizer, 1.0)
        results.append(p.detach())
    assert torch.equal(*results)
    torch.testing.assert_close(results[0], torch.full((size,), -0.561))


# ------------------------------------------------------------------ draws


def noise_in(optimizer):
    """What a step added to gradients of 0, for each parameter."""
    step(optimizer, *[0.0] * len(parameters(optimizer)))
    return [p.grad.clone() for p in parameters(optimizer)]


def all_different(draws):
    return not any(torch.equal(a, b) for a, b in itertools.combinations(draws, 2))


def uncorrelated(draws):
    """Five standard deviations of the correlation of independent normal values."""
    table = torch.corrcoef(torch.stack(draws)) - torch.eye(len(draws))
    return table.abs().max() < 5 / len(draws[0]) ** 0.5


def test_noise_differs_between_param_groups():
    """Two groups' parameters of one shape get independent noise."""
    groups = [{"params": leaves(2, 2000)}, {"params": leaves(2, 2000)}]
    assert uncorrelated(noise_in(Chain(rc.add_noise(1.0, 0.0), params=groups)))


def test_noise_differs_between_the_labels_of_a_partition():
    """Each label's first leaf is not the same draw."""
    tx = rc.partition(
        {"a": rc.add_noise(1.0, 0.0), "b": rc.add_noise(1.0, 0.0)}, ["a", "b", "a", "b"]
    )
    grads = [torch.zeros(2000) for _ in range(4)]
    assert uncorrelated(tx.update(grads, tx.init(grads))[0])
    assert uncorrelated(noise_in(Chain(tx, params=leaves(4, 2000))))


def test_noise_differs_between_the_links_of_a_chain():
    """The difference of two noises is no zero: its variance is 2."""
    tx = rc.chain(rc.add_noise(1.0, 0.0), rc.scale(-1.0), rc.add_noise(1.0, 0.0))
    grad = torch.zeros(100_000)
    pure, _ = tx.update(grad, tx.init(grad))
    (stateful,) = noise_in(Chain(tx, params=leaves(1, 100_000)))
    for noise in (pure, stateful):
        assert abs(noise.var().item() - 2.0) < 0.05


WRAPPERS = {
    "no wrapper": lambda tx: tx,
    "masked": lambda tx: rc.masked(tx, [True]),
    "partition": lambda tx: rc.partition({"a": tx}, ["a"]),
    "apply_if_finite": lambda tx: rc.apply_if_finite(tx, 3),
}


@pytest.mark.parametrize("first", WRAPPERS)
@pytest.mark.parametrize("second", WRAPPERS)
def test_noise_differs_inside_and_outside_of_wrappers(first, second):
    """A link's place in the pipeline counts the wrappers around it."""
    noise = rc.add_noise(1.0, 0.0)
    tx = rc.chain(WRAPPERS[first](noise), rc.scale(-1.0), WRAPPERS[second](noise))
    grad = [torch.zeros(100_000)]
    (sent,), _ = tx.update(grad, tx.init(grad))
    assert abs(sent.var().item() - 2.0) < 0.05


def test_no_two_draws_are_the_same():
    """Over links, labels, groups, parameters, steps and seeds."""
    drawn = []
    for seed in (0, 1, 2**40):
        noise = rc.add_noise(1.0, 0.0, seed=seed)
        both = rc.partition({"a": noise, "b": noise}, ["a", "b"])
        for links in ((noise,), (rc.scale(0.0), noise), (both,), (noise, rc.scale(0.0), both)):
            groups = [{"params": leaves(2, 40)}, {"params": leaves(2, 40)}]
            optimizer = Chain(*links, params=groups)
            here = noise_in(optimizer) + noise_in(optimizer) + noise_in(optimizer)
            assert all_different(here)
            drawn.append(here[0])
    firsts = drawn[0::4]
    assert all_different(firsts)


@pytest.mark.parametrize("where", ["groups", "labels"])
def test_drawn_q_differ_between_groups_and_labels(where):
    """How many of 100,000 elements are kept tells the q that was drawn."""
    size, draw = 100_000, rc.top_q(0.5, dq=0.5, param_ndim=None)
    params = leaves(4, size)
    if where == "groups":
        optimizer = Chain(draw, params=[{"params": [p]} for p in params])
    else:
        labels = ["a", "b", "c", "d"]
        optimizer = Chain(rc.partition(dict.fromkeys(labels, draw), labels), params=params)
    step(optimizer, *[values(size, seed=i) for i in range(4)])
    assert len({int(p.grad.count_nonzero()) for p in params}) == 4


def test_drawn_q_differ_between_the_links_of_a_chain():
    """Between the two, each element that the first one zeroed becomes 10."""
    draw, kept = rc.top_q(0.5, dq=0.5, param_ndim=None), []

    @rc.elementwise
    def refill(grad):
        kept.append(int(grad.count_nonzero()))
        return torch.where(grad == 0, 10.0, grad)

    tx = rc.chain(draw, refill(), draw)
    grad = values(100_000)
    out, _ = tx.update(grad, tx.init(grad))
    assert out.count_nonzero() != kept[-1]


# ------------------------------------------------------------------ freed at once


def freed(make):
    """Whether the tensor that `make` returns last, and what holds it, go when they are dropped."""
    gc.collect()
    gc.disable()
    try:
        *things, tensor = make()
        seen = [weakref.ref(thing) for thing in (*things, tensor) if not isinstance(thing, tuple)]
        del things, tensor
        return all(ref() is None for ref in seen)
    finally:
        gc.enable()


class Halved(rc.optim.ParamTransformingOptimizer):
    def _pre_step_transform_(self, param, optim_group):
        param.grad /= 2


OPTIMIZERS = {
    "chain": lambda p: Chain(rc.top_q(0.5), rc.ema(0.9), rc.l2_ball(1.0), params=[p]),
    "class": lambda p: SignedGradientOptim([p], InnerOpt=Adam),
    "class with hooks": lambda p: Halved([p]),
    "mixed": lambda p: Chain(partial(TopQGradientOptimizer, q=0.5), Halved, params=[p]),
    "frank wolfe": lambda p: rc.optim.L1FrankWolfe([p], epsilon=1.0),
    "native": lambda p: Chain(rc.adam(0.1), params=[p]),
    "wrapped": lambda p: Chain(rc.lookahead(rc.adam(0.1), 2), params=[p]),
    "from torch": lambda p: Chain(rc.from_torch(Adam), params=[p]),
    "pipeline": lambda p: rc.adam(0.1).optimizer([p]),
    "compiled": lambda p: Chain(rc.scale(0.5), params=[p], compile=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_dropped_optimizer_is_freed_at_once(name):
    """By reference counts alone, as torch's own."""

    def make():
        p = leaf(3, 4)
        optimizer = OPTIMIZERS[name](p)
        if name != "compiled":
            give([p], [1.0])
            optimizer.step()
        return optimizer, p

    assert freed(make)


PIPELINES = {
    "link": lambda tensor: rc.scale(tensor),
    "chain": lambda tensor: rc.chain(rc.scale(tensor), rc.sign()),
    "masked": lambda tensor: rc.masked(rc.scale(tensor), [True]),
    "partition": lambda tensor: rc.partition({"a": rc.scale(tensor)}, ["a"]),
    "from_torch": lambda tensor: rc.from_torch(SGD, lr=tensor),
    "compiled": lambda tensor: rc.scale(tensor).compile(backend="eager"),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_dropped_pipeline_is_freed_at_once(name):
    """It is a tuple, as TorchOpt's is, and has no weak references: the tensor it holds has."""

    def make():
        tensor = torch.tensor(1.0)
        tx = PIPELINES[name](tensor)
        return tx, tensor

    assert freed(make)


# ------------------------------------------------------------------ what users patch


@pytest.mark.parametrize("size", [3, (1 << 19) + 8])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_step_that_was_patched_on_the_inner_class_runs(monkeypatch, when, size):
    """`SGD.step = mine` acts on every SGD there is, in here too."""
    seen = []

    def patch():
        original = SGD.step

        def mine(self, closure=None):
            seen.append(self)
            return original(self, closure)

        monkeypatch.setattr(SGD, "step", mine)

    if when == "before":
        patch()
    optimizer = Chain(rc.scale(0.5), params=[torch.zeros(size, requires_grad=True)], lr=1.0)
    if when == "after":
        patch()
    step(optimizer, 1.0)
    assert seen and seen[0] is optimizer.inner_opt
    assert torch.equal(parameters(optimizer)[0], torch.full((size,), -0.5))
