"""What frameworks do to an optimizer: they wrap it, imitate its class, ask for what others have."""

import functools
import types

import pytest
import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from rai_chain import (
    chain,
    ema,
    frank_wolfe_step,
    l2_ball,
    linear_schedule,
    masked,
    partition,
    project_l2_ball,
    scale,
    top_q,
)
from rai_chain.optim import (
    ChainedParamTransformingOptimizer,
    ParamTransformingOptimizer,
    TopQGradientOptimizer,
)

Chain = ChainedParamTransformingOptimizer


def chained(x):
    q = linear_schedule(0.25, 0.75, 8)
    return Chain(top_q(q), ema(0.9), l2_ball(1.0), params=[x], lr=0.1)


def of_class(x):
    return TopQGradientOptimizer([x], q=0.5, lr=0.1)


def native(x):
    return chain(ema(0.9), scale(-1.0)).optimizer([x])


class Proxy:
    """A wrapper that passes for its optimizer's class and has nothing of its own besides."""

    def __init__(self, optimizer):
        self._optimizer = optimizer
        self.__class__ = type("Proxied", (Proxy, type(optimizer)), {})

    def __getattr__(self, name):
        return getattr(self._optimizer, name)

    def step(self, closure=None):
        return self._optimizer.step(closure)


every_kind = pytest.mark.parametrize("make", [chained, of_class, native])


@every_kind
def test_a_wrapper_that_imitates_the_class_has_all_of_the_optimizer(make):
    x = torch.ones(3, requires_grad=True)
    optimizer = make(x)
    proxy = Proxy(optimizer)
    for name in ("param_groups", "defaults", "state", "inner_opt"):
        assert getattr(proxy, name) is getattr(optimizer, name)
    x.grad = torch.ones(3)
    proxy.step()
    proxy.zero_grad()
    assert x.grad is None
    assert repr(proxy).replace("Proxied", type(optimizer).__name__) == repr(optimizer)
    proxy.add_param_group({"params": [torch.ones(2, requires_grad=True)]})
    assert len(optimizer.param_groups) == 2
    saved = proxy.state_dict()
    assert saved["param_groups"] == optimizer.state_dict()["param_groups"]


@every_kind
def test_an_attribute_that_is_not_there_is_an_attribute_error(make):
    optimizer = make(torch.ones(3, requires_grad=True))
    empty = object.__new__(type(optimizer))
    for name in ("param_groups", "defaults", "state", "nothing"):
        with pytest.raises(AttributeError, match=name):
            getattr(empty, name)


def grown(step):
    """What the schedule below has at a step, exactly."""
    return 0.25 + step / 16


def stepped(optimizer, *params):
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()


@pytest.mark.parametrize("whose", ["optimizer", "inner"])
def test_groups_in_the_place_of_others_go_on_with_their_schedules(whose):
    """As a framework does that restores groups by hand before it loads a checkpoint."""
    x, y = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    optimizer = chained(x)
    stepped(optimizer, x)
    copied = [dict(group) for group in optimizer.param_groups]
    added = {**copied[0], "params": [y], "q": 0.25}
    added.pop("link_states")
    target = optimizer if whose == "optimizer" else optimizer.inner_opt
    target.param_groups = [*copied, added]
    stepped(optimizer, x, y)
    assert [g["q"] for g in optimizer.param_groups] == [grown(2), grown(1)]


def test_a_step_of_its_own_goes_on_with_its_schedules_in_other_groups():
    x, y = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    optimizer = frank_wolfe_step(lr=linear_schedule(0.25, 0.75, 8)).optimizer([x])
    optimizer.add_param_group({"params": [y], "lr": 0.25})
    stepped(optimizer, x, y)
    optimizer.param_groups = [dict(group) for group in optimizer.param_groups]
    stepped(optimizer, x, y)
    assert [g["lr"] for g in optimizer.param_groups] == [grown(2), 0.25]


def test_a_number_in_a_group_that_takes_a_place_ends_its_schedule():
    x, y, z = (torch.ones(3, requires_grad=True) for _ in range(3))
    optimizer = chained(x)
    optimizer.add_param_group(
        {"params": [y], "q": 0.25}
    )  # the number that the schedule starts with
    stepped(optimizer, x, y)
    first, second = optimizer.param_groups
    optimizer.param_groups = [{**first, "q": 0.5}, dict(second)]
    optimizer.add_param_group({"params": [z]})
    stepped(optimizer, x, y, z)
    assert [g["q"] for g in optimizer.param_groups] == [0.5, 0.25, grown(1)]


