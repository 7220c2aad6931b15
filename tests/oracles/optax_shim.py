"""Puts our functions under optax's names into optax's modules; see `optax_suite.py`.

What stands for a name is read from the documentation: the names that are the same, and the calls
in the tables of docs/from_optax.md. A call that ours has no argument for stays optax's. Arrays
cross the border as tensors; what jax traces goes through a callback. Inputs that no link asks for
are left out, as they are refused here.
"""

import functools
import inspect
import os
import re
import sys
import types
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
import jax
import jax.numpy as jnp
import numpy as np
import optax.contrib
import torch
from optax._src import base
from optax.tree_utils import _state_utils

import rai_chain as rc

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "docs")]
import peers  # noqa: E402

PAGE = "from_optax"
# Names of both that stay optax's -> why.
LEFT = {
    "adafactor": "torch's, with other defaults",
    "contrib.muon": "torch's",
    "contrib.scale_by_muon": "as muon",
    "contrib.schedule_free": "as its state is read by `schedule_free_eval_params`",
    "GradientTransformation": "a type",
    "lookahead": "takes pairs of parameters",
    "per_example_layer_norm_clip": "a link here, and a function there",
    "scale_by_factored_rms": "as adafactor",
    "ShouldSkipUpdateFunction": "a type",
    "skip_large_updates": "returns a pair",
    "skip_not_finite": "returns a pair",
    "transforms.unitwise_clip": "a link here, and a function there",
}
# optax's name of an argument -> ours, the first that there is.
ARGUMENTS = {
    "learning_rate": ("lr", "init_step_size"),
    "step_size": ("grad_scale",),
    "decay": ("alpha", "momentum"),
    **dict.fromkeys(("b1", "b2", "b3"), ("betas",)),
    "param_labels": ("labels",),
    "l2_norm_clip": ("max_norm",),
    "should_transform_fn": ("predicate",),
    "weight_decay_mask": ("mask",),
    "f": ("function",),
    "updates": ("tree",),
    "key": ("seed",),
}
# What the calls in the tables call an argument of optax.
SHORT = {"learning_rate": "lr", "weight_decay": "wd", "key": "seed", "seed": "_"}
# How a function is called here -> as optax calls it.
CALLED = {"should_transform_fn": lambda f: lambda updates, step: f(step)}
ASKED = ("value", "grad", "grad_fn")  # what links may ask for
HITS: set[str] = set()  # the names that were called
# What has arrays as its result: these, and the projections.
VALUES = (
    rc.apply_updates,
    rc.global_norm,
    rc.incremental_update,
    rc.per_example_global_norm_clip,
    rc.periodic_update,
)
PLACEHOLDER, PLACE = _state_utils._ParamsPlaceholder, "<parameter>"


class StaysOptaxError(Exception):
    """Ours has no such argument."""


# ------------------------------------------------------------------ the border


def to_torch(tree):
    return jax.tree.map(tensor, tree)


def tensor(x):
    if isinstance(x, torch.Tensor) or (not hasattr(x, "dtype") and type(x) not in (int, float)):
        return x
    if jax.dtypes.issubdtype(getattr(x, "dtype", None), jax.dtypes.prng_key):
        return int(jax.random.key_data(x)[-1])
    x = np.array(x if hasattr(x, "dtype") else jnp.asarray(x))
    x = x.astype(jax.dtypes.canonicalize_dtype(x.dtype))
    if x.dtype.name == "bfloat16":
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def to_numpy(tree):
    return jax.tree.map(array, tree)


def array(x):
    if not isinstance(x, torch.Tensor):
        return np.asarray(x)
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().view(jnp.bfloat16)
    x = x.detach().numpy()
    return x.astype(jax.dtypes.canonicalize_dtype(x.dtype))


def to_jax(tree):
    return jax.tree.map(jnp.asarray, to_numpy(tree))


def is_traced(tree):
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def ones_like(tree):
    """A tree without what is traced, of the same shapes."""
    return jax.tree.map(lambda x: np.ones(x.shape, x.dtype) if is_traced(x) else x, tree)


def across(f, *trees):
    """A function of trees of tensors on trees of arrays, also where jax traces them."""

    def crossed(*trees):
        return to_numpy(f(*to_torch(trees)))

    if not is_traced(trees):
        return jax.tree.map(jnp.asarray, crossed(*trees))
    with jax.ensure_compile_time_eval():
        shapes = crossed(*ones_like(trees))
    return jax.pure_callback(crossed, shapes, *trees, vmap_method="sequential")


