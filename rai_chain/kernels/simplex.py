"""The threshold of the Euclidean projection onto the scaled simplex, for every row."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.plain import is_plain

_Floats = NDArray[np.float64]

_CHUNK = 1 << 19  # float64 elements: in cache, and enough to repay the calls
_LONG_ROW = 1 << 15
_SAMPLE = 1 << 12


def simplex_threshold(rows: Tensor, radius: Tensor) -> Tensor:
    """theta with sum(max(rows - theta, 0)) == radius in every row, differentiable in both.

    max(rows - theta, 0) is then the nearest point of the simplex {x >= 0, sum(x) == radius}.

    Args:
        rows: (N, D), any floating dtype, values of any sign.
        radius: () or (N,), >= 0.

    Returns:
        (N, 1), float64. NaN for a row with NaN, the largest element for radius 0.

    Example:
        >>> simplex_threshold(torch.tensor([[3.0, 1.0, -2.0]]), torch.tensor(2.0))
        tensor([[1.]], dtype=torch.float64)

    Source: Duchi et al., 2008; Michelot, 1986; Condat, 2016.
    """
    if rows.shape[1] == 0:
        return rows.new_zeros((rows.shape[0], 1), dtype=torch.float64)
    theta: Tensor = torch.ops.rai_chain.simplex_support(rows.detach(), radius.detach())
    if is_plain((rows, radius)):
        return theta
    # The operator has no derivative: give it that of (sum of the active - radius) / count, and
    # keep its value. Where rounding leaves none active, the largest is.
    values = rows.double()
    active = (values > theta) | (values >= values.amax(1, keepdim=True))
    total = torch.where(active, values, 0).sum(1, keepdim=True) - radius.double().reshape(-1, 1)
    slope = (total - total.detach()) / active.sum(1, keepdim=True).clamp(min=1)
    return theta + torch.where(theta.isfinite(), slope, 0)


def simplex_support_reference(rows: Tensor, radius: Tensor) -> Tensor:
    """The same theta by sorting, in plain torch: other devices, and the tests."""
    ordered = rows.double().sort(dim=1, descending=True).values
    rank = torch.arange(1, rows.shape[1] + 1, dtype=torch.float64, device=rows.device)
    thetas = (ordered.cumsum(1) - radius.double().reshape(-1, 1)) / rank
    count = (ordered > thetas).sum(1, keepdim=True).clamp(min=1)
    theta = thetas.gather(1, count - 1)
    return torch.where(rows.isnan().any(1, keepdim=True), torch.nan, theta)


def _simplex_support_cpu(rows: Tensor, radius: Tensor) -> Tensor:
    n, size = rows.shape
    values = (rows.float() if rows.dtype in (torch.bfloat16, torch.float16) else rows).numpy()
    radii = np.broadcast_to(radius.double().numpy(), (n,))[:, None]
    theta = np.empty((n, 1))
    step = 1 if size >= _LONG_ROW else _CHUNK // max(1, size)
    with np.errstate(all="ignore"):  # NaN and inf are answers here
        for start in range(0, n, step):
            part = slice(start, start + step)
            if size >= _LONG_ROW:
                theta[part] = _long_row(values[start], float(radii[start, 0]))
            else:
                theta[part] = _short_rows(values[part].astype(np.float64), radii[part])
    return torch.from_numpy(theta)


def _short_rows(values: _Floats, radius: _Floats) -> _Floats:
    """Newton's method from below, all rows in step: active sets only shrink, so it ends."""
    mean = values.mean(1, keepdims=True) - radius / values.shape[1]
    theta: _Floats = np.maximum(mean, values.max(1, keepdims=True) - radius)
    over = np.empty_like(values)
    count = np.full_like(theta, np.inf)
    while True:
        gap, active = _gap(values, theta, radius, over)
        moving = (active < count) & (active > 0) & np.isfinite(gap)
        if not moving.any():
            return theta
        theta = np.where(moving, np.maximum(theta, theta + gap / active), theta)
        count = np.where(moving, active, count)
        if 16 * count.max() < values.shape[1]:
            values = _compact(values, over > 0)
            over = np.empty_like(values)


def _compact(values: _Floats, chosen: NDArray[np.bool_]) -> _Floats:
    """The chosen values of each row side by side, filled up with -inf."""
    place = np.flatnonzero(chosen)
    row = place // values.shape[1]
    count = np.bincount(row, minlength=len(values))
    column = np.arange(place.size) - (count.cumsum() - count)[row]
    compact = np.full((len(values), max(1, count.max())), -np.inf)
    compact[row, column] = values.reshape(-1)[place]
    return compact


def _gap(
    values: _Floats, theta: _Floats, radius: _Floats, over: _Floats
) -> tuple[_Floats, NDArray[np.intp]]:
    """sum(max(values - theta, 0)) - radius, and how many terms are positive; `over` is scratch."""
    np.subtract(values, theta, out=over)
    torch.from_numpy(over).clamp_(min=0)  # three times as fast as np.maximum
    active = np.bitwise_count(np.packbits(over > 0, axis=1)).sum(1, dtype=np.intp, keepdims=True)
    return over.sum(1, keepdims=True) - radius, active


def _long_row(values: NDArray[Any], radius: float) -> float:
    """The same for one row, of which only what is above the bound is kept."""
    size = values.size
    largest = float(values.max())
    if np.isnan(largest + radius):
        return np.nan
    sample = values[:: size // _SAMPLE].astype(np.float64)[None]
    guess = float(_short_rows(sample, np.array([[radius * sample.size / size]]))[0, 0])
    active = _above(values, guess)
    theta = (active.sum() - radius) / active.size if active.size else -np.inf
    if theta < guess:
        mean = (values.sum(dtype=np.float64) - radius) / size
        theta = max(theta, mean, largest - radius)
        active = _above(values, theta)
    while active.size:
        theta = max(theta, (active.sum() - radius) / active.size)
        kept = active[active > theta]
        if kept.size == active.size:
            break
        active = kept
    return float(theta)


def _above(values: NDArray[Any], bound: float) -> _Floats:
    """A superset of the values above a float64 bound: the comparison is in the values' own type."""
    lower = np.nextafter(values.dtype.type(bound), values.dtype.type(-np.inf))
    above: _Floats = values[values > lower].astype(np.float64)
    return above


def _simplex_support_fake(rows: Tensor, radius: Tensor) -> Tensor:
    return torch.empty((rows.shape[0], 1), dtype=torch.float64, device=rows.device)


def _simplex_support_vmap(
    info: Any, in_dims: tuple[int | None, int | None], rows: Tensor, radius: Tensor
) -> tuple[Tensor, int]:
    size = info.batch_size
    rows_dim, radius_dim = in_dims
    rows = rows.expand(size, *rows.shape) if rows_dim is None else rows.movedim(rows_dim, 0)
    radius = radius[None] if radius_dim is None else radius.movedim(radius_dim, 0)
    radius = radius.reshape(radius.shape[0], -1).expand(size, rows.shape[1])
    theta = torch.ops.rai_chain.simplex_support(rows.flatten(0, 1), radius.flatten())
    return theta.view(size, -1, 1), 0


_library: Any = torch.library.Library("rai_chain", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("simplex_support(Tensor rows, Tensor radius) -> Tensor")
_library.impl("simplex_support", simplex_support_reference, "CompositeExplicitAutograd")
_library.impl("simplex_support", _simplex_support_cpu, "CPU")
torch.library.register_fake("rai_chain::simplex_support", _simplex_support_fake, lib=_library)
torch.library.register_vmap("rai_chain::simplex_support", _simplex_support_vmap, lib=_library)
