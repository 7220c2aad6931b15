"""What values must satisfy beside each other and beside the leaves, and what is warned about."""

import copy
import warnings

import pytest
import torch
from helpers import leaf, snapshot, values

import rai_chain as rc
from rai_chain.data.tree import flatten, map_leaves
from rai_chain.optim import ChainedParamTransformingOptimizer, L1qFrankWolfe, TopQGradientOptimizer

# ------------------------------------------------------------------ values beside each other

TOGETHER = {  # what is refused as numbers, with one of them as a tree
    "frank_wolfe_step": lambda a, b: rc.frank_wolfe_step(a(2.0), use_default_lr_schedule=False),
    "clamp": lambda a, b: rc.clamp(a(3.0), b(1.0)),
    "box": lambda a, b: rc.box(a(3.0), b(1.0)),
    "feasible": lambda a, b: rc.feasible(a(3.0), b(1.0)),
    "trace": lambda a, b: rc.trace(a(0.0), nesterov=True),
    "trace, dampened": lambda a, b: rc.trace(0.9, a(0.5), nesterov=True),
    "sgd": lambda a, b: rc.sgd(0.1, momentum=a(0.0), nesterov=True),
    "add_noise": lambda a, b: rc.add_noise(eta=a(0.1), std=b(0.1)),
}
plain = lambda value: value  # noqa: E731
each = pytest.mark.parametrize("name", TOGETHER)


@each
def test_values_that_do_not_fit_each_other_are_refused_leaf_by_leaf(name):
    """As plain numbers are, in the same words, with the leaf."""
    tree = lambda value: {"a": value}  # noqa: E731
    with pytest.raises((TypeError, ValueError)) as plainly:
        TOGETHER[name](plain, plain)
    for a, b in ((tree, plain), (plain, tree), (tree, tree)):
        if (a, b) == (plain, tree) and name not in ("clamp", "box", "feasible", "add_noise"):
            continue
        with pytest.raises(type(plainly.value)) as leafwise:
            TOGETHER[name](a, b)
        assert str(leafwise.value) == f"{plainly.value}  in `['a']`"


def test_the_leaf_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"`clamp_min` must satisfy.*Got: 3.0  in `\['b'\]\[0\]`"):
        rc.clamp({"a": 0.0, "b": [3.0]}, {"a": 1.0, "b": [1.0]})
    with pytest.raises(ValueError, match="`clamp_max` must have the tree structure of `clamp_min`"):
        rc.clamp({"a": 0.0}, {"b": 1.0})


def test_a_value_may_stand_for_all_leaves_below_it():
    x = {"body": {"w": torch.full((2,), 5.0), "b": [torch.full((2,), 7.0)]}, "head": torch.ones(2)}
    whole = rc.clamp(clamp_max={"body": {"w": 2.0, "b": [2.0]}, "head": 0.5}).map(x)
    upper = rc.clamp(clamp_min={"body": {"w": 1.0, "b": -1.0}, "head": 0.0})
    upper = upper.replace(clamp_max={"body": 2.0, "head": 0.5}).map(x)
    assert all(map(torch.equal, flatten(upper)[0], flatten(whole)[0]))
    with pytest.raises(ValueError, match=r"Got: 3.0  in `\['body'\]\['w'\]`"):
        rc.clamp({"body": {"w": 3.0, "b": 1.0}, "head": 0.0}, {"body": 2.0, "head": 0.5})
    for mask in ({"body": True, "head": False}, {"body": {"w": True, "b": True}, "head": False}):
        tx = rc.adamw(0.1, weight_decay=0.5, mask=mask)
        new, _ = tx.step(x, map_leaves(torch.zeros_like, x), tx.init(x))
        assert torch.equal(new["head"], x["head"]) and new["body"]["w"].tolist() == [4.75, 4.75]


def test_each_of_two_values_may_be_the_finer_one_somewhere():
    x = {"a": {"x": torch.full((2,), 5.0), "y": -torch.ones(2)}, "b": [torch.full((2,), 7.0)]}
    tx = rc.clamp({"a": {"x": -1.0, "y": 0.0}, "b": -3.0}, {"a": 1.0, "b": [2.0]})
    assert [leaf.tolist() for leaf in flatten(tx.map(x))[0]] == [[1.0, 1.0], [0.0, 0.0], [2.0, 2.0]]
    with pytest.raises(ValueError, match=r"Got: 3.0  in `\['b'\]\[0\]`"):
        rc.clamp({"a": {"x": -1.0, "y": 0.0}, "b": 3.0}, {"a": 1.0, "b": [2.0]})


