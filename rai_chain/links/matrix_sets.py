"""Constraint sets of whole leaves: of their singular values, or of the norms of their rows.

A tensor of more dimensions, as the weight of a convolution, is a matrix of (first, the rest), one
of fewer a single row. The projections are Euclidean and hold to rounding; a leaf that is in its set
already, as far as its dtype can tell, keeps its bits. NaN makes its leaf NaN, and where singular
values are asked for inf does.
"""

from typing import Annotated, Any

from torch import Tensor

from ..core.define import leafwise
from ..data.hyper import Range, RowNonNegative
from ..data.rows import to_rows
from ..kernels import spectral, surfaces
from .projections import plain


def _matrix(leaf: Tensor) -> Tensor:
    return leaf.flatten(1) if leaf.ndim > 1 else leaf.reshape(1, -1)


@leafwise(phase="parameter")
def orthogonal(leaf: Tensor) -> Tensor:
    """Replace each matrix by the nearest one with orthonormal rows, or columns if it is tall.

    With the singular value decomposition ``U S V`` it is ``U V``.

    Example:
        >>> import torch
        >>> orthogonal().map(torch.tensor([[0.0, 3.0], [-0.5, 0.0]])).round()
        tensor([[ 0.,  1.],
                [-1.,  0.]])

    Source: Schönemann 1966, "A generalized solution of the orthogonal Procrustes problem".
    """
    return spectral.orthogonal(_matrix(leaf)).reshape(leaf.shape)


@leafwise(phase="parameter")
def nuclear_ball(leaf: Tensor, epsilon: RowNonNegative) -> Tensor:
    """Keep the sum of the singular values of each matrix at `epsilon` or below.

    They are projected onto the L1 ball, which makes the smallest of them 0: low rank.

    Args:
        epsilon: radius, >= 0.

    Raises:
        ValueError: epsilon < 0.

    Example:
        >>> import torch
        >>> nuclear_ball(2.0).map(torch.tensor([[3.0, 0.0], [0.0, 0.5]]))
        tensor([[2., 0.],
                [0., 0.]])

    Source: Cai et al. 2010, "A singular value thresholding algorithm for matrix completion",
    arXiv 0810.3286.
    """
    return spectral.nuclear_ball(_matrix(leaf), epsilon).reshape(leaf.shape)


class _Dimensions(Range):
    """The range of a `param_ndim` that is a hyperparameter."""

    def check_fit(self, name: str, value: Any, leaf: Tensor) -> None:
        if abs(value) > max(1, leaf.ndim):
            raise ValueError(
                f"`{name}` must satisfy abs({name}) <= ndim  "
                f"Got: {value} for shape {tuple(leaf.shape)}"
            )


GroupNdim = Annotated[int | None, _Dimensions(static=True, whole=True, optional=True, fits=True)]


@leafwise(phase="parameter")
def group_l1_ball(leaf: Tensor, epsilon: RowNonNegative, group_ndim: GroupNdim = -1) -> Tensor:
    """Keep the sum of the Euclidean norms of the rows of each leaf at `epsilon` or below.

    The norms are projected onto the L1 ball, which makes whole rows 0. Rows with
    infinite elements share the radius equally.

    Args:
        epsilon: radius, >= 0; all rows of a leaf share it.
        group_ndim: what a row is, as `param_ndim` in `rai_chain.to_batch`.

    Raises:
        ValueError: epsilon < 0, or abs(group_ndim) > the dimensions of a leaf.

    Example:
        >>> import torch
        >>> group_l1_ball(4.0).map(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
        tensor([[2.4000, 3.2000],
                [0.0000, 0.0000]])

    Source: van den Berg et al. 2008, "Group sparsity via linear-time projection".
    """
    return surfaces.group_l1_ball(to_rows(leaf, group_ndim), epsilon).reshape(leaf.shape)


project_orthogonal = plain(orthogonal, "torch.tensor([[0.0, 3.0]]))\n        tensor([[0., 1.]])")
project_nuclear_ball = plain(
    nuclear_ball, "torch.tensor([[3.0, 4.0]]), 10.0)\n        tensor([[3., 4.]])"
)
project_group_l1_ball = plain(
    group_l1_ball, "torch.tensor([[3.0, 4.0]]), 10.0)\n        tensor([[3., 4.]])"
)
