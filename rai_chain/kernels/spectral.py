"""Functions of the singular values of a matrix, and derivatives that equal values do no harm.

The decomposition itself has none where two singular values are equal, though what is made of it
here has. So it gives the value, and the frame in which two steps of Newton's method from there are
right in the first and the second derivative.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..data.hyper import placed
from ..data.plain import is_plain
from . import sets
from .sets import with_slope

FINE = torch.finfo(torch.float64).eps


def orthogonal(matrix: Tensor) -> Tensor:
    """The nearest matrix with orthonormal rows, or columns where it is tall.

    Args:
        matrix: (M, N), any floating dtype. NaN where an element is not finite.
    """
    return _of_wide(_orthogonal, matrix)


def nuclear_ball(matrix: Tensor, radius: Any) -> Tensor:
    """The nearest matrix whose singular values have a sum of at most `radius`.

    Args:
        matrix: (M, N), any floating dtype. NaN where an element is not finite.
        radius: a number or a tensor of one element, >= 0.
    """
    return _of_wide(_nuclear_ball, matrix, radius)


def _of_wide(function: Callable[..., tuple[Tensor, Tensor]], matrix: Tensor, *args: Any) -> Tensor:
    """A function of a finite matrix, (M, N) with M <= N, and of what rounding may make of it.

    It returns the new matrix in float64, and whether the given one is it as far as its dtype tells.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    finite = matrix.isfinite().all()
    wide = torch.where(finite, matrix.mT if tall else matrix, 0.0).double()
    rounding = wide.shape[0] ** 0.5 * (2 * torch.finfo(matrix.dtype).eps + 16 * FINE)
    new, there = function(wide, rounding, *args)
    new = torch.where(finite, new.mT if tall else new, torch.nan)
    value = torch.where(there & finite, matrix, new.to(matrix.dtype))
    return value if is_plain((new,)) else with_slope(value.detach(), new)


def _orthogonal(x: Tensor, rounding: float) -> tuple[Tensor, Tensor]:
    u, s, v = torch.linalg.svd(x.detach(), full_matrices=False)
    there = ((s - 1).abs() <= rounding).all()
    new = u @ v
    if not is_plain((x,)):
        new = with_slope(new, u @ _parts(x, u, s, s > 0)[1])
    return new, there


def _nuclear_ball(x: Tensor, rounding: float, radius: Any) -> tuple[Tensor, Tensor]:
    u, s, v = torch.linalg.svd(x.detach(), full_matrices=False)
    radius = placed(radius, x.device).reshape(())
    small = sets.l1_ball(s[None], radius.detach())[0]
    outside = (small != s).any()
    new = torch.where(outside, (u * small) @ v, x.detach())
    if not is_plain((x, radius)):
        some = outside & (small > 0)
        part, turn = _parts(x, u, s, some)
        threshold = ((turn * (u.mT @ x)).sum() - radius) / some.sum().clamp(min=1)
        new = with_slope(new, torch.where(outside, u @ (part - threshold * turn), x))
    return new, s.sum() <= radius.detach() + rounding * s.amax()


def _parts(x: Tensor, u: Tensor, s: Tensor, some: Tensor) -> tuple[Tensor, Tensor]:
    """Some singular triplets of a matrix, in the frame u: their sum, and that with 1 for values.

    Args:
        x: (M, N), M <= N, which may have a derivative.
        u, s: its left singular vectors and singular values, which have none.
        some: which, (M,); their values are > 0 and apart from the others.
    """
    top = torch.where(s.amax() > 0, s.amax(), 1.0)
    s, frame = s / top, u.mT @ x / top
    gram, inner = frame @ frame.mT, some.double().diag()
    outer = torch.eye(len(s), dtype=s.dtype, device=s.device) - inner
    across = ~some[:, None] & some
    apart = torch.where(across, (s * s) - (s * s)[:, None], 1.0)
    tilt = torch.zeros_like(gram)  # of the space of these vectors, out of the frame
    for _ in range(2):
        turned = gram @ (inner + tilt)
        tilt = tilt + torch.where(across, (outer @ turned - tilt @ inner @ turned) / apart, 0.0)
    basis = inner + tilt
    within = some[:, None] & some
    sums = torch.where(within, s[:, None] + s, 1.0)
    metric = inner - tilt.mT @ tilt
    root = torch.where(some, 1.0 / torch.where(some, s, 1.0), 0.0).diag()
    for _ in range(2):
        left = metric - root @ (basis.mT @ gram @ basis) @ root
        root = root + torch.where(within, left / sums, 0.0)
    mine = basis.mT @ frame
    return basis @ metric @ mine * top, basis @ root @ mine
