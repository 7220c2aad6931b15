"""The gradient links. To write another, write its function: nothing else is needed."""

from typing import Any

import torch
from torch import Tensor

from ..core.define import elementwise, rowwise, treewise
from ..data.hyper import (
    Bound,
    Count,
    NormOrder,
    Number,
    RowFraction,
    RowNonNegative,
    StaticNumber,
    StaticOptional,
    placed,
)
from ..data.random import uniform
from ..kernels import signs
from ..kernels.norms import joint_norm, rescale, row_norm
from ..kernels.select import keep_largest
from .memory import wide

TINY = torch.finfo(torch.float32).tiny


def draw_q(q: Any, dq: Any, u: Tensor) -> Any:
    """The q at place u, in [0, 1), of the interval [max(0, q - dq), min(1, q + dq)]."""
    low, high = (q - dq, q + dq)
    low = low.clamp(min=0.0) if isinstance(low, Tensor) else max(0.0, low)
    high = high.clamp(max=1.0) if isinstance(high, Tensor) else min(1.0, high)
    return (high - low) * u + low


def within(k: Any, size: int) -> Any:
    """The count k, or those of the rows, (N, 1), where it is no more than `size`."""
    if isinstance(k, Tensor):
        return k.double().round().long().clamp(0, size)
    return min(int(k), size)


def kept(q: Any, size: int, at_least: Any = 0) -> Any:
    """How many of `size` elements remain: round((1 - q) * size), in float64, half to even."""
    if isinstance(q, Tensor):
        k: Any = torch.round((1.0 - q.double()) * size).long().clamp(0, size)
    else:
        k = round((1.0 - float(q)) * size)
    if isinstance(at_least, Tensor) or at_least > 0:
        k = _larger(k, within(at_least, size))
    return k.reshape(-1) if isinstance(k, Tensor) and k.ndim else k


def _larger(a: Any, b: Any) -> Any:
    """The larger of two counts, each a number or a tensor."""
    place = next((x.device for x in (a, b) if isinstance(x, Tensor)), None)
    if place is None:
        return max(a, b)
    return torch.maximum(placed(a, place, torch.int64), placed(b, place, torch.int64))


def most_kept(values: dict[str, Any], size: int) -> int:
    """How many of `size` elements `top_q` keeps at most, where numbers say so; else `size`."""
    q, dq, least = values["q"], values.get("dq", 0.0), values.get("at_least", 0)
    known = all(isinstance(value, (int, float)) for value in (q, dq, least)) and q - dq < 1.0
    return int(kept(max(0.0, q - dq), size, least)) if known else size


