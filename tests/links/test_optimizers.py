"""The laws of the native optimizers: torch's numbers, and everything that torch.func does."""

import functools
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap

import rai_chain
from rai_chain import chain
from rai_chain.optim import ChainedParamTransformingOptimizer
from rai_chain.optimizers import (
    adabelief,
    adadelta,
    adagrad,
    adam,
    adamax,
    adamw,
    adan,
    add_decayed_weights,
    descend_and_decay,
    lamb,
    lars,
    lion,
    nadam,
    radam,
    rmsprop,
    rprop,
    scale_by_adam,
    scale_by_amsgrad,
    scale_by_learning_rate,
    scale_by_lion,
    scale_by_rms,
    scale_by_rprop,
    scale_by_stddev,
    sgd,
    trace,
    yogi,
)

# torch's class, its options, ours
SAME: list[tuple[Any, dict[str, Any], Any, dict[str, Any]]] = [
    (torch.optim.SGD, options, sgd, options)
    for options in (
        {},
        {"weight_decay": 0.1},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.4, "weight_decay": 0.1},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "dampening": 0.4, "maximize": True, "weight_decay": 0.1},
        {"momentum": 0.0, "dampening": 0.4},
    )
]
SAME += [
    (torch.optim.RMSprop, options, rmsprop, options)
    for options in (
        {},
        {"alpha": 0.9, "eps": 1e-3, "weight_decay": 0.1, "momentum": 0.8},
        {"centered": True, "alpha": 0.9},
        {"centered": True, "momentum": 0.5, "maximize": True},
    )
]
for theirs, ours in ((torch.optim.Adam, adam), (torch.optim.AdamW, adamw)):
    SAME += [
        (theirs, {}, ours, {}),
        (
            theirs,
            {"betas": (0.7, 0.9), "eps": 1e-4},
            ours,
            {"betas": (0.7, 0.9), "eps": 1e-4},
        ),
        (
            theirs,
            {"weight_decay": 0.1, "amsgrad": True},
            ours,
            {"weight_decay": 0.1, "amsgrad": True},
        ),
        (
            theirs,
            {"weight_decay": 0.2, "maximize": True},
            ours,
            {"weight_decay": 0.2, "maximize": True},
        ),
        (theirs, {"betas": (0.0, 0.0)}, ours, {"betas": (0.0, 0.0)}),
    ]
SAME += [
    (theirs, options, ours, {**options, **own})
    for theirs, ours, options, own in (
        (torch.optim.Adagrad, adagrad, {}, {}),
        (torch.optim.Adagrad, adagrad, {"lr_decay": 0.1, "weight_decay": 0.1, "eps": 1e-3}, {}),
        (torch.optim.Adagrad, adagrad, {"initial_accumulator_value": 0.5, "maximize": True}, {}),
        (torch.optim.Adadelta, adadelta, {}, {}),
        (torch.optim.Adadelta, adadelta, {"rho": 0.7, "eps": 1e-3, "weight_decay": 0.1}, {}),
        (torch.optim.Adamax, adamax, {}, {}),
        (torch.optim.Adamax, adamax, {"eps": 1e-3, "weight_decay": 0.1, "maximize": True}, {}),
        (torch.optim.NAdam, nadam, {}, {}),
        (torch.optim.NAdam, nadam, {"momentum_decay": 0.1, "weight_decay": 0.1}, {}),
        (torch.optim.NAdam, nadam, {"weight_decay": 0.1, "decoupled_weight_decay": True}, {}),
        (torch.optim.RAdam, radam, {}, {}),
        (torch.optim.RAdam, radam, {"eps": 1e-3, "weight_decay": 0.1, "maximize": True}, {}),
        (torch.optim.RAdam, radam, {"weight_decay": 0.1, "decoupled_weight_decay": True}, {}),
        (torch.optim.Rprop, rprop, {}, {}),
    )
]
SAME += [
    (theirs, {"betas": betas}, ours, {"betas": betas})
    for theirs, ours in (
        (torch.optim.Adamax, adamax),
        (torch.optim.NAdam, nadam),
        (torch.optim.RAdam, radam),
    )
    for betas in ((0.7, 0.9), (0.5, 0.5), (0.0, 0.0))
]
SAME += [
    (
        torch.optim.Rprop,
        {"etas": (0.4, 1.5), "step_sizes": (1e-3, 0.02)},
        rprop,
        {"eta_minus": 0.4, "eta_plus": 1.5, "min_step_size": 1e-3, "max_step_size": 0.02},
    )
]

