"""The combinators: what each means, in every home where it has a meaning."""

import copy
import io
import pickle
import warnings
from functools import partial

import pytest
import torch
import torchopt
from helpers import given
from torch.func import vmap
from torch.utils._pytree import tree_leaves, tree_map

import rai_chain as rc
from rai_chain import chain
from rai_chain.optim import ChainedParamTransformingOptimizer


def step(tx, *args, **kwargs):
    """`tx.step`, with what it asks for."""
    p, g, *state = args
    return tx.step(p, twice(tx, g), *state, **given(tx), **kwargs)


def update(tx, g, *state, **kwargs):
    return tx.update(twice(tx, g), *state, **given(tx), **kwargs)


def twice(tx, g):
    """Gradients, of two examples that are one where the link takes such."""
    if not tx.links[0].reduces:
        return g
    dense = lambda x: isinstance(x, torch.Tensor) and x.layout is torch.strided  # noqa: E731
    return tree_map(lambda x: torch.stack([x, x]) if dense(x) else x, g)


def draw(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {
        "w": torch.randn(3, 4, generator=generator).to(dtype),
        "b": torch.randn(4, generator=generator).to(dtype),
    }


def only_matrices(tree):
    return tree_map(lambda leaf: leaf is not None and leaf.ndim > 1, tree)


def even_steps(updates, step):
    return step % 2 == 0


def slow_or_fast(path):
    return "slow" if "b" in path or "1" in path else "fast"  # ['b'] in a dict, [1] in a list


def total():
    """A link whose state shows how often it ran."""
    return _total()


@rc.elementwise(state=lambda leaf: {"sum": torch.zeros_like(leaf)})
def _total(grad, *, state):
    new = state["sum"] + grad
    return new, {"sum": new}


SAMPLES = {
    "masked": lambda: rc.masked(chain(rc.scale(2.0), total()), only_matrices),
    "freeze": lambda: rc.freeze(only_matrices),
    "selective_transform": lambda: rc.selective_transform(
        chain(rc.scale(2.0), total()), freeze_mask=only_matrices
    ),
    "multi_transform": lambda: rc.multi_transform(
        {"slow": rc.scale(0.1), "fast": total()}, slow_or_fast
    ),
    "partition": lambda: rc.partition({"slow": rc.scale(0.1), "fast": total()}, slow_or_fast),
    "apply_if_finite": lambda: rc.apply_if_finite(chain(rc.scale(2.0), total()), 2),
    "conditionally": lambda: rc.conditionally(chain(rc.scale(2.0), total()), even_steps),
    "conditionally_mask": lambda: rc.conditionally_mask(chain(rc.scale(2.0), total()), even_steps),
    "momentum_correction": lambda: rc.momentum_correction(rc.top_q(0.5, param_ndim=None), 0.5),
    "monitor": lambda: rc.monitor({"norm": rc.global_norm}).links[0],
    "accumulate, skip": lambda: rc.accumulate(
        total(), 2, skip=rc.skip_not_finite, schedule_counts="steps"
    ),
    "accumulate": lambda: rc.accumulate(total(), every_k=2),
    "error_feedback": lambda: rc.error_feedback(rc.top_q(0.5, param_ndim=None)),
    "schedule_free": lambda: rc.schedule_free(rc.adamw(0.1, betas=(0.0, 0.9))),
    "sam": lambda: rc.sam(chain(rc.scale(2.0), total()), 0.5),
    "prodigy": lambda: rc.prodigy(estim_lr0=0.01, weight_decay=0.1).links[0],
    "lookahead": lambda: rc.lookahead(rc.scale(-0.1), sync_period=2),
    "record": lambda: rc.record("norm", rc.global_norm, capacity=4),
}
every = pytest.mark.parametrize("name", sorted(SAMPLES))


def test_every_exported_combinator_is_under_the_laws():
    files = ("parts", "wrappers", "record", "feedback", "sharpness", "schedule_free")
    modules = [f"rai_chain.links.{name}" for name in files]
    exported = {n for n in rc.__all__ if getattr(vars(rc)[n], "__module__", "") in modules}
    exported -= {"records", "sparsity", "global_norm", "skip_not_finite", "skip_large_updates"}
    assert exported == {name.split(",")[0] for name in SAMPLES} - {"prodigy"}


def same(a, b):
    return all(
        x is y or torch.equal(torch.nan_to_num(x, 9e9), torch.nan_to_num(y, 9e9))
        for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True)
    )


