"""The optimizer inside another one: what may be one, and how it is made."""

import contextlib
import functools
import inspect
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..data.checks import check_single
from ..data.hyper import has_schedule
from ..links.kinds import made
from .bound import Binding
from .layout import at_start
from .states import Group


class Aside(Optimizer):
    """Copies of the shared groups, for a member to be built on: what it sets there is its own."""

    def __init__(self, groups: list[Group]) -> None:
        state: Group = {"defaults": {}, "state": defaultdict(dict), "param_groups": groups}
        self.__setstate__(state)


def builds(x: Any, kind: type = Optimizer) -> bool:
    """Whether x(...) makes an instance of `kind`: a class of it, or a partial of one."""
    target = x.func if isinstance(x, functools.partial) else x
    return inspect.isclass(target) and issubclass(target, kind)


def numbers_of(inner: Optimizer) -> tuple[str, ...]:
    """The keys under which an optimizer of torch takes one number."""
    ours = not type(inner).__module__.startswith("torch.optim")
    return tuple(
        key
        for key, value in ({} if ours else inner.defaults).items()
        if isinstance(value, (int, float, Tensor)) and not isinstance(value, bool)
    )


def build(InnerOpt: Any, groups: Any, kwargs: Group) -> tuple[Optimizer, Group]:
    """The inner optimizer, and the schedules among its arguments and in the groups."""
    arguments = {**getattr(InnerOpt, "keywords", {}), **kwargs}
    scheduled = {k: v for k, v in arguments.items() if has_schedule(v)}
    target: Any = InnerOpt.func if isinstance(InnerOpt, functools.partial) else InnerOpt
    names = set(inspect.signature(target).parameters)
    if issubclass(target, Binding):  # it runs schedules itself
        names, scheduled = set(), {}
    check_single(target, arguments)
    later = []
    for group in groups:
        own = {k: v for k, v in group.items() if k in names and has_schedule(v)}
        later.append({**{k: v for k, v in scheduled.items() if k not in group}, **own})
        group.update(at_start(own))
        check_single(target, {k: v for k, v in group.items() if k in names - {"params"}})
    inner = made(InnerOpt, groups, {**kwargs, **at_start(scheduled)})
    for group, more in zip(inner.param_groups, later, strict=False):
        group.update(more)
    return inner, {k: v for more in (scheduled, *later) for k, v in more.items()}


@contextlib.contextmanager
def restored(shared: list[Group]) -> Iterator[None]:
    """Dicts of somebody else's, which are as they were where something is refused."""
    before = [dict(one) for one in shared]
    try:
        yield
    except BaseException:
        for one, old in zip(shared, before, strict=True):
            one.clear()
            one.update(old)
        raise


def grad_as_inner(step: Any) -> Any:
    """A step with autograd off, unless the inner optimizer's is `differentiable`."""

    off, on = torch.no_grad()(step), torch.enable_grad()(step)  # an interrupt leaves neither set

    @functools.wraps(step)
    def graded(self: Any, *args: Any, **kwargs: Any) -> Any:
        return (on if self.defaults.get("differentiable") else off)(self, *args, **kwargs)

    return graded


def shares_groups(cls: type[Optimizer]) -> type[Optimizer]:
    """A class whose `param_groups`, `defaults` and `state` are those of its `inner_opt`."""

    def shared(name: str) -> property:
        def get(self: Any) -> Any:
            inner = self.__dict__.get("inner_opt")
            if inner is not None:
                return getattr(inner, name)
            if name not in self.__dict__:  # so that a wrapper of this class can look elsewhere
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            return self.__dict__[name]

        def put(self: Any, value: Any) -> None:
            inner = self.__dict__.get("inner_opt")
            if inner is None:
                self.__dict__[name] = value
            else:
                setattr(inner, name, value)

        return property(get, put)

    for name in ("param_groups", "defaults", "state"):
        setattr(cls, name, shared(name))
    return cls