# an optimizer, and all its hyperparameters that are numbers
EACH: list[tuple[Any, dict[str, float]]] = [
    (sgd, {"lr": 0.1, "weight_decay": 0.02}),
    (sgd, {"lr": 0.1, "momentum": 0.7, "dampening": 0.3, "weight_decay": 0.02}),
    (lambda **h: sgd(nesterov=True, **h), {"lr": 0.1, "momentum": 0.7}),
    (adam, {"lr": 0.1, "beta1": 0.8, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.02}),
    (lambda **h: adam(amsgrad=True, **h), {"lr": 0.1, "beta1": 0.8, "beta2": 0.9, "eps": 1e-3}),
    (adamw, {"lr": 0.1, "beta1": 0.8, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.02}),
    (rmsprop, {"lr": 0.1, "alpha": 0.8, "eps": 1e-3, "weight_decay": 0.02, "momentum": 0.5}),
    (lambda **h: rmsprop(centered=True, **h), {"lr": 0.1, "alpha": 0.8, "eps": 1e-3}),
    (lion, {"lr": 0.1, "beta1": 0.8, "beta2": 0.9, "weight_decay": 0.02}),
    (
        adagrad,
        {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.02, "initial_accumulator_value": 0.3}
        | {"eps": 1e-3},
    ),
    (adadelta, {"lr": 0.1, "rho": 0.8, "eps": 1e-3, "weight_decay": 0.02}),
    (adamax, {"lr": 0.1, "beta1": 0.8, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.02}),
    (
        lambda **h: nadam(decoupled_weight_decay=True, **h),
        {"lr": 0.1, "beta1": 0.8, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.02}
        | {"momentum_decay": 0.1},
    ),
    (radam, {"lr": 0.1, "beta1": 0.8, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.02}),
    (
        adabelief,
        {"lr": 0.1, "beta1": 0.8, "beta2": 0.9, "eps": 1e-3, "eps_root": 1e-3}
        | {"weight_decay": 0.02},
    ),
    (yogi, {"lr": 0.1, "beta1": 0.8, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.02}),
    (
        adan,
        {"lr": 0.1, "beta1": 0.8, "beta2": 0.7, "beta3": 0.9, "eps": 1e-3, "eps_root": 1e-3}
        | {"weight_decay": 0.02},
    ),
    (lamb, {"lr": 0.1, "beta1": 0.8, "beta2": 0.9, "weight_decay": 0.02}),
    (
        lars,
        {"lr": 0.1, "weight_decay": 0.02, "trust_coefficient": 0.1, "eps": 1e-3}
        | {"momentum": 0.7},
    ),
    (
        lambda init_step_size, lr, **h: chain(
            scale_by_rprop(init_step_size, **h), scale_by_learning_rate(lr)
        ),
        {"init_step_size": 0.1, "lr": 0.5, "eta_minus": 0.4, "eta_plus": 1.3}
        | {"min_step_size": 1e-3, "max_step_size": 2.0},
    ),
]
NAMES = ["sgd", "momentum", "nesterov", "adam", "amsgrad", "adamw", "rmsprop", "centered", "lion"]
NAMES += ["adagrad", "adadelta", "adamax", "nadam", "radam", "adabelief", "yogi", "adan"]
NAMES += ["lamb", "lars", "rprop"]
# torch scripts some derivatives of forward mode, which it deprecates itself


def paired(values: dict[str, Any]) -> dict[str, Any]:
    """Numbers by name, those that are one hyperparameter together."""
    betas = tuple(v for k, v in values.items() if k in ("beta1", "beta2", "beta3"))
    rest = {k: v for k, v in values.items() if k not in ("beta1", "beta2", "beta3")}
    return {**rest, "betas": betas} if betas else rest


def of_numbers(make: Any) -> Any:
    return functools.wraps(make)(lambda **values: make(**paired(values)))


each = pytest.mark.parametrize(
    ("make", "values"), [(of_numbers(make), values) for make, values in EACH], ids=NAMES
)


