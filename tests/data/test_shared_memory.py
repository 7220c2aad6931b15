"""Tensors that share memory: each update is that of the tensors as they came."""

import pytest
import torch
import torchopt

import rai_chain as rc
from rai_chain.data.checks import overlaps
from rai_chain.data.memory import separated
from rai_chain.optim import ChainedParamTransformingOptimizer, FrankWolfe

CHAINS = {
    "scale": lambda: rc.scale(0.5),
    "several": lambda: rc.chain(rc.scale(0.5), rc.bias(1.0), rc.clamp(clamp_max=3.0)),
    "rows": lambda: rc.chain(rc.normalize(1, param_ndim=None), rc.bias(1.0)),
    "selection": lambda: rc.chain(rc.top_q(0.5, param_ndim=None), rc.scale(2.0)),
    "one row": lambda: rc.chain(rc.top_q(0.5, param_ndim="tree"), rc.scale(2.0)),
    "tree": lambda: rc.chain(rc.scale(2.0), rc.clip_by_global_norm(1.0), rc.bias(0.5)),
    "memory": lambda: rc.chain(rc.trace(0.9), rc.scale(0.5)),
    "wrapper": lambda: rc.accumulate(rc.chain(rc.scale(0.5), rc.bias(1.0)), 1),
    "raw": lambda: rc.chain(rc.scale(0.5), beside()),
    "swapped": lambda: rc.stateless(lambda updates, params: updates[::-1]),
    "params": lambda: rc.chain(rc.scale(0.5), rc.add_decayed_weights(0.1)),
    "torchopt": lambda: rc.chain(torchopt.transform.trace(0.9), rc.scale(0.5)),
}
every_chain = pytest.mark.parametrize("name", CHAINS)


@rc.elementwise
def _beside(updates, *, grad):
    return updates + 10.0 * grad


def beside():
    return _beside()


def whole(count):
    """One tensor for all leaves."""
    g = torch.tensor([1.0, -2.0, 3.0])
    return [g] * count


def windows(count):
    buffer = torch.arange(1.0, 3.0 + count)
    return [buffer[i : i + 3] for i in range(count)]


def backwards(count):
    return windows(count)[::-1]


def columns(count):
    """Interleaved, with no common element."""
    return list(torch.arange(1.0, 1.0 + 3 * count).view(3, count).unbind(1))


def unfolded(count):
    """Each overlaps itself."""
    return [torch.arange(1.0 + i, 5.0 + i).unfold(0, 2, 1) for i in range(count)]


def expanded(count):
    return [torch.tensor(1.0 + i).expand(3) for i in range(count)]


SHARED = [whole, windows, backwards, columns, unfolded, expanded]
every_way = pytest.mark.parametrize("make", SHARED, ids=lambda make: make.__name__)
every_count = pytest.mark.parametrize("count", [2, 3, 4, 9])


def copies(leaves):
    return [None if x is None else x.clone(memory_format=torch.contiguous_format) for x in leaves]


