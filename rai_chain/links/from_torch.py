"""torch's optimizers as pure functions: the step of a pipeline."""

import functools
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad
from torch.optim import LBFGS, Optimizer, SparseAdam
from torch.overrides import TorchFunctionMode

from ..core.link import Link
from ..data.checks import check_single, name_of
from ..data.hyper import check_number, evaluated, has_schedule, plain, show
from ..data.messages import told
from ..data.tree import Leaves, Spec, flatten, map_leaves
from ..engine.run import Run, State
from .kinds import made, misfit, start_momentum

_NATIVE = "use a native optimizer (`rai_chain.sgd`, `adam`, ...)"


@functools.cache
def _stay_outside_graphs() -> None:
    """Say in a traced function why it stops here; not at import, which would bring the compiler."""
    reason = f"Optimizer.step cannot be in a graph: {_NATIVE} there"
    for name in ("evaluate", "apply"):
        disable: Any = torch.compiler.disable
        setattr(FromTorch, name, disable(getattr(FromTorch, name), reason=reason))


class FromTorch(Link):
    """A torch optimizer as the link that steps: made by `from_torch`.

    Its state holds the optimizer's, leaf by leaf, under the name of the class; beside it numbers
    and tensors that the optimizer keeps in its param group (no arguments) or in attributes.
    """

    phase = "step"
    needs_params = True
    completes = True
    takes_parts = False
    kind: type[Optimizer]
    options: dict[str, Any]
    _instance: Optimizer
    _scheduled: frozenset[str]

    def __new__(cls, kind: type[Optimizer], options: dict[str, Any]) -> "FromTorch":
        _stay_outside_graphs()
        self: FromTorch = super().__new__(cls)
        options = {name: plain(value) for name, value in options.items()}
        self.kind, self.options, self.name = kind, options, kind.__name__
        self.trees = frozenset({self.name})
        self._scheduled = frozenset(k for k, v in options.items() if has_schedule(v))
        self._instance = self._build({})
        _check_independent(self._instance)
        group = self._instance.param_groups[0]
        self.values = {**{k: v for k, v in group.items() if k != "params"}, **options}
        return self

    def __repr__(self) -> str:
        options = "".join(f", {k}={show(v)}" for k, v in self.options.items())
        return f"from_torch({self.kind.__name__}{options})"

    def __reduce__(self) -> tuple[Any, ...]:
        return FromTorch, (self.kind, self.options)

    def _build(self, values: dict[str, Any], params: list[Tensor] | None = None) -> Optimizer:
        """An instance with these values; the constructor refuses what does not fit."""
        named = inspect.signature(self.kind).parameters
        known = {k: v for k, v in values.items() if k in named}
        options = _at({**self.options, **known}, torch.zeros((), dtype=torch.int64))
        check_single(self.kind, options)
        return made(self.kind, [torch.zeros(1, 1)] if params is None else params, options)

    # ------------------------------------------------------------------ checks

    def check_values(self, values: dict[str, Any]) -> None:
        """Let the constructor refuse what does not fit; what is traced cannot be read."""
        readable = {k: v for k, v in values.items() if not any(_traces(flatten(v)[0]))}
        self._build({k: v for k, v in readable.items() if not has_schedule(v)})

    def check_state(self, state: State, leaves: Leaves, spec: Spec) -> None:
        keys = set(state) if isinstance(state, dict) else set()
        needed = {self.name, *(["step"] if self._scheduled else [])}
        if not needed <= keys <= needed | {"group", "attributes"}:
            raise ValueError(f"`state` must be the state of {self!r}  Got: {told(state)}")
        kept = state[self.name]
        if not isinstance(kept, list) or len(kept) != len(leaves):
            saw = f"{len(kept)} leaves" if isinstance(kept, list) else "leaves"
            raise ValueError(f"`updates` must have the {saw} that `init` saw  Got: {len(leaves)}")
        for i, (own, leaf) in enumerate(zip(kept, leaves, strict=True)):
            if own and leaf is not None and (wrong := misfit(self.kind, own, leaf.shape)):
                raise ValueError(
                    f"`{name_of('updates', spec, i)}` must have the shape that `init` saw, which "
                    f"made {wrong}  Got: {tuple(leaf.shape)}"
                )

    def with_values(self, values: dict[str, Any]) -> "FromTorch":
        return FromTorch(self.kind, {**self.options, **values})

    def evaluate(self, values: dict[str, Any], state: State) -> dict[str, Any]:
        carried = _decode(state.get("group", {}), _same)
        mine = {k: v for k, v in carried.items() if values.get(k) is self.values.get(k)}
        values = {**values, **mine}
        scheduled = sorted(k for k, v in values.items() if has_schedule(v))
        if scheduled and "step" not in state:
            raise ValueError(
                f"`{scheduled[0]}` must be given to {self!r} as a schedule before `init`, which "
                f"then keeps a step  Got: {show(values[scheduled[0]])}"
            )
        if scheduled:
            values = _at(values, state["step"])
            self.check_values(values)
        return values

    # ------------------------------------------------------------------ state and step

    def lacks(self, once: Any, values: dict[str, Any]) -> bool:
        return bool(self._scheduled) and once is None

    def columns(self, state: State, spec: Spec) -> dict[str, list[Any]]:
        return {self.name: state[self.name]}

    def with_columns(self, columns: dict[str, list[Any]], spec: Spec) -> State:
        return {key: [own or {} for own in column] for key, column in columns.items()}

    def start(self, leaves: Leaves, run: Run, values: dict[str, Any]) -> State:
        tensors = [leaf.detach().clone() for leaf in leaves if leaf is not None]
        begun = self._build({}, tensors) if tensors else self._instance
        places = iter(tensors)
        state: dict[str, Any] = {}
        if self._scheduled:
            state["step"] = torch.zeros((), dtype=torch.int64)
        own = (None if leaf is None else begun.state.get(next(places)) for leaf in leaves)
        state[self.name] = [_encode(dict(s or {})) for s in own]
        named = inspect.signature(self.kind).parameters  # else it is no argument: it is state
        any_name = any(p.kind is p.VAR_KEYWORD for p in named.values())
        group = {} if any_name else begun.param_groups[0]
        counts = {k: v for k, v in group.items() if k not in named and _is_count(v)}
        return _with(state, counts, _attributes(begun))

    def apply(
        self, leaves: Leaves, state: State, run: Run, values: dict[str, Any]
    ) -> tuple[Leaves, State]:
        params = run.params or []
        followed, batched = _traces([*params, *leaves, *flatten((state, values))[0]])
        if batched and not values.get("differentiable"):
            raise ValueError(
                f"`{self!r}` must run outside vmap: {_NATIVE}, or update the stacked leaves once, "
                "which is the same where elements do not see each other  Got: a batched tensor"
            )
        if followed and not values.get("differentiable"):
            raise ValueError(
                f"`{self!r}` must not be differentiated, as it would be silently wrong: {_NATIVE}, "
                "`differentiable=True` where the optimizer has it, or detached tensors under "
                "`torch.no_grad()`  Got: a tensor that is differentiated"
            )
        copy = _cloned if followed or batched else _detached
        here = [p is not None and g is not None for p, g in zip(params, leaves, strict=True)]
        clones = [copy(p) if h else None for p, h in zip(params, here, strict=True)]
        optimizer = object.__new__(self.kind)
        optimizer.__dict__.update(vars(self._instance))
        optimizer.__dict__.update(_decode(state.get("attributes", {}), copy))
        group = {k: copy(v) if isinstance(v, Tensor) else v for k, v in values.items()}
        optimizer.defaults = {**optimizer.defaults, **group}
        optimizer.param_groups = [{**group, "params": [c for c in clones if c is not None]}]
        optimizer.state = defaultdict(dict)
        for clone, grad, own in zip(clones, leaves, state[self.name], strict=True):
            if clone is not None:
                clone.grad = copy(grad).to(clone.dtype)
                if own:
                    optimizer.state[clone] = _decode(own, copy)
        if followed or batched:
            self._step_followed(optimizer)
        else:
            with torch.no_grad():
                optimizer.step()
        new_state = dict(state)
        new_state[self.name] = [
            own if clone is None else _encode(dict(optimizer.state.get(clone, {})))
            for clone, own in zip(clones, state[self.name], strict=True)
        ]
        if "step" in state:
            new_state["step"] = state["step"] + 1
        new = optimizer.param_groups[0]
        kept = {k for k in new if k in state.get("group", {}) or new[k] is not group.get(k)}
        changed = {k: new[k] for k in kept - {"params"}}
        run.writable = [run.plain and h for h in here]
        out = [p if c is None else c for c, p in zip(clones, params, strict=True)]
        for c in clones:
            if c is not None:
                c.grad = None
        return out, _with(new_state, changed, _attributes(optimizer))

    def _step_followed(self, optimizer: Optimizer) -> None:
        """A step that keeps every derivative, or says that it cannot."""
        start_momentum(optimizer)
        try:
            with _Watch():
                optimizer.step()
        except (TypeError, RuntimeError, AssertionError) as error:
            raise ValueError(
                f"`{self!r}` must not be differentiated or batched with respect to these tensors: "
                f"{_NATIVE}  Got: {error}"
            ) from error


