"""What users get: one pipeline in every home, links and wrappers of their own, names, trees."""

import copy
import io
import pickle
from functools import partial

import pytest
import torch
from helpers import give, identical, leaf, leaves, parameters, step, steps, values
from torch.optim import SGD, Adam
from torch.utils._pytree import keystr, tree_map, tree_map_with_path

import rai_chain as rc
from rai_chain.optim import ChainedParamTransformingOptimizer, ParamTransformingOptimizer

Chain = ChainedParamTransformingOptimizer


def weights(seed=0):
    return {"w": values(4, 6, seed=seed), "b": values(5, seed=seed + 50)}


# ------------------------------------------------------------------ tx.optimizer

PIPELINES = {
    "nothing": lambda: rc.chain(),
    "a link": lambda: rc.scale(-0.1),
    "readme": lambda: rc.chain(rc.top_q(0.33), rc.clamp(clamp_max=2.8), rc.scale(-1.0)),
    "projected": lambda: rc.chain(rc.sign(), rc.scale(-0.1), rc.l2_ball(0.5), rc.box(-0.3, 0.3)),
    "drawn": lambda: rc.chain(rc.top_q(0.5, dq=0.4, seed=5), rc.add_noise(0.1), rc.scale(-0.1)),
    "sgd": lambda: rc.sgd(0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda: rc.chain(rc.clip_by_global_norm(1.0), rc.adam(0.1), rc.linf_ball(0.9)),
    "scheduled": lambda: rc.chain(rc.top_q(lambda s: 0.1 * s), rc.sgd(lambda s: 0.1 / (1 + s))),
    "from torch": lambda: rc.chain(rc.sign(), rc.from_torch(Adam, lr=0.1), rc.l1_ball(2.0)),
    "frank wolfe": lambda: rc.chain(rc.l1_oracle(2.0), rc.frank_wolfe_step()),
    "lookahead": lambda: rc.lookahead(rc.adam(0.1), 2),
    "wrapped": lambda: rc.apply_if_finite(rc.accumulate(rc.adamw(0.1), 2), 3),
    "error feedback": lambda: rc.chain(rc.error_feedback(rc.top_q(0.5)), rc.lion(0.01)),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipelines_optimizer_does_what_step_does(name):
    """To the bit, with a checkpoint, a copy and a pickle on the way."""
    tx, pure = PIPELINES[name](), list(weights().values())
    state = tx.init(pure)
    optimizer = tx.optimizer([p.clone().requires_grad_() for p in pure])
    assert isinstance(optimizer, ParamTransformingOptimizer)
    for seed in range(1, 7):
        grads = list(weights(seed).values())
        pure, state = tx.step(pure, grads, state)
        step(optimizer, *grads)
        assert identical(pure, [p.detach() for p in parameters(optimizer)])
        if seed == 2:
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            other = tx.optimizer([p.detach().requires_grad_() for p in parameters(optimizer)])
            other.load_state_dict(torch.load(file, weights_only=True))
            optimizer = other
        elif seed == 3:
            optimizer = copy.deepcopy(optimizer)
        elif seed == 4 and name != "scheduled":  # its schedules are local functions
            optimizer = pickle.loads(pickle.dumps(optimizer))


def test_the_first_example_of_the_readme_descends_in_all_homes():
    """Its `scale(-1.0)` is added, and not subtracted by an SGD that nobody asked for."""
    tx = rc.chain(rc.top_q(q=0.33, param_ndim=None), rc.clamp(clamp_max=2.8), rc.scale(-1.0))
    grad, expected = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, -1.0, -1.8])
    start = torch.ones(3)
    assert torch.equal(tx.step(start, grad, tx.init(start))[0], expected)
    x = torch.ones(3, requires_grad=True)
    step(tx.optimizer([x]), grad)
    assert torch.equal(x, expected)


def test_values_of_a_pipelines_optimizer():
    """Bare keys, qualified keys, `param_ndim` and `defaults`; the pipeline is as it was."""
    tx = rc.chain(rc.top_q(0.0), rc.clamp(clamp_max=1.0), rc.scale_by_learning_rate(0.1))
    x = torch.zeros(2, 3, requires_grad=True)
    optimizer = tx.optimizer([x], lr=0.5, q=0.5, param_ndim=None, **{"clamp_0.clamp_max": 4.0})
    grad = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    step(optimizer, grad)
    assert torch.equal(x, torch.tensor([[0.0, 0.0, 0.0], [-2.0, -2.0, -2.0]]))
    assert tx.hyperparams["lr"] == 0.1 and tx.hyperparams["clamp_max"] == 1.0
    group = tx.optimizer([x], defaults={"lr": 0.25}).param_groups[0]
    assert group["lr"] == 0.25


@pytest.mark.parametrize(
    ("bad", "match"),
    [({"qq": 0.5}, "qq"), ({"q": 1.5}, "`q` must satisfy"), ({"InnerOpt": SGD}, "InnerOpt")],
)
def test_a_value_that_no_link_reads_or_allows_is_refused(bad, match):
    """As an argument that a function does not have."""
    with pytest.raises((TypeError, ValueError), match=match):
        rc.chain(rc.top_q(0.5), rc.scale(-1.0)).optimizer([leaf(3)], **bad)


