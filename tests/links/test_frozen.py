"""Frozen parameters: of signed zeros, infinities and NaN, they move no bit under any gradient."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

import rai_chain as rc
from rai_chain import chain
from rai_chain.optim import ChainedParamTransformingOptimizer

P = torch.tensor([-0.0, 0.0, 1.5, torch.nan, torch.inf]).repeat(3, 1)
G = torch.tensor([torch.nan, torch.inf, -1.0, 1.0, -torch.inf]).repeat(3, 1)
MASK = {"w": True, "b": False}
KINDS = {
    "adamw": lambda: rc.adamw(0.1),
    "torch's": lambda: rc.from_torch(torch.optim.AdamW, lr=0.1),
    "box": lambda: chain(rc.sgd(0.1, momentum=0.9, weight_decay=0.1), rc.box(0.25, 0.5)),
    "accumulate": lambda: rc.accumulate(rc.sgd(0.1), 2),
    "lookahead": lambda: rc.lookahead(rc.adam(0.1)),
    "params_ema": lambda: chain(rc.sgd(0.1), rc.params_ema()),
}


def draw(seed):
    return torch.randn(4, generator=torch.Generator().manual_seed(seed))


def bits(x):
    return x.detach().view(torch.int32)


@pytest.mark.parametrize("name", KINDS)
def test_a_frozen_parameter_keeps_its_bits_and_gets_no_state(name):
    make = KINDS[name]
    tx = rc.selective_transform(make(), freeze_mask=MASK)
    pure = {"w": P, "b": draw(0)}
    state = tx.init(pure)
    params = {k: v.clone().requires_grad_() for k, v in pure.items()}
    optimizer = tx.optimizer(list(params.items()))
    alone, own = pure["b"], make().init(pure["b"])
    for seed in range(4):
        g = {"w": G, "b": draw(seed)}
        pure, state = tx.step(pure, g, state)
        alone, own = make().step(alone, g["b"], own)
        for k, p in params.items():
            p.grad = g[k].clone()
        optimizer.step()
        assert torch.equal(bits(pure["w"]), bits(P)) and torch.equal(bits(params["w"]), bits(P))
        assert torch.equal(pure["b"], alone) and torch.equal(params["b"], alone)
    for kept in (state, optimizer.state.get(params["w"], {}), optimizer.param_groups[0]):
        tensors = [x for x in tree_leaves(kept) if torch.is_tensor(x) and x is not params["w"]]
        assert P.shape not in [x.shape for x in tensors]


def test_frozen_behind_an_optimizer():
    tx, p = chain(rc.adamw(0.1), rc.freeze(MASK)), {"w": P, "b": draw(0)}
    out, state = tx.update({"w": G, "b": draw(1)}, tx.init(p), params=p)
    assert torch.equal(bits(rc.apply_updates(p, out)["w"]), bits(P)) and (out["b"] != 0).all()
    new, _ = tx.step(p, {"w": G, "b": draw(1)}, state)
    assert torch.equal(bits(new["w"]), bits(P))
    params = [v.clone().requires_grad_() for v in p.values()]
    optimizer = tx.optimizer(list(zip(p, params, strict=True)))
    for param, grad in zip(params, (G, draw(1)), strict=True):
        param.grad = grad.clone()
    optimizer.step()
    assert torch.equal(bits(params[0]), bits(P)) and (params[1] != p["b"]).all()


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
@pytest.mark.parametrize(
    "link", [rc.freeze([True]), rc.selective_transform(rc.scale(2.0), freeze_mask=[True])]
)
def test_frozen_in_front_of_an_optimizer_of_torch(link, kind):
    x = P.clone().requires_grad_()
    optimizer = ChainedParamTransformingOptimizer(link, params=[x], InnerOpt=kind, lr=0.1)
    for _ in range(3):
        x.grad = G.clone()
        optimizer.step()
    assert torch.equal(bits(x), bits(P))
    assert torch.equal(bits(x.grad), torch.zeros_like(bits(P)))  # +0


def test_waiting_and_refused_steps_move_no_bit():
    for tx in (rc.accumulate(rc.sgd(0.1), 3), rc.apply_if_finite(rc.sgd(0.1), 3)):
        new, _ = tx.step(P, torch.full_like(P, torch.nan), tx.init(P))
        assert torch.equal(bits(new), bits(P))


def test_around_constraints_alone_gradients_are_stopped_too():
    tx = rc.selective_transform(rc.box(0.0, 0.5), freeze_mask=[True, False])
    p = [torch.ones(2), torch.ones(2)]
    new, _ = tx.step(p, p, tx.init(p))
    assert torch.equal(new[0], torch.ones(2)) and torch.equal(new[1], torch.full((2,), 0.5))


def test_the_upper_part_of_a_tree_or_a_function_says_what_is_frozen():
    p = {"body": {"w": torch.ones(2), "b": torch.ones(1)}, "head": torch.ones(2)}
    for mask in ({"body": True, "head": False}, lambda path: path.startswith("body")):
        tx = rc.selective_transform(rc.sgd(0.5), freeze_mask=mask)
        new, _ = tx.step(p, p, tx.init(p))
        assert torch.equal(new["body"]["w"], torch.ones(2))
        assert torch.equal(new["head"], torch.full((2,), 0.5))


def test_zero_is_positive_for_nan_too():
    out, _ = rc.set_to_zero().update(torch.tensor([-1.0, torch.nan, -0.0, torch.inf]), ())
    assert torch.equal(bits(out), torch.zeros(4, dtype=torch.int32))
