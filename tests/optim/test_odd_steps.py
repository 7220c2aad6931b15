"""Tensors and numbers that one native pass does not take do what they do without native code."""

import functools

import pytest
import torch
from torch.optim import SGD, Adam

import rai_chain as rc
from rai_chain.kernels import native
from rai_chain.optim import ChainedParamTransformingOptimizer

Chain = ChainedParamTransformingOptimizer


def one(kind=SGD, *links, grad=1.0, **options):
    """A parameter of one element with a gradient, and its optimizer."""
    x = torch.ones(1, requires_grad=True)
    x.grad = torch.full((1,), grad)
    return x, Chain(*links, params=[x], InnerOpt=kind, **{"lr": 0.1, **options})


def zero_tensor():
    x, optimizer = one(SGD, rc.scale(0.5))
    x.grad = torch._efficientzerotensor(1)
    optimizer.step()
    return [x]


def signed_zeros(fused):
    x, optimizer = one(Adam, grad=-1.0, betas=(0.0, 0.9), eps=1.0, fused=fused)
    for _ in range(2):
        optimizer.step()
        with torch.no_grad():
            x.fill_(-0.0)
        x.grad = torch.full((1,), -0.0)
    return [x, *optimizer.state[x].values()]


def made_in_inference_mode():
    x, optimizer = one(SGD, rc.scale(0.5))
    with torch.inference_mode():
        x.grad = torch.ones(1)
    optimizer.step()
    return [x, x.grad]


def a_gradient_that_autograd_keeps(**options):
    x, optimizer = one(SGD, **options)
    w = torch.ones(1, requires_grad=True)
    y = (x.grad * w).sum()
    optimizer.step()
    y.backward()
    return [x, w.grad]


def versions(fused):
    x, optimizer = one(Adam, rc.scale(0.5), fused=fused)
    optimizer.step()
    every = [x, x.grad, *optimizer.state[x].values()]
    before = [t._version for t in every]
    optimizer.step()
    return [torch.tensor([t._version > v for t, v in zip(every, before, strict=True)])]


def one_count_for_two():
    params = [torch.ones(1, requires_grad=True) for _ in range(2)]
    optimizer = Chain(params=params, InnerOpt=Adam, lr=0.1)
    for sign in (1.0, -1.0):
        for p in params:
            p.grad = torch.full((1,), sign)
        optimizer.step()
        optimizer.state[params[1]]["step"] = optimizer.state[params[0]]["step"]
    return params


def a_gradient_that_is_the_buffer():
    x, optimizer = one(SGD, momentum=0.9)
    optimizer.step()
    x.grad = optimizer.state[x]["momentum_buffer"]
    optimizer.step()
    return [x]


def a_buffer_that_is_the_parameter():
    x, optimizer = one(SGD, momentum=0.9)
    optimizer.step()
    optimizer.state[x]["momentum_buffer"] = x.detach()
    optimizer.step()
    return [x]


def written_over(kind=SGD, **numbers):
    x, optimizer = one(kind, rc.scale(0.5))
    optimizer.step()
    optimizer.param_groups[0].update(numbers)
    optimizer.step()
    return [x]


def a_missing_key(kind, key):
    x, optimizer = one(kind)
    optimizer.step()
    del optimizer.param_groups[0][key]
    optimizer.step()
    return [x]


ODD = {
    "a zero tensor": zero_tensor,
    "signs of zero": lambda: signed_zeros(False),
    "signs of zero, fused": lambda: signed_zeros(True),
    "inference tensors": made_in_inference_mode,
    "a kept gradient": a_gradient_that_autograd_keeps,
    "a kept gradient, fused": lambda: a_gradient_that_autograd_keeps(fused=True),
    "versions": lambda: versions(False),
    "versions, fused": lambda: versions(True),
    "one count": one_count_for_two,
    "gradient and buffer": a_gradient_that_is_the_buffer,
    "parameter and buffer": a_buffer_that_is_the_parameter,
    "lr beyond float32": lambda: written_over(lr=1e39),
    "decay beyond float32": lambda: written_over(weight_decay=1e39),
    "beta of 1": lambda: written_over(Adam, betas=(1.0, 0.9)),
    "beta beyond 1": lambda: written_over(Adam, betas=(0.9, 1.5)),
    "three betas": lambda: written_over(Adam, betas=(0.9, 0.9, 0.9)),
    "no momentum": lambda: a_missing_key(SGD, "momentum"),
    "no eps": lambda: a_missing_key(Adam, "eps"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_tensors_and_numbers_do_what_they_do_without_native_code(name, monkeypatch):
    def outcome():
        try:
            return [x.detach().clone() for x in ODD[name]()]
        except Exception as error:
            return type(error), str(error)

    found = outcome()
    monkeypatch.setattr(native, "library", None)
    expected = outcome()
    if isinstance(expected, tuple):
        assert found == expected
    else:
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b) and torch.equal(a.signbit(), b.signbit())


@pytest.mark.parametrize("where", ["a class", "torch's class"])
def test_a_users_step_that_wraps_torchs_is_called(where, monkeypatch):
    """`functools.wraps` makes it look like torch's own."""
    calls = []

    def counted(step):
        @functools.wraps(step)
        def mine(self, closure=None):
            calls.append(self)
            return step(self, closure)

        return mine

    kind = SGD if where == "torch's class" else type("Mine", (SGD,), {})
    monkeypatch.setattr(kind, "step", counted(SGD.step))
    x, optimizer = one(kind, rc.scale(0.5))
    hooks = []
    optimizer.inner_opt.register_step_pre_hook(lambda *_: hooks.append(1))
    optimizer.step()
    assert len(calls) == len(hooks) == 1 and x.item() == pytest.approx(0.95)
