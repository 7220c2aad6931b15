"""rai-toolbox 0.2.1 in the same process: the same numbers where it is right, better ones elsewhere.

`mine` and `theirs` are the two modules; a test that takes `lib` holds for both.
"""

import copy
import inspect
import pickle
import warnings
from functools import partial

import pytest
import rai_toolbox.optim as theirs
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, ones, tensor
from torch.optim import SGD, Adam

import rai_chain.optim as mine

NAMES = sorted(theirs.__all__)
CHAIN = "ChainedParamTransformingOptimizer"
BASE = "ParamTransformingOptimizer"
FRANK_WOLFE = [name for name in NAMES if name.endswith("FrankWolfe")]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

# Where the arithmetic differs, relative to the values that a step subtracts, of order one:
# `renorm_` divides by norm + 1e-7, and so takes a row 1e-7 / norm too far inwards; norms are
# float64 here, and balls are rounded inwards. Everything else is equal to the bit.
TOLERANCE = dict.fromkeys(
    [
        *("L2ProjectedOptim", "LinfProjectedOptim", "BoundedSigns", "L1NormedGradientOptim"),
        *("L2NormedGradientOptim", "L1FrankWolfe", "L2FrankWolfe", "LinfFrankWolfe"),
    ],
    1e-6,
)


def step(optimizer, *args):
    with warnings.catch_warnings():  # rai-toolbox calls `Tensor.storage`, which torch deprecates
        warnings.simplefilter("ignore", UserWarning)
        return optimizer.step(*args)


# ------------------------------------------------------------------ user classes, in both


def user_classes(lib):
    """Classes as users of rai-toolbox write them: a gradient hook, a parameter hook, both."""

    class MaxNormed(getattr(lib, BASE)):
        def _pre_step_transform_(self, param, **_kwargs):
            if param.grad is not None:
                largest = param.grad.flatten(1).abs().amax(1)
                param.grad /= largest.view(-1, *[1] * (param.ndim - 1)).clamp(min=1e-20)

    class Shrunk(getattr(lib, BASE)):
        def __init__(self, params=None, InnerOpt=SGD, *, shrink=0.5, defaults=None, **kwargs):  # noqa: N803
            defaults = {} if defaults is None else defaults
            defaults.setdefault("shrink", shrink)
            super().__init__(params, InnerOpt, defaults=defaults, **kwargs)

        def _post_step_transform_(self, param, optim_group):
            param *= optim_group["shrink"]

    class TopQThenHalved(lib.TopQGradientOptimizer):
        def _pre_step_transform_(self, param, optim_group):
            super()._pre_step_transform_(param, optim_group)
            param.grad *= 0.5

        def _post_step_transform_(self, param, optim_group):
            param.clamp_(-2.0, 2.0)

    class BoundedSigns(lib.LinfProjectedOptim):
        def _post_step_transform_(self, param, optim_group):
            super()._post_step_transform_(param, optim_group=optim_group)
            param += 0.25

    class DoubledL1q(lib.L1qNormedGradientOptim):
        def _pre_step_transform_(self, param, optim_group):
            super()._pre_step_transform_(param, optim_group)
            param.grad *= 2.0

    made = (MaxNormed, Shrunk, TopQThenHalved, BoundedSigns, DoubledL1q)
    return {cls.__name__: cls for cls in made}


USER = {lib: user_classes(lib) for lib in (mine, theirs)}


def class_of(lib, name):
    return USER[lib].get(name) or getattr(lib, name)


# ------------------------------------------------------------------ what is drawn

unit = st.floats(0, 1, width=32)
scales = st.sampled_from([1.0, 1.0, -0.5, 3.0])
biases = st.sampled_from([0.0, 0.0, 0.125])
lower, upper = st.floats(-1, 0, width=16), st.floats(0.125, 1, width=16)
radii = st.floats(0.5, 3)

