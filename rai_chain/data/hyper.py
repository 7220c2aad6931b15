"""Hyperparameters as data: what a value may be, and the checks where it enters."""

import inspect
import math
import typing
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Annotated, Any

import numpy
import torch
from torch import Tensor

from .messages import check_function, told
from .tree import flatten, is_container, unflatten


class Schedule(typing.Protocol):
    """A function of the step, a 0-dim int64 tensor, to a number or a tensor."""

    def __call__(self, step: Tensor) -> Any:
        """The value at a step."""


Hyper = Any  # a number, a tensor, a schedule `step -> value`, or a tree of them like the params


@dataclass(frozen=True)
class Range:
    """The closed interval a number must lie in.

    Args:
        low: the smallest number allowed.
        high: the largest one; with `open_high` it is itself too large.
        static: whether it must be a Python number, not a tensor, schedule or tree.
        optional: whether None is allowed.
        open_high: see `high`.
        whole: whether it must be a whole number.
        fits: whether it must be a number of the dtype that it is applied to.
        per_row: whether it is one value for each row, or for each leaf or tree where a function
            sees that, and never one for each element.

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
    fits: bool = False
    per_row: bool = False

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
            if value.layout is not torch.strided:
                raise TypeError(f"`{name}` must be dense: use `.to_dense()`  Got: {value.layout}")
        elif isinstance(value, Real):
            number: Any = value
            above = number < self.high if self.open_high else number <= self.high
            if isinstance(value, bool):
                raise TypeError(f"`{name}` must be a number  Got: {value}")
            if self.whole and self.low <= number and not float(number).is_integer():
                raise ValueError(f"`{name}` must be a whole number  Got: {value}")
            if not (self.low <= number and above):
                raise ValueError(f"`{name}` must satisfy {self.rule(name)}  Got: {value}")
        elif not callable(value) or isinstance(value, type) or self.static:
            kinds = "a number" if self.static else "a number, a tensor or a schedule"
            raise TypeError(f"`{name}` must be {kinds}  Got: {told(value)}")
        else:
            check_function(name, value, "step")

    def rule(self, name: str) -> str:
        """The interval in words: ``0.0 <= q <= 1.0``."""
        low = "" if self.low == -math.inf else f"{self.low} <= "
        sign = "<" if self.open_high else "<="
        high = "" if self.high == math.inf else f" {sign} {self.high}"
        return f"{low}{name}{high}" if low or high else f"-inf <= {name} <= inf"

    def check_fit(self, name: str, value: Any, leaf: Tensor) -> None:
        """Refuse a tensor without memory; a number too large for a leaf, where `fits` says so."""
        if isinstance(value, Tensor) and value.is_meta and not leaf.is_meta:
            raise ValueError(f"`{name}` must be on {leaf.device}  Got: meta")
        if self.fits and isinstance(value, (int, float)) and math.isfinite(value):
            largest = torch.finfo(leaf.dtype).max
            if abs(value) > largest:
                raise ValueError(
                    f"`{name}` must be a number of {leaf.dtype}: abs({name}) <= {largest}  "
                    f"Got: {value}"
                )


@dataclass(frozen=True)
class Flag:
    """A structural choice: a Python bool, or one of the given strings.

    Args:
        choices: what is allowed: ``(False, True)``, or strings.

    Example:
        >>> Flag(("mean", "sum")).check("reduce", "max")
        Traceback (most recent call last):
        ValueError: `reduce` must be one of 'mean', 'sum'  Got: 'max'
    """

    choices: tuple[Any, ...] = (False, True)

    def check(self, name: str, value: Any) -> None:
        """Refuse anything but the choices."""
        if not any(value is c or (isinstance(c, str) and value == c) for c in self.choices):
            listed = ", ".join(map(repr, self.choices))
            raise ValueError(f"`{name}` must be one of {listed}  Got: {told(value)}")


@dataclass(frozen=True)
class Several:
    """A fixed number of values in one hyperparameter, such as torch's `betas`."""

    count: int
    each: Range
    static: bool = False
    optional: bool = False
    whole: bool = False

    def check(self, name: str, value: Any) -> None:
        """Refuse another number of values, and each that does not fit."""
        if not isinstance(value, (tuple, list)) or len(value) != self.count:
            raise TypeError(
                f"`{name}` must be {self.count} numbers, tensors or schedules  Got: {told(value)}"
            )
        for one in value:
            self.each.check(name, one)


Rule = Range | Flag | Several

