"""Constraint sets: each a parameter link, and a plain function named ``project_...``.

The projections are Euclidean. A point inside its set keeps its bits; a point outside lands on
the boundary, rounded inwards: in exact arithmetic it is never outside, whatever the dtype. An
infinite element means the limit as it grows, several of them growing equally; NaN makes its row
NaN.

Each ball takes the bounds of a box. The result is then the nearest point of both, where the ball
and then the box would leave a part of the radius unused. Where no point is in both, it is the one
of the box that is nearest to the center. Where the center is in the box, the ball's promises hold
as they do without one; else the box's do, and the ball's to rounding.
"""

import functools
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..core.define import elementwise, rowwise
from ..core.link import Link
from ..data.hyper import Bound, NonNegative, Optional, RowNonNegative
from ..data.messages import arguments
from ..data.tree import Tree
from ..kernels import boxed, sets
from .transforms import check_box, check_interval, clamped

# ------------------------------------------------------------------ the sets


def _check_order(values: dict[str, Any]) -> None:
    check_interval("low", values["low"], "high", values["high"])


@elementwise(phase="parameter", check=check_box)
def box(
    param: Tensor, low: Bound = None, high: Bound = None, *, out: Tensor | None = None
) -> Tensor:
    """Keep each element in [low, high].

    Args:
        low: lower bound: a number, a tensor that broadcasts to the parameter, or None.
        high: upper bound, likewise; low <= high.

    Raises:
        ValueError: no bound is given, or low > high.

    Example:
        >>> import torch
        >>> box(0.0, 1.0).step(torch.tensor([0.5, 0.5]), torch.tensor([1.0, -0.2]), ())[0]
        tensor([1.0000, 0.3000])

    Source: the pixel box of adversarial attacks; `torch.clamp`.
    """
    return clamped(param, low, high, out)


@elementwise(phase="parameter", check=_check_order)
def linf_ball(
    param: Tensor,
    epsilon: NonNegative,
    center: Optional = None,
    *,
    low: Bound = None,
    high: Bound = None,
    out: Tensor | None = None,
) -> Tensor:
    """Keep each element within `epsilon` of `center`.

    Args:
        epsilon: radius, >= 0.
        center: a number, a tensor that broadcasts to the parameter, or None for the origin.
        low, high: bounds for each element: numbers, tensors that broadcast to the parameter, or
            None; low <= high.

    Raises:
        ValueError: epsilon < 0, or low > high.

    Example:
        >>> import torch
        >>> linf_ball(0.5).step(torch.zeros(2), torch.tensor([0.7, -0.2]), ())[0]
        tensor([ 0.5000, -0.2000])

    Source: projected gradient descent (Madry et al. 2017, arXiv 1706.06083).
    """
    param = sets.linf_ball(param, epsilon, center, out)
    return param if low is None and high is None else clamped(param, low, high, out)


@rowwise(phase="parameter", check=_check_order)
def l2_ball(
    rows: Tensor,
    epsilon: RowNonNegative,
    center: Optional = None,
    *,
    low: Bound = None,
    high: Bound = None,
    out: Tensor | None = None,
) -> Tensor:
    """Keep each row within Euclidean distance `epsilon` of `center`.

    Args:
        epsilon: radius, >= 0.
        center: a number, a tensor shaped like the parameter, or None for the origin.
        low, high: bounds for each element: numbers, tensors that broadcast to the parameter, or
            None; low <= high.
        param_ndim: what a row is, see `rai_chain.to_batch`.

    Raises:
        ValueError: epsilon < 0, or low > high.

    Example:
        >>> import torch
        >>> l2_ball(1.0, param_ndim=None).step(torch.zeros(2), torch.tensor([3.0, 4.0]), ())[0]
        tensor([0.6000, 0.8000])

    Source: projected gradient descent (Madry et al. 2017, arXiv 1706.06083).
    """
    if low is None and high is None:
        return sets.l2_ball(rows, epsilon, center, out)
    return boxed.ball_in_box(rows, epsilon, center, low, high, sets.L2)