KEYS = {  # hyperparameter -> what it may be; each may differ between groups
    "q": unit,
    "dq": st.sampled_from([0.0, 0.25, 1.0]),
    "clamp_min": lower,
    "clamp_max": upper,
    "epsilon": radii,
    "shrink": st.floats(0.5, 1),
}
OF_CLASS = {
    BASE: [],
    "MaxNormed": [],
    "SignedGradientOptim": [],
    "L1NormedGradientOptim": [],
    "L2NormedGradientOptim": [],
    "Shrunk": ["shrink"],
    "TopQGradientOptimizer": ["q", "dq"],
    "TopQThenHalved": ["q", "dq"],
    "L1qNormedGradientOptim": ["q", "dq"],
    "DoubledL1q": ["q", "dq"],
    "ClampedGradientOptimizer": ["clamp_min", "clamp_max"],
    "ClampedParameterOptimizer": ["clamp_min", "clamp_max"],
    "L2ProjectedOptim": ["epsilon"],
    "LinfProjectedOptim": ["epsilon"],
    "BoundedSigns": ["epsilon"],
}
DRAWS = {"TopQGradientOptimizer", "TopQThenHalved", "L1qNormedGradientOptim", "DoubledL1q"}
DRAWS |= {"L1qFrankWolfe"}
MAKE_TIES = {
    "SignedGradientOptim",
    "BoundedSigns",
    "LinfProjectedOptim",
    "ClampedGradientOptimizer",
}


@st.composite
def groups(draw, keys, most_dims=4):
    """Param groups without their tensors: shapes, and values of some keys."""
    made = []
    for _ in range(draw(st.integers(1, 2))):
        shapes = st.lists(st.integers(1, 5), max_size=most_dims).map(tuple)
        shapes = draw(st.lists(shapes, min_size=1, max_size=2))
        least = min(map(len, shapes))
        ndims = st.one_of(st.none(), st.integers(-least, least))
        if most_dims == 2:  # rows of one dimension, or of a whole vector
            ndims = st.sampled_from([0, min(1, least), None if max(map(len, shapes)) < 2 else 0])
        group = {"shapes": shapes, "param_ndim": draw(ndims)}
        if draw(st.booleans()):
            group |= {key: draw(KEYS[key]) for key in keys}
            group["lr"] = draw(st.sampled_from([0.5, 0.125]))
        made.append(group)
    return made


