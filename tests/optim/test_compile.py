"""`compile=True`: a graph that lives through training, or a refusal when the optimizer is made.

The graphs run without code generation, which changes no promise here and saves minutes.
"""

import warnings
from functools import partial

import pytest
import torch
from helpers import give, leaf, parameters, step, values
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters
from torch.optim import SGD, Adafactor, Adagrad, Adam, AdamW, Muon, NAdam, RMSprop
from torch.optim.lr_scheduler import OneCycleLR

import rai_chain as rc
from rai_chain.optim import ChainedParamTransformingOptimizer

Chain = ChainedParamTransformingOptimizer
COMPILE = torch.compile
# In a graph, Adam's 1 - beta2**t is float32's: off by 3e-5 of a step, which is .1 here.
ROUNDING = {"rtol": 1e-5, "atol": 2e-5}


@pytest.fixture(autouse=True)
def quick_compiler(monkeypatch):
    """Graphs are traced and guarded as ever; their operators run eagerly."""
    torch.compiler.reset()
    counters.clear()
    monkeypatch.setattr(
        torch, "compile", lambda *args, **kwargs: COMPILE(*args, **{"backend": "eager", **kwargs})
    )


def links():
    return rc.top_q(0.25), rc.clamp(-1.0, 1.0), rc.l2_ball(1.5)


def pair(*chain, kind=SGD, shapes=((3, 4), (6,)), **options):
    """A compiled optimizer and an eager one, alike."""
    return [
        Chain(
            *(chain or links()),
            params=[leaf(*shape, seed=i) for i, shape in enumerate(shapes)],
            InnerOpt=kind,
            **options,
            **more,
        )
        for more in ({"compile": True}, {})
    ]


def run(optimizers, count=3, before=lambda optimizer, time: None, missing=lambda time: ()):
    """Steps of both with the same gradients, equal to rounding each time."""
    for time in range(count):
        for optimizer in optimizers:
            before(optimizer, time)
            grads = [
                None if i in missing(time) else values(*p.shape, seed=100 * time + i)
                for i, p in enumerate(parameters(optimizer))
            ]
            step(optimizer, *grads)
        for p, q in zip(*map(parameters, optimizers), strict=True):
            torch.testing.assert_close(p, q, **ROUNDING)


def graphs():
    return counters["stats"]["unique_graphs"]


# ------------------------------------------------------------------ numbers that change

