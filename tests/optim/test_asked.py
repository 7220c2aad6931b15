"""Optimizers that ask for more than gradients: the loss, a second gradient, an average to see."""

import copy
import io

import pytest
import torch
from helpers import identical
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_leaves, tree_map

import rai_chain as rc
from rai_chain.optim import ChainedParamTransformingOptimizer


def problem(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)
    x, y = torch.randn(16, 4, dtype=dtype), torch.randn(16, 2, dtype=dtype)
    return net, lambda params: (functional_call(net, params, (x,)) - y).square().mean()


def closure_of(net, loss, optimizer):
    def closure():
        optimizer.zero_grad()
        value = loss(dict(net.named_parameters()))
        value.backward()
        return value

    return closure


ASKING = {
    "sam": lambda: rc.sam(rc.sgd(0.1, momentum=0.9), 0.2),
    "sam inside": lambda: rc.chain(
        rc.clip_by_global_norm(1.0), rc.sam(rc.scale(1.0)), rc.adam(0.1)
    ),
    "sam, frozen": lambda: rc.selective_transform(
        rc.sam(rc.sgd(0.1), 0.2), freeze_mask=lambda path: "bias" in path
    ),
    "sam around torch's": lambda: rc.sam(rc.from_torch(torch.optim.Adam, lr=0.1)),
    "sam, box": lambda: rc.chain(rc.sam(rc.sgd(0.1)), rc.box(-0.3, 0.3)),
    "polyak_sgd": lambda: rc.polyak_sgd(0.5),
    "prodigy": lambda: rc.prodigy(estim_lr0=1e-3),
    "schedule_free": lambda: rc.schedule_free(rc.sgd(0.2)),
    "schedule_free, box": lambda: rc.schedule_free(rc.chain(rc.sgd(0.2), rc.box(-0.3, 0.3))),
}


@pytest.mark.parametrize("name", ASKING)
def test_the_optimizer_does_what_the_pure_step_does(name):
    net, loss = problem()
    tx = ASKING[name]()
    pure = {k: p.detach().clone() for k, p in net.named_parameters()}
    state, optimizer = tx.init(pure), tx.optimizer(net.named_parameters())
    closure = closure_of(net, loss, optimizer)
    needs = set().union(*(link.needs for link in tx.links))
    first = float(loss(pure))
    for n in range(8):
        asked = {"value": loss(pure), "grad_fn": grad(loss)}
        asked = {key: asked[key] for key in needs}
        pure, state = tx.step(pure, grad(loss)(pure), state, **asked)
        optimizer.step(closure)
        for key, p in net.named_parameters():
            torch.testing.assert_close(p.detach(), pure[key], rtol=1e-5, atol=1e-6)
        if n == 3:  # a checkpoint in the middle
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            optimizer = tx.optimizer(net.named_parameters())
            optimizer.load_state_dict(torch.load(file, weights_only=True))
            closure = closure_of(net, loss, optimizer)
    assert float(loss(pure)) < first


@pytest.mark.parametrize("name", ["sam", "polyak_sgd", "prodigy", "schedule_free"])
def test_vmap_has_a_loss_and_a_gradient_for_each(name):
    tx = ASKING[name]()
    start = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    goals = torch.arange(15.0, dtype=torch.float64).reshape(3, 5) / 10

    def step(p, state, goal):
        f = lambda p: ((p - goal) ** 2).sum()  # noqa: E731
        asked = {"value": f(p), "grad_fn": grad(f)}
        needs = set().union(*(link.needs for link in tx.links))
        return tx.step(p, grad(f)(p), state, **{key: asked[key] for key in needs})

    p, state = start, vmap(tx.init)(start)
    for _ in range(5):
        p, state = vmap(step)(p, state, goals)
    for i in range(3):
        own, alone = start[i], tx.init(start[i])
        for _ in range(5):
            own, alone = step(own, alone, goals[i])
        torch.testing.assert_close(p[i], own, rtol=1e-12, atol=1e-12)


