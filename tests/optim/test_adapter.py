"""The laws of the stateful home."""

import copy
import inspect
import io
import pickle
import warnings
from functools import partial

import pytest
import rai_toolbox.optim as rai_toolbox_optim
import torch
import torchopt
from torch import Tensor, ones, tensor, zeros
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, StepLR
from torch.optim.optimizer import register_optimizer_step_post_hook

import rai_chain as rc
from rai_chain.core.link import Link
from rai_chain.optim import (
    ChainedParamTransformingOptimizer,
    ClampedGradientOptimizer,
    FrankWolfe,
    L1FrankWolfe,
    L1qNormedGradientOptim,
    L2FrankWolfe,
    LinfFrankWolfe,
    LinfProjectedOptim,
    ParamTransformingOptimizer,
    SignedGradientOptim,
    StepOptimizer,
    TopQGradientOptimizer,
)

Chain = ChainedParamTransformingOptimizer


def values(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def leaf(*shape, seed=0, dtype=torch.float32):
    return values(*shape, seed=seed, dtype=dtype).requires_grad_()


def give_grads(params, time=0):
    for i, p in enumerate(params):
        p.grad = values(*p.shape, seed=1000 + 100 * time + i, dtype=p.dtype)


def parameters(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def steps(optimizer, count=3, start=0):
    for time in range(start, start + count):
        give_grads(parameters(optimizer), time)
        optimizer.step()
    return [p.detach().clone() for p in parameters(optimizer)]


def equal(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def snapshot(optimizer):
    """Everything that a refused call must leave as it was."""
    tensors = [(p.detach(), p.grad) for p in parameters(optimizer)]
    state = optimizer.state_dict()
    return copy.deepcopy((tensors, dict(optimizer.defaults), state["state"], state["param_groups"]))


def identical(a, b):
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.layout == b.layout and torch.equal(dense(a), dense(b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(identical(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(identical, a, b))
    return a is b or a == b


def dense(a):
    return a.to_dense() if a.is_sparse else a


class Halved(ParamTransformingOptimizer):
    def _pre_step_transform_(self, param, optim_group):
        param.grad /= 2


class Shifted(ParamTransformingOptimizer):
    """A user's class with a hyperparameter of its own, in both hooks."""

    def __init__(self, params=None, InnerOpt=SGD, *, shift=1.0, defaults=None, **kwargs):  # noqa: N803
        defaults = {} if defaults is None else defaults
        defaults.setdefault("shift", shift)
        super().__init__(params, InnerOpt, defaults=defaults, **kwargs)

    def _pre_step_transform_(self, param, optim_group):
        param.grad += optim_group["shift"]

    def _post_step_transform_(self, param, optim_group):
        param -= optim_group["shift"]


@rc.elementwise(state=lambda grad: {"total": torch.zeros_like(grad)})
def summed(grad, *, state):
    total = state["total"] + grad
    return total, {"total": total}


# ------------------------------------------------------------------ one list of groups


def mixed(params, **kwargs):
    return Chain(
        partial(TopQGradientOptimizer, q=0.25),
        rc.chain(rc.clamp(-1.0, 1.0), rc.clip_by_global_norm(2.0)),
        SignedGradientOptim,
        Halved,
        partial(Shifted, shift=0.5),
        rc.named_chain(("last", rc.scale(0.1))),
        rc.box(-1.0, 1.0),
        params=params,
        **kwargs,
    )


def test_chain_members_and_inner_share_everything():
    optimizer = mixed([leaf(3)], lr=0.1, momentum=0.9)
    all_of_them = [optimizer, optimizer.inner_opt, *optimizer._chain]
    assert len(all_of_them) == 9

    def shared():
        for name in ("param_groups", "defaults", "state"):
            assert len({id(getattr(one, name)) for one in all_of_them}) == 1
        for one in all_of_them[1:]:
            assert one.state_dict() == all_of_them[0].state_dict()
            assert one.__getstate__() == all_of_them[0].__getstate__()

    shared()
    optimizer.add_param_group({"params": leaf(2, 2), "q": 0.5})
    shared()
    steps(optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    shared()
    assert optimizer.state
    for number, one in enumerate(all_of_them):
        one.add_param_group({"params": leaf(4, seed=number)})
        one.load_state_dict(one.state_dict())
        steps(optimizer)
        shared()


def test_a_mixed_chain_is_its_members_in_order():
    x = leaf(2, 4)
    optimizer = mixed([x], lr=0.5)
    give_grads([x])
    grad, start = x.grad.clone(), x.detach().clone()
    optimizer.step()
    for link in (rc.top_q(0.25), rc.clamp(-1.0, 1.0), rc.clip_by_global_norm(2.0), rc.sign()):
        grad = link.map(grad)
    grad = (grad / 2 + 0.5) * 0.1
    assert torch.equal(x.grad, grad)
    assert torch.equal(x, (start.add(grad, alpha=-0.5) - 0.5).clamp(-1.0, 1.0))


def test_the_repr_names_the_members_from_the_outside_in():
    assert repr(mixed([leaf(3)])).startswith(
        "box ○ scale ○ Shifted ○ Halved ○ SignedGradientOptim ○ clip_by_global_norm ○ clamp ○ "
        "TopQGradientOptimizer [SGD](\nParameter Group 0\n    clamp_max: 1.0\n"
    )


def test_the_gradient_is_transformed_in_place():
    x = leaf(4)
    give_grads([x])
    grad = x.grad
    Chain(rc.sign(), Halved, params=[x]).step()
    assert x.grad is grad and set(grad.abs().tolist()) == {0.5}


# ------------------------------------------------------------------ inner optimizers

NOT_ORDINARY = (Optimizer, torch.optim.LBFGS, torch.optim.SparseAdam)  # a closure; sparse only


def ordinary():
    """Every class of torch.optim, and the ways it can run."""
    for kind in vars(torch.optim).values():
        if isinstance(kind, type) and issubclass(kind, Optimizer) and kind not in NOT_ORDINARY:
            names = inspect.signature(kind).parameters
            yield kind, {"lr": 0.01}
            for way in ("foreach", "fused", "maximize"):
                if way in names:
                    yield kind, {"lr": 0.01, way: True}


@pytest.mark.parametrize(("kind", "options"), list(ordinary()), ids=str)
def test_any_inner_optimizer(kind, options):
    shapes = [(3, 5), (4, 2)] if kind is torch.optim.Muon else [(3, 5), (6,), ()]
    plain = [leaf(*shape, seed=i) for i, shape in enumerate(shapes)]
    params = [leaf(*shape, seed=i) for i, shape in enumerate(shapes)]
    inner = kind(plain, **options)
    top, clamp = rc.top_q(0.4, param_ndim=None), rc.clamp(-1.0, 0.75)
    links = (top, clamp, rc.box(-0.9, 0.9))
    optimizer = Chain(*links, params=params, InnerOpt=kind, param_ndim=None, **options)
    for time in range(4):
        give_grads(plain, time)
        for p in plain:
            p.grad = clamp.map(top.map(p.grad))
        inner.step()
        with torch.no_grad():
            for p in plain:
                p.clamp_(-0.9, 0.9)
    assert equal(steps(optimizer, 4), plain)


def test_lbfgs_and_its_closure():
    target = values(6, seed=3)

    def minimise(x, optimizer, transform):
        def closure():
            optimizer.zero_grad()
            loss = (x - target).square().sum()
            loss.backward()
            transform(x)
            return loss

        losses = [optimizer.step(closure).item() for _ in range(3)]
        return losses, x.detach()

    def clamp_grad(x):
        x.grad.clamp_(-0.5, 0.5)

    kwargs = {"max_iter": 4, "line_search_fn": "strong_wolfe"}
    x = leaf(6)
    plain = minimise(x, torch.optim.LBFGS([x], **kwargs), clamp_grad)
    x = leaf(6)
    chained = Chain(rc.clamp(-0.5, 0.5), params=[x], InnerOpt=torch.optim.LBFGS, **kwargs)
    losses, found = minimise(x, chained, lambda x: None)
    assert losses == plain[0] and torch.equal(found, plain[1])


def test_a_closure_sees_gradients_enabled_and_its_loss_comes_back():
    x = leaf(3)
    optimizer = Chain(rc.sign(), params=[x], lr=0.1)
    seen = []

    def closure():
        seen.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = x.sum()
        loss.backward()
        return loss

    expected = x.sum().item()
    assert optimizer.step(closure=closure).item() == expected
    assert seen == [True] and x.grad.tolist() == [1, 1, 1]
    assert optimizer.step(closure=None) is None


def test_an_inner_optimizer_in_every_form():
    for inner in (SGD, partial(SGD, lr=0.5), SGD([leaf(3)], lr=0.5)):
        optimizer = SignedGradientOptim([leaf(3)], inner)
        assert isinstance(optimizer.inner_opt, SGD)
        if isinstance(inner, SGD):
            assert optimizer.inner_opt is inner and optimizer.param_groups is inner.param_groups
    outer = Chain(rc.clamp(clamp_max=0.5), params=[leaf(3)], InnerOpt=SignedGradientOptim, lr=1.0)
    assert isinstance(outer.inner_opt.inner_opt, SGD)
    x = parameters(outer)[0]
    before = x.detach().clone()
    steps(outer, 1)
    assert torch.equal(x.grad.abs(), ones(3)) and torch.equal(x, before - x.grad)


def test_an_inner_optimizer_that_transforms_too():
    def made():
        generator = torch.Generator().manual_seed(3)
        drawn = partial(
            TopQGradientOptimizer, q=lambda step: 0.1 * step, dq=0.5, generator=generator
        )
        scheduled = rc.top_q(q=lambda step: 0.1 * step, dq=0.1)
        return Chain(scheduled, rc.box(-1.0, 1.0), params=[leaf(5, 8)], InnerOpt=drawn, lr=0.1)

    whole, first, second = made(), made(), made()
    steps(first, 2)
    assert first.param_groups[0]["q"] == first.param_groups[0]["top_q_1.q"] == tensor(2) * 0.1
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    with torch.no_grad():
        parameters(second)[0].copy_(parameters(first)[0])
    assert equal(steps(second, 2, start=2), steps(whole, 4))


def test_from_torch_inside_the_chain_is_the_inner_optimizer():
    inside = Chain(rc.sign(), rc.from_torch(Adam, lr=0.1), rc.box(-1.0, 1.0), params=[leaf(5)])
    beside = Chain(rc.sign(), rc.box(-1.0, 1.0), params=[leaf(5)], InnerOpt=Adam, lr=0.1)
    assert type(inside.inner_opt) is Adam and repr(inside) == repr(beside)
    assert equal(steps(inside), steps(beside))
    with pytest.raises(ValueError, match="InnerOpt"):
        Chain(rc.from_torch(Adam), params=[leaf(5)], InnerOpt=Adam)


def test_a_link_that_steps_keeps_its_scale_beside_the_chains():
    x = leaf(4)
    links = (rc.normalize(2, param_ndim=None), rc.frank_wolfe_step(grad_scale=-3.0))
    optimizer = Chain(*links, params=[x], param_ndim=None)
    group = optimizer.param_groups[0]
    assert (group["grad_scale"], group["frank_wolfe_step_0.grad_scale"]) == (1, -3.0)
    tx = rc.chain(*links)
    pure, state = x.detach().clone(), tx.init(x)
    for time in range(3):
        pure, state = tx.step(pure, values(4, seed=1000 + 100 * time), state)
    assert equal(steps(optimizer), [pure])


# ------------------------------------------------------------------ hyperparameters


def test_each_hyperparameter_can_be_set_for_each_group():
    groups = [
        {"params": leaf(2, 3)},
        {"params": leaf(2, 3), "q": 0.9, "param_ndim": None, "grad_scale": 2.0, "grad_bias": 1.0},
        {"params": leaf(2, 3), "clamp_1.clamp_max": 0.25, "lr": 0.0},
    ]
    two = (rc.clamp(clamp_max=1.0), rc.clamp(clamp_max=0.5))
    optimizer = Chain(rc.top_q(0.4), *two, params=groups)
    first, second, third = parameters(optimizer)
    grad, before = values(2, 3, seed=1000), third.detach().clone()
    for p in (first, second, third):
        p.grad = grad.clone()
    optimizer.step()
    assert torch.equal(first.grad, rc.top_q(0.4).map(grad).clamp(max=0.5))
    kept = rc.top_q(0.9, param_ndim=None).map(grad).clamp(max=0.5)
    assert torch.equal(second.grad, kept * 2 + 1)
    assert torch.equal(third.grad, rc.top_q(0.4).map(grad).clamp(max=0.25))
    assert torch.equal(third, before)


def test_a_name_of_the_inner_optimizer_stays_its_own():
    @rc.elementwise
    def damped(grad, momentum=0.5):
        return grad * momentum

    x = leaf(3)
    optimizer = Chain(damped(), params=[x], lr=1.0, momentum=0.0)
    group = optimizer.param_groups[0]
    assert (group["momentum"], group["damped_0.momentum"]) == (0.0, 0.5)
    before = x.detach().clone()
    steps(optimizer, 1)
    assert torch.equal(x.grad, values(3, seed=1000) * 0.5) and torch.equal(x, before - x.grad)


def test_a_user_class_whose_key_another_member_has():
    x = tensor([0.0], requires_grad=True)
    optimizer = Chain(partial(Shifted, shift=1.0), partial(Shifted, shift=10.0), params=[x], lr=1.0)
    assert optimizer.param_groups[0]["Shifted_1.shift"] == 10.0
    x.grad = zeros(1)
    optimizer.step()
    assert (x.grad.item(), x.item()) == (11.0, -22.0)


def test_names_from_named_chain():
    named = rc.named_chain(("low", rc.clamp(clamp_min=0.0)), ("high", rc.clamp(clamp_max=1.0)))
    optimizer = Chain(
        named, rc.clamp(-5.0, 5.0), params=[{"params": leaf(3), "high.clamp_max": 0.5}]
    )
    group = optimizer.param_groups[0]
    assert (group["low.clamp_min"], group["high.clamp_max"]) == (0.0, 0.5)
    assert group["clamp_0.clamp_min"] == -5.0
    with pytest.raises(ValueError, match="'low' twice"):
        Chain(named, named, params=[leaf(3)])


def test_ambiguous_keys_are_refused_and_the_qualified_ones_listed():
    links = (rc.clamp(clamp_max=1.0), rc.top_q(0.5), rc.clamp(clamp_min=-1.0))
    listed = "clamp_0.clamp_max, clamp_1.clamp_max"
    for make in (
        lambda: Chain(*links, params=[{"params": leaf(3), "clamp_max": 2.0}]),
        lambda: Chain(*links, params=[leaf(3)], defaults={"clamp_max": 2.0}),
        lambda: Chain(*links, params=[leaf(3)]).add_param_group(
            {"params": leaf(3), "clamp_max": 2.0}
        ),
    ):
        with pytest.raises(ValueError, match=listed):
            make()
    optimizer = Chain(*links, params=[leaf(3)])
    optimizer.param_groups[0]["clamp_max"] = 2.0
    give_grads(parameters(optimizer))
    with pytest.raises(ValueError, match=listed):
        optimizer.step()
    qualified = Chain(*links, params=[{"params": leaf(3), "top_q_0.q": 0.1}]).param_groups[0]
    assert qualified["q"] == 0.1 and "top_q_0.q" not in qualified


def test_a_value_written_by_hand_counts_from_the_next_step_and_is_checked():
    x = leaf(10)
    optimizer = Chain(rc.top_q(0.5), rc.linf_ball(1.0), params=[x], param_ndim=None)
    optimizer.param_groups[0]["q"] = 0.9
    steps(optimizer, 1)
    assert x.grad.count_nonzero() == 1
    for key, bad in (("q", 1.5), ("q", float("nan")), ("epsilon", -1.0), ("grad_scale", "1")):
        good = optimizer.param_groups[0][key]
        give_grads([x])
        optimizer.param_groups[0][key] = bad
        refused(optimizer.step, optimizer, f"`{key}` must")
        optimizer.param_groups[0][key] = good
    del optimizer.param_groups[0]["q"]
    with pytest.raises(ValueError, match="`q` must be given"):
        optimizer.step()


def test_dq_may_be_switched_on_by_hand():
    x = leaf(50)
    optimizer = Chain(rc.top_q(0.5, seed=1), params=[x], param_ndim=None)
    steps(optimizer, 1)
    assert x.grad.count_nonzero() == 25
    optimizer.param_groups[0]["dq"] = 0.5
    tx = rc.top_q(0.5, dq=0.5, seed=1, param_ndim=None)
    state = tx.init(x)
    for time in range(3):
        steps(optimizer, 1)
        expected, state = tx.update(values(50, seed=1000), state)
        assert torch.equal(x.grad, expected), time


@pytest.mark.parametrize("how", ["link", "partial", "group", "defaults", "by hand"])
def test_a_schedule_for_any_hyperparameter(how):
    def q_at(step):
        return 0.1 * step

    def radius_at(step):
        return 1.0 - 0.25 * step

    x = leaf(10)
    if how == "link":
        members = (rc.top_q(q_at), rc.linf_ball(radius_at))
    elif how == "partial":
        members = (
            partial(TopQGradientOptimizer, q=q_at),
            partial(LinfProjectedOptim, epsilon=radius_at),
        )
    else:
        members = (rc.top_q(0.5), rc.linf_ball(9.0))
    given = {"q": q_at, "epsilon": radius_at}
    group = {"params": [x], **(given if how == "group" else {})}
    defaults = given if how == "defaults" else None
    optimizer = Chain(*members, params=[group], param_ndim=None, defaults=defaults)
    if how == "by hand":
        optimizer.param_groups[0].update(given)
    for time in range(4):
        give_grads([x], time)
        x.data *= 100
        optimizer.step()
        assert x.grad.count_nonzero() == 10 - time
        assert x.abs().max() == 1.0 - 0.25 * time
    group = optimizer.param_groups[0]
    assert float(group["q"]) == pytest.approx(0.4)  # the next step's
    assert group["link_states"]["top_q_0"]["step"] == 4


@pytest.mark.parametrize("make", [FrankWolfe, StepOptimizer])
def test_a_schedule_of_an_optimizer_that_steps_alone(make):
    options = {"lr": lambda step: 0.5 / (1 + step), "use_default_lr_schedule": False}
    x = leaf(4)
    tx = rc.frank_wolfe_step(grad_scale=-2.0, **options)
    pure, state = x.detach().clone(), tx.init(x)
    options["lmo_scaling_factor"] = lambda step: 2.0
    optimizer = FrankWolfe([x], **options) if make is FrankWolfe else StepOptimizer([x], tx)
    for time in range(3):
        pure, state = tx.step(pure, values(4, seed=1000 + 100 * time), state)
    assert equal(steps(optimizer), [pure])


@pytest.mark.parametrize("how", ["class", "optimizer", "chain"])
def test_a_schedule_in_frank_wolfe(how):
    def rate(step):
        return 0.5 / (1 + step)

    def radius(step):
        return 1.0 + step

    options = {"lr": rate, "use_default_lr_schedule": False}
    around = {"InnerOpt": FrankWolfe, "lmo_scaling_factor": radius, **options}
    tx = rc.chain(rc.sign(), rc.frank_wolfe_step(grad_scale=lambda step: -radius(step), **options))
    x = leaf(4)
    optimizer = {
        "class": lambda: LinfFrankWolfe([x], epsilon=radius, **options),
        "optimizer": lambda: SignedGradientOptim([x], **around),
        "chain": lambda: Chain(tx, params=[x]),
    }[how]()
    pure, state = x.detach().clone(), tx.init(x)
    for time in range(3):
        pure, state = tx.step(pure, values(4, seed=1000 + 100 * time), state)
    assert equal(steps(optimizer), [pure])
    group = optimizer.param_groups[0]
    assert group["lr"] == rate(tensor(3))


def test_a_schedule_inside_from_torch():
    def rate(step):
        return 0.5 / (1 + step)

    tx = rc.chain(rc.sign(), rc.from_torch(SGD, lr=rate, momentum=0.5))
    groups = [{"params": leaf(4)}, {"params": leaf(4, seed=1), "lr": 0.25}]
    optimizer = Chain(tx, params=groups)
    constant = rc.chain(rc.sign(), rc.from_torch(SGD, lr=0.25, momentum=0.5))
    pure = [p.detach().clone() for p in parameters(optimizer)]
    states = [tx.init(pure[0]), constant.init(pure[1])]
    for time in range(3):
        grads = [values(4, seed=1000 + 100 * time + i) for i in range(2)]
        pure[0], states[0] = tx.step(pure[0], grads[0], states[0])
        pure[1], states[1] = constant.step(pure[1], grads[1], states[1])
    assert equal(steps(optimizer), pure)


def test_a_schedule_out_of_its_interval_is_refused_before_the_step():
    optimizer = Chain(rc.top_q(lambda step: 0.4 * int(step)), params=[leaf(5)])
    steps(optimizer, 3)
    refused(optimizer.step, optimizer, "`q` must")


# ------------------------------------------------------------------ schedulers and scalers


@pytest.mark.parametrize(
    "schedule",
    [
        lambda optimizer: StepLR(optimizer, 2, gamma=0.5),
        lambda optimizer: LambdaLR(optimizer, lambda epoch: 0.9**epoch),
        lambda optimizer: OneCycleLR(optimizer, 0.5, total_steps=6, cycle_momentum=True),
    ],
    ids=["StepLR", "LambdaLR", "OneCycleLR"],
)
def test_learning_rate_schedulers(schedule):
    def run(optimizer, transform):
        scheduler = schedule(optimizer)
        for time in range(5):
            give_grads(parameters(optimizer), time)
            transform(optimizer)
            optimizer.step()
            scheduler.step()
        return [p.detach() for p in parameters(optimizer)], scheduler.get_last_lr()

    def sign(optimizer):
        for p in parameters(optimizer):
            p.grad.sign_()

    plain = run(SGD([leaf(4)], lr=0.1, momentum=0.9), sign)
    optimizer = Chain(rc.sign(), params=[leaf(4)], lr=0.1, momentum=0.9)
    found = run(optimizer, lambda optimizer: None)
    assert equal(found[0], plain[0]) and found[1] == plain[1]
    assert optimizer.inner_opt.param_groups[0]["lr"] == plain[1][0]


def test_a_torch_scheduler_for_another_hyperparameter():
    optimizer = Chain(rc.scale(1.0), rc.top_q(0.8), params=[leaf(10)], param_ndim=None)
    group = optimizer.param_groups[0]
    for time in range(3):
        group["q"] = 0.8 * 0.5**time
        steps(optimizer, 1)
        assert parameters(optimizer)[0].grad.count_nonzero() == 10 - round(8 * 0.5**time)


@pytest.mark.parametrize("fused", [False, True])
def test_grad_scaler_skips_a_step_on_inf(fused):
    x = leaf(3)
    optimizer = Chain(rc.clamp(clamp_max=0.5), params=[x], InnerOpt=Adam, lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=100)
    before = x.detach().clone()
    scaler.scale(x.sum() * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(x, before) and scaler.get_scale() == 2.0 and not optimizer.state[x]
    optimizer.zero_grad()
    scaler.scale((tensor([0.25, 1.0, 2.0]) * x).sum()).backward()
    assert x.grad.tolist() == [0.5, 2.0, 4.0]
    scaler.step(optimizer)
    assert x.grad.tolist() == [0.25, 0.5, 0.5] and not torch.equal(x, before)


# ------------------------------------------------------------------ save and resume


def resumable():
    """Everything that has a state: generators, schedules, links, the inner optimizer."""
    generator = torch.Generator().manual_seed(7)
    return Chain(
        partial(TopQGradientOptimizer, q=0.3, dq=0.3, generator=generator),
        rc.top_q(q=lambda step: 0.1 * step, dq=0.1, seed=3),
        rc.clamp(clamp_max=lambda step: 2.0 / (1 + step)),
        partial(LinfProjectedOptim, epsilon=lambda step: 2.0 - 0.1 * step),
        params=[{"params": [leaf(4, 5), leaf(6)]}, {"params": [leaf(3, 3)], "top_q_0.dq": 0.0}],
        InnerOpt=partial(torch.optim.AdamW, lr=0.1),
    )


def test_resume_is_equal_to_the_bit():
    whole, first, second = resumable(), resumable(), resumable()
    steps(first, 3)
    steps(second, 1)
    file = io.BytesIO()
    torch.save([first.state_dict(), [p.detach() for p in parameters(first)]], file)
    state, params = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    second.load_state_dict(state_dict=state)
    with torch.no_grad():
        for p, saved in zip(parameters(second), params, strict=True):
            p.copy_(saved)
    assert equal(steps(second, 3, start=3), steps(whole, 6))
    torch.testing.assert_close(second.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_a_copy_goes_its_own_way():
    for copied in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        generator = torch.Generator().manual_seed(1)
        drawn = partial(TopQGradientOptimizer, q=0.5, dq=0.5, generator=generator)
        optimizer = Chain(drawn, rc.clamp(-1.0, 1.0), Shifted, params=[leaf(20)], InnerOpt=Adam)
        steps(optimizer, 2)
        other = copied(optimizer)
        assert other.param_groups is other.inner_opt.param_groups is other._chain[2].param_groups
        assert other._chain[0]._generator is not generator
        assert equal(steps(other, 2, start=2), steps(optimizer, 2, start=2))
        assert repr(other) == repr(optimizer)


def test_projecting_alone_reads_the_values_of_now():
    x = tensor([3.0, -0.5], requires_grad=True)
    optimizer = Chain(rc.sign(), rc.linf_ball(2.0), params=[x])
    optimizer.param_groups[0]["epsilon"] = 1.0
    optimizer._apply_post_step_transform_()
    assert x.tolist() == [1.0, -0.5]
    optimizer.param_groups[0]["epsilon"] = 0.25
    copied = copy.deepcopy(optimizer)
    copied._apply_post_step_transform_()
    assert parameters(copied)[0].tolist() == [0.25, -0.25]


def test_the_default_generator_stays_the_default_one():
    optimizer = L1qNormedGradientOptim([leaf(30)], q=0.5, dq=0.5)
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert copied._chain[0]._generator is torch.default_generator
        torch.manual_seed(5)
        a = steps(copied, 2)
        torch.manual_seed(5)
        assert equal(a, steps(copy.deepcopy(optimizer), 2))
    assert "link_states" not in optimizer.param_groups[0]


def test_an_inner_optimizer_that_was_loaded_by_itself():
    optimizer = mixed([leaf(3)], lr=0.5, momentum=0.9)
    steps(optimizer, 1)
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"][0]["q"] = 1.0
    optimizer.inner_opt.load_state_dict(state)
    steps(optimizer, 1)
    assert optimizer.param_groups is optimizer.inner_opt.param_groups
    assert optimizer.param_groups[0]["q"] == 1.0 and optimizer.state is optimizer.inner_opt.state


def test_what_a_scheduler_attaches_is_not_copied():
    optimizer = Chain(rc.sign(), params=[leaf(3)])
    StepLR(optimizer, 1)
    optimizer.register_step_post_hook(lambda *args: None)
    other = copy.deepcopy(optimizer)
    assert "step" not in vars(other) and not other._optimizer_step_post_hooks
    assert equal(steps(other), steps(copy.deepcopy(optimizer)))


def test_frank_wolfe_copies_and_resumes():
    for make in (
        lambda: L2FrankWolfe([leaf(3, 4)], epsilon=2.0),
        lambda: FrankWolfe([leaf(3, 4)]),
        lambda: StepOptimizer([leaf(3, 4)], rc.frank_wolfe_step(lr=0.5)),
    ):
        whole, part = make(), make()
        steps(part, 2)
        for copied in (copy.deepcopy(part), pickle.loads(pickle.dumps(part)), make()):
            copied.load_state_dict(part.state_dict())
            with torch.no_grad():
                parameters(copied)[0].copy_(parameters(part)[0])
            assert equal(steps(copied, 2, start=2), steps(make(), 4))
        assert equal(steps(part, 2, start=2), steps(whole, 4))


def test_a_checkpoint_of_rai_toolbox_or_of_the_inner_optimizer_loads():
    ours, other = (
        lib([leaf(3, 4)], epsilon=2.0) for lib in (L1FrankWolfe, rai_toolbox_optim.L1FrankWolfe)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        steps(other, 2)
        ours.load_state_dict(other.state_dict())
        parameters(ours)[0].data.copy_(parameters(other)[0])
        assert equal(steps(ours, 2, start=2), steps(other, 2, start=2))
    plain = Adam([leaf(4)], lr=0.25)
    steps(plain, 1)
    optimizer = Chain(rc.top_q(0.5), params=[leaf(4)], InnerOpt=Adam, lr=0.5)
    optimizer.load_state_dict(plain.state_dict())
    group = optimizer.param_groups[0]
    assert (group["lr"], group["q"]) == (0.25, 0.5)
    assert optimizer.state[group["params"][0]]["step"] == 1


def test_distributed_checkpoints_of_torch():
    from torch.distributed.checkpoint import state_dict as dcp

    def made():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        drawn = (rc.top_q(0.3, dq=0.2), summed(), rc.clamp(clamp_max=lambda step: 1.0 - 0.1 * step))
        return model, Chain(*drawn, params=model.parameters(), InnerOpt=Adam, lr=0.1)

    model, optimizer = made()
    steps(optimizer, 3)
    saved = copy.deepcopy(dcp.get_state_dict(model, optimizer))
    other_model, other = made()
    dcp.set_state_dict(other_model, other, model_state_dict=saved[0], optim_state_dict=saved[1])
    assert equal(steps(other, 2, start=3), steps(optimizer, 2, start=3))


@pytest.mark.parametrize(
    "sets",
    [
        (rc.l1_ball(1.5), rc.l2_ball(1.0), rc.linf_ball(0.75), rc.box(-0.7, 0.7)),
        (rc.simplex(2.0),),
    ],
    ids=["balls", "simplex"],
)
def test_distributed_checkpoints_initialise_by_a_step_that_changes_nothing(sets):
    x = leaf(20, 4)
    optimizer = Chain(rc.top_q(0.3), rc.normalize(1), *sets, params=[x], InnerOpt=Adam, lr=0.0)
    x.grad = zeros(20, 4)
    optimizer.step()  # into the constraints
    before = x.detach().clone()
    optimizer.step(closure=None)
    assert torch.equal(x.view(torch.int32), before.view(torch.int32))
    assert optimizer.state[x]["step"] == 2


# ------------------------------------------------------------------ hooks


def test_step_hooks_of_the_outer_the_inner_and_all():
    optimizer = Chain(rc.sign(), params=[leaf(3)])
    seen = []
    optimizer.register_step_pre_hook(lambda *args: seen.append("outer"))
    optimizer.inner_opt.register_step_post_hook(lambda *args: seen.append("inner"))
    optimizer.register_step_post_hook(lambda *args: seen.append("end"))
    handle = register_optimizer_step_post_hook(lambda o, *args: seen.append(type(o).__name__))
    try:
        steps(optimizer, 1)
    finally:
        handle.remove()
    assert seen == ["outer", "inner", "end", type(optimizer).__name__]


def test_a_profiler_sees_one_step_of_the_outer_optimizer():
    optimizer = Chain(rc.sign(), params=[leaf(3)])
    steps(optimizer, 1)
    with torch.profiler.profile() as profile:
        steps(optimizer, 2)
    names = [event.name for event in profile.events() if event.name.startswith("Optimizer.step")]
    assert names == [f"Optimizer.step#{type(optimizer).__name__}.step"] * 2


def test_a_step_without_listeners_has_no_layer(monkeypatch):
    optimizer = Chain(rc.sign(), params=[leaf(3)])
    entered = []
    record = torch.autograd.profiler.record_function
    monkeypatch.setattr(record, "__enter__", lambda self: entered.append(self.name))
    monkeypatch.setattr(record, "__exit__", lambda *args: None)
    steps(optimizer, 1)
    assert entered == []
    optimizer.register_step_pre_hook(lambda *args: None)
    steps(optimizer, 1)
    assert len(entered) == 1


def test_hooks_of_state_dict_and_load_state_dict():
    optimizer = Chain(rc.sign(), params=[leaf(3)], lr=0.5)
    seen = []
    optimizer.register_state_dict_pre_hook(lambda o: seen.append("save"))
    optimizer.register_state_dict_post_hook(lambda o, state: {**state, "note": 1})
    state = optimizer.state_dict()
    assert seen == ["save"] and state["note"] == 1

    def slower(o, state):
        state = copy.deepcopy(state)
        state["param_groups"][0]["lr"] = 0.25
        return state

    optimizer.register_load_state_dict_pre_hook(slower)
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append("loaded"))
    optimizer.load_state_dict(state)
    assert seen == ["save", "loaded"] and optimizer.param_groups[0]["lr"] == 0.25


def test_a_subclass_may_override_a_hook_and_call_super():
    class Louder(L1qNormedGradientOptim):
        def _pre_step_transform_(self, param, optim_group):
            super()._pre_step_transform_(param, optim_group)
            param.grad *= 3.0

    x = leaf(2, 4)
    give_grads([x])
    expected = rc.chain(rc.top_q(0.5), rc.sign(), rc.normalize(1)).update(x.grad, ((),) * 3)[0] * 3
    Chain(partial(Louder, q=0.5), rc.clamp(clamp_max=9.0), params=[x]).step()
    assert torch.equal(x.grad, expected)
    give_grads([x])
    Louder([x], q=0.5).step()
    assert torch.equal(x.grad, expected)


def test_a_subclass_with_hooks_and_a_link_that_keeps_a_state_is_refused():
    class Louder(Chain):
        def _pre_step_transform_(self, param, optim_group):
            super()._pre_step_transform_(param, optim_group)

    optimizer = Louder(summed(), params=[leaf(3)], InnerOpt=Adam)
    give_grads(parameters(optimizer))
    refused(optimizer.step, optimizer, "must not override hooks")


def test_the_values_of_a_class_with_hooks_are_checked():
    class Louder(TopQGradientOptimizer):
        def _pre_step_transform_(self, param, optim_group):
            super()._pre_step_transform_(param, optim_group)
            param.grad *= 3.0

    for make in (
        lambda **kwargs: Louder([leaf(10)], **kwargs),
        lambda **kwargs: Chain(partial(Louder, **kwargs), params=[leaf(10)]),
    ):
        with pytest.raises(ValueError, match="`q` must be given"):
            make()
        with pytest.raises(ValueError, match="`q` must satisfy"):
            make(q=2.0)
        optimizer = make(q=lambda step: 0.1 * step)
        steps(optimizer, 3)
        assert optimizer.param_groups[0]["q"] == pytest.approx(0.3)


def test_members_may_have_their_own_rows():
    @rc.rowwise
    def first(rows):
        return torch.nn.functional.pad(rows[:, :1], (0, rows.shape[1] - 1))

    class Row(Halved):
        def _pre_step_transform_(self, param, optim_group):
            param.grad[:, 1:] = 0

    for member in (first(param_ndim=None), partial(Row, param_ndim=None)):
        x = leaf(2, 3)
        x.grad = ones(2, 3)
        Chain(member, params=[x]).step()
        assert x.grad.count_nonzero() == (1 if isinstance(member, rc.GradientTransformation) else 3)


# ------------------------------------------------------------------ refused before any change

BAD_VALUES = {
    "interval": {"q": 1.5},
    "NaN": {"q": float("nan")},
    "type": {"q": "0.5"},
    "complex": {"q": tensor(1j)},
    "param_ndim": {"param_ndim": 3},
    "param_ndim type": {"param_ndim": 0.5},
    "grad_scale": {"grad_scale": float("nan")},
    "ambiguous": {"clamp_max": 1.0},
    "order of bounds": {"clamp_0.clamp_min": 5.0},
    "schedule": {"q": lambda step: 2.0},
    "epsilon": {"epsilon": -1.0},
    "shape of the center": {"center": ones(7)},
}


def strict(group=None, inner=Adam, **kwargs):
    members = (
        rc.top_q(0.5, dq=0.1),
        rc.clamp(clamp_max=1.0),
        partial(ClampedGradientOptimizer, clamp_max=2.0),
        rc.l2_ball(5.0),
    )
    return Chain(*members, params=[group or {"params": leaf(2, 3)}], InnerOpt=inner, **kwargs)


def refused(call, optimizer, match):
    before = snapshot(optimizer)
    with pytest.raises((TypeError, ValueError), match=match):
        call()
    assert identical(before, snapshot(optimizer))


@pytest.mark.parametrize("bad", BAD_VALUES.values(), ids=BAD_VALUES)
def test_a_bad_value_is_refused_wherever_it_enters(bad):
    (key,) = bad
    words = f"`{key.removeprefix('clamp_0.')}` (must|is ambiguous)"
    optimizer = strict()
    steps(optimizer, 2)
    refused(lambda: strict({"params": leaf(2, 3), **bad}), optimizer, words)
    refused(lambda: optimizer.add_param_group({"params": leaf(2, 3), **bad}), optimizer, words)
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"][0].update(bad)
    refused(lambda: optimizer.load_state_dict(state), optimizer, words)
    optimizer.param_groups[0].update(bad)
    give_grads(parameters(optimizer))
    refused(optimizer.step, optimizer, words)
    inner = Adam([leaf(2, 3)])
    refused(lambda: strict(inner=inner, defaults=dict(bad)), inner, words)


def test_bad_gradients_are_refused():
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    params = [leaf(3), embedding.weight]
    optimizer = Chain(rc.sign(), params=params, InnerOpt=Adam)
    give_grads(params[:1])
    embedding(tensor([1])).sum().backward()
    refused(optimizer.step, optimizer, r"`grads\[1\]` must be dense")


def test_complex_parameters_are_refused_when_the_optimizer_is_made():
    whole = torch.ones(2, dtype=torch.complex64, requires_grad=True)
    with pytest.raises(TypeError, match=r"`params\[1\]` must be real"):
        Chain(rc.sign(), params=[leaf(3), whole], InnerOpt=Adam)
    Chain(rc.sign(), params=[leaf(3), whole.detach()], InnerOpt=Adam)  # it gets no gradient


def test_bad_members_are_refused():
    x = leaf(3)
    for bad, kind, match in (
        ((SGD,), TypeError, "at place 0"),
        ((rc.sign(), 3), TypeError, "Got: 3 at place 1"),
        ((rc.clamp,), TypeError, "must be classes"),
        ((rc.box(0.0, 1.0), rc.sign()), ValueError, "`sign_0` must come before"),
        ((rc.box(0.0, 1.0), SignedGradientOptim, rc.sign()), ValueError, "`sign_0` must"),
        ((rc.from_torch(SGD), rc.frank_wolfe_step()), ValueError, "only link that steps"),
    ):
        with pytest.raises(kind, match=match):
            Chain(*bad, params=[x])
    with pytest.raises(TypeError, match="a link that steps"):
        StepOptimizer([x], rc.sign())


@rc.rowwise(phase="parameter")
def folded(rows, width=2):
    return rows.reshape(-1, width, 5).flatten(1) * 1.0


def test_a_parameter_link_that_cannot_apply_is_refused_at_registration():
    words = r"`folded\(width=2\)` must apply.*Got: \(3,\)"
    with pytest.raises(ValueError, match=words):
        Chain(folded(), params=[leaf(3)], param_ndim=None)
    optimizer = Chain(folded(), params=[leaf(10)], param_ndim=None)
    steps(optimizer, 1)
    refused(lambda: optimizer.add_param_group({"params": leaf(3)}), optimizer, words)
    before = [leaf(3)]
    inner = SGD(before)
    refused(lambda: Chain(folded(), InnerOpt=inner, param_ndim=None), inner, words)
    with pytest.raises(ValueError, match="must have the tree structure"):
        Chain(rc.linf_ball([1.0, 2.0, 3.0]), params=[leaf(3)])


def test_the_trial_of_a_parameter_link_writes_nothing():
    x = leaf(5)
    before = x.detach().clone()
    Chain(rc.box(-0.1, 0.1), rc.simplex(), rc.l1_ball(0.1), params=[x])
    assert torch.equal(x, before) and x.grad is None
    Chain(folded(), params=[ones(3, device="meta", requires_grad=True)])  # nothing to try yet


def test_a_state_of_another_chain_is_refused():
    def made(*members, shape=(2, 3)):
        optimizer = Chain(*members, params=[leaf(*shape)])
        steps(optimizer, 1)
        return optimizer

    drawn = rc.top_q(0.5, dq=0.1)
    optimizer = made(drawn, summed())
    for other in (
        made(drawn, rc.clamp(-1.0, 1.0)),
        made(summed(), summed()),
        made(drawn, summed(), shape=(3, 2)),
    ):
        state = other.state_dict()
        refused(
            lambda state=state: optimizer.load_state_dict(state), optimizer, "must be of this chain"
        )
    two = Chain(drawn, params=[{"params": leaf(3)}, {"params": leaf(3)}])
    with pytest.raises(ValueError, match="param"):
        optimizer.load_state_dict(two.state_dict())


@rc.rowwise
def fragile(rows):
    if rows.shape[1] == 3:
        raise RuntimeError("fragile")
    return rows * 2.0


def test_a_transform_that_raises_leaves_parameters_and_state():
    generator = torch.Generator().manual_seed(3)
    optimizer = Chain(
        partial(TopQGradientOptimizer, q=0.5, dq=0.5, generator=generator),
        rc.top_q(0.3, dq=0.3),
        summed(),
        rc.clamp(clamp_max=lambda step: 3.0 - step),
        fragile(),
        params=[{"params": leaf(2, 4)}, {"params": leaf(2, 4)}],
        InnerOpt=Adam,
    )
    steps(optimizer, 2)
    optimizer.add_param_group({"params": leaf(2, 3)})
    give_grads(parameters(optimizer))
    before = snapshot(optimizer), generator.get_state()
    for closure in (None, lambda: tensor(0.0)):
        with pytest.raises(RuntimeError, match="fragile"):
            optimizer.step(closure)
        for saved, now in zip(before[0][1:], snapshot(optimizer)[1:], strict=True):
            assert identical(saved, now)
        assert equal([p for p, _ in before[0][0]], [p.detach() for p in parameters(optimizer)])
        assert torch.equal(before[1], generator.get_state())


def test_a_schedule_that_raises_does_it_before_the_step():
    def late(step):
        if step == 2:
            raise RuntimeError("late")
        return 0.5

    optimizer = Chain(rc.top_q(late), params=[leaf(4)])
    steps(optimizer, 1)
    give_grads(parameters(optimizer))
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="late"):
        optimizer.step()
    assert identical(before, snapshot(optimizer))


# ------------------------------------------------------------------ every kind of tensor

PROJECTED = (rc.top_q(0.5), rc.sign(), rc.normalize(1), rc.l1_ball(0.5), rc.box(-0.25, 0.25))


def test_a_missing_gradient_leaves_its_parameter_to_the_projections():
    x, y = leaf(2, 3), leaf(2, 3)
    optimizer = Chain(*PROJECTED, params=[x, y], InnerOpt=Adam)
    give_grads([x])
    optimizer.step()
    assert y.grad is None and y not in optimizer.state
    assert torch.equal(y, rc.project_box(rc.project_l1_ball(leaf(2, 3), 0.5), -0.25, 0.25))


def test_a_missing_gradient_draws_nothing():
    generator = torch.Generator().manual_seed(0)
    x, y = leaf(50), leaf(50)
    optimizer = TopQGradientOptimizer([x, y], q=0.5, dq=0.5, param_ndim=None, generator=generator)
    give_grads([y])
    optimizer.step()
    generator.manual_seed(0)
    q = torch.rand((), generator=generator).item()
    assert y.grad.count_nonzero() == round((1 - q) * 50)


def test_a_group_without_parameters():
    optimizer = mixed([{"params": []}, {"params": leaf(2, 3)}], lr=0.1)
    optimizer.load_state_dict(optimizer.state_dict())
    alone = mixed([{"params": leaf(2, 3)}], lr=0.1)
    assert torch.equal(steps(optimizer)[0], steps(alone)[0])
    assert optimizer.param_groups[0]["params"] == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3), (), (1,), (2, 3, 4)], ids=str)
def test_empty_0_dim_and_half_tensors(shape, dtype):
    rows = None if len(shape) == 0 else -1
    optimizer = Chain(*PROJECTED, Halved, params=[leaf(*shape, dtype=dtype)], param_ndim=rows)
    x = steps(optimizer)[0]
    assert x.dtype == dtype and x.shape == shape and (x.abs() <= 0.25).all()
    assert parameters(optimizer)[0].grad.dtype == dtype


def test_a_link_that_makes_new_tensors():
    class Doubled(Link):
        name, phase, values = "doubled", "gradient", {}

        def apply(self, leaves, state, run, values):
            return [leaf * 2 for leaf in leaves], state

    x = leaf(3)
    give_grads([x])
    grad, expected = x.grad, x.grad * 2
    Chain(Doubled(), params=[x]).step()
    assert x.grad is grad and torch.equal(grad, expected)


def test_gradients_whose_elements_share_memory():
    for member in (rc.chain(rc.top_q(0.5), rc.clamp(clamp_max=0.5)), Halved):
        x = leaf(2, 4)
        x.grad = tensor([[1.0], [2.0]]).expand(2, 4)
        expected = torch.full((2, 4), 0.5) * tensor([[1.0, 1.0, 0.0, 0.0]])
        if member is Halved:
            expected = x.grad / 2
        Chain(member, params=[x]).step()
        assert torch.equal(x.grad, expected)


def test_any_layout_with_hooks():
    x = values(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    before = x.detach().clone()
    x.grad = ones(2, 3, 4, 5).to(memory_format=torch.channels_last)
    Chain(Shifted, params=[x], lr=1.0, param_ndim=2).step()
    assert torch.equal(x.grad, ones(2, 3, 4, 5) * 2) and torch.equal(x, before - 2 - 1)


def test_named_parameters():
    model = torch.nn.Linear(3, 2)
    optimizer = Chain(rc.sign(), Halved, params=model.named_parameters(), lr=1.0)
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
    optimizer.add_param_group({"params": iter([("other", leaf(3))]), "grad_scale": 2.0})
    assert optimizer.param_groups[1]["param_names"] == ["other"]
    steps(optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    steps(optimizer)


# ------------------------------------------------------------------ TorchOpt


def test_torchopts_transformations_in_the_optimizer():
    def member():
        return torchopt.clip.clip_grad_norm(1.0)

    x = leaf(4)
    optimizer = Chain(rc.scale(3.0), member(), rc.scale(0.5), params=[x], lr=1.0)
    steps(optimizer)
    torch.testing.assert_close(x.grad.norm(), tensor(0.5))


def test_our_links_in_torchopts_optimizers():
    links = (rc.top_q(0.5, param_ndim=None), rc.clamp(clamp_max=1.0), rc.scale(-0.5))
    weights = values(6, seed=4)
    start = values(6)
    expected = start + rc.chain(*links).update(weights, ((),) * 3)[0]

    x = start.clone().requires_grad_()
    functional = torchopt.FuncOptimizer(torchopt.chain(*links))
    assert torch.equal(functional.step((weights * x).sum(), (x,))[0], expected)

    model = torch.nn.Linear(6, 1, bias=False)
    model.weight.data.copy_(start)
    scale = tensor(2.0, requires_grad=True)
    meta = torchopt.MetaOptimizer(model, torchopt.chain(*links))
    meta.step((scale * weights * model.weight).sum())
    model.weight.sum().backward()
    kept = rc.top_q(0.5, param_ndim=None).map(2.0 * weights)
    slope = torch.where((kept != 0) & (kept < 1.0), weights, 0) * -0.5
    torch.testing.assert_close(scale.grad, slope.sum())
