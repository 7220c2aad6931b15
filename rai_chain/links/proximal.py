"""Proximal maps: parameters after the step, moved to where a penalty balances the way there."""

from torch import Tensor

from ..core.link import elementwise
from ..data.hyper import NonNegative
from .transforms import clamped


@elementwise(phase="parameter")
def soft_threshold(x: Tensor, threshold: NonNegative) -> Tensor:
    """Move each parameter towards 0 by `threshold`, and no further; NaN stays.

    ``x - clamp(x, -threshold, threshold)``: the proximal map of ``threshold * sum(abs(x))``.
    Behind a step of size lr, with a threshold of ``lr * penalty``, it is ISTA.

    Args:
        threshold: >= 0.

    Raises:
        ValueError: threshold < 0.

    Example:
        >>> import torch
        >>> soft_threshold(1.0).map(torch.tensor([3.0, -0.5, -2.0]))
        tensor([ 2.,  0., -1.])

    Source: Daubechies et al. 2004, "An iterative thresholding algorithm for linear inverse
    problems with a sparsity constraint", arXiv math/0307152.
    """
    return x - clamped(x, -threshold, threshold)