def tensors(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"w": (4, 3), "b": (5,), "s": ()}
    draw = {k: torch.randn(s, dtype=torch.float64, generator=generator) for k, s in shapes.items()}
    return {k: v.to(dtype) for k, v in draw.items()}


def slope(p: Tensor, t: int) -> Tensor:
    """A gradient that depends on the parameter and on the step; element 0 of a vector has none."""
    g = 0.5 * p + torch.cos(torch.arange(p.numel(), dtype=p.dtype) + t).reshape(p.shape)
    return torch.cat([torch.zeros_like(g[:1]), g[1:]]) if p.ndim == 1 else g


def train(tx: Any, params: Any, steps: int, hyperparams: Any = None) -> Any:
    state, hyperparams = tx.init(params), hyperparams and paired(hyperparams)
    for t in range(steps):
        grads = {k: slope(p, t) for k, p in params.items()}
        params, state = tx.step(params, grads, state, hyperparams=hyperparams)
    return params


@pytest.fixture
def default_dtype() -> Iterator[None]:
    """Whatever the test turned it to, the next one finds float32."""
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("default_dtype")
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize(("theirs", "options", "ours", "own"), SAME)
def test_equals_torch_over_100_steps(
    theirs: Any, options: Any, ours: Any, own: Any, dtype: torch.dtype, bound: float
) -> None:
    torch.set_default_dtype(dtype)  # in which NAdam of torch keeps a product
    params = tensors(dtype)
    leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
    optimizer, tx = theirs(leaves.values(), lr=0.01, **options), ours(lr=0.01, **own)
    state = tx.init(params)
    for t in range(100):
        # a leaf without a gradient, at first or later, counts no step
        grads = {k: slope(p, t) for k, p in params.items()}
        grads = {
            k: None if (k, t) in {("b", 0), ("b", 1), ("w", 5)} else g for k, g in grads.items()
        }
        for k, leaf in leaves.items():
            leaf.grad = grads[k]
        optimizer.step()
        params, state = tx.step(params, grads, state)
    for k, leaf in leaves.items():
        torch.testing.assert_close(params[k], leaf.detach(), rtol=bound, atol=bound)


def test_lion_is_its_definition() -> None:
    params, m = tensors()["w"], torch.zeros(4, 3, dtype=torch.float64)
    tx = lion(lr=0.1, betas=(0.8, 0.9), weight_decay=0.2)
    state, x = tx.init(params), params
    for t in range(10):
        g = slope(params, t)
        params, state = tx.step(params, g, state)
        x = x - 0.1 * (torch.sign(0.8 * m + 0.2 * g) + 0.2 * x)
        m = 0.9 * m + 0.1 * g
        torch.testing.assert_close(params, x, rtol=1e-12, atol=1e-12)


def loss_of(make: Any, names: list[str], steps: int = 4) -> Callable[..., Tensor]:
    """The loss after some steps, as a function of the hyperparameters."""

    start = tensors()

    def loss(*values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        params = train(make(**given), start, steps)
        return torch.stack([(p**2).sum() for p in params.values()]).sum()

    return loss


@each
def test_hypergradients(make: Any, values: dict[str, float]) -> None:
    loss = loss_of(make, list(values))
    inputs = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values.values()]
    assert gradcheck(loss, inputs, check_forward_ad=True, rtol=1e-6, atol=1e-8)
    found = torch.autograd.grad(loss(*inputs), inputs, allow_unused=True, materialize_grads=True)
    functional = grad(loss, argnums=tuple(range(len(inputs))))(*(v.detach() for v in inputs))
    torch.testing.assert_close(functional, found)
    pairs = [torch.stack([v.detach(), 0.9 * v.detach()]) for v in inputs]
    together = vmap(grad(loss, argnums=tuple(range(len(inputs)))))(*pairs)
    torch.testing.assert_close(tuple(g[0] for g in together), found)


@each
def test_derivative_in_the_parameters(make: Any, values: dict[str, float]) -> None:
    def loss(w: Tensor) -> Tensor:
        return (train(make(**values), {"w": w}, 3)["w"] ** 2).sum()

    w = tensors()["w"].requires_grad_()
    assert gradcheck(loss, [w], check_forward_ad=True, rtol=1e-6, atol=1e-8)
    assert gradgradcheck(loss, [w], rtol=1e-5, atol=1e-7)


