"""What a compressor drops is added next time."""

import warnings
from typing import Any, ClassVar

import torch

from ..core.chain import chain
from ..core.pipeline import GradientTransformation
from ..core.wrapper import Wrapper
from ..data.hyper import Range
from ..data.leaves import both, remember, zeros
from ..data.tree import Leaves, Spec, present
from ..engine.function import column_of
from ..engine.run import Run, State

# What sends a part of a gradient, or rounds it.
COMPRESSORS = frozenset(
    {"top_q", "top_k", "random_k", "threshold", "qsgd", "terngrad", "ef_sign", "sign", "identity"}
    | {"clip", "clamp", "clip_by_norm", "clip_by_global_norm", "clip_by_block_rms"}
)


class ErrorFeedback(Wrapper):
    """See `error_feedback`."""

    label = "error_feedback"
    ticks = False
    trees = frozenset({"error"})

    def begin(self, leaves: Leaves, spec: Spec) -> State:
        return {"error": zeros(leaves, spec)}

    def wrap(
        self, leaves: Leaves, state: State, run: Run, values: Any, **own: Any
    ) -> tuple[Leaves, State]:
        whole = remember(torch.add, column_of(state, "error", run.spec), leaves)
        sent = both(lambda x, leaf: x.to(leaf.dtype), whole, leaves)
        out, inside = self.through(sent, state, run, values)
        error = remember(torch.sub, whole, out)
        return out, {"inner": {"": inside}, "error": present(error, run.spec)}


def error_feedback(inner: GradientTransformation) -> Wrapper:
    """Add next time what a transformation dropped this time.

    What was dropped is kept in float32 where the gradients are of a half type. Scales, such as a
    learning rate, belong outside: inside, what a scale takes off counts as dropped and comes back.
    `random_k` of less than half of a row, and `qsgd` of far less levels than the root of its
    length, are better outside too: their mean is right without, and the error grows.

    Args:
        inner: gradient links that compress, such as `top_q`, `top_k` and `ef_sign`.

    Raises:
        ValueError: `inner` has a link that is no gradient link.

    Warns:
        UserWarning: `inner` has a link of this library that is no compressor.

    Example:
        >>> import torch
        >>> from rai_chain import top_q
        >>> tx = error_feedback(top_q(q=0.5, param_ndim=None))
        >>> g = torch.tensor([3.0, 2.0])
        >>> first, state = tx.update(g, tx.init(g))
        >>> second, state = tx.update(g, state)
        >>> first, second
        (tensor([3., 0.]), tensor([0., 4.]))

    Source: Lin et al. 2017, "Deep Gradient Compression", arXiv 1712.01887; Karimireddy et al.
    2019, "Error Feedback Fixes SignSGD", arXiv 1901.09847.
    """
    made: Wrapper = ErrorFeedback(chain(inner))
    check_compressors(made, inner)
    return made


class MomentumCorrection(Wrapper):
    """See `momentum_correction`."""

    label = "momentum_correction"
    own: ClassVar = {"momentum": Range(0.0, 1.0, open_high=True, per_row=True)}
    ticks = False
    trees = frozenset({"velocity", "error"})

    def begin(self, leaves: Leaves, spec: Spec) -> State:
        return {"velocity": zeros(leaves, spec), "error": zeros(leaves, spec)}

    def wrap(
        self, leaves: Leaves, state: State, run: Run, values: Any, **own: Any
    ) -> tuple[Leaves, State]:
        velocity, error = (column_of(state, key, run.spec) for key in ("velocity", "error"))
        velocity = remember(lambda u, g: (own["momentum"] * u + g).to(u.dtype), velocity, leaves)
        seen = both(lambda g, u: u, leaves, velocity)
        whole = remember(torch.add, error, seen)
        sent = both(lambda g, x: x.to(g.dtype), leaves, whole)
        out, inside = self.through(sent, state, run, values)
        velocity = remember(lambda u, x: torch.where(x == 0, u, 0), velocity, out)
        return out, {
            "inner": {"": inside},
            "velocity": present(velocity, run.spec),
            "error": present(remember(torch.sub, whole, out), run.spec),
        }


def momentum_correction(inner: GradientTransformation, momentum: Any = 0.9) -> Wrapper:
    """Compress the sum of momenta, and add next time what was dropped: deep gradient compression.

    ``u <- momentum * u + g; v <- v + u``, and v goes through `inner`. Where an element is sent, v
    loses what was sent and u is 0, so that no old momentum pushes on. It has the momentum in it:
    use it in the place of `error_feedback`, in front of a step without one. Scales belong outside,
    as with `error_feedback`.

    Args:
        inner: gradient links that choose elements, such as `top_q`.
        momentum: decay of the momentum, 0 <= momentum < 1.

    Raises:
        ValueError: momentum outside its interval, or `inner` has a link that is no gradient link.

    Warns:
        UserWarning: `inner` has a link of this library that is no compressor.

    Example:
        >>> import torch
        >>> from rai_chain import top_k
        >>> tx, g = momentum_correction(top_k(1, param_ndim=None), 0.5), torch.tensor([3.0, 2.0])
        >>> first, state = tx.update(g, tx.init(g))
        >>> second, state = tx.update(g, state)
        >>> first, second
        (tensor([3., 0.]), tensor([0., 5.]))

    Source: Lin et al. 2017, "Deep Gradient Compression", arXiv 1712.01887, momentum correction
    and momentum factor masking.
    """
    made: Wrapper = MomentumCorrection(chain(inner), momentum=momentum)
    check_compressors(made, inner)
    return made


def check_compressors(made: Wrapper, inner: Any) -> None:
    """Refuse what is no gradient link inside, and warn of what is no compressor."""
    if made.phase != "gradient":
        raise ValueError(f"`inner` must have gradient links only  Got: {inner!r}")
    waiting = list(made.inners.values())
    while waiting:
        for link in waiting.pop().links:
            waiting += link.inners.values()
            if link.is_ours and link.name not in COMPRESSORS:
                warnings.warn(
                    f"`inner` should have compressors only: what `{link.name}` changes, "
                    f"`{made.name}` brings back; put it outside  Got: {inner!r}",
                    UserWarning,
                    stacklevel=3,
                )