def run(tx, seeds=range(1, 6), p=None, state=None):
    p = draw(0) if p is None else p
    state = tx.init(p) if state is None else state
    seen = []
    for seed in seeds:
        p, state = step(tx, p, draw(seed), state)
        seen.append(p)
    return p, state, seen


class TestLaws:
    @every
    def test_pure(self, name):
        tx = SAMPLES[name]()
        p, g = draw(0), draw(1)
        state = tx.init(p)
        before = copy.deepcopy((p, g, state))
        step(tx, p, g, state)
        update(tx, g, state, params=p)
        assert same((p, g, state), before)

    @every
    def test_inplace_equals_pure(self, name):
        tx, p, g = SAMPLES[name](), draw(0), draw(1)
        pure, _ = update(tx, g, tx.init(p), params=p)
        inplace, _ = update(tx, g, tx.init(p), params=p, inplace=True)
        assert same(pure, inplace) and all(inplace[k] is g[k] for k in g)

    @every
    def test_vmap_equals_loop_over_several_steps(self, name):
        tx = SAMPLES[name]()

        def stack(seed):
            return tree_map(lambda *x: torch.stack(x), *[draw(seed + 10 * i) for i in range(3)])

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            p = stack(0)
            state = vmap(tx.init)(p)
            for seed in range(1, 4):
                p, state = vmap(partial(step, tx))(p, stack(seed), state)
        for i in range(3):
            own = draw(10 * i)
            alone = tx.init(own)
            for seed in range(1, 4):
                own, alone = step(tx, own, draw(seed + 10 * i), alone)
            assert all(torch.allclose(p[k][i], own[k], rtol=1e-6, atol=1e-6) for k in own)

    @every
    def test_compiled_equals_eager(self, name):
        tx = SAMPLES[name]()
        torch.compiler.reset()
        compiled = torch.compile(partial(tx.step, **given(tx)), fullgraph=True, backend="eager")
        p, state = draw(0), tx.init(draw(0))
        for seed in range(1, 4):
            expected, expected_state = step(tx, p, draw(seed), state)
            p, state = compiled(p, draw(seed), state)
            assert same((p, state), (expected, expected_state))

    @every
    def test_state_is_plain_and_resumes(self, name):
        tx = SAMPLES[name]()
        p, state, _ = run(tx, range(1, 4))
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=True)
        twin = copy.deepcopy(pickle.loads(pickle.dumps(tx)))
        assert repr(twin) == repr(tx)
        assert same(run(twin, range(4, 7), p, loaded)[:2], run(tx, range(4, 7), p, state)[:2])

    @every
    def test_another_state_is_refused(self, name):
        tx = SAMPLES[name]()
        for state in ((), {}, {"inner": 3}, ((),)):
            with pytest.raises((ValueError, TypeError)):
                update(tx, draw(1), state, params=draw(0))

    @every
    def test_none_leaves_pass(self, name):
        tx = SAMPLES[name]()
        if name == "masked":
            tx = rc.masked(
                rc.scale(2.0), lambda tree: tree_map(lambda leaf: leaf is not None, tree)
            )
        p = {**draw(0), "none": None}
        new, _ = step(tx, p, {**draw(1), "none": None}, tx.init(p))
        assert new["none"] is None

    # The one needs a closure, the other is an optimizer: tests/optim/test_asked.py.
    @pytest.mark.parametrize("name", sorted(SAMPLES.keys() - {"sam", "prodigy"}))
    def test_the_same_bits_in_the_optimizer(self, name):
        tx = SAMPLES[name]()
        pure = draw(0)
        params = [v.clone().requires_grad_() for v in pure.values()]
        own = {} if tx.phase == "step" else {"lr": 0.1, "momentum": 0.9}
        whole = tx if tx.phase == "step" else chain(tx, rc.from_torch(torch.optim.SGD, **own))

        def home(params):
            return ChainedParamTransformingOptimizer(tx, params=params, **own)

        optimizer = home(params)
        state = whole.init(pure)
        for seed in range(1, 6):
            pure, state = whole.step(pure, draw(seed), state)
            for p, g in zip(params, draw(seed).values(), strict=True):
                p.grad = g
            optimizer.step()
            assert all(torch.equal(a, b) for a, b in zip(pure.values(), params, strict=True))
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            if seed == 3:  # a checkpoint in the middle
                optimizer = home(params)
                optimizer.load_state_dict(torch.load(file, weights_only=True))

    # These make the step, or ask for more than TorchOpt's optimizers give a link.
    @pytest.mark.parametrize("name", sorted(SAMPLES.keys() - {"lookahead", "schedule_free", "sam"}))
    def test_the_same_numbers_in_torchopt(self, name):
        tx, pure = SAMPLES[name](), draw(0)
        hosted = torchopt.FuncOptimizer(torchopt.chain(tx, rc.scale(-0.1)))
        params = {k: v.clone().requires_grad_() for k, v in pure.items()}
        whole = chain(tx, rc.scale(-0.1))
        state = whole.init(pure)
        for seed in range(1, 5):
            grads = draw(seed)
            pure, state = whole.step(pure, grads, state)
            loss = sum((params[k] * grads[k]).sum() for k in params)
            stepped = hosted.step(loss, tuple(params.values()))
            params = dict(zip(params, (p.detach().requires_grad_() for p in stepped), strict=True))
            assert all(torch.equal(pure[k], params[k]) for k in pure)


