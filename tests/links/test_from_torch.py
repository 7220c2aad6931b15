"""The laws of `from_torch`: the optimizer's own bits, nothing written, no wrong derivative."""

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.func import grad, jvp, vmap
from torch.optim import (
    ASGD,
    LBFGS,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Muon,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
    Rprop,
    SparseAdam,
)

from rai_chain import chain, from_torch, l2_ball, scale, top_q
from rai_chain.optim import ChainedParamTransformingOptimizer
from rai_chain.schedules import cosine_decay_schedule, linear_schedule


class Own(Optimizer):
    """A user's: numbers in the state, the group and the instance; it writes its gradients."""

    def __init__(self, params: Any, lr: float = 0.1, power: float = 1.0) -> None:
        super().__init__(params, {"lr": lr, "power": power, "calls": 0})
        self.total, self.history, self.first = 0, [0.0], True

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.total += 1
        for group in self.param_groups:
            group["calls"] += 1
            group["lr"] *= 0.9
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                state["t"] = state.get("t", 0) + 1
                state["seen"] = [*state.get("seen", []), p.grad.sum()][-2:]
                factor = 1 / (state["t"] + self.total + group["calls"] + self.history[-1])
                p.grad.mul_(factor ** group["power"])
                p.sub_(group["lr"] * p.grad + 0.01 * sum(state["seen"]))
        self.history.append(self.history[-1] + 0.5)
        self.first = False


BOTH: list[dict[str, Any]] = [{"foreach": True}, {"foreach": False}]
CASES: list[tuple[type[Optimizer], dict[str, Any]]] = [
    *((SGD, o) for o in BOTH),
    (SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1, "maximize": True}),
    *((SGD, {"momentum": 0.9, "nesterov": True, **o}) for o in (*BOTH, {"fused": True})),
    (SGD, {"lr": torch.tensor(0.1), "momentum": 0.9, "dampening": 0.3}),
    (SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "differentiable": True}),
    *((k, {"weight_decay": 0.1, "amsgrad": True, **o}) for k in (Adam, AdamW) for o in BOTH),
    *((k, {"lr": torch.tensor(0.01), "maximize": True}) for k in (Adam, AdamW)),
    *((k, {"fused": True, "amsgrad": True, "eps": 1e-3}) for k in (Adam, AdamW)),
    (Adam, {"decoupled_weight_decay": True, "weight_decay": 0.1, "betas": (0.5, 0.7)}),
    (Adam, {"differentiable": True, "weight_decay": 0.1}),
    (AdamW, {"capturable": False, "lr": torch.tensor([0.1])}),
    *((RMSprop, {"momentum": 0.9, "centered": True, "weight_decay": 0.1, **o}) for o in BOTH),
    (RMSprop, {"alpha": 0.5, "maximize": True}),
    *((Adagrad, {"lr_decay": 0.1, "initial_accumulator_value": 0.5, **o}) for o in BOTH),
    (Adagrad, {"fused": True, "weight_decay": 0.1, "maximize": True}),
    *((Adadelta, {"rho": 0.5, "weight_decay": 0.1, "maximize": True, **o}) for o in BOTH),
    *((Adamax, {"weight_decay": 0.1, "maximize": True, **o}) for o in BOTH),
    *((NAdam, {"decoupled_weight_decay": True, "weight_decay": 0.1, **o}) for o in BOTH),
    (NAdam, {"momentum_decay": 0.1, "weight_decay": 0.1, "maximize": True}),
    *((RAdam, {"betas": (0.5, 0.9), "weight_decay": 0.1, **o}) for o in BOTH),
    (RAdam, {"decoupled_weight_decay": True, "weight_decay": 0.1, "maximize": True}),
    *((Rprop, {"etas": (0.4, 1.3), "step_sizes": (1e-4, 1.0), **o}) for o in BOTH),
    (Rprop, {"maximize": True}),
    *((ASGD, {"t0": 3, "lambd": 0.1, "alpha": 0.5, "weight_decay": 0.1, **o}) for o in BOTH),
    (ASGD, {"maximize": True}),
    *((Adafactor, {"weight_decay": 0.1, **o}) for o in BOTH),
    (Adafactor, {"eps": (1e-8, 1e-2), "d": 2.0, "beta2_decay": -0.5, "maximize": True}),
    (Muon, {}),
    (Muon, {"nesterov": False, "ns_steps": 3, "adjust_lr_fn": "match_rms_adamw"}),
    (Own, {"power": 0.5}),
]


