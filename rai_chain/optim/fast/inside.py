"""Steps of torch's optimizers as a graph has them: every number is a tensor.

Torch's own ask whether a momentum is 0, and a graph of them holds for one value only. These are
the same rules, by the functions of the native links, on the state that torch's class keeps.
"""

from typing import Any

import torch
from torch import Tensor

from ...links.adaptive import scale_by_rms, scale_by_stddev
from ...links.moments import scale_by_adam, scale_by_amsgrad
from ...links.momentum import trace
from ..states import Group


def _adam(group: Group, grad: Tensor, state: Group) -> Any:
    link = scale_by_amsgrad if group["amsgrad"] else scale_by_adam
    kept = {**{k: state[k] for k in link.definition.keys - {"count"}}, "count": state["step"]}
    return link.function(grad, group["betas"], group["eps"], state=kept)


def _rmsprop(group: Group, grad: Tensor, state: Group) -> Any:
    link = scale_by_stddev if group["centered"] else scale_by_rms
    kept = {key: state[key] for key in link.definition.keys}
    moved, new = link.function(grad, group["alpha"], group["eps"], state=kept)
    if "momentum_buffer" in state:
        moved = group["momentum"] * state["momentum_buffer"] + moved
        new["momentum_buffer"] = moved
    return moved, {**new, "count": state["step"] + 1}


def _sgd(group: Group, grad: Tensor, state: Group) -> Any:
    if state.get("momentum_buffer") is None:
        return grad, {}
    kept = {"momentum_buffer": state["momentum_buffer"], "count": torch.ones((), dtype=torch.int64)}
    numbers = group["momentum"], group["dampening"], group["nesterov"]
    moved, new = trace.function(grad, *numbers, state=kept)
    return moved, {"momentum_buffer": new["momentum_buffer"]}


STEPS = {
    torch.optim.SGD: (_sgd, ("lr", "momentum", "dampening", "weight_decay")),
    torch.optim.Adam: (_adam, ("lr", "betas", "eps", "weight_decay")),
    torch.optim.AdamW: (_adam, ("lr", "betas", "eps", "weight_decay")),
    torch.optim.RMSprop: (_rmsprop, ("lr", "alpha", "eps", "momentum", "weight_decay")),
}


def starts_anew(kind: type, group: Group, state: Group) -> bool:
    """Whether the next step makes state that is not there yet, which is left to torch."""
    moves = kind in (torch.optim.SGD, torch.optim.RMSprop) and bool(group["momentum"])
    if moves and state.get("momentum_buffer") is None:
        return True
    return kind is not torch.optim.SGD and not state


def step(kind: type, group: Group, params: list[Tensor], states: list[Group]) -> None:
    """Step parameters that have gradients, in place."""
    rule, _ = STEPS[kind]
    decoupled = group.get("decoupled_weight_decay", kind is torch.optim.AdamW)
    for p, state in zip(params, states, strict=True):
        if p.grad is None:
            continue
        grad = -p.grad if group["maximize"] else p.grad
        if decoupled:
            p.mul_(1 - group["lr"] * group["weight_decay"])
        else:
            grad = grad + group["weight_decay"] * p
        moved, new = rule(group, grad, state)
        p.copy_(p - group["lr"] * moved)
        for key, value in new.items():
            state["step" if key == "count" else key].copy_(value)
