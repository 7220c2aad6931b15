"""Faults that use of both homes brought to light, each once."""

import copy
import functools
import io

import pytest
import torch
from helpers import identical

import rai_chain as rc
from rai_chain import chain, scale
from rai_chain.optim import ChainedParamTransformingOptimizer, TopQGradientOptimizer


def ones(*shape):
    return torch.ones(*shape, requires_grad=True)


def step(optimizer, params, grads):
    for p, g in zip(params, grads, strict=True):
        p.grad = None if g is None else torch.full_like(p, g)
    optimizer.step()


def both_homes(tx, grads, size=1):
    """The parameters after these steps, in the pure home and in the optimizer."""
    pure = [torch.zeros(size) for _ in grads[0]]
    params = [x.clone().requires_grad_() for x in pure]
    state, optimizer = tx.init(pure), tx.optimizer(params)
    for row in grads:
        pure, state = tx.step(
            pure, [None if g is None else torch.full((size,), g) for g in row], state
        )
        step(optimizer, params, row)
    return pure, [p.detach() for p in params]


def test_a_mask_of_the_tree_is_asked_for_each_tree():
    a, b = ones(2), ones(2)
    a.frozen = True
    tx = chain(
        rc.masked(scale(0.0), lambda t: [getattr(p, "frozen", False) for p in t]), scale(-1.0)
    )
    optimizer = tx.optimizer([{"params": [a]}, {"params": [b]}])
    for _ in range(2):
        step(optimizer, [a, b], [1.0, 1.0])
    assert a.tolist() == [1.0, 1.0] and b.tolist() == [-1.0, -1.0]


def test_a_mask_of_the_dtypes_is_asked_again_for_others():
    tx = rc.masked(scale(0.0), lambda t: [x.dtype == torch.float32 for x in t])
    for dtype, left in ((torch.float32, 0.0), (torch.float64, 1.0)):
        g = [torch.ones(1, dtype=dtype)]
        assert tx.update(g, tx.init(g))[0][0].item() == left


@pytest.mark.parametrize(
    "tx",
    [
        rc.masked(rc.from_torch(torch.optim.SGD, lr=1.0), [True, False]),
        rc.masked(rc.lookahead(scale(-1.0)), [True, False]),
        rc.conditionally(rc.from_torch(torch.optim.SGD, lr=1.0), lambda tree, step: step >= 0),
        rc.lookahead(scale(-1.0), sync_period=2),
    ],
    ids=repr,
)
def test_a_parameter_without_a_gradient_stays(tx):
    pure, held = both_homes(tx, [[1.0, 1.0], [1.0, None], [1.0, None]])
    assert identical(pure, held)
    one, _ = both_homes(tx, [[1.0, 1.0]])
    assert identical(pure[1], one[1])


@pytest.mark.parametrize("place", [0, 1])
def test_a_number_over_a_schedule_goes_into_copies(place):
    x = ones(1)
    optimizer = (
        rc.sgd(lr=rc.cosine_decay_schedule(1.0, 10)).optimizer([x])
        if place
        else ChainedParamTransformingOptimizer(
            scale(1.0), params=[x], lr=rc.cosine_decay_schedule(1.0, 10)
        )
    )
    step(optimizer, [x], [1.0])
    optimizer.param_groups[0]["lr"] = 0.25
    other = copy.deepcopy(optimizer)
    (y,) = other.param_groups[0]["params"]
    for _ in range(2):
        step(optimizer, [x], [1.0])
        step(other, [y], [1.0])
    assert x.item() == y.item() == pytest.approx(-0.5)


@pytest.mark.parametrize("change", ["remove", "reverse"])
def test_draws_follow_the_groups_as_they_are(change):
    params = [torch.zeros(6, requires_grad=True) for _ in range(2)]
    tx = chain(rc.add_noise(1.0, 0.55), scale(-1.0))
    optimizer = tx.optimizer([{"params": [p]} for p in params])
    step(optimizer, params, [1.0, 1.0])
    if change == "remove":
        del optimizer.param_groups[0]
    else:
        optimizer.param_groups.reverse()
    other = copy.deepcopy(optimizer)
    mine = [p for g in optimizer.param_groups for p in g["params"]]
    theirs = [p for g in other.param_groups for p in g["params"]]
    step(optimizer, mine, [1.0] * len(mine))
    step(other, theirs, [1.0] * len(mine))
    assert identical([p.detach() for p in mine], [p.detach() for p in theirs])


