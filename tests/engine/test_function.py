"""Leaves through functions: all of them as one row, and one answer whatever is beside a leaf."""

import copy

import pytest
import torch
from helpers import identical, values
from torch.func import grad, vmap

import rai_chain as rc
from rai_chain.optim import (
    ChainedParamTransformingOptimizer,
    L2ProjectedOptim,
    ParamTransformingOptimizer,
    TopQGradientOptimizer,
)

F64 = torch.float64
ROWS = {  # every link of rows that draws nothing, with values that do something
    "top_q": lambda **own: rc.top_q(0.6, **own),
    "top_k": lambda **own: rc.top_k(5, **own),
    "normalize": lambda **own: rc.normalize(2, **own),
    "normalize, 1": lambda **own: rc.normalize(1, **own),
    "clip_by_norm": lambda **own: rc.clip_by_norm(0.7, **own),
    "centralize": lambda **own: rc.centralize(**own),
    "one_hot_sign": lambda **own: rc.one_hot_sign(**own),
    "l1_oracle": lambda **own: rc.l1_oracle(0.8, **own),
    "l1q_oracle": lambda **own: rc.l1q_oracle(0.6, 0.8, **own),
    "l2_oracle": lambda **own: rc.l2_oracle(0.8, **own),
    "l1_ball": lambda **own: rc.l1_ball(0.8, **own),
    "l2_ball": lambda **own: rc.l2_ball(0.8, **own),
    "l2_ball, around": lambda **own: rc.l2_ball(0.8, center=0.1, **own),
    "simplex": lambda **own: rc.simplex(**own),
    "group_soft_threshold": lambda **own: rc.group_soft_threshold(0.3, **own),
}
every = pytest.mark.parametrize("name", ROWS)


def tree(dtype=torch.float32, seed=0):
    shapes = {"w": (3, 4), "b": (5,), "s": (), "e": (0, 2), "c": (2, 3, 2, 2)}
    made = {k: values(*s, seed=seed + i, dtype=dtype) for i, (k, s) in enumerate(shapes.items())}
    made["c"] = made["c"].to(memory_format=torch.channels_last)
    return {**made, "none": None}


def there(leaves):
    return [leaf for leaf in leaves.values() if leaf is not None]


def flat(leaves):
    return torch.cat([leaf.reshape(-1) for leaf in there(leaves)])


# ------------------------------------------------------------------ the whole tree as one row


@every
@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16, torch.float16])
def test_the_tree_is_one_row_of_all_its_elements(name, dtype):
    """The same bits as one tensor of all elements, pure and in place, whatever the layouts."""
    leaves = tree(dtype)
    before = copy.deepcopy(leaves)
    expected = ROWS[name](param_ndim=None).map(flat(leaves))
    tx = ROWS[name](param_ndim="tree")
    pure = tx.map(leaves)
    assert pure["none"] is None
    assert identical(flat(pure), expected) and identical(leaves, before)
    assert all(pure[k].shape == leaves[k].shape for k in leaves if leaves[k] is not None)
    assert pure["c"].stride() == leaves["c"].stride()
    if tx.phase == "gradient":
        written, _ = tx.update(leaves, tx.init(leaves), inplace=True)
        assert identical(written, pure) and all(written[k] is leaves[k] for k in leaves)


@every
def test_results_of_one_row_share_no_memory(name):
    """A write into one leaf of the result is seen in no other, nor in what went in."""
    leaves = tree()
    out = there(ROWS[name](param_ndim="tree").map(leaves))
    places = [x.untyped_storage().data_ptr() for x in [*out, *there(leaves)] if x.numel()]
    assert len(set(places)) == len(places)


@every
def test_a_tree_of_one_row_under_vmap(name):
    """Each example of the batch is a tree of its own."""
    stacked = {"w": values(6, 3, 4), "b": values(6, 5, seed=1)}
    tx = ROWS[name](param_ndim="tree")
    batched = vmap(tx.map)(stacked)
    for i in range(6):
        alone = tx.map({k: leaf[i] for k, leaf in stacked.items()})
        assert identical({k: leaf[i].clone() for k, leaf in batched.items()}, alone)


