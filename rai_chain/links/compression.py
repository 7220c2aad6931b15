"""Gradients that take few bits: few elements of each row, or few values.

`error_feedback` around one adds next time what it dropped this time; scales belong outside of it.
"""

from typing import Annotated, Any

import torch
from torch import Tensor

from ..core.define import elementwise, rowwise
from ..data.hyper import Count, Hyper, NonNegative, Range
from ..data.random import uniform
from ..kernels.norms import row_norm
from ..kernels.select import keep_largest
from .memory import wide
from .transforms import within

Levels = Annotated[Hyper, Range(1, whole=True, per_row=True)]


def _largest(rows: Tensor, k: Any, out: Tensor | None = None) -> Tensor:
    return keep_largest(rows, k.reshape(-1) if isinstance(k, Tensor) and k.ndim else k, out=out)


@rowwise
def top_k(rows: Tensor, k: Count, *, out: Tensor | None = None) -> Tensor:
    """Keep the k elements of largest magnitude in each row, zero the rest.

    Equal magnitudes: the lowest index is kept. NaN counts as largest. A kept element keeps its
    bits; a row of no more than k elements is kept whole.

    Args:
        k: how many to keep, a whole number >= 0, or one for each row, (N,).
        param_ndim: what a row is, see `rai_chain.to_batch`.

    Raises:
        ValueError: k < 0, or no whole number.

    Example:
        >>> import torch
        >>> tx = top_k(2, param_ndim=None)
        >>> tx.update(torch.tensor([1.0, -4.0, 3.0, -2.0]), ())[0]
        tensor([ 0., -4.,  3.,  0.])

    Source: Aji and Heafield 2017, "Sparse Communication for Distributed Gradient Descent",
    arXiv 1704.05021.
    """
    return _largest(rows, within(k, rows.shape[1]), out)


@rowwise
def random_k(rows: Tensor, k: Count, *, key: Tensor) -> Tensor:
    """Keep k elements of each row, drawn at random, times D / k; zero the rest.

    Each subset is as likely, so the mean over seeds is the row itself. A row of no more than k
    elements is kept whole.

    Args:
        k: how many to keep, a whole number >= 0, or one for each row, (N,).
        param_ndim: what a row is, see `rai_chain.to_batch`.
        seed: an integer; the draw is a function of (seed, step, leaf), all in the state.

    Raises:
        ValueError: k < 0, or no whole number.

    Example:
        >>> import torch
        >>> tx, g = random_k(2, param_ndim=None), torch.tensor([1.0, -4.0, 3.0, -2.0])
        >>> tx.update(g, tx.init(g))[0].count_nonzero()
        tensor(2)

    Source: Stich et al. 2018, "Sparsified SGD with Memory", arXiv 1809.07599; scaled as in
    Wangni et al. 2018, arXiv 1710.09854.
    """
    size = rows.shape[1]
    k = within(k, size)
    chosen = _largest(1 - uniform(key, tuple(rows.shape)), k) > 0
    factor = size / (k.clamp(min=1) if isinstance(k, Tensor) else max(k, 1))
    return torch.where(chosen, rows * factor, 0)


@elementwise
def threshold(grad: Tensor, threshold: NonNegative) -> Tensor:
    """Zero each element whose magnitude is below a threshold; NaN stays.

    Args:
        threshold: smallest magnitude that is kept, >= 0.

    Raises:
        ValueError: threshold < 0.

    Example:
        >>> import torch
        >>> threshold(2.0).update(torch.tensor([1.0, -4.0, 2.0]), ())[0]
        tensor([ 0., -4.,  2.])

    Source: hard thresholding (Donoho and Johnstone 1994, "Ideal spatial adaptation by wavelet
    shrinkage"); Strom 2015, "Scalable distributed DNN training using commodity GPU cloud
    computing".
    """
    return torch.where(grad.abs() < threshold, 0, grad)


@rowwise
def qsgd(rows: Tensor, levels: Levels, *, key: Tensor) -> Any:
    """Round each magnitude, as a part of the row's norm, up or down to one of some levels.

    ``norm * sign(g) * floor(levels * abs(g) / norm + u) / levels`` with u uniform in [0, 1): the
    mean over seeds is the row itself.

    Args:
        levels: how many above zero, a whole number >= 1.
        param_ndim: what a row is, see `rai_chain.to_batch`.
        seed: an integer; the draw is a function of (seed, step, leaf), all in the state.

    Raises:
        ValueError: levels < 1, or no whole number.

    Example:
        >>> import torch
        >>> tx, g = qsgd(5, param_ndim=None), torch.tensor([3.0, -4.0])
        >>> tx.update(g, tx.init(g))[0]
        tensor([ 3., -4.])

    Source: Alistarh et al. 2017, "QSGD", arXiv 1610.02132.
    """
    norm = row_norm(rows, 2)
    parts = levels * (wide(rows).abs() / torch.where(norm == 0, 1, norm))
    return norm * torch.sign(rows) * torch.floor(parts + uniform(key, tuple(rows.shape))) / levels


@rowwise
def terngrad(rows: Tensor, *, key: Tensor) -> Any:
    """Replace each element by 0 or the signed largest magnitude of its row, at random.

    ``top * sign(g)`` with probability ``abs(g) / top``: the mean over seeds is the row itself.

    Args:
        param_ndim: what a row is, see `rai_chain.to_batch`.
        seed: an integer; the draw is a function of (seed, step, leaf), all in the state.

    Example:
        >>> import torch
        >>> tx, g = terngrad(param_ndim=None), torch.tensor([2.0, 0.0, -2.0])
        >>> tx.update(g, tx.init(g))[0]
        tensor([ 2.,  0., -2.])

    Source: Wen et al. 2017, "TernGrad", arXiv 1705.07878.
    """
    top = wide(rows).abs().amax(1, keepdim=True)
    chance = wide(rows).abs() / torch.where(top == 0, 1, top)
    return torch.sign(rows) * torch.where(uniform(key, tuple(rows.shape)) < chance, top, top * 0)


@rowwise
def ef_sign(rows: Tensor) -> Any:
    """Replace each element by its sign, 0 for 0, times the mean magnitude of its row.

    It is biased: put it into `error_feedback`.

    Args:
        param_ndim: what a row is, see `rai_chain.to_batch`.

    Example:
        >>> import torch
        >>> ef_sign(param_ndim=None).update(torch.tensor([1.0, -5.0, 0.0]), ())[0]
        tensor([ 2., -2.,  0.])

    Source: Karimireddy et al. 2019, "Error Feedback Fixes SignSGD", arXiv 1901.09847.
    """
    return row_norm(rows, 1) / rows.shape[1] * torch.sign(rows)
