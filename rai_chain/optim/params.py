"""Parameters and param groups as they are given: what is none of them is refused by name."""

from collections.abc import Mapping
from typing import Any

import torch

from ..data.checks import check_shaped, check_writable
from ..data.messages import told
from ..data.tree import Spec
from .states import Group


def groups_of(params: Any) -> Any:
    """Parameters as a list of param groups, as torch reads them; what it cannot read is refused."""
    groups = listed(params, "params")
    if not groups:
        raise ValueError("`params` must hold a parameter at least  Got: none")
    if not any(isinstance(group, dict) for group in groups):
        groups = [{"params": groups}]
    for place, group in enumerate(groups):
        check_group(group, f"params[{place}]" if len(groups) > 1 else "params")
    return groups


def listed(params: Any, name: str) -> list[Any]:
    """Parameters as a list; TypeError for what is none, with what to use."""
    if isinstance(params, torch.Tensor):
        raise TypeError(f"`{name}` must be a list of parameters: use `[p]`  Got: {told(params)}")
    if isinstance(params, (torch.nn.ParameterDict, Mapping)):
        raise TypeError(
            f"`{name}` must be a list of parameters: use `list({name}.values())`, or "
            f"`list({name}.items())` to give their names too  Got: {told(params)}"
        )
    if isinstance(params, torch.nn.ParameterList):
        return list(params)
    if isinstance(params, torch.nn.Module):
        raise TypeError(
            f"`{name}` must be a list of parameters: use `net.parameters()`  Got: {told(params)}"
        )
    try:
        return list(params)
    except TypeError:
        raise TypeError(f"`{name}` must be a list of parameters  Got: {told(params)}") from None


def check_group(group: Any, name: str) -> None:
    """Refuse what is no param group; its parameters are made a list."""
    if not isinstance(group, dict) or "params" not in group:
        raise TypeError(f"`{name}` must be a dict with `params`  Got: {told(group)}")
    own = group["params"]
    if isinstance(own, (set, frozenset)):
        raise TypeError(f"`{name}` must be a list of parameters, as a set has no order  Got: a set")
    group["params"] = params = [own] if isinstance(own, torch.Tensor) else listed(own, name)
    for place, item in enumerate(params):
        param = item[1] if isinstance(item, tuple) and len(item) == 2 else item
        if not isinstance(param, torch.Tensor):
            raise TypeError(f"`{name}[{place}]` must be a parameter  Got: {told(item)}")


def complete(groups: Any, values: Group) -> None:
    """Give each group the values that it lacks."""
    for group in groups:
        for key, value in values.items():
            group.setdefault(key, value)


def check_params(params: list[Any], spec: Spec) -> None:
    """Refuse parameters that have no shape yet, or cannot be written."""
    check_shaped([p if p.requires_grad else None for p in params], spec, "params")
    with torch.no_grad():
        check_writable(params, spec, "params")


def check_defaults(defaults: Any) -> None:
    """Refuse default values that are no dict key -> value."""
    keyed = defaults is None or isinstance(defaults, Mapping)
    if not keyed or not all(isinstance(key, str) for key in defaults or ()):
        raise TypeError(f"`defaults` must be a dict key -> value  Got: {told(defaults)}")


def check_closure(closure: Any) -> None:
    """Refuse a closure that cannot be called."""
    if closure is not None and not callable(closure):
        raise TypeError(f"`closure` must be a function that returns the loss  Got: {told(closure)}")
