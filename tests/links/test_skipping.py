"""Calls that count for nothing, and momentum that is corrected for what was not sent."""

from functools import partial

import pytest
import torch
from torch.func import vmap
from torch.utils._pytree import tree_leaves

import rai_chain as rc


def told(values, tx, state):
    """What comes out for gradients of two equal elements."""
    seen = []
    for value in values:
        out, state = tx.update(torch.full((2,), value), state)
        seen.append(float(out[0]))
    return seen, state


def test_a_skipped_call_counts_for_nothing():
    tx = rc.accumulate(rc.trace(1.0), 2, skip=rc.skip_not_finite)
    seen, _ = told((1.0, torch.nan, 3.0, torch.inf, 5.0, 7.0), tx, tx.init(torch.zeros(2)))
    assert seen == [0.0, 0.0, 2.0, 0.0, 0.0, 8.0]


def test_large_and_nan_updates_are_skipped():
    for value, skipped in ((1.0, False), (2.0, True), (torch.nan, True), (torch.inf, True)):
        for big in (4.0, torch.tensor(4.0)):
            assert bool(rc.skip_large_updates([torch.tensor(value), None], big)) == skipped
    assert not rc.skip_not_finite({"none": None})
    assert not rc.skip_large_updates([torch.tensor(1e30)], 1e61)  # its square is not in float32


def test_a_schedule_counts_calls_or_the_steps_that_were_made():
    for counts, expected in (
        ("steps", [1, 0, 1, 0, 0, 1, 0, 0, 0, 1]),
        ("calls", [1, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ):
        tx = rc.accumulate(rc.identity(), lambda n: n + 1, schedule_counts=counts)
        assert told([1.0] * 10, tx, tx.init(torch.zeros(2)))[0] == expected


def test_the_group_shows_the_schedule_of_the_steps_made():
    x = torch.zeros(2, requires_grad=True)
    tx = rc.accumulate(rc.sgd(1.0), lambda n: n + 1, schedule_counts="steps")
    optimizer, shown = tx.optimizer([x]), []
    for _ in range(6):
        shown.append(int(optimizer.param_groups[0]["every_k"]))
        x.grad = torch.ones(2)
        optimizer.step()
    assert shown == [1, 2, 2, 3, 3, 3]


def test_vmap_skips_for_each():
    tx = rc.accumulate(rc.trace(1.0), 2, skip=rc.skip_not_finite)
    g = torch.tensor([[1.0, torch.nan, 3.0, 5.0], [2.0, 4.0, torch.inf, 6.0]])
    state = vmap(tx.init)(torch.zeros(2))
    looped = [tx.init(torch.zeros(())) for _ in range(2)]
    for column in g.T:
        out, state = vmap(tx.update)(column, state)
        for i in range(2):
            alone, looped[i] = tx.update(column[i], looped[i])
            assert torch.equal(alone, out[i])


def test_what_a_function_says_is_one_bool():
    for said, kind in ((1, TypeError), (torch.ones(2, dtype=torch.bool), ValueError)):
        tx = rc.accumulate(rc.identity(), 2, skip=lambda g, said=said: said)
        with pytest.raises(kind, match="`skip` must return one bool, a 0-dim tensor  Got: "):
            tx.update(torch.ones(2), tx.init(torch.ones(2)))


def test_conditionally_mask_moves_nothing_elsewhere():
    tx = rc.conditionally_mask(rc.sgd(1.0, momentum=1.0), lambda updates, step: step % 2 == 0)
    p, state, seen = torch.tensor(-0.0), tx.init(torch.tensor(-0.0)), []
    for _ in range(4):
        p, state = tx.step(p, torch.tensor(1.0), state)
        seen.append(float(p))
    assert seen == [-1.0, -1.0, -3.0, -3.0]


class TestMomentumCorrection:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_it_is_its_definition(self, dtype):
        """With momentum factor masking, in float64, over 100 steps."""
        tx, p = rc.momentum_correction(rc.top_k(2), 0.7), torch.zeros(3, 5, dtype=dtype)
        state = tx.init(p)
        u = v = torch.zeros(3, 5, dtype=torch.float64)
        bound = 1e-12 if dtype == torch.float64 else 1e-5
        for seed in range(100):
            g = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed))
            out, state = tx.update(g.to(dtype), state)
            u = 0.7 * u + g.double()
            v = v + u
            sent = torch.zeros(3, 5, dtype=torch.bool).scatter(1, v.abs().topk(2).indices, True)
            torch.testing.assert_close(out.double(), v * sent, rtol=bound, atol=bound)
            u, v = u * ~sent, v * ~sent

    def test_without_a_choice_it_is_momentum_that_forgets(self):
        tx = rc.momentum_correction(rc.identity(), 0.5)
        g = torch.tensor([1.0, -2.0])
        state = tx.init(g)
        for _ in range(3):
            out, state = tx.update(g, state)
            assert torch.equal(out, g)
        assert all((x == 0).all() for x in tree_leaves(state))

    def test_every_gradient_arrives_with_the_weight_of_its_momentum(self):
        """One gradient alone, sent after k steps: 1 + m + ... + m**k of it."""
        tx, state = rc.momentum_correction(rc.threshold(1.7), 0.5), {}
        state = tx.init(torch.zeros(()))
        out, state = tx.update(torch.tensor(1.0), state)
        seen = [float(out)]
        for _ in range(3):
            out, state = tx.update(torch.tensor(0.0), state)
            seen.append(float(out))
        assert seen == [0.0, 0.0, 1.75, 0.0]

    def test_what_is_no_compressor_is_warned_of(self):
        with pytest.warns(UserWarning, match="`scale_by_learning_rate` changes, `momentum_corr"):
            rc.momentum_correction(rc.chain(rc.top_q(0.5), rc.scale_by_learning_rate(0.1)))


