"""Steps that see a weight as a matrix: orthogonalised, or with moments of rows and columns."""

from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor

from ..core.define import elementwise, leafwise
from ..core.pipeline import GradientTransformation
from ..data.hyper import Bool, Decay, Flag, Hyper, NonNegative, Range
from ..data.tree import Tree, map_leaves
from .clipping import clip_by_block_rms
from .descent import descend, optimizer, where
from .layerwise import scale_by_param_block_rms
from .memory import average, wide, zeros
from .moments import scale_by_adam
from .parts import masked
from .transforms import clamped

Steps = Annotated[int, Range(0, static=True, whole=True)]
Adjustment = Annotated[str, Flag(("original", "match_rms_adamw"))]
Exponent = Annotated[Hyper, Range(high=0.0)]
OptionalEps = Annotated[Hyper, Range(0.0, optional=True)]

_COEFFICIENTS = (3.4445, -4.775, 2.0315)  # of the quintic that grows small singular values most


def orthogonalized(matrix: Tensor, steps: int, eps: Any) -> Tensor:
    """About the nearest matrix with orthonormal rows or columns, by a Newton-Schulz iteration.

    Singular values come out between 0.7 and 1.2, in 5 steps where they are above 1e-3 of the norm.
    """
    a, b, c = _COEFFICIENTS
    wide_one = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide_one else matrix.mT
    x = x / clamped(torch.linalg.matrix_norm(x), eps, None)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    result: Tensor = x if wide_one else x.mT
    return result


