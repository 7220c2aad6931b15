"""Pipelines: composition, names, hyperparameters, state, and what is refused."""

import pickle
import subprocess
import sys

import pytest
import torch
import torchopt
from torch.func import grad, vmap

import rai_chain as rc
from rai_chain import chain, named_chain


def test_import_brings_only_the_three_dependencies():
    code = (
        "import sys, torch, torchopt, numpy; before = set(sys.modules); import rai_chain;"
        "print({m.split('.')[0] for m in set(sys.modules) - before})"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    new = eval(out.stdout)
    assert new <= {"rai_chain", "torch", "numpy"} | set(sys.stdlib_module_names)


def test_chain_applies_from_left_to_right():
    g = torch.tensor([1.0, 2.0, 3.0])
    tx = chain(rc.scale(2.0), rc.clamp(clamp_max=5.0), rc.bias(1.0))
    assert torch.equal(tx.update(g, tx.init(g))[0], torch.tensor([3.0, 5.0, 6.0]))


def test_chain_flattens_and_prints_itself():
    inner = chain(rc.clamp(clamp_max=1.0), rc.sign())
    tx = chain(rc.scale(2.0), inner, chain())
    assert [link.name for link in tx.links] == ["scale", "clamp", "sign"]
    assert repr(tx) == "chain(scale(grad_scale=2.0), clamp(clamp_min=None, clamp_max=1.0), sign())"


def test_an_empty_chain_is_the_identity():
    g = {"a": torch.ones(2)}
    assert chain().update(g, chain().init(g))[0]["a"] is g["a"]


def test_pair_protocol():
    tx = rc.clamp(clamp_max=1.0)
    init, update = tx
    assert isinstance(tx, torchopt.base.GradientTransformation) and len(tx) == 2
    assert torch.equal(update(torch.tensor(3.0), init(torch.tensor(3.0)))[0], torch.tensor(1.0))
    assert torch.equal(tx[1](torch.tensor(3.0), tx[0](torch.tensor(3.0)))[0], torch.tensor(1.0))


class TestNames:
    def test_shared_names_are_qualified_by_factory_and_count(self):
        tx = chain(rc.clamp(clamp_max=1.0), rc.top_q(0.5), rc.clamp(clamp_min=-1.0))
        assert tx.hyperparams == {
            "clamp_0.clamp_min": None,
            "clamp_0.clamp_max": 1.0,
            "q": 0.5,
            "dq": 0.0,
            "at_least": 0,
            "clamp_1.clamp_min": -1.0,
            "clamp_1.clamp_max": None,
        }

    def test_given_names_qualify(self):
        tx = named_chain(("low", rc.clamp(clamp_min=0.0)), ("high", rc.clamp(clamp_max=1.0)))
        assert tx.hyperparams["high.clamp_max"] == 1.0
        nested = chain(rc.clamp(clamp_max=9.0), tx)
        assert nested.hyperparams["low.clamp_min"] == 0.0
        assert nested.hyperparams["clamp_0.clamp_max"] == 9.0
        assert repr(tx).startswith("named_chain(")

    def test_override_by_qualified_key(self):
        tx = chain(rc.clamp(clamp_max=1.0), rc.clamp(clamp_min=-1.0))
        g = torch.tensor([-5.0, 5.0])
        out, _ = tx.update(g, tx.init(g), hyperparams={"clamp_0.clamp_max": 2.0})
        assert torch.equal(out, torch.tensor([-1.0, 2.0]))

    def test_ambiguous_and_unknown_keys_are_refused(self):
        tx = chain(rc.clamp(clamp_max=1.0), rc.clamp(clamp_min=-1.0))
        g = torch.ones(2)
        with pytest.raises(ValueError, match=r"clamp_0\.clamp_max, clamp_1\.clamp_max"):
            tx.update(g, tx.init(g), hyperparams={"clamp_max": 2.0})
        with pytest.raises(ValueError, match="`r` must name"):
            tx.update(g, tx.init(g), hyperparams={"r": 2.0})

    def test_a_name_is_used_once(self):
        with pytest.raises(ValueError, match="'a' twice"):
            named_chain(("a", rc.sign()), ("a", rc.sign()))


class TestRefusals:
    def test_values_outside_their_interval(self):
        with pytest.raises(ValueError, match=r"^`q` must satisfy 0.0 <= q <= 1.0  Got: 1.5$"):
            rc.top_q(1.5)
        with pytest.raises(ValueError, match=r"`epsilon` must satisfy 0.0 <= epsilon  Got: -1"):
            rc.l2_ball(-1)
        with pytest.raises(ValueError, match=r"`p` must satisfy 1.0 <= p  Got: 0.5"):
            rc.normalize(p=0.5)
        with pytest.raises(ValueError, match=r"clamp_min <= clamp_max\(= 0\)  Got: 1"):
            rc.clamp(1, 0)
        with pytest.raises(ValueError, match="`clamp_min` or `clamp_max` must be given"):
            rc.clamp()
        with pytest.raises(ValueError, match=r"`low` must satisfy low <= high"):
            rc.box(1.0, 0.0)
        with pytest.raises(ValueError, match="`low` or `high`"):
            rc.box()
        with pytest.raises(ValueError, match=r"`lr` must satisfy"):
            rc.frank_wolfe_step(2.0, use_default_lr_schedule=False)

    def test_missing_and_unknown_arguments(self):
        with pytest.raises(TypeError, match=r"`q` must be given to top_q\(q, dq=0.0"):
            rc.top_q()
        with pytest.raises(
            TypeError, match=r"`param_ndim` must be an argument of sign\(\)  Got: 1"
        ):
            rc.sign(param_ndim=1)
        with pytest.raises(TypeError, match='`param_ndim` must be an int, None or "tree"'):
            rc.top_q(0.5, param_ndim=1.0)
        with pytest.raises(TypeError, match="`p` must be a Python number"):
            rc.normalize(p=torch.tensor(2.0))
        with pytest.raises(TypeError, match="must be real"):
            rc.scale(torch.tensor(1j))

    def test_a_link_behind_a_later_phase(self):
        with pytest.raises(
            ValueError, match=r"`clamp_0` must come before .*place 1, behind `box_0`"
        ):
            chain(rc.box(0.0, 1.0), rc.clamp(clamp_max=1.0))
        with pytest.raises(ValueError, match="only link that steps"):
            chain(rc.frank_wolfe_step(), rc.frank_wolfe_step())

    def test_what_is_no_transformation(self):
        with pytest.raises(TypeError, match="at place 1"):
            chain(rc.sign(), torch.sign)
        with pytest.raises(TypeError, match="pairs"):
            named_chain(rc.sign())

    def test_another_tree(self):
        tx = rc.clip_by_norm(lambda step: 1.0 + step)
        with pytest.raises(ValueError, match="`params` must have the tree structure of `updates`"):
            tx.update({"a": torch.ones(2)}, tx.init({"a": torch.ones(2)}), params=[torch.ones(2)])
        with pytest.raises(ValueError, match="must have the shape of its parameter"):
            rc.sign().step({"a": torch.ones(2)}, {"a": torch.ones(3)}, ())
        with pytest.raises(ValueError, match="`updates` must have the tree structure"):
            rc.apply_updates([torch.ones(2)], {"a": torch.ones(2)})

    def test_another_chains_state(self):
        tx = chain(rc.sign(), rc.clamp(clamp_max=1.0))
        for state in ((), ((),), None, ((), (), ()), ({"step": torch.tensor(0)}, 3)):
            with pytest.raises(ValueError, match="`state` must be the state of"):
                tx.update(torch.ones(2), state)

    def test_params_where_a_link_needs_them(self):
        tx = chain(rc.sign(), rc.l2_ball(1.0))
        with pytest.raises(ValueError, match=r"`params` is needed by l2_ball"):
            tx.update(torch.ones(2), tx.init(torch.ones(2)))
        with pytest.raises(ValueError, match="`params` must be a tree"):
            rc.sign().step(None, torch.ones(2), ())

    def test_a_schedule_or_a_draw_that_the_state_has_no_step_for(self):
        g = torch.ones(2, 2)
        with pytest.raises(ValueError, match="as a schedule before `init`"):
            rc.scale(1.0).update(g, (), hyperparams={"grad_scale": lambda step: step})
        with pytest.raises(ValueError, match="to keep a seed"):
            rc.top_q(0.5).update(g, (), hyperparams={"dq": 0.1})

    def test_param_ndim_beyond_a_tensor(self):
        with pytest.raises(ValueError, match="`param_ndim` must satisfy"):
            rc.top_q(0.5, param_ndim=3).init(torch.ones(2, 2))

    def test_a_link_that_raises_writes_nothing(self):
        @rc.elementwise
        def fail(grad):
            raise RuntimeError("boom")

        p, g = torch.ones(2), torch.full((2,), 3.0)
        with pytest.raises(RuntimeError, match="boom"):
            chain(rc.clamp(clamp_max=1.0), fail()).step(p, g, ((), ()))
        assert torch.equal(p, torch.ones(2)) and torch.equal(g, torch.full((2,), 3.0))


class TestRows:
    @pytest.mark.parametrize(
        ("param_ndim", "rows"),
        [(None, 1), (3, 1), (-1, 2), (2, 2), (-2, 6), (1, 6), (-3, 24), (0, 24)],
    )
    def test_what_a_row_is(self, param_ndim, rows):
        g = torch.randn(2, 3, 4)
        expected = rc.normalize.function(g.reshape(rows, -1)).reshape(2, 3, 4)
        assert torch.equal(rc.normalize(param_ndim=param_ndim).map(g), expected)

    def test_to_batch_views_the_gradient_too(self):
        x = torch.zeros(2, 3, requires_grad=True)
        x.grad = torch.ones(2, 3)
        with torch.no_grad():
            rc.to_batch(x, 1).grad.mul_(2)
        assert torch.equal(x.grad, torch.full((2, 3), 2.0))
        with pytest.raises(ValueError, match="param_ndim"):
            rc.to_batch(x, 3)

    def test_a_center_shaped_like_the_parameter_becomes_rows_too(self):
        p, c = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
        moved, _ = rc.l2_ball(0.5, center=c).step(p, torch.zeros_like(p), ())
        assert ((moved - c).flatten(1).norm(dim=1) <= 0.5 + 1e-6).all()

    def test_one_value_for_each_row(self):
        g = torch.rand(3, 3) + 0.5
        radii = torch.tensor([0.1, 1.0, 2.0])
        for given in (radii, radii[:, None]):
            moved = rc.project_l1_ball(g, given)
            alone = [rc.project_l1_ball(g[i : i + 1], float(radii[i])) for i in range(3)]
            torch.testing.assert_close(moved, torch.cat(alone))
            clipped = rc.clip_by_norm(given).map(g)
            torch.testing.assert_close(clipped.norm(dim=1), torch.minimum(g.norm(dim=1), radii))

    @pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 1, 1)])
    def test_one_value_for_each_row_of_a_stack(self, shape):
        g = torch.randn(3, 4, 5)
        for factory, values in ((rc.top_q, (0.1, 0.5, 0.9)), (rc.l1_ball, (0.5, 1.0, 2.0))):
            given = torch.tensor(values, dtype=torch.float64).reshape(shape)
            alone = [factory(v).map(g[i : i + 1]) for i, v in enumerate(values)]
            torch.testing.assert_close(factory(given).map(g), torch.cat(alone))

    def test_a_center_that_broadcasts(self):
        p, c = torch.randn(3, 4, 4), torch.randn(4)
        expected = rc.project_l2_ball(p, 0.5, c.expand(3, 4, 4))
        assert torch.equal(rc.project_l2_ball(p, 0.5, c), expected)
        with pytest.raises(ValueError, match=r"`center` must have one value.*shape \(5,\)"):
            rc.project_l2_ball(p, 0.5, torch.randn(5))

    def test_a_tree_of_centers(self):
        p = {"a": torch.randn(2, 3), "b": torch.randn(4, 5)}
        tx = rc.linf_ball(0.1, center={"a": p["a"] + 1, "b": p["b"]})
        moved, _ = tx.step(p, {"a": torch.zeros(2, 3), "b": torch.zeros(4, 5)}, ())
        torch.testing.assert_close(moved["a"], p["a"] + 0.9)
        assert torch.equal(moved["b"], p["b"])


