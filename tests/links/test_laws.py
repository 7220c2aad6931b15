"""The laws of every public link: exporting a link puts it under all of them."""

import copy
import io
import pickle
import warnings
from functools import partial

import pytest
import torch
from test_wrappers import SAMPLES as COMBINATORS
from test_wrappers import step, update
from torch.func import grad, vmap

import rai_chain
from rai_chain import chain

# A value for every hyperparameter that has none by default, and for some that would do nothing.
SAMPLES = {
    "q": 0.6,
    "clamp_max": 0.5,
    "grad_scale": -0.5,
    "grad_bias": 0.25,
    "low": -0.4,
    "high": 0.3,
    "epsilon": 0.8,
    "max_norm": 0.7,
    "eta": 0.1,
    "max_delta": 0.5,
    "threshold": 0.3,
    "clipping": 0.1,
    "k": 2,
    "levels": 4,
    "l2_norm_clip": 0.7,
    "noise_multiplier": 0.1,
    "eta_plus": 3.0,
    "normal": 0.7,
    "offset": 0.2,
}
FACTORIES = {
    name: factory
    for name, factory in vars(rai_chain).items()
    if name in rai_chain.__all__ and hasattr(factory, "definition")
}
VARIANTS = {
    "top_q, drawn": {"dq": 0.3},
    "top_q, at least": {"q": 0.9, "at_least": 2},
    "add_noise, std": {"eta": None, "std": 0.1},
    "clamp, both": {"clamp_min": -0.3},
    "normalize, 1": {"p": 1},
    "normalize, inf": {"p": float("inf")},
    "clip_by_norm, 1": {"p": 1},
    "linf_oracle, around": {"center": 0.1},
    "l2_oracle, around": {"center": 0.1},
    "l1_oracle, around": {"center": 0.1},
    "l1q_oracle, around": {"center": 0.1},
    "linf_ball, around": {"center": 0.1, "low": None, "high": None},
    "l2_ball, around": {"center": 0.1, "low": None, "high": None},
    "l1_ball, around": {"center": 0.1, "low": None, "high": None},
    "linf_ball, alone": {"low": None, "high": None},
    "l2_ball, alone": {"low": None, "high": None},
    "l1_ball, alone": {"low": None, "high": None},
    "l2_ball, behind": {"center": 0.4, "low": None, "high": 0.3},
    "l1_ball, behind": {"center": 0.4, "low": None, "high": 0.3},
    "l1_sphere, around": {"center": 0.1},
    "l2_sphere, around": {"center": 0.1},
    "nuclear_ball, inside": {"epsilon": 9.0},
    "group_l1_ball, inside": {"epsilon": 9.0},
    "group_l1_ball, one": {"group_ndim": None},
    "frank_wolfe_step, constant": {"lr": 0.5, "use_default_lr_schedule": False},
}
# Every link of rows takes the whole tree as one row.
VARIANTS |= {
    f"{name}, tree": {"param_ndim": "tree"}
    for name, factory in FACTORIES.items()
    if factory.definition.scope == "row"
}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def make(name, **override):
    if name in COMBINATORS:
        return COMBINATORS[name]()
    factory, override = FACTORIES[name.split(",")[0]], {**VARIANTS.get(name, {}), **override}
    samples = {k: v for k, v in SAMPLES.items() if k in factory.definition.rules}
    return factory(**{**samples, **override})


def tensorable(name):
    """The hyperparameters of a link that may be tensors of any values, with their samples."""
    if name in COMBINATORS:
        return {}  # theirs are what is inside, and a count or two: tests/test_wrappers.py
    rules, values = make(name).definition.rules, make(name).values
    return {
        k: float(values[k])
        for k, rule in rules.items()
        if not getattr(rule, "static", True)
        and not rule.whole  # tests/links
        and isinstance(values[k], (int, float))
        and (k != "dq" or values[k])
    }


def sees(tx):
    """What a link sees: its scope, or the whole tree where that is one row."""
    return "tree" if getattr(tx, "param_ndim", None) == "tree" else tx.scope


