"""`differentially_private_aggregate`: its shapes, its clipping, the deviation of its noise."""

import pytest
import torch
from torch.func import functional_call, grad, vmap

import rai_chain as rc
from rai_chain import chain
from rai_chain.optim import ChainedParamTransformingOptimizer

dp = rc.differentially_private_aggregate


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def trees(n=6):
    params = {"w": draw(3, 4), "b": draw(4, seed=1), "s": draw(seed=2), "none": None}
    grads = {k: None if p is None else draw(n, *p.shape, seed=3) for k, p in params.items()}
    return params, grads


def test_without_noise_it_is_the_mean_of_the_clipped_gradients():
    params, grads = trees()
    tx = dp(1.5, 0.0)
    assert tx.init(params) == {}
    out, _ = tx.update(grads, tx.init(params), params=params)
    flat = torch.cat([g.reshape(6, -1) for g in grads.values() if g is not None], 1)
    factor = (1.5 / flat.norm(dim=1)).clamp(max=1)
    assert 0 < (factor < 1).sum() < 6 or (factor < 1).all()
    for key, g in grads.items():
        if g is None:
            assert out[key] is None
            continue
        expected = (g * factor.reshape(-1, *[1] * (g.ndim - 1))).mean(0)
        torch.testing.assert_close(out[key], expected, rtol=1e-13, atol=1e-15)


def test_noise_has_the_stated_deviation_and_mean_zero():
    clip, multiplier, n, seeds = 0.7, 1.3, 8, 4000
    params, grads = {"a": draw(5), "b": draw(2, 2)}, {"a": draw(n, 5), "b": draw(n, 2, 2)}
    quiet, _ = dp(clip, 0.0).update(grads, {}, params=params)

    def one(seed):
        tx = dp(clip, multiplier, seed=seed)
        return tx.update(grads, tx.init(params), params=params)[0]

    outs = vmap(one)(torch.arange(seeds))
    noise = torch.cat([(outs[k] - quiet[k]).reshape(seeds, -1) for k in params], 1)
    deviation = clip * multiplier / n
    assert (noise.mean(0).abs() < 4 * deviation / seeds**0.5).all()
    assert (noise.std(0) / deviation - 1).abs().max() < 4 / (2 * seeds) ** 0.5
    assert (torch.corrcoef(noise.T) - torch.eye(9)).abs().max() < 5 / seeds**0.5


def test_each_step_and_leaf_draws_anew_and_the_same_again():
    params, grads = {"a": draw(5), "b": draw(5)}, {"a": torch.zeros(2, 5), "b": torch.zeros(2, 5)}
    tx = dp(1.0, 1.0, seed=3)
    first, state = tx.update(grads, tx.init(params))
    second, _ = tx.update(grads, state)
    assert torch.equal(first["a"], tx.update(grads, tx.init(params))[0]["a"])
    assert not torch.equal(first["a"], second["a"]) and not torch.equal(first["a"], first["b"])


def test_training_with_a_gradient_for_each_example():
    """And with an optimizer, a constraint, and another number of examples in the next step."""
    net = torch.nn.Linear(4, 2).double()
    params = {k: p.detach() for k, p in net.named_parameters()}

    def loss(params, x, y):
        return (functional_call(net, params, (x,)) - y).square().mean()

    tx = chain(dp(1.0, 0.01), rc.adam(0.05), rc.box(-0.5, 0.5))
    state, x = tx.init(params), draw(9, 4)
    y = x[:, :2] * 0.3
    first = loss(params, x, y)
    for n in (9, 5, 1, 9) * 10:
        grads = vmap(grad(loss), (None, 0, 0))(params, x[:n], y[:n])
        params, state = tx.step(params, grads, state)
    assert loss(params, x, y) < 0.3 * first
    assert all(p.abs().max() <= 0.5 for p in params.values())


@pytest.mark.parametrize(
    ("grads", "shape"),
    [
        ({"a": torch.ones(3, 2), "b": torch.ones(4)}, "(3, 2)"),
        ({"a": torch.ones(0, 2), "b": torch.ones(0)}, "(0, 2)"),
        ({"a": torch.ones(()), "b": torch.ones(())}, "()"),
    ],
)
def test_refuses_what_is_not_one_entry_for_each_example(grads, shape):
    params = {"a": torch.ones(2), "b": torch.ones(())}
    tx = dp(1.0, 0.0)
    with pytest.raises(ValueError) as error:
        tx.update(grads, tx.init(params))
    assert str(error.value) == (
        "`updates['a']` must be (N, ...), an entry for each example, with one N >= 1 for all "
        f"leaves  Got: {shape}"
    )


def test_refuses_examples_of_another_shape_and_writing_in_place():
    tx = dp(1.0, 0.0)
    with pytest.raises(ValueError, match=r"`updates` must have the shape of its parameter, \(3,\)"):
        tx.update(torch.ones(4, 2), {}, params=torch.ones(3))
    with pytest.raises(ValueError, match="`inplace` must be False"):
        tx.update(torch.ones(4, 2), {}, params=torch.ones(2), inplace=True)


def test_refuses_a_place_where_gradients_have_the_shape_of_parameters():
    link, x = dp(1.0, 0.0), torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match=r"must be the first link, .* place 1, behind `scale_0`"):
        chain(rc.scale(1.0), link)
    with pytest.raises(ValueError, match=r"must be the first link .* inside accumulate"):
        rc.accumulate(link, 2)
    for make in (
        lambda: chain(link, rc.sgd(0.1)).optimizer([x]),
        lambda: ChainedParamTransformingOptimizer(link, params=[x], lr=0.1),
    ):
        with pytest.raises(ValueError, match=r"must be in a pure pipeline, .* Got: an optimizer"):
            make()
    with pytest.raises(
        ValueError, match="`reduces` must be False but for a gradient link of trees"
    ):
        rc.elementwise(reduces=True)(lambda g: g)


def test_compiled_equals_eager():
    params, grads = trees()
    tx = chain(dp(1.0, 0.5), rc.sgd(0.1))
    torch.compiler.reset()
    expected = tx.step(params, grads, tx.init(params))
    found = tx.compile(backend="eager").step(params, grads, tx.init(params))
    for key in ("w", "b", "s"):
        torch.testing.assert_close(found[0][key], expected[0][key])
