"""A step in one native pass has the bits of torch's own optimizer on the transformed gradient."""

import copy
import itertools

import pytest
import torch
from helpers import identical
from torch import optim
from torch.utils._python_dispatch import TorchDispatchMode

import rai_chain as rc
from rai_chain.kernels import native
from rai_chain.optim import ChainedParamTransformingOptimizer
from rai_chain.optim.fast import onepass

SIZES = (*range(1, 18), *range(510, 520), 1000, 40_003)  # every remainder of 8
THERE = native.library is not None and onepass.KNOWN
SGD = [
    {"momentum": momentum, "dampening": dampening, "nesterov": nesterov}
    for momentum in (0.0, 0.9, 0.37)
    for dampening, nesterov in ((0.0, False), (0.1, False), (0.0, True))
    if momentum or not (dampening or nesterov)
]
ADAM = [
    {"betas": betas, "amsgrad": amsgrad}
    for betas in ((0.9, 0.999), (0.4, 0.95))
    for amsgrad in (False, True)
]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def taken(monkeypatch):
    """What each step said: whether it was taken in one pass."""
    said, real = [], onepass.one_pass
    taking = "rai_chain.optim.fast.elementwise.one_pass"
    monkeypatch.setattr(taking, lambda *a: said.append(real(*a)) or said[-1])
    return said


def normal(seed, sizes=SIZES):
    """Numbers of many magnitudes."""
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(n, generator=g) * torch.randn(n, generator=g).exp() for n in sizes]


def transformed(grad):
    return grad.clamp(-1.0, 1.5).mul(0.5).add(0.01)


def pair(kind, sizes=SIZES, **options):
    """An optimizer with three links, and torch's own, on equal parameters."""
    ours, theirs = ([p.requires_grad_() for p in normal(0, sizes)] for _ in range(2))
    links = rc.clamp(-1.0, 1.5), rc.scale(0.5), rc.bias(0.01)
    options = {"lr": 0.0173, **options}
    optimizer = ChainedParamTransformingOptimizer(*links, params=ours, InnerOpt=kind, **options)
    return optimizer, kind(theirs, **options)


def check_steps(optimizer, reference, grads, transform=transformed):
    """Step both, torch's own on transformed gradients, and compare all that is there then."""
    ours, theirs = (o.param_groups[0]["params"] for o in (optimizer, reference))
    for row in grads:
        for p, q, grad in zip(ours, theirs, row, strict=True):
            p.grad = None if grad is None else grad.clone()
            q.grad = None if grad is None else transform(grad.clone())
        optimizer.step()
        reference.step()
        for p, q in zip(ours, theirs, strict=True):
            assert identical(p.detach(), q.detach())
            assert (p.grad is None and q.grad is None) or identical(p.grad, q.grad)
            assert identical(dict(optimizer.state.get(p, {})), dict(reference.state.get(q, {})))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, optim.AdamW])
def test_every_setting_has_torchs_bits(kind, fused, taken):
    others = itertools.product((0.0, 0.01), (False, True))
    for own, (decay, maximize) in itertools.product(SGD if kind is optim.SGD else ADAM, others):
        both = {
            "weight_decay": decay,
            "maximize": maximize,
            **own,
            **({"fused": True} if fused else {}),
        }
        taken.clear()
        special = normal(9)
        for x in special:
            x[-4:] = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0])[-x.numel() :]
        check_steps(*pair(kind, **both), [*map(normal, (1, 2, 3)), special])
        stateless = kind is optim.SGD and not own["momentum"]
        assert taken == [THERE and stateless, *[THERE] * 3], both  # torch makes the states


@pytest.mark.parametrize("kind", [optim.SGD, optim.AdamW])
def test_threads_change_no_bit(kind, taken):
    torch.set_num_threads(2)
    options = {"momentum": 0.9, "fused": True} if kind is optim.SGD else {}
    sizes = (300_001, 5, 70_007)
    check_steps(*pair(kind, sizes, **options), [normal(seed, sizes) for seed in (1, 2)])
    assert taken == [False, THERE]


LINKS = [
    [],
    [rc.clamp(clamp_min=-0.5)],
    [rc.clamp(clamp_max=1e-50)],
    [rc.clip(0.7), rc.negate()],
    [rc.scale_bias(-3, 1e-3)],
    [rc.scale(1e30), rc.clamp(-1e38, 1e38)],
    [rc.zero_nans()],
    [rc.nan_to_num()],
    [rc.nan_to_num(1.5, 2.5, -3), rc.identity()],
]