@each
def test_derivatives_are_finite_where_the_gradient_is_zero(make: Any, values: Any) -> None:
    inputs = [torch.tensor(v, requires_grad=True) for v in values.values()]
    w = torch.zeros(3, requires_grad=True)
    params = {"b": w}
    tx = make(**dict(zip(values, inputs, strict=True)))
    state = tx.init(params)
    for _ in range(3):
        params, state = tx.step(params, {"b": 0.1 * params["b"] * params["b"]}, state)
    found = torch.autograd.grad(
        params["b"].sum(), [w, *inputs], allow_unused=True, materialize_grads=True
    )
    assert all(g.isfinite().all() for g in found)


@each
def test_vmap_with_values_per_member(make: Any, values: dict[str, float]) -> None:
    factors = torch.tensor([0.5, 0.9, 1.0], dtype=torch.float64)
    own = {k: v * factors for k, v in values.items()}
    stacked = {k: torch.stack([v, v + 1, v - 1]) for k, v in tensors().items()}

    def run(params: Any, given: Any) -> Any:
        return train(make(**values), params, 5, given)

    for dtype in (torch.float64, torch.float32):
        batch = {k: v.to(dtype) for k, v in stacked.items()}
        together = vmap(run)(batch, own)
        for i in range(3):
            alone = run({k: v[i] for k, v in batch.items()}, {k: v[i] for k, v in own.items()})
            torch.testing.assert_close({k: v[i] for k, v in together.items()}, alone)


@each
def test_vmap_over_init_and_carried_state(make: Any, values: dict[str, float]) -> None:
    tx, batch = make(**values), {k: torch.stack([v, -v]) for k, v in tensors().items()}
    state, params = vmap(tx.init)(batch), batch
    for t in range(3):
        grads = {k: vmap(lambda p, t=t: slope(p, t))(p) for k, p in params.items()}
        params, state = vmap(tx.step)(params, grads, state)
    for i in range(2):
        alone = train(tx, {k: v[i] for k, v in batch.items()}, 3)
        torch.testing.assert_close({k: v[i] for k, v in params.items()}, alone)


@each
def test_one_graph_whatever_the_values(make: Any, values: dict[str, float]) -> None:
    graphs = []

    def backend(module: Any, inputs: Any) -> Any:
        graphs.append(module)
        return module.forward

    torch._dynamo.reset()
    tx, params = make(**values), tensors()
    compiled = torch.compile(tx.step, fullgraph=True, backend=backend)
    ours = theirs = (params, tx.init(params))
    for t in range(4):
        given = paired({k: torch.tensor(v * (1 - 0.1 * t)) for k, v in values.items()})
        grads = {k: slope(p, t) for k, p in ours[0].items()}
        ours = compiled(ours[0], grads, ours[1], hyperparams=given)
        theirs = tx.step(theirs[0], grads, theirs[1], hyperparams=given)
        torch.testing.assert_close(ours, theirs)
    assert len(graphs) == 1


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_stay(make: Any, values: dict[str, float], dtype: torch.dtype) -> None:
    given = {k: torch.tensor(v, dtype=torch.float64) for k, v in values.items()}
    params = tensors(dtype)
    tx = make(**given)
    before = tx.init(params)
    updates, after = tx.update(params, before, params=params)
    for old, new in ((before, after), (params, updates)):
        leaves, others = (torch.utils._pytree.tree_leaves(x) for x in (old, new))
        assert [x.dtype for x in leaves] == [x.dtype for x in others]


