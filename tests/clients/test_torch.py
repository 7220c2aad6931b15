"""torch's own optimizers, with a chain of no links in the place of each class.

Every configuration of the optimizer database that torch tests itself with; the reference is the
class.
"""

import copy
import functools
import io
import pickle
from collections import OrderedDict

import pytest
import torch
from torch.testing._internal.common_optimizers import (
    OptimizerErrorEnum,
    _get_optim_inputs_including_global_cliquey_kwargs,
    optim_db,
)

from rai_chain.optim import ChainedParamTransformingOptimizer

OURS = ("param_ndim", "grad_scale", "grad_bias")  # the keys that the adapter adds
BY_NAME = {info.optim_cls.__name__: info for info in optim_db}
every_kind = pytest.mark.parametrize("name", BY_NAME)


def null(kind):
    return functools.partial(ChainedParamTransformingOptimizer, InnerOpt=kind)


def inputs(info, dtype=torch.float32):
    every = _get_optim_inputs_including_global_cliquey_kwargs("cpu", dtype, info)
    return [copy.deepcopy(one.kwargs) for one in every if not one.kwargs.get("differentiable")]


def parameters(info, dtype=torch.float32, shapes=((4, 3), (3,))):
    if info.optim_cls is torch.optim.Muon:
        shapes = ((4, 3), (2, 5))
    made = torch.Generator().manual_seed(0)
    return [torch.randn(s, dtype=dtype, generator=made).requires_grad_() for s in shapes]


def closure_of(params, optimizer, sparse):
    def closure():
        optimizer.zero_grad()
        loss = sum((p * p.conj()).real.sum() + p.real.sum() for p in params)
        loss.backward()
        if sparse:
            for p in params:
                p.grad = p.grad.to_sparse()
        return loss

    return closure


def train(info, params, optimizer, steps=4, sparse=None):
    sparse = info.only_supports_sparse_grads if sparse is None else sparse
    closure = closure_of(params, optimizer, sparse)
    for _ in range(steps):
        if info.step_requires_closure:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
    return [p.detach() for p in params]


def equal(found, expected):
    if isinstance(expected, torch.Tensor):
        same = found.dtype == expected.dtype and found.layout == expected.layout
        return same and torch.equal(found.to_dense(), expected.to_dense())
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        return all(equal(found[k], expected[k]) for k in expected)
    if isinstance(expected, (list, tuple)):
        return len(found) == len(expected) and all(map(equal, found, expected))
    return found == expected


def kinds(info):
    return info.optim_cls, null(info.optim_cls)


def outcome(info, kwargs, dtype, make, sparse=None):
    """Parameters and state after training, or what was raised."""
    try:
        params = parameters(info, dtype)
        optimizer = make(params, **copy.deepcopy(kwargs))
        return train(info, params, optimizer, sparse=sparse), without_ours(optimizer.state_dict())
    except (RuntimeError, ValueError) as error:
        return type(error), str(error)


def pair(info, kwargs=None, dtype=torch.float32, **more):
    """(params, optimizer) of torch's class, and of the chain around it."""
    kwargs = inputs(info)[0] if kwargs is None else kwargs
    rows = []
    for make in (info.optim_cls, null(info.optim_cls)):
        params = parameters(info, dtype)
        rows.append((params, make(params, **copy.deepcopy(kwargs), **more)))
    return rows


def without_ours(saved):
    groups = [{k: v for k, v in g.items() if k not in OURS} for g in saved["param_groups"]]
    return {"state": saved["state"], "param_groups": groups}


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_the_same_bits_in_every_configuration(name, dtype):
    info = BY_NAME[name]
    for kwargs in inputs(info, dtype):
        torchs, ours = (outcome(info, kwargs, dtype, make) for make in kinds(info))
        if torchs[0] is ValueError:  # which is named before torch's message
            assert ours[0] is ValueError and torchs[1] in ours[1]
        else:
            assert equal(ours, torchs), kwargs


@pytest.mark.parametrize("name", [n for n, info in BY_NAME.items() if info.supports_sparse])
def test_the_same_bits_with_sparse_gradients(name):
    info = BY_NAME[name]
    for kwargs in inputs(info):
        torchs, ours = (outcome(info, kwargs, torch.float32, make, True) for make in kinds(info))
        assert equal(ours, torchs), kwargs


