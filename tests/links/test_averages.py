"""Averages of parameters: what they are, where they are read, and what they leave alone."""

import pytest
import torch
from torch.func import functional_call, grad

import rai_chain as rc


def test_the_average_of_parameters_is_its_definition() -> None:
    tx, p = rc.chain(rc.adam(0.1), rc.params_ema(0.8)), {"w": torch.randn(3, 2).double()}
    state, seen = tx.init(p), []
    for _ in range(12):
        p, state = tx.step(p, {"w": torch.cos(p["w"])}, state)
        seen.append(p["w"])
        weights = 0.8 ** torch.arange(len(seen)).flip(0).double()
        mean = torch.einsum("t,tij->ij", weights / weights.sum(), torch.stack(seen))
        torch.testing.assert_close(rc.averaged_params(state)["w"], mean)


def test_it_changes_no_parameter_and_stands_behind_a_projection() -> None:
    p, g = torch.randn(4), torch.randn(4)
    plain, tx = rc.chain(rc.sgd(0.5), rc.box(-0.1, 0.1)), rc.chain(rc.sgd(0.5), rc.box(-0.1, 0.1))
    tx = rc.chain(tx, rc.params_ema())
    new, state = tx.step(p, g, tx.init(p))
    assert torch.equal(new, plain.step(p, g, plain.init(p))[0])
    torch.testing.assert_close(rc.averaged_params(state), new)


def test_the_average_in_a_loop_is_the_better_model() -> None:
    """On noisy gradients of a regression the average of the iterates has the lower loss."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 5, generator=generator)
    target = x @ torch.randn(5, 1, generator=generator)
    net = torch.nn.Linear(5, 1, bias=False)
    params = {k: v.detach() for k, v in net.named_parameters()}

    def loss(params: dict[str, torch.Tensor]) -> torch.Tensor:
        return (functional_call(net, params, (x,)) - target).square().mean()

    tx = rc.chain(rc.add_noise(1.0, gamma=0.0), rc.sgd(0.1), rc.params_ema(0.99))
    state = tx.init(params)
    for _ in range(600):
        params, state = tx.step(params, grad(loss)(params), state)
    assert loss(rc.averaged_params(state)) < 0.2 * loss(params)


def test_half_precision_parameters_are_averaged_in_float32() -> None:
    tx, p = rc.chain(rc.scale(0.0), rc.params_ema(0.999)), torch.ones(2, dtype=torch.bfloat16)
    state = tx.init(p)
    for _ in range(3000):
        p, state = tx.step(p, p, state)
    torch.testing.assert_close(rc.averaged_params(state), torch.ones(2), rtol=1e-6, atol=0)


def test_one_average_is_found_wherever_it_is() -> None:
    p = {"a": torch.ones(2), "b": torch.ones(3)}
    for tx in (
        rc.params_ema(),
        rc.chain(rc.chain(rc.scale(-0.1)), rc.params_ema()),
        rc.masked(rc.params_ema(), {"a": True, "b": True}),
    ):
        _, state = tx.step(p, p, tx.init(p))
        assert len(torch.utils._pytree.tree_leaves(rc.averaged_params(state))) == 2
    tx = rc.scale(1.0)
    with pytest.raises(ValueError, match="`schedule_free`  Got: 0 of them"):
        rc.averaged_params(tx.init(p))
    tx = rc.chain(rc.params_ema(), rc.params_ema())
    with pytest.raises(ValueError, match="`schedule_free`  Got: 2 of them"):
        rc.averaged_params(tx.init(p))


def test_trees_move_towards_others() -> None:
    old = {"a": torch.zeros(2, dtype=torch.float16), "b": torch.zeros(2), "c": None}
    new = {"a": torch.full((2,), 3e4, dtype=torch.float16), "b": None, "c": None}
    moved = rc.incremental_update(new, old, 0.5)
    assert moved["a"].dtype == torch.float16 and moved["a"].tolist() == [1.5e4, 1.5e4]
    assert moved["b"] is old["b"] and moved["c"] is None
    for steps in (0, 1, 2, torch.tensor(3), torch.tensor(4)):
        kept = rc.periodic_update(new, old, steps, 2)["a"]
        assert torch.equal(kept, new["a"] if int(steps) % 2 == 0 else old["a"])
    with pytest.raises(ValueError, match="`new_tensors` must have the tree structure"):
        rc.incremental_update([torch.ones(1)], {"a": torch.ones(1)}, 0.5)


def test_what_an_optimizer_keeps_is_read_from_it_or_refused_by_name():
    p = torch.ones(3, requires_grad=True)
    tx = rc.chain(rc.record("norm", rc.global_norm), rc.adam(0.1), rc.params_ema())
    optimizer = tx.optimizer([p])
    p.grad = torch.ones(3)
    optimizer.step()
    assert rc.records(optimizer)["norm"].tolist() == [torch.ones(3).norm().item()]
    assert torch.equal(rc.averaged_params(optimizer.state[p]), p)
    with pytest.raises(TypeError, match=r"averaged_params\(optimizer.state\[p\]\)"):
        rc.averaged_params(optimizer)