class TestSam:
    def test_parameters_gradients_and_modules_are_put_back_to_the_bit(self):
        """With rate 0 nothing moves, though the closure saw other parameters."""
        net, loss = problem()
        optimizer = rc.sam(rc.sgd(0.0), 0.5).optimizer(net.parameters())
        before = [p.detach().clone() for p in net.parameters()]
        seen = []

        def closure():
            seen.append([p.detach().clone() for p in net.parameters()])
            return closure_of(net, loss, optimizer)()

        optimizer.step(closure)
        assert identical(before, [p.detach() for p in net.parameters()])
        assert identical(seen[0], before) and not identical(seen[1], before) and len(seen) == 2
        moved = torch.cat([(b - a).flatten() for a, b in zip(*seen, strict=True)])
        torch.testing.assert_close(moved.norm(), torch.tensor(0.5), rtol=1e-5, atol=0)

    def test_a_closure_that_raises_at_the_second_point_changes_nothing(self):
        net, loss = problem()
        optimizer = rc.sam(rc.sgd(0.1, momentum=0.9)).optimizer(net.parameters())
        usual, calls = closure_of(net, loss, optimizer), []

        def closure():
            calls.append(1)
            if len(calls) == 4:
                raise RuntimeError("no more data")
            return usual()

        optimizer.step(closure)
        before = [p.detach().clone() for p in net.parameters()]
        state = copy.deepcopy(optimizer.state_dict())
        with pytest.raises(RuntimeError, match="no more data"):
            optimizer.step(closure)
        assert identical(before, [p.detach() for p in net.parameters()])
        assert identical(state, optimizer.state_dict())

    def test_gradients_written_in_place_by_the_closure(self):
        net, loss = problem()
        tx = rc.sam(rc.sgd(0.1), 0.2)
        pure = {k: p.detach().clone() for k, p in net.named_parameters()}
        pure, _ = tx.step(pure, grad(loss)(pure), tx.init(pure), grad_fn=grad(loss))
        optimizer = tx.optimizer(net.parameters())

        def closure():
            optimizer.zero_grad(set_to_none=False)
            value = loss(dict(net.named_parameters()))
            value.backward()
            return value

        closure()
        optimizer.step(closure)
        for key, p in net.named_parameters():
            torch.testing.assert_close(p.detach(), pure[key], rtol=1e-6, atol=1e-6)

    def test_each_group_is_a_tree_of_its_own(self):
        net, loss = problem()
        groups = [{"params": [p]} for p in net.parameters()]
        optimizer = rc.sam(rc.sgd(0.0), 0.5).optimizer(groups)
        count = []
        usual = closure_of(net, loss, optimizer)
        optimizer.step(lambda: (count.append(1), usual())[1])
        assert len(count) == 1 + len(groups)

    def test_in_front_of_an_optimizer_of_torch(self):
        net, loss = problem()
        twin = copy.deepcopy(net)
        optimizer = ChainedParamTransformingOptimizer(
            rc.sam(rc.identity(), 0.3), params=net.parameters(), InnerOpt=torch.optim.Adam, lr=0.1
        )
        other = torch.optim.Adam(twin.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.step(closure_of(net, loss, optimizer))
            params = {k: p.detach() for k, p in twin.named_parameters()}
            g = grad(loss)(params)
            norm = torch.cat([x.flatten() for x in g.values()]).norm()
            there = grad(loss)({k: p + 0.3 * g[k] / norm for k, p in params.items()})
            for key, p in twin.named_parameters():
                p.grad = there[key]
            other.step()
            for a, b in zip(net.parameters(), twin.parameters(), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)

    def test_derivative_through_both_gradients(self):
        f = lambda p: (p**4).sum()  # noqa: E731

        def after(rho):
            p = torch.tensor([0.5, -0.2], dtype=torch.float64)
            tx = rc.sam(rc.sgd(0.1), rho)
            return f(tx.step(p, grad(f)(p), tx.init(p), grad_fn=grad(f))[0])

        rho = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(after, rho)


AVERAGING = {
    "schedule_free": lambda: rc.schedule_free(rc.adam(0.1, betas=(0.0, 0.99))),
    "params_ema": lambda: rc.chain(rc.sgd(0.1), rc.params_ema(0.9)),
    "inside": lambda: rc.accumulate(rc.schedule_free(rc.sgd(0.1)), 2),
}


@pytest.mark.parametrize("name", AVERAGING)
class TestEvaluation:
    def trained(self, name, steps=5):
        net, loss = problem()
        tx = AVERAGING[name]()
        pure = {k: p.detach().clone() for k, p in net.named_parameters()}
        state, optimizer = tx.init(pure), tx.optimizer(net.named_parameters())
        for _ in range(steps):
            pure, state = tx.step(pure, grad(loss)(pure), state)
            optimizer.step(closure_of(net, loss, optimizer))
        return net, loss, tx, optimizer, rc.averaged_params(state)

    def test_eval_shows_the_average_and_train_brings_every_bit_back(self, name):
        net, loss, _, optimizer, average = self.trained(name)
        before = [p.detach().clone() for p in net.parameters()]
        state = copy.deepcopy(optimizer.state_dict())
        optimizer.eval()
        optimizer.eval()  # twice is once
        for key, p in net.named_parameters():
            torch.testing.assert_close(p.detach(), average[key], rtol=1e-5, atol=1e-6)
        assert not identical(before, [p.detach() for p in net.parameters()])
        optimizer.train()
        optimizer.train()
        assert identical(before, [p.detach() for p in net.parameters()])
        assert identical(state, optimizer.state_dict())
        optimizer.step(closure_of(net, loss, optimizer))

    def test_a_step_between_is_refused_and_changes_nothing(self, name):
        net, loss, _, optimizer, _ = self.trained(name)
        optimizer.eval()
        before = [p.detach().clone() for p in net.parameters()]
        state = copy.deepcopy(optimizer.state_dict())
        with pytest.raises(ValueError, match=r"`train\(\)` must be called before `step`"):
            optimizer.step(closure_of(net, loss, optimizer))
        assert identical(before, [p.detach() for p in net.parameters()])
        assert identical(state, optimizer.state_dict())

    def test_a_checkpoint_in_eval_goes_on(self, name):
        net, _, tx, optimizer, _ = self.trained(name)
        training = [p.detach().clone() for p in net.parameters()]
        optimizer.eval()
        other, _ = problem(1)
        file = io.BytesIO()
        torch.save([net.state_dict(), optimizer.state_dict()], file)
        file.seek(0)
        weights, saved = torch.load(file, weights_only=True)
        other.load_state_dict(weights)
        resumed = tx.optimizer(other.named_parameters())
        resumed.load_state_dict(saved)
        resumed.train()
        assert identical(training, [p.detach() for p in other.parameters()])
        twin = copy.deepcopy(optimizer)
        twin.train()
        assert identical(training, [p.detach() for g in twin.param_groups for p in g["params"]])

    def test_before_the_first_step_there_is_nothing_to_see(self, name):
        net, loss, _, optimizer, _ = self.trained(name, steps=0)
        before = [p.detach().clone() for p in net.parameters()]
        optimizer.eval()
        assert identical(before, [p.detach() for p in net.parameters()])
        optimizer.step(closure_of(net, loss, optimizer))


def test_an_optimizer_without_an_average_has_no_eval():
    assert not hasattr(rc.adam(0.1).optimizer([torch.zeros(2, requires_grad=True)]), "eval")


def test_two_averages_are_one_too_many():
    x = torch.zeros(2, requires_grad=True)
    tx = rc.chain(rc.schedule_free(rc.sgd(0.1)), rc.params_ema(0.9))
    optimizer = rc.chain(rc.sgd(0.1), rc.params_ema(0.9), rc.params_ema(0.5)).optimizer([x])
    x.grad = torch.ones(2)
    optimizer.step()
    with pytest.raises(ValueError, match="`eval` must find one average of each parameter"):
        optimizer.eval()
    with pytest.raises(ValueError, match="must have one `params_ema` or `schedule_free`"):
        rc.averaged_params(tx.init(torch.zeros(2)))


def test_schedule_free_keeps_halves_in_float32_and_leaves_what_has_no_gradient():
    tx = rc.schedule_free(rc.sgd(0.01))
    p = {"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.ones(2)}
    state = tx.init(p)
    for _ in range(200):
        p, state = tx.step(p, {"a": torch.full((3,), 1e-2, dtype=torch.bfloat16), "b": None}, state)
    average = rc.averaged_params(state)
    assert average["a"].dtype == torch.float32 and p["a"].dtype == torch.bfloat16
    assert (average["a"] < 0.995).all()  # in bfloat16 no step of 1e-4 would be one
    assert all(torch.equal(x, torch.ones(2)) for x in (p["b"], average["b"], state["z"]["b"]))


def test_schedule_free_reads_the_rate_of_what_is_inside():
    tx = rc.schedule_free(rc.sgd(0.1))
    assert tx.hyperparams["lr"] == 0.1 and list(tx.hyperparams).count("lr") == 1
    assert rc.schedule_free(rc.sgd(0.1), lr=0.3).hyperparams["lr"] == 0.3
    p = torch.ones(2)
    state = tx.init(p)
    new, after = tx.step(p, p, state, hyperparams={"lr": 0.5})
    assert float(after["max_lr"]) == 0.5 and torch.equal(new, torch.full((2,), 0.5))
    own = rc.schedule_free(rc.scale(-0.1), lr=0.1)
    assert torch.equal(own.step(p, p, own.init(p))[0], tx.step(p, p, state)[0])


def test_prodigy_with_a_mask_and_its_estimate():
    p = {"w": torch.ones(2), "b": torch.ones(2)}
    tx = rc.prodigy(weight_decay=0.5, estim_lr0=0.1, mask={"w": True, "b": False})
    new, state = tx.step(p, tree_map(torch.ones_like, p), tx.init(p))
    assert (new["w"] < new["b"]).all()
    estimates = [x for x in tree_leaves(state[0]["estim_lr"])]
    assert float(estimates[0]) == 0.1
    over = tx.step(p, p, tx.init(p), hyperparams={"lr": torch.tensor(0.0)})[0]
    assert torch.equal(over["b"], p["b"])


HYPER = {
    "sam": (lambda **v: rc.sam(rc.sgd(0.1), **v), {"rho": 0.5}),
    "schedule_free": (
        lambda **v: rc.schedule_free(rc.sgd(0.1), **v),
        {"lr": 0.3, "beta1": 0.8},
    ),
    "schedule_free, weights": (
        lambda **v: rc.schedule_free(rc.scale(-0.1), lr=lambda n: 0.1 * (1 + n), **v),
        {"weight_lr_power": 1.5},
    ),
    "prodigy": (
        rc.prodigy,
        {
            "lr": 0.7,
            "beta3": 0.9,
            "eps": 0.01,
            "estim_lr0": 1e-3,
            "estim_lr_coef": 0.8,
            "weight_decay": 0.2,
        },
    ),
    "momentum_correction": (
        lambda **v: rc.chain(rc.momentum_correction(rc.top_k(1), **v), rc.sgd(0.1)),
        {"momentum": 0.7},
    ),
}
CASES = [(name, key) for name, (_, own) in HYPER.items() for key in own]


def some_steps(tx, start, **options):
    f = lambda p: (p**2).sum() + p.sin().sum()  # noqa: E731
    asked = {"grad_fn": grad(f)} if any("grad_fn" in k.needs for k in tx.links) else {}
    p, state = start, tx.init(start)
    for _ in range(8):
        p, state = tx.step(p, grad(f)(p), state, **asked, **options)
    return p


@pytest.mark.parametrize(("name", "key"), CASES)
def test_every_hyperparameter_may_be_a_tensor_a_schedule_or_an_override(name, key):
    make, own = HYPER[name]
    start = torch.tensor([[0.5, -0.2, 0.1]], dtype=torch.float64)
    value = own[key]
    expected = some_steps(make(**own), start)
    tensor = torch.tensor(value, dtype=torch.float64)
    for tx in (make(**{**own, key: tensor}), make(**{**own, key: lambda step: value})):
        torch.testing.assert_close(some_steps(tx, start), expected, rtol=1e-12, atol=1e-14)
    other = make(**{**own, key: value * 0.5})
    over = some_steps(other, start, hyperparams={key: tensor})
    torch.testing.assert_close(over, expected, rtol=1e-12, atol=1e-14)
    assert not torch.equal(some_steps(other, start), expected)


@pytest.mark.parametrize(("name", "key"), CASES)
def test_every_hyperparameter_goes_under_vmap_and_has_a_derivative(name, key):
    make, own = HYPER[name]
    start = torch.tensor([[0.5, -0.2, 0.1]], dtype=torch.float64)
    values = own[key] * torch.tensor([1.0, 0.8, 0.5], dtype=torch.float64)
    run = lambda v: some_steps(make(**{**own, key: v}), start)  # noqa: E731
    batched = vmap(run)(values)
    looped = torch.stack([run(float(v)) for v in values])
    torch.testing.assert_close(batched, looped, rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradcheck(lambda v: run(v).sum(), values[1].clone().requires_grad_())


@pytest.mark.parametrize(("name", "key"), [c for c in CASES if c[1] != "weight_decay"])
def test_several_values_are_refused_where_there_is_one(name, key):
    make, own = HYPER[name]
    p = {"a": torch.ones(3), "b": torch.ones(2)}
    for several in (torch.ones(3) * own[key], {"a": own[key], "b": own[key]}):
        with pytest.raises(ValueError, match=f"`{key}` must have one value  Got: "):
            make(**{**own, key: several}).init(p)