@leafwise(state=zeros("momentum_buffer"))
def scale_by_muon(
    grad: Tensor,
    momentum: Decay = 0.95,
    nesterov: Bool = True,
    eps: NonNegative = 1e-7,
    ns_steps: Steps = 5,
    adjust_lr_fn: Adjustment = "original",
    *,
    state: dict[str, Tensor],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Replace each matrix by the orthogonal part of a mean of its gradients, about.

    A tensor of more dimensions, as the weight of a convolution, is a matrix of (first, the rest),
    one of fewer a single row. It is computed in float32 at least.

    Args:
        momentum: decay of the mean, 0 <= momentum < 1.
        nesterov: mix the gradient into the mean once more, a Python bool.
        eps: smallest norm that is divided by, >= 0.
        ns_steps: steps of the Newton-Schulz iteration, a whole Python number >= 0.
        adjust_lr_fn: "original" multiplies by ``sqrt(max(1, rows / columns))``,
            "match_rms_adamw" by ``0.2 * sqrt(max(rows, columns))``, the size of Adam's steps.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> tx, g = scale_by_muon(), torch.tensor([[3.0, 0.0], [0.0, 0.5]])
        >>> tx.update(g, tx.init(g))[0].diagonal() > 0.6
        tensor([True, True])

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks", as
    `torch.optim.Muon` has it; Liu et al. 2025, arXiv 2502.16982, for "match_rms_adamw".
    """
    grad = wide(grad)
    mean = average(state["momentum_buffer"], grad, momentum)
    followed = average(mean, grad, momentum) if nesterov else mean
    matrix = followed.flatten(1) if grad.ndim > 1 else followed.reshape(1, -1)
    rows, columns = matrix.shape
    original = adjust_lr_fn == "original"
    size = max(1, rows / columns) ** 0.5 if original else 0.2 * max(rows, columns) ** 0.5
    step = size * orthogonalized(matrix, ns_steps, eps)
    return step.reshape(grad.shape), {"momentum_buffer": mean}


def muon(
    lr: Any = 1e-3,
    momentum: Any = 0.95,
    nesterov: bool = True,
    weight_decay: Any = 0.1,
    matrices: Any = None,
    *,
    betas: Any = (0.9, 0.999),
    eps: Any = 1e-8,
    ns_steps: int = 5,
    adjust_lr_fn: str = "match_rms_adamw",
    maximize: bool = False,
    mask: Any = None,
) -> GradientTransformation:
    """Make Muon for the matrices of a whole module, and AdamW for its other parameters.

    Args:
        lr: learning rate of both, >= 0; like the decays, a number, a tensor (0-dim) or a schedule.
        momentum: decay of the mean of the matrices' gradients, 0 <= momentum < 1.
        nesterov: mix the gradient into that mean once more, a Python bool.
        weight_decay: what each step of size lr takes off the parameters, >= 0; the Python
            number 0 leaves it out.
        matrices: which leaves are matrices, a tree of bools like the params or a function that
            makes one of them; None for those of two dimensions or more. Leave out embeddings and
            the last layer.
        betas: (beta1, beta2) of Adam: decays of the mean and of the mean of squares,
            each at least 0 and below 1.
        eps: of Adam, >= 0.
        ns_steps: steps of the Newton-Schulz iteration, a whole Python number >= 0.
        adjust_lr_fn: "match_rms_adamw", so that one rate fits both, or "original"; see
            `scale_by_muon`.
        maximize: climb, a Python bool.
        mask: bools like the params or their upper part, where weights decay; None for everywhere.

    Returns:
        A `GradientTransformation`; `update` needs `params`, where weights decay.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> p = {"weight": torch.eye(2), "bias": torch.zeros(2)}
        >>> tx = muon(lr=0.1, weight_decay=0.0)
        >>> tx.step(p, {"weight": torch.eye(2), "bias": torch.ones(2)}, tx.init(p))[0]["bias"]
        tensor([-0.1000, -0.1000])

    Source: Jordan et al. 2024; `torch.optim.Muon`; optax's of the same name.
    """
    chosen = _matrices if matrices is None else matrices
    return optimizer(
        maximize,
        masked(scale_by_muon(momentum, nesterov, 1e-7, ns_steps, adjust_lr_fn), chosen),
        masked(scale_by_adam(betas, eps), partial(_others, chosen)),
        descend(lr, weight_decay, mask),
    )


def _matrices(params: Tree) -> Tree:
    return map_leaves(lambda leaf: leaf.ndim > 1, params)


def _others(chosen: Any, params: Tree) -> Tree:
    return map_leaves(lambda flag: not flag, chosen(params) if callable(chosen) else chosen)


# ------------------------------------------------------------------ factored moments


def _start_factored(leaf: Tensor) -> dict[str, Tensor]:
    """Means over rows and over columns of a matrix, or of the elements of a vector."""
    dtype = torch.promote_types(leaf.dtype, torch.float32)
    empty = leaf.new_zeros(0, dtype=dtype)
    matrix = leaf.ndim > 1
    return {
        "row_var": leaf.new_zeros((*leaf.shape[:-1], 1), dtype=dtype) if matrix else empty,
        "col_var": leaf.new_zeros((*leaf.shape[:-2], 1, leaf.shape[-1]), dtype=dtype)
        if matrix
        else empty.clone(),
        "variance": empty.clone() if matrix else torch.zeros_like(leaf, dtype=dtype),
        "count": torch.zeros((), dtype=torch.int64, device=leaf.device),
    }


@leafwise(state=_start_factored)
def scale_by_factored_rms(
    grad: Tensor,
    beta2_decay: Exponent = -0.8,
    eps: OptionalEps = None,
    *,
    state: dict[str, Tensor],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Divide by the root of the mean of squares, kept for rows and columns of a matrix only.

    In step t the decay is ``1 - t**beta2_decay``. The mean of squares of a matrix is the product
    of its row means and column means, over the mean of all.

    Args:
        beta2_decay: exponent of what a step adds, <= 0.
        eps: smallest root, >= 0; None for the epsilon of the dtype, of float32 for a half one.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> tx, g = scale_by_factored_rms(), torch.tensor([[1.0, -2.0], [2.0, -4.0]])
        >>> tx.update(g, tx.init(g))[0]
        tensor([[ 1., -1.],
                [ 1., -1.]])

    Source: Adafactor (Shazeer and Stern 2018, arXiv 1804.04235), as `torch.optim.Adafactor` has it.
    """
    grad, count = wide(grad), state["count"] + 1
    eps = torch.finfo(grad.dtype).eps if eps is None else eps
    decay, square = 1 - count.double() ** beta2_decay, grad * grad
    new = {**state, "count": count}
    if grad.ndim > 1:
        new["row_var"] = row = average(state["row_var"], square.mean(-1, keepdim=True), decay)
        new["col_var"] = column = average(state["col_var"], square.mean(-2, keepdim=True), decay)
        variance = row * (column / row.mean(-2, keepdim=True).clamp(min=eps))
    else:
        new["variance"] = variance = average(state["variance"], square, decay)
    return grad * variance.clamp(min=eps * eps).rsqrt(), new


@elementwise(updates=True, state=zeros(counts=True))
def descend_within(
    grad: Tensor,
    lr: NonNegative = 1e-2,
    weight_decay: NonNegative = 0.0,
    *,
    param: Tensor,
    state: dict[str, Tensor],
) -> tuple[Any, dict[str, Tensor]]:
    """As `descend_and_decay`, with steps of no more than one over the root of their count.

    Multiply by ``-min(lr, t**-0.5)``; the decay is that of a step of size lr.

    Args:
        lr: learning rate, >= 0.
        weight_decay: what a step of size lr takes off the parameter, >= 0.

    Raises:
        ValueError: a value outside its range, or no `params`.

    Example:
        >>> import torch
        >>> tx, p = descend_within(lr=2.0), torch.tensor([4.0])
        >>> tx.update(torch.tensor([1.0]), tx.init(p), params=p)[0]
        tensor([-1.])

    Source: the relative step of Adafactor, as `torch.optim.Adafactor` has it.
    """
    count, param = state["count"] + 1, wide(param)
    rate = clamped(count.double() ** -0.5, None, lr)
    return param * (1 - lr * weight_decay) - param - rate * wide(grad), {"count": count}


def adafactor(
    lr: Any = 1e-2,
    beta2_decay: Any = -0.8,
    eps: Any = None,
    min_scale: Any = 1e-3,
    d: Any = 1.0,
    weight_decay: Any = 0.0,
    *,
    maximize: bool = False,
    mask: Any = None,
) -> GradientTransformation:
    """Make Adafactor, whose memory of a matrix is a row and a column.

    Args:
        lr: largest learning rate, >= 0; like all that follow but the flag, a number, a tensor
            (0-dim) or a schedule.
        beta2_decay: exponent of what a step adds to the means of squares, <= 0.
        eps: smallest root of the means of squares, >= 0; None for the epsilon of the dtype.
        min_scale: smallest root mean square of a parameter that steps are scaled to, >= 0.
        d: largest root mean square of an update before that, >= 0.
        weight_decay: what each step of size lr takes off the parameters, >= 0.
        maximize: climb, a Python bool.
        mask: bools like the params or their upper part, where weights decay; None for everywhere.

    Returns:
        A `GradientTransformation`; `update` needs `params`.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> tx, x = adafactor(lr=0.1), torch.tensor([1.0])
        >>> tx.step(x, torch.tensor([5.0]), tx.init(x))[0]
        tensor([0.9000])

    Source: Shazeer and Stern 2018, arXiv 1804.04235; `torch.optim.Adafactor`.
    """
    return optimizer(
        maximize,
        scale_by_factored_rms(beta2_decay, eps),
        clip_by_block_rms(d),
        scale_by_param_block_rms(min_scale),
        descend_within(lr, where(mask, weight_decay)),
    )