def from_torch(kind: type[Optimizer], **options: Any) -> FromTorch:
    """Make any torch optimizer a pure link: the step of a pipeline.

    `step` gives the same bits as the optimizer itself and writes none of its inputs. It runs
    where the optimizer runs, not in a graph; a derivative goes through it with
    ``differentiable=True``, and one that torch would get wrong is refused. (Where a squared
    gradient is 0, the derivative of torch's root is NaN; the native optimizers' is not.)

    Args:
        kind: a class of `torch.optim`, or one's own, that steps from gradients alone.
        **options: its arguments; a number may be a schedule ``step -> value``.

    Returns:
        A link of the phase "step"; its hyperparameters are the entries of the optimizer's param
        group, and each call may override them.

    Raises:
        TypeError: `kind` is no optimizer class.
        ValueError: `kind` needs a closure, sparse gradients or parameters of its own, or refuses
            an option.

    Example:
        >>> import torch
        >>> from rai_chain import chain, clamp
        >>> tx = chain(clamp(clamp_max=1.0), from_torch(torch.optim.SGD, lr=0.5))
        >>> params = torch.ones(2)
        >>> tx.step(params, torch.tensor([4.0, -1.0]), tx.init(params))[0]
        tensor([0.5000, 1.5000])

    Source: `torch.optim`.
    """
    if not inspect.isclass(kind) or not issubclass(kind, Optimizer):
        raise TypeError(f"`kind` must be a class of torch optimizers  Got: {kind!r}")
    closure = inspect.signature(kind.step).parameters.get("closure")
    if issubclass(kind, LBFGS) or (closure and closure.default is inspect.Parameter.empty):
        raise ValueError(
            f"`kind` must step from gradients alone; {kind.__name__} evaluates the model again in "
            f"each step: use it as the inner optimizer of rai_chain.optim  Got: {kind.__name__}"
        )
    if issubclass(kind, SparseAdam):
        raise ValueError(
            f"`kind` must take dense gradients, as links do: use Adam  Got: {kind.__name__}"
        )
    return FromTorch(kind, options)