@pytest.mark.parametrize("name", ["normalize", "clip_by_norm", "l2_ball", "l1_ball", "top_q"])
def test_derivatives_of_one_row(name):
    """As those of one tensor of all elements."""
    row = flat(tree(F64))
    leaves = {"a": row[:7].reshape(7, 1), "b": row[7:]}
    weight = values(row.numel(), seed=9, dtype=F64)

    def total(leaves):
        return (flat(ROWS[name](param_ndim="tree").map(leaves)) * weight).sum()

    expected = grad(lambda x: (ROWS[name](param_ndim=None).map(x) * weight).sum())(row)
    torch.testing.assert_close(flat(grad(total)(leaves)), expected, rtol=1e-12, atol=1e-12)


def test_one_k_over_all_leaves():
    """A bias keeps what is large in it, or nothing, beside the weight."""
    leaves = {"w": torch.tensor([[5.0, 0.1, 0.2], [0.3, 4.0, 0.4]]), "b": torch.tensor([3.0, 0.5])}
    kept = rc.top_q(0.6, param_ndim="tree").map(leaves)
    assert kept["w"].tolist() == [[5.0, 0.0, 0.0], [0.0, 4.0, 0.0]]
    assert kept["b"].tolist() == [3.0, 0.0]


def test_among_equals_the_first_leaf_keeps_its_elements():
    leaves = {"w": torch.ones(2, 2), "b": torch.ones(4)}
    kept = rc.top_k(5, param_ndim="tree").map(leaves)
    assert kept["w"].tolist() == [[1.0, 1.0], [1.0, 1.0]] and kept["b"].tolist() == [1, 0, 0, 0]


def test_a_center_for_each_leaf_of_one_ball():
    """The ball lies around a tree of tensors and numbers."""
    start = {"w": values(3, 4, dtype=F64), "b": values(5, seed=1, dtype=F64)}
    there = {"w": start["w"] + 1.0, "b": torch.full((5,), 0.25, dtype=F64)}
    tx = rc.l2_ball(0.5, center={"w": start["w"], "b": 0.0}, param_ndim="tree")
    out = tx.map(there)
    offset = torch.cat([torch.ones(12, dtype=F64), torch.full((5,), 0.25, dtype=F64)])
    expected = offset * (0.5 / offset.norm())
    got = torch.cat([(out["w"] - start["w"]).reshape(-1), out["b"]])
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-14)


def test_leaves_of_several_dtypes_are_one_row_of_the_widest():
    """Each rounds its part to its own; a selection keeps bits."""
    leaves = {"h": values(40, dtype=torch.bfloat16), "f": values(30, seed=1)}
    row = torch.cat([leaves["h"].float(), leaves["f"]])
    kept = rc.top_q(0.8, param_ndim="tree").map(leaves)
    expected = rc.top_q(0.8, param_ndim=None).map(row)
    assert kept["h"].dtype is torch.bfloat16 and kept["f"].dtype is torch.float32
    assert torch.equal(torch.cat([kept["h"].float(), kept["f"]]), expected)
    ball = rc.l2_ball(0.5, param_ndim="tree").map(leaves)
    expected = rc.l2_ball(0.5, param_ndim=None).map(row)
    assert torch.equal(ball["h"], expected[:40].bfloat16())
    assert torch.equal(ball["f"], expected[40:])
    halves = {"h": leaves["h"], "g": values(30, seed=1, dtype=torch.float16)}
    row = torch.cat([halves["h"].float(), halves["g"].float()])
    both = rc.normalize(2, param_ndim="tree").map(halves)
    expected = rc.normalize(2, param_ndim=None).map(row)
    assert torch.equal(both["h"], expected[:40].bfloat16())
    assert torch.equal(both["g"], expected[40:].half())


def test_one_draw_for_the_tree():
    """One q for all leaves, a function of seed and step; another in the next step."""
    tx = rc.top_q(0.5, dq=0.4, seed=1, param_ndim="tree")
    leaves = {"a": torch.rand(600) + 0.1, "b": torch.rand(400) + 0.1}
    state = tx.init(leaves)
    counts = []
    for _ in range(20):
        out, state = tx.update(leaves, state)
        count = int((flat(out) != 0).sum())
        smallest = min(x[x != 0].min() for x in there(out))
        dropped = torch.cat([leaves[k][out[k] == 0] for k in leaves])
        assert dropped.max() <= smallest
        counts.append(count)
    assert len(set(counts)) > 15 and min(counts) >= 100 and max(counts) <= 900


