"""One pipeline, three homes: pure `step`, the optimizer and TorchOpt give the same bits."""

import pytest
import torch
import torchopt
from torch import optim

import rai_chain as rc
from rai_chain.optim import ChainedParamTransformingOptimizer

C = 0.05  # a center
PIPELINES = {
    "nothing": (),
    "top_q": (rc.top_q(0.6),),
    "top_q whole": (rc.top_q(0.9, param_ndim=None),),
    "top_q drawn": (rc.top_q(0.5, dq=0.4, seed=5),),
    "clamp": (rc.clamp(-0.5, 0.4),),
    "clamp twice": (rc.clamp(clamp_max=0.5), rc.scale(2.0), rc.clamp(clamp_min=-0.7)),
    "scale_bias": (rc.scale_bias(0.5, 0.01),),
    "scale, bias": (rc.scale(0.3), rc.bias(-0.02)),
    "sign": (rc.sign(), rc.scale(0.1)),
    "normalize 1": (rc.normalize(1),),
    "normalize 2": (rc.normalize(2, param_ndim=1),),
    "normalize inf": (rc.normalize(float("inf"), param_ndim=None),),
    "clip_by_norm": (rc.clip_by_norm(0.5, p=3.0),),
    "clip_by_global_norm": (rc.clamp(clamp_max=0.9), rc.clip_by_global_norm(1.0), rc.scale(3.0)),
    "nan_to_num": (rc.nan_to_num(), rc.identity()),
    "one_hot_sign": (rc.one_hot_sign(),),
    "oracles": (rc.l1_oracle(0.3), rc.scale(-1.0)),
    "oracle q": (rc.l1q_oracle(0.5, 0.3), rc.scale(-1.0)),
    "oracle 2": (rc.l2_oracle(0.3), rc.linf_oracle(0.1), rc.scale(-1.0)),
    "scheduled": (rc.top_q(lambda step: 0.9 - 0.1 * step), rc.scale(lambda step: 1.0 / (1 + step))),
    "box": (rc.clamp(clamp_max=0.5), rc.box(-0.3, 0.8)),
    "linf_ball": (rc.sign(), rc.linf_ball(0.4, center=C)),
    "l2_ball": (rc.normalize(2), rc.l2_ball(0.9), rc.box(-1.0, 1.0)),
    "l1_ball": (rc.top_q(0.5), rc.sign(), rc.normalize(1), rc.l1_ball(1.5, center=C), rc.box(0, 1)),
    "simplex": (rc.top_q(0.2, param_ndim=None), rc.simplex(1.0)),
    "l2_ball scheduled": (rc.l2_ball(lambda step: 1.0 - 0.1 * step),),
    "tree": (rc.top_q(0.6, param_ndim="tree"), rc.l2_ball(0.9, param_ndim="tree")),
    "tree, drawn": (
        rc.top_q(0.5, dq=0.4, seed=5, param_ndim="tree"),
        rc.normalize(2, param_ndim="tree"),
        rc.l1_ball(2.0, center=C, param_ndim="tree"),
    ),
}
OPTIMIZERS = {
    "SGD": (optim.SGD, {"lr": 0.3}),
    "SGD momentum": (optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "AdamW": (optim.AdamW, {"lr": 0.05}),
    "RMSprop": (optim.RMSprop, {"lr": 0.01, "centered": True}),
    "Adafactor": (optim.Adafactor, {"lr": 0.05}),
}


def tensors(seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"w": (4, 6), "c": (3, 2, 2, 5), "b": (7,)}
    made = {k: torch.randn(*s, generator=generator) for k, s in shapes.items()}
    made["c"] = made["c"].to(memory_format=torch.channels_last)
    return made


@pytest.mark.parametrize("inner", sorted(OPTIMIZERS))
@pytest.mark.parametrize("name", sorted(PIPELINES))
def test_the_pure_and_the_stateful_home_give_the_same_bits(name, inner):
    kind, options = OPTIMIZERS[inner]
    links = PIPELINES[name]
    gradient = [link for link in links if link.phase == "gradient"]
    parameter = [link for link in links if link.phase == "parameter"]
    tx = rc.chain(*gradient, rc.from_torch(kind, **options), *parameter)
    pure = tensors(0)
    state = tx.init(pure)
    stateful = {k: v.clone().requires_grad_() for k, v in pure.items()}
    optimizer = ChainedParamTransformingOptimizer(
        *links, params=list(stateful.values()), InnerOpt=kind, **options
    )
    as_one = {k: v.clone().requires_grad_() for k, v in pure.items()}
    whole = ChainedParamTransformingOptimizer(tx, params=list(as_one.values()))
    for step in range(5):
        grads = tensors(step + 1)
        pure, state = tx.step(pure, grads, state)
        for parameters, home in ((stateful, optimizer), (as_one, whole)):
            for k, p in parameters.items():
                p.grad = grads[k].clone()
            home.step()
        for k in pure:
            assert torch.equal(pure[k], stateful[k]) and torch.equal(pure[k], as_one[k])


@pytest.mark.parametrize(
    "name", sorted(n for n, ls in PIPELINES.items() if all(k.phase == "gradient" for k in ls))
)
def test_torchopt_gives_the_same_bits(name):
    tx = rc.chain(*PIPELINES[name], rc.scale(-0.1))
    pure = {k: v.contiguous().requires_grad_() for k, v in tensors(0).items()}
    theirs = torchopt.FuncOptimizer(torchopt.chain(*PIPELINES[name], rc.scale(-0.1)))
    hosted, state = tuple(pure.values()), tx.init(tuple(pure.values()))
    own = tuple(pure.values())
    for step in range(3):
        weights = tensors(step + 1)
        loss = lambda params, weights=weights: sum(  # noqa: E731
            (p * w).sum() for p, w in zip(params, weights.values(), strict=True)
        )
        own, state = tx.step(own, torch.autograd.grad(loss(own), own), state)
        own = tuple(p.detach().requires_grad_() for p in own)
        hosted = tuple(p.detach().requires_grad_() for p in theirs.step(loss(hosted), hosted))
        for a, b in zip(own, hosted, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    "make",
    [
        lambda: rc.sgd(0.1, momentum=0.9),
        lambda: rc.adam(0.1),
        lambda: rc.chain(rc.top_q(0.5), rc.adamw(rc.linear_schedule(0.1, 0.0, 5))),
        lambda: rc.apply_if_finite(rc.adam(0.1), 3),
        lambda: rc.accumulate(rc.lion(0.01), 2),
    ],
)
def test_native_optimizers_in_the_optimizer(make):
    tx, pure = make(), tensors(0)
    state = tx.init(pure)
    params = [v.clone().requires_grad_() for v in pure.values()]
    optimizer = ChainedParamTransformingOptimizer(tx, params=params)
    for step in range(5):
        grads = tensors(step + 1)
        pure, state = tx.step(pure, grads, state)
        for p, g in zip(params, grads.values(), strict=True):
            p.grad = g.clone()
        optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(pure.values(), params, strict=True))
    with pytest.raises(ValueError, match="`maximize` must be True"):
        ChainedParamTransformingOptimizer(tx, params=params, lr=0.1)


def test_a_scheduler_of_torch_turns_the_learning_rate_of_a_native_optimizer():
    x = torch.ones(2, requires_grad=True)
    optimizer = ChainedParamTransformingOptimizer(rc.sgd(1.0), params=[x])
    scheduler = optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    for expected in (0.0, -0.5, -0.75):
        x.grad = torch.ones(2)
        optimizer.step()
        scheduler.step()
        assert torch.equal(x, torch.full((2,), expected))


def test_frank_wolfe_in_both_homes():
    from rai_chain.optim import FrankWolfe, StepOptimizer

    tx = rc.chain(rc.l1_oracle(2.0), rc.frank_wolfe_step())
    pure = tensors(0)
    state = tx.init(pure)
    stateful = [v.clone().requires_grad_() for v in pure.values()]
    optimizer = ChainedParamTransformingOptimizer(tx, params=stateful)
    assert isinstance(optimizer.inner_opt, StepOptimizer) and issubclass(FrankWolfe, StepOptimizer)
    for step in range(4):
        grads = tensors(step + 1)
        pure, state = tx.step(pure, grads, state)
        for p, g in zip(stateful, grads.values(), strict=True):
            p.grad = g.clone()
        optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(pure.values(), stateful, strict=True))
