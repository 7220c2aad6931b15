"""Classes of torch optimizers: made, with messages in the user's words, and what they keep."""

import functools
import inspect
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from ..data.hyper import show
from ..data.messages import meant, told

_KEEPS = {"lr": 0.1, "momentum": 0.9, "amsgrad": True, "centered": True}  # as much as there can be


def made(kind: Any, params: Any, options: dict[str, Any]) -> Optimizer:
    """An optimizer of a class, or of a partial of one; what it refuses is named.

    Raises:
        TypeError, ValueError: as the class, with the class and what it was given.
    """
    target = kind.func if isinstance(kind, functools.partial) else kind
    named = inspect.signature(target).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in named.values()):
        for name in (name for name in options if name not in named):
            raise TypeError(
                f"`{name}` must be an argument of {target.__name__}{meant(name, named)}  "
                f"Got: {told(options[name])}"
            )
    try:
        optimizer: Optimizer = kind(params, **options)
    except (TypeError, ValueError) as error:
        if "  Got: " in str(error):
            raise
        given = ", ".join(f"{name}={show(value)}" for name, value in options.items())
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{target.__name__}: {error}  Got: {given or told(params)}") from error
    return optimizer


@functools.lru_cache(maxsize=64)
def shapes_kept(kind: type[Optimizer], shape: torch.Size) -> dict[str, torch.Size]:
    """Key -> shape of what an optimizer of torch keeps of a parameter; nothing of a user's one.

    Args:
        kind: the class.
        shape: of the parameter.
    """
    if not kind.__module__.startswith("torch.optim"):
        return {}
    named = inspect.signature(kind).parameters
    options: dict[str, Any] = {k: v for k, v in _KEEPS.items() if k in named}
    for device in ("meta", "cpu"):  # some read their counts
        param = torch.zeros(shape, device=device)
        param.grad = torch.zeros(shape, device=device)
        try:
            optimizer = kind([param], **options)
            with torch.no_grad():
                inspect.unwrap(kind.step)(optimizer)  # no hook is called
        except Exception:
            continue
        kept = optimizer.state[param].items()
        return {key: value.shape for key, value in kept if isinstance(value, Tensor)}
    return {}


def misfit(kind: type[Optimizer], state: dict[str, Any], shape: torch.Size) -> str:
    """What in a state is not of a parameter of this shape, in words; nothing where all is."""
    fits = shapes_kept(kind, shape)  # type: ignore[arg-type]
    for key, expected in fits.items():
        saved = state.get(key)
        if isinstance(saved, Tensor) and saved.shape != expected:
            return f"`{key}` of shape {tuple(saved.shape)}, where {tuple(expected)} fits"
    other = [k for k, v in state.items() if isinstance(v, Tensor) and k not in fits]
    sized = [key for key, expected in fits.items() if expected]
    begun = any(key in state for key in fits) and not any(key in state for key in sized)
    if other and sized and begun:  # Adafactor keeps other things of a vector than of a matrix
        return f"`{other[0]}`, where {', '.join(fits)} fit"
    return ""


def start_momentum(optimizer: Optimizer) -> None:
    """Give SGD the buffers that its first step would make of detached gradients.

    From -0.0, without dampening, it makes the same bits, and the derivative is right.
    """
    group = optimizer.param_groups[0]
    momentum = group.get("momentum", 0)
    if not isinstance(optimizer, SGD) or not (isinstance(momentum, Tensor) or momentum):
        return
    fresh = [p for p in group["params"] if p not in optimizer.state]
    for p in fresh:
        optimizer.state[p] = {"momentum_buffer": torch.full_like(p.grad, -0.0)}
    group["params"] = [p for p in group["params"] if not any(p is f for f in fresh)]
    optimizer.param_groups.append({**group, "params": fresh, "dampening": 0})
