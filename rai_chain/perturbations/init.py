"""Starts that a torch generator draws, written into a tensor; keyed ones: `rai_chain.random`."""

from numbers import Real
from typing import Any

import torch
from torch import Generator, Tensor, default_generator

from ..data.rows import check_param_ndim, to_rows
from ..links.sampling import l1_points, l2_points


def _check_radius(epsilon: Any) -> None:
    if not isinstance(epsilon, Real) or isinstance(epsilon, bool):
        raise TypeError(f"`epsilon` must be a number  Got: {epsilon!r}")
    if not float(epsilon) > 0.0:
        raise ValueError(f"`epsilon` must satisfy 0 < epsilon  Got: {epsilon}")


@torch.no_grad()
def uniform_like_l1_n_ball_(
    x: Tensor,
    epsilon: float = 1.0,
    param_ndim: int | None = -1,
    generator: Generator = default_generator,
) -> None:
    """Overwrite each row of a tensor with a point drawn uniformly from the L1 ball.

    Args:
        x: any shape, floating dtype.
        epsilon: radius, > 0.
        param_ndim: what a row is, see `rai_chain.to_batch`.
        generator: draws, on its own device.

    Raises:
        TypeError: `epsilon` is no number.
        ValueError: epsilon <= 0, or abs(param_ndim) > x.ndim.

    Example:
        >>> x = torch.zeros(2, 3)
        >>> uniform_like_l1_n_ball_(x, 2.0, generator=torch.Generator().manual_seed(0))
        >>> x.abs().sum(1) <= 2.0
        tensor([True, True])

    Source: the function of the same name in rai-toolbox, whose draws it equals.
    """
    check_param_ndim(param_ndim, x)
    _check_radius(epsilon)
    rows = to_rows(x, param_ndim)
    noise, signs = (
        torch.empty(rows.shape, dtype=x.dtype, device=generator.device).uniform_(
            low, 1.0, generator=generator
        )
        for low in (0.0, -1.0)
    )
    x.copy_(epsilon * l1_points(noise, signs.sign()).reshape(x.shape))


@torch.no_grad()
def uniform_like_l2_n_ball_(
    x: Tensor,
    epsilon: float = 1.0,
    param_ndim: int | None = -1,
    generator: Generator = default_generator,
) -> None:
    """Overwrite each row of a tensor with a point drawn uniformly from the L2 ball.

    Args:
        x, epsilon, param_ndim, generator: as in `uniform_like_l1_n_ball_`.

    Raises:
        TypeError, ValueError: as `uniform_like_l1_n_ball_`.

    Example:
        >>> x = torch.zeros(2, 3)
        >>> uniform_like_l2_n_ball_(x, 2.0, generator=torch.Generator().manual_seed(0))
        >>> x.norm(dim=1) <= 2.0
        tensor([True, True])

    Source: the function of the same name in rai-toolbox, whose draws it equals.
    """
    check_param_ndim(param_ndim, x)
    _check_radius(epsilon)
    n, size = to_rows(x, param_ndim).shape
    noise = torch.empty((n, size + 2), dtype=x.dtype, device=generator.device)
    x.copy_(epsilon * l2_points(noise.normal_(generator=generator)).reshape(x.shape))


@torch.no_grad()
def uniform_like_linf_n_ball_(
    x: Tensor,
    epsilon: float = 1.0,
    param_ndim: int | None = None,
    generator: Generator = default_generator,
) -> None:
    """Overwrite each element of a tensor with a number drawn uniformly from [-epsilon, epsilon].

    Args:
        x: any shape, floating dtype.
        epsilon: radius, > 0.
        param_ndim: without a meaning here, as elements do not see each other.
        generator: draws, on its own device.

    Raises:
        TypeError: `epsilon` is no number.
        ValueError: epsilon <= 0.

    Example:
        >>> x = torch.zeros(2, 3)
        >>> uniform_like_linf_n_ball_(x, 2.0, generator=torch.Generator().manual_seed(0))
        >>> bool((x.abs() <= 2.0).all())
        True

    Source: the function of the same name in rai-toolbox, whose draws it equals.
    """
    _check_radius(epsilon)
    noise = torch.empty_like(x, device=generator.device)
    x.copy_(noise.uniform_(-epsilon, epsilon, generator=generator))
