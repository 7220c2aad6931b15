"""rai-toolbox's perturbations in the same process: the same seeds, the same results."""

import inspect
from functools import partial

import pytest
import rai_toolbox.perturbations as theirs
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rai_toolbox.optim import L1qFrankWolfe, L2ProjectedOptim, LinfProjectedOptim
from torch import nn
from torch.optim import SGD, Adam

import rai_chain as rc
import rai_chain.perturbations as mine

# What rai-toolbox does raises it.
pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")
both = pytest.mark.parametrize("lib", [mine, theirs], ids=["mine", "theirs"])
INITS = [name for name in theirs.__all__ if name.startswith("uniform")]


def images(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(12, 8), nn.Dropout(), nn.Tanh(), nn.Linear(8, 3)
        )


def squares(output, target):
    return (output - target) ** 2


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def same(a, b):
    return all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(a, b, strict=True))


def test_the_names_and_signatures_are_the_same():
    assert mine.__all__ == theirs.__all__
    for name in theirs.__all__:
        ours, other = getattr(mine, name), getattr(theirs, name)
        if name != "PerturbationModel":
            ours, other = (list(inspect.signature(f).parameters.values()) for f in (ours, other))
            assert [(p.name, p.kind) for p in ours] == [(p.name, p.kind) for p in other]
            for a, b in zip(ours, other, strict=True):
                assert (
                    a.default is b.default or a.default == b.default or inspect.isclass(b.default)
                )
    for module in ("init", "models", "solvers"):  # which users import from
        assert hasattr(mine, module) and hasattr(theirs, module)


# ------------------------------------------------------------------ starts


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("param_ndim", [None, -1, 1, 0, 3])
@pytest.mark.parametrize("name", INITS)
def test_the_starts_are_the_same_draws(name, param_ndim, dtype):
    a, b = (torch.zeros(4, 3, 5, dtype=dtype) for _ in range(2))
    for lib, x in ((mine, a), (theirs, b)):
        out = getattr(lib, name)(x, 0.7, param_ndim=param_ndim, generator=generator(3))
        assert out is None
    assert torch.equal(a, b) and a.any()


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    epsilon=st.floats(1e-6, 1e6),
    seed=st.integers(0, 1000),
    name=st.sampled_from(INITS),
)
def test_the_starts_are_the_same_for_any_shape(shape, epsilon, seed, name):
    a, b = torch.zeros(shape), torch.zeros(shape)
    for lib, x in ((mine, a), (theirs, b)):
        getattr(lib, name)(x, epsilon, generator=generator(seed))
    assert torch.equal(a, b)


@both
@pytest.mark.parametrize("name", INITS)
def test_the_starts_refuse_what_is_no_radius(name, lib):
    for bad, error in ((0.0, ValueError), (-1.0, ValueError), ("1", TypeError)):
        with pytest.raises(error, match="`epsilon` must"):
            getattr(lib, name)(torch.zeros(2, 3), bad)


@pytest.mark.parametrize("name", INITS)
def test_the_default_generator_is_torch_s_own(name):
    found = []
    for lib in (mine, theirs):
        x = torch.zeros(2, 3)
        with torch.random.fork_rng():
            torch.manual_seed(5)
            getattr(lib, name)(x)
        found.append(x)
    assert torch.equal(*found)


# ------------------------------------------------------------------ the model


@both
def test_the_additive_perturbation_adds_its_only_parameter(lib):
    data = images(3, 2, 2).double()
    perturb = lib.AdditivePerturbation(data)
    assert perturb.delta.dtype == torch.float64 and not perturb.delta.any()
    assert [name for name, _ in perturb.named_parameters()] == ["delta"]
    perturb.delta.data += 1
    assert torch.equal(perturb(data), data + 1)
    assert isinstance(perturb, lib.PerturbationModel)
    assert not isinstance(lambda data: data, lib.PerturbationModel)
    with pytest.raises(TypeError):
        lib.AdditivePerturbation(data, epsilon=1.0)


@both
@pytest.mark.parametrize("shape", [(), (4,), (4, 3, 2), (0, 2)])
def test_delta_may_have_fewer_dimensions(shape, lib):
    for given_as in (torch.zeros(shape), shape):
        for ndim in (None, *range(-len(shape), len(shape) + 1)):
            delta = lib.AdditivePerturbation(given_as, delta_ndim=ndim).delta
            expected = len(shape) if ndim is None else ndim % len(shape) if ndim < 0 else ndim
            assert delta.ndim == expected and delta.shape == shape[len(shape) - expected :]