def seeded(shape, seed, dtype, device):
    """Values of distinct magnitude: among equal ones rai-toolbox's `topk` keeps any."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.Size(shape).numel()
    magnitude = (torch.randperm(size, generator=generator) + 1) / size
    sign = torch.randint(0, 2, (size,), generator=generator) * 2 - 1
    return (magnitude * sign).to(device, dtype).reshape(shape)


def compare(make, groups, seed, dtype, device, rtol=0.0, closure=False, missing=False):
    """Three steps with the same gradients in both libraries."""
    params, optimizers = {}, {}
    for lib in (mine, theirs):
        params[lib], ready = [], []
        for group in groups:
            own = {key: value for key, value in group.items() if key != "shapes"}
            own["params"] = []
            for shape in group["shapes"]:
                own["params"].append(seeded(shape, seed, dtype, device).requires_grad_())
            params[lib] += own["params"]
            ready.append(own)
        optimizers[lib] = make(lib, ready, torch.Generator().manual_seed(seed))
    for time in range(3):
        for lib in (mine, theirs):
            for i, p in enumerate(params[lib]):
                p.grad = seeded(p.shape, 97 * seed + 7 * time + i, dtype, device)
            if missing:
                params[lib][0].grad = None
            step(optimizers[lib], *([lambda: tensor(1.0)] if closure else []))
        for p, q in zip(params[mine], params[theirs], strict=True):
            same(p, q, rtol)
            same(p.grad, q.grad, rtol)
    assert values_of(optimizers[mine]) == values_of(optimizers[theirs])


def values_of(optimizer):
    """The param groups without tensors."""
    # Not there: the generator's state. There by accident, in one class: `differentiable`.
    skipped = ("params", "link_states", "differentiable")
    groups = optimizer.param_groups
    return [{k: v for k, v in group.items() if k not in skipped} for group in groups]


def same(a, b, rtol):
    if a is None or b is None:
        assert a is b
    else:
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol, equal_nan=True)


everything = dict(
    data=st.data(),
    seed=st.integers(0, 2**20),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    scale=scales,
    bias=biases,
    closure=st.booleans(),
    missing=st.booleans(),
)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", sorted(OF_CLASS))
@settings(max_examples=25, deadline=None)
@given(**everything)
def test_each_class(name, device, data, seed, dtype, scale, bias, closure, missing):
    values = {key: data.draw(KEYS[key]) for key in OF_CLASS[name]}
    inner = data.draw(st.sampled_from([{}, {"momentum": 0.9}, {"InnerOpt": Adam}]))

    def make(lib, params, generator):
        given = {"generator": generator} if name in DRAWS else {}
        return class_of(lib, name)(
            params, lr=0.5, grad_scale=scale, grad_bias=bias, **values, **inner, **given
        )

    drawn = data.draw(groups(OF_CLASS[name]))
    compare(make, drawn, seed, dtype, device, TOLERANCE.get(name, 0.0), closure, missing)


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=50, deadline=None)
@given(**everything)
def test_a_chain_of_classes_and_partials(device, data, seed, dtype, scale, bias, closure, missing):
    kinds = sorted(OF_CLASS.keys() - {BASE, "L2ProjectedOptim"})
    names, keys = [], []
    for name in data.draw(st.lists(st.sampled_from(kinds), unique=True, max_size=5)):
        if not set(OF_CLASS[name]) & set(keys):  # rai-toolbox loses the second value, see below
            names.append(name)
            keys += OF_CLASS[name]
    names.sort(key=MAKE_TIES.__contains__)  # last: which of equals top-q keeps is chance there
    values = {key: data.draw(KEYS[key]) for key in keys}
    in_defaults = {key for key in keys if data.draw(st.booleans())}

    def make(lib, params, generator):
        members = []
        for name in names:
            own = {key: values[key] for key in OF_CLASS[name] if key not in in_defaults}
            if name in DRAWS:
                own["generator"] = generator
            members.append(partial(class_of(lib, name), **own) if own else class_of(lib, name))
        defaults = {key: values[key] for key in in_defaults}
        common = dict(params=params, lr=0.5, grad_scale=scale, grad_bias=bias, defaults=defaults)
        return getattr(lib, CHAIN)(*members, **common)

    rtol = max([0.0, *(TOLERANCE.get(name, 0.0) for name in names)])
    compare(make, data.draw(groups(keys)), seed, dtype, device, rtol, closure, missing)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", FRANK_WOLFE)
@settings(max_examples=25, deadline=None)
@given(**{k: v for k, v in everything.items() if k not in ("scale", "bias")})
def test_each_frank_wolfe(name, device, data, seed, dtype, closure, missing):
    values = {"lr": data.draw(st.sampled_from([0.5, 0.875]))}
    values["use_default_lr_schedule"] = data.draw(st.booleans())
    radius = "lmo_scaling_factor" if name == "FrankWolfe" else "epsilon"
    values[radius] = data.draw(radii)
    keys = ["q", "dq"] if name in DRAWS else []
    values |= {key: data.draw(KEYS[key]) for key in keys}

    def make(lib, params, generator):
        given = {"generator": generator} if name in DRAWS else {}
        return getattr(lib, name)(params, **values, **given)

    most = 2 if name == "L1FrankWolfe" else 4  # it is wrong above, see below
    rtol = TOLERANCE.get(name, 0.0)
    compare(make, data.draw(groups(keys, most)), seed, dtype, device, rtol, closure, missing)


# ------------------------------------------------------------------ the same interface


@pytest.mark.parametrize("name", NAMES)
def test_signatures(name):
    ours, other = (inspect.signature(getattr(lib, name)).parameters for lib in (mine, theirs))
    ours = {key: p for key, p in ours.items() if key != "compile"}  # what we have beyond it
    positional = [p.kind for p in other.values()]
    assert [p.kind for p in ours.values()] == positional
    for a, b in zip(ours.values(), other.values(), strict=True):
        assert a.name == b.name or a.kind is a.VAR_KEYWORD
        required = a.name in ("q", "epsilon", "params")  # no default there, or 1e-3 by accident
        assert required or a.default == b.default


def built(lib, name, x=None):
    x = ones(2, 3, requires_grad=True) if x is None else x
    values = {"TopQGradientOptimizer": {"q": 0.5}, "L1qNormedGradientOptim": {"q": 0.5}}
    values |= {f"Clamped{kind}Optimizer": {"clamp_max": 2.5} for kind in ("Gradient", "Parameter")}
    values |= {f"{kind}ProjectedOptim": {"epsilon": 0.5} for kind in ("L2", "Linf")}
    values |= {f"{kind}FrankWolfe": {"epsilon": 0.5} for kind in ("L1", "L2", "Linf")}
    values |= {"L1qFrankWolfe": {"epsilon": 0.5, "q": 0.5}}
    if name == CHAIN:
        return lib.ChainedParamTransformingOptimizer(
            partial(lib.TopQGradientOptimizer, q=0.25),
            partial(lib.ClampedGradientOptimizer, clamp_min=-1.5),
            USER[lib]["Shrunk"],
            params=[x],
        )
    return getattr(lib, name)([x], **values.get(name, {}))


@pytest.mark.parametrize("name", NAMES)
def test_groups_defaults_and_repr(name):
    ours, other = (built(lib, name) for lib in (mine, theirs))
    accident = "    differentiable: False\n" if name == "L1qFrankWolfe" else ""
    assert repr(ours) == repr(other).replace(accident, "")
    assert ours.defaults == other.defaults
    assert values_of(ours) == values_of(other)


def test_attributes():
    for name in set(NAMES) - {"FrankWolfe"}:
        ours, other = (built(lib, name) for lib in (mine, theirs))
        assert type(ours.inner_opt).__name__ == type(other.inner_opt).__name__
        chains = [[type(m).__name__ for m in getattr(o, "_chain", ())] for o in (ours, other)]
        assert chains[0] == chains[1]
        for attribute in ("p", "_p", "div_by_zero_eps"):
            assert getattr(ours, attribute, None) == getattr(other, attribute, None)
        generators = [getattr(o, "_generator", None) for o in (ours, other)]
        assert generators[0] is generators[1]


@pytest.mark.parametrize("lib", [mine, theirs])
def test_project_applies_the_parameter_transform_and_warns(lib):
    x = tensor([3.0, -0.5], requires_grad=True)
    optimizer = lib.ClampedParameterOptimizer([x], clamp_max=1.0)
    with pytest.warns(FutureWarning, match="project"):
        optimizer.project()
    assert x.tolist() == [1.0, -0.5]


def x1():
    return [ones(3, requires_grad=True)]


@pytest.mark.parametrize("lib", [mine, theirs])
def test_a_norm_of_ones_own(lib):
    class L3(lib.L2NormedGradientOptim):
        _p = 3

    optimizer = L3([ones(1, 8, requires_grad=True)])
    assert optimizer.per_datum_norm(ones(2, 8)).tolist() == [2.0, 2.0]
    x = optimizer.param_groups[0]["params"][0]
    x.grad = ones(1, 8)
    step(optimizer)
    assert torch.equal(x.grad, ones(1, 8) / 2)
    with pytest.raises(TypeError, match=r"p` must be|p must be"):
        type("Lx", (lib.L2NormedGradientOptim,), {"_p": "2"})([ones(3, requires_grad=True)])


TYPE_ERRORS = {
    "no params": lambda lib: lib.ParamTransformingOptimizer(),
    "no optimizer": lambda lib: lib.ParamTransformingOptimizer(x1(), InnerOpt=int),
    "no transform": lambda lib: lib.ChainedParamTransformingOptimizer(SGD, params=x1()),
    "param_ndim": lambda lib: lib.ParamTransformingOptimizer(x1(), param_ndim="1"),
    "param_ndim 1.5": lambda lib: lib.ParamTransformingOptimizer(x1(), param_ndim=1.5),
    "grad_scale": lambda lib: lib.ParamTransformingOptimizer(x1(), grad_scale="1"),
    "grad_bias": lambda lib: lib.ParamTransformingOptimizer(x1(), grad_bias=None),
    "q": lambda lib: lib.TopQGradientOptimizer(x1(), q="1"),
    "dq": lambda lib: lib.TopQGradientOptimizer(x1(), q=0.5, dq="1"),
    "generator": lambda lib: lib.TopQGradientOptimizer(x1(), q=0.5, generator=1),
    "clamp": lambda lib: lib.ClampedGradientOptimizer(x1(), clamp_min="1", clamp_max=2.0),
    "epsilon 2": lambda lib: lib.L2ProjectedOptim(x1(), epsilon="1"),
    "epsilon inf": lambda lib: lib.LinfProjectedOptim(x1(), epsilon=None),
    "eps": lambda lib: lib.L1NormedGradientOptim(x1(), div_by_zero_eps="1"),
    "lr": lambda lib: lib.FrankWolfe(x1(), lr="1"),
    "lmo": lambda lib: lib.FrankWolfe(x1(), lmo_scaling_factor=None),
    "schedule": lambda lib: lib.L2FrankWolfe(x1(), epsilon=1.0, use_default_lr_schedule=1),
    "a keyword": lambda lib: lib.L1FrankWolfe(x1(), epsilon=1.0, grad_scale=2.0),
    "positional": lambda lib: lib.TopQGradientOptimizer(x1(), SGD, 0.5),
}
VALUE_ERRORS = {
    "param_ndim": lambda lib: lib.ParamTransformingOptimizer(x1(), param_ndim=2),
    "param_ndim -2": lambda lib: lib.ParamTransformingOptimizer(x1(), param_ndim=-2),
    "q": lambda lib: lib.TopQGradientOptimizer(x1(), q=1.5),
    "q of a group": lambda lib: lib.TopQGradientOptimizer([{"params": x1(), "q": -1.0}], q=0.5),
    "dq": lambda lib: lib.TopQGradientOptimizer(x1(), q=0.5, dq=-0.1),
    "clamp": lambda lib: lib.ClampedGradientOptimizer(x1()),
    "clamp order": lambda lib: lib.ClampedParameterOptimizer(x1(), clamp_min=2.0, clamp_max=1.0),
    "epsilon 2": lambda lib: lib.L2ProjectedOptim(x1(), epsilon=-1.0),
    "epsilon inf": lambda lib: lib.LinfProjectedOptim(x1(), epsilon=-1.0),
    "eps": lambda lib: lib.L2NormedGradientOptim(x1(), div_by_zero_eps=-1.0),
    "lr": lambda lib: lib.FrankWolfe(x1(), lr=-1.0),
    "lr above 1": lambda lib: lib.FrankWolfe(x1(), lr=1.5, use_default_lr_schedule=False),
    "in a chain": lambda lib: lib.L1qNormedGradientOptim(x1(), q=2.0),
}


@pytest.mark.parametrize("lib", [mine, theirs])
def test_errors_have_the_same_types(lib):
    for errors, kind in ((TYPE_ERRORS, TypeError), (VALUE_ERRORS, ValueError)):
        for make in errors.values():
            with pytest.raises(kind):
                make(lib)


@pytest.mark.parametrize("lib", [mine, theirs])
def test_a_hook_must_write_in_place(lib):
    class Replaced(lib.ParamTransformingOptimizer):
        def _pre_step_transform_(self, param, optim_group):
            param.grad = param.grad * 2.0

    x = ones(3, requires_grad=True)
    x.grad = ones(3)
    with pytest.raises(ValueError, match=r"in.place"):
        step(Replaced([x]))


# ------------------------------------------------------------------ where rai-toolbox is wrong


def after_step(optimizer, x, grad):
    x.grad = tensor(grad) if not isinstance(grad, Tensor) else grad
    step(optimizer)
    return x.grad


def chain(lib, x, *members, **kwargs):
    return lib.ChainedParamTransformingOptimizer(*members, params=[x], **kwargs)


def x_of(*shape, value=1.0, dtype=torch.float32):
    return torch.full(shape, value, dtype=dtype, requires_grad=True)


def test_two_members_with_the_same_key_have_two_values():
    def result(lib):
        x = x_of(4)
        twice = [partial(lib.TopQGradientOptimizer, q=q) for q in (0.25, 0.75)]
        optimizer = chain(lib, x, *twice, param_ndim=None)
        return after_step(optimizer, x, [1.0, 2.0, 3.0, 4.0]).tolist()

    assert result(mine) == [0, 0, 0, 4]
    assert result(theirs) == [0, 2, 3, 4]  # the second q is lost


def test_a_member_has_its_own_scale_and_bias():
    def result(lib):
        x = x_of(2)
        signed = partial(lib.SignedGradientOptim, grad_scale=3.0, grad_bias=-1.0)
        optimizer = chain(lib, x, signed, partial(lib.ClampedGradientOptimizer, clamp_max=1.5))
        return after_step(optimizer, x, [5.0, -5.0]).tolist()

    assert result(mine) == [1.5, -4.0]
    assert result(theirs) == [1.0, -1.0]


def test_a_member_has_its_own_rows():
    def result(lib):
        x = x_of(2, 2)
        normed = partial(lib.L1NormedGradientOptim, param_ndim=None)
        return after_step(chain(lib, x, normed), x, [[1.0, 1.0], [1.0, 1.0]]).sum().item()

    assert result(mine) == 1.0
    assert result(theirs) == 2.0  # the chain's param_ndim, -1


@pytest.mark.parametrize("layout", ["channels_last", "transposed"])
def test_any_memory_layout(layout):
    x = torch.randn(2, 3, 4, 5)
    channels_last = layout == "channels_last"
    x = x.to(memory_format=torch.channels_last) if channels_last else x.transpose(0, 1)
    for lib in (mine, theirs):
        parameter = x.clone().requires_grad_()
        optimizer = lib.L2NormedGradientOptim([parameter], param_ndim=2, lr=1.0)
        if lib is theirs:
            with pytest.raises(RuntimeError, match="view"):
                after_step(optimizer, parameter, x.clone())
        else:
            expected = x.clone().flatten(2)
            expected /= expected.norm(dim=2, keepdim=True)
            found = after_step(optimizer, parameter, x.clone()).flatten(2)
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_deepcopy_and_pickle(copied):
    optimizer = copied(built(mine, "L1qNormedGradientOptim"))
    x = optimizer.param_groups[0]["params"][0]
    assert after_step(optimizer, x, ones(2, 3)).tolist() == [[0.5, 0.5, 0.0]] * 2
    with pytest.raises(AttributeError):
        copied(built(theirs, "L1qNormedGradientOptim"))


def test_values_are_checked_wherever_they_enter():
    def top_q(lib):
        return lib.TopQGradientOptimizer([x_of(3)], q=0.5)

    for bad in ({"q": 7.0}, {"param_ndim": 3}):
        top_q(theirs).add_param_group({"params": x_of(3), **bad})
        with pytest.raises(ValueError, match=next(iter(bad))):
            top_q(mine).add_param_group({"params": x_of(3), **bad})


def test_a_value_that_must_be_given():
    for name, key in (("TopQGradientOptimizer", "q"), ("L1qNormedGradientOptim", "q")):
        getattr(theirs, name)([x_of(3)])  # SGD's default for lr stands in
        with pytest.raises(ValueError, match=f"`{key}` must be given"):
            getattr(mine, name)([x_of(3)])
    for name in ("L2ProjectedOptim", "LinfProjectedOptim"):
        getattr(theirs, name)([x_of(3)])
        with pytest.raises(ValueError, match="`epsilon` must be given"):
            getattr(mine, name)([x_of(3)])


def test_the_generator_is_saved():
    def drawn(lib, resume):
        def made(seed):
            generator = torch.Generator().manual_seed(seed)
            x = x_of(100)
            kwargs = {"q": 0.5, "dq": 0.5, "param_ndim": None, "generator": generator}
            return x, lib.TopQGradientOptimizer([x], **kwargs)

        x, optimizer = made(0)
        after_step(optimizer, x, ones(100))
        if resume:
            state = optimizer.state_dict()
            x, optimizer = made(1)
            optimizer.load_state_dict(state)
        return after_step(optimizer, x, ones(100)).count_nonzero().item()

    assert drawn(mine, resume=True) == drawn(mine, resume=False)
    assert drawn(theirs, resume=True) != drawn(theirs, resume=False)
    assert drawn(mine, resume=False) == drawn(theirs, resume=False)


@pytest.mark.parametrize("p", ["L1", "L2"])
def test_a_zero_row_of_float16(p):
    def result(lib):
        x = x_of(2, 2, dtype=torch.float16)
        optimizer = getattr(lib, f"{p}NormedGradientOptim")([x])
        grad = tensor([[0.0, 0.0], [0.0, 2.0]], dtype=torch.float16)
        return after_step(optimizer, x, grad)

    assert result(mine).tolist() == [[0, 0], [0, 1]]
    assert result(theirs)[0].isnan().all()


def test_l1_frank_wolfe_above_two_dimensions():
    def result(lib, shape):
        x = x_of(*shape, value=0.0)
        optimizer = lib.L1FrankWolfe([x], epsilon=2.0)
        after_step(optimizer, x, torch.arange(1.0, 1 + x.numel()).reshape(shape))
        return x.flatten(1).abs().sum(1).tolist()

    assert result(mine, (2, 3, 2)) == result(mine, (2, 3, 5)) == [2, 2]
    assert result(theirs, (2, 3, 2)) > [2, 2]
    with pytest.raises(IndexError):
        result(theirs, (2, 3, 5))


@pytest.mark.parametrize("name", set(FRANK_WOLFE) - {"FrankWolfe"})
def test_frank_wolfe_takes_the_epsilon_of_a_group(name):
    def largest(lib):
        x = x_of(4, value=0.0)
        groups = [{"params": [x], "epsilon": 4.0}]
        q = {"q": 0.75} if name == "L1qFrankWolfe" else {}
        optimizer = getattr(lib, name)(groups, epsilon=1.0, param_ndim=None, **q)
        after_step(optimizer, x, [0.0, 0.0, 0.0, 1.0])
        return x.abs().max().item()

    assert (largest(mine), largest(theirs)) == (4.0, 1.0)
    with pytest.raises(ValueError, match="epsilon"):
        q = {"q": 0.75} if name == "L1qFrankWolfe" else {}
        getattr(mine, name)([{"params": [x_of(4)], "epsilon": -1.0}], epsilon=1.0, **q)


def test_the_sign_of_nan():
    def result(lib):
        x = x_of(2)
        return after_step(lib.SignedGradientOptim([x]), x, [float("nan"), -2.0])

    assert result(mine).isnan().tolist() == [True, False]
    assert result(theirs).tolist() == [0, -1]


def test_ties_keep_the_lowest_index():
    x = x_of(3)
    optimizer = mine.TopQGradientOptimizer([x], q=1 / 3, param_ndim=None)
    assert after_step(optimizer, x, [1.0, -1.0, 1.0]).tolist() == [1, -1, 0]


@pytest.mark.parametrize("lib", [mine, theirs])
@pytest.mark.parametrize("hook", ["_pre_step_transform_", "_post_step_transform_"])
def test_the_hooks_of_the_base_class_do_nothing_also_without_an_instance(lib, hook):
    p = torch.ones(2, requires_grad=True)
    p.grad = torch.full((2,), 3.0)
    getattr(getattr(lib, BASE), hook)(self=None, param=p, optim_group={})
    assert p.tolist() == [1.0, 1.0] and p.grad.tolist() == [3.0, 3.0]
    optimizer = getattr(lib, BASE)([p], lr=0.1)
    getattr(optimizer, hook)(param=p, optim_group={})
    assert p.tolist() == [1.0, 1.0] and p.grad.tolist() == [3.0, 3.0]