def test_code_that_calls_a_class_with_params_takes_a_pipelines_optimizer():
    """`cls(params, **kw)`: with a model's parameters, named ones, groups."""

    def framework(cls, params, **kwargs):
        return cls(params, **kwargs)

    tx, model = rc.chain(rc.sign(), rc.sgd(0.1)), torch.nn.Linear(3, 2)
    for params in (
        model.parameters(),
        model.named_parameters(),
        [{"params": [model.weight]}, {"params": [model.bias], "lr": 0.25}],
    ):
        optimizer = framework(tx.optimizer, params, lr=0.5)
        old = [p.detach().clone() for p in parameters(optimizer)]
        step(optimizer, 3.0, 3.0)
        moved = [(a - b).abs().max() for a, b in zip(old, parameters(optimizer), strict=True)]
        assert moved[0].item() == pytest.approx(0.5)
        assert optimizer.param_groups[-1]["lr"] == (
            0.25 if len(optimizer.param_groups) > 1 else 0.5
        )
        torch.optim.lr_scheduler.StepLR(optimizer, 1)


@pytest.mark.parametrize("kind", ["list", "generator", "parameters", "named", "groups"])
def test_a_partial_of_the_chain_takes_its_last_positional_argument_as_params(kind):
    """Where `params=` is not given: the ends are those of `params=`."""
    ends = []
    for positional in (True, False):
        p, q = leaf(2, 3), leaf(4, seed=1)
        params = {
            "list": lambda p=p, q=q: [p, q],
            "generator": lambda p=p, q=q: iter([p, q]),
            "parameters": lambda p=p, q=q: torch.nn.ParameterList([p, q]).parameters(),
            "named": lambda p=p, q=q: [("w", p), ("b", q)],
            "groups": lambda p=p, q=q: [{"params": [p]}, {"params": [q], "lr": 0.5}],
        }[kind]()
        make = partial(Chain, rc.sign(), rc.l2_ball(0.5))
        optimizer = make(params, lr=0.1) if positional else make(params=params, lr=0.1)
        ends.append(steps(optimizer))
    assert identical(*ends)


def test_a_last_positional_argument_that_is_no_params_is_a_link_as_before():
    """With `params=` given, everything positional is a member."""
    with pytest.raises(TypeError, match="Got: 3"):
        Chain(rc.sign(), 3, params=[leaf(3)])
    with pytest.raises(TypeError, match="`params`"):
        Chain(rc.sign(), rc.l2_ball(0.5))


# ------------------------------------------------------------------ updates


def my_lr(lr):
    """A user's own link that makes updates."""

    @rc.elementwise(updates=True)
    def my_lr(grad, lr=0.1):
        return -lr * grad

    return my_lr(lr)


UPDATES = {
    "link": lambda: my_lr(0.5),
    "chain": lambda: rc.chain(rc.sign(), my_lr(0.5)),
    "nested": lambda: rc.chain(rc.chain(rc.sign()), rc.chain(my_lr(0.5), rc.box(-9.0, 9.0))),
    "masked": lambda: rc.masked(my_lr(0.5), [True]),
    "partition": lambda: rc.partition({"a": rc.chain(rc.sign(), my_lr(0.5))}, ["a"]),
    "apply_if_finite": lambda: rc.apply_if_finite(my_lr(0.5), 3),
    "named": lambda: rc.named_chain(("mine", my_lr(0.5))),
    "scale_by_learning_rate": lambda: rc.scale_by_learning_rate(0.5),
    "sgd": lambda: rc.sgd(0.5),
    "adam": lambda: rc.adam(0.5),
}


@pytest.mark.parametrize("name", UPDATES)
def test_a_link_declares_that_its_result_is_added(name):
    """Inherited by chains and wrappers: no SGD subtracts it again."""
    tx = UPDATES[name]()
    assert tx.updates is True
    x = torch.zeros(1, requires_grad=True)
    step(Chain(tx, params=[x]), 1.0)
    assert x.item() == -0.5


def test_a_link_that_declares_nothing_makes_gradients():
    """An `InnerOpt` descends them."""
    for tx in (rc.sign(), rc.chain(rc.top_q(0.5), rc.scale(-1.0)), rc.masked(rc.sign(), [True])):
        assert tx.updates is False
    x = torch.zeros(1, requires_grad=True)
    step(Chain(rc.scale(0.5), params=[x], lr=1.0), 1.0)
    assert x.item() == -0.5


# ------------------------------------------------------------------ keys

KEYED = {
    "one reader": (
        lambda: rc.chain(rc.clamp(clamp_max=1.0), rc.sgd(0.5)),
        "clamp_0.clamp_max",
        3.0,
    ),
    "two readers": (
        lambda: rc.chain(rc.clamp(clamp_max=8.0), rc.clamp(clamp_max=9.0), rc.sgd(0.5)),
        "clamp_1.clamp_max",
        3.0,
    ),
    "reserved in groups": (lambda: rc.chain(rc.scale(1.0), rc.sgd(0.5)), "scale_0.grad_scale", 3.0),
    "named": (
        lambda: rc.named_chain(("low", rc.clamp(clamp_max=1.0)), ("by", rc.sgd(0.5))),
        "low.clamp_max",
        3.0,
    ),
    "the learning rate": (lambda: rc.sgd(0.5), "scale_by_learning_rate_0.lr", 0.25),
    "a partition's": (
        lambda: rc.partition({"a": rc.sgd(0.5)}, ["a"]),
        "a.lr",
        0.25,
    ),
}