@pytest.mark.parametrize("links", LINKS, ids=str)
def test_native_code_does_what_links_do(links, taken):
    numbers = [torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e-45, -1e-40, 3e38, -3e38, 0.3, -2.0]
    grad = torch.cat([torch.tensor(numbers), *normal(1)])
    x = torch.zeros_like(grad, requires_grad=True)
    x.grad = grad.clone()
    ChainedParamTransformingOptimizer(*links, params=[x], lr=1.0).step()
    assert taken == [THERE]
    tx = rc.chain(*links)
    expected = tx.update(grad, tx.init(grad))[0]
    nan = expected.isnan()
    assert torch.equal(x.grad.isnan(), nan)
    assert torch.equal(x.grad[~nan].view(torch.int32), expected[~nan].view(torch.int32))


@rc.elementwise
def twice(grad):
    return 2 * grad


@pytest.mark.parametrize(
    "link", [rc.sign(), rc.threshold(0.1), rc.scale(torch.tensor(0.5)), twice()]
)
def test_what_cannot_be_read_goes_the_ordinary_way(link, taken):
    x = torch.zeros(9, requires_grad=True)
    x.grad = normal(1, [9])[0]
    tx = rc.chain(link)
    expected = tx.update(x.grad, tx.init(x))[0].clone()
    ChainedParamTransformingOptimizer(link, params=[x], lr=1.0).step()
    assert taken == [False]
    assert torch.equal(x.grad, expected) and torch.equal(x.detach(), -expected)


def test_a_new_value_is_read_anew(taken):
    optimizer, reference = pair(optim.SGD)
    check_steps(optimizer, reference, [normal(1)])
    optimizer.param_groups[0]["clamp_max"] = 0.1
    reference.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"] = 1
    check_steps(optimizer, reference, [normal(2)], lambda g: g.clamp(-1.0, 0.1).mul(0.5).add(0.01))
    assert taken == [THERE] * 2


class Modes(TorchDispatchMode):
    """Sees every operation."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_other_numbers_and_bits_disable_it(monkeypatch, taken):
    """Were torch's arithmetic another, the trial would say so, and torch's own step be taken."""
    monkeypatch.setattr(onepass, "_CONTRACTS", not onepass._CONTRACTS)
    for kind in (optim.SGD, optim.AdamW):
        check_steps(*pair(kind), [normal(1), normal(2)])
    monkeypatch.setattr(onepass, "KNOWN", False)
    check_steps(*pair(optim.SGD), [normal(3)])
    assert taken == [False] * 5


def hooked(optimizer):
    optimizer.inner_opt.register_step_post_hook(lambda *args: None)


def patched(optimizer):
    optimizer.inner_opt.step = copy.copy(optimizer.inner_opt.step)


def scaled(optimizer):
    optimizer.inner_opt.grad_scale = torch.tensor(1.0)
    optimizer.inner_opt.found_inf = torch.tensor(0.0)


class Ours(optim.SGD):
    """A subclass, which may do anything."""


@pytest.mark.parametrize("change", [hooked, patched])
def test_what_is_changed_goes_the_ordinary_way(change, taken):
    optimizer, reference = pair(optim.SGD)
    change(optimizer)
    check_steps(optimizer, reference, [normal(1)])
    assert taken == [False]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Ours, {}),
        (optim.SGD, {"lr": torch.tensor(0.1)}),
        (optim.SGD, {"foreach": True}),
        (optim.RMSprop, {}),
    ],
)
def test_other_optimizers_go_the_ordinary_way(kind, options, taken):
    check_steps(*pair(kind, **options), [normal(1), normal(2)])
    assert taken == [False] * 2


def test_a_scaler_and_a_mode_are_seen(taken):
    optimizer, reference = pair(optim.SGD, fused=True)
    with Modes():
        check_steps(optimizer, reference, [normal(1)])
    scaled(optimizer)
    optimizer.inner_opt.found_inf.fill_(1.0)  # torch then takes no step
    before = [p.detach().clone() for p in optimizer.param_groups[0]["params"]]
    optimizer.step()
    assert taken == [False] * 2
    assert identical(before, [p.detach() for p in optimizer.param_groups[0]["params"]])


def test_missing_gradients_and_states(taken):
    """The first step with a gradient is torch's, the others are not."""
    optimizer, reference = pair(optim.AdamW)
    rows = [normal(seed) for seed in range(5)]
    rows[0][3] = rows[1][3] = rows[3][5] = None
    rows[4] = [None] * len(SIZES)
    check_steps(optimizer, reference, rows)
    assert taken == [False, THERE, False, THERE, THERE]