def test_a_check_may_raise_an_error_of_its_own_kind():
    class OddError(ValueError):
        def __init__(self, a, b):
            super().__init__(a + b)

    def check(values):
        if values["k"] > 2:
            raise OddError("`k` must be", " small")

    @rc.elementwise(check=check)
    def times(grad, k=1.0):
        return grad * k

    with pytest.raises(ValueError, match=r"`k` must be small  in `\['b'\]`"):
        times({"a": 1.0, "b": 3.0})


def test_a_leaf_that_is_not_there_needs_no_values():
    """None stands in the values for a leaf that is None; for one that is there it is refused."""
    tx = rc.clamp(clamp_max={"a": 1.0, "b": None})
    out, _ = tx.update({"a": torch.full((2,), 3.0), "b": None}, ())
    assert out["a"].tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match=r"must be given  Got: None for both  in `\['b'\]`"):
        tx.init({"a": torch.ones(2), "b": torch.ones(2)})


def test_values_given_later_fit_each_other_too():
    """In a call, from a schedule, and in a param group, before anything is written."""
    tx, g = rc.clamp(0.0, 1.0), {"a": torch.ones(2)}
    with pytest.raises(ValueError, match="clamp_min <= clamp_max"):
        tx.update(g, tx.init(g), hyperparams={"clamp_min": {"a": 2.0}})
    moving = rc.clamp(clamp_min=lambda step: {"a": 3.0}, clamp_max=1.0)
    with pytest.raises(ValueError, match="clamp_min <= clamp_max"):
        moving.update(g, moving.init(g))
    p = leaf(2)
    optimizer = ChainedParamTransformingOptimizer(rc.clamp(0.0, 1.0), params=[("a", p)], lr=1.0)
    p.grad = torch.ones(2)
    before = snapshot(optimizer)
    optimizer.param_groups[0]["clamp_min"] = {"a": 2.0}
    with pytest.raises(ValueError, match="clamp_min <= clamp_max"):
        optimizer.step()
    optimizer.param_groups[0]["clamp_min"] = 0.0
    assert str(snapshot(optimizer)) == str(before)


# ------------------------------------------------------------------ a value for each example


@pytest.mark.parametrize("make", [rc.linf_ball, rc.l2_ball, rc.l1_ball])
@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 5), (3, 1), (3,)])
def test_one_value_for_each_row_in_links_of_elements_and_of_rows(make, shape):
    """(N,), (N, 1) and (N, 1, ...) are the same: each example as with its own number."""
    x, radii = values(*shape) * 5, torch.tensor([0.1, 1.0, 2.0])
    alone = torch.cat([make(float(r)).map(x[i : i + 1]) for i, r in enumerate(radii)])
    for given in (radii, radii.reshape(3, *[1] * (len(shape) - 1))):
        assert torch.equal(make(given).map(x), alone)
        p = x.clone().requires_grad_()
        p.grad = torch.zeros_like(p)
        ChainedParamTransformingOptimizer(make(given), params=[p], lr=1.0).step()
        assert torch.equal(p.detach(), alone)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda v: rc.linf_ball(v), "epsilon"),
        (lambda v: rc.l2_ball(1.0, center=v), "center"),
        (lambda v: rc.scale(v), "grad_scale"),
        (lambda v: rc.sgd(v), "lr"),
        (lambda v: rc.clamp(clamp_max=v), "clamp_max"),
    ],
)
def test_a_shape_that_could_mean_two_things_is_refused_with_both(make, name):
    """Beside (3, 3) a (3,) may be one for each row, or for each column; either can be said."""
    x, v = values(3, 3), torch.tensor([0.1, 1.0, 2.0])
    match = (
        rf"`{name}` must have the shape \(3, 1\), one for each row, or \(1, 3\).*Got: shape \(3,\)"
    )
    with pytest.raises(ValueError, match=match):
        make(v).init({"w": x})
    rows, columns = make(v[:, None]), make(v[None])
    assert not torch.equal(*(tx.update(x, tx.init(x), params=x)[0] for tx in (rows, columns)))
    with pytest.raises(ValueError, match=r"must have the shape \(3, 1, 1\).*or \(1, 3, 1\)"):
        make(v[:, None]).init(values(3, 3, 2))


def test_a_value_of_rows_has_one_meaning_beside_a_square():
    """A radius is one for each row whatever the shape, as there is none for a column."""
    x, radii = values(3, 3) * 5, torch.tensor([0.1, 1.0, 2.0])
    assert torch.equal(rc.l2_ball(radii).map(x), rc.l2_ball(radii[:, None]).map(x))
    assert torch.equal(rc.top_q(radii / 3).map(x), rc.top_q(radii[:, None] / 3).map(x))


