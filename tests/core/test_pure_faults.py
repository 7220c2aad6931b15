"""What a function may keep, what may be missing, and what the decorators refuse."""

import math
from functools import partial

import pytest
import torch
from helpers import identical, leaf, leaves, parameters, step, steps, tensors_in, values

import rai_chain as rc
from rai_chain.optim import ChainedParamTransformingOptimizer, SignedGradientOptim

Chain = ChainedParamTransformingOptimizer

# ------------------------------------------------------------------ links that keep what they saw


def zeros_like(grad):
    return {"prev": torch.zeros_like(grad)}


def on_list(function):
    """The same function for a tree of one leaf."""

    def treewise(grads, *, state):
        out, new = function(grads[0], state=state)
        return [out], new

    def treewise_with_param(grads, *, param, state):
        out, new = function(grads[0], param=param[0], state=state)
        return [out], new

    return treewise_with_param if "param" in function.__code__.co_varnames else treewise


def previous(grad, *, state):
    """Send what came last time, keep what comes now."""
    return state["prev"] + 0.0 * grad, {"prev": grad}


def previous_view(grad, *, state):
    return state["prev"] + 0.0 * grad, {"prev": grad.view(grad.shape)}


def previous_detached(grad, *, state):
    return state["prev"] + 0.0 * grad, {"prev": grad.detach()}


def both_the_same(grad, *, state):
    """Send and keep one tensor."""
    total = state["prev"] + grad
    return total, {"prev": total}


def view_of_the_result(grad, *, state):
    total = state["prev"] + grad
    return total, {"prev": total.view(total.shape)}


def kept_state(grad, *, state):
    """Send the very tensor that is kept from before."""
    return state["prev"], {"prev": grad.clone()}


SHIFTED = (0.0, 1.0, 4.0, 9.0)  # the gradients of the step before
SUMMED = (1.0, 5.0, 14.0, 30.0)
KEEPERS = {
    "its gradient": (previous, SHIFTED),
    "a view of it": (previous_view, SHIFTED),
    "it, detached": (previous_detached, SHIFTED),
    "its result": (both_the_same, SUMMED),
    "a view of its result": (view_of_the_result, SUMMED),
    "its old state, sent": (kept_state, SHIFTED),
}
SCOPES = {
    "element": lambda f: rc.elementwise(state=zeros_like)(f),
    "row": lambda f: rc.rowwise(state=zeros_like)(f),
    "tree": lambda f: rc.treewise(state=lambda grads: zeros_like(grads[0]))(on_list(f)),
}


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", KEEPERS)
@pytest.mark.parametrize("home", ["pure", "inplace", "optimizer"])
def test_what_a_link_keeps_is_written_by_no_later_step(home, scope, name):
    """Nor by the links behind it, the inner optimizer, or the caller's next gradients."""
    function, expected = KEEPERS[name]
    tx = rc.chain(SCOPES[scope](function)(), rc.scale(-2.0))
    params, sent = [torch.zeros(2, 2, requires_grad=True)], []
    state, buffer = tx.init(params), torch.zeros(2, 2)
    optimizer = Chain(tx, params=params, lr=1.0)
    for time in range(4):
        buffer.fill_((time + 1.0) ** 2)
        if home == "optimizer":
            params[0].grad = buffer
            optimizer.step()
            sent.append(buffer[0, 0].item())
        else:
            given = [buffer if home == "inplace" else buffer.clone()]
            out, state = tx.update(given, state, inplace=home == "inplace")
            sent.append(out[0][0, 0].item())
    assert sent == [-2.0 * g for g in expected]


@pytest.mark.parametrize("scope", SCOPES)
def test_the_numbers_of_a_link_that_keeps_its_gradient(scope):
    """Gradients 1, 4, 9, 16 minus what came before: -1, -4, -9, -16 and not -1, -6, -20, -50."""

    def kept(grad, *, state):
        return grad + 0.0 * state["prev"], {"prev": grad}

    made = SCOPES[scope](kept)
    optimizer = Chain(made(), rc.scale(-1.0), params=leaves(1, 2, 2), lr=0.0)
    seen = []
    for grad in (1.0, 4.0, 9.0, 16.0):
        step(optimizer, grad)
        (p,) = parameters(optimizer)
        seen.append(p.grad[0, 0].item())
    (kept_now,) = [t for t in kept_tensors(optimizer) if t.shape == (2, 2)]
    assert seen == [-1.0, -4.0, -9.0, -16.0] and torch.equal(kept_now, torch.full((2, 2), 16.0))