def name_of(case: Any) -> str:
    return case.__name__ if isinstance(case, type) else ",".join(sorted(case))


cases = pytest.mark.parametrize(("kind", "options"), CASES, ids=name_of)


def tensors(kind: type[Optimizer]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3), (2, 5)] if kind is Muon else [(4, 3), (5,), (), (1, 2, 3, 4)]
    made = [torch.randn(shape, generator=generator) for shape in shapes]
    return [t.to(memory_format=torch.channels_last) if t.ndim == 4 else t for t in made]


def slopes(params: list[Tensor], t: int, sparse: bool = True) -> list[Any]:
    """Gradients; the first leaf has none at first and again later."""
    found: list[Any] = [0.3 * p.detach() + torch.cos(t + 3 * p.detach()) for p in params]
    return [None, *found[1:]] if sparse and t in (0, 7) else found


def clones(values: Any) -> Any:
    return torch.utils._pytree.tree_map_only(Tensor, torch.clone, values)


def equal(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def stateful(kind: Any, options: dict[str, Any], params: list[Tensor]) -> Any:
    leaves = [p.clone().requires_grad_() for p in params]
    given = {k: v.clone() if isinstance(v, Tensor) else v for k, v in options.items()}
    return leaves, kind(leaves, **given)


@cases
def test_same_bits_over_20_steps_and_inputs_stay(kind: Any, options: dict[str, Any]) -> None:
    params = tensors(kind)
    leaves, optimizer = stateful(kind, options, params)
    tx = from_torch(kind, **options)
    state = tx.init(params)
    for t in range(20):
        grads = slopes(params, t, (kind, options.get("fused")) != (SGD, True))
        for leaf, g in zip(leaves, grads, strict=True):
            leaf.grad = None if g is None else g.clone()
        if options.get("differentiable"):  # torch cannot write into leaves that require grad
            for leaf in leaves:
                leaf.requires_grad_(False)
        optimizer.step()
        inputs = (params, grads, state)
        before = clones(inputs)
        params, state = tx.step(*inputs)
        equal(inputs, before)
        equal(params, [leaf.detach() for leaf in leaves])
        if t == 10:  # through a file and back
            torch.save((params, state), file := io.BytesIO())
            file.seek(0)
            params, state = torch.load(file, weights_only=True)
            tx = pickle.loads(pickle.dumps(copy.deepcopy(tx)))
    found = [
        {k: v for k, v in own.items() if isinstance(v, Tensor)} for own in state[kind.__name__]
    ]
    own = [{k: v for k, v in optimizer.state[p].items() if isinstance(v, Tensor)} for p in leaves]
    equal(found, own)
    assert all(isinstance(x, Tensor) for x in torch.utils._pytree.tree_leaves(state))


@cases
def test_same_bits_in_the_adapter_and_as_an_update(kind: Any, options: dict[str, Any]) -> None:
    params = tensors(kind)
    leaves = [p.clone().requires_grad_() for p in params]
    parts = top_q(0.5, param_ndim=None), from_torch(kind, **options), l2_ball(1.0, param_ndim=None)
    optimizer = ChainedParamTransformingOptimizer(*parts, params=leaves, param_ndim=None)
    tx = chain(*parts)
    state = tx.init(params)
    for t in range(4):
        grads = slopes(params, t, False)
        for leaf, g in zip(leaves, grads, strict=True):
            leaf.grad = g.clone()
        if options.get("differentiable"):
            for leaf in leaves:
                leaf.requires_grad_(False)
        optimizer.step()
        updates, _ = tx.update(grads, state, params=params)
        old = params
        params, state = tx.step(params, grads, state)
        equal(updates, [n - o for n, o in zip(params, old, strict=True)])
        equal([leaf.detach() for leaf in leaves], params)


def test_overrides_and_schedules_are_what_a_scheduler_would_write() -> None:
    lr, decay = cosine_decay_schedule(0.1, 8), linear_schedule(0.5, 0.1, 6)
    params = tensors(AdamW)
    leaves, optimizer = stateful(AdamW, {}, params)
    plain = chain(scale(2.0), from_torch(AdamW, lr=0.3))
    planned = chain(scale(2.0), from_torch(AdamW, lr=lr, betas=(decay, 0.9)))
    ours, theirs = (params, plain.init(params)), (params, planned.init(params))
    for t in range(6):
        now = {"lr": lr(t).item(), "betas": (decay(t).item(), 0.9)}
        optimizer.param_groups[0].update(now)
        for leaf, g in zip(leaves, slopes(params, t), strict=True):
            leaf.grad = g
        optimizer.step()
        grads = [None if leaf.grad is None else leaf.grad / 2 for leaf in leaves]
        ours = plain.step(ours[0], grads, ours[1], hyperparams=now)
        theirs = planned.step(theirs[0], grads, theirs[1])
        equal(ours[0], [leaf.detach() for leaf in leaves])
        equal(ours[0], theirs[0])
    assert planned.hyperparams["lr"] is lr and plain.hyperparams["lr"] == 0.3
    assert theirs[1][1]["step"] == 6


def test_in_a_graph_it_says_what_to_use() -> None:
    tx, params = from_torch(Adam), tensors(Adam)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="use a native optimizer"):
        torch.compile(tx.step, backend="eager", fullgraph=True)(params, params, tx.init(params))


