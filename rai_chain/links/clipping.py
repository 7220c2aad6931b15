"""Updates held to a size: of an element, a row, a leaf, an example or the whole tree."""

import math
from typing import Any

import torch
from torch import Tensor

from ..core.define import elementwise, leafwise, rowwise, treewise
from ..data.checks import check_leaves
from ..data.hyper import Bound, NonNegative, RowNonNegative, RowNumber, placed
from ..data.tree import Tree, flatten, unflatten
from ..kernels.norms import joint_norm, rescale, row_norm
from .transforms import TINY, check_box, clamped, clip_by_norm


@elementwise
def clip(grad: Tensor, max_delta: NonNegative, *, out: Tensor | None = None) -> Tensor:
    """Clamp each element to ``[-max_delta, max_delta]``; NaN stays.

    Args:
        max_delta: largest magnitude, >= 0.

    Raises:
        ValueError: max_delta < 0.

    Example:
        >>> import torch
        >>> clip(2.5).update(torch.tensor([-4.0, 1.0, 3.0]), ())[0]
        tensor([-2.5000,  1.0000,  2.5000])

    Source: the function of the same name in optax.
    """
    return clamped(grad, -max_delta, max_delta, out)


@elementwise
def zero_nans(grad: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Replace NaN by 0; inf and -inf stay.

    Example:
        >>> import torch
        >>> zero_nans().update(torch.tensor([float("nan"), float("inf"), 1.0]), ())[0]
        tensor([0., inf, 1.])

    Source: the function of the same name in optax.
    """
    return torch.nan_to_num(grad, 0.0, math.inf, -math.inf, out=out)


@leafwise
def clip_by_block_rms(grad: Tensor, threshold: RowNonNegative) -> Any:
    """Scale each leaf whose root mean square exceeds `threshold` down to it.

    ``g * min(1, threshold / rms(g))``; a leaf inside the bound keeps its bits.

    Args:
        threshold: largest root mean square, >= 0.

    Raises:
        ValueError: threshold < 0.

    Example:
        >>> import torch
        >>> clip_by_block_rms(1.0).update(torch.tensor([1.0, 7.0, 5.0, 5.0]), ())[0]
        tensor([0.2000, 1.4000, 1.0000, 1.0000])

    Source: update clipping (Shazeer and Stern 2018, "Adafactor", arXiv 1804.04235).
    """
    bound = threshold * grad.numel() ** 0.5
    return clip_by_norm.function(grad.reshape(1, -1), bound).reshape(grad.shape)


@rowwise
def adaptive_grad_clip(
    rows: Tensor, clipping: RowNonNegative, eps: RowNonNegative = 1e-3, *, param: Tensor
) -> Any:
    """Scale each row down to a fraction of the norm of its parameters; `update` needs `params`.

    ``g * min(1, clipping * max(norm(param), eps) / norm(g))``; inside the bound bits stay.

    Args:
        clipping: largest ratio of the norms, >= 0.
        eps: smallest norm of parameters, >= 0, so that those at zero can move.
        param_ndim: what a row is, see `rai_chain.to_batch`. The default makes each unit of a
            weight a row, and so each element of a bias.

    Raises:
        ValueError: a value is negative, or no `params`.

    Example:
        >>> import torch
        >>> tx, p = adaptive_grad_clip(0.5), torch.tensor([[6.0, 8.0], [0.3, 0.4]])
        >>> tx.update(torch.tensor([[3.0, 4.0], [3.0, 4.0]]), (), params=p)[0]
        tensor([[3.0000, 4.0000],
                [0.1500, 0.2000]])

    Source: Brock et al. 2021, "High-Performance Large-Scale Image Recognition Without
    Normalization", arXiv 2102.06171.
    """
    return clip_by_norm.function(rows, clipping * clamped(row_norm(param, 2), eps, None))


@elementwise(check=check_box)
def feasible(grad: Tensor, low: Bound = None, high: Bound = None, *, param: Tensor) -> Tensor:
    """Zero each element whose descent would leave an interval; `update` needs `params`.

    That is where the parameter is at `low`, or below, and the gradient is positive, or at `high`
    and it is negative. In front of a selection the others then have its places.

    Args:
        low: lower bound: a number, a tensor that broadcasts to the parameter, or None.
        high: upper bound, likewise; low <= high.

    Raises:
        ValueError: no bound is given, low > high, or no `params`.

    Example:
        >>> import torch
        >>> tx, p = feasible(0.0, 1.0), torch.tensor([0.0, 0.0, 0.5, 1.0])
        >>> tx.update(torch.tensor([1.0, -1.0, 1.0, -1.0]), (), params=p)[0]
        tensor([ 0., -1.,  1.,  0.])

    Source: the active set of SLIDE (Tramer and Boneh 2019, arXiv 1904.13000); gradient
    projection (Rosen 1960).
    """
    if low is not None:  # rounded as `box` does
        grad = torch.where((param <= placed(low, param.device, param.dtype)) & (grad > 0), 0, grad)
    if high is not None:
        grad = torch.where((param >= placed(high, param.device, param.dtype)) & (grad < 0), 0, grad)
    return grad


@treewise
def normalize_by_update_norm(
    leaves: list[Tensor], scale_factor: RowNumber = 1.0, eps: RowNonNegative = 1e-6
) -> list[Tensor]:
    """Divide all leaves by the Euclidean norm of all their elements.

    ``g * scale_factor / (norm + eps)``

    Args:
        scale_factor: the norm of the result, up to eps; any number but NaN.
        eps: added to the norm, >= 0.

    Raises:
        ValueError: scale_factor is NaN or eps < 0.

    Example:
        >>> import torch
        >>> tx = normalize_by_update_norm(eps=0.0)
        >>> tx.update({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}, ())[0]
        {'a': tensor([0.6000]), 'b': tensor([0.8000])}

    Source: the function of the same name in optax.
    """
    if not leaves:
        return leaves
    norm = joint_norm([leaf.reshape(1, -1) for leaf in leaves]).reshape(()) + eps
    factor = scale_factor / torch.where(norm == 0, 1, norm)
    return [(leaf * factor).to(leaf.dtype) for leaf in leaves]


@rowwise
def normalize_std(rows: Tensor, eps: RowNonNegative = TINY, *, out: Tensor | None = None) -> Tensor:
    """Divide each row by its standard deviation; one whose deviation is below `eps` stays.

    ``g / std(g)`` with D - 1 below the root, as `torch.std` has it. A row of one element, or of
    equal ones, stays as it is. Behind `centralize` it makes z-scores.

    Args:
        eps: smallest deviation that is divided by, >= 0.
        param_ndim: what a row is, see `rai_chain.to_batch`.

    Raises:
        ValueError: eps < 0.

    Example:
        >>> import torch
        >>> normalize_std(param_ndim=None).update(torch.tensor([1.0, 3.0, 5.0]), ())[0]
        tensor([0.5000, 1.5000, 2.5000])

    Source: its definition; z-scores of gradients (Yun 2024, "ZNorm", arXiv 2408.01215).
    """
    wide = rows.double() - rows[:, :1].double()  # equal elements are 0 then, to the bit
    std = row_norm(wide - wide.mean(1, keepdim=True), 2) / max(1, rows.shape[1] - 1) ** 0.5
    return rescale(rows, torch.where((std == 0) | (std < eps), 1.0, std), out=out)


def per_example_global_norm_clip(grads: Tree, max_norm: Any) -> tuple[Tree, Tensor]:
    """Clip the gradient of each example to a norm over the whole tree, and sum over examples.

    ``sum_i g_i * min(1, max_norm / norm(g_i))``. With noise, and divided by N, it is the link
    `differentially_private_aggregate`.

    Args:
        grads: a tree of tensors (N, ...), one entry for each example; None leaves stay.
        max_norm: largest norm of an example, >= 0: a number or a tensor, 0-dim or (N,).

    Returns:
        The tree of sums, without the dimension of the examples, and how many were clipped, a
        0-dim int64 tensor.

    Raises:
        TypeError: a leaf is no floating tensor.

    Example:
        >>> import torch
        >>> grads = {"w": torch.tensor([[3.0], [0.3]]), "b": torch.tensor([4.0, 0.4])}
        >>> per_example_global_norm_clip(grads, 1.0)
        ({'w': tensor([0.9000]), 'b': tensor(1.2000)}, tensor(1))

    Source: Abadi et al. 2016, "Deep Learning with Differential Privacy", arXiv 1607.00133.
    """
    leaves, spec = flatten(grads)
    check_leaves(leaves, spec, "grads")
    sizes = [0 if leaf is None else math.prod(leaf.shape[1:]) for leaf in leaves]
    pairs = zip(leaves, sizes, strict=True)
    rows = [None if leaf is None else leaf.reshape(len(leaf), size) for leaf, size in pairs]
    parts = [r for r in rows if r is not None]
    if not parts:
        return grads, torch.zeros((), dtype=torch.int64, device="cpu")
    norm = joint_norm(parts)
    bound = placed(max_norm, norm.device).reshape(-1, 1)
    outside = norm > bound
    factor = torch.where(outside, bound / torch.where(outside, norm, 1), 1)
    sums = [
        None if r is None else (r * factor).sum(0).to(r.dtype).reshape(leaf.shape[1:])
        for r, leaf in zip(rows, leaves, strict=True)
    ]
    return unflatten(sums, spec), outside.sum()
