"""How a public name goes: it warns for at least one minor version before it is removed."""

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def deprecated(
    name: str, since: str, instead: str, until: str
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function warn, when called, that it will go.

    Args:
        name: the public name that goes.
        since: the version that warns first.
        instead: what to write in its place.
        until: the version that no longer has it.

    Example:
        >>> import warnings
        >>> @deprecated("old", since="1.1", instead="new", until="2.0")
        ... def old(x):
        ...     return x
        >>> with warnings.catch_warnings(record=True) as seen:
        ...     warnings.simplefilter("always")
        ...     print(old(2), seen[0].message)
        2 `old` is deprecated since 1.1 and will be removed in 2.0: use `new`
    """
    text = f"`{name}` is deprecated since {since} and will be removed in {until}: use `{instead}`"

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def warned(*args: P.args, **kwargs: P.kwargs) -> R:
            warnings.warn(text, DeprecationWarning, stacklevel=2)
            return function(*args, **kwargs)

        return warned

    return decorate