NUMBERS = {
    "SGD momentum": (SGD, {"momentum": 0.9}, "momentum"),
    "SGD weight_decay": (SGD, {"weight_decay": 0.1}, "weight_decay"),
    "SGD dampening": (SGD, {"momentum": 0.9, "dampening": 0.1}, "dampening"),
    "SGD lr": (SGD, {"momentum": 0.9}, "lr"),
    "Adam lr": (Adam, {}, "lr"),
    "Adam betas": (Adam, {}, "betas"),
    "Adam eps": (Adam, {}, "eps"),
    "AdamW betas": (AdamW, {}, "betas"),
    "AdamW weight_decay": (AdamW, {}, "weight_decay"),
    "RMSprop alpha": (RMSprop, {}, "alpha"),
    "RMSprop momentum": (RMSprop, {"momentum": 0.9}, "momentum"),
    "the chain's q": (SGD, {}, "q"),
    "the chain's epsilon": (SGD, {}, "epsilon"),
    "the optimizer's grad_scale": (SGD, {}, "grad_scale"),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_is_new_at_each_step_compiles_nothing_again(name):
    """More values than a graph may be compiled for: each enters as a tensor."""
    kind, options, key = NUMBERS[name]
    compiled, eager = pair(kind=kind, lr=0.1, **options)

    def write(optimizer, time):
        share = 0.99 ** (1 + time)
        group = optimizer.param_groups[0]
        old = 0.9 if key == "grad_scale" else eager.defaults[key]
        group[key] = (old[0] * share, *old[1:]) if key == "betas" else old * share

    run([compiled, eager], 11, write)
    assert graphs() == 1


@pytest.mark.parametrize(("kind", "key"), [(Adagrad, "lr_decay"), (NAdam, "momentum_decay")])
def test_a_rule_that_is_in_no_graph_steps_between_two(kind, key):
    """One graph before the inner step, one after, and numbers of its own compile nothing."""
    compiled, eager = pair(kind=kind, lr=0.1)

    def write(optimizer, time):
        optimizer.param_groups[0][key] = 0.1 * 0.99**time

    run([compiled, eager], 14, write)
    assert graphs() == 2


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
def test_one_cycle_with_momentum(kind):
    """The scheduler writes momentum or betas at each step."""
    options = {"momentum": 0.9} if kind is SGD else {}
    optimizers = pair(kind=kind, lr=0.1, **options)
    schedulers = [OneCycleLR(o, 0.1, total_steps=16, cycle_momentum=True) for o in optimizers]

    def advance(optimizer, time):
        if time:
            schedulers[optimizers.index(optimizer)].step()

    run(optimizers, 14, advance)
    assert graphs() == 1


def test_a_schedule_for_the_learning_rate():
    """A schedule's values are numbers that change."""
    run(pair(lr=lambda step: 0.5 / (1 + step)), 12)
    assert graphs() == 1


def test_other_gradients_missing_at_each_step():
    """More patterns of None than a graph may be compiled for."""
    shapes = [(3,)] * 4
    patterns = [tuple(i for i in range(4) if time >> i & 1) for time in range(15)]
    run(pair(shapes=shapes, lr=0.1, momentum=0.9), 15, missing=lambda time: patterns[time])


# ------------------------------------------------------------------ the ninth


def test_ten_compiled_optimizers_in_one_process():
    """Each has graphs of its own: the limit of one is not the limit of all."""
    kept = []
    for i in range(10):
        optimizers = pair(rc.clamp(-1.0, 1.0), shapes=((2 + i,),), lr=0.1)
        run(optimizers, 2)
        kept.append(optimizers)
    for optimizers in kept:
        run(optimizers, 1)


def test_ten_compiled_pipelines_in_one_process():
    """As in a search over pipelines."""
    for i in range(10):
        tx, counter = rc.chain(rc.scale(0.5), *[rc.sign()] * i), CompileCounter()
        compiled, tree = tx.compile(backend=counter), torch.ones(3)
        out, _ = compiled.update(tree, tx.init(tree))
        assert torch.equal(out, tx.update(tree, tx.init(tree))[0]) and counter.frame_count == 1


def test_ten_trees_through_one_compiled_pipeline():
    """One graph for each tree, however many there are."""
    tx, counter = rc.chain(rc.top_q(0.5), rc.scale(0.5)), CompileCounter()
    compiled = tx.compile(backend=counter)
    for _ in range(2):
        for i in range(10):
            tree = {str(k): values(2, 3, seed=k) for k in range(1 + i)}
            out, _ = compiled.update(tree, tx.init(tree))
            expected, _ = tx.update(tree, tx.init(tree))
            assert all(torch.equal(out[k], expected[k]) for k in tree)


def test_ten_shapes_through_one_compiled_optimizer():
    """Replaced parameters of other shapes, one after another."""
    compiled, eager = pair(rc.clamp(-1.0, 1.0), shapes=((3,),), lr=0.1)

    def replace(optimizer, time):
        optimizer.param_groups[0]["params"][0] = leaf(3 + time // 2)

    run([compiled, eager], 20, replace)


# ------------------------------------------------------------------ what cannot be in a graph


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (SGD, {"fused": True}),
        (Adam, {"fused": True}),
        (AdamW, {"fused": True}),
        (AdamW, {"foreach": True}),
        (Adam, {"foreach": True}),
        (SGD, {"foreach": True, "momentum": 0.9}),
        (Adam, {"amsgrad": True}),
        (RMSprop, {"centered": True, "momentum": 0.9}),
    ],
    ids=str,
)
def test_an_option_is_refused_at_once_or_works(kind, options):
    """Never a training that dies at its second step."""
    try:
        optimizers = pair(kind=kind, lr=0.1, **options)
    except ValueError as error:
        assert any(f"`{name}` must" in str(error) for name in ("compile", *options))
        return
    run(optimizers, 4)


@pytest.mark.parametrize("key", ["fused", "foreach"])
def test_an_option_in_a_group_is_refused_at_once_or_works(key):
    """Written into one param group, or given in one that is added."""
    optimizers = pair(kind=AdamW, lr=0.1)
    run(optimizers, 2)
    try:
        for i, optimizer in enumerate(optimizers):
            optimizer.add_param_group({"params": [leaf(3, seed=7)], key: True})
            assert len(optimizer.param_groups) == 2, i
    except ValueError as error:
        assert f"`{key}` must" in str(error) or "`compile` must" in str(error)
        return
    run(optimizers, 3)


@pytest.mark.parametrize("kind", [Adafactor, Muon])
def test_adafactor_and_muon_are_torchs(kind):
    """They see whole leaves, and numbers that they read on the host."""
    shapes = [(4, 6), (3, 5)]
    compiled = Chain(
        params=[leaf(*shape, seed=i) for i, shape in enumerate(shapes)],
        InnerOpt=kind,
        lr=0.1,
        compile=True,
    )
    torchs = kind([leaf(*shape, seed=i) for i, shape in enumerate(shapes)], lr=0.1)
    for time in range(5):
        for optimizer in (compiled, torchs):
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + time)
            step(optimizer, *[values(*s, seed=10 * time + i) for i, s in enumerate(shapes)])
        for p, q in zip(parameters(compiled), parameters(torchs), strict=True):
            torch.testing.assert_close(p, q, **ROUNDING)


