"""Schedules: hyperparameters as functions of the step, with optax's names and meanings.

A schedule is a value of any link, as in ``clamp(clamp_max=linear_schedule(3.0, 1.0, 100))``: the
link then keeps a step and hands it over. Any function of the step will do; these are checked when
made, print, pickle, and read no tensor on the host, so they go under vmap and into a graph.
"""

# ruff: noqa: N801  (the classes are named, as they are made, like optax's functions)

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from ..data.hyper import Bool, NonNegative, Number, Optional, Range, rules_of
from ..data.tree import is_container

Steps = Annotated[Any, Range(1)]


class Schedule:
    """A function of the step whose options are its fields: the base of the classes here.

    The step is an int64 tensor, 0-dim in a link and of any shape to draw the curve; the value is
    a float64 tensor of that shape. An option is a number or a 0-dim tensor.
    """

    def __post_init__(self) -> None:
        parameters = inspect.signature(type(self)).parameters.values()
        for name, rule in rules_of(type(self), parameters).items():
            check_value(name, getattr(self, name), rule)

    def __call__(self, step: Any) -> Tensor:
        step = step if isinstance(step, Tensor) else torch.as_tensor(step, device="cpu")
        value = torch.as_tensor(self.at(step.double()), dtype=torch.float64, device=step.device)
        return value.expand(step.shape)

    def at(self, t: Tensor) -> Any:
        """The value at step t, which is float64."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class constant_schedule(Schedule):
    """Keep one value.

    Args:
        value: any number but NaN.

    Raises:
        ValueError: a value is NaN.

    Example:
        >>> import torch
        >>> constant_schedule(0.5)(torch.tensor(7))
        tensor(0.5000, dtype=torch.float64)

    Source: the function of the same name in optax.
    """

    value: Number

    def at(self, t: Tensor) -> Any:
        return self.value


@dataclass(frozen=True, eq=False)
class polynomial_schedule(Schedule):
    """Go from one value to another along a power of the steps that remain.

    ``(init_value - end_value) * (1 - progress) ** power + end_value``, where progress grows from
    0 to 1 in `transition_steps` steps.

    Args:
        init_value: the value until `transition_begin`, any number but NaN.
        end_value: the value from ``transition_begin + transition_steps`` on, likewise.
        power: >= 0; 1 is a straight line.
        transition_steps: length of the transition, >= 1.
        transition_begin: the step at which it begins, >= 0.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> polynomial_schedule(1.0, 0.0, power=2, transition_steps=4)(torch.arange(5))
        tensor([1.0000, 0.5625, 0.2500, 0.0625, 0.0000], dtype=torch.float64)

    Source: the function of the same name in optax.
    """

    init_value: Number
    end_value: Number
    power: NonNegative
    transition_steps: Steps
    transition_begin: NonNegative = 0

    def at(self, t: Tensor) -> Any:
        left = (1 - _progress(t - self.transition_begin, self.transition_steps)) ** self.power
        return _mix(self.init_value, self.end_value, left)


@dataclass(frozen=True, eq=False)
class linear_schedule(Schedule):
    """Go from one value to another along a straight line.

    Args:
        init_value: the value until `transition_begin`, any number but NaN.
        end_value: the value from ``transition_begin + transition_steps`` on, likewise.
        transition_steps: length of the transition, >= 1.
        transition_begin: the step at which it begins, >= 0.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> linear_schedule(1.0, 0.0, transition_steps=4)(torch.arange(6))
        tensor([1.0000, 0.7500, 0.5000, 0.2500, 0.0000, 0.0000], dtype=torch.float64)

    Source: the function of the same name in optax.
    """

    init_value: Number
    end_value: Number
    transition_steps: Steps
    transition_begin: NonNegative = 0

    def at(self, t: Tensor) -> Any:
        left = 1 - _progress(t - self.transition_begin, self.transition_steps)
        return _mix(self.init_value, self.end_value, left)


@dataclass(frozen=True, eq=False)
class cosine_decay_schedule(Schedule):
    """Decay along half a cosine, from `init_value` to ``alpha * init_value``.

    Args:
        init_value: the first value, any number but NaN.
        decay_steps: length of the decay, >= 1.
        alpha: what remains in the end, as a fraction of `init_value`, any number but NaN.
        exponent: power of the cosine term, >= 0.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> cosine_decay_schedule(1.0, decay_steps=2, alpha=0.5)(torch.arange(4))
        tensor([1.0000, 0.7500, 0.5000, 0.5000], dtype=torch.float64)

    Source: SGDR (Loshchilov and Hutter 2017, arXiv 1608.03983); optax's of the same name.
    """

    init_value: Number
    decay_steps: Steps
    alpha: Number = 0.0
    exponent: NonNegative = 1.0

    def at(self, t: Tensor) -> Any:
        return self.init_value * _mix(1.0, self.alpha, _cosine(t, self.decay_steps, self.exponent))


@dataclass(frozen=True, eq=False)
class exponential_decay(Schedule):
    """Multiply by `decay_rate` once in `transition_steps` steps, continuously or in a staircase.

    Args:
        init_value: the value until `transition_begin`, any number but NaN.
        transition_steps: steps in which the factor is `decay_rate`, >= 1.
        decay_rate: >= 0.
        transition_begin: the step at which it begins, >= 0.
        staircase: decay at whole multiples of `transition_steps` only; a Python bool.
        end_value: where the decay stops (a growth, with decay_rate >= 1), or None.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> exponential_decay(1.0, transition_steps=1, decay_rate=0.5)(torch.arange(4))
        tensor([1.0000, 0.5000, 0.2500, 0.1250], dtype=torch.float64)

    Source: the function of the same name in optax.
    """

    init_value: Number
    transition_steps: Steps
    decay_rate: NonNegative
    transition_begin: NonNegative = 0
    staircase: Bool = False
    end_value: Optional = None

    def at(self, t: Tensor) -> Any:
        times = ((t - self.transition_begin) / self.transition_steps).clamp(min=0)
        rate = torch.as_tensor(self.decay_rate, dtype=t.dtype, device=t.device)
        value = self.init_value * rate ** (times.floor() if self.staircase else times)
        if self.end_value is None:
            return value
        end = torch.as_tensor(self.end_value, dtype=t.dtype, device=t.device)
        return torch.where(rate < 1, torch.maximum(value, end), torch.minimum(value, end))


@dataclass(frozen=True, eq=False)
class piecewise_constant_schedule(Schedule):
    """Multiply by a factor at each of some steps.

    Args:
        init_value: the first value, any number but NaN.
        boundaries_and_scales: step -> the factor from that step on; steps >= 0. Or None.

    Raises:
        TypeError: `boundaries_and_scales` is no mapping.
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> piecewise_constant_schedule(1.0, {2: 0.5, 3: 0.1})(torch.arange(4))
        tensor([1.0000, 1.0000, 0.5000, 0.0500], dtype=torch.float64)

    Source: the function of the same name in optax.
    """

    init_value: Number
    boundaries_and_scales: Mapping[int, Any] | None = None

    def __post_init__(self) -> None:
        check_value("init_value", self.init_value, Range())
        scales = {} if self.boundaries_and_scales is None else self.boundaries_and_scales
        if not isinstance(scales, Mapping):
            raise TypeError(f"`boundaries_and_scales` must map steps to factors  Got: {scales!r}")
        for boundary, scale in scales.items():
            check_value("boundaries_and_scales", boundary, Range(0))
            check_value("boundaries_and_scales", scale, Range())

    def at(self, t: Tensor) -> Any:
        value = torch.as_tensor(self.init_value, dtype=t.dtype, device=t.device)
        for boundary, scale in (self.boundaries_and_scales or {}).items():
            value = torch.where(t < boundary, value, value * scale)
        return value


@dataclass(frozen=True, eq=False)
class warmup_cosine_decay_schedule(Schedule):
    """Rise along a straight line, then decay along half a cosine.

    Args:
        init_value: the first value, any number but NaN.
        peak_value: the value at `warmup_steps`, likewise.
        warmup_steps: length of the rise, >= 1.
        decay_steps: length of rise and decay together, > warmup_steps.
        end_value: the value from `decay_steps` on, any number but NaN.
        exponent: power of the cosine term, >= 0.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> warmup_cosine_decay_schedule(0.0, 1.0, 2, 6)(torch.arange(7))
        tensor([0.0000, 0.5000, 1.0000, 0.8536, 0.5000, 0.1464, 0.0000],
               dtype=torch.float64)

    Source: the function of the same name in optax.
    """

    init_value: Number
    peak_value: Number
    warmup_steps: Steps
    decay_steps: Steps
    end_value: Number = 0.0
    exponent: NonNegative = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        warmup, decay = self.warmup_steps, self.decay_steps
        if not (isinstance(warmup, Tensor) or isinstance(decay, Tensor)) and decay <= warmup:
            raise ValueError(
                f"`decay_steps` must satisfy warmup_steps(= {warmup}) < decay_steps  Got: {decay}"
            )

    def at(self, t: Tensor) -> Any:
        rise = _mix(self.peak_value, self.init_value, _progress(t, self.warmup_steps))
        after, length = t - self.warmup_steps, self.decay_steps - self.warmup_steps
        decay = _mix(self.peak_value, self.end_value, _cosine(after, length, self.exponent))
        return torch.where(after < 0, rise, decay)


@dataclass(frozen=True, eq=False)
class join_schedules(Schedule):
    """Follow one schedule after another; each counts from its own boundary.

    Args:
        schedules: functions of the step, one at least.
        boundaries: the steps at which the next one begins, ascending and >= 0; one fewer.

    Raises:
        TypeError: `schedules` holds what is no function.
        ValueError: `boundaries` does not fit.

    Example:
        >>> import torch
        >>> rise = linear_schedule(0.0, 1.0, 2)
        >>> join_schedules([rise, constant_schedule(0.5)], [3])(torch.arange(5))
        tensor([0.0000, 0.5000, 1.0000, 0.5000, 0.5000], dtype=torch.float64)

    Source: the function of the same name in optax.
    """

    schedules: Sequence[Callable[[Tensor], Any]]
    boundaries: Sequence[int]

    def __post_init__(self) -> None:
        if not self.schedules or not all(map(callable, self.schedules)):
            raise TypeError(f"`schedules` must hold functions of the step  Got: {self.schedules!r}")
        numbers = [b for b in self.boundaries if not isinstance(b, Tensor)]
        for boundary in numbers:
            check_value("boundaries", boundary, Range(0))
        if sorted(numbers) != numbers or len(self.boundaries) != len(self.schedules) - 1:
            raise ValueError(
                f"`boundaries` must be {len(self.schedules) - 1} ascending steps, one fewer than "
                f"schedules  Got: {self.boundaries!r}"
            )

    def at(self, t: Tensor) -> Any:
        value = torch.as_tensor(self.schedules[0](t.long()), dtype=t.dtype, device=t.device)
        for boundary, schedule in zip(self.boundaries, self.schedules[1:], strict=True):
            own = schedule((t - boundary).clamp(min=0).long())
            value = torch.where(
                t < boundary, value, torch.as_tensor(own, dtype=t.dtype, device=t.device)
            )
        return value


def check_value(name: str, value: Any, rule: Any) -> None:
    """Refuse an option that is neither a number in the rule's range nor a tensor."""
    if is_container(value) or (callable(value) and not isinstance(value, Tensor)):
        raise TypeError(f"`{name}` must be a number or a tensor  Got: {value!r}")
    rule.check(name, value)


def _progress(t: Tensor, steps: Any) -> Tensor:
    """What is done of `steps` steps, from 0 to 1."""
    return torch.clamp(t / steps, 0, 1)


def _cosine(t: Tensor, steps: Any, exponent: Any) -> Any:
    """From 1 to 0 in `steps` steps, along half a cosine."""
    return (0.5 * (1 + torch.cos(math.pi * _progress(t, steps)))) ** exponent


def _mix(a: Any, b: Any, share: Any) -> Any:
    """`share` of a and the rest of b: exactly a at 1, exactly b at 0."""
    return a * share + b * (1 - share)
