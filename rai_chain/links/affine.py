"""The solutions of linear equations: a set whose projection is a matrix, made once."""

from typing import Any

import torch
from torch import Tensor

from ..core.define import rowwise
from ..core.link import FunctionLink
from ..data.hyper import Range, show
from ..data.messages import told
from ..data.rows import UNSET, ParamNdim
from ..data.tree import Leaves, leaf_names
from ..engine.run import Run
from ..kernels import surfaces
from .projections import plain


class Affine(FunctionLink):
    """The link that `affine` makes, of a function that has the equations and their inverse."""

    equations: tuple[Tensor, Tensor]

    def __new__(cls, matrix: Tensor, offset: Tensor, param_ndim: Any = UNSET) -> "Affine":
        wide = matrix.double()
        parts = wide, offset.double(), torch.linalg.pinv(wide)

        def affine(rows: Tensor) -> Tensor:
            return surfaces.affine(rows, *parts)

        self: Any = super().__new__(cls, rowwise(phase="parameter")(affine), {}, param_ndim)
        self.equations = matrix, offset
        return self  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        own = "" if self.param_ndim is UNSET else f", param_ndim={self.param_ndim!r}"
        matrix, offset = map(show, self.equations)
        return f"affine(matrix={matrix}, offset={offset}{own})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Affine, (*self.equations, self.param_ndim)

    def with_rows(self, param_ndim: ParamNdim) -> "Affine":
        return Affine(*self.equations, param_ndim)

    def check_fit(self, values: dict[str, Any], leaves: Leaves, run: Run) -> None:
        super().check_fit(values, leaves, run)
        rows, columns = self.rows(run), self.equations[0].shape[1]
        names = leaf_names(run.spec)
        sizes = {
            f"`{name}`": leaf.shape[rows.split(leaf) :].numel()
            for name, leaf in zip(names, leaves, strict=True)
            if leaf is not None and leaf.numel()
        }
        sizes = {"all leaves": sum(sizes.values())} if rows.joined and sizes else sizes
        for name, size in sizes.items():
            if size != columns:
                raise ValueError(
                    f"`matrix` must have a column for each of the {size} elements of a row of "
                    f"{name}  Got: shape {tuple(self.equations[0].shape)}"
                )


def affine(matrix: Tensor, offset: Tensor | float = 0.0, *, param_ndim: Any = UNSET) -> Affine:
    """Move each row to the nearest x for which ``matrix @ x = offset``.

    ``x - A+ (A x - b)``, where the pseudo-inverse A+ is made once, in float64. Of equations
    without a solution it makes the least squares. A row that solves them, as far as its dtype can
    tell, keeps its bits; NaN and inf make their row NaN.

    Args:
        matrix: (M, D), any floating dtype; a row of a parameter has D elements.
        offset: (M,), or a number for all equations.
        param_ndim: what a row is, see `rai_chain.to_batch`.

    Raises:
        TypeError: `matrix` is no floating tensor, or `offset` neither a number nor a tensor.
        ValueError: shapes that do not fit.

    Example:
        >>> import torch
        >>> tx = affine(torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), torch.tensor([2.0, 5.0]))
        >>> tx.map(torch.tensor([[0.0, 0.0, 0.0], [3.0, 3.0, 5.0]]))
        tensor([[1., 1., 5.],
                [1., 1., 5.]])

    Source: `projection_affine_set` in jaxopt; Penrose 1955, "A generalized inverse for matrices".
    """
    if not isinstance(matrix, Tensor) or not matrix.is_floating_point():
        raise TypeError(f"`matrix` must be a floating tensor (M, D)  Got: {told(matrix)}")
    if matrix.ndim != 2:
        raise ValueError(f"`matrix` must be of shape (M, D)  Got: {tuple(matrix.shape)}")
    if not isinstance(offset, Tensor):
        Range(static=True).check("offset", offset)
    each = torch.as_tensor(offset, dtype=torch.float64, device=matrix.device)
    if each.shape not in ((), matrix.shape[:1]):
        raise ValueError(
            f"`offset` must be a number or of shape ({len(matrix)},), one for each row of "
            f"`matrix`  Got: shape {tuple(each.shape)}"
        )
    return Affine(matrix, each.expand(len(matrix)), param_ndim)


project_affine = plain(
    affine,
    "torch.tensor([[3.0, 3.0]]), torch.tensor([[1.0, 1.0]]), 2.0)\n        tensor([[1., 1.]])",
)
