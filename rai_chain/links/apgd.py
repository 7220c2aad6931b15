"""Projected gradient steps that choose their own size, for each example."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.chain import chain
from ..core.pipeline import GradientTransformation
from ..core.wrapper import Wrapper
from ..data.hyper import Range, placed
from ..data.leaves import beside, both, remember
from ..data.messages import told
from ..data.tree import Leaves, Spec, present
from ..engine.function import column_of
from ..engine.run import Run, State, run_links


def checkpoints(steps: int) -> Iterator[tuple[int, int]]:
    """Each checkpoint, a number of steps, behind the one before it: at 22% of them, and so on."""
    parts = [0.0, 0.22]
    while parts[-1] < 1.0:
        parts.append(parts[-1] + max(parts[-1] - parts[-2] - 0.03, 0.06))
    return pairwise(sorted({math.ceil(part * steps - 1e-9) for part in parts if part < 1.0}))


class Apgd(Wrapper):
    """See `apgd`."""

    label = "apgd"
    own: ClassVar = {"momentum": Range(0.0, 1.0), "rho": Range(0.0, 1.0)}
    needs = frozenset({"value"})
    points = ("previous", "best", "grad")  # like each leaf
    trees = frozenset({*points, "least", "last", "before", "gained", "factor", "halved"})

    def common_phase(self, phases: Any) -> Any:
        return "step"

    def begin(self, leaves: Leaves, spec: Spec) -> State:
        def kept(make: Callable[[Tensor], Tensor]) -> Any:
            return present([None if x is None else make(x.detach()) for x in leaves], spec)

        def rows(value: Any, dtype: torch.dtype = torch.float64) -> Any:
            return kept(lambda x: torch.full(x.shape[:1], value, dtype=dtype, device=x.device))

        return {
            "previous": kept(torch.clone),
            "best": kept(torch.clone),
            "grad": kept(torch.zeros_like),
            "least": rows(math.inf),  # the value at `best`
            "last": rows(math.nan),  # the value one step ago
            "before": rows(math.inf),  # `least` at the last checkpoint
            "gained": rows(0, torch.int64),  # steps since then that lowered the value
            "factor": rows(1.0),  # of the step
            "halved": rows(False, torch.bool),  # at the last checkpoint
        }

    def wrap(
        self, leaves: Leaves, state: State, run: Run, values: Any, **own: Any
    ) -> tuple[Leaves, State]:
        step, value, steps = state["step"], run.extra["value"], self.options["steps"]
        width = sum((step == now) * (now - then) for then, now in checkpoints(steps))
        check = (step == 0) | (width > 0)
        kept = {key: column_of(state, key, run.spec) for key in self.trees}
        x, grads = list(run.params or []), list(leaves)
        for i, grad in enumerate(leaves):
            if grad is not None:
                old = {key: column[i] for key, column in kept.items()}
                x[i], grads[i], new = look(x[i], grad, value, old, check, width, own["rho"])
                for key, column in kept.items():
                    column[i] = new[key]

        inner = self.inners[""]
        links, part = (inner.links, inner.names), self._part("", grads, run)[1]
        part.params, states = x, inner.unpack(state["inner"][""])
        moves, states = run_links(*links, grads, states, part, values[""], "gradient")

        def project(points: Leaves) -> Leaves:
            return run_links(*links, points, states, part, values[""], "parameter")[0]

        sizes = both(beside, kept["factor"], moves)
        ahead = project(remember(torch.add, x, both(torch.mul, sizes, moves)))
        moved = both(torch.sub, ahead, x)
        turns = both(torch.sub, both(torch.sub, x, kept["previous"]), moved)
        turns = [t if t is None else torch.where(step > 0, own["momentum"] * t, 0) for t in turns]
        out = project(remember(torch.add, x, both(torch.add, moved, turns)))
        kept["previous"] = remember(lambda _, point: point, kept["previous"], x)
        return out, {
            "inner": {"": inner.pack(states)},
            **{key: present(column, run.spec) for key, column in kept.items()},
        }


def look(
    x: Any, grad: Tensor, value: Any, kept: State, check: Tensor, width: Any, rho: Any
) -> tuple[Tensor, Tensor, State]:
    """The point and the gradient to go on with, and what is kept.

    Args:
        check: whether this is a checkpoint, or the first step.
        width: the steps since the checkpoint before.
    """
    value = placed(value, x.device)
    if value.ndim > x.ndim or value.shape != x.shape[: value.ndim] or value.ndim > 1:
        raise ValueError(
            f"`value` must be one number, or one for each row of a leaf of shape "
            f"{tuple(x.shape)}  Got: shape {tuple(value.shape)}"
        )
    value = value.expand(x.shape[:1])
    better = value < kept["least"]
    least = torch.where(better, value, kept["least"])
    best = torch.where(beside(better, x), x, kept["best"])
    slope = torch.where(beside(better, x), grad, kept["grad"])
    gained = kept["gained"] + (value < kept["last"])
    idle = (least == kept["before"]) & ~kept["halved"]
    halve = (width > 0) & ((gained < rho * width) | idle)
    new = {
        "previous": kept["previous"],
        "best": best,
        "grad": slope,
        "least": least,
        "last": torch.where(halve, least, value),
        "before": torch.where(check, least, kept["before"]),
        "gained": torch.where(check, 0, gained),
        "factor": torch.where(halve, 0.5, 1.0).to(torch.float64) * kept["factor"],
        "halved": torch.where(check, halve, kept["halved"]),
    }
    rest = beside(halve, x)
    return torch.where(rest, best, x), torch.where(rest, slope, grad), new


def apgd(
    inner: GradientTransformation, steps: int, momentum: Any = 0.25, rho: Any = 0.75
) -> Wrapper:
    """Let projected gradient steps choose their size, and go on from the best point.

    A row of a leaf is an example with a `value` of its own. At checkpoints, after 22% of the
    steps and then ever more often, an example whose value has improved in less than `rho` of the
    steps since the last one, or has reached no new best while its steps were long, takes steps
    half as long from its best point. With z the point of a plain step, each step ends at the
    projection of ``x + (1 - momentum) (z - x) + momentum (x - previous)``; the first one at z.

    Args:
        inner: gradient links, whose result is the first and longest step, and projections; such
            as ``chain(sign(), scale(-2 * epsilon), linf_ball(epsilon, x))``.
        steps: how many there will be, >= 1: where the checkpoints are.
        momentum: the share of the last move, in [0, 1].
        rho: the part of the steps that is to improve the value, in [0, 1].

    Returns:
        A wrapper that steps. `step` needs `value`, what is minimised: one number, or (N,) where
        leaves are (N, ...). `rai_chain.solve` gives it, an optimizer that of its closure.

    Raises:
        TypeError: `steps` is no int.
        ValueError: a number outside its interval, or `inner` has a link that steps.

    Example:
        >>> import torch
        >>> from rai_chain import box, chain, scale, sign
        >>> from rai_chain.solve import minimize
        >>> tx = apgd(chain(sign(), scale(-1.0), box(-2.0, 2.0)), steps=50)
        >>> found = minimize(lambda x: (x - 0.3) ** 2, torch.tensor([2.0, -1.0]), tx, steps=50)
        >>> found.x.round(decimals=2)
        tensor([0.3000, 0.3000])

    Source: Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of
    diverse parameter-free attacks", arXiv 2003.01690, algorithm 1. A checkpoint is looked at
    before the step that follows it, as its authors' code does.
    """
    Range(1, static=True, whole=True).check("steps", steps)
    if not isinstance(steps, int):
        raise TypeError(f"`steps` must be an int  Got: {told(steps)}")
    made: Wrapper = Apgd(chain(inner), steps=steps, momentum=momentum, rho=rho)
    if any(link.phase == "step" for link in made.inners[""].links):
        raise ValueError(f"`inner` must have no link that steps  Got: {inner!r}")
    return made