@rowwise(phase="parameter", check=_check_order)
def l1_ball(
    rows: Tensor,
    epsilon: RowNonNegative,
    center: Optional = None,
    *,
    low: Bound = None,
    high: Bound = None,
    out: Tensor | None = None,
) -> Tensor:
    """Keep each row within L1 distance `epsilon` of `center`: the nearest such point.

    Args:
        epsilon: radius, >= 0.
        center: a number, a tensor shaped like the parameter, or None for the origin.
        low, high: bounds for each element: numbers, tensors that broadcast to the parameter, or
            None; low <= high.
        param_ndim: what a row is, see `rai_chain.to_batch`.

    Raises:
        ValueError: epsilon < 0, or low > high.

    Example:
        >>> import torch
        >>> l1_ball(1.0).map(torch.tensor([[0.5, -1.0, 0.1]]))
        tensor([[ 0.2500, -0.7500,  0.0000]])
        >>> l1_ball(1.5, low=0.0, high=1.0).map(torch.tensor([[3.0, 0.75, -1.0]]))
        tensor([[1.0000, 0.5000, 0.0000]])

    Source: Duchi et al. 2008, "Efficient projections onto the l1-ball", ICML; in a box: Croce and
    Hein 2021, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers", arXiv
    2103.01208.
    """
    if low is None and high is None:
        return sets.l1_ball(rows, epsilon, center, out)
    return boxed.ball_in_box(rows, epsilon, center, low, high, sets.L1)


@rowwise(phase="parameter")
def simplex(rows: Tensor, scale: RowNonNegative = 1.0, *, out: Tensor | None = None) -> Tensor:
    """Replace each row by the nearest one whose elements are >= 0 and sum to `scale`.

    Args:
        scale: the sum, >= 0. The sum holds to rounding.
        param_ndim: what a row is, see `rai_chain.to_batch`.

    Raises:
        ValueError: scale < 0.

    Example:
        >>> import torch
        >>> simplex(param_ndim=None).step(torch.zeros(3), torch.tensor([0.5, 1.0, 0.0]), ())[0]
        tensor([0.2500, 0.7500, 0.0000])

    Source: Duchi et al. 2008, "Efficient projections onto the l1-ball", ICML.
    """
    return sets.simplex(rows, scale, out)


# ------------------------------------------------------------------ plain functions


def plain(factory: Callable[..., Link], example: str) -> Callable[..., Tree]:
    """The function on trees that applies a parameter link to parameters."""

    name = f"project_{factory.__name__}"
    first = inspect.Parameter("params", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    own = list(inspect.signature(factory).parameters.values())
    signature = inspect.Signature([first, *own])

    @functools.wraps(factory, updated=())
    def project(*args: Any, **kwargs: Any) -> Tree:
        given = arguments(name, signature, args, kwargs)
        params = given.pop("params")
        return factory(**given).map(params, what="params")

    described = (inspect.getdoc(factory) or "").partition("Args:\n")[2].partition("\n\n")[0]
    project.__name__ = project.__qualname__ = name
    project.__doc__ = f"""Project a tree of tensors onto the set of `rai_chain.{factory.__name__}`.

    Args:
        params: a tensor, or any nest of dict, list and tuple of tensors, floating dtype.
{textwrap.indent(described, "    ")}

    Returns:
        A tree like `params`; no input is written.

    Raises:
        TypeError, ValueError: as `rai_chain.{factory.__name__}`.

    Example:
        >>> import torch
        >>> {name}({example}

    Source: as `rai_chain.{factory.__name__}`.
    """
    del project.__wrapped__
    project.__signature__ = signature  # type: ignore[attr-defined]
    return project


project_box = plain(box, "torch.tensor([2.0, -1.0]), 0.0, 1.0)\n        tensor([1., 0.])")
project_linf_ball = plain(
    linf_ball, "torch.tensor([2.0, -0.1]), 0.5)\n        tensor([ 0.5000, -0.1000])"
)
project_l2_ball = plain(
    l2_ball, "torch.tensor([[3.0, 4.0]]), 1.0)\n        tensor([[0.6000, 0.8000]])"
)
project_l1_ball = plain(
    l1_ball, "torch.tensor([[0.5, -1.0]]), 1.0)\n        tensor([[ 0.2500, -0.7500]])"
)
project_simplex = plain(
    simplex, "torch.tensor([[0.5, 1.0]]), 1.0)\n        tensor([[0.2500, 0.7500]])"
)
