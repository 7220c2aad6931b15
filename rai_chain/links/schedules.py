"""Schedules: hyperparameters as functions of the step, with optax's names and meanings.

A schedule is a value of any link, as in ``clamp(clamp_max=linear_schedule(3.0, 1.0, 100))``: the
link then keeps a step and hands it over. Any function of the step will do; these are checked when
made, print, pickle, and read no tensor on the host, so they go under vmap and into a graph.
"""

# ruff: noqa: N801  (the classes are named, as they are made, like optax's functions)

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from ..data.hyper import Bool, Flag, NonNegative, Number, Optional, Range, placed, rules_of
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
        value = placed(self.at(step.double()), step.device)
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
        left = (1 - progress(t - self.transition_begin, self.transition_steps)) ** self.power
        return mix(self.init_value, self.end_value, left)


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
        left = 1 - progress(t - self.transition_begin, self.transition_steps)
        return mix(self.init_value, self.end_value, left)


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
        left = half_cosine(t, self.decay_steps, self.exponent)
        return self.init_value * mix(1.0, self.alpha, left)


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
        rate = like(t, self.decay_rate)
        value = self.init_value * rate ** (times.floor() if self.staircase else times)
        if self.end_value is None:
            return value
        end = like(t, self.end_value)
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
        check_scales(self.boundaries_and_scales)

    def at(self, t: Tensor) -> Any:
        value = like(t, self.init_value)
        for boundary, scale in (self.boundaries_and_scales or {}).items():
            value = torch.where(t < boundary, value, value * scale)
        return value


@dataclass(frozen=True, eq=False)
class piecewise_interpolate_schedule(Schedule):
    """Go from each of some steps to the next along a line or half a cosine.

    Args:
        interpolate_type: "linear" or "cosine".
        init_value: the value at step 0, any number but NaN.
        boundaries_and_scales: step -> the factor by which the value there is that of the step
            before it in the mapping; steps >= 0. Constant after the last. Or None.

    Raises:
        TypeError: `boundaries_and_scales` is no mapping.
        ValueError: a value outside its range, or another `interpolate_type`.

    Example:
        >>> import torch
        >>> piecewise_interpolate_schedule("linear", 1.0, {2: 3.0, 4: 0.0})(torch.arange(6))
        tensor([1.0000, 2.0000, 3.0000, 1.5000, 0.0000, 0.0000], dtype=torch.float64)

    Source: the function of the same name in optax.
    """

    interpolate_type: str
    init_value: Number
    boundaries_and_scales: Mapping[int, Any] | None = None

    def __post_init__(self) -> None:
        Flag(("linear", "cosine")).check("interpolate_type", self.interpolate_type)
        check_value("init_value", self.init_value, Range())
        check_scales(self.boundaries_and_scales)

    def at(self, t: Tensor) -> Any:
        points = [(0, self.init_value)]
        for boundary, scale in sorted((self.boundaries_and_scales or {}).items()):
            points.append((boundary, points[-1][1] * scale))
        return through(t, points, self.interpolate_type)


@dataclass(frozen=True, eq=False)
class inverse_sqrt_schedule(Schedule):
    """Rise along a straight line, then fall with one over the root of the step.

    ``peak_value * sqrt(warmup_steps / step)`` from `warmup_steps` on.

    Args:
        init_value: the first value, any number but NaN.
        peak_value: the value at `warmup_steps`, likewise.
        warmup_steps: length of the rise, >= 1.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> inverse_sqrt_schedule(0.0, 1.0, warmup_steps=2)(torch.tensor([0, 1, 2, 8]))
        tensor([0.0000, 0.5000, 1.0000, 0.5000], dtype=torch.float64)

    Source: the learning rate of Vaswani et al. 2017, "Attention Is All You Need", arXiv 1706.03762.
    """

    init_value: Number
    peak_value: Number
    warmup_steps: Steps

    def at(self, t: Tensor) -> Any:
        length = like(t, self.warmup_steps)
        rise = mix(self.peak_value, self.init_value, progress(t, length))
        fall = self.peak_value * (length / torch.maximum(t, length)).sqrt()
        return torch.where(t < length, rise, fall)


def check_value(name: str, value: Any, rule: Any) -> None:
    """Refuse an option that is neither a number in the rule's range nor a tensor."""
    if is_container(value) or (callable(value) and not isinstance(value, Tensor)):
        raise TypeError(f"`{name}` must be a number or a tensor  Got: {value!r}")
    rule.check(name, value)


def check_scales(scales: Any) -> None:
    """Refuse `boundaries_and_scales` that map no steps to factors."""
    if not isinstance(scales, Mapping | None):
        raise TypeError(f"`boundaries_and_scales` must map steps to factors  Got: {scales!r}")
    for boundary, scale in (scales or {}).items():
        check_value("boundaries_and_scales", boundary, Range(0))
        check_value("boundaries_and_scales", scale, Range())


def like(t: Tensor, value: Any) -> Tensor:
    """A number or a tensor in the dtype and on the device of the step."""
    return placed(value, t.device, t.dtype)


def progress(t: Tensor, steps: Any) -> Tensor:
    """What is done of `steps` steps, from 0 to 1; of none at all, one step does it."""
    return torch.clamp(t / like(t, steps).clamp(min=1), 0, 1)


def half_cosine(t: Tensor, steps: Any, exponent: Any = 1.0) -> Any:
    """From 1 to 0 in `steps` steps, along half a cosine."""
    return (0.5 * (1 + torch.cos(math.pi * progress(t, steps)))) ** exponent


def mix(a: Any, b: Any, share: Any) -> Any:
    """`share` of a and the rest of b: exactly a at 1, exactly b at 0."""
    return a * share + b * (1 - share)


def through(t: Tensor, points: Sequence[tuple[Any, Any]], interpolate_type: str) -> Any:
    """The curve through points (step, value) of ascending steps, constant before and after."""
    (start, value), *others = points
    curve = like(t, value)
    for end, target in others:
        left = (
            half_cosine(t - start, end - start)
            if interpolate_type == "cosine"
            else 1 - progress(t - start, end - start)
        )
        part = torch.where(t < end, mix(value, target, left), target)
        curve = torch.where(t < start, curve, part)
        start, value = end, target
    return curve
