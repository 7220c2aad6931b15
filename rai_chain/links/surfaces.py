"""Constraint sets that are surfaces, or cut by planes: parameter links, and plain functions.

The projections are Euclidean and hold to rounding. A row that is in its set already, as far as its
dtype can tell, keeps its bits. NaN makes its row NaN. An infinite element means the limit of a
sphere as it grows, several of them growing equally; beside a plane it has none, and is NaN.
"""

import torch
from torch import Tensor

from ..core.define import elementwise, rowwise
from ..data.hyper import Number, Optional, RowNonNegative, RowNumber
from ..kernels import surfaces
from .projections import plain


@elementwise(phase="parameter")
def non_negative(param: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Keep each element at 0 or above; NaN stays.

    Example:
        >>> import torch
        >>> non_negative().map(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])

    Source: `projection_non_negative` in optax and jaxopt.
    """
    return torch.clamp(param, min=0.0, out=out)


@rowwise(phase="parameter")
def l2_sphere(rows: Tensor, epsilon: RowNonNegative, center: Optional = None) -> Tensor:
    """Move each row to Euclidean distance `epsilon` of `center`; from there, to one such point.

    Args:
        epsilon: radius, >= 0.
        center: a number, a tensor shaped like the parameter, or None for the origin.
        param_ndim: what a row is, see `rai_chain.to_batch`.

    Raises:
        ValueError: epsilon < 0.

    Example:
        >>> import torch
        >>> l2_sphere(10.0).map(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[ 6.,  8.],
                [10.,  0.]])

    Source: `projection_l2_sphere` in optax and jaxopt.
    """
    return surfaces.l2_sphere(rows, epsilon, center)


@rowwise(phase="parameter")
def l1_sphere(rows: Tensor, epsilon: RowNonNegative, center: Optional = None) -> Tensor:
    """Move each row to L1 distance `epsilon` of `center`: to the nearest such point.

    Each element keeps its side of the center; one at the center moves up, if at all.

    Args:
        epsilon: radius, >= 0.
        center: a number, a tensor shaped like the parameter, or None for the origin.
        param_ndim: what a row is, see `rai_chain.to_batch`.

    Raises:
        ValueError: epsilon < 0.

    Example:
        >>> import torch
        >>> l1_sphere(2.0).map(torch.tensor([[0.5, -0.5], [2.0, -1.0]]))
        tensor([[ 1.0000, -1.0000],
                [ 1.5000, -0.5000]])

    Source: `projection_l1_sphere` in optax and jaxopt; Duchi et al. 2008, "Efficient projections
    onto the l1-ball", ICML.
    """
    return surfaces.l1_sphere(rows, epsilon, center)


@rowwise(phase="parameter")
def hyperplane(rows: Tensor, normal: Number, offset: RowNumber = 0.0) -> Tensor:
    """Move each row to the nearest one whose product with `normal` is `offset`.

    ``x + a * (b - <a, x>) / <a, a>``; where the normal is 0, x as it is.

    Args:
        normal: a number for a vector of it, or a tensor that broadcasts to the parameter.
        offset: a number, or one for each row, (N,).
        param_ndim: what a row is, see `rai_chain.to_batch`.

    Raises:
        ValueError: a value that is NaN or does not fit.

    Example:
        >>> import torch
        >>> hyperplane(1.0, 3.0).map(torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
        tensor([[2., 1.],
                [1., 2.]])

    Source: `projection_hyperplane` in optax and jaxopt.
    """
    return surfaces.hyperplane(rows, normal, offset)


@rowwise(phase="parameter")
def halfspace(rows: Tensor, normal: Number, offset: RowNumber = 0.0) -> Tensor:
    """Move each row to the nearest one whose product with `normal` is at most `offset`.

    ``x + a * min(0, b - <a, x>) / <a, a>``; where the normal is 0, x as it is.

    Args:
        normal: a number for a vector of it, or a tensor that broadcasts to the parameter.
        offset: a number, or one for each row, (N,).
        param_ndim: what a row is, see `rai_chain.to_batch`.

    Raises:
        ValueError: a value that is NaN or does not fit.

    Example:
        >>> import torch
        >>> halfspace(1.0, 3.0).map(torch.tensor([[1.0, 0.0], [3.0, 2.0]]))
        tensor([[1., 0.],
                [2., 1.]])

    Source: `projection_halfspace` in optax and jaxopt.
    """
    return surfaces.hyperplane(rows, normal, offset, half=True)


project_non_negative = plain(non_negative, "torch.tensor([-1.0, 2.0]))\n        tensor([0., 2.])")
project_l2_sphere = plain(
    l2_sphere, "torch.tensor([[3.0, 4.0]]), 10.0)\n        tensor([[6., 8.]])"
)
project_l1_sphere = plain(
    l1_sphere, "torch.tensor([[0.5, -0.5]]), 2.0)\n        tensor([[ 1., -1.]])"
)
project_hyperplane = plain(
    hyperplane, "torch.tensor([[1.0, 0.0]]), 1.0, 3.0)\n        tensor([[2., 1.]])"
)
project_halfspace = plain(
    halfspace, "torch.tensor([[3.0, 2.0]]), 1.0, 3.0)\n        tensor([[2., 1.]])"
)