Number = Annotated[Hyper, Range()]
Fraction = Annotated[Hyper, Range(0.0, 1.0)]
NonNegative = Annotated[Hyper, Range(0.0)]
Count = Annotated[Hyper, Range(0, whole=True, per_row=True)]
Decay = Annotated[Hyper, Range(0.0, 1.0, open_high=True)]
Betas = Annotated[Hyper, Several(2, Range(0.0, 1.0, open_high=True))]
ThreeBetas = Annotated[Hyper, Several(3, Range(0.0, 1.0, open_high=True))]
RowNumber = Annotated[Hyper, Range(per_row=True)]
RowFraction = Annotated[Hyper, Range(0.0, 1.0, per_row=True)]
RowNonNegative = Annotated[Hyper, Range(0.0, per_row=True)]
NormOrder = Annotated[float, Range(1.0, static=True)]
Optional = Annotated[Hyper, Range(optional=True)]
Bound = Annotated[Hyper, Range(optional=True, fits=True)]
Radius = Annotated[Hyper, Range(0.0, fits=True)]
StaticNumber = Annotated[float, Range(static=True)]
StaticOptional = Annotated[float | None, Range(static=True, optional=True)]
Bool = Annotated[bool, Flag()]

REQUIRED: Any = inspect.Parameter.empty  # the default of what must be given


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
        found = [m for m in metadata if isinstance(m, Rule)]
        boolean: Rule = Flag() if isinstance(p.default, bool) else Range(optional=p.default is None)
        rules[p.name] = found[0] if found else boolean
    return rules


def shown_type(rule: Rule) -> Any:
    """The type of a hyperparameter in a signature."""
    if isinstance(rule, Flag):
        return bool if rule.choices == (False, True) else typing.Literal[rule.choices]
    if isinstance(rule, Several):
        return tuple[float | Tensor | Schedule, ...]
    number = int if rule.whole else float
    kind: Any = number if rule.static else number | Tensor | Schedule
    return kind | None if rule.optional else kind


# ------------------------------------------------------------------ schedules


def is_schedule(value: Any) -> bool:
    """Whether a hyperparameter is a function of the step."""
    return callable(value) and not isinstance(value, Tensor)


def has_schedule(value: Any) -> bool:
    """Whether a hyperparameter is a schedule, or a nest with some."""
    if is_container(value):
        return any(map(is_schedule, flatten(value)[0]))
    return is_schedule(value)


def evaluated(value: Any, step: Tensor) -> Any:
    """The value of a hyperparameter at a step, 0-dim int64: its schedules replaced by theirs."""
    if is_container(value):
        leaves, spec = flatten(value)
        return unflatten([evaluated(leaf, step) for leaf in leaves], spec)
    if not is_schedule(value):
        return value
    now = value(step)
    if has_schedule(now):
        raise TypeError(f"{told(value)} must return a number or a tensor  Got: {told(now)}")
    return now


_ANY = Range()


def check_number(name: str, value: Any) -> None:
    """Refuse the value of a schedule that is not one number."""
    _ANY.check(name, value)
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"`{name}` must be one number  Got: {told(value)}")


def keys_of(
    names: Iterable[str],
    rows: Sequence[Iterable[str]],
    shared: Collection[str],
    reserved: Collection[str] = (),
) -> list[dict[str, str]]:
    """For each link: hyperparameter -> key.

    The key is the bare name where one link reads it, or where several do and share it; else
    ``<link>.<name>``, which is accepted everywhere.

    Args:
        names: of the links.
        rows: the hyperparameters of each.
        shared: bare keys that several links read together.
        reserved: bare keys that somebody else reads.
    """
    counts = Counter(name for row in rows for name in row)
    pairs = list(zip(names, rows, strict=True))
    taken = {f"{name}.{n}" for name, row in pairs for n in row}  # as a name in a wrapper may be
    own = {n for n, count in counts.items() if count == 1 or n in shared} - taken - {*reserved}
    return [{n: n if n in own else f"{name}.{n}" for n in row} for name, row in pairs]


def plain(value: Any) -> Any:
    """A number of numpy as the Python number that it is, which `weights_only` loads."""
    if isinstance(value, (dict, list, tuple)):
        leaves, spec = flatten(value)
        numbers = any(isinstance(leaf, numpy.generic) for leaf in leaves)
        return unflatten(list(map(plain, leaves)), spec) if numbers else value
    return value.item() if isinstance(value, numpy.generic) else value


def as_tensor(number: Any, device: Any = "cpu") -> Any:
    """A number as a tensor, 0-dim float64; on the host, as a compiled graph takes it."""
    if isinstance(number, Tensor):
        return number
    if isinstance(number, (tuple, list)):
        return tuple(map(as_tensor, number))
    return torch.full((), number, dtype=torch.float64, device=device)


def placed(value: Any, device: torch.device, dtype: torch.dtype = torch.float64) -> Tensor:
    """A number or a tensor as a tensor on a device: a number is filled in there, never copied."""
    if isinstance(value, Tensor):
        return value.to(device, dtype)
    return torch.full((), value, dtype=dtype, device=device)


def show(value: Any) -> str:
    """A hyperparameter in a repr: numbers as they are, schedules by name, tensors by shape."""
    if isinstance(value, Tensor) and value.ndim:
        return f"tensor{tuple(value.shape)}"
    return getattr(value, "__name__", None) or repr(value)