class TestDraws:
    def test_the_draw_is_a_function_of_seed_step_and_leaf(self):
        g = [torch.rand(1, 1000) + 0.1, torch.rand(1, 1000) + 0.1]
        tx = rc.top_q(0.5, dq=0.4, seed=3)
        state, counts = tx.init(g), []
        for _ in range(50):
            out, new = tx.update(g, state)
            again, _ = tx.update(g, state)
            assert all(torch.equal(a, b) for a, b in zip(out, again, strict=True))
            counts += [int((leaf != 0).sum()) for leaf in out]
            state = new
        assert min(counts) >= 100 and max(counts) <= 900
        assert len(set(counts)) > 80  # steps and leaves differ
        other, _ = rc.top_q(0.5, dq=0.4, seed=4).update(g, rc.top_q(0.5, dq=0.4, seed=4).init(g))
        assert not torch.equal(other[0], tx.update(g, tx.init(g))[0][0])

    def test_uniform(self):
        from rai_chain.data.random import normal, uniform

        u = uniform(torch.tensor(7), (100_000,))
        assert u.min() >= 0 and u.max() < 1
        assert abs(u.mean() - 0.5) < 0.005 and abs(u.var() - 1 / 12) < 0.002
        assert abs(torch.corrcoef(torch.stack([u[1:], u[:-1]]))[0, 1]) < 0.02
        n = normal(torch.tensor(7), (100_000,))
        assert abs(n.mean()) < 0.02 and abs(n.var() - 1) < 0.02 and abs((n**4).mean() - 3) < 0.15

    def test_drawn_seeds_under_vmap(self):
        g = torch.rand(1, 100) + 0.1
        f = lambda seed: rc.top_q(0.5, dq=0.5, seed=seed).update(  # noqa: E731
            g, rc.top_q(0.5, dq=0.5, seed=seed).init(g)
        )[0]
        seeds = torch.arange(8)
        assert torch.equal(vmap(f)(seeds), torch.stack([f(int(s)) for s in seeds]))