def test_a_checkpoint_is_loaded_into_groups_that_took_the_place_of_others():
    start = torch.ones(3)
    ends = []
    for resumed in (False, True):
        x, y = (start.clone().requires_grad_() for _ in range(2))
        optimizer = chained(x)
        kept = [{**group, "params": [0]} for group in optimizer.param_groups]
        stepped(optimizer, x)
        optimizer.add_param_group({"params": [y]})
        kept += [{**group, "params": [1]} for group in optimizer.param_groups[1:]]
        stepped(optimizer, x, y)
        if resumed:
            saved = optimizer.state_dict()
            x, y = (p.detach().clone().requires_grad_() for p in (x, y))
            optimizer = chained(x)
            groups = [{**g, "params": [(x, y)[i] for i in g["params"]]} for g in kept]
            optimizer.param_groups = groups
            optimizer.load_state_dict(saved)
        stepped(optimizer, x, y)
        assert [g["q"] for g in optimizer.param_groups] == [grown(3), grown(2)]
        ends.append((x.detach(), y.detach()))
    assert torch.equal(ends[0][0], ends[1][0]) and torch.equal(ends[0][1], ends[1][1])


class Counting(torch.optim.SGD):
    """Keeps a number of the whole optimizer in `state`, beside those of parameters."""

    def step(self, closure=None):
        self.state["steps"] = self.state.get("steps", torch.zeros(())) + 1
        return super().step(closure)


def test_what_an_inner_optimizer_keeps_of_the_whole_is_loaded():
    def make():
        x = torch.ones(3, requires_grad=True)
        return x, Chain(ema(0.9), params=[x], InnerOpt=Counting, lr=0.1)

    (x, first), (_, second) = make(), make()
    stepped(first, x)
    second.load_state_dict(first.state_dict())
    assert second.state["steps"].item() == 1
    assert second.state_dict()["state"][0]["links"] is not None


class Foreign(torch.optim.Optimizer):
    """A step that is nobody's but a user's."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad, alpha=group["lr"])
        return loss


class Layered(Foreign):
    """One more layer around that of hooks, as torch's compiler puts one around LBFGS."""


Layered([torch.ones(1)])  # the first one puts hooks around the step
_hooked = Layered.step
_torchs = {"__name__": "torch._dynamo.eval_frame", "_hooked": _hooked}  # where it was written
_layer = types.FunctionType((lambda self, closure=None: _hooked(self, closure)).__code__, _torchs)
_layer.__defaults__ = (None,)
Layered.step = functools.wraps(_hooked)(_layer)
KINDS = [torch.optim.SGD, torch.optim.LBFGS, Foreign, Layered, "chain", "native"]