@pytest.mark.parametrize("name", KEYED)
def test_a_key_means_the_same_in_both_homes(name):
    """In `hyperparams=`, as a value of the optimizer, in a group, and written into it."""
    make, key, value = KEYED[name]
    tx, grad = make(), [torch.full((1,), 9.0)]
    start = [torch.zeros(1)]
    expected = tx.step(start, grad, tx.init(start), hyperparams={key: value})[0][0]
    assert not torch.equal(expected, tx.step(start, grad, tx.init(start))[0][0])
    for how in ("value", "group", "written"):
        x = torch.zeros(1, requires_grad=True)
        group = {"params": [x], **({key: value} if how == "group" else {})}
        optimizer = tx.optimizer([group], **({key: value} if how == "value" else {}))
        if how == "written":
            optimizer.param_groups[0][key] = value
        step(optimizer, 9.0)
        assert torch.equal(x, expected), how


def test_one_key_for_several_links_where_the_user_says_so():
    """A proximal step reads the learning rate that descends."""

    @rc.elementwise(phase="parameter")
    def soft_threshold(param, lr=0.1, penalty=1.0):
        """Shrink towards 0 by lr * penalty."""
        return param.sign() * (param.abs() - lr * penalty).clamp(min=0.0)

    tx = rc.chain(rc.scale_by_learning_rate(0.1), soft_threshold(lr=0.1), shared=("lr",))
    assert tx.hyperparams == {"lr": 0.1, "penalty": 1.0}
    start, grad = torch.tensor([4.0]), torch.tensor([2.0])
    new, _ = tx.step(start, grad, tx.init(start), hyperparams={"lr": 0.5})
    assert new.item() == 4.0 - 1.0 - 0.5
    x = start.clone().requires_grad_()
    optimizer = tx.optimizer([x], lr=0.5)
    step(optimizer, grad)
    assert x.item() == 2.5
    optimizer.param_groups[0]["lr"] = 0.25
    step(optimizer, grad)
    assert x.item() == 2.5 - 0.5 - 0.25
    assert pickle.loads(pickle.dumps(rc.chain(rc.sgd(0.1), shared=("lr",)))).hyperparams == {
        "lr": 0.1
    }


@pytest.mark.parametrize("shared", [("rate",), "lr", 3])
def test_a_shared_name_that_no_link_has_is_refused(shared):
    """A string alone would be its letters."""
    with pytest.raises((TypeError, ValueError), match="`shared` must"):
        rc.chain(rc.scale_by_learning_rate(0.1), rc.clamp(clamp_max=1.0), shared=shared)


def test_update_takes_the_params_positionally():
    """As all optax code does."""
    tx, p, g = rc.add_decayed_weights(0.5), torch.tensor([4.0]), torch.tensor([1.0])
    assert tx.update(g, tx.init(p), p)[0].item() == 3.0
    whole = rc.chain(tx, rc.scale(2.0))
    assert whole.update(g, whole.init(p), p)[0].item() == 6.0
    compiled = tx.compile(backend="eager")
    assert compiled.update(g, tx.init(p), p)[0].item() == 3.0


def test_current_values_can_be_read():
    """Schedules at the state's step, which the next update uses; all else as it is."""
    tx = rc.chain(
        rc.top_q(lambda step: 0.25 * step),
        rc.masked(rc.clamp(clamp_max=lambda step: 3.0 - step), [True]),
        rc.scale(-1.0),
    )
    state = tx.init([torch.zeros(4)])
    for time in range(3):
        now = tx.current(state)
        assert now.keys() == tx.hyperparams.keys()
        assert float(now["q"]) == 0.25 * time and float(now["clamp_max"]) == 3.0 - time
        assert now["grad_scale"] == -1.0 and now["dq"] == 0.0
        _, state = tx.update([torch.ones(4)], state)
    assert rc.scale(2.0).current(rc.scale(2.0).init(torch.ones(1))) == {"grad_scale": 2.0}


def test_replace_makes_a_new_pipeline():
    """Names, structure and everything else stay; the old one does too."""
    tx = rc.named_chain(
        ("top", rc.top_q(0.5, param_ndim=1)), ("m", rc.masked(rc.scale(2.0), [True]))
    )
    new = tx.replace(q=0.75, grad_scale=3.0)
    assert new.hyperparams == {**tx.hyperparams, "q": 0.75, "grad_scale": 3.0}
    assert tx.hyperparams["q"] == 0.5 and "param_ndim=1" in repr(new)
    assert tx.replace(**{"top.q": 0.25}).hyperparams["q"] == 0.25
    assert rc.top_q(0.5).replace(q=0.9).hyperparams["q"] == 0.9
    grads = [torch.tensor([[1.0, 2.0, 3.0, 4.0]])]
    assert new.update(grads, new.init(grads))[0][0].tolist() == [[0.0, 0.0, 0.0, 12.0]]


@pytest.mark.parametrize("bad", [{"q": 1.5}, {"p": 0.5}, {"grad_scale": "no"}])
def test_replace_refuses_what_a_factory_refuses(bad):
    """By name."""
    (key,) = bad
    with pytest.raises((TypeError, ValueError), match=f"`{key}` must"):
        rc.chain(rc.top_q(0.5), rc.scale(1.0)).replace(**bad)


# ------------------------------------------------------------------ leafwise


def orthogonal():
    @rc.leafwise
    def orthogonal(leaf, blend=1.0):
        """The nearest orthogonal matrix, of a matrix; anything else stays."""
        if leaf.ndim != 2:
            return leaf
        u, _, v = torch.linalg.svd(leaf, full_matrices=False)
        return blend * (u @ v) + (1 - blend) * leaf

    return orthogonal()


def centred():
    @rc.leafwise
    def centred(leaf):
        """Take off the mean over the first dimension, which no block of rows knows."""
        return leaf - leaf.mean(0, keepdim=True)

    return centred()