OUR_WORDS = {  # what is said before torch is asked, as it names the argument
    "params argument given to the optimizer should be an iterable of Tensors or dicts": (
        "`params` must be a list of parameters"
    ),
    "Tensor lr must be 1-element": "`lr` must be one number",
}


@every_kind
@pytest.mark.filterwarnings("error")
def test_the_same_errors(name):
    info = BY_NAME[name]
    for dtype in (torch.float32, torch.complex64):
        for error in info.optim_error_inputs_func("cpu", dtype):
            given = error.optimizer_error_input
            params = parameters(info) if given.params is None else copy.deepcopy(given.params)
            if error.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR:
                said = OUR_WORDS.get(error.error_regex, error.error_regex)
                with pytest.raises(error.error_type, match=said):
                    null(info.optim_cls)(params=params, **given.kwargs)
            else:
                optimizer = null(info.optim_cls)(params=params, **given.kwargs)
                with pytest.raises(error.error_type, match=error.error_regex):
                    optimizer.step()


@every_kind
@pytest.mark.parametrize("way", ["to ours", "to torch", "deepcopy", "pickle", "file"])
def test_saved_and_gone_on(name, way):
    info = BY_NAME[name]
    if info.optim_cls is torch.optim.LBFGS and way in ("deepcopy", "pickle"):
        with pytest.raises(AttributeError, match="_params"):  # torch's own does not go on either
            p, torchs = copy.deepcopy(pair(info)[0])
            train(info, p, torchs)
        return
    for kwargs in inputs(info):
        (p, torchs), (q, ours) = pair(info, kwargs)
        train(info, p, torchs)
        train(info, q, ours)
        if way in ("deepcopy", "pickle"):
            copied = copy.deepcopy((q, ours)) if way == "deepcopy" else None
            q, ours = copied or pickle.loads(pickle.dumps((q, ours)))
        else:
            source = torchs if way == "to ours" else ours
            target = info.optim_cls if way == "to torch" else null(info.optim_cls)
            values, q = q, parameters(info)
            with torch.no_grad():
                for a, b in zip(q, values, strict=True):
                    a.copy_(b)
            file = io.BytesIO()
            torch.save(source.state_dict(), file)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
            ours = target(q, **copy.deepcopy(kwargs))
            ours.load_state_dict(saved)
        assert equal(train(info, q, ours), train(info, p, torchs)), kwargs


@every_kind
def test_older_checkpoints(name):
    """Without the flags that came later, and with steps that are numbers.

    What a checkpoint lacks keeps its value here; in torch's it gets torch's default, so that a
    user's `maximize=True` is lost.
    """
    info = BY_NAME[name]
    for kwargs in inputs(info):
        rows = pair(info, kwargs)
        for p, optimizer in rows:
            train(info, p, optimizer)
            saved = copy.deepcopy(optimizer.state_dict())
            for group in saved["param_groups"] if optimizer is rows[1][1] else ():
                for flag in info.not_og_supported_flags:
                    group.pop(flag, None)
            for own in saved["state"].values():
                if isinstance(own, dict) and isinstance(own.get("step"), torch.Tensor):
                    own["step"] = own["step"].item()
            optimizer.load_state_dict(saved)
        (p, torchs), (q, ours) = rows
        assert equal(train(info, q, ours), train(info, p, torchs)), kwargs


@every_kind
def test_param_groups_names_and_schedulers(name):
    info = BY_NAME[name]
    for named in (False, True):
        for make in info.scheduler_inputs:
            ends = []
            for kind in (info.optim_cls, null(info.optim_cls)):
                params = parameters(info)
                given = [(f"p{i}", p) for i, p in enumerate(params)] if named else params
                groups = [{"params": [given[0]], "lr": 0.02}, {"params": [given[1]]}]
                if not info.supports_param_groups:
                    groups = given
                optimizer = kind(groups, lr=0.01)
                schedulers = [one(optimizer) for one in make]
                for _ in range(12):
                    train(info, params, optimizer, steps=1)
                    for one in schedulers:
                        plateau = isinstance(one, torch.optim.lr_scheduler.ReduceLROnPlateau)
                        one.step(1.0) if plateau else one.step()
                ends.append([p.detach() for p in params])
                ends.append([group.get("param_names") for group in optimizer.param_groups])
            assert equal(ends[2:], ends[:2])