def ours_of(f):
    """A function of arrays, or a schedule of ours, as ours call it."""
    is_array = lambda x: isinstance(x, jax.Array)  # noqa: E731
    convert = functools.partial(jax.tree.map, lambda x: tensor(x) if is_array(x) else x)
    return getattr(f, "ours", None) or (lambda *args: convert(f(*to_jax(args))))


# ------------------------------------------------------------------ what stands for a name


class Ours(base.GradientTransformationExtraArgs):
    """A pipeline of ours as optax's; `make` builds it of the arrays among its arguments."""


def is_whole(x):
    return isinstance(x, base.GradientTransformation)


def parts(args):
    """The arrays among arguments, and a function of them as tensors: the arguments as ours."""
    leaves, tree = jax.tree.flatten(args, is_leaf=is_whole)
    if any(is_whole(leaf) and not hasattr(leaf, "make") for leaf in leaves):
        raise StaysOptaxError
    own = [
        leaf.arrays if is_whole(leaf) else [leaf] if hasattr(leaf, "dtype") else []
        for leaf in leaves
    ]

    def build(tensors):
        rest, made = iter(tensors), []
        for leaf, arrays in zip(leaves, own, strict=True):
            mine = [next(rest) for _ in arrays]
            if is_whole(leaf):
                made.append(leaf.make(mine))
            elif mine:
                made.append(mine[0])
            else:
                made.append(ours_of(leaf) if callable(leaf) else leaf)
        return jax.tree.unflatten(tree, made)

    return [x for arrays in own for x in arrays], build


def pipeline(build, arrays):
    """A pipeline as optax's: pure functions of arrays."""
    known = None if arrays else build([])
    make = lambda tensors: build(tensors) if known is None else known  # noqa: E731

    def init(params):
        if isinstance(params, PLACEHOLDER):
            state = init({PLACE: jnp.ones(())})
            return jax.tree.map(lambda x: params if is_place(x) else x, state, is_leaf=is_place)
        return across(lambda values, p: make(values).init(p), arrays, params)

    def update(updates, state, params=None, **extra):
        functions = {key: ours_of(x) for key, x in extra.items() if key in ASKED and callable(x)}
        extra = {key: x for key, x in extra.items() if key in ASKED and key not in functions}

        def run(values, u, state, p, extra):
            state = () if state is None else jax.tree.map(widened, state)
            return make(values).update(u, state, params=p, **extra, **functions)

        return across(run, arrays, updates, state, params, extra)

    made = Ours(init, update)
    made.arrays, made.make = arrays, make
    return made


def is_place(x):
    """Where a state has something for each parameter; optax finds it by a parameter of its own."""
    return isinstance(x, dict) and PLACE in x


def widened(x):
    """Counters and keys are int64 here, int32 in jax."""
    return x.long() if x.dtype == torch.int32 else x


def replace(name, original, call):
    """What stands for a name of optax: the same signature, ours inside."""
    own = getattr(rc, name, None)
    of_values = name.startswith("projections.") or own in VALUES

    @functools.wraps(original)
    def shown(*args, **kwargs):
        try:
            function, places, names = call(*args, **kwargs)
            if of_values:
                HITS.add(name)
                return across(lambda a, k: function(*a, **k), list(places), names)
            arrays, build = parts((places, names))
        except StaysOptaxError:
            return original(*args, **kwargs)
        HITS.add(name)

        def make(tensors):
            places, names = build(tensors)
            return function(*places, **names)

        made = make(to_torch(ones_like(arrays)))
        if isinstance(made, rc.GradientTransformation):
            return pipeline(make, arrays)
        schedule = lambda count: across(lambda a, n: make(a)(n), arrays, count)  # noqa: E731
        schedule.ours = made
        return schedule

    return shown


def is_default(value, default):
    """Whether an argument may be left out; what is traced is taken for its default."""
    if value is default or isinstance(value, jax.core.Tracer):
        return True
    numbers = (bool, int, float, jax.Array, np.ndarray)
    return all(isinstance(x, numbers) for x in (value, default)) and np.array_equal(value, default)