@pytest.mark.parametrize("home", ["pure", "inplace", "optimizer", "vmap", "compiled"])
def test_leafwise_sees_each_leaf_whole_and_in_its_own_shape(home):
    """Matrix functions, in all homes."""
    tree = {"m": values(4, 3), "v": values(5, seed=1), "t": values(2, 3, 4, seed=2)}
    tx = rc.chain(orthogonal(), centred())
    u, _, v = torch.linalg.svd(tree["m"], full_matrices=False)
    expected = {"m": u @ v, "v": tree["v"], "t": tree["t"]}
    expected = {k: x - x.mean(0, keepdim=True) for k, x in expected.items()}
    if home == "vmap":
        both = {k: torch.stack([x, x]) for k, x in tree.items()}
        out = torch.func.vmap(lambda g: tx.update(g, tx.init(g))[0])(both)
        out = {k: x[1] for k, x in out.items()}
    elif home == "optimizer":
        params = [torch.zeros_like(x).requires_grad_() for x in tree.values()]
        step(Chain(tx, params=params, lr=1.0), *tree.values())
        out = {k: p.grad for k, p in zip(tree, params, strict=True)}
    else:
        run = tx.compile(backend="eager") if home == "compiled" else tx
        given = {k: x.clone() for k, x in tree.items()}
        out, _ = run.update(given, tx.init(given), inplace=home == "inplace")
        assert home != "inplace" or out["m"] is given["m"]
    for k in tree:
        torch.testing.assert_close(out[k], expected[k], rtol=1e-5, atol=1e-6)


def test_leafwise_on_a_large_leaf():
    """No blocks: a leaf of many rows has one mean for each column."""
    leaf = values(300_000, 4)
    out, _ = centred().update(leaf, ())
    assert torch.equal(out, leaf - leaf.mean(0, keepdim=True))


def test_leafwise_with_a_state_a_step_and_a_hyperparameter_tree():
    """What the other decorators give, it gives."""

    @rc.leafwise(state=lambda leaf: {"total": torch.zeros_like(leaf)})
    def summed(leaf, rate=1.0, *, state, step):
        assert leaf.shape == state["total"].shape
        total = state["total"] + rate * leaf
        return total + step, {"total": total}

    tx, ones = summed(rate=[1.0, 2.0]), [torch.ones(2, 3, 4), torch.ones(())]
    state = tx.init(ones)
    for time in range(3):
        out, state = tx.update(ones, state)
        assert out[0].unique().item() == 2 * time + 1 and out[1].item() == 3 * time + 2


# ------------------------------------------------------------------ random


def test_random_numbers_of_a_key():
    """Functions of the key alone, in the shape that is asked for."""
    key = torch.tensor(7)
    for draw in (
        rc.random.uniform,
        rc.random.normal,
        lambda key, shape: rc.random.bernoulli(key, 0.25, shape),
    ):
        a, b = draw(key, (300, 100)), draw(key, (300, 100))
        assert a.shape == (300, 100) and torch.equal(a, b)
        assert not torch.equal(a, draw(torch.tensor(8), (300, 100)))
    uniform, normal = rc.random.uniform(key, (30_000,)), rc.random.normal(key, (30_000,))
    assert uniform.min() >= 0 and uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 5 * (1 / 12 / 30_000) ** 0.5
    assert abs(normal.mean()) < 5 / 30_000**0.5 and abs(normal.var() - 1) < 5 * (2 / 30_000) ** 0.5
    kept = rc.random.bernoulli(key, 0.25, (30_000,))
    assert set(kept.unique().tolist()) == {0, 1}
    assert abs(kept.double().mean() - 0.25) < 5 * (0.25 * 0.75 / 30_000) ** 0.5


def test_bernoulli_at_its_ends_and_with_a_tensor():
    """0 is never, 1 is always; a probability may be a tensor, one for each element."""
    key = torch.tensor(3)
    assert not rc.random.bernoulli(key, 0.0, (10_000,)).any()
    assert rc.random.bernoulli(key, 1.0, (10_000,)).all()
    each = rc.random.bernoulli(key, torch.tensor([0.0, 1.0]), (5000, 2))
    assert not each[:, 0].any() and each[:, 1].all()


def test_a_drawing_link_of_ones_own():
    """Fresh at each step, the same in all homes."""

    @rc.elementwise(draws="rate")
    def dropout(grad, rate=0.5, *, key):
        return grad * rc.random.bernoulli(key, 1.0 - rate, tuple(grad.shape)) / (1.0 - rate)

    tx, ones = dropout(0.25, seed=3), [torch.ones(50, 40)]
    state, x = tx.init(ones), torch.zeros(50, 40, requires_grad=True)
    optimizer, seen = Chain(tx, params=[x], lr=0.0), []
    for _ in range(2):
        (out,), state = tx.update(ones, state)
        step(optimizer, 1.0)
        assert torch.equal(out, x.grad)
        seen.append(out)
    assert not torch.equal(*seen) and abs(seen[0].mean() - 1.0) < 0.1


# ------------------------------------------------------------------ plain functions, as in optax


def start_counting(params):
    return {"count": torch.zeros((), dtype=torch.int64)}


def count_and_shrink(updates, state, params=None):
    """Divide by the number of the call, and pull towards 0 where there are parameters."""
    count = state["count"] + 1
    out = tree_map(lambda u: u / count, updates)
    if params is not None:
        out = tree_map(lambda u, p: u + 0.5 * p, out, params)
    return out, {"count": count}


