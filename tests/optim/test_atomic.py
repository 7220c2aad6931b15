"""A step that raises or is interrupted, and a checkpoint that does not fit, change nothing."""

import copy
import os
import sys
from functools import partial

import pytest
import torch
from helpers import give, identical, leaf, leaves, parameters, snapshot, step, steps, values
from torch.optim import SGD, Adam

import rai_chain as rc
from rai_chain.optim import ChainedParamTransformingOptimizer, TopQGradientOptimizer

Chain = ChainedParamTransformingOptimizer
LARGE = (1 << 19) + 8  # more than one piece of what is worked on at once


def states_and_params(optimizer):
    """All but the gradients, which a step may have transformed before the inner one raised."""
    return copy.deepcopy((optimizer.state_dict(), [p.detach() for p in parameters(optimizer)]))


def refused(call, optimizer, match):
    """Refused with a message, and nothing has changed."""
    before = snapshot(optimizer)
    with pytest.raises((TypeError, ValueError), match=match):
        call()
    assert identical(before, snapshot(optimizer))


# ------------------------------------------------------------------ interrupts


def interrupt_at(line):
    """A trace function that interrupts when the library has run so many lines."""
    folder, seen = os.path.dirname(rc.__file__), 0

    def trace(frame, event, arg):
        nonlocal seen
        if not frame.f_code.co_filename.startswith(folder):
            return None
        if event == "line":
            seen += 1
            if seen > line:
                raise KeyboardInterrupt
        return trace

    return trace


def attributes(optimizer):
    """The objects that make an optimizer: itself, the inner one, its groups and their lists."""
    owners = [optimizer, optimizer.inner_opt]
    named = [getattr(o, name) for o in owners for name in ("param_groups", "state", "defaults")]
    groups = [*optimizer.param_groups, *(group["params"] for group in optimizer.param_groups)]
    return [*map(id, [*named, *groups, *parameters(optimizer), optimizer.inner_opt])]


@pytest.mark.parametrize("size", [3, LARGE], ids=["small", "large"])
def test_an_interrupt_on_any_line_leaves_no_swapped_attribute(size):
    """One for each line that a step runs, those of every `finally` included."""
    params = [*leaves(1, size), *leaves(2, 3)]
    groups = [{"params": params[:2]}, {"params": params[2:]}]
    optimizer = Chain(rc.scale(0.5), params=groups, lr=1.0, momentum=0.5)
    step(optimizer, 1.0, 1.0, 1.0)
    before, line, finished = attributes(optimizer), 0, False
    while not finished:
        give(params, [1.0] * 3)
        old = sys.gettrace()
        sys.settrace(interrupt_at(line))
        try:
            optimizer.step()
            finished = True
        except KeyboardInterrupt:
            line += 1
        finally:
            sys.settrace(old)
        assert attributes(optimizer) == before and torch.is_grad_enabled(), (
            f"line {line} of the step"
        )
    moved = [p.detach().clone() for p in params]
    step(optimizer, 1.0, 1.0, 1.0)
    assert line > 5
    assert not any(torch.equal(p, old) for p, old in zip(params, moved, strict=True))


# ------------------------------------------------------------------ an inner step that raises


class Flaky(SGD):
    """Raises where it is told to, after the closure and before it has done anything."""

    fails = False

    def step(self, closure=None):
        if not self.fails:
            return super().step(closure)
        if closure is not None:
            closure()
        raise RuntimeError("flaky")


def stateful(params, kind):
    """Links with every kind of state around an inner optimizer."""
    return Chain(
        partial(TopQGradientOptimizer, q=0.5, dq=0.5, generator=torch.Generator().manual_seed(1)),
        rc.trace(0.5),
        rc.accumulate(rc.ema(0.5), 2),
        rc.top_q(0.3, dq=0.3),
        rc.add_noise(0.1),
        rc.clamp(clamp_max=lambda step: 3.0 - 0.1 * step),
        rc.record("norm", rc.global_norm),
        params=params,
        InnerOpt=kind,
        lr=0.1,
        momentum=0.5,
    )


def fail(self, *args):
    raise RuntimeError("flaky")