def test_a_momentum_that_is_turned_off_in_a_graph(monkeypatch):
    plain = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", plain)
    found = []
    for compiled in (False, True):
        x = torch.zeros(2, requires_grad=True)
        optimizer = ChainedParamTransformingOptimizer(
            rc.clamp(-1.0, 1.0), params=[x], lr=0.1, momentum=0.9, dampening=0.5, compile=compiled
        )
        for i in range(6):
            optimizer.param_groups[0]["momentum"] = 0 if i in (2, 3) else 0.9
            step(optimizer, [x], [1.0])
        found.append(x.detach())
    torch.testing.assert_close(*found, rtol=1e-6, atol=0)


def resumed(make, grads):
    """Steps after a checkpoint was loaded into a new optimizer, and those of the old one."""
    old = make()
    first = [p for g in old.param_groups for p in g["params"]]
    step(old, first, grads)
    file = io.BytesIO()
    torch.save(old.state_dict(), file)
    file.seek(0)
    new = make()
    second = [p for g in new.param_groups for p in g["params"]]
    with torch.no_grad():
        for p, q in zip(second, first, strict=True):
            p.copy_(q)
    new.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(3):
        step(old, first, [0.5] * len(first))
        step(new, second, [0.5] * len(first))
    return [p.detach() for p in first], [p.detach() for p in second]


