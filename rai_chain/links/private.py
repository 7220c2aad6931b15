"""Gradients of single examples, made one that tells little of each."""

from typing import Any

from torch import Tensor

from ..core.define import treewise
from ..data.hyper import RowNonNegative
from ..data.random import leaf_key, normal
from .clipping import per_example_global_norm_clip
from .memory import wide


@treewise(reduces=True, draws="noise_multiplier")
def differentially_private_aggregate(
    leaves: list[Tensor],
    l2_norm_clip: RowNonNegative,
    noise_multiplier: RowNonNegative,
    *,
    key: Tensor | None = None,
) -> list[Any]:
    """Clip the gradient of each example, sum, add normal noise, and divide by their number.

    ``(sum_i g_i * min(1, l2_norm_clip / norm(g_i)) + noise) / N``, with norms over the whole tree
    and noise of the standard deviation ``l2_norm_clip * noise_multiplier``. Updates come in as
    (N, ...), one entry for each example, and leave in the shape of the parameters, so that it is
    the first link of a pure pipeline.

    What privacy that is depends on how batches are drawn, on the number of steps and on the seed,
    which has to be secret: account for it with a library that does. Draws are those of a
    statistical generator, good to 24 bits, and no cryptographic ones.

    Args:
        l2_norm_clip: largest norm of an example, >= 0.
        noise_multiplier: deviation of the noise in units of the largest norm, >= 0. The Python
            number 0 draws nothing.
        seed: an integer; the draw is a function of (seed, step, leaf), all in the state.

    Raises:
        ValueError: a value is negative, or leaves that are no (N, ...) with one N >= 1.

    Example:
        >>> import torch
        >>> from rai_chain import chain, scale
        >>> tx = chain(differentially_private_aggregate(1.0, 0.0), scale(-0.5))
        >>> p, grads = torch.zeros(2), torch.tensor([[3.0, 4.0], [0.3, 0.4]])
        >>> tx.step(p, grads, tx.init(p))[0]
        tensor([-0.2250, -0.3000])

    Source: Abadi et al. 2016, "Deep Learning with Differential Privacy", arXiv 1607.00133; optax's
    of the same name.
    """
    sums: Any = per_example_global_norm_clip([wide(leaf) for leaf in leaves], l2_norm_clip)[0]
    if key is not None:
        deviation = l2_norm_clip * noise_multiplier
        draws = [normal(leaf_key(key, i), tuple(x.shape)).to(x.dtype) for i, x in enumerate(sums)]
        sums = [x + deviation * noise for x, noise in zip(sums, draws, strict=True)]
    return [(x / len(leaf)).to(leaf.dtype) for x, leaf in zip(sums, leaves, strict=True)]