@each
def test_inputs_stay_and_state_is_plain(make: Any, values: dict[str, float]) -> None:
    tx, params = make(**values), tensors()
    state = tx.init(params)
    _, state = tx.step(params, params, state)
    kept = pickle.loads(pickle.dumps((params, state)))
    first = tx.step(params, params, state)
    torch.testing.assert_close((params, state), kept, rtol=0, atol=0)
    torch.save(state, file := io.BytesIO())
    file.seek(0)
    second = pickle.loads(pickle.dumps(tx)).step(
        params, params, torch.load(file, weights_only=True)
    )
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@each
def test_same_bits_in_the_optimizer(make: Any, values: dict[str, float]) -> None:
    tx, params = make(**values), [torch.ones(4, 3), torch.linspace(-1, 1, 5)]
    leaves = [p.clone().requires_grad_() for p in params]

    def optimizer() -> Any:  # the inner one adds
        own = {"params": leaves, "lr": 1.0, "maximize": True}
        return ChainedParamTransformingOptimizer(tx, **own)

    home, state = optimizer(), tx.init(params)
    for t in range(6):
        grads: list[Any] = [slope(p, t) for p in params]
        if t == 2:
            grads[1] = None
        for leaf, g in zip(leaves, grads, strict=True):
            leaf.grad = None if g is None else g.clone()
        home.step()
        params, state = tx.step(params, grads, state)
        torch.testing.assert_close([leaf.detach() for leaf in leaves], params, rtol=0, atol=0)
        if t == 3:
            saved, home = home.state_dict(), optimizer()
            home.load_state_dict(saved)