@every_kind
def test_what_has_no_gradient_stays_and_gradients_are_not_written(name):
    info = BY_NAME[name]
    for kwargs in inputs(info):
        (_, torchs), (q, ours) = pair(info, kwargs)
        before = [p.detach().clone() for p in q]
        if not info.step_requires_closure:
            ours.step()
            assert equal([p.detach() for p in q], before)
            assert len(ours.state) == len(torchs.state)
        closure_of(q, ours, info.only_supports_sparse_grads)()
        kept = [p.grad for p in q]
        values = [p.grad.clone() for p in q]
        if info.step_requires_closure:
            continue
        ours.step()
        assert all(p.grad is g for p, g in zip(q, kept, strict=True))
        assert all(
            torch.equal(g.to_dense(), v.to_dense()) for g, v in zip(kept, values, strict=True)
        )


@every_kind
def test_hooks_as_torch_calls_them(name):
    info = BY_NAME[name]
    rows = []
    for p, optimizer in pair(info):
        seen = []

        def note(what, seen=seen, optimizer=optimizer):
            def hook(own, *args):
                assert own is optimizer
                seen.append((what, len(args)))

            return hook

        optimizer.register_step_pre_hook(note("before"))
        optimizer.register_step_post_hook(note("after"))
        optimizer.register_state_dict_pre_hook(note("before saving"))
        optimizer.register_state_dict_post_hook(note("saved"))
        optimizer.register_load_state_dict_pre_hook(note("before loading"))
        optimizer.register_load_state_dict_post_hook(note("loaded"))
        train(info, p, optimizer, steps=2)
        optimizer.load_state_dict(optimizer.state_dict())
        rows.append(seen)
    assert rows[1] == rows[0]


DIFFERENTIABLE = [n for n, info in BY_NAME.items() if "differentiable" in info.supported_impls]


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_derivatives_where_torch_has_them(name):
    info = BY_NAME[name]
    generator = torch.Generator().manual_seed(1)
    shape = (2, 3) if info.optim_cls is torch.optim.Muon else (5,)
    args = [
        torch.rand(shape, dtype=torch.float64, generator=generator).requires_grad_()
        for _ in range(2)
    ]
    for kwargs in inputs(info, torch.float64)[:3]:
        own = kwargs.keys() - {"foreach", "fused", "differentiable"}
        kwargs = {k: v for k, v in kwargs.items() if k in own}

        def step(start, grad, kind, kwargs=kwargs):
            p = start.clone()
            p.grad = grad
            kind([p], **copy.deepcopy(kwargs), differentiable=True).step()
            return p

        jacobians = [
            torch.autograd.functional.jacobian(functools.partial(step, kind=kind), tuple(args))
            for kind in (info.optim_cls, null(info.optim_cls))
        ]
        assert equal(jacobians[1], jacobians[0]), kwargs


REFUSED = {
    "twice": lambda p: [p, p],
    "in two groups": lambda p: [{"params": [p]}, {"params": [p]}],
    "no leaf": lambda p: [p * 2],
    "a tensor": lambda p: p,
    "none": lambda p: [],
    "no tensor": lambda p: [3],
    "a set": lambda p: [{"params": {p}}],
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_torch_refuses_is_refused(what):
    for kind in (torch.optim.SGD, null(torch.optim.SGD)):
        p = torch.ones(3, requires_grad=True)
        call = functools.partial(kind, params=REFUSED[what](p), lr=0.1)
        if what == "twice":
            with pytest.warns(UserWarning, match="duplicate"):
                call()
            continue
        with pytest.raises((TypeError, ValueError)):
            call()


def test_state_may_be_an_ordered_dict():
    info = BY_NAME["Adam"]
    params = [parameters(info) for _ in range(2)]
    saved, loaded = (null(info.optim_cls)(p, lr=0.1) for p in params)
    train(info, params[0], saved, steps=2)
    loaded.load_state_dict(OrderedDict(saved.state_dict()))
    assert equal(loaded.state_dict(), saved.state_dict())