def draw(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def run(tx, g, p, state=None, **options):
    """One use of a link in its phase: the new updates, or the new parameters."""
    state = tx.init(p) if state is None else state
    if all(link.phase == "gradient" for link in tx.links):
        return update(tx, g, state, params=p, **options)[0]
    return step(tx, p, g, state, **options)[0]


def same(a, b):
    """Equal to the bit, NaN equal to NaN."""
    leaves = zip(
        torch.utils._pytree.tree_leaves(a), torch.utils._pytree.tree_leaves(b), strict=True
    )
    return all(
        x is y or torch.equal(torch.nan_to_num(x, 9e9), torch.nan_to_num(y, 9e9)) for x, y in leaves
    )


NAMES = sorted([*FACTORIES, *VARIANTS, *COMBINATORS])
every = pytest.mark.parametrize("name", NAMES)


def those(of):
    """The links of which something holds: docs/reference.py reads here what is tested of which."""
    return pytest.mark.parametrize("name", [name for name in NAMES if of(make(name))])


with_tensors = pytest.mark.parametrize("name", [name for name in NAMES if tensorable(name)])


def test_there_are_links():
    assert {"top_q", "clamp", "l1_ball", "frank_wolfe_step"} <= set(FACTORIES)


@every
def test_pure(name):
    tx, p, g = make(name), {"a": draw(3, 4), "b": [draw(5, seed=1), None]}, None
    g = {"a": draw(3, 4, seed=2), "b": [draw(5, seed=3), None]}
    state = tx.init(p)
    before = copy.deepcopy((p, g, state))
    first, new_state = step(tx, p, g, state)
    again, _ = step(tx, p, g, state)
    update(tx, g, state, params=p)
    assert same((p, g, state), before)
    assert same(first, again)
    step(tx, first, g, new_state)
    assert same(first, again)


@those(lambda tx: not tx.reduces)  # what comes in has another shape there
def test_inplace_equals_pure(name):
    tx, p = make(name), {"a": draw(3, 4), "b": draw(2, 3, 5, seed=1)}
    g = {"a": draw(3, 4, seed=2), "b": draw(2, 3, 5, seed=3)}
    pure, _ = update(tx, g, tx.init(p), params=p)
    inplace, _ = update(tx, g, tx.init(p), params=p, inplace=True)
    assert same(pure, inplace)
    assert all(inplace[k] is g[k] for k in g)


@every
@pytest.mark.parametrize("layout", ["transposed", "channels_last", "strided", "expanded"])
@pytest.mark.parametrize("inplace", [False, True])
def test_any_layout(name, layout, inplace):
    """The same bits in any order of memory, of the gradient and of the parameter."""
    tx = make(name)
    inplace = inplace and not tx.reduces
    g, p = draw(2, 3, 16, 50), draw(2, 3, 16, 50, seed=1)
    if layout == "expanded":
        g = draw(2, 3, 1, 1).expand(2, 3, 16, 50)
    expected, kept = update(tx, g.contiguous(), tx.init(p), params=p)
    lay = {
        "transposed": lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
        "channels_last": lambda x: x.to(memory_format=torch.channels_last),
        "strided": lambda x: torch.stack([x, x], -1)[..., 0],
        "expanded": lambda x: x,
    }[layout]
    for own in (p, lay(p)):
        other = lay(g)
        result, after = update(tx, other, tx.init(own), params=own, inplace=inplace)
        assert same(result, expected)
        assert same(after, kept)
        if inplace and layout != "expanded":
            assert result is other


@every
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_dtype(name, dtype):
    tx, p, g = make(name), draw(4, 6, dtype=dtype), draw(4, 6, dtype=dtype, seed=1)
    result = run(tx, g, p)
    assert result.dtype == dtype
    exact = run(tx, g.double(), p.double())
    close = {torch.float64: 0, torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}
    torch.testing.assert_close(result.double(), exact, rtol=close[dtype], atol=close[dtype])


@every
def test_empty_zero_and_none(name):
    tx = make(name)
    p = {"empty": torch.zeros(0, 3), "none": None, "wide": torch.zeros(2, 0)}
    assert same(run(tx, p, p), p)
    zero = torch.zeros(2, 3)
    assert run(tx, zero, zero).isfinite().all()
    for dtype in DTYPES:
        assert run(tx, zero.to(dtype), zero.to(dtype)).isfinite().all()


@every
def test_nan_stays_visible(name):
    tx, g = make(name), draw(2, 4)
    g[0, 1] = torch.nan
    result = run(tx, g, torch.zeros(2, 4))
    hides = {"nan_to_num", "zero_nans", "set_to_zero", "apply_if_finite"}
    hides |= {"freeze", "selective_transform"}
    hides |= {"accumulate", "accumulate, skip", "random_k"}  # the one waits, the other may drop it
    assert result[0].isnan().any() or name.split(",")[0] in hides
    assert result[1].isfinite().all() or sees(tx) not in ("element", "row")


@every
def test_scalar_tensor(name):
    """A leaf of 0 dimensions is one row of one element, whatever `param_ndim` is."""
    tx = make(name)
    result = run(tx, torch.tensor(3.0), torch.tensor(1.0))
    assert result.shape == ()
    if tx.scope == "row":
        assert same(result, run(make(name, param_ndim=None), torch.tensor(3.0), torch.tensor(1.0)))


# The others treat leaves differently, which is what they are for.
@those(lambda tx: sees(tx) != "tree" and not tx.definition.draw_is_needed(tx.values))
def test_tree_equals_leaves(name):
    tx = make(name)
    p = {"a": draw(3, 4), "b": (draw(2, 5, seed=1), [draw(6, seed=2)])}
    g = {"a": draw(3, 4, seed=3), "b": (draw(2, 5, seed=4), [draw(6, seed=5)])}
    result = run(tx, g, p)
    assert same(result["a"], run(tx, g["a"], p["a"]))
    assert same(result["b"][0], run(tx, g["b"][0], p["b"][0]))
    assert same(result["b"][1][0], run(tx, g["b"][1][0], p["b"][1][0]))


@every
def test_vmap_equals_loop(name):
    tx, g, p = make(name), draw(5, 3, 4), draw(5, 3, 4, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batched = vmap(lambda g, p: run(tx, g, p))(g, p)
    looped = torch.stack([run(tx, g[i], p[i]) for i in range(5)])
    torch.testing.assert_close(batched, looped, rtol=1e-6, atol=1e-7)


@with_tensors
def test_vmap_over_every_hyperparameter(name):
    g, p = draw(4, 3, 4), draw(4, 3, 4, seed=1)
    for key, value in tensorable(name).items():
        values = value * torch.tensor([1.0, 0.9, 0.7, 0.4], dtype=torch.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            batched = vmap(lambda g, p, v, key=key: run(make(name, **{key: v}), g, p))(g, p, values)
        looped = [run(make(name, **{key: float(v)}), g[i], p[i]) for i, v in enumerate(values)]
        torch.testing.assert_close(batched, torch.stack(looped), rtol=1e-6, atol=1e-7)


@with_tensors
def test_override_equals_construction(name):
    g, p = draw(3, 4), draw(3, 4, seed=1)
    for key, value in tensorable(name).items():
        for other in (value * 0.8, torch.tensor(value * 0.8, dtype=torch.float64)):
            overridden = run(make(name), g, p, hyperparams={key: other})
            torch.testing.assert_close(
                overridden, run(make(name, **{key: value * 0.8}), g, p), rtol=1e-6, atol=1e-7
            )


@with_tensors
def test_schedule_of_every_hyperparameter(name):
    g, p = draw(3, 4), draw(3, 4, seed=1)
    for key, value in tensorable(name).items():
        tx = make(name, **{key: lambda step, value=value: value * (1.0 - 0.1 * step)})
        state = tx.init(p)
        for n in range(3):
            own = {} if not isinstance(state, dict) else state
            assert int(own["step"]) == n
            constant = make(name, **{key: value * (1.0 - 0.1 * n)})
            kept = {k: own[k] for k in constant.init(p)}
            expected, _ = update(constant, g, kept or (), params=p)
            result, state = update(tx, g, state, params=p)
            torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)


@every
def test_compiled_equals_eager(name):
    tx, g, p = make(name), {"a": draw(3, 4)}, {"a": draw(3, 4, seed=1)}
    torch.compiler.reset()
    compiled = torch.compile(partial(step, tx), fullgraph=True, backend="aot_eager")
    state = tx.init(p)
    eager_p, eager_state = step(tx, p, g, state)
    compiled_p, compiled_state = compiled(p, g, state)
    torch.testing.assert_close(compiled_p, eager_p, rtol=1e-6, atol=1e-7)
    assert same(compiled_state, eager_state)


@every
def test_derivative(name):
    """Against finite differences in float64, where the link has a derivative."""
    tx, p = make(name), draw(2, 4, dtype=torch.float64)
    g = draw(2, 4, dtype=torch.float64, seed=1).requires_grad_()
    w = draw(2, 4, dtype=torch.float64, seed=2)
    assert torch.autograd.gradcheck(lambda g: (w * run(tx, g, p)).sum(), g)
    for key, value in tensorable(name).items():
        if key in ("q", "dq"):
            continue  # a step function
        value = 2e-3 if 0 < abs(value) < 1e-4 else value  # finite differences stay in its range
        v = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        loss = lambda v, key=key: (w * run(tx, g.detach(), p, hyperparams={key: v})).sum() + 0 * v  # noqa: E731
        assert torch.autograd.gradcheck(loss, v)
        torch.testing.assert_close(grad(loss)(v.detach()), torch.autograd.grad(loss(v), v)[0])


# The others are refused there, or a closure gives what they need: tests/optim/test_asked.py.
@those(lambda tx: not tx.reduces and not tx.needs & {"value", "grad_fn"})
def test_optimizer_equals_pure(name):
    """In the stateful home, three steps."""
    tx, p = make(name), [draw(3, 4), draw(5, seed=1)]
    tx = chain(tx, rai_chain.scale(-0.1)) if tx.phase == "gradient" else tx
    leaves, state = [x.clone().requires_grad_() for x in p], tx.init(p)
    optimizer = tx.optimizer(leaves)
    for t in range(3):
        g = [draw(3, 4, seed=t + 2), draw(5, seed=t + 5)]
        p, state = tx.step(p, g, state)
        for leaf, grad_ in zip(leaves, g, strict=True):
            leaf.grad = grad_.clone()
        optimizer.step()
        assert same([leaf.detach() for leaf in leaves], p)


@every
def test_persists(name):
    tx, p, g = make(name), {"a": draw(3, 4)}, {"a": draw(3, 4, seed=1)}
    state = step(tx, p, g, tx.init(p))[1]
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    expected = step(tx, p, g, state)
    twins = [pickle.loads(pickle.dumps(tx)), copy.deepcopy(tx)]
    if name not in COMBINATORS:  # whose functions print as their names
        twins.append(eval(repr(tx), {**vars(rai_chain), "inf": float("inf")}))
    for twin in twins:
        assert repr(twin) == repr(tx)
        assert same(step(twin, p, g, loaded), expected)


@every
def test_every_hyperparameter_is_seen_and_checked(name):
    tx = make(name)
    for key, value in tx.hyperparams.items():
        key_inside = key.rsplit(".")[-1]
        assert f"{key_inside}={value!r}" in repr(tx)
        for bad in () if name in COMBINATORS else ("nonsense", float("nan")):
            with pytest.raises((TypeError, ValueError), match=f"`{key}`"):
                make(name, **{key: bad})
        with pytest.raises((TypeError, ValueError), match=f"`{key_inside}`"):
            update(
                tx,
                draw(3, 4),
                tx.init(draw(3, 4)),
                params=draw(3, 4),
                hyperparams={key: "nonsense"},
            )


@every
def test_refuses_what_is_not_a_dense_real_floating_tensor(name):
    tx = make(name)
    for leaf in (
        torch.ones(2, 2, dtype=torch.cfloat),
        torch.ones(2, 2).to_sparse(),
        torch.ones(2, 2, dtype=torch.int64),
        1.0,
    ):
        with pytest.raises(TypeError, match=r"`params\['w'\]`.* must"):
            tx.init({"w": leaf})
        with pytest.raises(TypeError, match=r"`updates\['w'\]`.* must"):
            update(
                tx, {"w": leaf}, tx.init({"w": torch.ones(2, 2)}), params={"w": torch.ones(2, 2)}
            )


# Only gradient links have neighbours that share memory with them.
@those(lambda tx: tx.phase == "gradient" and not tx.reduces)
def test_bits_do_not_depend_on_the_neighbours(name):
    """In a chain, where memory is reused, a link gives the bits that it gives alone."""
    tx, p, g = make(name), draw(3, 4), draw(3, 4, seed=1)
    alone = run(tx, run(rai_chain.scale(2.0), g, p), p)
    assert same(run(chain(rai_chain.scale(2.0), tx), g, p), alone)
    after = run(rai_chain.bias(1.0), alone, p)
    assert same(run(chain(rai_chain.scale(2.0), tx, rai_chain.bias(1.0)), g, p), after)


@pytest.mark.parametrize(
    "name", sorted(n for n in [*FACTORIES, *VARIANTS] if sees(make(n)) == "row")
)
def test_bits_do_not_depend_on_the_blocks_of_rows(name, monkeypatch):
    """Many rows go through a link a few at a time, with their own hyperparameters."""
    p, g = draw(9, 40), draw(9, 40, seed=1)
    own = {k: torch.linspace(v / 2, v, 9) for k, v in tensorable(name).items()}
    for tx in (make(name), make(name, **own)):
        whole = run(tx, g, p)
        monkeypatch.setattr(rai_chain.data.rows, "BLOCK", 80)
        assert same(run(tx, g, p), whole)
        monkeypatch.undo()


def test_rows_come_in_blocks_of_several(monkeypatch):
    monkeypatch.setattr(rai_chain.data.rows, "BLOCK", 80)
    seen = []

    @rai_chain.rowwise
    def watched(rows, shift=0.0):
        seen.append((len(rows), getattr(shift, "shape", None)))
        return rows + shift

    g = draw(9, 40)
    assert torch.equal(watched(torch.arange(9.0)).map(g), g + torch.arange(9.0)[:, None])
    assert seen == [(2, (2, 1)), (2, (2, 1)), (2, (2, 1)), (3, (3, 1))]
    seen.clear()
    watched().map(g[:3])
    watched().map(g.to("meta"))  # on any other device a block is a launch
    watched().map(g.requires_grad_())
    assert seen == [(3, None), (9, None), (9, None)]
