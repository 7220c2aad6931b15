"""Interleaved timing: every candidate of a work is timed in every round, in a new order each."""

import gc
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import quantiles
from time import perf_counter

import torch

Samples = dict[str, list[float | None]]  # candidate -> seconds a call, by round; None: sat out
Clock = Callable[[Callable[[], object], int], float]


class NotAvailableError(Exception):
    """What a candidate needs is not there; the text says what."""


@dataclass(frozen=True)
class Candidate:
    """One way to do a work.

    Attributes:
        run: the work.
        prepare: what makes each call do the same work; not timed. Without it calls are repeated.
    """

    run: Callable[[], object]
    prepare: Callable[[], object] | None = None


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        seconds: for each candidate of a work, after its first calls.
        least: rounds that each candidate takes part in, however slow it is.
        most: rounds that a fast one takes part in.
        sample: seconds that a sample lasts at least, where calls can be repeated.
    """

    seconds: float
    least: int
    most: int
    sample: float = 5e-4


FULL = Effort(seconds=1.2, least=5, most=101)
QUICK = Effort(seconds=0.5, least=3, most=41)


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles."""

    low: float
    median: float
    high: float
    count: int


def on_cpu(run: Callable[[], object], number: int) -> float:
    """Seconds that a call takes, over `number` calls."""
    start = perf_counter()
    for _ in range(number):
        run()
    return (perf_counter() - start) / number


def on_cuda(run: Callable[[], object], number: int) -> float:
    """The same on the GPU's own clock."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(number):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / number


def measure(candidates: Mapping[str, Candidate], effort: Effort, clock: Clock = on_cpu) -> Samples:
    """Time candidates in turns.

    Each gets about the same time: one that is too slow to take part in every round takes part in
    every second, fourth, ... one, so that any two of them meet.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        costs = {name: _warm_up(each, clock) for name, each in candidates.items()}
        numbers = {
            name: 1 if each.prepare else max(1, math.ceil(effort.sample / costs[name]))
            for name, each in candidates.items()
        }
        turns = {
            name: min(effort.most, max(effort.least, int(effort.seconds / (cost * numbers[name]))))
            for name, cost in costs.items()
        }
        rounds = max(turns.values(), default=0)
        periods = {name: 2 ** int(math.log2(rounds / turn)) for name, turn in turns.items()}
        samples: Samples = {name: [] for name in candidates}
        shuffle = random.Random(0).shuffle
        order = list(candidates)
        for i in range(rounds):
            shuffle(order)
            for name in order:
                plays = (i + 1) % periods[name] == 0
                samples[name].append(
                    _sample(candidates[name], numbers[name], clock) if plays else None
                )
        return samples
    finally:
        if enabled:
            gc.enable()


def _warm_up(candidate: Candidate, clock: Clock) -> float:
    """Seconds a call; the first one may compile, allocate and load, so where it is cheap, again."""
    first = _sample(candidate, 1, clock)
    return first if 0.2 < first < 5.0 else max(1e-9, _sample(candidate, 1, clock))


def _sample(candidate: Candidate, number: int, clock: Clock) -> float:
    if candidate.prepare is not None:
        candidate.prepare()
    return clock(candidate.run, number)


def spread(values: Sequence[float]) -> Spread:
    """The median and the quartiles of at least one value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0], 1)
    low, median, high = quantiles(values, n=4, method="inclusive")
    return Spread(low, median, high, len(values))


def ratio(samples: Samples, above: str, below: str) -> Spread:
    """How many times as long `above` takes, round by round: noise that lasts hits both."""
    pairs = zip(samples[above], samples[below], strict=True)
    return spread([a / b for a, b in pairs if a is not None and b is not None])