@pytest.mark.parametrize("grads", [[1.0, None], [None, 1.0], [None, None]])
@pytest.mark.parametrize(
    "tx",
    [
        rc.accumulate(rc.adam(0.1), 2),
        chain(rc.adam(0.1), rc.params_ema(0.9)),
        chain(scale(lambda step: -0.1 * step), rc.trace(0.9)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("groups", [1, 2])
def test_resume_where_some_had_no_gradient_yet(tx, groups, grads):
    def make():
        a, b = ones(2), ones(3)
        return tx.optimizer([a, b] if groups == 1 else [{"params": [a]}, {"params": [b]}])

    assert identical(*resumed(make, grads))


@pytest.mark.parametrize(
    "tx",
    [
        rc.lookahead(rc.from_torch(torch.optim.Adam, lr=0.1), 2),
        rc.accumulate(rc.from_torch(torch.optim.SGD, lr=0.1, momentum=0.9), 2),
        rc.partition(
            {
                "a": rc.from_torch(torch.optim.Adam, lr=0.1),
                "b": rc.from_torch(torch.optim.SGD, lr=1.0),
            },
            lambda path: "a" if path == "0" else "b",
        ),
    ],
    ids=repr,
)
def test_resume_of_a_torch_optimizer_inside_a_wrapper(tx):
    assert identical(*resumed(lambda: tx.optimizer([ones(2), ones(3)]), [1.0, 2.0]))


def test_a_checkpoint_from_before_the_first_step_with_a_generator():
    def make():
        drawn = functools.partial(
            TopQGradientOptimizer, q=0.5, dq=0.5, generator=torch.Generator().manual_seed(3)
        )
        tx = chain(rc.ema(0.9), scale(lambda step: 1.0 + step))
        return ChainedParamTransformingOptimizer(drawn, tx, params=[torch.ones(3).requires_grad_()])

    old, new = make(), make()
    new.load_state_dict(old.state_dict())
    for one in (old, new):
        step(one, one.param_groups[0]["params"], [1.0])
    assert identical(old.param_groups[0]["params"], new.param_groups[0]["params"])


def test_a_group_that_the_step_refuses_is_not_added():
    a, b = ones(2), ones(2)
    optimizer = rc.lookahead(rc.sgd(0.1), 2).optimizer([a])
    with pytest.raises(ValueError, match="slow_step_size"):
        optimizer.add_param_group({"params": [b], "slow_step_size": 5.0})
    assert len(optimizer.param_groups) == 1
    step(optimizer, [a], [1.0])


def test_a_step_without_gradients_counts_in_both_homes():
    tx = chain(rc.l2_oracle(1.0), rc.frank_wolfe_step())
    pure, held = both_homes(tx, [[None], [1.0], [-1.0]], size=2)
    assert identical(pure, held)


@pytest.mark.parametrize(
    ("tx", "key"),
    [
        (chain(rc.clamp(-9.0, 9.0), rc.from_torch(torch.optim.SGD, lr=1.0)), "SGD_0.lr"),
        (rc.lookahead(scale(-1.0), sync_period=1), "lookahead_0.slow_step_size"),
    ],
    ids=["from_torch", "lookahead"],
)
def test_a_qualified_key_of_the_link_that_steps(tx, key):
    p = torch.zeros(1)
    expected = tx.step(p, torch.ones(1), tx.init(p), hyperparams={key: 0.25})[0]
    x = torch.zeros(1, requires_grad=True)
    optimizer = tx.optimizer([{"params": [x], key: 0.25}])
    step(optimizer, [x], [1.0])
    assert x.item() == expected.item() == -0.25


CLAMPS = (rc.clamp(clamp_max=5.0), rc.lookahead(chain(rc.clamp(clamp_max=1.0), scale(-1.0)), 9))


def test_a_name_that_the_link_that_steps_has_too_means_neither():
    x = torch.zeros(1, requires_grad=True)
    pure = chain(*CLAMPS)
    both = {"clamp_0.clamp_max", "lookahead_0.clamp_max"}
    optimizer = pure.optimizer([x])
    assert both <= optimizer.param_groups[0].keys() and "clamp_max" not in optimizer.param_groups[0]
    with pytest.raises(ValueError, match="one of") as of_the_pure:
        pure.step(x.detach(), torch.ones(1), pure.init(x), hyperparams={"clamp_max": 2.0})
    with pytest.raises(ValueError, match="one of") as of_the_optimizer:
        pure.optimizer([{"params": [x], "clamp_max": 2.0}])
    assert all(key in str(e.value) for e in (of_the_pure, of_the_optimizer) for key in both)
    optimizer.param_groups[0]["lookahead_0.clamp_max"] = 4.0
    step(optimizer, [x], [9.0])
    assert x.item() == -4.0


def test_a_name_that_is_shared_reaches_the_link_that_steps_as_well():
    x = torch.zeros(1, requires_grad=True)
    inner = rc.lookahead(chain(scale(-1.0), rc.clamp(clamp_max=5.0)), 9)
    tx = chain(rc.clamp(clamp_max=5.0), inner, shared=["clamp_max"])
    optimizer = tx.optimizer([{"params": [x], "clamp_max": 3.0}])
    assert not {"clamp_0.clamp_max", "lookahead_0.clamp_max"} & optimizer.param_groups[0].keys()
    step(optimizer, [x], [9.0])
    assert x.item() == -3.0
    step(optimizer, [x], [-9.0])
    assert x.item() == 0.0


def test_shared_values_that_are_tensors():
    several, other = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])
    chain(scale(several), scale(several), shared=["grad_scale"])
    for first in (other, 1.0, torch.tensor(1.0)):
        with pytest.raises(ValueError, match="must have one value, as it is shared"):
            chain(scale(several), scale(first), shared=["grad_scale"])


@rc.elementwise
def raw(x, *, grad):
    """Minus the raw gradient."""
    return -grad


@rc.elementwise(phase="parameter")
def back_by_the_gradient(x, *, grad):
    """The parameter, moved by its raw gradient."""
    return x + grad


@pytest.mark.parametrize(
    "tx",
    [
        chain(rc.clamp(clamp_max=1.0), raw()),
        chain(rc.clamp(clamp_max=1.0), rc.lookahead(raw(), sync_period=10)),
        chain(rc.clamp(clamp_max=1.0), scale(-1.0), back_by_the_gradient()),
    ],
    ids=["gradient", "step", "parameter"],
)
def test_the_raw_gradient_is_raw_in_every_phase(tx):
    pure, held = both_homes(tx, [[5.0, 3.0], [2.0, -7.0]])
    assert identical(pure, held)


def test_no_gradient_is_copied_that_nobody_asks_for():
    x = torch.zeros(1000, requires_grad=True)
    optimizer = chain(rc.ema(0.9), scale(-1.0)).optimizer([x])
    step(optimizer, [x], [1.0])
    x.grad = torch.ones(1000)
    copies = []

    class Seen(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten.clone.default:
                copies.append(args)
            return function(*args, **(kwargs or {}))

    with Seen():
        optimizer.step()
    assert not copies


def test_a_gradient_that_only_a_later_call_of_the_closure_finds():
    a, b = ones(1), ones(1)
    calls = []

    def closure():
        calls.append(None)
        for p in (a, b):
            p.grad = None
        loss = (a.square() + (b.square() if len(calls) > 1 else 0)).sum()
        loss.backward()
        return loss

    optimizer = ChainedParamTransformingOptimizer(
        rc.ema(0.5), params=[a, b], InnerOpt=functools.partial(torch.optim.LBFGS, max_iter=2)
    )
    optimizer.step(closure)
    kept = [optimizer.state[p]["links"]["ema_0"]["ema"].item() for p in (a, b)]
    assert len(calls) > 1 and all(kept)


def test_a_count_that_starts_without_a_gradient_is_where_the_parameters_are():
    x = torch.ones(1, device="meta", requires_grad=True)
    optimizer = rc.accumulate(scale(-1.0), 2).optimizer([x])
    optimizer.step()
    assert optimizer.param_groups[0]["link_states"]["accumulate_0"]["gathered"].is_meta