@pytest.mark.parametrize("options", [{"dtype": torch.complex64}, {"device": torch.device("meta")}])
def test_delta_may_be_of_another_kind(options):
    ours, other = (
        lib.AdditivePerturbation(images(2, 2), **options).delta for lib in (mine, theirs)
    )
    assert (ours.dtype, ours.device) == (other.dtype, other.device)


def test_delta_starts_where_the_same_function_starts():
    ours, other = (
        lib.AdditivePerturbation(
            images(3, 2, 2), lib.uniform_like_l1_n_ball_, generator=generator(), epsilon=2.0
        )
        for lib in (mine, theirs)
    )
    assert torch.equal(ours.delta, other.delta) and ours.delta.any()


# ------------------------------------------------------------------ the solver

SOLVERS = {
    "sgd": {"optimizer": SGD, "lr": 0.1},
    "momentum": {"optimizer": partial(SGD, momentum=0.9), "lr": 0.1},
    "adam": {"optimizer": Adam, "lr": 0.05},
    "l2": {"optimizer": partial(L2ProjectedOptim, epsilon=0.5), "lr": 0.2},
    "linf": {"optimizer": LinfProjectedOptim, "epsilon": 0.1, "lr": 0.1},
    "frank_wolfe": {"optimizer": L1qFrankWolfe, "epsilon": 2.0, "q": 0.8, "dq": 0.0},
}
KINDS = {
    "usual": {},
    "targeted": {"targeted": True},
    "best": {"use_best": True},
    "targeted, best": {"targeted": True, "use_best": True},
    "mean": {"reduction_fn": torch.mean},
    "criterion": {"criterion": nn.CrossEntropyLoss(reduction="none", label_smoothing=0.3)},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_solver_finds_the_same(solver, kind):
    found = [
        lib.gradient_ascent(
            model=network(),
            data=images(6, 3, 4),
            target=torch.arange(6) % 3,
            steps=7,
            **SOLVERS[solver],
            **KINDS[kind],
        )
        for lib in (mine, theirs)
    ]
    assert same(*found) and not any(part.requires_grad for part in found[0])


@pytest.mark.parametrize("delta_ndim", [None, -1])
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_the_solver_finds_the_same_from_a_drawn_start(steps, delta_ndim):
    found = []
    for lib in (mine, theirs):
        init, rng = lib.uniform_like_l2_n_ball_, generator(4)
        perturb = partial(
            lib.AdditivePerturbation, init_fn=init, generator=rng, delta_ndim=delta_ndim
        )
        found.append(
            lib.random_restart(lib.gradient_ascent, 3)(
                model=network(),
                data=images(6, 3, 4),
                target=torch.arange(6) % 3,
                steps=steps,
                optimizer=SGD,
                lr=0.3,
                perturbation_model=perturb,
                reduction_fn=torch.mean,
                use_best=True,
            )
        )
    assert same(*found)


@pytest.mark.parametrize("targeted", [True, False])
@pytest.mark.parametrize("data", [2.0, [-1.0, 2.0], [[1.0, -0.5]]], ids=str)
def test_the_solver_takes_numbers_and_lists(data, targeted):
    found = [
        lib.gradient_ascent(
            model=lambda x: x,
            data=data,
            target=0.0,
            criterion=squares,
            optimizer=SGD,
            lr=0.4,
            steps=3,
            targeted=targeted,
            use_best=True,
        )
        for lib in (mine, theirs)
    ]
    assert same(*found)


def test_an_optimizer_and_a_model_that_are_made_already_are_used():
    found = []
    for lib in (mine, theirs):
        perturb = lib.AdditivePerturbation((6, 3, 4))
        optim = SGD(perturb.parameters(), lr=0.1, momentum=0.9)
        for _ in range(2):  # goes on where it was
            lib.gradient_ascent(
                model=network(),
                data=images(6, 3, 4),
                target=torch.arange(6) % 3,
                steps=3,
                optimizer=optim,
                perturbation_model=perturb,
            )
        found.append(perturb.delta.detach())
        assert perturb.delta.grad is None
    assert same(found[:1], found[1:]) and found[0].any()


def test_a_pipeline_is_an_optimizer():
    tx = rc.chain(rc.sign(), rc.scale(-0.1), rc.linf_ball(0.25))
    data = images(6, 3, 4)
    found, _ = mine.gradient_ascent(
        model=network(), data=data, target=torch.arange(6) % 3, steps=4, optimizer=tx.optimizer
    )
    assert (found - data).abs().max() == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_the_model_is_frozen_and_put_back(mode, fails):
    model = network().train(mode)
    model[2].train(not mode)
    model[1].bias.requires_grad_(False)
    before = [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]
    seen = []

    def criterion(output, target):
        seen.append((any(m.training for m in model.modules()), model[1].weight.requires_grad))
        if fails:
            raise KeyError("on purpose")
        return squares(output, target).sum(1)

    def solve():
        data, target = images(2, 3, 4), torch.zeros(2, 3)
        mine.gradient_ascent(
            model=model,
            data=data,
            target=target,
            steps=1,
            optimizer=SGD,
            lr=1.0,
            criterion=criterion,
        )

    if fails:
        with pytest.raises(KeyError):
            solve()
    else:
        solve()
    after = [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]
    assert before == after and set(seen) == {(False, False)}
    assert all(p.grad is None for p in model.parameters())


@both
@pytest.mark.parametrize("is_leaf", [True, False])
def test_data_that_require_a_gradient_get_none(is_leaf, lib):
    x = torch.tensor([2.0], requires_grad=True)
    x = x if is_leaf else 1 * x
    with torch.no_grad():
        found, _ = lib.gradient_ascent(
            model=lambda x: x**2,
            data=x,
            target=x,
            optimizer=SGD,
            steps=1,
            lr=1,
            criterion=lambda output, _: output,
            targeted=True,
        )
    assert found.item() == -2.0 and x.requires_grad and x.item() == 2.0
    assert not is_leaf or x.grad is None


class Nothing:
    pass


WRONG = {
    "model None": {"perturbation_model": None},
    "model function": {"perturbation_model": lambda x: torch.as_tensor(x)},
    "model class": {"perturbation_model": Nothing},
    "optimizer None": {"optimizer": None},
    "optimizer class": {"optimizer": Nothing, "lr": None},
    "made, for a class": {"optimizer": SGD([torch.zeros(1)], lr=1.0), "lr": None},
    "made, with arguments": {
        "optimizer": SGD([torch.zeros(1)], lr=1.0),
        "perturbation_model": theirs.AdditivePerturbation((1,)),
    },
}


@both
@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_model_or_optimizer_is_refused(case, lib):
    arguments = {"optimizer": SGD, "lr": 1.0, **WRONG[case]}
    arguments = {name: value for name, value in arguments.items() if (name, value) != ("lr", None)}
    with pytest.raises(TypeError):
        lib.gradient_ascent(
            model=lambda x: x,
            data=torch.ones(1),
            target=torch.zeros(1),
            steps=1,
            criterion=squares,
            **arguments,
        )


@both
@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(), lambda out, _: out.T.sum(0)[:2]])
def test_use_best_wants_a_loss_for_each_example(criterion, lib):
    with pytest.raises(ValueError, match=r"use_best"):
        lib.gradient_ascent(
            model=network(),
            data=images(6, 3, 4),
            target=torch.arange(6) % 3,
            steps=2,
            optimizer=SGD,
            lr=1.0,
            criterion=criterion,
            use_best=True,
        )


@both
@pytest.mark.parametrize("targeted", [True, False])
def test_restarts_keep_the_largest_loss_or_targeted_the_smallest(targeted, lib):
    count = iter(range(9))

    def solver(targeted):
        value = torch.tensor([next(count)])
        return value, value

    found, losses = lib.random_restart(solver, 5)(targeted=targeted)
    assert found.item() == losses.item() == (0 if targeted else 4)


@both
def test_restarts_are_at_least_one(lib):
    for bad, error in ((0, ValueError), (-1, ValueError), ("2", TypeError)):
        with pytest.raises(error, match="`repeats` must"):
            lib.random_restart(lib.gradient_ascent, bad)


def test_a_loss_that_is_a_number_is_better_than_nan():
    """There the first loss stays where it is NaN, as nothing is greater."""
    losses = [torch.tensor([float("nan"), 1.0]), torch.tensor([2.0, float("nan")])]
    found = {}
    for lib in (mine, theirs):
        tries = iter(losses)
        solver = lib.random_restart(lambda own: (next(own).clone(),) * 2, 2)
        found[lib] = solver(tries)[1]
    assert found[mine].tolist() == [2.0, 1.0] and found[theirs][0].isnan()
