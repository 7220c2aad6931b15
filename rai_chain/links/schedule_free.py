"""Averaging in the place of a schedule."""

from typing import Any, ClassVar

import torch

from ..core.chain import chain
from ..core.pipeline import GradientTransformation
from ..core.wrapper import Wrapper
from ..data.hyper import Range, placed
from ..data.leaves import both, device_of, remember
from ..data.tree import Leaves, Spec, present
from ..engine.function import column_of
from ..engine.run import Phase, Run, State, run_links
from .memory import wide


class ScheduleFree(Wrapper):
    """See `schedule_free`."""

    label = "schedule_free"
    own: ClassVar = {
        "lr": Range(0.0, per_row=True),
        "beta1": Range(0.0, 1.0, open_high=True, per_row=True),
        "weight_lr_power": Range(0.0, per_row=True),
    }
    ticks = False
    trees = frozenset({"z", "schedule_free"})
    once = frozenset({"weight_sum", "max_lr"})

    def common_phase(self, phases: set[Phase]) -> Phase:
        return "step"

    def begin(self, leaves: Leaves, spec: Spec) -> State:
        def copies() -> Any:
            made: Leaves = [None if x is None else wide(x.detach()).clone() for x in leaves]
            return present(made, spec)

        zero = torch.zeros((), dtype=torch.float64, device=device_of(leaves))
        return {
            "z": copies(),
            "schedule_free": copies(),
            "weight_sum": zero,
            "max_lr": zero.clone(),
        }

    def wrap(
        self, leaves: Leaves, state: State, run: Run, values: Any, **own: Any
    ) -> tuple[Leaves, State]:
        inner, beta1 = self.inners[""], own["beta1"]
        mine, part = self._part("", leaves, run)
        links = inner.links, inner.names
        states = inner.unpack(state["inner"][""])
        moves, states = run_links(*links, mine, states, part, values[""], "gradient")
        old = column_of(state, "z", run.spec)
        part.writable = [False] * len(leaves)
        z = remember(lambda z, u: (z + u).to(z.dtype), old, moves)
        z, states = run_links(*links, z, states, part, values[""], "parameter")
        z = [before if g is None else new for before, new, g in zip(old, z, leaves, strict=True)]
        lr = placed(own["lr"], device_of(leaves))
        max_lr = torch.maximum(state["max_lr"], lr)
        weight = max_lr ** own["weight_lr_power"]
        total = state["weight_sum"] + weight
        c = torch.where(total == 0, 0, weight / torch.where(total == 0, 1, total))
        seen = [None if g is None else new for g, new in zip(leaves, z, strict=True)]
        x = column_of(state, "schedule_free", run.spec)
        x = remember(lambda x, z: ((1 - c) * x + c * z).to(x.dtype), x, seen)
        y = remember(lambda x, z: beta1 * x + (1 - beta1) * z, x, z)
        here = run.params or []
        y = both(lambda new, p: new.to(p.dtype), y, here)
        out = [p if g is None else new for g, p, new in zip(leaves, here, y, strict=True)]
        return out, {
            "inner": {"": inner.pack(states)},
            "z": present(z, run.spec),
            "schedule_free": present(x, run.spec),
            "weight_sum": total,
            "max_lr": max_lr,
        }


def schedule_free(
    inner: GradientTransformation, lr: Any = None, beta1: Any = 0.9, weight_lr_power: Any = 2.0
) -> Wrapper:
    """Let an optimizer without momentum run, and average its parameters, with no schedule.

    ``z <- z + u``, ``x <- (1 - c) x + c z``, and the parameters, at which gradients are taken, are
    ``y = beta1 x + (1 - beta1) z``. The weight is ``c = w / sum(w)`` with ``w = max(lr)**power``.
    The x are those to evaluate: `averaged_params` reads them from the state, in float32 where
    parameters are of a half type; an optimizer has ``eval()``, which puts them into the
    parameters, and ``train()``, which puts back what was there, to the bit.

    Args:
        inner: links that make updates, such as ``adamw(0.01, betas=(0.0, 0.999))``; it sees y. A
            constraint inside holds for z, and so to rounding for x and y where its set is convex.
        lr: what the weights are made of, >= 0: None for the hyperparameter `lr` of `inner`, which
            one that is given replaces. A schedule warms up; it need not decay.
        beta1: the part of the average in y, 0 <= beta1 < 1.
        weight_lr_power: of the largest rate so far in the weight, >= 0.

    Raises:
        ValueError: a value outside its interval, no `lr`, or `inner` has a link that steps.

    Example:
        >>> import torch
        >>> from rai_chain import averaged_params, sgd
        >>> tx, y = schedule_free(sgd(0.5)), torch.tensor(1.0)
        >>> state = tx.init(y)
        >>> for _ in range(3):
        ...     y, state = tx.step(y, y, state)  # the gradient of y**2 / 2
        >>> y, averaged_params(state)
        (tensor(0.2525), tensor(0.2729))

    Source: Defazio et al. 2024, "The Road Less Scheduled", arXiv 2405.15682.
    """
    inner = chain(inner)
    if any(link.phase == "step" for link in inner.links):
        raise ValueError(f"`inner` must have no link that steps  Got: {inner!r}")
    if "lr" in inner.hyperparams:
        inner = inner if lr is None else inner.replace(lr=lr)
        lr = inner.hyperparams["lr"]
    if lr is None:
        raise ValueError(f"`lr` must be given, where `inner` has no one `lr`  Got: {inner!r}")
    made: Wrapper = ScheduleFree(inner, lr=lr, beta1=beta1, weight_lr_power=weight_lr_power)
    return made