def test_nothing_to_update() -> None:
    tx = from_torch(Adam)
    for empty in ({}, {"a": None}, {"a": torch.zeros(0, 3)}):
        params, _ = tx.step(empty, empty, tx.init(empty))
        equal(params, empty)


# ------------------------------------------------------------------ derivatives

DERIVED: list[tuple[type[Optimizer], dict[str, Any], set[str]]] = [  # right, not refused
    (SGD, {"weight_decay": 0.1}, {"lr", "weight_decay"}),
    (SGD, {"momentum": 0.9}, {"lr", "momentum"}),
    (SGD, {"momentum": 0.9, "dampening": 0.4}, {"lr", "momentum"}),
    (SGD, {"momentum": 0.9, "nesterov": True}, {"lr"}),
    (SGD, {"momentum": 0.9, "nesterov": True, "foreach": True}, set()),
    (Adam, {"weight_decay": 0.1, "amsgrad": True}, {"lr", "betas", "eps", "weight_decay"}),
    (AdamW, {"weight_decay": 0.1}, {"lr", "betas", "eps", "weight_decay"}),
    (RMSprop, {"weight_decay": 0.1}, {"eps"}),
    (RMSprop, {"centered": True, "momentum": 0.9}, {"eps", "momentum"}),
    (Adagrad, {"lr_decay": 0.1, "weight_decay": 0.1}, {"eps"}),
    (Adadelta, {"weight_decay": 0.1}, {"eps"}),
    (Adamax, {"weight_decay": 0.1}, {"eps"}),
    (NAdam, {"weight_decay": 0.1}, {"lr", "eps", "momentum_decay"}),
    (RAdam, {"betas": (0.5, 0.8)}, {"lr", "eps"}),
    (Rprop, {}, set()),
    (ASGD, {"weight_decay": 0.1, "t0": 1}, set()),
]
NUMBERS = {"lr", "momentum", "dampening", "weight_decay", "betas", "eps", "alpha", "rho"}
NUMBERS |= {"lr_decay", "momentum_decay", "lambd"}