def kept_tensors(optimizer):
    states = [own.get("links", {}) for own in optimizer.state.values()]
    return tensors_in([*states, *[g.get("link_states", {}) for g in optimizer.param_groups]])


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("home", ["pure", "optimizer"])
def test_a_link_that_keeps_its_parameter_keeps_its_value(scope, home):
    """The distance that was walked since the last step, with a step of -1 each time."""

    def walked(grad, *, param, state):
        return param - state["prev"] + 0.0 * grad, {"prev": param}

    tx = rc.chain(SCOPES[scope](walked)(), rc.bias(-1.0))
    p = [torch.zeros(2, 2, requires_grad=True)]
    optimizer, state, pure = tx.optimizer(p), tx.init(p), [torch.zeros(2, 2)]
    seen = []
    for _ in range(4):
        if home == "optimizer":
            step(optimizer, 0.0)
            seen.append(p[0][0, 0].item())
        else:
            pure, state = tx.step(pure, [torch.zeros(2, 2)], state)
            seen.append(pure[0][0, 0].item())
    # walks: -1, then -1 - 1 = -2, then -2 - 1 = -3, ...
    assert seen == [-1.0, -3.0, -6.0, -10.0]


def test_what_init_makes_of_the_parameter_shares_no_memory_with_it():
    """`state=lambda leaf: {"start": leaf}` is the parameter at the start, whatever comes."""

    @rc.elementwise(state=lambda leaf: {"start": leaf})
    def towards_the_start(grad, *, param, state):
        return state["start"] - param + 0.0 * grad, state

    p = torch.ones(3, requires_grad=True)
    tx = rc.chain(towards_the_start(), rc.bias(-1.0))
    optimizer = tx.optimizer([p])
    for _ in range(3):
        step(optimizer, 0.0)
        assert torch.equal(p, torch.zeros(3))  # 1 + (1 - 1) - 1; then 0 + (1 - 0) - 1
    state = tx.init(q := torch.ones(3))
    q.fill_(9.0)
    out, _ = tx.update(torch.zeros(3), state, params=torch.ones(3))
    assert torch.equal(out, torch.full((3,), -1.0))


# ------------------------------------------------------------------ None leaves

EVERYWHERE = {
    "elementwise with a state": lambda: rc.ema(0.5),
    "rowwise": lambda: rc.top_q(0.5),
    "drawing": lambda: rc.top_q(0.5, dq=0.5),
    "treewise": lambda: rc.clip_by_global_norm(1.0),
    "adam": lambda: rc.adam(0.1),
    "masked": lambda: rc.masked(rc.ema(0.5), {"a": True, "b": False}),
    "partition": lambda: rc.partition({"x": rc.ema(0.5), "y": rc.trace(0.5)}, {"a": "x", "b": "y"}),
    "apply_if_finite": lambda: rc.apply_if_finite(rc.trace(0.5), 2),
    "conditionally": lambda: rc.conditionally(rc.trace(0.5), lambda updates, step: step >= 1),
    "accumulate": lambda: rc.accumulate(rc.trace(0.5), 2),
    "error_feedback": lambda: rc.error_feedback(rc.top_q(0.5)),
    "lookahead": lambda: rc.lookahead(rc.sgd(0.1), 2),
    "record": lambda: rc.record("norm", rc.global_norm),
    "projection": lambda: rc.l2_ball(1.0),
    "from_torch": lambda: rc.from_torch(torch.optim.SGD, lr=0.1, momentum=0.5),
}


@pytest.mark.parametrize("name", EVERYWHERE)
def test_all_leaves_none_pass_and_leave_what_is_kept(name):
    """A step without any gradient is one that did not happen, to each leaf's memory."""
    tx, params = EVERYWHERE[name](), {"a": values(2, 3), "b": values(3, seed=1)}
    grads = {"a": values(2, 3, seed=2), "b": values(3, seed=3)}
    state = tx.init(params)
    _, state = tx.step(params, grads, state)
    new, after = tx.step(params, {"a": None, "b": None}, state)
    if name != "projection":
        assert identical(new, params)
    if name in ("elementwise with a state", "adam", "masked", "partition"):
        old, kept = floats(state), floats(after)
        assert len(old) == len(kept) and all(map(torch.equal, old, kept))


