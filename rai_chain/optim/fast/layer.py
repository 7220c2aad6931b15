"""The layer that torch puts around every optimizer's step, where nothing listens left out."""

import functools
import inspect
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
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
    )


def unhooked(inner: Optimizer) -> Callable[[], Any]:
    """The inner optimizer's step, without the layer that calls its hooks where it has none.

    Each layer of `Optimizer.step` costs several microseconds; the outer one has been paid.
    """
    kind: Any = type(inner)
    bare = _bare_step(kind)
    own = has_hooks(inner) or "step" in inner.__dict__ or inner.defaults.get("differentiable")
    return inner.step if own or bare is None else functools.partial(bare, inner)


@functools.cache
def _bare_step(kind: type[Optimizer]) -> Callable[..., Any] | None:
    """The step of an optimizer class without torch's layers; None for a class that is a user's."""
    known = kind.__module__.startswith(("torch.optim.", "rai_chain."))
    return inspect.unwrap(kind.step) if known else None
