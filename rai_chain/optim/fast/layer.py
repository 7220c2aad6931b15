"""The layer that torch puts around every optimizer's step, where nothing listens left out."""

import functools
import weakref
from collections.abc import Callable
from typing import Any

from torch._C._autograd import _profiler_enabled
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks


def quick(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step with torch's layer around it where a hook or a profiler listens, without elsewhere.

    The layer costs as much as a step on a small parameter. Torch adds none where `hooked` is set.
    """
    layered = Optimizer.profile_hook_step(step)

    @functools.wraps(step)
    def either(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        if has_hooks(self) or _profiler_enabled():
            return layered(self, *args, **kwargs)
        return step(self, *args, **kwargs)

    either.hooked = True  # type: ignore[attr-defined]
    return either


def has_hooks(optimizer: Optimizer) -> bool:
    """Whether a step of this optimizer calls something before or after it."""
    every = _global_optimizer_pre_hooks or _global_optimizer_post_hooks
    return bool(every) or _has_own_hooks(optimizer)


def _has_own_hooks(optimizer: Optimizer) -> bool:
    return bool(optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)


def bare_step(inner: Optimizer) -> Callable[..., Any]:
    """The inner optimizer's step, without the hooks of all optimizers: the outer step calls them.

    Each layer of `Optimizer.step` costs several microseconds; the outer one has been paid.
    """
    bare = torchs_step(inner)
    if bare is not None:
        return functools.partial(bare, inner)
    if "step" in inner.__dict__:
        return inner.step
    step: Any = type(inner).step
    while getattr(step, "hooked", False) and _is_layer(step):
        step = step.__wrapped__  # torch's compiler puts a layer around that of hooks
    hooked = getattr(step, "hooked", False)  # inside of a user's layer, which is called
    own = _has_own_hooks(inner) and not hooked
    return functools.partial(_with_own_hooks if own else _plainly, step, inner)


def _plainly(step: Callable[..., Any], *args: Any) -> Any:
    return step(*args)


def _with_own_hooks(step: Callable[..., Any], inner: Optimizer, *args: Any) -> Any:
    """A step between the hooks that were registered on the optimizer itself."""
    given: tuple[Any, ...] = (inner, *args)
    named: dict[str, Any] = {}
    for before in inner._optimizer_step_pre_hooks.values():
        given, named = before(inner, given, named) or (given, named)
    out = step(*given, **named)
    for after in inner._optimizer_step_post_hooks.values():
        after(inner, given, named)
    return out


def torchs_step(inner: Optimizer) -> Callable[..., Any] | None:
    """The step of an optimizer of torch or of this library, where nothing else is in its place."""
    own = _has_own_hooks(inner) or "step" in inner.__dict__ or inner.defaults.get("differentiable")
    return None if own else _unwrapped(type(inner).step)


def _unwrapped(step: Callable[..., Any]) -> Callable[..., Any] | None:
    """A step without torch's layers; None where it is a user's."""
    if step not in _STEPS:
        bare = step
        while _is_layer(bare):
            bare = bare.__wrapped__  # type: ignore[attr-defined]
        _STEPS[step] = bare if _home(bare).startswith(("torch.optim.", "rai_chain.")) else None
    found: Callable[..., Any] | None = _STEPS[step]
    return found


def _is_layer(step: Any) -> bool:
    """Whether it is torch's or ours, around another function; a user's looks alike but for this."""
    return hasattr(step, "__wrapped__") and _home(step).startswith(("torch.", "rai_chain."))


def _home(step: Any) -> str:
    """The module that a function was written in, which `functools.wraps` does not change."""
    return str(getattr(step, "__globals__", {}).get("__name__", ""))


_STEPS: "weakref.WeakKeyDictionary[Any, Any]" = weakref.WeakKeyDictionary()
