"""Combinators: pipelines applied at some times, or with a memory; see parts.py for some leaves."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.chain import chain
from ..core.pipeline import GradientTransformation
from ..core.wrapper import Wrapper
from ..data.hyper import Flag, Range, placed
from ..data.leaves import both, choose, device_of, remember, zeros
from ..data.messages import check_function, told
from ..data.tree import Leaves, Spec, Tree, flatten, present, unflatten
from ..engine.function import column_of
from ..engine.run import Phase, Run, State
from .record import global_norm

# ------------------------------------------------------------------ when


class ApplyIfFinite(Wrapper):
    """See `apply_if_finite`."""

    label = "apply_if_finite"
    own: ClassVar = {"max_consecutive_errors": Range(0.0, per_row=True)}
    ticks = False
    once = frozenset({"notfinite_count", "total_notfinite"})

    def begin(self, leaves: Leaves, spec: Spec) -> State:
        zero = torch.zeros((), dtype=torch.int64, device=device_of(leaves))
        return {"notfinite_count": zero, "total_notfinite": zero.clone()}

    def wrap(
        self, leaves: Leaves, state: State, run: Run, values: Any, **own: Any
    ) -> tuple[Leaves, State]:
        flags = [leaf.isfinite().all() for leaf in leaves if leaf is not None]
        zero = torch.zeros_like(state["notfinite_count"])
        finite = torch.stack(flags).all() if flags else zero == 0
        count = torch.where(finite, zero, zero + state["notfinite_count"] + 1)
        accept = finite | (count > own["max_consecutive_errors"])
        new, inside = self.through(leaves, state, run, values)
        return choose(accept, new, self.idle(leaves, run)), {
            "inner": {"": choose(accept, inside, state["inner"][""])},
            "notfinite_count": count,
            "total_notfinite": state["total_notfinite"] + ~finite,
        }


def apply_if_finite(inner: GradientTransformation, max_consecutive_errors: Any) -> Wrapper:
    """Apply a transformation unless a gradient has NaN or inf: then nothing moves.

    The updates are zero (the parameters stay, where `inner` steps) and the state of `inner` is
    kept. The state counts: ``notfinite_count`` in a row, ``total_notfinite`` in all.

    Args:
        inner: any pipeline.
        max_consecutive_errors: after more of them in a row they pass, >= 0.

    Raises:
        ValueError: max_consecutive_errors < 0.

    Example:
        >>> import torch
        >>> from rai_chain import scale
        >>> tx = apply_if_finite(scale(2.0), max_consecutive_errors=3)
        >>> g = torch.tensor([1.0, float("nan")])
        >>> tx.update(g, tx.init(g))[0]
        tensor([0., 0.])

    Source: the function of the same name in optax.
    """
    made: Wrapper = ApplyIfFinite(chain(inner), max_consecutive_errors=max_consecutive_errors)
    return made


class Conditionally(Wrapper):
    """See `conditionally`."""

    label = "conditionally"

    def wrap(
        self, leaves: Leaves, state: State, run: Run, values: Any, **own: Any
    ) -> tuple[Leaves, State]:
        said = self.options["predicate"](unflatten(list(leaves), run.spec), state["step"])
        condition = _verdict("predicate", said, leaves)
        new, inside = self.through(leaves, state, run, values)
        return choose(condition, new, self.passed(leaves, run)), {
            "inner": {"": choose(condition, inside, state["inner"][""])}
        }


def _verdict(name: str, said: Any, leaves: Leaves) -> Tensor:
    """What a function said of the leaves, refused where it is not one bool."""
    if not isinstance(said, bool) and getattr(said, "dtype", None) is not torch.bool:
        raise TypeError(f"`{name}` must return one bool, a 0-dim tensor  Got: {told(said)}")
    condition = placed(said, device_of(leaves), torch.bool)
    if condition.ndim:
        raise ValueError(f"`{name}` must return one bool, a 0-dim tensor  Got: {told(said)}")
    return condition


def conditionally(
    inner: GradientTransformation, predicate: Callable[[Tree, Tensor], Tensor]
) -> Wrapper:
    """Apply a transformation where a predicate holds; elsewhere updates pass as they are.

    Args:
        inner: any pipeline; its state moves only where the predicate holds.
        predicate: ``(updates, step) -> 0-dim bool tensor``; it is traced, never read.

    Raises:
        TypeError: `predicate` is no function.

    Example:
        >>> import torch
        >>> from rai_chain import scale
        >>> tx = conditionally(scale(0.0), lambda updates, step: step >= 1)
        >>> g = torch.ones(2)
        >>> first, state = tx.update(g, tx.init(g))
        >>> second, state = tx.update(g, state)
        >>> first, second
        (tensor([1., 1.]), tensor([0., 0.]))

    Source: `conditionally_transform` in optax.
    """
    check_function("predicate", predicate, "updates", "step")
    made: Wrapper = Conditionally(chain(inner), predicate=predicate)
    return made


class ConditionallyMask(Conditionally):
    """See `conditionally_mask`."""

    label = "conditionally_mask"

    def passed(self, leaves: Leaves, run: Run) -> Leaves:
        return self.idle(leaves, run)


def conditionally_mask(
    inner: GradientTransformation, predicate: Callable[[Tree, Tensor], Tensor]
) -> Wrapper:
    """Apply a transformation where a predicate holds; elsewhere nothing moves.

    As `conditionally`, with updates of zero (the parameters stay, where `inner` steps).

    Args:
        inner: any pipeline; its state moves only where the predicate holds.
        predicate: ``(updates, step) -> 0-dim bool tensor``; it is traced, never read.

    Raises:
        TypeError: `predicate` is no function.

    Example:
        >>> import torch
        >>> from rai_chain import scale
        >>> tx = conditionally_mask(scale(2.0), lambda updates, step: step >= 1)
        >>> g = torch.ones(2)
        >>> first, state = tx.update(g, tx.init(g))
        >>> second, state = tx.update(g, state)
        >>> first, second
        (tensor([0., 0.]), tensor([2., 2.]))

    Source: the function of the same name in optax.
    """
    check_function("predicate", predicate, "updates", "step")
    made: Wrapper = ConditionallyMask(chain(inner), predicate=predicate)
    return made


class Accumulate(Wrapper):
    """See `accumulate`."""

    label = "accumulate"
    own: ClassVar = {"every_k": Range(1.0, whole=True, per_row=True)}
    ticks = False
    trees = frozenset({"sum", "count"})
    once = frozenset({"gathered"})

    def begin(self, leaves: Leaves, spec: Spec) -> State:
        zero = torch.zeros((), dtype=torch.int64, device=device_of(leaves))
        counts: Leaves = [None if leaf is None else zero.clone() for leaf in leaves]
        return {"sum": zeros(leaves, spec), "count": present(counts, spec), "gathered": zero}

    def wrap(
        self, leaves: Leaves, state: State, run: Run, values: Any, **own: Any
    ) -> tuple[Leaves, State]:
        sums, counts = (column_of(state, key, run.spec) for key in ("sum", "count"))
        total = remember(torch.add, sums, leaves)
        count = remember(lambda n, _: n + 1, counts, leaves)
        gathered = state["gathered"] + 1
        done = gathered >= own["every_k"]
        if skip := self.options["skip"]:
            taken = ~_verdict("skip", skip(unflatten(list(leaves), run.spec)), leaves)
            total, count = choose(taken, total, sums), choose(taken, count, counts)
            gathered, done = torch.where(taken, gathered, state["gathered"]), taken & done
        mean = self.options["reduce"] == "mean"
        shares = both(lambda t, n: t / n.clamp(min=1) if mean else t, total, count)
        sent = both(lambda t, leaf: t.to(leaf.dtype), shares, leaves)
        new, inside = self.through(sent, state, run, values)
        left = [
            remember(lambda kept, _: torch.where(done, 0, kept), kept, leaves)
            for kept in (total, count)
        ]
        counts_steps = "step" in state and self.options["schedule_counts"] == "steps"
        return choose(done, new, self.idle(leaves, run)), {
            **({"step": state["step"] + done} if counts_steps else {}),
            "inner": {"": choose(done, inside, state["inner"][""])},
            "sum": present(left[0], run.spec),
            "count": present(left[1], run.spec),
            "gathered": torch.where(done, 0, gathered),
        }


def accumulate(
    inner: GradientTransformation,
    every_k: Any,
    reduce: str = "mean",
    skip: Callable[[Tree], Any] | None = None,
    schedule_counts: str = "calls",
) -> Wrapper:
    """Gather gradients over `every_k` calls, then apply a transformation to their mean or sum.

    In between the updates are zero (the parameters stay, where `inner` steps). The sum is kept in
    float32 where the gradients are of a half type; a gradient that is None counts for nothing.

    Args:
        inner: any pipeline.
        every_k: calls to gather, >= 1. Where it changes, the mean is that of what was gathered.
        reduce: "mean" or "sum".
        skip: ``updates -> 0-dim bool tensor``, such as `skip_not_finite`: where it is True the
            call counts for nothing, and nothing moves. None skips none.
        schedule_counts: what a schedule as `every_k` is a function of: "calls", as every schedule
            here, or "steps", those that were made, as in optax.

    Raises:
        TypeError: `skip` is no function.
        ValueError: every_k < 1, or another `reduce` or `schedule_counts`.

    Example:
        >>> import torch
        >>> from rai_chain import scale
        >>> tx = accumulate(scale(1.0), every_k=2)
        >>> first, state = tx.update(torch.tensor(1.0), tx.init(torch.tensor(0.0)))
        >>> second, state = tx.update(torch.tensor(3.0), state)
        >>> first, second
        (tensor(0.), tensor(2.))

    Source: `MultiSteps` in optax.
    """
    Flag(("mean", "sum")).check("reduce", reduce)
    Flag(("calls", "steps")).check("schedule_counts", schedule_counts)
    if skip is not None:
        check_function("skip", skip, "updates")
    options = {"every_k": every_k, "reduce": reduce, "skip": skip}
    made: Wrapper = Accumulate(chain(inner), **options, schedule_counts=schedule_counts)
    return made


def skip_not_finite(updates: Tree) -> Tensor:
    """Whether a tree has NaN or inf: what `accumulate` may skip, a 0-dim bool tensor.

    Args:
        updates: a tree of tensors; None is left out.

    Example:
        >>> import torch
        >>> skip_not_finite({"w": torch.tensor([1.0, float("nan")]), "b": torch.ones(1)})
        tensor(True)

    Source: the function of the same name in optax.
    """
    flags = [leaf.isfinite().all() for leaf in flatten(updates)[0] if leaf is not None]
    return ~torch.stack(flags).all() if flags else torch.zeros((), dtype=torch.bool, device="cpu")


def skip_large_updates(updates: Tree, max_squared_norm: Any) -> Tensor:
    """Whether the squared norm of a tree reaches a bound, or is NaN: what `accumulate` may skip.

    Args:
        updates: a tree of tensors.
        max_squared_norm: the bound, > 0, a number or a 0-dim tensor; `functools.partial` gives it.

    Returns:
        A 0-dim bool tensor.

    Example:
        >>> from functools import partial
        >>> import torch
        >>> skip = partial(skip_large_updates, max_squared_norm=9.0)
        >>> skip([torch.ones(2)]), skip([torch.ones(2), torch.tensor(3.0)])
        (tensor(False), tensor(True))

    Source: the function of the same name in optax.
    """
    small: Tensor = global_norm(updates).double() ** 2 < max_squared_norm
    return ~small


# ------------------------------------------------------------------ what is carried over


class Lookahead(Wrapper):
    """See `lookahead`."""

    label = "lookahead"
    own: ClassVar = {
        "sync_period": Range(1.0, whole=True, per_row=True),
        "slow_step_size": Range(0.0, 1.0, per_row=True),
    }
    trees = frozenset({"slow"})

    def common_phase(self, phases: set[Phase]) -> Phase:
        return "step"

    def begin(self, leaves: Leaves, spec: Spec) -> State:
        copies: Leaves = [None if leaf is None else leaf.detach().clone() for leaf in leaves]
        return {"slow": present(copies, spec)}

    def wrap(
        self, leaves: Leaves, state: State, run: Run, values: Any, **own: Any
    ) -> tuple[Leaves, State]:
        fast, inside = self.through(leaves, state, run, values)
        slow, rate = column_of(state, "slow", run.spec), own["slow_step_size"]
        sync = (state["step"] + 1) % own["sync_period"] == 0
        seen = [None if leaf is None else f for leaf, f in zip(leaves, fast, strict=True)]
        moved = remember(lambda s, f: (s + rate * (f - s)).to(s.dtype), slow, seen)
        met = choose(sync, moved, slow)
        out = choose(
            sync, [f if g is None else s for f, g, s in zip(fast, seen, met, strict=True)], fast
        )
        return out, {"inner": {"": inside}, "slow": present(met, run.spec)}


def lookahead(
    inner: GradientTransformation, sync_period: Any = 6, slow_step_size: Any = 0.5
) -> Wrapper:
    """Let fast parameters run, and every `sync_period` steps move slow ones towards them.

    Args:
        inner: a pipeline that makes the fast parameters' step.
        sync_period: steps between meetings, >= 1.
        slow_step_size: the part of the way that the slow ones go, in [0, 1].

    Raises:
        ValueError: a value outside its interval.

    Example:
        >>> import torch
        >>> from rai_chain import scale
        >>> tx = lookahead(scale(-1.0), sync_period=2)
        >>> p = torch.tensor(0.0)
        >>> p, state = tx.step(p, torch.tensor(1.0), tx.init(p))
        >>> p
        tensor(-1.)
        >>> tx.step(p, torch.tensor(1.0), state)[0]
        tensor(-1.)

    Source: Zhang et al. 2019, "Lookahead Optimizer: k steps forward, 1 step back",
    arXiv 1907.08610.
    """
    made: Wrapper = Lookahead(chain(inner), sync_period=sync_period, slow_step_size=slow_step_size)
    return made