@pytest.mark.parametrize(("how", "closure"), [("step", False), ("step", True), ("hook", False)])
def test_an_inner_step_that_raises_leaves_all_states_and_may_be_redone(how, closure):
    """A redo does not advance them twice: the run ends with the bits of one without faults."""
    ends = []
    for faulty in (False, True):
        optimizer = stateful([leaf(4, 5), leaf(6, seed=1)], Flaky)
        for time in range(4):
            grads = [values(4, 5, seed=time), values(6, seed=time)]

            def gradients(optimizer=optimizer, grads=grads):
                give(parameters(optimizer), grads)
                return torch.tensor(0.0)

            if faulty and time == 2:
                before = states_and_params(optimizer)
                handle = None
                if how == "hook":
                    handle = optimizer.inner_opt.register_step_pre_hook(fail)
                else:
                    optimizer.inner_opt.fails = True
                gradients()
                with pytest.raises(RuntimeError, match="flaky"):
                    optimizer.step(gradients if closure else None)
                assert identical(before, states_and_params(optimizer))
                optimizer.inner_opt.fails = False
                if handle:
                    handle.remove()
            gradients()
            optimizer.step(gradients if closure else None)
        ends.append(states_and_params(optimizer))
    assert identical(*ends)


def test_a_hook_that_raises_leaves_the_states_of_a_large_parameter():
    """With the numbers of momentum upon momentum."""
    optimizer = Chain(rc.trace(0.5), rc.scale(2.0), params=leaves(2, LARGE), lr=1.0, momentum=0.5)
    step(optimizer, 1.0, 2.0)
    before = states_and_params(optimizer)
    handle = optimizer.inner_opt.register_step_pre_hook(fail)
    with pytest.raises(RuntimeError, match="flaky"):
        step(optimizer, 1.0, 2.0)
    assert identical(before, states_and_params(optimizer))
    handle.remove()
    step(optimizer, 1.0, 2.0)
    # Traces 1 and 1.5, doubled; momentum buffers 2 and 4.
    assert torch.equal(parameters(optimizer)[0], torch.full((LARGE,), -6.0))


def test_a_pipeline_that_steps_by_itself_and_raises_leaves_its_state():
    """The links behind the one that raises have a state too."""
    fails = []

    @rc.elementwise
    def flaky(grad):
        if fails:
            raise RuntimeError("flaky")
        return grad * 1.0

    optimizer = Chain(rc.chain(rc.trace(0.5), flaky(), rc.adam(0.1)), params=[leaf(3), leaf(4)])
    steps(optimizer, 2)
    before = states_and_params(optimizer)
    fails.append(True)
    with pytest.raises(RuntimeError, match="flaky"):
        steps(optimizer, 1)
    assert identical(before, states_and_params(optimizer))


# ------------------------------------------------------------------ values that do not fit


def two_shapes():
    return [leaf(2, 3), leaf(4)]


def test_a_tensor_that_fits_one_parameter_only_is_refused_before_the_first_gradient():
    """Two shapes, one scale: neither gradient is written."""
    params = two_shapes()
    give(params, [1.0, 1.0])
    with pytest.raises(ValueError, match="grad_scale"):
        Chain(rc.scale(torch.full((2, 3), 2.0)), params=params, lr=1.0).step()
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in params)


def test_a_tensor_that_does_not_fit_is_refused_wherever_it_enters():
    """Written into a group, in a new group, in a checkpoint: nothing changes."""
    key, wide = "scale_0.grad_scale", torch.full((2, 3), 2.0)
    optimizer = Chain(rc.scale(2.0), params=two_shapes(), InnerOpt=Adam)
    steps(optimizer, 1)
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"][0][key] = wide
    refused(lambda: optimizer.load_state_dict(state), optimizer, "grad_scale")
    new = {"params": [leaf(4)], key: wide}
    refused(lambda: optimizer.add_param_group(new), optimizer, "grad_scale")
    optimizer.param_groups[0][key] = wide
    give(parameters(optimizer), [1.0, 1.0])
    refused(optimizer.step, optimizer, "grad_scale")


