"""Schedules of several parts: warmups, cycles and restarts."""

# ruff: noqa: N801  (the classes are named, as they are made, like optax's functions)

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from ..data.hyper import Fraction, NonNegative, Number, Range
from .schedules import (
    Schedule,
    Steps,
    check_value,
    exponential_decay,
    half_cosine,
    like,
    linear_schedule,
    mix,
    progress,
    through,
)

Divisor = Annotated[Any, Range(1)]


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
        >>> from rai_chain import constant_schedule, linear_schedule
        >>> rise = linear_schedule(0.0, 1.0, 2)
        >>> join_schedules([rise, constant_schedule(0.5)], [3])(torch.arange(5))
        tensor([0.0000, 0.5000, 1.0000, 0.5000, 0.5000], dtype=torch.float64)

    Source: the function of the same name in optax.
    """

    schedules: Sequence[Callable[[Tensor], Any]]
    boundaries: Sequence[int]

    def __post_init__(self) -> None:
        parts: Any = self.schedules
        if not isinstance(parts, Sequence) or not parts or not all(map(callable, parts)):
            raise TypeError(f"`schedules` must hold functions of the step  Got: {parts!r}")
        if not isinstance(self.boundaries, Sequence):
            raise TypeError(f"`boundaries` must hold steps  Got: {self.boundaries!r}")
        numbers = [b for b in self.boundaries if not isinstance(b, Tensor)]
        for boundary in numbers:
            check_value("boundaries", boundary, Range(0))
        if sorted(numbers) != numbers or len(self.boundaries) != len(self.schedules) - 1:
            raise ValueError(
                f"`boundaries` must be {len(self.schedules) - 1} ascending steps, one fewer than "
                f"schedules  Got: {self.boundaries!r}"
            )

    def at(self, t: Tensor) -> Any:
        value = _value(self.schedules[0], t)
        for boundary, schedule in zip(self.boundaries, self.schedules[1:], strict=True):
            own = _value(schedule, (t - boundary).clamp(min=0))
            value = torch.where(t < boundary, value, own)
        return value


def _value(schedule: Callable[[Tensor], Any], t: Tensor) -> Tensor:
    """Of one part: a schedule of ours takes any step, another function whole ones."""
    value = schedule.at(t) if isinstance(schedule, Schedule) else schedule(t.long())
    return like(t, value)


@dataclass(frozen=True, eq=False)
class warmup_cosine_decay_schedule(Schedule):
    """Rise along a straight line, then decay along half a cosine.

    Args:
        init_value: the first value, any number but NaN.
        peak_value: the value at `warmup_steps`, likewise.
        warmup_steps: length of the rise, >= 0.
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
    warmup_steps: NonNegative
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
        rise = mix(self.peak_value, self.init_value, progress(t, self.warmup_steps))
        after, length = t - self.warmup_steps, self.decay_steps - self.warmup_steps
        decay = mix(self.peak_value, self.end_value, half_cosine(after, length, self.exponent))
        return torch.where(after < 0, rise, decay)


def warmup_constant_schedule(init_value: Any, peak_value: Any, warmup_steps: Any) -> Schedule:
    """Rise along a straight line, then stay.

    Args:
        init_value: the first value, any number but NaN.
        peak_value: the value from `warmup_steps` on, likewise.
        warmup_steps: length of the rise, >= 1.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> warmup_constant_schedule(0.0, 1.0, 2)(torch.arange(4))
        tensor([0.0000, 0.5000, 1.0000, 1.0000], dtype=torch.float64)

    Source: the function of the same name in optax.
    """
    return linear_schedule(init_value, peak_value, warmup_steps)


def warmup_exponential_decay_schedule(
    init_value: Any,
    peak_value: Any,
    warmup_steps: Any,
    transition_steps: Any,
    decay_rate: Any,
    transition_begin: Any = 0,
    staircase: bool = False,
    end_value: Any = None,
) -> Schedule:
    """Rise along a straight line, then decay as `exponential_decay` does.

    Args:
        init_value: the first value, any number but NaN.
        peak_value: the value at `warmup_steps`, likewise.
        warmup_steps: length of the rise, >= 1.
        transition_steps: steps in which the factor is `decay_rate`, >= 1.
        decay_rate: >= 0.
        transition_begin: the step after the rise at which the decay begins, >= 0.
        staircase: decay at whole multiples of `transition_steps` only; a Python bool.
        end_value: where the decay stops (a growth, with decay_rate >= 1), or None.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> warmup_exponential_decay_schedule(0.0, 1.0, 2, 1, 0.5)(torch.arange(5))
        tensor([0.0000, 0.5000, 1.0000, 0.5000, 0.2500], dtype=torch.float64)

    Source: the function of the same name in optax.
    """
    decay = exponential_decay(
        peak_value, transition_steps, decay_rate, transition_begin, staircase, end_value
    )
    rise = linear_schedule(init_value, peak_value, warmup_steps)
    return join_schedules([rise, decay], [warmup_steps])


