"""Hyperparameters as data: what a value may be, and the checks where it enters."""

import inspect
import math
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Annotated, Any

from torch import Tensor

from .tree import flatten, is_container

Schedule = Callable[[Tensor], Any]
Hyper = Any  # a number, a tensor, a schedule `step -> value`, or a tree of them like the params


@dataclass(frozen=True)
class Range:
    """The closed interval a number must lie in; `static` asks for a Python number.

    Example:
        >>> Range(0.0, 1.0).check("q", 1.5)
        Traceback (most recent call last):
        ValueError: `q` must satisfy 0.0 <= q <= 1.0  Got: 1.5
    """

    low: float = -math.inf
    high: float = math.inf
    static: bool = False
    optional: bool = False
    open_high: bool = False
    whole: bool = False

    def check(self, name: str, value: Any) -> None:
        """Refuse a value of another type or outside the interval; tensors are never read."""
        if value is None and self.optional:
            return
        if is_container(value) and not self.static:
            for leaf in flatten(value)[0]:
                self.check(name, leaf)
        elif isinstance(value, Tensor):
            if self.static:
                raise TypeError(f"`{name}` must be a Python number  Got: a tensor")
            if value.is_complex():
                raise TypeError(f"`{name}` must be real  Got: a tensor of {value.dtype}")
        elif isinstance(value, Real):
            number: Any = value
            above = number < self.high if self.open_high else number <= self.high
            if self.whole and self.low <= number and number != int(number):
                raise ValueError(f"`{name}` must be a whole number  Got: {value}")
            if not (self.low <= number and above):
                raise ValueError(f"`{name}` must satisfy {self.rule(name)}  Got: {value}")
        elif not callable(value) or self.static:
            kinds = "a number" if self.static else "a number, a tensor or a schedule"
            raise TypeError(f"`{name}` must be {kinds}  Got: {value!r}")

    def rule(self, name: str) -> str:
        """The interval in words: ``0.0 <= q <= 1.0``."""
        low = "" if self.low == -math.inf else f"{self.low} <= "
        sign = "<" if self.open_high else "<="
        high = "" if self.high == math.inf else f" {sign} {self.high}"
        return f"{low}{name}{high}" if low or high else f"-inf <= {name} <= inf"


@dataclass(frozen=True)
class Flag:
    """A structural choice: a Python bool, or one of the given strings."""

    choices: tuple[Any, ...] = (False, True)

    def check(self, name: str, value: Any) -> None:
        """Refuse anything but the choices."""
        if not any(value is c or (isinstance(c, str) and value == c) for c in self.choices):
            listed = ", ".join(map(repr, self.choices))
            raise ValueError(f"`{name}` must be one of {listed}  Got: {value!r}")


Rule = Range | Flag

Number = Annotated[Hyper, Range()]
Fraction = Annotated[Hyper, Range(0.0, 1.0)]
NonNegative = Annotated[Hyper, Range(0.0)]
Decay = Annotated[Hyper, Range(0.0, 1.0, open_high=True)]
NormOrder = Annotated[float, Range(1.0, static=True)]
Optional = Annotated[Hyper, Range(optional=True)]
StaticNumber = Annotated[float, Range(static=True)]
StaticOptional = Annotated[float | None, Range(static=True, optional=True)]
Bool = Annotated[bool, Flag()]

REQUIRED: Any = inspect.Parameter.empty


def rules_of(
    function: Callable[..., Any], parameters: Iterable[inspect.Parameter]
) -> dict[str, Rule]:
    """The rule of each hyperparameter, read from its annotation; without one, any number."""
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError:  # a postponed annotation that names something local
        hints = {}
    rules: dict[str, Rule] = {}
    for p in parameters:
        metadata = getattr(hints.get(p.name, p.annotation), "__metadata__", ())
        found = [m for m in metadata if isinstance(m, (Range, Flag))]
        boolean: Rule = Flag() if isinstance(p.default, bool) else Range(optional=p.default is None)
        rules[p.name] = found[0] if found else boolean
    return rules


def find_keys(
    overrides: Mapping[str, Any] | None, keys: list[dict[str, str]], what: Any
) -> list[dict[str, Any]]:
    """Sort `overrides` by link: ``keys[i]`` maps each hyperparameter of link i to its key.

    Raises:
        ValueError: a key that no link has; one that is ambiguous lists the qualified keys.
    """
    found: list[dict[str, Any]] = [{} for _ in keys]
    for key, value in (overrides or {}).items():
        owners = [(i, name) for i, own in enumerate(keys) for name, k in own.items() if k == key]
        if not owners:
            refuse_key(key, keys, what)
        for i, name in owners:
            found[i][name] = value
    return found


def refuse_key(key: str, keys: list[dict[str, str]], what: Any) -> typing.NoReturn:
    """Raise the ValueError for a key that no link answers to."""
    qualified = [k for own in keys for name, k in own.items() if name == key]
    if qualified:
        raise ValueError(
            f"`{key}` is ambiguous in {what}: it must be one of {', '.join(qualified)}  Got: {key}"
        )
    known = sorted({k for own in keys for k in own.values()})
    raise ValueError(
        f"`{key}` must name a hyperparameter of {what}: {', '.join(known) or 'none'}  Got: {key}"
    )
