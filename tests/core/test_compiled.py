"""One graph, whatever the values."""

import copy
import pickle

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

import rai_chain as rc
from rai_chain.optim import ChainedParamTransformingOptimizer


def pipeline():
    return rc.chain(rc.top_q(0.5), rc.clamp(-1.0, 1.0), rc.scale(-0.1), rc.l1_ball(2.0))


def tree(seed):
    generator = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(4, 8, generator=generator), "b": [torch.randn(6, generator=generator)]}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()


def test_twenty_learning_rates_and_twenty_q_are_one_graph():
    tx, counter = pipeline(), CompileCounter()
    compiled = tx.compile(backend=counter)
    p, state = tree(0), tx.init(tree(0))
    for i in range(20):
        own = {"grad_scale": -0.1 / (i + 1), "q": i / 20}
        result, state = compiled.step(p, tree(i + 1), state, hyperparams=own)
        expected, _ = tx.step(p, tree(i + 1), state, hyperparams=own)
        torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-7)
    compiled.step(p, tree(1), state)
    assert counter.frame_count == 1


def test_a_schedule_is_one_graph():
    tx = rc.chain(
        rc.top_q(lambda step: 0.9 - 0.02 * step), rc.scale(lambda step: -1.0 / (1 + step))
    )
    counter = CompileCounter()
    compiled = tx.compile(backend=counter)
    p, state = tree(0), tx.init(tree(0))
    for i in range(20):
        expected, _ = tx.step(p, tree(i), state)
        p, state = compiled.step(p, tree(i), state)
        torch.testing.assert_close(p, expected, rtol=1e-6, atol=1e-7)
    assert counter.frame_count == 1


def make_pair(kind, **options):
    links = (rc.top_q(0.5), rc.clamp(-1.0, 1.0), rc.scale(0.5), rc.l2_ball(1.5))
    made = []
    for compile in (True, False):
        params = [torch.ones(3, 4).requires_grad_(), torch.zeros(6).requires_grad_()]
        more = {"compile": True} if compile else {}
        made.append(
            ChainedParamTransformingOptimizer(
                *links, params=params, InnerOpt=kind, **options, **more
            )
        )
    return made


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_the_whole_step_of_an_optimizer_is_one_graph(kind):
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    compiled, eager = make_pair(kind, lr=0.1, **options)
    scheduler = torch.optim.lr_scheduler.LambdaLR(compiled, lambda i: 1 / (i + 1))
    counters.clear()
    for i in range(21):
        grads = list(torch.randn(18, generator=torch.Generator().manual_seed(i)).split([12, 6]))
        for optimizer in (compiled, eager):
            group = optimizer.param_groups[0]
            group["q"], group["lr"] = i / 21, 0.1 / (i + 1)
            for p, g in zip(group["params"], grads, strict=True):
                p.grad = g.reshape(p.shape).clone()
            optimizer.step()
            assert group["lr"] == 0.1 / (i + 1)
        for p, q in zip(*(o.param_groups[0]["params"] for o in (compiled, eager)), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=1e-7)
    scheduler.step()
    assert counters["stats"]["unique_graphs"] == 1
    twin = copy.deepcopy(compiled)
    assert twin.state_dict()["state"].keys() == compiled.state_dict()["state"].keys()
    pickle.dumps(compiled)


def test_compile_refuses_what_keeps_a_state():
    x = torch.ones(3, requires_grad=True)
    for link in (rc.ema(), rc.top_q(0.5, dq=0.1, param_ndim=None)):
        with pytest.raises(ValueError, match="`compile` must be False for a link with a state"):
            ChainedParamTransformingOptimizer(link, params=[x], lr=0.1, compile=True)
    with pytest.raises(ValueError, match="`compile` must be False for an `InnerOpt` not of torch"):
        ChainedParamTransformingOptimizer(rc.sgd(0.1), params=[x], compile=True)
    with pytest.raises(ValueError, match="`compile` must be one of False, True"):
        ChainedParamTransformingOptimizer(rc.sign(), params=[x], lr=0.1, compile="yes")


def test_draws_are_the_eager_ones():
    tx = rc.top_q(0.5, dq=0.3)
    compiled = tx.compile(backend="eager")
    g, state = tree(0), tx.init(tree(0))
    for _ in range(3):
        expected, _ = tx.update(g, state)
        result, state = compiled.update(g, state)
        assert torch.equal(result["w"], expected["w"])


def test_bad_values_are_refused_before_the_graph():
    compiled = pipeline().compile(backend="eager")
    with pytest.raises(ValueError, match="`q` must satisfy"):
        compiled.step(tree(0), tree(1), compiled.init(tree(0)), hyperparams={"q": 2.0})
    with pytest.raises(ValueError, match="must name a hyperparameter"):
        compiled.step(tree(0), tree(1), compiled.init(tree(0)), hyperparams={"r": 2.0})


def test_it_is_a_pipeline_like_any_other():
    compiled = pipeline().compile(backend="eager")
    assert compiled.hyperparams == pipeline().hyperparams
    for twin in (pickle.loads(pickle.dumps(compiled)), copy.deepcopy(compiled)):
        assert repr(twin) == repr(compiled) and ".compile(backend='eager')" in repr(twin)
    longer = rc.chain(compiled, rc.box(0.0, 1.0))
    assert [link.name for link in longer.links][-1] == "box"
    inplace = tree(1)
    out, _ = compiled.inner.update(inplace, compiled.init(inplace), params=tree(0), inplace=True)
    assert out["w"] is inplace["w"]
