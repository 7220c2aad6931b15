"""Random points of the sets, one for each row: uniform in the set, a pure function of a key."""

from typing import Any

import torch
from torch import Tensor

from ..core.define import elementwise, rowwise
from ..core.link import Factory
from ..data.hyper import NonNegative, Number, Optional, RowNonNegative
from ..data.random import bernoulli, check_key, leaf_key, normal, uniform
from ..kernels import sets
from .transforms import check_interval, clamped

DOUBLE = torch.float64  # what is drawn in: a direction without a length does not come up there

# ------------------------------------------------------------------ from noise to points


def l1_points(noise: Tensor, signs: Tensor) -> Tensor:
    """Uniform in the unit L1 ball, of uniform noise (N, D) and signs: the gaps between the noise.

    Source: the spacings of uniform numbers (Devroye 1986, "Non-Uniform Random Variate
    Generation", chapter 5).
    """
    first = torch.zeros_like(noise[:, :1])
    return signs * torch.diff(noise.sort(1).values, dim=1, prepend=first)


def l2_points(noise: Tensor) -> Tensor:
    """Uniform in the unit L2 ball of D dimensions, of normal noise (N, D + 2).

    Source: Voelker et al. 2017, "Efficiently sampling vectors and coordinates from the n-sphere
    and n-ball".
    """
    points: Tensor = noise / noise.norm(dim=1, keepdim=True)
    return points[:, :-2]


def _simplex_points(noise: Tensor) -> Tensor:
    """Uniform in the unit simplex of D dimensions, of uniform noise (N, D - 1)."""
    ends = noise.new_zeros(noise.shape[0], 1), noise.new_ones(noise.shape[0], 1)
    return torch.diff(torch.cat([ends[0], noise.sort(1).values, ends[1]], 1), dim=1)


def _signs(key: Tensor, shape: tuple[int, ...]) -> Tensor:
    return 2.0 * bernoulli(leaf_key(key, 1), 0.5, shape).to(DOUBLE) - 1.0


def _moved(points: Tensor, epsilon: Any, center: Any, dtype: torch.dtype) -> Tensor:
    """Points around the origin, scaled and put around a center."""
    scaled: Tensor = points * epsilon
    return (scaled if center is None else scaled + center).to(dtype)


# ------------------------------------------------------------------ the sets, as links

# Each sees rows of zeros, and ends as its projection does: no point is outside.


@rowwise
def _l1_ball(rows: Tensor, epsilon: RowNonNegative, center: Optional, *, key: Tensor) -> Any:
    shape = (rows.shape[0], rows.shape[1])
    points = l1_points(uniform(key, shape, DOUBLE), _signs(key, shape))
    return sets.l1_ball(_moved(points, epsilon, center, rows.dtype), epsilon, center)


@rowwise
def _l2_ball(rows: Tensor, epsilon: RowNonNegative, center: Optional, *, key: Tensor) -> Any:
    points = l2_points(normal(key, (rows.shape[0], rows.shape[1] + 2), DOUBLE))
    return sets.l2_ball(_moved(points, epsilon, center, rows.dtype), epsilon, center)


@elementwise
def _linf_ball(x: Tensor, epsilon: NonNegative, center: Optional, *, key: Tensor) -> Any:
    points = 2.0 * uniform(key, tuple(x.shape), DOUBLE) - 1.0
    return sets.linf_ball(_moved(points, epsilon, center, x.dtype), epsilon, center)


@rowwise
def _l1_sphere(rows: Tensor, epsilon: RowNonNegative, center: Optional, *, key: Tensor) -> Any:
    n, size = rows.shape
    points = _simplex_points(uniform(key, (n, size - 1), DOUBLE)) * _signs(key, (n, size))
    return sets.l1_ball(_moved(points, epsilon, center, rows.dtype), epsilon, center)


@rowwise
def _l2_sphere(rows: Tensor, epsilon: RowNonNegative, center: Optional, *, key: Tensor) -> Any:
    noise = normal(key, (rows.shape[0], rows.shape[1]), DOUBLE)
    points = noise / noise.norm(dim=1, keepdim=True)
    return sets.l2_ball(_moved(points, epsilon, center, rows.dtype), epsilon, center)


@rowwise
def _linf_sphere(rows: Tensor, epsilon: RowNonNegative, center: Optional, *, key: Tensor) -> Any:
    n, size = rows.shape
    inside = 2.0 * uniform(key, (n, size), DOUBLE) - 1.0
    face = (uniform(leaf_key(key, 2), (n, 1), DOUBLE) * size).long()
    at = torch.arange(size, device=rows.device) == face
    points = torch.where(at, _signs(key, (n, size)), inside)
    return sets.linf_ball(_moved(points, epsilon, center, rows.dtype), epsilon, center)


@rowwise
def _simplex(rows: Tensor, scale: RowNonNegative, *, key: Tensor) -> Any:
    n, size = rows.shape
    return _moved(_simplex_points(uniform(key, (n, size - 1), DOUBLE)), scale, None, rows.dtype)


