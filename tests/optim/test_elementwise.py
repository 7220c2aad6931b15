"""A step of elementwise links has the bits of a step that goes the long way."""

import pytest
import torch
from torch import optim

import rai_chain as rc
from rai_chain.engine.chunks import PIECE
from rai_chain.kernels import native
from rai_chain.optim import ChainedParamTransformingOptimizer
from rai_chain.optim.fast import elementwise, onepass

KINDS = (
    *(optim.ASGD, optim.Adadelta, optim.Adagrad, optim.Adam, optim.AdamW, optim.Adamax),
    *(optim.NAdam, optim.RAdam, optim.RMSprop, optim.Rprop, optim.SGD),
)
THERE = native.library is not None and onepass.KNOWN
SIZES = [(3 * PIECE + 5,), (2, 3, 7), (11,), (PIECE // 4, 9), (PIECE - 1,), (4, 16, 128, 130)]
OPTIONS = {optim.SGD: {"momentum": 0.9, "nesterov": True}, optim.RMSprop: {"centered": True}}


def make(long, kind, **options):
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(s, generator=generator) for s in SIZES]
    params[-1] = params[-1].to(memory_format=torch.channels_last)
    params = [p.requires_grad_() for p in params]
    links = [rc.clamp(-0.5, 0.5), rc.scale(0.9), rc.box(-2.0, 2.0)]
    if long:  # a link of ours but not elementwise makes it the long way
        links.insert(2, rc.clip_by_norm(1e9, param_ndim=None))
    groups = [{"params": params[:3]}, {"params": params[3:], "clamp_max": 0.25}]
    own = {"lr": 0.01, **OPTIONS.get(kind, {}), **options}
    return ChainedParamTransformingOptimizer(*links, params=groups, InnerOpt=kind, **own)


def tensors(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


FUSED = (optim.SGD, optim.Adam, optim.AdamW, optim.Adagrad)  # that have such a way
CASES = [(kind, options) for kind in KINDS for options in ({}, {"foreach": True})]
CASES += [(kind, {"fused": True}) for kind in FUSED]


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_the_short_way_equals_the_long_one(kind, options, monkeypatch):
    short, long = make(False, kind, **options), make(True, kind, **options)
    taken = []
    real = elementwise.one_pass
    monkeypatch.setattr(elementwise, "one_pass", lambda *a: taken.append(real(*a)) or taken[-1])
    for step in range(3):
        generator = torch.Generator().manual_seed(step + 1)
        grads = [torch.randn(p.shape, generator=generator) for p in tensors(short)]
        for optimizer in (short, long):
            for i, (p, g) in enumerate(zip(tensors(optimizer), grads, strict=True)):
                late = i == 2 and step == 0 and "fused" not in options  # torch refuses it there
                p.grad = None if late else torch.empty_like(p).copy_(g)
            optimizer.step()
        assert len(taken) == step + 1  # the one that goes the long way does not come so far
        for a, b in zip(tensors(short), tensors(long), strict=True):
            assert torch.equal(a, b)
            assert a.grad is None or torch.equal(a.grad, b.grad)
    native_kind = THERE and kind in onepass.KINDS and "foreach" not in options
    assert taken == [False, native_kind and "fused" in options, native_kind]  # not the first steps
    assert (
        short.param_groups is short.inner_opt.param_groups and short.state is short.inner_opt.state
    )
    for a, b in zip(tensors(short), tensors(long), strict=True):
        assert short.state[a].keys() == long.state[b].keys()
        for key, value in short.state[a].items():
            other = long.state[b][key]
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other


def test_hooks_and_ones_own_links_are_called():
    called = []

    @rc.elementwise
    def twice(grad):
        called.append(1)
        return 2 * grad

    x = torch.ones(2 * PIECE, requires_grad=True)
    for link, hooked in ((rc.scale(0.5), True), (twice(), False)):
        optimizer = ChainedParamTransformingOptimizer(link, params=[x], lr=0.1)
        if hooked:
            optimizer.inner_opt.register_step_post_hook(lambda *args: called.append(1))
        for _ in range(2):
            called.clear()
            x.grad = torch.ones_like(x)
            assert not elementwise.one_pass(optimizer.inner_opt, optimizer._bind())
            optimizer.step()
            assert called


def test_a_step_that_fails_gives_the_groups_back(monkeypatch):
    x = torch.ones(2 * PIECE, requires_grad=True)
    optimizer = ChainedParamTransformingOptimizer(rc.sign(), params=[x], lr=0.1)
    x.grad = torch.ones_like(x)
    shared, state = optimizer.param_groups, optimizer.state
    monkeypatch.setattr(elementwise, "one_pass", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        optimizer.step()
    assert optimizer.inner_opt.param_groups is shared and optimizer.inner_opt.state is state
