"""One graph, whatever the values."""

import copy
import pickle

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import rai_chain as rc


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