@pytest.mark.parametrize("with_closure", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_hooks_of_all_optimizers_fire_once_a_step_and_own_ones_too(kind, with_closure):
    x = torch.ones(3, requires_grad=True)
    if kind == "native":
        optimizer = chain(ema(0.9), frank_wolfe_step()).optimizer([x])
    elif kind == "chain":
        optimizer = Chain(ema(0.9), params=[x], InnerOpt=functools.partial(Chain, scale(0.5)))
    else:
        optimizer = Chain(ema(0.9), params=[x], InnerOpt=kind, lr=0.1)
    seen = []

    def listen(place):
        return lambda *args: seen.append((place, args[0]))

    handles = [
        register_optimizer_step_pre_hook(listen("before all")),
        register_optimizer_step_post_hook(listen("after all")),
        optimizer.inner_opt.register_step_pre_hook(listen("before")),
        optimizer.inner_opt.register_step_post_hook(listen("after")),
    ]

    def closure():
        optimizer.zero_grad()
        loss = (x * x).sum()
        loss.backward()
        return loss

    inner, both = optimizer.inner_opt, [True, False] if kind is not torch.optim.LBFGS else [True]
    try:
        for own in both:
            if not own:
                for handle in handles[2:]:
                    handle.remove()
            closure()
            seen.clear()
            with_closure = with_closure or kind is torch.optim.LBFGS
            optimizer.step(closure) if with_closure else optimizer.step()
            expected = [("before", inner), ("after", inner)] if own else []
            assert seen == [("before all", optimizer), *expected, ("after all", optimizer)]
    finally:
        for handle in handles:
            handle.remove()


def only_real(tree):
    return [not p.is_complex() for p in tree]


NO_LINK = [
    lambda: [],
    lambda: [masked(chain(ema(0.9), top_q(0.5, param_ndim=None)), only_real)],
    lambda: [partition({"real": scale(0.5), "other": chain()}, labels)],
]


def labels(tree):
    return ["other" if p.is_complex() or p.numel() > 9 else "real" for p in tree]


@pytest.mark.parametrize("links", NO_LINK, ids=["none", "masked", "partition"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.Adagrad])
def test_complex_parameters_that_no_link_sees_are_the_inner_optimizers(links, kind):
    start, grad = torch.randn(2, 3, dtype=torch.complex64), torch.randn(2, 3, dtype=torch.complex64)
    z, alone, real = (x.clone().requires_grad_() for x in (start, start, torch.ones(4)))
    optimizer = Chain(*links(), params=[z, real], InnerOpt=kind, lr=0.1)
    torchs = kind([alone], lr=0.1)
    for i in range(4):
        if i == 2:  # resumed
            saved = optimizer.state_dict()
            optimizer = Chain(*links(), params=[z, real], InnerOpt=kind, lr=0.1)
            optimizer.load_state_dict(saved)
        z.grad, alone.grad, real.grad = grad.clone(), grad.clone(), torch.ones(4)
        optimizer.step()
        torchs.step()
        assert torch.equal(z.grad, grad)
    assert torch.equal(z, alone) and not torch.equal(real.detach(), torch.ones(4))


def test_complex_parameters_that_a_link_sees_are_refused_by_name():
    z = torch.ones(3, dtype=torch.complex64, requires_grad=True)
    for links in ([ema(0.9)], [l2_ball(1.0)], [masked(ema(0.9), [True])]):
        with pytest.raises(TypeError, match=r"`params\[0\]` must be real"):
            Chain(*links, params=[z], lr=0.1)
    with pytest.raises(TypeError, match=r"`params\[0\]` must be real"):
        Chain(params=[z], lr=0.1, grad_scale=0.5)
    optimizer = Chain(params=[z], lr=0.1)
    z.grad = torch.ones_like(z)
    optimizer.param_groups[0]["grad_scale"] = 2.0
    with pytest.raises(TypeError, match=r"`params\[0\]` must be real"):
        optimizer.step()


def sparse(values):
    return torch.tensor(values).to_sparse()


@pytest.mark.parametrize("links", [[], [l2_ball(0.5)], [masked(scale(0.5), [False])]], ids=repr)
@pytest.mark.parametrize("with_closure", [False, True])
def test_sparse_gradients_that_no_link_sees_are_the_inner_optimizers(links, with_closure):
    x, alone = (torch.ones(4, requires_grad=True) for _ in range(2))
    optimizer = Chain(*links, params=[x], InnerOpt=torch.optim.SparseAdam, lr=0.1)
    torchs = torch.optim.SparseAdam([alone], lr=0.1)
    for _ in range(3):
        for p in (x, alone):
            p.grad = sparse([0.0, 1.0, 0.0, 2.0])
        optimizer.step((lambda: x.sum().detach()) if with_closure else None)
        torchs.step()
        if links and links[0].phase == "parameter":
            with torch.no_grad():
                alone.copy_(project_l2_ball(alone, 0.5, param_ndim=-1))
    assert torch.equal(x, alone)


def test_sparse_gradients_that_a_link_sees_are_refused_before_anything_changes():
    x = torch.ones(4, requires_grad=True)
    for make in (lambda: Chain(ema(0.9), params=[x], lr=0.1), lambda: native(x)):
        optimizer = make()
        x.grad = sparse([0.0, 1.0, 0.0, 2.0])
        with pytest.raises(TypeError, match=r"`grads\[0\]` must be dense"):
            optimizer.step()
        assert x.tolist() == [1.0] * 4 and not optimizer.state


def test_large_sparse_gradients_are_not_cut():
    x, alone = (torch.ones(1 << 20, requires_grad=True) for _ in range(2))
    optimizer, torchs = Chain(params=[x], lr=0.1), torch.optim.SGD([alone], lr=0.1)
    for p in (x, alone):
        p.grad = torch.sparse_coo_tensor([[5, 70]], [1.0, 2.0], (1 << 20,), check_invariants=True)
    optimizer.step()
    torchs.step()
    assert torch.equal(x, alone)


DIFFERENTIABLE = {
    "none": lambda: [],
    "scale": lambda: [scale(0.5)],
    "top_q": lambda: [top_q(0.5, param_ndim=None)],
    "ema": lambda: [ema(0.5), scale(3.0)],
    "ball": lambda: [l2_ball(0.5, param_ndim=None)],
    "all": lambda: [ema(0.5), masked(scale(3.0), [True]), l2_ball(0.5, param_ndim=None)],
}


@pytest.mark.parametrize("links", DIFFERENTIABLE)
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_steps_of_parameters_that_are_no_leaves_have_their_derivative(links, kind):
    torch.manual_seed(0)
    inputs = [torch.rand(6, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def train(start, *grads):
        p = start.clone()
        optimizer = Chain(
            *DIFFERENTIABLE[links](), params=[p], InnerOpt=kind, lr=0.1, differentiable=True
        )
        for g in grads:
            p.grad = g
            optimizer.step()
        return p

    before = [x.detach().clone() for x in inputs]
    assert torch.autograd.gradcheck(train, inputs)
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


def test_parameters_that_are_no_leaves_are_refused_as_torch_refuses_them():
    with pytest.raises(ValueError, match="non-leaf"):
        Chain(ema(0.9), params=[torch.ones(3, requires_grad=True).clone()], lr=0.1)


def test_hooks_which_write_in_place_have_no_derivative():
    class Halved(ParamTransformingOptimizer):
        def _pre_step_transform_(self, param, optim_group):
            param.grad /= 2

    x = torch.ones(3, requires_grad=True).clone()
    with pytest.raises(ValueError, match="`differentiable` must be False beside Halved"):
        Halved([x], lr=0.1, differentiable=True)