def test_param_ndim_of_a_group_says_what_a_row_is_for_links_of_elements_too():
    p = torch.ones(2, 3, 5, requires_grad=True)
    p.grad = torch.ones(2, 3, 5)
    factors = torch.arange(6.0)
    optimizer = ChainedParamTransformingOptimizer(
        rc.scale(factors), params=[p], lr=1.0, param_ndim=1
    )
    optimizer.step()
    assert torch.equal(p.grad, factors.reshape(2, 3, 1).expand(2, 3, 5))


SEVEN = torch.ones(7)
MISFITS = {  # a pipeline -> the key
    "sgd": (lambda: rc.sgd(SEVEN), "lr"),
    "adam": (lambda: rc.adam(SEVEN), "lr"),
    "adam, betas": (lambda: rc.adam(0.1, betas=(SEVEN / 2, 0.9)), "betas"),
    "adamw, decay": (lambda: rc.adamw(0.1, weight_decay=SEVEN), "weight_decay"),
    "lamb": (lambda: rc.lamb(SEVEN), "lr"),
    "muon": (lambda: rc.muon(SEVEN), "lr"),
    "linf_ball": (lambda: rc.linf_ball(SEVEN), "epsilon"),
    "l2_ball": (lambda: rc.l2_ball(SEVEN), "epsilon"),
    "l2_ball, elements": (lambda: rc.l2_ball(torch.ones(3, 4)), "epsilon"),
    "top_q, elements": (lambda: rc.top_q(torch.ones(3, 4) / 2), "q"),
    "top_k, elements": (lambda: rc.top_k(torch.ones(3, 4)), "k"),
    "normalize, elements": (lambda: rc.normalize(2, torch.ones(3, 4)), "div_by_zero_eps"),
    "l1_oracle, elements": (lambda: rc.l1_oracle(torch.ones(3, 4)), "epsilon"),
    "clip_by_block_rms": (lambda: rc.clip_by_block_rms(torch.ones(3, 4)), "threshold"),
    "params_ema": (lambda: rc.params_ema(SEVEN / 2), "decay"),
    "masked": (lambda: rc.masked(rc.scale(SEVEN), {"w": True}), "grad_scale"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_misfit_names_key_leaf_and_shapes_in_both_homes(name):
    make, key = MISFITS[name]
    match = rf"(?s)`{key}` must have one value.*`\['w'\]` of shape \(3, 4\)  Got: shape "
    with pytest.raises(ValueError, match=match):
        make().init({"w": torch.ones(3, 4)})
    with pytest.raises(ValueError, match=match):
        make().optimizer([("w", torch.ones(3, 4, requires_grad=True))])


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: rc.clip_by_global_norm(SEVEN), "max_norm"),
        (lambda: rc.normalize_by_update_norm(SEVEN), "scale_factor"),
        (lambda: rc.lookahead(rc.sgd(0.1), slow_step_size=SEVEN), "slow_step_size"),
        (lambda: rc.lookahead(rc.sgd(0.1), sync_period=SEVEN), "sync_period"),
        (lambda: rc.accumulate(rc.sgd(0.1), every_k=SEVEN), "every_k"),
        (lambda: rc.apply_if_finite(rc.sgd(0.1), SEVEN), "max_consecutive_errors"),
    ],
)
def test_what_is_one_value_of_the_whole_tree_takes_no_more(make, key):
    with pytest.raises(ValueError, match=rf"`{key}` must have one value  Got: shape \(7,\)"):
        make().init({"w": torch.ones(7)})


KINDS = [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop]


@pytest.mark.parametrize("kind", KINDS)
def test_several_numbers_where_torchs_optimizer_takes_one_are_refused_before_a_write(kind):
    match = r"`lr` must be one number  Got: a tensor of shape \(7,\)"
    p = leaf(3)

    def make(**own):
        return ChainedParamTransformingOptimizer(
            rc.clamp(clamp_max=0.1), params=[p], InnerOpt=kind, **own
        )

    with pytest.raises(ValueError, match=match):
        make(lr=SEVEN)
    with pytest.raises(ValueError, match=match):
        rc.from_torch(kind, lr=SEVEN)
    optimizer = make(lr=0.1)
    with pytest.raises(ValueError, match=match):
        optimizer.add_param_group({"params": [leaf(2)], "lr": SEVEN})
    p.grad = torch.ones(3)
    optimizer.step()
    p.grad = torch.ones(3)
    before = copy.deepcopy((p.detach(), p.grad))
    for key in ("lr", "weight_decay"):
        kept = optimizer.param_groups[0][key]
        optimizer.param_groups[0][key] = SEVEN
        with pytest.raises(ValueError, match=f"`{key}` must be one number"):
            optimizer.step()
        assert torch.equal(p.detach(), before[0]) and torch.equal(p.grad, before[1])
        optimizer.param_groups[0][key] = kept
    optimizer.param_groups[0]["lr"] = torch.tensor(0.1)
    optimizer.step()
    assert not torch.equal(p.detach(), before[0])


