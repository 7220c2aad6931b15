"""Messages in the user's words: how values are shown, and how a wrong call is refused."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from .tree import flatten, is_container, outline

_LONGEST = 100  # characters of a value in a message


def told(value: Any) -> str:
    """A value in a message, in one line: tensors by shape, nests by structure, functions by name.

    Example:
        >>> import torch
        >>> told([torch.ones(2, 3), 1.0]), told(torch.nn.Linear(2, 3)), told(len)
        ('[*, *]', 'a Linear', 'the function len')
    """
    if isinstance(value, Tensor):
        kind = "" if value.is_floating_point() else f" and {value.dtype}"
        return f"a tensor of shape {_shape(value)}{kind}"
    if isinstance(value, nn.Module):
        return f"a {type(value).__name__}"
    if inspect.isroutine(value):
        return f"the function {value.__name__}"
    if is_container(value) and any(isinstance(x, Tensor) for x in flatten(value)[0]):
        text = outline(flatten(value)[1])
    elif hasattr(value, "__next__"):
        return f"a {type(value).__name__}"
    else:
        text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _shape(tensor: Tensor) -> Any:
    try:
        return tuple(tensor.shape)
    except (RuntimeError, ValueError):  # a nested one, or one that is not made yet
        return "unknown"


def meant(word: Any, words: Iterable[str], cutoff: float = 0.6) -> str:
    """``: did you mean `lr`?`` where a word resembles one of the words, else nothing."""
    names = {name.lower(): name for name in words}
    near = difflib.get_close_matches(str(word).lower(), names, 1, cutoff)
    return f": did you mean `{names[near[0]]}`?" if near else ""


def called(name: str, signature: inspect.Signature) -> str:
    """How something is called, in the words of a user: ``top_q(q, dq=0.0)``."""
    shown = [
        p.name if p.default is p.empty else f"{p.name}={p.default!r}"
        for p in signature.parameters.values()
        if p.kind is not p.VAR_KEYWORD and p.name != "self"
    ]
    return f"{name}({', '.join(shown)})"


def arguments(
    name: str,
    signature: inspect.Signature,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    partial: bool = False,
) -> dict[str, Any]:
    """The arguments of a call by name, defaults among them; TypeError where it does not fit.

    Args:
        name: of what is called.
        signature: of what is called.
        args, kwargs: of the call.
        partial: whether arguments without a default may be missing.
    """
    try:
        bind = signature.bind_partial if partial else signature.bind
        bound = bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(_misfit(called(name, signature), signature, args, kwargs, error)) from None
    bound.apply_defaults()
    return dict(bound.arguments)


def _misfit(
    call: str, signature: inspect.Signature, args: Any, kwargs: dict[str, Any], error: Exception
) -> str:
    parameters = signature.parameters.values()
    places = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    for key, value in kwargs.items():
        if key not in signature.parameters:
            near = meant(key, signature.parameters)
            return f"`{key}` must be an argument of {call}{near}  Got: {told(value)}"
        if key in places[: len(args)]:
            return f"`{key}` must be given once to {call}  Got: {told(value)} by name as well"
    if len(args) > len(places):
        mine = "self" in places
        return (
            f"{call} must get at most {len(places) - mine} arguments without their names  "
            f"Got: {len(args) - mine}"
        )
    for p in parameters:
        if p.default is p.empty and p.name not in {*places[: len(args)], *kwargs}:
            return f"`{p.name}` must be given to {call}  Got: nothing"
    return f"{call} must get arguments that fit  Got: {error}"


def takes(function: Callable[..., Any], count: int) -> bool:
    """Whether a function can be called with so many arguments, as far as can be known."""
    if torch.compiler.is_compiling():  # signatures are nothing for a graph
        return True
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # it has no signature
        return True
    return True


def check_function(name: str, function: Any, *inputs: str) -> None:
    """Refuse what is no function of these inputs."""
    listed = ", ".join(inputs)
    if isinstance(function, type) or not callable(function):
        raise TypeError(f"`{name}` must be a function of {listed}  Got: {told(function)}")
    if not takes(function, len(inputs)):
        raise TypeError(
            f"`{name}` must be a function of {listed}  "
            f"Got: {_name(function)}{inspect.signature(function)}"
        )


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def refuse_key(key: str, keys: Sequence[Mapping[str, str]], what: Any) -> NoReturn:
    """Raise the ValueError for a key that no link answers to.

    Args:
        key: that somebody gave.
        keys: for each link, hyperparameter -> key.
        what: whose links they are.
    """
    qualified = [k for own in keys for name, k in own.items() if name == key]
    if qualified:
        raise ValueError(
            f"`{key}` is ambiguous in {what}: it must be one of {', '.join(qualified)}  Got: {key}"
        )
    known = sorted({k for own in keys for k in own.values()})
    raise ValueError(
        f"`{key}` must name a hyperparameter of {what}: {', '.join(known) or 'none'}"
        f"{meant(key, known, 0.7)}  Got: {key}"
    )