# ------------------------------------------------------------------ schedules and state


def _at(values: dict[str, Any], step: Tensor) -> dict[str, Any]:
    """The values with schedules evaluated, to numbers unless they are traced."""

    def number(now: Any) -> Any:
        read = isinstance(now, Tensor) and not any(_traces([now]))
        return now.item() if read else now

    now = {k: evaluated(v, step) for k, v in values.items() if has_schedule(v)}
    for name, value in now.items():
        for one in flatten(value)[0]:
            check_number(name, one)
    return {**values, **{k: map_leaves(number, v) for k, v in now.items()}}


def _is_count(value: Any) -> bool:
    return isinstance(value, (int, float, Tensor)) and not isinstance(value, bool)


def _encode(value: Any) -> Any:
    """An optimizer's state as tensors in plain containers; a Python number becomes a marked one."""
    if value is None or isinstance(value, Tensor):
        return value
    if isinstance(value, (bool, int, float)):
        dtype = torch.float64 if isinstance(value, float) else None
        return {"number": torch.tensor(value, dtype=dtype)}
    if isinstance(value, dict):
        return {k: _encode(v) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_encode, value))
    raise TypeError(f"an optimizer's state must hold tensors and numbers  Got: {value!r}")


def _decode(value: Any, copy: Callable[[Tensor], Tensor]) -> Any:
    """What `_encode` was given, its tensors copied."""
    if isinstance(value, Tensor):
        return copy(value)
    if isinstance(value, dict):
        if value.keys() == {"number"}:
            return value["number"].item()
        return {k: _decode(v, copy) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_decode(v, copy) for v in value)
    return value


