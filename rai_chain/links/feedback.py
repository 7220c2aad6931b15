"""What a compressor drops is added next time."""

import warnings
from typing import Any

import torch

from ..core.chain import chain
from ..core.pipeline import GradientTransformation
from ..core.wrapper import Wrapper
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