class TestHyperparametersInCallers:
    def test_other_values_of_a_link_that_was_used(self):
        g, tx = torch.ones(2), rc.scale(0.5)
        tx.update(g, tx.init(g))
        factor = torch.tensor(3.0, requires_grad=True)
        tx.replace(grad_scale=factor).update(g, {})[0].sum().backward()
        assert factor.grad.item() == 2.0
        with pytest.raises(ValueError, match="`state` must be the state of"):
            tx.replace(grad_scale=lambda step: 1.0 + step).update(g, tx.init(g))

    def test_values_for_each_leaf(self):
        g = {"a": torch.ones(2), "b": torch.ones(2)}
        out, _ = rc.scale({"a": 2.0, "b": 3.0}).update(g, ())
        assert torch.equal(out["a"], 2 * g["a"]) and torch.equal(out["b"], 3 * g["b"])

    def test_hypergradient_through_several_steps(self):
        def loss(clamp_max, lr):
            p = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
            tx = chain(rc.clamp(clamp_min=-5.0), rc.clip_by_norm(1.0, param_ndim=None), rc.scale())
            state = tx.init(p)
            for _ in range(4):
                g = torch.stack([p[0] ** 3, p[1], p[0] * p[2]])
                own = {"clamp_max": clamp_max, "grad_scale": -lr}
                p, state = tx.step(p, g, state, hyperparams=own)
            return (p**2).sum()

        x = (torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64))
        assert torch.autograd.gradcheck(loss, [v.clone().requires_grad_() for v in x])
        assert all(g != 0 for g in grad(loss, argnums=(0, 1))(*x))

    def test_global_norm_clip_has_the_derivative_that_torchopt_has_not(self):
        def loss(scale, tx):
            leaves = (scale * torch.tensor([3.0, 4.0], dtype=torch.float64),)
            out, _ = tx.update(leaves, tx.init(leaves), params=leaves, inplace=False)
            return out[0][0] * scale**2

        x = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
        ours, theirs = rc.clip_by_global_norm(1.0), torchopt.clip.clip_grad_norm(1.0)
        assert torch.autograd.gradcheck(lambda x: loss(x, ours), x)
        right = grad(lambda x: loss(x, ours))(x.detach())
        wrong = grad(lambda x: loss(x, theirs))(x.detach())
        assert abs(right - 2 * 1.5 * 0.6) < 1e-9 and abs(wrong - right) > 0.1

    def test_a_link_of_ones_own(self):
        @rc.rowwise
        def max_norm(rows, floor=1e-20):
            return rows / rows.abs().amax(1, keepdim=True).clamp(min=floor)

        assert repr(max_norm(param_ndim=1)) == "max_norm(floor=1e-20, param_ndim=1)"
        g = torch.randn(4, 3)
        assert torch.equal(vmap(lambda g: max_norm(param_ndim=None).map(g))(g), max_norm().map(g))

    def test_a_stateful_link_of_ones_own(self):
        @rc.elementwise(state=lambda leaf: {"sum": torch.zeros_like(leaf)})
        def total(grad, decay=1.0, *, state, step):
            new = decay * state["sum"] + grad * (step + 1)
            return new, {"sum": new}

        g = {"a": torch.ones(2), "none": None}
        tx = chain(total(), rc.scale(2.0))
        state = tx.init(g)
        for expected in (2.0, 6.0, 12.0):
            out, state = tx.update(g, state)
            assert torch.equal(out["a"], torch.full((2,), expected)) and out["none"] is None
        assert torch.equal(state[0]["sum"]["a"], torch.full((2,), 6.0))
        inplace = {"a": torch.ones(2), "none": None}
        out, state = tx.update(inplace, tx.init(g), inplace=True)
        assert out["a"] is inplace["a"] and torch.equal(state[0]["sum"]["a"], torch.ones(2))
        with pytest.raises(ValueError, match="`state` must be the state of"):
            tx.update(g, (rc.ema().init(g), ()))
        with pytest.raises(ValueError, match="must have the shape that `init` saw"):
            tx.update({"a": torch.ones(3), "none": None}, state)
        with pytest.raises(ValueError, match="the tree that `init` saw"):
            tx.update({"b": torch.ones(2), "none": None}, state)