@pytest.fixture
def double() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def finite_difference(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return (f(x + 1e-6) - f(x - 1e-6)) / 2e-6


@pytest.mark.parametrize(("kind", "options", "right"), DERIVED, ids=name_of)
def test_derivatives_are_right_or_refused(
    kind: Any, options: dict[str, Any], right: set[str], double: Any
) -> None:
    tx = from_torch(kind, **{"lr": 0.1, "differentiable": True, **options})
    start = torch.tensor([0.5, -1.0, 2.0])

    def loss(x: Tensor, **hyperparams: Any) -> Tensor:
        state = tx.init(x.detach())
        for t in range(7 if kind is RAdam else 3):
            x, state = tx.step(x, torch.cos(x * (t + 1)) + x, state, hyperparams=hyperparams)
        return (x**3).sum()

    assert gradcheck(loss, [start.clone().requires_grad_()], check_forward_ad=True)
    for name, value in tx.hyperparams.items():
        if name not in NUMBERS or not value:
            continue
        if name == "betas":
            others = torch.tensor(value[1])

            def f(b: Tensor, o: Tensor = others) -> Tensor:
                return loss(start, betas=(b, o))

            at = torch.tensor(value[0])
        else:
            f = lambda b, name=name: loss(start, **{name: b})  # noqa: E731
            at = torch.tensor(max(value, 1e-3))
        expected = finite_difference(f, at)
        for way in (
            lambda f, at: grad(f)(at),
            lambda f, at: jvp(f, (at,), (torch.ones_like(at),))[1],
            lambda f, at: torch.autograd.grad(f(x := at.requires_grad_()) + 0 * x, x)[0],
        ):
            try:
                found = way(f, at.clone())
            except ValueError as error:
                assert "use a native optimizer" in str(error)
                assert name not in right or way.__code__.co_names[0] == "jvp", name
            else:
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_momentum_may_start_at_any_step(double: Any) -> None:
    tx = from_torch(SGD, lr=0.1, momentum=0.9, dampening=0.4, differentiable=True)
    start = {"a": torch.tensor([0.5, -1.0]), "b": torch.tensor([2.0])}

    def run(a: Tensor, b: Tensor) -> Tensor:
        params, state = {"a": a, "b": b}, tx.init(start)
        for t in range(4):
            grads: Any = {k: torch.sin(3 * v) for k, v in params.items()}
            if t < 2:
                grads["b"] = None
            params, state = tx.step(params, grads, state)
        return torch.cat(list(params.values()))

    assert gradcheck(run, [v.clone().requires_grad_() for v in start.values()])
    leaves, optimizer = stateful(
        SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.4}, list(start.values())
    )
    for t in range(4):
        for leaf in leaves:
            leaf.grad = torch.sin(3 * leaf.detach())
        if t < 2:
            leaves[1].grad = None
        optimizer.step()
    equal(run(**start), torch.cat(leaves).detach())


class Detaching(SGD):
    def step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            p.sub_(p.grad.detach())


class Reading(SGD):
    def step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            p.sub_(p.grad.sum().item())


class WithoutGrad(SGD):
    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            p.sub_(p.grad)


class WithData(SGD):
    def step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            p.data.sub_(p.grad)


@pytest.mark.parametrize("kind", [Detaching, Reading, WithoutGrad, WithData])
def test_a_lost_derivative_is_refused(kind: Any) -> None:
    tx = from_torch(kind, differentiable=True)

    def loss(x: Tensor) -> Tensor:
        return tx.step(x, torch.sin(x), tx.init(x.detach()))[0].sum()

    for way in (
        lambda: grad(loss)(torch.ones(2)),
        lambda: vmap(grad(loss))(torch.ones(3, 2)),
        lambda: loss(torch.ones(2, requires_grad=True)),
    ):
        with pytest.raises(
            ValueError, match=r"must not be differentiated .* use a native optimizer"
        ):
            way()


def test_without_differentiable_it_says_what_to_use() -> None:
    x, start = torch.ones(2, requires_grad=True), torch.ones(1, 2)
    for kind in (SGD, AdamW, Adafactor, Own):
        tx = from_torch(kind)
        step = partial(tx.step, state=tx.init(start))
        for way in (
            lambda s=step: grad(lambda g: s(start, g)[0].sum())(start),
            lambda s=step: jvp(lambda g: s(start, g)[0], (start,), (start,)),
            lambda s=step: s(x[None], start),
            lambda s=step: s(start, start, hyperparams={"lr": x.sum()}),
        ):
            with pytest.raises(ValueError, match=r"use a native optimizer .*differentiable=True"):
                way()
        with pytest.raises(ValueError, match="outside vmap: use a native optimizer"):
            vmap(lambda p, s=step: s(p, p)[0])(torch.ones(3, 1, 2))
        with torch.no_grad():
            equal(step(start, start)[0], step(x[None], start)[0])


