"""Deep trees, many trees, modules: what is bounded, and what is refused."""

import pytest
import torch
import torchopt
from torch.func import functional_call

from rai_chain import accumulate, chain, clamp, ema, masked, scale


def nested(depth):
    tree = torch.ones(2)
    for _ in range(depth):
        tree = {"in": tree}
    return tree


PIPELINES = {
    "chain": chain(clamp(-1.0, 1.0), scale(-0.1)),
    "masked": masked(scale(0.5), True),
    "accumulate": accumulate(ema(), 2),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_tree_300_deep_passes(name):
    tx, tree = PIPELINES[name], nested(300)
    new, _ = tx.step(tree, tree, tx.init(tree))
    for _ in range(300):
        new = new["in"]
    assert new.shape == (2,)


@pytest.mark.parametrize("depth", [301, 400, 500, 5000])
@pytest.mark.parametrize("name", PIPELINES)
def test_a_deeper_tree_is_refused_by_its_depth(name, depth):
    tx, tree = PIPELINES[name], nested(depth)
    with pytest.raises(ValueError, match="nested at most 300 deep"):
        tx.init(tree)


def test_a_wide_tree_is_not_deep():
    tree = [[torch.ones(1)] for _ in range(400)]
    assert PIPELINES["chain"].init(tree) == [{}, {}]


def test_a_link_of_torchopt_keeps_few_of_the_trees_that_it_has_seen():
    tx = chain(torchopt.adam(0.1))
    for n in range(1, 100):
        tree = [torch.ones(1)] * n
        tx.update(tree, tx.init(tree))
    assert len(tx.links[0]._structures) <= 8


def graph_depth(tensor):
    depth, level = 0, {tensor.grad_fn} - {None}
    while level:
        depth, level = depth + 1, {f for node in level for f, _ in node.next_functions} - {None}
    return depth


def test_detached_parameters_of_a_module_keep_the_graph_away():
    net = torch.nn.Linear(3, 1)
    tx, x = scale(-0.1), torch.ones(2, 3)

    def loss(params):
        return functional_call(net, params, x).square().mean()

    depths = []
    for start in (lambda p: p, torch.Tensor.detach):
        params = {name: start(p) for name, p in net.named_parameters()}
        state = tx.init(params)
        for _ in range(20):
            params, state = tx.step(params, torch.func.grad(loss)(params), state)
        depths.append(graph_depth(params["weight"]))
    assert depths[0] > 20 and depths[1] == 0


def test_init_and_an_update_in_place_are_part_of_a_graph():
    tx, x = chain(clamp(-1.0, 1.0), ema(0.5)), torch.tensor([3.0, -0.5])

    def run(x):
        g = x * 1.0
        return tx.update(g, tx.init(x), x, inplace=True)[0]

    torch.compiler.reset()
    assert torch.equal(torch.compile(run, fullgraph=True, backend="eager")(x), run(x))