def test_updates_are_never_the_state():
    g = torch.ones(3)
    for tx in (rc.trace(), rc.ema(decay=0.5, debias=False), rc.scale_by_adam()):
        out, state = tx.update(g, tx.init(g))
        before = {k: v.clone() for k, v in state.items()}
        out.add_(1)
        assert all(torch.equal(state[k], before[k]) for k in state)


class TestTorchOpt:
    def test_ours_in_theirs_and_theirs_in_ours(self):
        p = {"w": torch.randn(3, 4)}
        outer = torchopt.chain(rc.clamp(clamp_max=0.5), torchopt.adam(0.1))
        inner = chain(rc.clamp(clamp_max=0.5), torchopt.adam(0.1))
        a_state, b_state = outer.init(p), inner.init(p)
        for i in range(3):
            g = {"w": torch.randn(3, 4, generator=torch.Generator().manual_seed(i))}
            a, a_state = outer.update(g, a_state, params=p, inplace=False)
            b, b_state = inner.update(g, b_state, params=p)
            assert torch.equal(a["w"], b["w"])

    def test_their_state_is_plain_and_their_inplace_works(self):
        p = {"w": torch.randn(3, 4)}
        tx = chain(torchopt.adam(0.1), rc.scale(2.0))
        state = tx.init(p)
        plain, _ = tx.update(p, state)
        assert all(isinstance(leaf, (torch.Tensor, int, float, bool)) for leaf in state[0])
        g = {"w": p["w"].clone()}
        out, _ = tx.update(g, state, inplace=True)
        assert out["w"] is g["w"] and torch.equal(out["w"], plain["w"])
        assert "chain" in repr(tx)

    def test_apply_updates(self):
        p, g = {"w": torch.ones(2), "n": None}, {"w": torch.ones(2), "n": None}
        assert torch.equal(rc.apply_updates(p, g)["w"], torch.full((2,), 2.0))
        half = rc.apply_updates(torch.ones(2, dtype=torch.float16), torch.ones(2))
        assert half.dtype == torch.float16


