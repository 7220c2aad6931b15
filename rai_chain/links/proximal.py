"""Proximal maps: parameters after the step, moved to where a penalty balances the way there."""

from typing import Any

import torch
from torch import Tensor

from ..core.define import elementwise, rowwise
from ..data.hyper import NonNegative, RowNonNegative
from ..kernels.norms import rescale, row_norm
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


@rowwise(phase="parameter")
def group_soft_threshold(rows: Tensor, threshold: RowNonNegative) -> Any:
    """Shorten each row by `threshold`, and no further than to 0.

    ``x * max(0, 1 - threshold / norm(x))``: the proximal map of ``threshold * sum(norm(x))``, which
    makes whole rows zero.

    Args:
        threshold: >= 0.
        param_ndim: what a row is, see `rai_chain.to_batch`.

    Raises:
        ValueError: threshold < 0.

    Example:
        >>> import torch
        >>> group_soft_threshold(1.0).map(torch.tensor([[0.0, 2.0], [0.3, 0.4]]))
        tensor([[0., 1.],
                [0., 0.]])

    Source: Yuan and Lin 2006, "Model selection and estimation in regression with grouped
    variables".
    """
    norm = row_norm(rows, 2)
    return rescale(rows, torch.where(norm == 0, 1, norm), (norm - threshold).clamp(min=0))