def test_a_wrapper_says_which_leaves_are_the_row():
    leaves = {"w": torch.tensor([3.0, 1.0]), "b": torch.tensor([9.0, 8.0])}
    tx = rc.masked(rc.top_k(1, param_ndim="tree"), {"w": True, "b": False})
    out, _ = tx.update(leaves, tx.init(leaves))
    assert out["w"].tolist() == [3.0, 0.0] and out["b"].tolist() == [9.0, 8.0]


def test_leaves_without_gradients_are_not_in_the_row():
    tx = rc.top_q(0.5, param_ndim="tree")
    out, _ = tx.update({"a": torch.tensor([1.0, 2.0]), "b": None}, tx.init({"a": 0 * values(2)}))
    assert out["a"].tolist() == [0.0, 2.0] and out["b"] is None
    assert tx.update({"a": None, "b": None}, {})[0] == {"a": None, "b": None}


# ------------------------------------------------------------------ in an optimizer


def test_each_group_is_one_row_or_not():
    """A group says `param_ndim="tree"`; another has rows; a None gradient is left out."""
    a, b, c, d = (torch.zeros(4).requires_grad_() for _ in range(4))
    optimizer = ChainedParamTransformingOptimizer(
        rc.top_q(0.5),
        params=[{"params": [a, b, c], "param_ndim": "tree"}, {"params": [d], "param_ndim": None}],
        lr=1.0,
    )
    a.grad, b.grad = torch.tensor([9.0, 8.0, 7.0, 0.1]), torch.tensor([6.0, 0.2, 0.3, 0.4])
    d.grad = torch.tensor([1.0, 2.0, 3.0, 4.0])
    optimizer.step()
    assert a.tolist() == [-9.0, -8.0, -7.0, 0.0] and b.tolist() == [-6.0, 0.0, 0.0, 0.0]
    assert c.tolist() == [0.0] * 4 and d.tolist() == [0.0, 0.0, -3.0, -4.0]
    loaded = copy.deepcopy(optimizer)
    loaded.load_state_dict(optimizer.state_dict())
    assert loaded.param_groups[0]["param_ndim"] == "tree"


def test_rai_toolboxs_classes_take_the_tree():
    params = [torch.zeros(3).requires_grad_(), torch.zeros(2, 2).requires_grad_()]
    grads = [torch.tensor([1.0, 5.0, 2.0]), torch.tensor([[3.0, 0.5], [4.0, 0.1]])]
    for p, g in zip(params, grads, strict=True):
        p.grad = g.clone()
    TopQGradientOptimizer(params, q=0.6, param_ndim="tree", lr=1.0).step()
    assert params[0].tolist() == [0.0, -5.0, 0.0] and params[1].tolist() == [[-3.0, 0], [-4.0, 0]]
    for p in params:
        p.grad = torch.zeros_like(p)
    L2ProjectedOptim(params, epsilon=1.0, param_ndim="tree", lr=1.0).step()
    assert torch.cat([p.detach().reshape(-1) for p in params]).norm().item() <= 1.0
    assert params[0][1].item() == pytest.approx(-5.0 / 50**0.5)


def test_a_generator_draws_once_for_the_tree():
    generator, q = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    params = [torch.zeros(600).requires_grad_(), torch.zeros(400).requires_grad_()]
    optimizer = TopQGradientOptimizer(
        params, q=0.5, dq=0.4, param_ndim="tree", lr=1.0, generator=generator
    )
    for p in params:
        p.grad = torch.rand(p.shape) + 0.1
    optimizer.step()
    drawn = 0.1 + 0.8 * torch.rand((), generator=q).double()
    assert sum(int((p != 0).sum()) for p in params) == round(1000 * (1 - drawn.item()))


def test_a_class_with_hooks_refuses_the_tree():
    """It sees one parameter at a time."""

    class Halved(ParamTransformingOptimizer):
        def _pre_step_transform_(self, param, optim_group):
            param.grad /= 2

    p = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match=r"`param_ndim` must be an int or None for Halved.*'tree'"):
        Halved([p], param_ndim="tree")
    optimizer = Halved([p])
    with pytest.raises(ValueError, match="`param_ndim` must be an int or None"):
        optimizer.add_param_group({"params": [torch.ones(2)], "param_ndim": "tree"})
    assert len(optimizer.param_groups) == 1