def test_named_chain_pickles():
    tx = named_chain(("a", rc.sign()), ("b", chain(rc.scale(2.0), rc.l1_ball(1.0))))
    assert repr(pickle.loads(pickle.dumps(tx))) == repr(tx)


@pytest.mark.parametrize("backend", ["inductor"])
def test_a_whole_pipeline_compiles(backend):
    tx = chain(rc.top_q(0.5), rc.clamp(clamp_max=1.0), rc.scale(-0.1), rc.l1_ball(1.0))
    p, g = {"w": torch.randn(4, 8)}, {"w": torch.randn(4, 8)}
    torch.compiler.reset()
    compiled, _ = torch.compile(tx.step, fullgraph=True, backend=backend)(p, g, tx.init(p))
    torch.testing.assert_close(compiled, tx.step(p, g, tx.init(p))[0], rtol=1e-6, atol=1e-7)


class TestMistakesInALinkOfOnesOwn:
    def test_a_result_of_another_shape_or_type(self):
        g = torch.ones(3, 4)
        for decorate, function in (
            (rc.elementwise, lambda grad: grad[:1]),
            (rc.rowwise, lambda rows: rows.T),
            (rc.treewise, lambda leaves: [leaves[0][:1]]),
            (rc.treewise, lambda leaves: leaves[:0]),
        ):
            with pytest.raises(ValueError, match="`<lambda>` must return"):
                decorate(function)().update(g, ())
            with pytest.raises(ValueError, match="`<lambda>` must return"):
                decorate(function)().update(g.clone().requires_grad_(), ())
        with pytest.raises(TypeError, match="must return a tensor  Got: NoneType"):
            rc.elementwise(lambda grad: None)().update(g, ())

    def test_a_state_that_is_not_returned_or_has_other_keys(self):
        start = lambda leaf: {"m": torch.zeros_like(leaf)}  # noqa: E731
        g = torch.ones(3, 4)

        @rc.elementwise(state=start)
        def forgets(grad, *, state):
            return grad

        @rc.rowwise(state=start)
        def renames(rows, *, state):
            return rows, {"n": rows}

        with pytest.raises(TypeError, match=r"`forgets` must return \(result, new state\)"):
            forgets().update(g, forgets().init(g))
        with pytest.raises(
            ValueError, match=r"`renames` must return a state with the keys \['m'\]"
        ):
            renames().update(g, renames().init(g))

    def test_names_that_are_given_stand_behind_a_star(self):
        with pytest.raises(TypeError, match="`state` must be a keyword-only parameter of `f`"):

            @rc.rowwise
            def f(rows, state, decay=0.9):
                return rows

        with pytest.raises(TypeError, match="`state` must be both"):

            @rc.rowwise(state=lambda rows: {})
            def h(rows):
                return rows