BOUNDS = {
    "clamp": lambda: rc.clamp(clamp_max=1e5),
    "clamp below": lambda: rc.clamp(clamp_min=-1e5),
    "box": lambda: rc.box(-1.0, 1e5),
    "masked": lambda: rc.masked(rc.clamp(clamp_max=1e5), [False, True]),
    "schedule": lambda: rc.clamp(clamp_max=lambda step: 1e5),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_a_bound_beyond_a_dtype_is_refused_before_anything(name):
    """1e5 in float16, named with its dtype; the float32 parameter before it has not stepped."""
    params = [leaf(3), leaf(3, dtype=torch.float16)]
    before = [p.detach().clone() for p in params]
    give(params, [1.0, 1.0])
    with pytest.raises(ValueError, match=r"(?s)(1e\+?0?5|100000).*float16|float16.*(1e|100000)"):
        Chain(BOUNDS[name](), params=params, lr=1.0).step()
    assert identical(before, [p.detach() for p in params])
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in params)


def test_a_bound_that_leaves_the_dtype_later_is_refused_then():
    """A schedule's third value, and a number that is written by hand."""
    params = [leaf(3), leaf(3, dtype=torch.float16)]
    optimizer = Chain(rc.clamp(clamp_max=lambda step: 4e4 * int(step)), params=params, lr=0.0)
    step(optimizer, 1.0, 1.0)
    step(optimizer, 1.0, 1.0)
    give(params, [1.0, 1.0])
    refused(optimizer.step, optimizer, r"clamp_max.*float16")
    optimizer.param_groups[0]["clamp_max"] = 7e4
    refused(optimizer.step, optimizer, r"clamp_max.*float16")


def test_an_infinite_bound_fits_every_dtype():
    """Infinity is a value of float16."""
    p = leaf(3, dtype=torch.float16)
    step(Chain(rc.clamp(-torch.inf, torch.inf), params=[p], lr=1.0), 1.0)
    assert torch.equal(p.grad, torch.ones(3, dtype=torch.float16))


def test_a_bound_beyond_a_dtype_is_refused_by_the_pure_home():
    """The same message, before any leaf."""
    grads = [torch.ones(2), torch.ones(2, dtype=torch.float16)]
    tx = rc.clamp(clamp_max=1e5)
    with pytest.raises(ValueError, match=r"clamp_max.*float16"):
        tx.update(grads, tx.init(grads), inplace=True)


# ------------------------------------------------------------------ checkpoints


def pieces(nest, keep, new):
    """The nest with each tensor that `keep` picks replaced by `new(tensor)`."""
    if isinstance(nest, dict):
        return {k: pieces(v, keep, new) for k, v in nest.items()}
    if isinstance(nest, list):
        return [pieces(v, keep, new) for v in nest]
    return new(nest) if isinstance(nest, torch.Tensor) and keep(nest) else nest


def is_count(tensor):
    return tensor.dtype == torch.int64


def is_moment(tensor):
    return tensor.is_floating_point() and tensor.ndim > 0


def made(**options):
    options = {"InnerOpt": Adam, "lr": 0.1, **options}
    links = (rc.scale(lambda step: 1.0 + step), rc.ema(0.5), rc.trace(0.5))
    return Chain(*links, params=two_shapes(), **options)


def corrupted(optimizer, keep, new):
    """A checkpoint with other tensors in what the links keep."""
    saved = copy.deepcopy(optimizer.state_dict())
    for own in saved["state"].values():
        own["links"] = pieces(own["links"], keep, new)
    for group in saved["param_groups"]:
        group["link_states"] = pieces(group["link_states"], keep, new)
    return saved