def floats(state):
    tensors, _ = torch.utils._pytree.tree_flatten(state)
    return [t for t in tensors if isinstance(t, torch.Tensor) and t.is_floating_point()]


@pytest.mark.parametrize("name", EVERYWHERE)
def test_a_tree_that_has_been_none_from_the_start(name):
    """`init` and `step` of nothing but None."""
    tx, nothing = EVERYWHERE[name](), {"a": None, "b": None}
    new, _ = tx.step(nothing, nothing, tx.init(nothing))
    assert new == nothing


@pytest.mark.parametrize("part", ["a", "b"])
def test_all_leaves_of_one_part_none(part):
    """The other label's part goes on; this one's state is as it was."""
    tx = rc.partition({"x": rc.trace(0.5), "y": rc.trace(0.5)}, {"a": "x", "b": "y"})
    ones = {"a": torch.ones(2), "b": torch.ones(3)}
    state = tx.init(ones)
    _, state = tx.update(ones, state)
    out, state = tx.update({**ones, part: None}, state)
    other = "b" if part == "a" else "a"
    assert out[part] is None and torch.equal(out[other], 1.5 * ones[other])
    out, _ = tx.update(ones, state)
    assert torch.equal(out[part], 1.5 * ones[part])
    assert torch.equal(out[other], 1.75 * ones[other])


def test_no_gradients_in_one_group_or_in_any():
    """In the optimizer home: torch's own skip such a step."""
    a, b = leaves(2, 3)
    optimizer = Chain(
        rc.trace(0.5), rc.top_q(0.0), params=[{"params": [a]}, {"params": [b]}], lr=1.0
    )
    step(optimizer, 1.0, None)
    step(optimizer, None, None)
    step(optimizer, 1.0, 1.0)
    assert torch.equal(a, torch.full((3,), -2.5)) and torch.equal(b, torch.full((3,), -1.0))


# ------------------------------------------------------------------ what decorators refuse

DECORATORS = [rc.elementwise, rc.rowwise, rc.treewise]


@pytest.mark.parametrize("decorator", DECORATORS)
@pytest.mark.parametrize("phase", ["param", "grad", "gradients", None, 1])
def test_a_phase_that_there_is_not_is_refused(decorator, phase):
    """A typo would make a link that never runs."""
    with pytest.raises((TypeError, ValueError), match="`phase` must"):

        @decorator(phase=phase)
        def link(x):
            return x


@pytest.mark.parametrize("state", [{"prev": torch.zeros(1)}, 3, "prev", True])
def test_a_state_that_is_no_function_is_refused(state):
    """Also a dict of tensors, which would be shared between leaves."""
    with pytest.raises(TypeError, match="`state` must"):

        @rc.elementwise(state=state)
        def link(grad, *, state):
            return grad, state


@pytest.mark.parametrize(
    "start",
    [lambda: {}, lambda leaf: torch.zeros_like(leaf), lambda leaf: {"n": 0}, lambda leaf: None],
    ids=["of nothing", "to a tensor", "to numbers", "to None"],
)
def test_a_state_function_that_does_not_make_a_dict_of_tensors_is_refused(start):
    """When the link is defined, with a message and not a raw error."""
    with pytest.raises(TypeError, match="`state` must"):

        @rc.elementwise(state=start)
        def link(grad, *, state):
            return grad, state


@pytest.mark.parametrize("decorator", DECORATORS)
@pytest.mark.parametrize("star", ["*args", "**kwargs"])
def test_a_function_with_open_arguments_is_refused(decorator, star):
    """A hyperparameter has a name."""
    function = {"*args": lambda x, *args: x, "**kwargs": lambda x, **kwargs: x}[star]
    with pytest.raises(TypeError, match=star.strip("*")):
        decorator(function)


def test_a_function_of_nothing_is_refused():
    """There is no tensor that it could see."""
    with pytest.raises(TypeError, match="link"):

        @rc.elementwise
        def link():
            return 0