class TestMeanings:
    def test_masked_out_leaves_get_no_state(self):
        tx = SAMPLES["masked"]()
        state = tx.init(draw(0))
        assert list(state["inner"][""][1]["sum"]) == ["w"]
        out, _ = tx.update(draw(1), state)
        assert torch.equal(out["w"], 2 * draw(1)["w"]) and torch.equal(out["b"], draw(1)["b"])
        tree = rc.masked(rc.scale(2.0), {"w": False, "b": True})
        assert torch.equal(tree.update(draw(1), tree.init(draw(0)))[0]["w"], draw(1)["w"])
        with pytest.raises(ValueError, match="`mask` must have the tree structure"):
            rc.masked(rc.scale(2.0), {"w": False}).init(draw(0))

    def test_partition_with_optimizers_inside(self):
        kinds = {"slow": (torch.optim.SGD, {"lr": 0.1}), "fast": (torch.optim.AdamW, {"lr": 0.01})}
        tx = rc.partition({k: rc.from_torch(c, **o) for k, (c, o) in kinds.items()}, slow_or_fast)
        p, _, _ = run(tx)
        for key, label in (("b", "slow"), ("w", "fast")):
            kind, options = kinds[label]
            alone = draw(0)[key].requires_grad_()
            optimizer = kind([alone], **options)
            for seed in range(1, 6):
                alone.grad = draw(seed)[key]
                optimizer.step()
            assert torch.equal(p[key], alone)

    def test_partition_hyperparameters_and_labels(self):
        tx = SAMPLES["partition"]()
        assert tx.hyperparams == {"slow.grad_scale": 0.1}
        own = {"slow.grad_scale": 3.0}
        out, _ = tx.update(draw(1), tx.init(draw(0)), hyperparams=own)
        assert torch.equal(out["b"], 3.0 * draw(1)["b"])
        with pytest.raises(ValueError, match="`labels` must be among fast, slow  Got: 'x'"):
            rc.partition(
                tx.inners and {"slow": rc.sign(), "fast": rc.sign()}, lambda path: "x"
            ).init(draw(0))

    def test_apply_if_finite_counts_and_gives_in(self):
        tx = rc.apply_if_finite(total(), max_consecutive_errors=2)
        state = tx.init(torch.zeros(2))
        good, bad = torch.ones(2), torch.tensor([1.0, torch.inf])
        _, state = tx.update(good, state)
        for n in (1, 2):
            out, state = tx.update(bad, state)
            assert torch.equal(out, torch.zeros(2)) and int(state["notfinite_count"]) == n
        out, after = tx.update(good, state)
        assert torch.equal(out, 2 * good) and int(after["notfinite_count"]) == 0
        out, state = tx.update(bad, state)
        assert out[1] == torch.inf and int(state["total_notfinite"]) == 3

    def test_apply_if_finite_around_an_optimizer_leaves_its_state(self):
        tx = rc.apply_if_finite(
            chain(rc.clamp(-1.0, 1.0), rc.from_torch(torch.optim.SGD, lr=0.1)), 9
        )
        p = torch.ones(2)
        state = tx.init(p)
        new, _ = tx.step(p, torch.tensor([torch.nan, 1.0]), state)
        assert torch.equal(new, p)

    @pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
    def test_wrapped_torch_optimizers_take_the_steps_that_they_are_given(self, kind):
        options = {"lr": 0.1, **({"momentum": 0.9} if kind is torch.optim.SGD else {})}
        inner = chain(rc.clamp(-1.0, 1.0), rc.from_torch(kind, **options))
        nan = tree_map(lambda leaf: torch.full_like(leaf, torch.nan), draw(0))
        tx, p = rc.apply_if_finite(inner, 9), draw(0)
        state, alone, own = tx.init(p), p, inner.init(p)
        for grads in (nan, draw(1), nan, draw(2)):
            p, state = tx.step(p, grads, state)
            if grads is not nan:
                alone, own = inner.step(alone, grads, own)
            assert same(p, alone)
        tx, p = rc.accumulate(inner, 2), draw(0)
        state, alone, own = tx.init(p), p, inner.init(p)
        for step in range(4):
            p, state = tx.step(p, draw(1), state)
            if step % 2:
                alone, own = inner.step(alone, draw(1), own)
            assert same(p, alone)

    def test_conditionally_keeps_the_state_elsewhere(self):
        tx = rc.conditionally(total(), even_steps)
        state, g = tx.init(torch.zeros(1)), torch.ones(1)
        seen = []
        for _ in range(5):
            out, state = tx.update(g, state)
            seen.append(float(out))
        assert seen == [1.0, 1.0, 2.0, 1.0, 3.0]

    @pytest.mark.parametrize(("reduce", "factor"), [("mean", 1.0), ("sum", 3.0)])
    def test_accumulated_steps_equal_one_step_on_the_mean(self, reduce, factor):
        tx = rc.accumulate(chain(total(), rc.scale(-0.1)), every_k=3, reduce=reduce)
        p, _, seen = run(tx, range(1, 7))
        assert same(seen[0], draw(0)) and same(seen[1], draw(0)) and same(seen[3], seen[2])
        plain = chain(total(), rc.scale(-0.1))
        expected, state = draw(0), plain.init(draw(0))
        for first in (1, 4):
            mean = tree_map(lambda *x: sum(x) / 3 * factor, *[draw(first + i) for i in range(3)])
            expected, state = plain.step(expected, mean, state)
        assert all(torch.allclose(p[k], expected[k], rtol=1e-6, atol=1e-6) for k in p)
        with pytest.raises(ValueError, match="`reduce` must be one of 'mean', 'sum'"):
            rc.accumulate(total(), 2, "max")
        with pytest.raises(ValueError, match=r"`every_k` must satisfy 1\.0 <= every_k"):
            rc.accumulate(total(), 0)
        with pytest.raises(ValueError, match=r"`every_k` must be a whole number  Got: 1.5"):
            rc.accumulate(total(), 1.5)

    def test_error_feedback_loses_nothing(self):
        tx = rc.error_feedback(rc.top_q(0.75, param_ndim=None))
        state, sent = tx.init(draw(0)), tree_map(torch.zeros_like, draw(0))
        given = tree_map(torch.zeros_like, draw(0))
        for seed in range(1, 9):
            out, state = tx.update(draw(seed), state)
            assert int((out["w"] != 0).sum()) == 3
            sent = tree_map(torch.add, sent, out)
            given = tree_map(torch.add, given, draw(seed))
        for k in sent:
            torch.testing.assert_close(sent[k] + state["error"][k], given[k], rtol=1e-5, atol=1e-5)
        with pytest.raises(ValueError, match="gradient links only"):
            rc.error_feedback(rc.l2_ball(1.0))

    def test_lookahead_is_its_definition(self):
        tx = rc.lookahead(rc.scale(-0.5), sync_period=3, slow_step_size=0.25)
        p, _, _ = run(tx, range(1, 8))
        fast = slow = draw(0)["w"]
        for step, seed in enumerate(range(1, 8)):
            fast = fast - 0.5 * draw(seed)["w"]
            if (step + 1) % 3 == 0:
                slow = slow + 0.25 * (fast - slow)
                fast = slow
        torch.testing.assert_close(p["w"], fast, rtol=1e-6, atol=1e-6)

    def test_record_keeps_the_last_steps_in_order(self):
        tx = chain(
            rc.record("before", rc.global_norm, capacity=4),
            rc.top_q(0.5),
            rc.record("after", rc.sparsity, capacity=4),
        )
        state = tx.init(draw(0))
        for seed in range(1, 7):
            _, state = tx.update(draw(seed), state)
        found = rc.records(state)
        norms = [
            float(torch.cat([v.flatten() for v in draw(s).values()]).norm()) for s in range(3, 7)
        ]
        torch.testing.assert_close(found["before"], torch.tensor(norms))
        assert found["after"].shape == (4,) and list(found) == ["before", "after"]
        early = tx.update(draw(1), tx.init(draw(0)))[1]
        assert rc.records(early)["before"].shape == (1,)
        with pytest.raises(ValueError, match="`capacity`"):
            rc.record("x", rc.sparsity, capacity=0)
        twice = chain(rc.record("x", rc.sparsity), rc.record("x", rc.global_norm))
        with pytest.raises(ValueError, match="must be one record's only  Got: 'x' twice"):
            rc.records(twice.init(draw(0)))

    def test_schedules_and_overrides_reach_inside(self):
        tx = chain(rc.masked(rc.scale(lambda step: 1.0 + step), only_matrices), rc.bias(0.0))
        state = tx.init(draw(0))
        for factor in (1.0, 2.0, 3.0):
            out, state = tx.update(draw(1), state)
            torch.testing.assert_close(out["w"], factor * draw(1)["w"])
        assert "grad_scale" in tx.hyperparams
        fixed = rc.masked(rc.scale(2.0), only_matrices)
        own = {"grad_scale": torch.tensor(5.0)}
        assert torch.equal(
            fixed.update(draw(1), fixed.init(draw(0)), hyperparams=own)[0]["w"], 5 * draw(1)["w"]
        )
        with pytest.raises(ValueError, match="`q` must satisfy"):
            rc.masked(rc.top_q(0.5), only_matrices).update(
                draw(1),
                rc.masked(rc.top_q(0.5), only_matrices).init(draw(0)),
                hyperparams={"q": 2.0},
            )

    def test_wrapped_projections_and_mixtures(self):
        tx = chain(rc.scale(-1.0), rc.masked(rc.box(0.0, 1.0), only_matrices))
        p, _, _ = run(tx, [1])
        assert p["w"].min() >= 0 and p["w"].max() <= 1 and p["b"].min() < 0
        both = rc.masked(chain(rc.scale(-1.0), rc.box(0.0, 1.0)), only_matrices)
        expected = chain(rc.masked(rc.scale(-1.0), only_matrices), tx.links[1])
        assert same(run(both, [1])[0], run(expected, [1])[0])

    def test_nested(self):
        tx = rc.accumulate(rc.error_feedback(rc.masked(rc.top_q(0.5), only_matrices)), every_k=2)
        p, _, _ = run(tx)
        assert not same(p, draw(0))