def test_monitor_keeps_several_statistics():
    tx = rc.chain(rc.monitor({"norm": rc.global_norm, "zeros": rc.sparsity}, 3), rc.sgd(0.1))
    p = torch.ones(2)
    state = tx.init(p)
    for value in (1.0, 2.0, 3.0, 4.0):
        _, state = tx.update(torch.tensor([value, 0.0]), state)
    found = rc.records(state)
    assert found["norm"].tolist() == [2.0, 3.0, 4.0] and found["zeros"].tolist() == [0.5] * 3


class TestStates:
    TX = rc.chain(rc.ema(0.5), rc.accumulate(rc.adam(0.1), 2))
    P = {"w": torch.ones(2), "b": [torch.zeros(()), None]}  # noqa: RUF012

    def test_what_is_read_is_what_is_kept(self):
        state = self.TX.init(self.P)
        assert rc.tree_get(state, "ema") is state[0]["ema"]
        adam = state[1]["inner"][""]
        found = rc.tree_get(state, "exp_avg")
        assert found is adam[0]["exp_avg"]
        assert rc.tree_get(state, "ema.w") is state[0]["ema"]["w"]
        assert rc.tree_get(state, "ema.b.0") is state[0]["ema"]["b.0"]
        assert rc.tree_get(state, "0.count") is state[0]["count"]
        assert rc.tree_get(state, "1.inner..0.count") is adam[0]["count"]
        assert rc.tree_get({"a": ({"x": 1},)}, "x") == 1

    def test_what_is_set_is_another_state_of_the_same_kind(self):
        state = self.TX.init(self.P)
        old = rc.tree_get(state, "ema")  # a flat dict, where there is a None in the tree
        new = rc.tree_set(state, "ema", {"w": torch.ones(2).double(), "b.0": torch.tensor(2)})
        assert new[0]["ema"]["w"].dtype == torch.float32 and float(new[0]["ema"]["b.0"]) == 2.0
        assert old.keys() == new[0]["ema"].keys()
        assert float(state[0]["ema"]["w"].sum()) == 0.0 and new[1] is state[1]
        g = {"w": torch.ones(2), "b": [torch.zeros(()), None]}
        self.TX.update(g, rc.tree_set(new, "gathered", 1), params=self.P)
        assert int(rc.tree_get(rc.tree_set(state, "gathered", 1), "gathered")) == 1
        assert rc.tree_set(state, "gathered", 1)[1]["gathered"].dtype == torch.int64

    def test_under_vmap_and_in_a_graph(self):
        tx = rc.ema(0.5)
        f = lambda v: rc.tree_set(tx.init(torch.zeros(3)), "ema", v)["ema"]  # noqa: E731
        values = torch.arange(6.0).reshape(2, 3)
        assert torch.equal(vmap(f)(values), values)
        g = torch.compile(partial(f), fullgraph=True, backend="eager")
        assert torch.equal(g(values[0]), values[0])

    def test_an_optimizer_state_is_a_nest_as_well(self):
        x = torch.ones(2, requires_grad=True)
        optimizer = rc.adam(0.1).optimizer([x])
        x.grad = torch.ones(2)
        optimizer.step()
        assert torch.equal(rc.tree_get(optimizer.state[x], "exp_avg"), torch.full((2,), 0.1))
        optimizer.load_state_dict(rc.tree_set(optimizer.state_dict(), "exp_avg", 0.0))
        assert (rc.tree_get(optimizer.state[x], "exp_avg") == 0).all()