@rowwise(draws="dq", selects=most_kept)
def top_q(
    rows: Tensor,
    q: RowFraction,
    dq: RowFraction = 0.0,
    at_least: Count = 0,
    *,
    key: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Keep exactly round((1 - q) * D) elements of largest magnitude in each row, zero the rest.

    Equal magnitudes: the lowest index is kept. NaN counts as largest. A kept element keeps
    its bits.

    Args:
        q: fraction to drop, 0 <= q <= 1.
        dq: half width of the interval that q is drawn from, uniformly and once per tensor and
            step: [max(0, q - dq), min(1, q + dq)]. 0 draws nothing.
        at_least: how many are kept whatever q is, a whole number >= 0; a row of no more is kept
            whole. 1 keeps a row of few elements from being dropped in every step.
        param_ndim: what a row is, see `rai_chain.to_batch`.
        seed: an integer; the draw is a function of (seed, step, leaf), all in the state.

    Raises:
        ValueError: q or dq outside [0, 1], or at_least no whole number >= 0.

    Example:
        >>> import torch
        >>> tx = top_q(q=0.5, param_ndim=None)
        >>> tx.update(torch.tensor([1.0, -4.0, 3.0, -2.0]), ())[0]
        tensor([ 0., -4.,  3.,  0.])

    Source: the sparse descent directions of SLIDE (Tramer and Boneh 2019, arXiv 1904.13000).
    """
    q = q if key is None else draw_q(q, dq, uniform(key))
    return keep_largest(rows, kept(q, rows.shape[1], at_least), out=out)


def check_bounds(values: dict[str, Any], low: str = "clamp_min", high: str = "clamp_max") -> None:
    """Refuse an interval without an end, or whose ends are in the wrong order."""
    if values[low] is None and values[high] is None:
        raise ValueError(f"`{low}` or `{high}` must be given  Got: None for both")
    check_interval(low, values[low], high, values[high])


def check_box(values: dict[str, Any]) -> None:
    """`check_bounds` of `low` and `high`."""
    check_bounds(values, "low", "high")


def check_interval(low_name: str, low: Any, high_name: str, high: Any) -> None:
    """Refuse a lower bound above the upper one, where both are numbers."""
    numbers = isinstance(low, (int, float)) and isinstance(high, (int, float))
    if numbers and low > high:
        raise ValueError(
            f"`{low_name}` must satisfy {low_name} <= {high_name}(= {high})  Got: {low}"
        )


def clamped(x: Tensor, low: Any, high: Any, out: Tensor | None = None) -> Tensor:
    """`torch.clamp` that takes a number beside a tensor, and a tensor that is on the host."""
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        kinds = (getattr(b, "dtype", x.dtype) for b in (low, high))
        low, high = (
            b if b is None else placed(b, x.device, kind)
            for b, kind in zip((low, high), kinds, strict=True)
        )
    return torch.clamp(x, low, high, out=out)


@elementwise(check=check_bounds)
def clamp(
    grad: Tensor,
    clamp_min: Bound = None,
    clamp_max: Bound = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Clamp each element to [clamp_min, clamp_max]; NaN stays.

    Args:
        clamp_min: lower bound, or None for none.
        clamp_max: upper bound, or None for none; clamp_min <= clamp_max.

    Raises:
        ValueError: no bound is given, or clamp_min > clamp_max.

    Example:
        >>> import torch
        >>> clamp(clamp_max=2.8).update(torch.tensor([0.0, 2.0, 3.0]), ())[0]
        tensor([0.0000, 2.0000, 2.8000])

    Source: `torch.clamp`.
    """
    return clamped(grad, clamp_min, clamp_max, out)


@elementwise
def scale_bias(
    grad: Tensor,
    grad_scale: Number = 1.0,
    grad_bias: Number = 0.0,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Multiply by `grad_scale`, then add `grad_bias`.

    Args:
        grad_scale: factor, any number but NaN.
        grad_bias: summand, any number but NaN.

    Raises:
        ValueError: a value is NaN.

    Example:
        >>> import torch
        >>> scale_bias(grad_scale=2.0, grad_bias=1.0).update(torch.tensor([1.0, 2.0]), ())[0]
        tensor([3., 5.])

    Source: `grad_scale` and `grad_bias` of rai-toolbox's optimizers.
    """
    return torch.add(torch.mul(grad, grad_scale, out=out), grad_bias, out=out)


@elementwise
def scale(grad: Tensor, grad_scale: Number = 1.0, *, out: Tensor | None = None) -> Tensor:
    """Multiply by `grad_scale`.

    Args:
        grad_scale: factor, any number but NaN; ``-lr`` makes a descent step.

    Raises:
        ValueError: the value is NaN.

    Example:
        >>> import torch
        >>> scale(-0.5).update(torch.tensor([1.0, 2.0]), ())[0]
        tensor([-0.5000, -1.0000])

    Source: the function of the same name in optax.
    """
    return torch.mul(grad, grad_scale, out=out)


@elementwise
def bias(grad: Tensor, grad_bias: Number = 0.0, *, out: Tensor | None = None) -> Tensor:
    """Add `grad_bias`.

    Args:
        grad_bias: summand, any number but NaN.

    Raises:
        ValueError: the value is NaN.

    Example:
        >>> import torch
        >>> bias(1.0).update(torch.tensor([1.0, 2.0]), ())[0]
        tensor([2., 3.])

    Source: `grad_bias` of rai-toolbox's optimizers.
    """
    return torch.add(grad, grad_bias, out=out)


@elementwise
def identity(grad: Any) -> Any:
    """Return updates as they are.

    Example:
        >>> import torch
        >>> identity().update(torch.ones(2), ())[0]
        tensor([1., 1.])

    Source: the function of the same name in optax.
    """
    return grad


@elementwise
def sign(grad: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Replace each element by its sign: -1, 0 or 1; NaN stays NaN.

    Example:
        >>> import torch
        >>> sign().update(torch.tensor([-3.0, 0.0, float("nan")]), ())[0]
        tensor([-1.,  0., nan])

    Source: the fast gradient sign method (Goodfellow et al. 2014, arXiv 1412.6572).
    """
    return signs.sign(grad, out)


@rowwise
def normalize(
    rows: Tensor,
    p: NormOrder = 2.0,
    div_by_zero_eps: RowNonNegative = TINY,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Divide each row by max(its p-norm, `div_by_zero_eps`); a zero row stays zero.

    Args:
        p: order of the norm, 1 <= p <= inf, a Python number. Norms are float64.
        div_by_zero_eps: smallest denominator, >= 0.
        param_ndim: what a row is, see `rai_chain.to_batch`.

    Raises:
        ValueError: p < 1 or div_by_zero_eps < 0.

    Example:
        >>> import torch
        >>> normalize(p=1, param_ndim=None).update(torch.tensor([1.0, -3.0]), ())[0]
        tensor([ 0.2500, -0.7500])

    Source: steepest descent for the p-norm balls (Boyd and Vandenberghe 2004, section 9.4).
    """
    norm = clamped(row_norm(rows, p), div_by_zero_eps, None)
    if isinstance(div_by_zero_eps, Tensor) or div_by_zero_eps == 0.0:
        norm = torch.where(norm == 0.0, 1.0, norm)
    return rescale(rows, norm, out=out)


@rowwise
def clip_by_norm(
    rows: Tensor,
    max_norm: RowNonNegative,
    p: NormOrder = 2.0,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Scale each row whose p-norm exceeds `max_norm` down to it; the others keep their bits.

    Args:
        max_norm: largest norm, >= 0.
        p: order of the norm, 1 <= p <= inf, a Python number.
        param_ndim: what a row is, see `rai_chain.to_batch`.

    Raises:
        ValueError: max_norm < 0 or p < 1.

    Example:
        >>> import torch
        >>> clip_by_norm(1.0).update(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), ())[0]
        tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]])

    Source: gradient clipping (Pascanu et al. 2013, arXiv 1211.5063).
    """
    return rescale(rows, *_clip(row_norm(rows, p), max_norm), out)


def _clip(norm: Tensor, max_norm: Any) -> tuple[Tensor, Tensor]:
    """What to divide by and to multiply with: the norm and its bound, or 1 and 1 inside it."""
    bound = placed(max_norm, norm.device).expand(norm.shape)
    inside = norm <= bound
    return torch.where(inside, 1.0, norm), torch.where(inside, 1.0, bound)


@treewise
def clip_by_global_norm(
    leaves: list[Tensor], max_norm: RowNonNegative, p: NormOrder = 2.0
) -> list[Tensor]:
    """Scale all leaves by one factor so that the p-norm of all their elements is <= `max_norm`.

    Differentiable and right under `vmap`; a tree inside the bound keeps its bits. Norms are
    float64.

    Args:
        max_norm: largest norm, >= 0.
        p: order of the norm, 1 <= p <= inf, a Python number.

    Raises:
        ValueError: max_norm < 0 or p < 1.

    Example:
        >>> import torch
        >>> tx = clip_by_global_norm(1.0)
        >>> tx.update({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}, ())[0]
        {'a': tensor([0.6000]), 'b': tensor([0.8000])}

    Source: gradient clipping (Pascanu et al. 2013, arXiv 1211.5063).
    """
    if not leaves:
        return leaves
    rows = [leaf.reshape(1, -1) for leaf in leaves]
    divisor, factor = _clip(joint_norm(rows, p), max_norm)
    pairs = zip(rows, leaves, strict=True)
    return [rescale(row, divisor, factor).reshape(leaf.shape) for row, leaf in pairs]


@elementwise
def nan_to_num(
    grad: Tensor,
    nan: StaticNumber = 0.0,
    posinf: StaticOptional = None,
    neginf: StaticOptional = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Replace NaN by `nan`, inf by `posinf` and -inf by `neginf`.

    Args:
        nan: a Python number.
        posinf: a Python number, or None for the largest of the dtype.
        neginf: a Python number, or None for the lowest of the dtype.

    Raises:
        ValueError: a value is NaN.

    Example:
        >>> import torch
        >>> nan_to_num(posinf=9.0).update(torch.tensor([float("nan"), float("inf"), 1.0]), ())[0]
        tensor([0., 9., 1.])

    Source: `torch.nan_to_num`.
    """
    return torch.nan_to_num(grad, nan, posinf, neginf, out=out)


@rowwise
def centralize(rows: Tensor) -> Tensor:
    """Subtract from each row its mean; a row of one element is left as it is.

    Args:
        param_ndim: what a row is, see `rai_chain.to_batch`. The default makes each output
            channel of a weight a row.

    Example:
        >>> import torch
        >>> centralize().update(torch.tensor([[1.0, 3.0], [0.0, 4.0]]), ())[0]
        tensor([[-1.,  1.],
                [-2.,  2.]])

    Source: Yong et al. 2020, "Gradient Centralization", arXiv 2004.01461.
    """
    if rows.shape[1] == 1:
        return rows
    x = wide(rows).contiguous()  # one order of summation, however the row lies in memory
    return (x - x.mean(1, keepdim=True, dtype=torch.float64).to(x.dtype)).to(rows.dtype)