# ------------------------------------------------------------------ a leaf of which nothing is kept


def net():
    return torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))


def test_a_selection_that_keeps_nothing_of_a_leaf_warns_when_its_state_is_made():
    """Which leaves, their rows, and what to do."""
    params = dict(net().named_parameters())
    with pytest.warns(UserWarning, match="keeps nothing of") as found:
        rc.top_q(0.9).init(params)
    (text,) = (str(w.message) for w in found)
    assert (
        "`top_q(q=0.9, dq=0.0, at_least=0)`" in text
        and "at_least=1" in text
        and "`['0.weight']` (rows of 4)" in text
    )
    assert "`['0.bias']` (rows of 1 element)" in text and "`['2.bias']`" in text
    assert "2.weight" not in text
    assert "`param_ndim=None`" in text and '`param_ndim="tree"`' in text and "`masked`" in text
    assert found[0].filename == __file__


def test_an_optimizer_warns_once_when_its_group_is_bound():
    """And not in a step, nor where a value is written, nor for its copy."""
    model = net()
    with pytest.warns(UserWarning, match=r"`\['0.bias'\]`") as found:
        optimizer = ChainedParamTransformingOptimizer(
            rc.top_q(0.9), params=model.named_parameters(), lr=0.1
        )
    assert len(found) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for q in (0.9, 0.91, 0.92):
            optimizer.param_groups[0]["q"] = q
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()
        copied = copy.deepcopy(optimizer)
        copied.load_state_dict(optimizer.state_dict())
        copied.step()


def test_a_group_that_is_added_warns_once_for_its_own():
    p = leaf(2, 20)
    optimizer = TopQGradientOptimizer([p], q=0.9, lr=0.1)
    with pytest.warns(
        UserWarning, match=r"keeps nothing of `\[0\]` \(rows of 1 element\)"
    ) as found:
        optimizer.add_param_group({"params": [leaf(5)]})
    assert len(found) == 1


def test_it_warns_where_a_value_that_is_written_keeps_nothing():
    optimizer = TopQGradientOptimizer([leaf(2, 20)], q=0.9, lr=0.1)
    optimizer.param_groups[0]["q"] = 0.99
    with pytest.warns(UserWarning, match="keeps nothing of"):
        optimizer.step()


def test_every_selection_warns_wrapped_or_in_a_class():
    params = {"w": torch.ones(3, 4)}
    for tx in (
        rc.l1q_oracle(0.9, 1.0),
        rc.error_feedback(rc.top_q(0.9)),
        rc.masked(rc.top_q(0.9), {"w": True}),
        rc.top_q({"w": 0.9}),
        rc.top_q(0.95, dq=0.05),
        rc.top_q(0.99, param_ndim="tree"),
    ):
        with pytest.warns(UserWarning, match=r"keeps nothing of `\['w'\]`"):
            tx.init(params)
    with pytest.warns(UserWarning, match="keeps nothing of"):
        L1qFrankWolfe([leaf(3)], q=0.9, epsilon=1.0)


def test_it_does_not_warn_where_something_is_kept_or_nothing_is_asked_for():
    params = {"w": torch.ones(3, 4), "b": torch.ones(10), "none": None, "e": torch.ones(0, 3)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for tx in (
            rc.top_q(0.4),
            rc.top_q(1.0),  # nothing is asked for
            rc.top_q(0.9, dq=0.6),  # it may keep something
            rc.top_q(torch.tensor(0.9)),  # a tensor is not read
            rc.top_q(lambda step: 0.9),
            rc.top_q(0.9, param_ndim=None),
            rc.top_q(0.9, param_ndim="tree"),
            rc.top_k(1),
            rc.masked(rc.top_q(0.7), {"w": True, "b": False, "none": False, "e": False}),
        ):
            tx.init(params)


def test_what_would_help_is_what_is_advised():
    """Not `None` where a leaf is short as a whole, nor the tree where that is."""
    with pytest.warns(UserWarning) as found:
        rc.top_q(0.9).init({"w": torch.ones(3, 40), "b": torch.ones(3)})
        rc.top_q(0.99).init({"b": torch.ones(3)})
    first, second = (str(w.message) for w in found)
    assert "None" not in first and '"tree"' in first
    assert "param_ndim" not in second and "`masked`" in second
