"""A step taken in pieces has the bits of the whole step."""

import pytest
import torch
from torch import optim

import rai_chain as rc
from rai_chain.optim import ChainedParamTransformingOptimizer
from rai_chain.optim.fast import pieces
from rai_chain.optim.fast.pieces import ELEMENTWISE, PIECE

SIZES = [(3 * PIECE + 5,), (2, 3, 7), (11,), (PIECE // 4, 9), (PIECE - 1,), (4, 16, 128, 130)]
OPTIONS = {optim.SGD: {"momentum": 0.9, "nesterov": True}, optim.RMSprop: {"centered": True}}


def make(whole, kind, **options):
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(s, generator=generator) for s in SIZES]
    params[-1] = params[-1].to(memory_format=torch.channels_last)
    params = [p.requires_grad_() for p in params]
    links = [rc.clamp(-0.5, 0.5), rc.scale(0.9), rc.box(-2.0, 2.0)]
    if whole:  # a link of ours but not elementwise keeps the step whole
        links.insert(2, rc.clip_by_norm(1e9, param_ndim=None))
    groups = [{"params": params[:3]}, {"params": params[3:], "clamp_max": 0.25}]
    own = {"lr": 0.01, **OPTIONS.get(kind, {}), **options}
    return ChainedParamTransformingOptimizer(*links, params=groups, InnerOpt=kind, **own)


def tensors(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("kind", sorted(ELEMENTWISE, key=lambda kind: kind.__name__))
def test_pieces_equal_the_whole(kind, options, monkeypatch):
    if "fused" in options and kind not in (optim.SGD, optim.Adam, optim.AdamW, optim.Adagrad):
        return  # torch has no such option there
    cut, whole = make(False, kind, **options), make(True, kind, **options)
    taken = []
    real = pieces.step_in_pieces
    monkeypatch.setattr(pieces, "step_in_pieces", lambda *a: taken.append(real(*a)) or taken[-1])
    for step in range(3):
        generator = torch.Generator().manual_seed(step + 1)
        grads = [torch.randn(p.shape, generator=generator) for p in tensors(cut)]
        for optimizer in (cut, whole):
            for i, (p, g) in enumerate(zip(tensors(optimizer), grads, strict=True)):
                late = i == 2 and step == 0 and "fused" not in options  # torch refuses it there
                p.grad = None if late else g.to(p.device).clone()
            optimizer.step()
        assert taken == [True] * (step + 1)  # the one that is whole does not come so far
        for a, b in zip(tensors(cut), tensors(whole), strict=True):
            assert torch.equal(a, b)
            assert a.grad is None or torch.equal(a.grad, b.grad)
    assert cut.param_groups is cut.inner_opt.param_groups and cut.state is cut.inner_opt.state
    for a, b in zip(tensors(cut), tensors(whole), strict=True):
        assert cut.state[a].keys() == whole.state[b].keys()
        for key, value in cut.state[a].items():
            other = whole.state[b][key]
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other


def test_hooks_and_ones_own_links_keep_the_step_whole():
    @rc.elementwise
    def twice(grad):
        return 2 * grad

    x = torch.ones(2 * PIECE, requires_grad=True)
    for links, hooked in (([rc.sign()], True), ([twice()], False)):
        optimizer = ChainedParamTransformingOptimizer(*links, params=[x], lr=0.1)
        seen = []
        if hooked:
            optimizer.inner_opt.register_step_post_hook(lambda *args, seen=seen: seen.append(1))
        x.grad = torch.ones_like(x)
        work = [(bound, None) for bound in optimizer._bind()]
        assert not pieces.step_in_pieces(optimizer.inner_opt, work)
        optimizer.step()
        assert len(seen) == hooked


def test_a_step_that_fails_gives_the_groups_back(monkeypatch):
    x = torch.ones(2 * PIECE, requires_grad=True)
    optimizer = ChainedParamTransformingOptimizer(rc.sign(), params=[x], lr=0.1)
    x.grad = torch.ones_like(x)
    shared, state = optimizer.param_groups, optimizer.state
    monkeypatch.setattr("rai_chain.optim.fast.pieces._batches", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        optimizer.step()
    assert optimizer.inner_opt.param_groups is shared and optimizer.inner_opt.state is state