def _check_box(values: dict[str, Any]) -> None:
    check_interval("low", values["low"], "high", values["high"])


@elementwise(check=_check_box)
def _box(x: Tensor, low: Number, high: Number, *, key: Tensor) -> Any:
    part = uniform(key, tuple(x.shape), DOUBLE)
    points = torch.as_tensor(low * (1.0 - part) + high * part)
    return clamped(points.to(x.dtype), low, high)


def _draw(
    factory: Factory,
    key: Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    *args: Any,
    **row: Any,
) -> Tensor:
    check_key(key)
    zeros = torch.zeros(shape, dtype=dtype, device=key.device)
    link = factory(*args, seed=key, **row)
    drawn: Tensor = link.update(zeros, link.init(zeros))[0]
    return drawn


# ------------------------------------------------------------------ the public functions


def l1_ball(
    key: Tensor,
    shape: tuple[int, ...],
    epsilon: Any = 1.0,
    center: Any = None,
    *,
    param_ndim: int | None = -1,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Points uniform in the L1 ball, one for each row.

    Args:
        key: 0-dim int64, such as ``torch.tensor(0)``: same key, same points.
        shape: of the result; what a row is, `param_ndim` says.
        epsilon: radius, >= 0: a number, or a tensor with one for each row.
        center: a number, a tensor that broadcasts to `shape`, or None for the origin.
        param_ndim: see `rai_chain.to_batch`.
        dtype: of the result, floating.

    Returns:
        A tensor on the device of `key`; in exact arithmetic no row is outside.

    Raises:
        TypeError: `key` is no key.
        ValueError: epsilon < 0, or a value that does not fit `shape`.

    Example:
        >>> l1_ball(torch.tensor(0), (2, 3), 2.0)
        tensor([[ 0.0294, -0.3379,  0.1391],
                [-0.3827, -0.1217,  0.1414]])

    Source: the spacings of uniform numbers (Devroye 1986, "Non-Uniform Random Variate
    Generation", chapter 5).
    """
    return _draw(_l1_ball, key, shape, dtype, epsilon, center, param_ndim=param_ndim)


def l2_ball(
    key: Tensor,
    shape: tuple[int, ...],
    epsilon: Any = 1.0,
    center: Any = None,
    *,
    param_ndim: int | None = -1,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Points uniform in the L2 ball, one for each row.

    Args:
        key: 0-dim int64, such as ``torch.tensor(0)``: same key, same points.
        shape: of the result; what a row is, `param_ndim` says.
        epsilon: radius, >= 0: a number, or a tensor with one for each row.
        center: a number, a tensor that broadcasts to `shape`, or None for the origin.
        param_ndim: see `rai_chain.to_batch`.
        dtype: of the result, floating.

    Returns:
        A tensor on the device of `key`; in exact arithmetic no row is outside.

    Raises:
        TypeError: `key` is no key.
        ValueError: epsilon < 0, or a value that does not fit `shape`.

    Example:
        >>> l2_ball(torch.tensor(0), (2, 3), 2.0)
        tensor([[-0.2806, -0.3901, -1.1765],
                [ 1.2475, -0.0977,  0.1193]])

    Source: Voelker et al. 2017, "Efficiently sampling vectors and coordinates from the n-sphere
    and n-ball".
    """
    return _draw(_l2_ball, key, shape, dtype, epsilon, center, param_ndim=param_ndim)


def linf_ball(
    key: Tensor,
    shape: tuple[int, ...],
    epsilon: Any = 1.0,
    center: Any = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Points uniform in the Linf ball: each element within `epsilon` of `center`.

    Args:
        key: 0-dim int64, such as ``torch.tensor(0)``: same key, same points.
        shape: of the result.
        epsilon: radius, >= 0: a number, or a tensor with one for each element.
        center: a number, a tensor that broadcasts to `shape`, or None for the origin.
        dtype: of the result, floating.

    Returns:
        A tensor on the device of `key`; in exact arithmetic no row is outside.

    Raises:
        TypeError: `key` is no key.
        ValueError: epsilon < 0, or a value that does not fit `shape`.

    Example:
        >>> linf_ball(torch.tensor(0), (2, 3), 2.0)
        tensor([[-0.8288, -0.2979, -0.3768],
                [-1.8521,  0.0921,  0.6864]])

    Source: its definition.
    """
    return _draw(_linf_ball, key, shape, dtype, epsilon, center)


def l1_sphere(
    key: Tensor,
    shape: tuple[int, ...],
    epsilon: Any = 1.0,
    center: Any = None,
    *,
    param_ndim: int | None = -1,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Points uniform on the surface of the L1 ball, to rounding, one for each row.

    Args:
        key: 0-dim int64, such as ``torch.tensor(0)``: same key, same points.
        shape: of the result; what a row is, `param_ndim` says.
        epsilon: radius, >= 0: a number, or a tensor with one for each row.
        center: a number, a tensor that broadcasts to `shape`, or None for the origin.
        param_ndim: see `rai_chain.to_batch`.
        dtype: of the result, floating.

    Returns:
        A tensor on the device of `key`; in exact arithmetic no row is outside.

    Raises:
        TypeError: `key` is no key.
        ValueError: epsilon < 0, or a value that does not fit `shape`.

    Example:
        >>> l1_sphere(torch.tensor(0), (2, 3), 2.0)
        tensor([[-0.8214, -0.8689, -0.3097],
                [ 1.4655,  0.1336, -0.4008]])

    Source: as `l1_ball`.
    """
    return _draw(_l1_sphere, key, shape, dtype, epsilon, center, param_ndim=param_ndim)


def l2_sphere(
    key: Tensor,
    shape: tuple[int, ...],
    epsilon: Any = 1.0,
    center: Any = None,
    *,
    param_ndim: int | None = -1,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Points uniform on the surface of the L2 ball, to rounding, one for each row.

    Args:
        key: 0-dim int64, such as ``torch.tensor(0)``: same key, same points.
        shape: of the result; what a row is, `param_ndim` says.
        epsilon: radius, >= 0: a number, or a tensor with one for each row.
        center: a number, a tensor that broadcasts to `shape`, or None for the origin.
        param_ndim: see `rai_chain.to_batch`.
        dtype: of the result, floating.

    Returns:
        A tensor on the device of `key`; in exact arithmetic no row is outside.

    Raises:
        TypeError: `key` is no key.
        ValueError: epsilon < 0, or a value that does not fit `shape`.

    Example:
        >>> l2_sphere(torch.tensor(0), (2, 3), 2.0)
        tensor([[ 0.1424, -0.8398, -1.8096],
                [ 0.7122, -0.7577, -1.7084]])

    Source: a normal vector over its norm (Muller 1959, doi 10.1145/377939.377946).
    """
    return _draw(_l2_sphere, key, shape, dtype, epsilon, center, param_ndim=param_ndim)


def linf_sphere(
    key: Tensor,
    shape: tuple[int, ...],
    epsilon: Any = 1.0,
    center: Any = None,
    *,
    param_ndim: int | None = -1,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Points uniform on the surface of the Linf ball, one for each row.

    Args:
        key: 0-dim int64, such as ``torch.tensor(0)``: same key, same points.
        shape: of the result; what a row is, `param_ndim` says.
        epsilon: radius, >= 0: a number, or a tensor with one for each row.
        center: a number, a tensor that broadcasts to `shape`, or None for the origin.
        param_ndim: see `rai_chain.to_batch`.
        dtype: of the result, floating.

    Returns:
        A tensor on the device of `key`; in exact arithmetic no row is outside.

    Raises:
        TypeError: `key` is no key.
        ValueError: epsilon < 0, or a value that does not fit `shape`.

    Example:
        >>> linf_sphere(torch.tensor(0), (2, 3), 2.0)
        tensor([[-1.6195, -0.7118, -2.0000],
                [-2.0000,  1.4714,  1.2085]])

    Source: a face drawn first: all have the same area.
    """
    return _draw(_linf_sphere, key, shape, dtype, epsilon, center, param_ndim=param_ndim)


def simplex(
    key: Tensor,
    shape: tuple[int, ...],
    scale: Any = 1.0,
    *,
    param_ndim: int | None = -1,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Points uniform in the simplex, one for each row: elements >= 0 that sum to `scale`.

    Args:
        key, shape, param_ndim, dtype: as in `l1_ball`.
        scale: the sum, >= 0, which holds to rounding: a number, or a tensor with one for each row.

    Returns:
        A tensor on the device of `key`.

    Raises:
        TypeError: `key` is no key.
        ValueError: scale < 0, or a value that does not fit `shape`.

    Example:
        >>> simplex(torch.tensor(0), (2, 3))
        tensor([[0.6981, 0.2426, 0.0593],
                [0.0434, 0.8775, 0.0791]])

    Source: the spacings of uniform numbers (Devroye 1986, "Non-Uniform Random Variate
    Generation", chapter 5).
    """
    return _draw(_simplex, key, shape, dtype, scale, param_ndim=param_ndim)


def box(
    key: Tensor,
    shape: tuple[int, ...],
    low: Any = 0.0,
    high: Any = 1.0,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Points uniform in a box: each element in [low, high].

    Args:
        key, shape, dtype: as in `l1_ball`.
        low: lower bound: a number, or a tensor that broadcasts to `shape`.
        high: upper bound, likewise; low <= high.

    Returns:
        A tensor on the device of `key`.

    Raises:
        TypeError: `key` is no key.
        ValueError: low > high, or a value that does not fit `shape`.

    Example:
        >>> box(torch.tensor(0), (2, 3), -1.0, 1.0)
        tensor([[-0.2857,  0.5097,  0.7242],
                [ 0.7287,  0.5924, -0.2553]])

    Source: its definition.
    """
    return _draw(_box, key, shape, dtype, low, high)