@each
def test_nan_stays_visible(make: Any, values: dict[str, float]) -> None:
    tx, params = make(**values), torch.ones(2)
    bad, _ = tx.step(params, torch.tensor([torch.nan, 1.0]), tx.init(params))
    assert bad.isnan().tolist() == [
        True,
        make.__wrapped__ in (lamb, lars),
    ]  # whose steps see the whole leaf


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (torch.optim.SGD, sgd),
        (torch.optim.Adam, adam),
        (torch.optim.AdamW, adamw),
        (torch.optim.RMSprop, rmsprop),
        (torch.optim.Adagrad, adagrad),
        (torch.optim.Adadelta, adadelta),
        (torch.optim.Adamax, adamax),
        (torch.optim.NAdam, nadam),
        (torch.optim.RAdam, radam),
    ],
)
def test_a_mask_of_the_decay_is_two_param_groups(theirs: Any, ours: Any) -> None:
    params, mask = tensors(), {"w": True, "b": False, "s": True}
    leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
    groups = [{"params": leaf, "weight_decay": 0.1 * mask[k]} for k, leaf in leaves.items()]
    optimizer, tx = theirs(groups, lr=0.01), ours(lr=0.01, weight_decay=0.1, mask=mask)
    bare, state = ours(lr=0.01, weight_decay=0.0), tx.init(params)
    alone = {"b": params["b"]}
    own = bare.init(alone)
    for t in range(20):
        grads = {k: slope(p, t) for k, p in params.items()}
        for k, leaf in leaves.items():
            leaf.grad = grads[k]
        optimizer.step()
        params, state = tx.step(params, grads, state)
        alone, own = bare.step(alone, {"b": grads["b"]}, own)
        assert torch.equal(params["b"], alone["b"])  # a decay of 0 changes no bit
    tolerance = 1e-6 if theirs is torch.optim.NAdam else 1e-12  # it keeps a product in float32
    for k, leaf in leaves.items():
        torch.testing.assert_close(params[k], leaf.detach(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("make", [adabelief, yogi, adan, lamb, lars, lion])
def test_what_the_mask_leaves_out_does_not_decay(make: Any) -> None:
    params = {k: v for k, v in tensors().items() if k != "s"}
    bare = train(make(weight_decay=0.0), params, 3)
    half = train(make(weight_decay=0.5, mask={"w": True, "b": False}), params, 3)
    full = train(make(weight_decay=0.5), params, 3)
    assert torch.equal(half["b"], bare["b"]) and torch.equal(half["w"], full["w"])
    assert not torch.equal(half["w"], bare["w"])


def test_a_decay_below_one_ulp_is_lost_as_in_torch_and_kept_by_a_chain() -> None:
    x, g = torch.full((1,), 3.0), torch.full((1,), 0.5)
    leaf = x.clone().requires_grad_()
    leaf.grad = torch.zeros(1)
    torch.optim.AdamW([leaf], lr=1e-5, weight_decay=1e-3).step()
    assert torch.equal(leaf, x)
    lost = descend_and_decay(1e-5, 1e-3).update(g, (), params=x)[0]
    assert torch.equal(lost, -1e-5 * g)
    tx = chain(add_decayed_weights(1e-3), scale_by_learning_rate(1e-5))
    torch.testing.assert_close(tx.update(g, tx.init(x), params=x)[0], -1e-5 * (g + 3e-3))


def test_a_mask_is_a_tree_of_bools() -> None:
    for mask in (lambda p: p, 1.0, {"w": 1.0}, {"w": None}):
        with pytest.raises(TypeError, match="`mask` must be bools like the params"):
            adamw(mask=mask)


def test_left_out_and_overridden() -> None:
    assert [link.name for link in sgd().links] == ["scale_by_learning_rate"]
    assert "momentum" not in sgd(momentum=0.0).hyperparams
    assert "momentum" in sgd(momentum=torch.tensor(0.0)).hyperparams
    x = torch.ones(1)
    tx = sgd(lr=0.1)
    assert tx.step(x, x, tx.init(x), hyperparams={"lr": 0.5})[0].item() == 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sgd(lr=-1.0), "`lr` must satisfy 0.0 <= lr  Got: -1.0"),
        (lambda: sgd(momentum=-0.1), "`momentum` must satisfy 0.0 <= momentum  Got: -0.1"),
        (
            lambda: sgd(nesterov=True),
            "`momentum` must satisfy 0 < momentum with nesterov  Got: 0.0",
        ),
        (
            lambda: sgd(momentum=0.5, dampening=0.1, nesterov=True),
            "`dampening` must be 0 with nesterov  Got: 0.1",
        ),
        (lambda: sgd(momentum=0.5, nesterov=1), "`nesterov` must be one of False, True  Got: 1"),
        (lambda: adam(betas=(1.0, 0.9)), "`betas` must satisfy 0.0 <= betas < 1.0  Got: 1.0"),
        (lambda: adamw(betas=(0.9, -0.1)), "`betas` must satisfy 0.0 <= betas < 1.0  Got: -0.1"),
        (lambda: adam(eps=-1e-8), "`eps` must satisfy 0.0 <= eps  Got: -1e-08"),
        (lambda: rmsprop(alpha=1.5), "`alpha` must satisfy 0.0 <= alpha <= 1.0  Got: 1.5"),
        (lambda: lion(weight_decay=-1), "`weight_decay` must satisfy 0.0 <= weight_decay  Got: -1"),
    ],
)
def test_refuses(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == message


@pytest.mark.parametrize(
    "link",
    [
        trace(),
        scale_by_adam(),
        scale_by_amsgrad(),
        scale_by_rms(),
        scale_by_stddev(),
        scale_by_lion(),
        add_decayed_weights(0.1),
        descend_and_decay(0.1, 0.1),
        scale_by_learning_rate(0.1),
    ],
)
def test_each_link_is_pure_in_place_and_takes_none(link: Any) -> None:
    params = {**tensors(), "none": None, "empty": torch.zeros(0, 2)}
    state = link.init(params)
    new, after = link.update(params, state, params=params)
    assert new["none"] is None and new["empty"].shape == (0, 2)
    own = {k: v if v is None else v.clone() for k, v in params.items()}
    inplace, same = link.update(own, state, params=params, inplace=True)
    torch.testing.assert_close((inplace, same), (new, after), rtol=0, atol=0)
    assert inplace["w"] is own["w"]


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_a_decay_below_an_ulp_is_lost_as_in_torch_and_kept_by_the_chain_of_the_docstring(name):
    """torch multiplies by ``1 - lr * weight_decay``, which is 1 in float32 here."""
    lr, decay, p, g = 1e-5, 1e-3, torch.ones(3), torch.zeros(3)
    tx = getattr(rai_chain, name)(lr, weight_decay=decay)
    q = torch.ones(3, requires_grad=True)
    q.grad = torch.zeros(3)
    torch.optim.AdamW([q], lr=lr, weight_decay=decay).step()
    assert torch.equal(tx.step(p, g, tx.init(p))[0], q) and torch.equal(q, p)
    scaled = {"adamw": rai_chain.scale_by_adam, "lion": rai_chain.scale_by_lion}[name]()
    tx = chain(scaled, rai_chain.add_decayed_weights(decay), scale_by_learning_rate(lr))
    update = tx.update(g, tx.init(p), params=p)[0]
    torch.testing.assert_close(update, torch.full((3,), -1e-8), rtol=1e-6, atol=0.0)