def counting():
    return rc.GradientTransformation(start_counting, count_and_shrink)


def test_a_pair_of_functions_is_a_transformation():
    """`GradientTransformation(init_fn, update_fn)`, used as in optax."""
    tx = counting()
    p, g = {"a": torch.tensor([2.0])}, {"a": torch.tensor([6.0])}
    state = tx.init(p)
    for time in range(3):
        out, state = tx.update(g, state, p)
        assert out["a"].item() == 6.0 / (1 + time) + 1.0
    init, update = tx
    assert update(g, init(p))[0]["a"].item() == 6.0


@pytest.mark.parametrize("home", ["pure", "optimizer", "around SGD"])
def test_a_pair_of_functions_in_a_chain(home):
    """Before and behind links, stepped, in an optimizer, pickled."""
    tx = rc.chain(
        rc.clamp(clamp_max=4.0), counting(), rc.scale(-1.0 if home != "around SGD" else 1.0)
    )
    tx = pickle.loads(pickle.dumps(tx))
    pure, state = [torch.tensor([2.0])], None
    x, expected = torch.tensor([2.0], requires_grad=True), 2.0
    optimizer = {
        "optimizer": lambda: tx.optimizer([x]),
        "around SGD": lambda: Chain(tx, params=[x], lr=1.0),
        "pure": lambda: None,
    }[home]()
    state = tx.init(pure)
    for time in range(3):
        expected -= 4.0 / (1 + time) + 0.5 * expected
        if home == "pure":
            pure, state = tx.step(pure, [torch.tensor([6.0])], state)
            found = pure[0].item()
        else:
            step(optimizer, 6.0)
            found = x.item()
        assert found == pytest.approx(expected)


def test_a_pair_of_functions_in_a_wrapper_and_a_checkpoint():
    """Its state is kept, chosen and saved like any other."""
    tx = rc.apply_if_finite(counting(), 3)
    state, seen = tx.init([torch.zeros(1)]), []
    for grad in (6.0, float("nan"), 6.0):
        out, state = tx.update([torch.tensor([grad])], state)
        seen.append(out[0].item())
    assert seen == [6.0, 0.0, 3.0]
    optimizers = [Chain(counting(), params=leaves(1, 1), lr=1.0) for _ in range(2)]
    step(optimizers[0], 6.0)
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    step(optimizers[1], 6.0)
    assert parameters(optimizers[1])[0].item() == -3.0


@pytest.mark.parametrize("bad", [(None, count_and_shrink), (start_counting, 3), (3, 4)])
def test_a_pair_that_is_no_pair_of_functions_is_refused(bad):
    """When it is made."""
    with pytest.raises(TypeError, match=r"`(init|update)"):
        rc.GradientTransformation(*bad)


def test_a_plain_function_of_updates_and_params():
    """`stateless` makes a transformation of it, in all homes."""
    tx = rc.chain(
        rc.stateless(lambda updates, params: tree_map(lambda u, p: u + p, updates, params)),
        rc.scale(-1.0),
    )
    p, g = {"a": torch.tensor([2.0])}, {"a": torch.tensor([6.0])}
    assert tx.update(g, tx.init(p), p)[0]["a"].item() == -8.0
    assert tx.step(p, g, tx.init(p))[0]["a"].item() == -6.0
    x = torch.tensor([2.0], requires_grad=True)
    step(tx.optimizer([x]), 6.0)
    assert x.item() == -6.0


def test_rules_are_public():
    """`Range` and `Flag` in annotations: their messages are the library's."""
    from typing import Annotated, Any

    @rc.elementwise
    def tempered(
        grad,
        heat: Annotated[Any, rc.Range(0.0, 2.0)] = 1.0,
        flip: Annotated[bool, rc.Flag()] = False,
    ):
        return grad * heat

    with pytest.raises(ValueError, match=r"`heat` must satisfy 0\.0 <= heat <= 2\.0  Got: 3"):
        tempered(3.0)
    with pytest.raises(ValueError, match="`flip` must be one of False, True"):
        tempered(flip="no")


# ------------------------------------------------------------------ whole pipelines in wrappers

LABELS = {"w": "w", "b": "b"}


def alone(tx, key, count=4):
    """One leaf through its own pipeline."""
    p = weights()[key]
    state = tx.init(p)
    for seed in range(1, 1 + count):
        p, state = tx.step(p, weights(seed)[key], state)
    return p


def together(tx, count=4, home="pure"):
    """Both leaves through one pipeline."""
    pure = weights()
    state = tx.init(pure)
    named = [(k, v.clone().requires_grad_()) for k, v in pure.items()]
    optimizer = tx.optimizer(named) if home == "optimizer" else None
    for seed in range(1, 1 + count):
        if optimizer is None:
            pure, state = tx.step(pure, weights(seed), state)
        else:
            step(optimizer, *weights(seed).values())
    return pure if optimizer is None else {k: p.detach() for k, p in named}


WHOLE = {
    "the issue's": (lambda: rc.chain(rc.sgd(0.1), rc.l1_ball(3.0)), lambda: rc.sgd(0.2)),
    "both project": (
        lambda: rc.chain(rc.sign(), rc.sgd(0.1), rc.box(-0.5, 0.5)),
        lambda: rc.chain(rc.sgd(0.2), rc.l2_ball(0.7)),
    ),
    "moments": (
        lambda: rc.chain(rc.adam(0.1), rc.linf_ball(0.5)),
        lambda: rc.sgd(0.1, momentum=0.5),
    ),
    "one only projects": (lambda: rc.sgd(0.1), lambda: rc.box(-0.1, 0.1)),
    "a step of its own": (
        lambda: rc.chain(rc.from_torch(SGD, lr=0.1, momentum=0.5), rc.l1_ball(3.0)),
        lambda: rc.from_torch(Adam, lr=0.1),
    ),
}