@pytest.mark.parametrize("draws", ["nothing", "q", 3])
def test_draws_that_name_no_hyperparameter_are_refused(draws):
    """When the link is defined."""
    with pytest.raises((TypeError, ValueError), match="`draws` must"):

        @rc.elementwise(draws=draws)
        def link(grad, amount=1.0, *, key):
            return grad


def test_draws_without_a_key_are_refused():
    """The function must ask for the key that it draws with."""
    with pytest.raises((TypeError, ValueError), match=r"`(draws|key)` must"):

        @rc.elementwise(draws="amount")
        def link(grad, amount=1.0):
            return grad


@pytest.mark.parametrize("check", ["no", 3])
def test_a_check_that_is_no_function_is_refused(check):
    """When the link is defined."""
    with pytest.raises(TypeError, match="`check` must"):

        @rc.elementwise(check=check)
        def link(grad, amount=1.0):
            return grad


# ------------------------------------------------------------------ what factories refuse

OPTIMIZERS = ("sgd", "adam", "adamw", "lion", "rmsprop")
REFUSED = {
    "mask": lambda: rc.masked(rc.sign(), mask="no"),
    "mask of None": lambda: rc.masked(rc.sign(), mask=None),
    "mask of numbers": lambda: rc.masked(rc.sign(), mask=[0.5]).init([torch.ones(1)]),
    "predicate": lambda: rc.conditionally(rc.sign(), predicate=None),
    "predicate of a number": lambda: rc.conditionally(rc.sign(), predicate=True),
    "name": lambda: rc.record(name=None, fn=rc.global_norm),
    "name of a number": lambda: rc.record(3, rc.global_norm),
    "fn": lambda: rc.record("norm", fn="global_norm"),
    "transforms": lambda: rc.partition({}, ["a"]),
    "transforms of nothing": lambda: rc.partition(None, ["a"]),
    "labels": lambda: rc.partition({"a": rc.sign()}, labels=None),
    "seed": lambda: rc.add_noise(0.1, seed=1.5),
    "seed of text": lambda: rc.top_q(0.5, dq=0.1, seed="1"),
    "seed of a bool": lambda: rc.top_q(0.5, dq=0.1, seed=True),
    "q": lambda: rc.top_q(True),
    "grad_scale": lambda: rc.scale(False),
    "lr": lambda: rc.sgd(True),
    "dampening": lambda: rc.trace(0.9, True),
    "every_k": lambda: rc.accumulate(rc.sign(), True),
    **{
        f"maximize of {n}": partial(lambda n: getattr(rc, n)(0.1, maximize="no"), n)
        for n in OPTIMIZERS
    },
    **{
        f"maximize of 1 in {n}": partial(lambda n: getattr(rc, n)(0.1, maximize=1), n)
        for n in OPTIMIZERS
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_argument_of_a_wrong_type_is_refused_by_name(name):
    """A TypeError or ValueError that begins with the argument's name."""
    with pytest.raises((TypeError, ValueError), match=f"`{name.split()[0]}` must"):
        REFUSED[name]()


def test_traces_second_positional_argument_is_not_silently_dampening():
    """optax's order is (decay, nesterov): a bool there is refused, with a number it is torch's."""
    with pytest.raises((TypeError, ValueError), match="`dampening` must"):
        rc.trace(0.9, True)
    assert rc.trace(0.9, nesterov=True).hyperparams["nesterov"] is True


# ------------------------------------------------------------------ 0 dimensions

ROWS = {
    "top_q": lambda: rc.top_q(0.5),
    "top_q of everything": lambda: rc.top_q(1.0),
    "normalize": lambda: rc.normalize(2),
    "normalize 1": lambda: rc.normalize(1),
    "clip_by_norm": lambda: rc.clip_by_norm(0.5),
    "centralize": rc.centralize,
    "one_hot_sign": rc.one_hot_sign,
    "l1_oracle": lambda: rc.l1_oracle(2.0),
    "l2_oracle": lambda: rc.l2_oracle(2.0),
    "error_feedback": lambda: rc.error_feedback(rc.top_q(0.5)),
    "clip_by_global_norm": lambda: rc.clip_by_global_norm(0.5),
    "adam": lambda: rc.scale_by_adam(),
    "l1_ball": lambda: rc.l1_ball(0.25),
    "l2_ball": lambda: rc.l2_ball(0.25),
    "simplex": lambda: rc.simplex(1.0),
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("home", ["pure", "optimizer"])
def test_a_0_dim_parameter_is_one_row_of_one_element(name, home):
    """`logit_scale` works in every chain, beside others: as the same number in a (1, 1) tensor."""
    tx = rc.chain(ROWS[name](), *([] if "ball" in name or name == "simplex" else [rc.scale(-0.5)]))
    results = []
    for shape in ((), (1, 1)):
        params = [torch.full(shape, 2.0), leaf(2, 3).detach()]
        if home == "pure":
            state = tx.init(params)
            for time in range(2):
                grads = [torch.full(shape, 3.0 + time), values(2, 3, seed=time)]
                params, state = tx.step(params, grads, state)
        else:
            params = [p.requires_grad_() for p in params]
            optimizer = Chain(tx, params=params, lr=0.5)
            for time in range(2):
                step(optimizer, 3.0 + time, values(2, 3, seed=time))
        results.append([p.detach().flatten() for p in params])
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("ndim", [-1, None, 0])
def test_a_0_dim_parameter_with_any_param_ndim_that_it_has(ndim):
    """The default -1 included."""
    p = torch.tensor(2.0, requires_grad=True)
    step(Chain(rc.normalize(2), params=[p], lr=0.5, param_ndim=ndim), 3.0)
    assert p.item() == 1.5


def test_a_0_dim_parameter_in_a_class_of_rai_toolbox():
    """Its own `param_ndim` of -1 is no obstacle."""
    p = torch.tensor(2.0, requires_grad=True)
    step(SignedGradientOptim([p], lr=0.5), 3.0)
    assert p.item() == 1.5


# ------------------------------------------------------------------ messages


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (
            lambda: rc.clamp(0.0, 1.0).update({"m": {"w": torch.ones(2, dtype=torch.int64)}}, ()),
            "w",
        ),
        (lambda: rc.top_q(0.5, param_ndim=3).init({"m": {"w": torch.ones(2)}}), "w"),
        (lambda: broken().update({"m": {"w": torch.ones(2)}}, ()), "w"),
        (lambda: rc.scale(torch.ones(5)).update({"m": {"w": torch.ones(2)}}, ()), "w"),
        (
            lambda: rc.scale({"m": {"w": 1.0, "v": 2.0}}).update({"m": {"w": torch.ones(2)}}, ()),
            "v",
        ),
        (lambda: rc.box(0.0, 1.0).init({"m": {"w": torch.ones(2).to_sparse()}}), "w"),
    ],
    ids=["dtype", "param_ndim", "a shape that a function returns", "value", "tree", "layout"],
)
def test_a_message_names_the_leaf(call, name):
    """`['m']['w']`, or "m.w": what the caller can find."""
    with pytest.raises((TypeError, ValueError), match=rf"m(\.|'\]\['|'.*'){name}\b"):
        call()


@rc.elementwise
def broken(grad):
    return grad[:1]


def test_a_message_names_the_parameter_of_an_optimizer():
    """By its name, where the optimizer was made of named parameters."""
    named = [("first.weight", leaf(2, 3)), ("second.weight", leaf(4))]
    with pytest.raises(ValueError, match=r"second\.weight"):
        Chain(rc.top_q(0.5), params=named, param_ndim=2)
    optimizer = Chain(rc.sign(), params=named)
    steps(optimizer, 1)
    named[1][1].grad = torch.ones(4).to_sparse()
    with pytest.raises(TypeError, match=r"second\.weight"):
        optimizer.step()


def test_a_link_that_returns_another_shape_is_named_with_its_leaf_in_an_optimizer():
    """Where there are no names, the place."""
    with pytest.raises(ValueError, match=r"broken.*\[1\]|\[1\].*broken"):
        step(Chain(broken(), params=[torch.ones(1, requires_grad=True), leaf(4)]), 1.0, 1.0)


def test_infinite_and_huge_numbers_are_numbers():
    """What is refused as a bool or text is not refused as an int or a numpy number."""
    import numpy as np

    assert rc.scale(np.float64(2.0)).map(torch.ones(1)).item() == 2.0
    assert rc.clamp(clamp_max=math.inf).map(torch.ones(1)).item() == 1.0
    assert rc.top_q(1).map(torch.ones(2, 2)).count_nonzero() == 0
