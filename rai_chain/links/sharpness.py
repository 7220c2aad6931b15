"""Gradients from where the loss is largest nearby."""

from typing import Any, ClassVar

import torch

from ..core.chain import chain
from ..core.pipeline import GradientTransformation
from ..core.wrapper import Wrapper
from ..data.hyper import Range
from ..data.leaves import both
from ..data.tree import Leaves
from ..engine.run import Run, State
from ..kernels.norms import joint_norm


class Sam(Wrapper):
    """See `sam`."""

    label = "sam"
    own: ClassVar = {"rho": Range(0.0, per_row=True)}
    needs = frozenset({"grad_fn"})
    needs_params = True
    ticks = False

    def wrap(
        self, leaves: Leaves, state: State, run: Run, values: Any, **own: Any
    ) -> tuple[Leaves, State]:
        if parts := [g.reshape(1, -1) for g in leaves if g is not None]:
            norm = joint_norm(parts).reshape(())
            scale = own["rho"] / torch.where(norm == 0, 1, norm)
            moved = both(lambda g, p: (p + scale * g).to(p.dtype), leaves, run.params or [])
            leaves = both(lambda g, there: there, leaves, run.extra["grad_fn"](moved))
        out, inside = self.through(leaves, state, run, values)
        return out, {"inner": {"": inside}}


def sam(inner: GradientTransformation, rho: Any = 0.05) -> Wrapper:
    """Give a pipeline the gradients of a point uphill: sharpness-aware minimisation.

    The point is ``params + rho * g / norm(g)``, with the norm over the whole tree; a zero gradient
    stays where it is. The parameters keep their bits until `inner` moves them.

    A pure call takes the gradient function: ``tx.step(params, grads, state, grad_fn=f)``, where
    ``f(params) -> grads`` is that of the same batch. In an optimizer ``step(closure)`` calls the
    closure once more for each param group, which is a tree of its own, so that batch norm sees
    the batch again; parameters and gradients are put back even where it raises.

    Args:
        inner: any pipeline.
        rho: how far uphill, >= 0, in the units of the parameters.

    Raises:
        ValueError: rho < 0, no `grad_fn`, or no closure.

    Example:
        >>> import torch
        >>> from rai_chain import sgd
        >>> tx, p = sam(sgd(0.1), rho=0.5), torch.tensor([3.0, 4.0])
        >>> f = lambda p: 2 * p  # the gradient of the sum of squares
        >>> tx.step(p, f(p), tx.init(p), grad_fn=f)[0]
        tensor([2.3400, 3.1200])

    Source: Foret et al. 2021, "Sharpness-Aware Minimization for Efficiently Improving
    Generalization", arXiv 2010.01412.
    """
    made: Wrapper = Sam(chain(inner), rho=rho)
    return made