@pytest.mark.parametrize("home", ["pure", "optimizer"])
@pytest.mark.parametrize("name", WHOLE)
def test_each_label_may_have_a_whole_pipeline(name, home):
    """To the bit what each pipeline does alone with its leaf."""
    w, b = WHOLE[name]
    out = together(rc.partition({"w": w(), "b": b()}, LABELS), home=home)
    assert identical(out, {"w": alone(w(), "w"), "b": alone(b(), "b")})


@pytest.mark.parametrize("wrap", ["masked", "apply_if_finite", "conditionally"])
def test_other_wrappers_take_whole_pipelines_too(wrap):
    """Where they apply, to the bit what the pipeline does alone."""
    inner = rc.chain(rc.clamp(-1.0, 1.0), rc.adam(0.1), rc.l2_ball(0.7))
    tx = {
        "masked": lambda: rc.masked(inner, {"w": True, "b": True}),
        "apply_if_finite": lambda: rc.apply_if_finite(inner, 3),
        "conditionally": lambda: rc.conditionally(inner, lambda updates, step: step >= 0),
    }[wrap]()
    assert identical(together(tx), {k: alone(inner, k) for k in LABELS})


def test_a_whole_pipeline_in_apply_if_finite_moves_nothing_on_nan():
    """Not even the projection, of parameters that are outside."""
    tx = rc.apply_if_finite(rc.chain(rc.sgd(0.1), rc.box(-0.1, 0.1)), 3)
    p = torch.tensor([5.0])
    new, state = tx.step(p, torch.tensor([torch.nan]), tx.init(p))
    assert torch.equal(new, p)
    assert tx.step(new, torch.tensor([0.0]), state)[0].item() == pytest.approx(0.1)


def test_a_partition_of_whole_pipelines_around_an_inner_optimizer():
    """Gradient links go before the inner step and parameter links behind it, label by label."""
    tx = rc.partition({"w": rc.chain(rc.sign(), rc.l1_ball(3.0)), "b": rc.scale(2.0)}, ["w", "b"])
    params = [v.clone().requires_grad_() for v in weights().values()]
    optimizer = Chain(tx, params=params, InnerOpt=SGD, lr=0.1, momentum=0.5)
    for seed in range(1, 5):
        step(optimizer, *weights(seed).values())
    step_of = rc.from_torch(SGD, lr=0.1, momentum=0.5)
    w = alone(rc.chain(rc.sign(), step_of, rc.l1_ball(3.0)), "w")
    b = alone(rc.chain(rc.scale(2.0), step_of), "b")
    assert identical([p.detach() for p in params], [w, b])


# ------------------------------------------------------------------ trees inside mean trees outside


def test_a_mask_inside_a_partition_is_a_tree_of_the_caller():
    """The inner pipeline sees the caller's tree, the other leaves being None."""
    params = {"w": torch.ones(2), "v": torch.ones(2), "b": torch.ones(2)}
    decay = rc.masked(rc.add_decayed_weights(0.5), {"w": True, "v": False, "b": False})
    tx = rc.partition({"x": decay, "y": rc.scale(3.0)}, {"w": "x", "v": "x", "b": "y"})
    out, _ = tx.update(params, tx.init(params), params)
    assert {k: v[0].item() for k, v in out.items()} == {"w": 1.5, "v": 1.0, "b": 3.0}


def test_what_functions_inside_see_is_the_callers_tree_with_none():
    """A predicate, a mask function, a tree of values."""
    seen = []

    def predicate(updates, step):
        seen.append(updates)
        return step >= 0

    params = {"w": {"x": torch.ones(2)}, "b": [torch.ones(2), torch.ones(2)]}
    inner = rc.chain(
        rc.conditionally(rc.sign(), predicate), rc.scale({"w": {"x": 2.0}, "b": [3.0, 5.0]})
    )
    tx = rc.partition({"x": inner, "y": rc.identity()}, {"w": {"x": "x"}, "b": ["y", "x"]})
    out, _ = tx.update(params, tx.init(params))
    assert seen[-1]["b"][0] is None and torch.equal(seen[-1]["w"]["x"], torch.ones(2))
    assert (out["w"]["x"][0], out["b"][0][0], out["b"][1][0]) == (2.0, 1.0, 5.0)


@pytest.mark.parametrize("home", ["pure", "optimizer"])
def test_a_label_function_in_a_nested_partition_gets_the_outer_paths(home):
    """Of the leaves that it is for, by the names that they have outside."""
    seen = set()

    def inner_label(path):
        seen.add(path)
        return "bias" if path.endswith("bias") else "weight"

    inner = rc.partition({"bias": rc.scale(2.0), "weight": rc.scale(3.0)}, inner_label)
    tx = rc.partition(
        {"head": inner, "rest": rc.scale(5.0)}, lambda path: "head" if "head" in path else "rest"
    )
    names = ["body.weight", "head.weight", "head.bias"]
    if home == "pure":
        tree = {
            "body": {"weight": torch.ones(1)},
            "head": {"weight": torch.ones(1), "bias": torch.ones(1)},
        }
        out, _ = tx.update(tree, tx.init(tree))
        found = [out["body"]["weight"], out["head"]["weight"], out["head"]["bias"]]
    else:
        params = leaves(3, 1)
        step(Chain(tx, params=list(zip(names, params, strict=True)), lr=1.0), 1.0, 1.0, 1.0)
        found = [p.grad for p in params]
    assert [t.item() for t in found] == [5.0, 3.0, 2.0]
    assert {"head.weight", "head.bias"} <= seen <= set(names)