# ------------------------------------------------------------------ parameters that change


@pytest.mark.parametrize("how", ["element", "list", "group"])
def test_a_parameter_that_was_replaced_is_stepped_and_projected(how):
    """The new one, and not the old one."""
    optimizer = Chain(rc.linf_ball(0.5), params=[leaf(3)], lr=1.0, compile=True)
    for _ in range(3):
        step(optimizer, 1.0)
    new, old = torch.full((3,), 0.25, requires_grad=True), parameters(optimizer)[0]
    group, before = optimizer.param_groups[0], old.detach().clone()
    if how == "element":
        group["params"][0] = new
    elif how == "list":
        group["params"] = [new]
    else:
        optimizer.param_groups[0] = {**group, "params": [new]}
    give([new], [0.5])
    optimizer.step()
    assert torch.equal(new, torch.full((3,), -0.25))
    give([new], [-9.0])
    optimizer.step()
    assert torch.equal(new, torch.full((3,), 0.5)) and torch.equal(old, before)


def test_a_group_that_is_added_and_one_that_is_removed():
    """Graphs follow the groups."""
    optimizers = pair(lr=0.1, momentum=0.9)
    run(optimizers, 3)
    for optimizer in optimizers:
        optimizer.add_param_group({"params": [leaf(2, 2, seed=5)], "q": 0.5, "momentum": 0.5})
    run(optimizers, 3)
    for optimizer in optimizers:
        del optimizer.param_groups[0]
    run(optimizers, 3)


def test_a_checkpoint_in_the_middle():
    """What is loaded is what the next graph steps."""
    optimizers = pair(kind=AdamW, lr=0.1)
    run(optimizers, 3)
    saved = [o.state_dict() for o in optimizers]
    others = pair(kind=AdamW, lr=0.3)
    run(others, 2)
    for other, state, optimizer in zip(others, saved, optimizers, strict=True):
        other.load_state_dict(state)
        with torch.no_grad():
            for p, q in zip(parameters(other), parameters(optimizer), strict=True):
                p.copy_(q)
    run(others, 3)


# ------------------------------------------------------------------ closures and torch.compile


def test_with_a_closure_it_steps_compiled_or_says_at_once_that_it_does_not():
    """Either graphs run or a warning or an error names the closure."""
    compiled, eager = pair(lr=0.1, momentum=0.9)
    said = []
    for time in range(4):
        for optimizer in (compiled, eager):
            params = parameters(optimizer)

            def closure(params=params, time=time):
                give(params, [values(*p.shape, seed=10 * time + i) for i, p in enumerate(params)])
                return torch.tensor(1.5)

            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    assert optimizer.step(closure) == 1.5
                except ValueError as error:
                    assert optimizer is compiled and time == 0 and "closure" in str(error)
                    return
            said += [(time, str(w.message)) for w in caught]
        for p, q in zip(*map(parameters, (compiled, eager)), strict=True):
            torch.testing.assert_close(p, q, **ROUNDING)
    assert graphs() == 1 or (len(said) == 1 and said[0][0] == 0 and "closure" in said[0][1])


@pytest.mark.parametrize(
    "make",
    [
        lambda p: Chain(*links(), params=[p], lr=0.1, momentum=0.9),
        lambda p: Chain(rc.ema(0.5), rc.adam(0.1), params=[p]),
        lambda p: Chain(*links(), params=[p], InnerOpt=AdamW, lr=0.1),
        lambda p: Chain(*links(), params=[p], lr=0.1, compile=True),
        lambda p: rc.optim.L1FrankWolfe([p], epsilon=1.0),
    ],
    ids=["SGD", "native", "AdamW", "compile=True", "class"],
)
def test_torch_compile_of_a_step_warns_of_nothing(make):
    """`torch.compile(lambda: opt.step())` is how recipes write it."""
    p, q = leaf(3, 4), leaf(3, 4)
    compiled, eager = make(p), make(q)
    quick = torch.compile(lambda: compiled.step())
    for time in range(4):
        give([p, q], [values(3, 4, seed=time)] * 2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "`torch.jit.script_method` is deprecated")
            quick()
        eager.step()
        torch.testing.assert_close(p, q, **ROUNDING)


def test_two_sizes_of_one_class_share_no_graph():
    """An instance's graph is its own, whatever was compiled before it."""
    first = pair(rc.scale(0.5), kind=partial(SGD, lr=0.1), shapes=((3,),))
    second = pair(rc.scale(0.5), kind=partial(SGD, lr=0.2), shapes=((3,),))
    for _ in range(3):
        run(first, 2)
        run(second, 2)
