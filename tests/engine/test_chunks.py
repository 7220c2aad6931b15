"""Running through the cache in pieces changes no bit, and costs what it should."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import rai_chain as rc
from rai_chain.engine.chunks import PIECE, SMALL

TX = rc.chain(rc.clamp(-0.5, 0.7), rc.scale(1.7), rc.bias(0.1), rc.sign(), rc.scale_bias(0.3, 0.2))


def one_link_at_a_time(g):
    for link in TX.links:
        g = link.definition.function(g, **link.values)
    return g


class Count(TorchDispatchMode):
    """Counts the operators that run, by name."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def layouts(g):
    yield g
    yield g.t()
    yield torch.stack([g, g], -1)[..., 0]
    if g.numel() % 64 == 0:
        yield g.reshape(4, 2, 8, -1).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [1, SMALL, SMALL + 64, 2 * PIECE, 2 * PIECE + 64, 5 * PIECE])
@pytest.mark.parametrize("inplace", [False, True])
def test_any_size_and_layout_has_the_bits_of_the_plain_way(size, inplace):
    for g in layouts(torch.randn(1, size)):
        expected, before = one_link_at_a_time(g.contiguous()), g.clone()
        result, _ = TX.update(g, TX.init(g), inplace=inplace)
        assert torch.equal(result, expected)
        assert result is g if inplace else torch.equal(g, before)
        assert inplace or g.stride() == result.stride() or not g.is_contiguous()


@pytest.mark.parametrize("inplace", [False, True])
def test_many_small_tensors_are_gathered(inplace):
    g = [
        torch.randn(3, i % 40).half() if i % 7 == 0 else torch.randn(i % 50, 2) for i in range(500)
    ]
    g[3], g[4] = None, torch.randn(2, 1).expand(2, 5)
    expected = [None if x is None else one_link_at_a_time(x) for x in g]
    before = [None if x is None else x.clone() for x in g]
    count = Count()
    with count:
        result, _ = TX.update(g, TX.init(g), inplace=inplace)
    for i, (a, b) in enumerate(zip(result, expected, strict=True)):
        assert a is b or torch.equal(a, b)
        if inplace and i not in (3, 4):
            assert a is g[i]
        elif not inplace and a is not None:
            assert torch.equal(g[i], before[i])
    assert count.calls.count("clamp") + count.calls.count("clamp_") <= 4  # of two dtypes


def test_one_buffer_for_each_leaf_however_many_links():
    g = [torch.randn(300, 1000), torch.randn(3 * PIECE)]
    count = Count()
    with count:
        rc.chain(rc.clamp(clamp_max=1.0), rc.scale(2.0), rc.bias(0.1)).update(g, ((), (), ()))
    assert count.calls.count("empty_like") == len(g)
    made = {"empty_like", "clone", "empty", "zeros", "cat", "new_empty"}
    assert sum(name in made for name in count.calls) == len(g)


def test_links_that_are_not_elementwise_are_in_between():
    g = {"a": torch.randn(4, 600), "b": torch.randn(3, PIECE)}
    tx = rc.chain(rc.scale(2.0), rc.top_q(0.5), rc.clamp(clamp_max=1.0), rc.bias(0.5))
    result, _ = tx.update(g, tx.init(g))
    for k in g:
        kept = rc.top_q(0.5).map(2 * g[k])
        assert torch.equal(result[k], kept.clamp(max=1.0) + 0.5)


def test_a_link_without_out_and_one_that_returns_its_input():
    @rc.elementwise
    def plus_one(grad):
        return grad + 1

    g = torch.randn(3 * PIECE)
    tx = rc.chain(rc.identity(), plus_one(), rc.identity(), plus_one())
    before = g.clone()
    assert torch.equal(tx.update(g, tx.init(g))[0], g + 1 + 1) and torch.equal(g, before)


def test_bounds_for_each_element_do_not_take_the_short_way():
    g, low = torch.randn(3 * PIECE), -torch.rand(3 * PIECE)
    tx = rc.chain(rc.scale(2.0), rc.clamp(low, 0.5), rc.bias(0.1))
    expected = torch.clamp(2 * g, low, torch.tensor(0.5)) + 0.1
    assert torch.equal(tx.update(g, tx.init(g))[0], expected)