TREE = {"encoder": {"w": torch.ones(2), "b": torch.ones(2)}, "head": [torch.ones(2), torch.ones(2)]}
PREFIXES = {
    "True": (lambda tx: rc.masked(tx, True), "2222"),
    "False": (lambda tx: rc.masked(tx, False), "1111"),
    "part": (lambda tx: rc.masked(tx, {"encoder": True, "head": False}), "2211"),
    "deeper": (
        lambda tx: rc.masked(tx, {"encoder": {"w": True, "b": False}, "head": True}),
        "2122",
    ),
    "a function's": (
        lambda tx: rc.masked(tx, lambda tree: {"encoder": True, "head": False}),
        "2211",
    ),
    "another order": (
        lambda tx: rc.masked(tx, {"head": False, "encoder": {"b": True, "w": False}}),
        "1211",
    ),
    "a label": (lambda tx: rc.partition({"x": tx}, "x"), "2222"),
    "labels": (
        lambda tx: rc.partition({"x": tx, "y": rc.scale(3.0)}, {"encoder": "x", "head": "y"}),
        "2233",
    ),
    "labels in another order": (
        lambda tx: rc.partition(
            {"x": tx, "y": rc.scale(3.0)}, {"head": ["x", "y"], "encoder": "x"}
        ),
        "2223",
    ),
}


@pytest.mark.parametrize("name", PREFIXES)
def test_masks_and_labels_may_be_prefixes_and_in_another_order(name):
    """What stands at a place holds for everything under it."""
    make, expected = PREFIXES[name]
    tx = make(rc.scale(2.0))
    out, _ = tx.update(TREE, tx.init(TREE))
    found = [out["encoder"]["w"], out["encoder"]["b"], *out["head"]]
    assert "".join(str(int(t[0])) for t in found) == expected


@pytest.mark.parametrize("name", ["True", "False", "a label"])
def test_a_prefix_for_everything_in_an_optimizer(name):
    """Whatever its params are."""
    make, expected = PREFIXES[name]
    params = leaves(4, 2)
    step(Chain(make(rc.scale(2.0)), params=params, lr=1.0), *[1.0] * 4)
    assert "".join(str(int(p.grad[0])) for p in params) == expected


@pytest.mark.parametrize(
    "mask",
    [{"encoder": True, "tail": False}, [True, False], {"encoder": [True, True], "head": True}],
)
def test_a_mask_that_is_no_prefix_is_refused(mask):
    """By name."""
    with pytest.raises(ValueError, match="`mask` must"):
        rc.masked(rc.scale(2.0), mask).init(TREE)


def test_trees_of_values_and_states_in_another_key_order():
    """dict order differs after a distributed checkpoint: keys match, not places."""
    tx = rc.chain(rc.trace(0.5), rc.masked(rc.scale(2.0), {"b": False, "a": True}))
    grads = {"a": torch.ones(1), "b": torch.ones(1)}
    _, state = tx.update(grads, tx.init(grads))
    turned = {"b": torch.tensor([3.0]), "a": torch.tensor([1.0])}
    out, _ = tx.update(turned, state)
    assert (out["a"].item(), out["b"].item()) == (3.0, 3.5)


# ------------------------------------------------------------------ paths


def collect(into):
    def label(path):
        if isinstance(path, str):  # it is asked whether it takes the whole tree, too
            into.append(path)
        return "x"

    return label


@pytest.mark.parametrize(
    "of_tree",
    [
        lambda tree: tree_map_with_path(lambda path, _: "w" in keystr(path), tree),
        lambda tree: tree_map(lambda x: getattr(x, "ndim", 0) > 1, tree),
        lambda tree: tree_map(lambda x: isinstance(x, torch.Tensor) and x.ndim > 1, tree),
    ],
)
def test_a_function_of_the_tree_that_takes_a_string_for_one_is_asked_with_the_tree(of_tree):
    params = {"layer": {"w": torch.ones(2, 3), "b": torch.ones(2)}}
    tx = rc.masked(rc.scale(0.0), of_tree)
    out, _ = tx.update(params, tx.init(params))
    assert (out["layer"]["w"].sum(), out["layer"]["b"].sum()) == (0.0, 2.0)
    by_label = lambda tree: tree_map(lambda yes: "x" if yes else "y", of_tree(tree))  # noqa: E731
    tx = rc.partition({"x": rc.scale(0.0), "y": rc.identity()}, by_label)
    assert identical(tx.update(params, tx.init(params))[0], out)
    alone = rc.masked(rc.scale(0.0), of_tree)
    assert alone.update(torch.ones(2, 2), alone.init(torch.ones(2, 2)))[0].sum() == (
        4.0 if of_tree(torch.ones(2, 2)) is False else 0.0
    )


def test_a_path_function_that_raises_or_returns_nothing_says_so():
    params = {"w": torch.ones(2)}
    with pytest.raises(TypeError, match=r"`mask` must return a value for each path  Got: None for"):
        rc.masked(rc.scale(2.0), lambda path: None).init(params)
    with pytest.raises(KeyError, match="w"):
        rc.masked(rc.scale(2.0), lambda path: {"b": True}[path]).init(params)


