"""torch's optimizers as pure functions: the step of a pipeline."""

import functools
import inspect
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from ._tree import Leaves, Spec
from .base import Link, Run, State
from .link import is_schedule, show


class FromTorch(Link):
    """A torch optimizer as the link that steps: made by `from_torch`."""

    phase = "step"
    needs_params = True
    kind: type[Optimizer]
    options: dict[str, Any]

    def __new__(cls, kind: type[Optimizer], options: dict[str, Any]) -> "FromTorch":
        self = super().__new__(cls)
        self.kind, self.options, self.name = kind, options, kind.__name__
        fixed = {k: v for k, v in options.items() if not is_schedule(v)}
        group = _prototype(kind, fixed).param_groups[0]
        self.values = {**{k: v for k, v in group.items() if k != "params"}, **options}
        return self

    def __repr__(self) -> str:
        options = "".join(f", {k}={show(v)}" for k, v in self.options.items())
        return f"from_torch({self.kind.__name__}{options})"

    def __reduce__(self) -> tuple[Any, ...]:
        return FromTorch, (self.kind, self.options)

    def as_optimizer(self) -> Callable[..., Optimizer]:
        """The torch optimizer itself, for the stateful home."""
        return functools.partial(self.kind, **self.options)

    def check_values(self, values: dict[str, Any]) -> None:
        _prototype(self.kind, {k: v for k, v in values.items() if not is_schedule(v)})

    def check_state(self, state: State, leaves: Leaves, spec: Spec) -> None:
        if not isinstance(state, dict) or "per_leaf" not in state:
            raise ValueError(f"`state` must be the state of {self!r}  Got: {state!r}")
        if len(state["per_leaf"]) != len(leaves):
            raise ValueError(
                f"`updates` must have the {len(state['per_leaf'])} leaves that `init` saw  "
                f"Got: {len(leaves)}"
            )

    def start(self, leaves: Leaves, run: Run, values: dict[str, Any]) -> State:
        tensors = [leaf.detach().clone() for leaf in leaves if leaf is not None]
        state: dict[str, Any] = {}
        if any(map(is_schedule, values.values())):
            state["step"] = torch.zeros((), dtype=torch.int64)
        made: dict[Tensor, dict[str, Any]] = {}
        if tensors:
            options = {k: v for k, v in self.options.items() if not is_schedule(v)}
            made = dict(self.kind(tensors, **options).state)
        places = iter(tensors)
        state["per_leaf"] = tuple(
            {} if leaf is None else dict(made.get(next(places), {})) for leaf in leaves
        )
        return state

    def resolve(self, override: dict[str, Any], state: State) -> dict[str, Any]:
        values = super().resolve(override, state)
        scheduled = {k: v(state["step"]) for k, v in values.items() if is_schedule(v)}
        if scheduled:
            values = {**values, **scheduled}
            self.check_values(values)
        return values

    def apply(
        self, leaves: Leaves, state: State, run: Run, values: dict[str, Any]
    ) -> tuple[Leaves, State]:
        if not run.plain:
            raise ValueError(
                f"`{self!r}` must run outside torch.func and autograd, where it would be silently "
                "wrong: use a native optimizer there  Got: a traced or differentiable tensor"
            )
        params = run.params or []
        pairs = zip(params, leaves, strict=True)
        clones = [None if p is None or g is None else p.detach().clone() for p, g in pairs]
        optimizer = _prototype(self.kind, values)
        optimizer.param_groups = [{**values, "params": [c for c in clones if c is not None]}]
        optimizer.state = defaultdict(dict)
        for clone, grad, own in zip(clones, leaves, state["per_leaf"], strict=True):
            if clone is not None and grad is not None:
                clone.grad = grad.detach().to(clone.dtype)
                if own:
                    optimizer.state[clone] = {k: _copy(v) for k, v in own.items()}
        with torch.no_grad():
            optimizer.step()
        new_state = dict(state)
        new_state["per_leaf"] = tuple(
            own if clone is None else dict(optimizer.state[clone])
            for clone, own in zip(clones, state["per_leaf"], strict=True)
        )
        if "step" in state:
            new_state["step"] = state["step"] + 1
        run.writable = [clone is not None for clone in clones]
        out = [p if c is None else c.detach() for c, p in zip(clones, params, strict=True)]
        for tensor in out:
            if tensor is not None and tensor.grad is not None:
                tensor.grad = None
        return out, new_state


def from_torch(kind: type[Optimizer], **options: Any) -> FromTorch:
    """Make any torch optimizer a pure link: the step of a pipeline.

    `step` gives the same bits as the optimizer itself and writes none of its inputs.

    Args:
        kind: a class of `torch.optim`, or one's own, that takes ordinary parameters.
        **options: its arguments; a number may be a schedule ``step -> value``.

    Returns:
        A link of the phase "step"; its hyperparameters are the optimizer's options.

    Raises:
        TypeError: `kind` is no optimizer class.
        ValueError: `kind` needs a closure, or refuses an option.

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
    if issubclass(kind, LBFGS):
        raise ValueError(
            "`kind` must step from gradients alone; LBFGS evaluates the model again in each step: "
            "use it as the inner optimizer of rai_chain.optim  Got: LBFGS"
        )
    return FromTorch(kind, options)


def _prototype(kind: type[Optimizer], values: dict[str, Any]) -> Optimizer:
    """An instance with these options; the constructor refuses what does not fit."""
    known = inspect.signature(kind).parameters
    options = {k: v for k, v in values.items() if k in known}
    return kind([torch.zeros(1, 1)], **options)


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