def test_what_one_row_cannot_take_is_refused():
    @rc.rowwise(state=lambda rows: {"last": torch.zeros_like(rows)})
    def lagged(rows, *, state):
        return state["last"], {"last": rows}

    leaves = {"a": torch.ones(2), "b": torch.ones(3)}
    with pytest.raises(ValueError, match="`param_ndim` must be an int or None for lagged"):
        lagged(param_ndim="tree").init(leaves)
    several = {"a": 1.0, "b": 2.0}
    for given, shown in ((several, "a tree"), (torch.ones(2), r"shape \(2,\)")):
        tx = rc.l2_ball(given, param_ndim="tree")
        with pytest.raises(
            ValueError, match=f"`epsilon` must have one value.*one row  Got: {shown}"
        ):
            tx.init(leaves)
    with pytest.raises(ValueError, match=r"`center` must have one value.*`\['b'\]`"):
        rc.l2_ball(1.0, center=torch.ones(2), param_ndim="tree").init(leaves)
    with pytest.raises(TypeError, match="`param_ndim` must be an int or None for one tensor"):
        rc.to_batch(torch.ones(2), "tree")
    for wrong in ("Tree", "leaf"):
        with pytest.raises(TypeError, match='`param_ndim` must be an int, None or "tree"'):
            rc.top_q(0.5, param_ndim=wrong)


# ------------------------------------------------------------------ one tree, one answer


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_a_0_dim_leaf_has_the_same_bits_alone_and_among_others(count):
    """A 0-dim float64 value does not widen what a leaf of 0 dimensions is computed in."""
    x = torch.tensor(1.2345678)
    factor, shift = torch.tensor(1 / 3, dtype=F64), torch.tensor(0.7, dtype=F64)
    tx = rc.chain(rc.scale(factor), rc.bias(shift), rc.scale(factor))
    expected = tx.update(x[None], tx.init(x[None]))[0][0]
    leaves = [x.clone() for _ in range(count)]
    assert all(torch.equal(y, expected) for y in tx.update(leaves, tx.init(leaves))[0])
    traced = tx.update([y.requires_grad_() for y in leaves], tx.init(leaves))[0]
    assert all(torch.equal(y, expected) for y in traced)
    batched = vmap(lambda y: tx.update(y, tx.init(y))[0])(x.expand(2))
    assert torch.equal(batched, expected.expand(2))


@pytest.mark.parametrize("make", [rc.sgd, rc.adam, rc.rmsprop, rc.lion, rc.adagrad])
def test_a_0_dim_parameter_is_optimized_as_one_of_one_element(make):
    """With 0-dim float64 values, memory and all; under vmap too."""
    tx = make(lr=torch.tensor(0.1, dtype=F64), weight_decay=torch.tensor(0.01, dtype=F64))

    def train(p):
        state = tx.init(p)
        for i in range(5):
            p, state = tx.step(p, p * (0.3 + i), state)
        return p, state

    alone, state = train(torch.tensor(1.2345678))
    one, _ = train(torch.tensor([1.2345678]))
    assert torch.equal(alone, one[0])
    kept = [x for x in torch.utils._pytree.tree_leaves(state) if isinstance(x, torch.Tensor)]
    assert all(x.shape == () for x in kept)
    assert torch.equal(vmap(lambda p: train(p)[0])(torch.tensor([1.2345678] * 2)), alone.expand(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_full_tensor_of_a_wider_dtype_gives_the_same_bits_with_and_without_a_derivative(dtype):
    """The result is rounded once, where `out=` would round twice."""
    g = values(1000, dtype=dtype)
    factor, shift = values(1000, seed=1, dtype=F64), values(1000, seed=2, dtype=F64)
    for tx in (rc.scale_bias(factor, shift), rc.chain(rc.scale_bias(factor, shift), rc.sign())):
        plain = tx.update(g, tx.init(g))[0]
        traced = tx.update(g.clone().requires_grad_(), tx.init(g))[0]
        written = tx.update(g.clone(), tx.init(g), inplace=True)[0]
        assert torch.equal(plain, traced) and torch.equal(plain, written)
    once = (g.double() * factor + shift).to(dtype)
    assert torch.equal(rc.scale_bias(factor, shift).map(g), once)