WRONG = {
    "a count that is text": (is_count, lambda t: "3"),
    "a count that is None": (is_count, lambda t: None),
    "a count that is a list": (is_count, lambda t: [3]),
    "a count that is no whole number": (is_count, lambda t: t + 0.5),
    "a count with dimensions": (is_count, lambda t: t.expand(2).clone()),
    "int64": (is_moment, lambda t: t.to(torch.int64)),
    "bool": (is_moment, lambda t: t > 0),
    "complex": (is_moment, lambda t: t.to(torch.complex64)),
    "sparse": (is_moment, lambda t: t.to_sparse()),
    "meta": (is_moment, lambda t: t.to("meta")),
    "another shape": (is_moment, lambda t: t[None]),
    "numbers": (is_moment, lambda t: t.tolist()),
    "None": (is_moment, lambda t: None),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_checkpoint_with_a_wrong_state_is_refused_before_anything_changes(wrong):
    """Types, dtypes, layouts and devices of what the links keep."""
    saved, optimizer = made(), made()
    steps(saved, 3)
    steps(optimizer, 2)
    state = corrupted(saved, *WRONG[wrong])
    refused(lambda: optimizer.load_state_dict(state), optimizer, "must")


OTHERS = {
    "a lookahead's in an adam's": (rc.lookahead(rc.adam(0.1), 2), rc.adam(0.1)),
    "an adam's in a lookahead's": (rc.adam(0.1), rc.lookahead(rc.adam(0.1), 2)),
    "a trace's in an ema's": (rc.trace(0.5), rc.ema(0.5)),
    "adam in amsgrad": (rc.adam(0.1), rc.adam(0.1, amsgrad=True)),
    "one link's in two links'": (rc.chain(rc.ema(0.5)), rc.chain(rc.ema(0.5), rc.trace(0.5))),
    "two links' in one link's": (rc.chain(rc.ema(0.5), rc.trace(0.5)), rc.chain(rc.ema(0.5))),
    "a mask's in no mask's": (rc.masked(rc.ema(0.5), [True, True]), rc.ema(0.5)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_of_another_chain_is_refused(name):
    """The message says which link's state it is about."""
    saved, optimizer = (Chain(tx, params=two_shapes()) for tx in OTHERS[name])
    steps(saved, 2)
    steps(optimizer, 1)
    state = saved.state_dict()
    refused(lambda: optimizer.load_state_dict(state), optimizer, "_[01]")


@pytest.mark.parametrize("lost", ["of one parameter", "of all"])
def test_a_missing_link_state_is_named(lost):
    """The state of one link is gone: its name is in the message."""
    saved, optimizer = made(), made()
    steps(saved, 2)
    steps(optimizer, 1)
    state = copy.deepcopy(saved.state_dict())
    for own in [*state["state"].values()][: 1 if lost == "of one parameter" else 2]:
        own["links"] = {k: v for k, v in own["links"].items() if k != "ema_0"}
    refused(lambda: optimizer.load_state_dict(state), optimizer, "ema_0")


def test_a_checkpoint_of_a_torch_optimizer_is_refused_where_there_is_none_inside():
    """It would be kept, and never read."""
    theirs, ours = Adam([leaf(3)], lr=0.1), rc.adam(0.1).optimizer([leaf(3)])
    steps(theirs, 1)
    state = theirs.state_dict()
    refused(lambda: ours.load_state_dict(state), ours, "be of this chain.*Got: exp_avg, exp_avg_sq")


@pytest.mark.parametrize("bad", [7.0, -1.0, float("nan")])
def test_a_tensor_out_of_its_interval_in_a_checkpoint_is_refused(bad):
    """Loading reads tensors: `q = tensor(7.)` is no less wrong than `q = 7`."""
    optimizer = Chain(rc.top_q(0.5), params=two_shapes(), InnerOpt=Adam)
    steps(optimizer, 1)
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"][0]["q"] = torch.tensor(bad)
    refused(lambda: optimizer.load_state_dict(state), optimizer, "`q` must satisfy")


def test_loading_float32_into_float64_parameters_casts_as_torch_casts_its_own():
    """Moments get the dtype of their parameter, counts keep theirs."""
    single = Chain(rc.trace(0.5), params=[leaf(3)], lr=0.1)
    double = Chain(rc.trace(0.5), params=[leaf(3, dtype=torch.float64)], lr=0.1)
    torchs = [SGD([leaf(3, dtype=d)], lr=0.1, momentum=0.5) for d in (torch.float32, torch.float64)]
    for optimizer in (single, torchs[0]):
        step(optimizer, values(3))
    double.load_state_dict(single.state_dict())
    torchs[1].load_state_dict(torchs[0].state_dict())
    (own,), (theirs,) = parameters(double), parameters(torchs[1])
    kept = double.state[own]["links"]["trace_0"]["momentum_buffer"]
    assert identical(kept, torchs[1].state[theirs]["momentum_buffer"])
    for optimizer in (double, torchs[1]):
        step(optimizer, values(3, seed=1, dtype=torch.float64))
    assert torch.equal(own, theirs)


def test_a_refused_checkpoint_leaves_the_inner_optimizer_too():
    """What torch would refuse after our own checks is refused before anything as well."""
    saved, optimizer = made(), made()
    steps(saved, 2)
    steps(optimizer, 1)
    state = copy.deepcopy(saved.state_dict())
    state["param_groups"][0]["params"] = state["param_groups"][0]["params"][:1]
    refused(lambda: optimizer.load_state_dict(state), optimizer, "param")