def agree(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@every_chain
@every_way
@every_count
def test_an_update_in_place_gives_the_pure_result(name, make, count):
    tx, updates = CHAINS[name](), make(count)
    params = [torch.full(g.shape, 0.25) for g in updates]
    expected, _ = tx.update(copies(updates), tx.init(params), params=params)
    out, _ = tx.update(updates, tx.init(params), params=params, inplace=True)
    assert agree(out, expected)
    if make is columns:
        assert all(a is b for a, b in zip(out, updates, strict=True))


@every_chain
@every_way
@every_count
def test_the_optimizer_gives_the_pure_result(name, make, count):
    tx, grads = CHAINS[name](), make(count)
    params = [torch.full(g.shape, 0.25).requires_grad_() for g in grads]
    own = [p.detach().clone() for p in params]
    expected, _ = tx.update(copies(grads), tx.init(own), params=own)
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    ChainedParamTransformingOptimizer(tx, params=params, lr=1.0).step()
    assert agree([p.grad for p in params], expected)
    assert agree(params, [p - g for p, g in zip(own, expected, strict=True)])


@every_chain
def test_gradients_in_several_groups(name):
    tx, grads = CHAINS[name](), windows(4)
    params = [torch.full((3,), 0.25).requires_grad_() for _ in grads]
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    groups = [{"params": params[:2]}, {"params": params[2:]}]
    expected = []
    for part in (slice(0, 2), slice(2, 4)):
        own = [p.detach().clone() for p in params[part]]
        expected += tx.update(copies(grads[part]), tx.init(own), params=own)[0]
    ChainedParamTransformingOptimizer(tx, params=groups, lr=1.0).step()
    assert agree([p.grad for p in params], expected)


def test_one_tensor_that_autograd_returns_for_two_leaves():
    a, b = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    grads = torch.autograd.grad(((a + b) * torch.ones(3)).sum(), (a, b))
    assert grads[0] is grads[1] or grads[0].data_ptr() == grads[1].data_ptr()
    out, _ = rc.scale(0.5).update(grads, (), inplace=True)
    assert agree(out, [torch.full((3,), 0.5)] * 2)
    assert torch.equal(grads[0], torch.full((3,), 0.5))


@every_chain
@pytest.mark.parametrize("crossed", [False, True])
def test_gradients_in_the_memory_of_parameters(name, crossed):
    tx = CHAINS[name]()
    own = [torch.tensor([1.0, -2.0, 3.0]), torch.tensor([4.0, 5.0, -6.0])]
    grads = own[::-1] if crossed else own
    expected, _ = tx.update(copies(grads), tx.init(own), params=copies(own))
    params = [p.clone().requires_grad_() for p in own]
    for p, q in zip(params, params[::-1] if crossed else params, strict=True):
        p.grad = q.detach()
    ChainedParamTransformingOptimizer(tx, params=params, lr=1.0).step()
    assert agree([p.grad for p in params], expected)
    assert agree(params, [p - g for p, g in zip(own, expected, strict=True)])
    kept = copies(own)
    out, _ = tx.update(grads, tx.init(own), params=own, inplace=True)
    assert agree(out, expected) and agree(own, kept)


@every_chain
def test_inside_a_chain_of_torchopt(name):
    tx, params = CHAINS[name](), [torch.full((3,), 0.25) for _ in range(3)]
    theirs = torchopt.chain(tx, rc.scale(-1.0))
    expected, _ = tx.update(copies(windows(3)), tx.init(params), params=params)
    out, _ = theirs.update(windows(3), theirs.init(params), params=params, inplace=True)
    assert agree(out, [-g for g in expected])


def test_the_raw_gradients_are_those_that_came():
    g = [torch.ones(2), torch.ones(2)]
    tx = rc.chain(rc.scale(2.0), beside())
    out, _ = tx.update(g, tx.init(g), inplace=True, grad=g)
    assert agree(out, [torch.full((2,), 12.0)] * 2) and out[0] is g[0]


def test_hyperparameters_in_the_memory_of_the_updates_are_not_written():
    g = torch.tensor([1.0, -2.0])
    out, _ = rc.scale_bias().update(g, (), inplace=True, hyperparams={"grad_bias": g[1:]})
    assert torch.equal(out, torch.tensor([-1.0, -4.0])) and g[1] == -2.0


def test_one_parameter_twice_is_transformed_once():
    p = torch.tensor([1.0, 2.0], requires_grad=True)
    with pytest.warns(UserWarning, match="duplicate"):
        optimizer = ChainedParamTransformingOptimizer(
            rc.trace(0.5), rc.scale(0.5), rc.soft_threshold(0.125), params=[p, p], lr=0.0
        )
    for _ in range(2):
        p.grad = torch.ones(2)
        optimizer.step()
    assert torch.equal(p.grad, torch.full((2,), 0.75))
    assert torch.equal(p, torch.tensor([0.75, 1.75]))


def test_parameters_in_one_memory_are_projected_once():
    p = torch.tensor([1.0, 2.0], requires_grad=True)
    q = p.detach().requires_grad_()
    for groups in ([p, q], [{"params": [p]}, {"params": [q]}]):
        before = p.detach().clone()
        optimizer = ChainedParamTransformingOptimizer(
            rc.soft_threshold(0.125), params=groups, lr=0.0
        )
        optimizer.step()
        assert torch.equal(p, before - 0.125)


def test_frank_wolfe_by_itself_reads_gradients_before_it_writes():
    p, q = torch.ones(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    p.grad, q.grad = torch.full((2,), 3.0), p.detach()
    FrankWolfe([{"params": [p]}, {"params": [q]}]).step()
    assert torch.equal(q, -torch.ones(2))


def test_compiled():
    for make in (whole, windows):
        tx = rc.chain(rc.scale(0.5), rc.bias(1.0))
        expected, _ = tx.update(copies(make(3)), tx.init(make(3)))
        compiled = tx.compile(backend="eager")
        out, _ = compiled.update(make(3), tx.init(make(3)), inplace=True)
        assert agree(out, expected)


@pytest.mark.parametrize("make", [whole, windows, columns])
def test_an_update_in_place_in_a_graph_of_ones_own(make):
    for name in ("several", "swapped", "params", "tree"):
        torch.compiler.reset()
        tx, params = CHAINS[name](), [torch.full((3,), 0.25)] * 3
        expected, _ = tx.update(copies(make(3)), tx.init(params), params=params)

        @torch.compile(backend="aot_eager", fullgraph=True)
        def update(a, b, c, params, tx=tx):
            return tx.update([a, b, c], tx.init(params), params=params, inplace=True)[0]

        updates = make(3)
        assert agree(update(*updates, params), expected)
        if make is columns:
            assert agree(updates, expected)


def test_what_overlaps_itself():
    x = torch.arange(24.0).view(2, 3, 4)
    ordinary = [x, x[..., 0], x[:, 1], x.transpose(0, 2), x[:, :, ::2], x[:0], x[0, 0, 0]]
    assert not any(map(overlaps, [*ordinary, x.to(memory_format=torch.contiguous_format)]))
    assert not overlaps(torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last))
    for bad in (
        x[:1, :1, :1].expand(2, 3, 4),
        x.view(-1).unfold(0, 3, 1),
        x.as_strided((2, 2), (1, 1)),
    ):
        assert overlaps(bad)
    assert not overlaps(x.view(-1).unfold(0, 3, 3)) and not overlaps(x[:1].expand(1, 3, 4))


def test_tensors_apart_stay_the_same_objects():
    buffer = torch.zeros(4, 6)
    pieces = [buffer[:2], buffer[2, :3], buffer[2, 3:], None, buffer[3, ::2], buffer[3, 1::2]]
    assert separated(pieces) is pieces
    empty = [torch.empty(0), torch.empty(0), buffer[:0], buffer[:0]]
    assert separated(empty) is empty
    assert separated([buffer[0]], [buffer[1], None])[0].data_ptr() == buffer.data_ptr()
    assert separated([buffer[0]], [buffer[:, 0]])[0].data_ptr() != buffer.data_ptr()
    meta = [torch.empty(3, device="meta")] * 2
    assert len(separated(meta)) == 2