def test_gradients_that_share_memory():
    memory = normal(1, [20])[0]
    for views in ((memory[:10], memory[5:15]), (memory[:10], memory[:10])):
        optimizer, reference = pair(optim.SGD, (10, 10))
        expected = [transformed(v.clone()) for v in views]
        for p, q, view, own in zip(
            *(o.param_groups[0]["params"] for o in (optimizer, reference)),
            views,
            expected,
            strict=True,
        ):
            p.grad, q.grad = view, own
        optimizer.step()
        reference.step()
        for p, q in zip(
            *(o.param_groups[0]["params"] for o in (optimizer, reference)), strict=True
        ):
            assert identical(p.detach(), q.detach()) and identical(p.grad, q.grad)


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_parameters_that_share_memory(taken):
    torch.set_num_threads(2)
    results = []
    for kind in (ChainedParamTransformingOptimizer, optim.SGD):
        memory = torch.ones(400_000)
        params = [memory[:300_000].requires_grad_(), memory[100_000:].requires_grad_()]
        for p in params:
            p.grad = torch.full_like(p, 0.1)
        arguments = {"params": params, "lr": 0.1, "weight_decay": 0.5}
        kind(**arguments).step()
        results.append(memory)
    assert torch.equal(*results)
    assert taken == [THERE]
    x = torch.ones(3, requires_grad=True)
    x.grad = torch.ones(3)
    ChainedParamTransformingOptimizer(rc.scale(0.5), params=[x, x], lr=0.1).step()
    assert torch.equal(x.grad, torch.full((3,), 0.5)) and taken == [THERE]


def test_layouts(taken):
    """Dense in any order, alike: in one pass; others as ever."""
    made = {
        "channels_last": torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "transposed": torch.ones(6, 4).T,
        "gaps": torch.ones(6, 8)[:, ::2],
    }
    for name, x in made.items():
        taken.clear()
        ours, theirs = (x.clone(memory_format=torch.preserve_format) for _ in range(2))
        if name == "gaps":
            ours, theirs = (torch.ones(6, 8)[:, ::2] for _ in range(2))
        optimizer = ChainedParamTransformingOptimizer(
            rc.scale(0.5), params=[ours.requires_grad_()], InnerOpt=optim.Adam, lr=0.1
        )
        reference = optim.Adam([theirs.requires_grad_()], lr=0.1)
        for seed in (1, 2):
            grad = torch.empty_like(ours).copy_(normal(seed, [x.numel()])[0].view(x.shape))
            check_steps(optimizer, reference, [[grad]], lambda g: g.mul(0.5))
        assert taken == [False, THERE and name != "gaps"]


def test_autograd_sees_the_step(taken):
    """What was saved of a parameter before a step cannot be used after it."""
    x = torch.ones(4, requires_grad=True)
    optimizer = ChainedParamTransformingOptimizer(rc.scale(0.5), params=[x], lr=0.1)
    loss = (x * x).sum()
    x.grad = torch.ones(4)
    optimizer.step()
    assert taken == [THERE]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype, taken):
    x, y = (torch.ones(9, dtype=dtype, requires_grad=True) for _ in range(2))
    optimizer = ChainedParamTransformingOptimizer(rc.scale(0.5), params=[x], lr=0.1)
    check_steps(
        optimizer, optim.SGD([y], lr=0.1), [[normal(1, [9])[0].to(dtype)]], lambda g: g * 0.5
    )
    assert taken == [False]


def test_a_checkpoint_goes_on_to_the_bit(taken):
    optimizer, reference = pair(optim.AdamW, amsgrad=True)
    check_steps(optimizer, reference, [normal(1), normal(2)])
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(saved)
    check_steps(optimizer, reference, [normal(3)])
    assert taken == [False, THERE, THERE]


def test_several_groups_go_one_way(taken):
    x, y = torch.ones(5, requires_grad=True), torch.ones(6, dtype=torch.float64, requires_grad=True)
    groups = [{"params": [x]}, {"params": [y], "lr": 0.2}]
    optimizer = ChainedParamTransformingOptimizer(rc.scale(0.5), params=groups, lr=0.1)
    x.grad, y.grad = torch.ones_like(x), torch.ones_like(y)
    optimizer.step()
    assert taken == [False]
    assert torch.equal(x.grad, torch.full((5,), 0.5)) and torch.equal(y.detach(), 1 - 0.2 * y.grad)