@pytest.mark.parametrize(
    ("tree", "paths"),
    [
        ({"layer": {"weight": 0, "bias": 0}}, ["layer.weight", "layer.bias"]),
        ([0, 0], ["0", "1"]),
        ({"layers": [{"w": 0}, {"w": 0}]}, ["layers.0.w", "layers.1.w"]),
        ((0, {"a": 0}), ["0", "1.a"]),
        ({"encoder.weight": 0}, ["encoder.weight"]),
    ],
)
def test_a_label_function_gets_names_joined_by_dots(tree, paths):
    """As torch names parameters; places of lists count from 0."""
    seen, tree = [], tree_map(lambda _: torch.ones(1), tree)
    rc.partition({"x": rc.sign()}, collect(seen)).init(tree)
    assert sorted(set(seen)) == sorted(paths)


def test_a_label_function_gets_a_models_parameter_names_in_both_homes():
    """`dict(model.named_parameters())` and an optimizer of named parameters: one function."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    pure, stateful = [], []
    rc.partition({"x": rc.sign()}, collect(pure)).init(dict(model.named_parameters()))
    tx = rc.partition({"x": rc.sign()}, collect(stateful))
    optimizer = Chain(tx, params=model.named_parameters(), lr=1.0)
    steps(optimizer, 1)
    assert set(pure) == set(stateful) == set(dict(model.named_parameters()))


def test_a_label_function_gets_places_where_there_are_no_names():
    """As in a list."""
    seen = []
    optimizer = Chain(rc.partition({"x": rc.sign()}, collect(seen)), params=leaves(2, 1), lr=1.0)
    step(optimizer, 1.0, 1.0)
    assert set(seen) == {"0", "1"}


def test_names_in_several_groups():
    """Each group has its own."""
    groups = [{"params": [("a.w", leaf(1))]}, {"params": [("b.w", leaf(1))]}]
    tx = rc.partition(
        {"x": rc.scale(2.0), "y": rc.scale(3.0)}, lambda path: "x" if path == "a.w" else "y"
    )
    optimizer = Chain(tx, params=groups, lr=1.0)
    step(optimizer, 1.0, 1.0)
    assert [p.grad.item() for p in parameters(optimizer)] == [2.0, 3.0]


@pytest.mark.parametrize("order", ["wb", "bw"])
@pytest.mark.parametrize("how", ["dict", "function", "labels"])
def test_a_dict_by_name_in_an_optimizer_of_named_parameters(how, order):
    """In whatever order: a mask, a function that returns one, labels."""
    mask, labels = {"w": True, "b": False}, {"w": "x", "b": "y"}
    tx = {
        "dict": lambda: rc.masked(rc.scale(2.0), mask),
        "function": lambda: rc.masked(rc.scale(2.0), lambda tree: mask),
        "labels": lambda: rc.partition({"x": rc.scale(2.0), "y": rc.identity()}, labels),
    }[how]()
    named = {k: torch.zeros(1, requires_grad=True) for k in order}
    step(Chain(tx, params=list(named.items()), lr=1.0), 1.0, 1.0)
    assert (named["w"].grad.item(), named["b"].grad.item()) == (2.0, 1.0)


def test_a_mask_function_of_shapes_in_both_homes():
    """It maps the tree that it gets, whatever that is."""
    tx = rc.masked(rc.scale(2.0), lambda tree: tree_map(lambda t: t.ndim == 2, tree))
    tree = {"w": torch.ones(1, 1), "b": torch.ones(1)}
    out, _ = tx.update(tree, tx.init(tree))
    named = {k: torch.zeros_like(v).requires_grad_() for k, v in tree.items()}
    step(Chain(tx, params=list(named.items()), lr=1.0), 1.0, 1.0)
    for k, expected in (("w", 2.0), ("b", 1.0)):
        assert out[k].item() == named[k].grad.item() == expected


# ------------------------------------------------------------------ the inner optimizer's methods


class ScheduleFree(SGD):
    """Has modes, as schedule-free optimizers do."""

    mode = "train"

    def train(self):
        self.mode = "train"

    def eval(self):
        self.mode = "eval"


def test_methods_of_the_inner_optimizer_are_reachable():
    """Frameworks look for `train` and `eval` with hasattr, and call them."""
    optimizer = Chain(rc.sign(), params=[leaf(3)], InnerOpt=ScheduleFree, lr=0.1)
    for other in (optimizer, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert hasattr(other, "train") and hasattr(other, "eval")
        other.eval()
        assert other.inner_opt.mode == "eval"
        other.train()
        assert other.inner_opt.mode == "train"


def test_what_the_inner_optimizer_lacks_is_lacking():
    """An AttributeError of the optimizer itself, and nothing private is forwarded."""
    optimizer = Chain(rc.sign(), params=[leaf(3)], InnerOpt=Adam, lr=0.1, fused=True)
    assert not hasattr(optimizer, "train") and not hasattr(optimizer, "eval")
    with pytest.raises(AttributeError, match="nothing"):
        optimizer.nothing  # noqa: B018
    # GradScaler would leave the gradients scaled, for the transforms to see.
    for name in ("grad_scale", "found_inf", "_step_supports_amp_scaling"):
        assert not getattr(optimizer, name, None)


def test_methods_through_two_layers():
    """An optimizer around an optimizer around a schedule-free one."""
    inner = Chain(rc.sign(), params=[leaf(3)], InnerOpt=ScheduleFree, lr=0.1)
    outer = Chain(rc.scale(2.0), InnerOpt=inner)
    outer.eval()
    assert inner.inner_opt.mode == "eval"
    give(parameters(outer), [1.0])
    outer.step()