@dataclass(frozen=True, eq=False)
class warmup_stable_decay_schedule(Schedule):
    """Rise along a straight line, stay, then fall along a straight line.

    Args:
        init_value: the first value, any number but NaN.
        peak_value: the value that stays, likewise.
        warmup_steps: length of the rise, >= 0.
        stable_steps: how long the peak stays, >= 0.
        decay_steps: length of the fall, >= 0.
        end_value: the value from then on, any number but NaN.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> warmup_stable_decay_schedule(0.0, 1.0, 2, 1, 4)(torch.arange(8))
        tensor([0.0000, 0.5000, 1.0000, 1.0000, 0.7500, 0.5000, 0.2500, 0.0000],
               dtype=torch.float64)

    Source: the WSD schedule (Hu et al. 2024, "MiniCPM", arXiv 2404.06395).
    """

    init_value: Number
    peak_value: Number
    warmup_steps: NonNegative
    stable_steps: NonNegative
    decay_steps: NonNegative
    end_value: Number = 0.0

    def at(self, t: Tensor) -> Any:
        stable = self.warmup_steps + self.stable_steps
        points = [
            (0, self.init_value),
            (self.warmup_steps, self.peak_value),
            (stable, self.peak_value),
            (stable + self.decay_steps, self.end_value),
        ]
        return through(t, points, "linear")


@dataclass(frozen=True, eq=False)
class linear_onecycle_schedule(Schedule):
    """Rise to a peak, fall back, and fall further, along three straight lines.

    From ``peak_value / div_factor`` to `peak_value` at ``floor(pct_start * transition_steps)``,
    back at ``floor(pct_final * transition_steps)``, and to that over `final_div_factor` at
    `transition_steps`.

    Args:
        transition_steps: length of the cycle, >= 1.
        peak_value: any number but NaN.
        pct_start: the fraction of the steps that rises, in [0, 1].
        pct_final: the fraction after which the last fall begins, in [pct_start, 1].
        div_factor: peak over first value, >= 1.
        final_div_factor: first over last value, >= 1.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> linear_onecycle_schedule(10, 1.0, 0.2, 0.4, 2.0, 5.0)(torch.tensor([0, 2, 4, 10]))
        tensor([0.5000, 1.0000, 0.5000, 0.1000], dtype=torch.float64)

    Source: Smith and Topin 2018, "Super-Convergence", arXiv 1708.07120; optax's of the same name.
    """

    transition_steps: Steps
    peak_value: Number
    pct_start: Fraction = 0.3
    pct_final: Fraction = 0.85
    div_factor: Divisor = 25.0
    final_div_factor: Divisor = 1e4

    def __post_init__(self) -> None:
        super().__post_init__()
        start, final = self.pct_start, self.pct_final
        if not (isinstance(start, Tensor) or isinstance(final, Tensor)) and final < start:
            raise ValueError(
                f"`pct_final` must satisfy pct_start(= {start}) <= pct_final  Got: {final}"
            )

    def at(self, t: Tensor) -> Any:
        steps, first = like(t, self.transition_steps), self.peak_value / self.div_factor
        points = [
            (0, first),
            ((self.pct_start * steps).floor(), self.peak_value),
            ((self.pct_final * steps).floor(), first),
            (steps, first / self.final_div_factor),
        ]
        return through(t, points, "linear")


@dataclass(frozen=True, eq=False)
class cosine_onecycle_schedule(Schedule):
    """Rise to a peak and fall far below the start, along two half cosines.

    From ``peak_value / div_factor`` to `peak_value` at ``floor(pct_start * transition_steps)``,
    and to ``peak_value / (div_factor * final_div_factor)`` at `transition_steps`.

    Args:
        transition_steps: length of the cycle, >= 1.
        peak_value: any number but NaN.
        pct_start: the fraction of the steps that rises, in [0, 1].
        div_factor: peak over first value, >= 1.
        final_div_factor: first over last value, >= 1.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> cosine_onecycle_schedule(10, 1.0, 0.2, 2.0, 5.0)(torch.tensor([0, 1, 2, 6, 10]))
        tensor([0.5000, 0.7500, 1.0000, 0.5500, 0.1000], dtype=torch.float64)

    Source: Smith and Topin 2018, "Super-Convergence", arXiv 1708.07120; optax's of the same name.
    """

    transition_steps: Steps
    peak_value: Number
    pct_start: Fraction = 0.3
    div_factor: Divisor = 25.0
    final_div_factor: Divisor = 1e4

    def at(self, t: Tensor) -> Any:
        steps, first = like(t, self.transition_steps), self.peak_value / self.div_factor
        points = [
            (0, first),
            ((self.pct_start * steps).floor(), self.peak_value),
            (steps, first / self.final_div_factor),
        ]
        return through(t, points, "cosine")


def sgdr_schedule(cosine_kwargs: Sequence[Mapping[str, Any]]) -> Schedule:
    """Restart a decay along half a cosine, with a warmup each time.

    Args:
        cosine_kwargs: the arguments of `warmup_cosine_decay_schedule` of each cycle, one cycle at
            least; each is `decay_steps` long.

    Raises:
        TypeError: there is no cycle, or one lacks an argument.
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> cycle = dict(init_value=0.0, peak_value=1.0, warmup_steps=1, decay_steps=3)
        >>> sgdr_schedule([cycle, {**cycle, "peak_value": 0.5}])(torch.arange(6))
        tensor([0.0000, 1.0000, 0.5000, 0.0000, 0.5000, 0.2500], dtype=torch.float64)

    Source: SGDR (Loshchilov and Hutter 2017, arXiv 1608.03983); optax's of the same name.
    """
    given: Any = cosine_kwargs
    maps = isinstance(given, Sequence) and all(isinstance(one, Mapping) for one in given)
    if not maps or not given:
        raise TypeError(f"`cosine_kwargs` must hold dicts of arguments  Got: {given!r}")
    cycles = [warmup_cosine_decay_schedule(**kwargs) for kwargs in cosine_kwargs]
    ends = [sum(cycle.decay_steps for cycle in cycles[:i]) for i in range(1, len(cycles))]
    return join_schedules(cycles, ends)