def same_call(original, function):
    """Arguments of optax as those of our function of the same name."""
    theirs, own = inspect.signature(original), inspect.signature(function).parameters

    def call(*args, **kwargs):
        bound = theirs.bind(*args, **kwargs)
        bound.apply_defaults()
        places, names = (), {}
        for key, value in bound.arguments.items():
            parameter = theirs.parameters[key]
            place = next((k for k in (key, *ARGUMENTS.get(key, ())) if k in own), None)
            if parameter.kind is parameter.VAR_POSITIONAL:
                places = value
            elif place == "betas" != key:
                names[place] = (*names.get(place, ()), value)
            elif place and (value is not None or parameter.default is not None):
                names[place] = CALLED.get(key, lambda f: f)(value)
            elif not place and not is_default(value, parameter.default) and key != "eps_in_sqrt":
                raise StaysOptaxError
        return function, places, names

    return call


# ------------------------------------------------------------------ the calls of the tables


def table_calls():
    """Name of optax -> names of its arguments, and the call that stands for it in the tables."""
    found = {}
    for line in (ROOT / "docs" / f"{PAGE}.md").read_text().splitlines():
        cells = [re.findall("`(.*?)`", cell) for cell in line.strip("| ").split(" | ")]
        if line.startswith("|") and len(cells[0]) == len(cells[-1]):
            for shown, code in zip(cells[0], cells[-1], strict=True):
                name, _, names = shown.partition("(")
                is_call = re.fullmatch(r"\w+\(.*\)", code) and "..." not in code
                if is_call and name in peers.names(PAGE):
                    found[name] = names.strip(")").split(", ") if names else [], code
    return found


def names_in(code):
    inner = [names_in(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    return set(code.co_names).union(*inner)


def evaluated(code, **scope):
    return eval(code, vars(rc) | scope)


def row_call(original, names, text):
    """Arguments of optax as a call in a table sees them."""
    theirs, code = inspect.signature(original), compile(text, text, "eval")

    def call(*args, **kwargs):
        bound = theirs.bind(*args, **kwargs)
        bound.apply_defaults()
        found = {}
        for i, (key, value) in enumerate(bound.arguments.items()):
            own = names[i] if i < len(names) else SHORT.get(key, key)
            if own in names_in(code):
                found[own] = value
            elif not is_default(value, theirs.parameters[key].default):
                raise StaysOptaxError
        return functools.partial(evaluated, code), (), found

    return call


class MultiSteps(optax.MultiSteps):
    """optax's class, around `accumulate` where what it wraps is ours."""

    def __init__(self, opt, every_k_schedule, use_grad_mean=True, skip=None, *args, **kwargs):
        skip = kwargs.pop("should_skip_update_fn", skip)
        super().__init__(opt, every_k_schedule, use_grad_mean, skip, *args, **kwargs)
        if not hasattr(opt, "make"):
            return
        HITS.add("MultiSteps")
        arrays, build = parts([opt])
        every_k = ours_of(self._every_k_schedule)
        reduce = "mean" if use_grad_mean else "sum"
        skips = skip and (lambda u: ours_of(skip)(u, torch.zeros(()), None)[0])
        self.tx = pipeline(
            lambda values: rc.accumulate(build(values)[0], every_k, reduce, skips, "steps"), arrays
        )
        self.init, self.update = self.tx.init, self.tx.update
        self.has_updated = lambda state: (state["gathered"] == 0) & (state["step"] > 0)

    def gradient_transformation(self):
        return getattr(self, "tx", None) or super().gradient_transformation()


# ------------------------------------------------------------------ optax with ours in it


def install():
    """Put what stands for each name into every module of optax that has it."""

    def original(shown):
        prefix, own = shown.rpartition(".")[::2]
        place = next(k for k, v in peers.PEERS[PAGE].items() if v == (prefix and f"{prefix}."))
        return getattr(sys.modules[place], own)

    calls = {
        name: functools.partial(row_call, names=n, text=t) for name, (n, t) in table_calls().items()
    }
    for name in peers.same(PAGE):
        calls[name] = functools.partial(same_call, function=getattr(rc, name.split(".")[-1]))
    assert set(LEFT) <= set(calls), set(LEFT) - set(calls)
    found = {name: original(name) for name in calls if name not in LEFT}
    new = {id(made): replace(name, made, calls[name](made)) for name, made in found.items()}
    new[id(optax.MultiSteps)] = MultiSteps
    for module in [m for name, m in sys.modules.items() if name.split(".")[0] == "optax"]:
        for key, value in list(vars(module).items()):
            if id(value) in new:
                setattr(module, key, new[id(value)])
    linen = types.SimpleNamespace(Module=object, compact=lambda f: f)
    sys.modules |= {"flax": types.SimpleNamespace(linen=linen), "flax.linen": linen}