def _with(state: State, group: dict[str, Any], attributes: dict[str, Any]) -> State:
    for key, value in (("group", group), ("attributes", attributes)):
        if value:
            state[key] = _encode(value)
    return state


def _attributes(optimizer: Optimizer) -> dict[str, Any]:
    """The attributes of a user's optimizer that are state: numbers and tensors, also in lists."""
    kinds = (bool, int, float, Tensor, list, tuple, dict)
    own = {k: v for k, v in vars(optimizer).items() if not _is_torchs(k) and isinstance(v, kinds)}
    return {k: v for k, v in own.items() if all(map(_is_state, flatten(v)[0]))}


def _is_state(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, Tensor))


def _is_torchs(name: str) -> bool:
    return name in _TORCHS or name.startswith("_optimizer_")


_TORCHS = frozenset({"defaults", "state", "param_groups", "_warned_capturable_if_run_uncaptured"})
_TORCHS |= {"_need_device_dtype_check_for_fused", "_step_supports_amp_scaling"}


def _check_independent(optimizer: Optimizer) -> None:
    """Refuse an optimizer that keeps parameters, or another optimizer, in an attribute."""
    param = optimizer.param_groups[0]["params"][0]
    for name, value in vars(optimizer).items():
        if _is_torchs(name):
            continue
        leaves = flatten(value)[0]
        if any(x is param or isinstance(x, Optimizer) for x in leaves):
            raise ValueError(
                "`kind` must keep its parameters in param_groups alone  "
                f"Got: {type(optimizer).__name__}, which has some in `{name}`"
            )


def _same(x: Tensor) -> Tensor:
    return x


def _cloned(x: Any) -> Any:
    return x.clone()


def _detached(x: Any) -> Any:
    return x.detach().clone()


# ------------------------------------------------------------------ derivatives


def _traces(values: Iterable[Any], recording: bool | None = None) -> tuple[bool, bool]:
    """Whether a tensor is differentiated, in reverse or forward, and whether one is batched."""
    recording = torch.is_grad_enabled() if recording is None else recording
    followed = batched = False
    for value in values:
        while isinstance(value, Tensor):
            followed |= recording and value.requires_grad
            if forward_ad._current_level >= 0:
                tangent = forward_ad.unpack_dual(value).tangent  # type: ignore[no-untyped-call]
                followed |= tangent is not None
            batched |= _functorch.is_batchedtensor(value)
            if not _functorch.is_functorch_wrapped_tensor(value):
                break
            value = _functorch.get_unwrapped(value)
    return followed, batched


class _Watch(TorchFunctionMode):
    """Raises where an optimizer loses a derivative: it detaches, or reads a tensor on the host."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        result = func(*args, **kwargs)
        if name == "__get__" and func != torch.Tensor.data.__get__:  # type: ignore[attr-defined]
            return result
        shape_only = name.endswith("_like") or name.startswith("new_")
        if not _followed((args[shape_only:], kwargs)):
            return result
        made = [x for x in flatten(result)[0] if isinstance(x, float) or _floats(x)]
        lost = not all(map(_followed, made)) or _followed(
            (kwargs.get("alpha"), kwargs.get("value"))
        )
        in_place = name.endswith("_") and not name.endswith("__")
        if lost or (in_place and not torch.is_grad_enabled()):
            raise RuntimeError(f"the optimizer loses the derivative in `{name}`")
        return result


def _followed(values: Any) -> bool:
    return _traces(flatten(values)[0], recording=True)[0]


def _floats(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