# ------------------------------------------------------------------ what is refused


class AnyName(Optimizer):
    """A user's whose constructor names no option."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, {"lr": 0.1, **options})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * p.grad)


def test_an_override_is_for_one_call() -> None:
    x = torch.zeros(2)
    for tx in (from_torch(AnyName, lr=1.0), from_torch(SGD, lr=1.0)):
        y, state = tx.step(x, x + 1, tx.init(x), hyperparams={"lr": 0.5})
        equal(y, x - 0.5)
        equal(tx.step(x, x + 1, state)[0], x - 1)


class Odd(SGD):
    def step(self, closure: Any = None) -> None:
        self.state[self.param_groups[0]["params"][0]]["name"] = "odd"


class Closure(SGD):
    def step(self, closure: Any) -> None: ...  # type: ignore[override]


class Holding(SGD):
    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr)
        self.mine = [p for group in self.param_groups for p in group["params"]]


class Wrapping(SGD):
    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr)
        self.inner = Adam(self.param_groups[0]["params"])


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: from_torch(LBFGS), ValueError, "LBFGS evaluates the model again in each step"),
        (lambda: from_torch(Closure), ValueError, "Closure evaluates the model again"),
        (lambda: from_torch(SparseAdam), ValueError, "must take dense gradients"),
        (lambda: from_torch(Holding), ValueError, "which has some in `mine`"),
        (lambda: from_torch(Wrapping), ValueError, "which has some in `inner`"),
        (lambda: from_torch(SGD([torch.zeros(1)])), TypeError, "must be a class of torch opt"),
        (lambda: from_torch(torch.nn.Linear), TypeError, "must be a class of torch optimizers"),
        (lambda: from_torch(Adam, lr=-1.0), ValueError, "Invalid learning rate: -1.0"),
        (lambda: from_torch(Adam, speed=1.0), TypeError, "speed"),
        (lambda: from_torch(Muon).init(torch.zeros(3)), ValueError, "Muon only supports 2D"),
    ],
)
def test_refuses(make: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        make()


def test_refuses_in_a_step_what_does_not_fit() -> None:
    x = torch.ones(2)
    tx, other = from_torch(Adam), from_torch(SGD, momentum=0.9)
    state = tx.init(x)
    for make, message in (
        (lambda: tx.step(x, x, other.init(x)), "`state` must be the state of from_torch"),
        (lambda: tx.step(x, x, ()), "`state` must be the state of from_torch"),
        (lambda: tx.step([x, x], [x, x], state), "must have the 1 leaves that `init` saw"),
        (lambda: tx.step(x, x, {"Adam": ({},), "more": ()}), "`state` must be the state of"),
        (lambda: tx.update(x, state), "`params` is needed by from_torch"),
        (lambda: tx.step(x, x, state, hyperparams={"lr": -1.0}), "Invalid learning rate: -1.0"),
        (lambda: tx.step(x, x, state, hyperparams={"momentum": 1.0}), "`momentum` must name"),
        (
            lambda: tx.step(x, x, state, hyperparams={"lr": linear_schedule(1.0, 0.0, 3)}),
            "`lr` must be given to from_torch.* as a schedule before `init`",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(TypeError, match="state must hold tensors and numbers  Got: 'odd'"):
        from_torch(Odd).step(x, x, from_torch(Odd).init(x))


def test_a_schedule_has_the_same_bits_in_the_optimizer():
    tx = chain(from_torch(SGD, lr=linear_schedule(1.0, 0.0, 4), momentum=0.5))
    pure = torch.ones(2)
    held, state = pure.clone().requires_grad_(), tx.init(pure)
    optimizer = ChainedParamTransformingOptimizer(tx, params=[held])
    for i in range(6):
        grad = torch.randn(2, generator=torch.Generator().manual_seed(i))
        pure, state = tx.step(pure, grad, state)
        held.grad = grad.clone()
        optimizer.step()
        assert torch.equal(pure, held)
