"""Frank-Wolfe: linear minimisation oracles over balls, and the step towards their answer."""

from typing import Any

import torch
from torch import Tensor

from ..core.define import elementwise, rowwise
from ..data.hyper import Bool, NonNegative, Number, Optional, RowFraction, RowNonNegative, placed
from ..kernels import sets, signs
from ..kernels.norms import rescale, row_norm
from ..kernels.select import keep_largest
from .transforms import TINY, clamped, most_kept, sign, top_q


@rowwise
def one_hot_sign(rows: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Keep the sign of the largest magnitude of each row, the first among equals; zero the rest.

    Args:
        param_ndim: what a row is, see `rai_chain.to_batch`.

    Example:
        >>> import torch
        >>> one_hot_sign(param_ndim=None).update(torch.tensor([1.0, -3.0, 3.0]), ())[0]
        tensor([ 0., -1.,  0.])

    Source: the vertices of the L1 ball (Jaggi 2013, "Revisiting Frank-Wolfe", ICML).
    """
    return signs.sign(keep_largest(rows, min(1, rows.shape[1]), out=out), out)


def _descent(rows: Tensor, epsilon: Any, center: Any) -> Tensor:
    """``center - epsilon * rows``, in the dtype of the rows."""
    scaled: Tensor = rows * -epsilon
    return (scaled if center is None else scaled + center).to(rows.dtype)


def _along(rows: Tensor, p: int, epsilon: Any, center: Any) -> Tensor:
    """``center - epsilon * rows`` over the p-norm of each row; a zero row is the center."""
    norm = row_norm(rows, p)
    step = rescale(rows, torch.where(norm == 0.0, 1.0, norm), -epsilon)
    return step if center is None else (step + center).to(rows.dtype)


@rowwise
def l1_oracle(rows: Tensor, epsilon: RowNonNegative, center: Optional = None) -> Any:
    """Replace each row g by the point s of the L1 ball that minimises <g, s>: a signed vertex.

    Args:
        epsilon: radius of the ball, >= 0.
        center: of the ball: a number, a tensor shaped like the parameter, or None for the origin.
        param_ndim: what a row is, see `rai_chain.to_batch`.

    Raises:
        ValueError: epsilon < 0.

    Example:
        >>> import torch
        >>> l1_oracle(2.0, param_ndim=None).map(torch.tensor([1.0, -3.0, 3.0]))
        tensor([-0., 2., -0.])

    Source: Jaggi 2013, "Revisiting Frank-Wolfe", ICML.
    """
    return sets.l1_ball(_descent(one_hot_sign.function(rows), epsilon, center), epsilon, center)


@rowwise(selects=most_kept)
def l1q_oracle(
    rows: Tensor, q: RowFraction, epsilon: RowNonNegative, center: Optional = None
) -> Any:
    """Replace each row g by -epsilon times the L1-normalised signs of its largest elements.

    Args:
        q: fraction of zeros, 0 <= q <= 1.
        epsilon: L1 norm of the result, >= 0.
        center: what is added to it: a number, a tensor shaped like the parameter, or None.
        param_ndim: what a row is, see `rai_chain.to_batch`.

    Raises:
        ValueError: q outside [0, 1] or epsilon < 0.

    Example:
        >>> import torch
        >>> l1q_oracle(0.5, 2.0, param_ndim=None).map(torch.tensor([1.0, -3.0, 2.0, 0.0]))
        tensor([-0.,  1., -1., -0.])

    Source: `L1qFrankWolfe` of rai-toolbox.
    """
    kept = sign.function(top_q.function(rows, q))
    step = _along(kept, 1, epsilon, center)
    return sets.l1_ball(step, epsilon, center, out=step)


@rowwise
def l2_oracle(rows: Tensor, epsilon: RowNonNegative, center: Optional = None) -> Any:
    """Replace each row g by the point s of the L2 ball that minimises <g, s>.

    Args:
        epsilon: radius of the ball, >= 0.
        center: of the ball: a number, a tensor shaped like the parameter, or None for the origin.
        param_ndim: what a row is, see `rai_chain.to_batch`.

    Raises:
        ValueError: epsilon < 0.

    Example:
        >>> import torch
        >>> l2_oracle(5.0, param_ndim=None).map(torch.tensor([3.0, -4.0]))
        tensor([-3.,  4.])

    Source: Jaggi 2013, "Revisiting Frank-Wolfe", ICML.
    """
    step = _along(rows, 2, epsilon, center)
    return sets.l2_ball(step, epsilon, center, out=step)


@elementwise
def linf_oracle(grad: Tensor, epsilon: NonNegative, center: Optional = None) -> Any:
    """Replace g by the point s of the Linf ball that minimises <g, s>.

    Args:
        epsilon: radius of the ball, >= 0.
        center: of the ball: a number, a tensor that broadcasts to the parameter, or None for the
            origin.

    Raises:
        ValueError: epsilon < 0.

    Example:
        >>> import torch
        >>> linf_oracle(2.0).map(torch.tensor([1.0, -3.0]))
        tensor([-2.,  2.])

    Source: Jaggi 2013, "Revisiting Frank-Wolfe", ICML.
    """
    return sets.linf_ball(_descent(signs.sign(grad), epsilon, center), epsilon, center)


def check_rate(values: dict[str, Any]) -> None:
    """Refuse lr > 1 where lr is the step size itself."""
    lr = values["lr"]
    if not values["use_default_lr_schedule"] and isinstance(lr, (int, float)) and lr > 1.0:
        raise ValueError(
            f"`lr` must satisfy 0.0 <= lr <= 1.0 without the default schedule  Got: {lr}"
        )


@elementwise(phase="step", check=check_rate)
def frank_wolfe_step(
    grad: Tensor,
    lr: NonNegative = 2.0,
    use_default_lr_schedule: Bool = True,
    div_by_zero_eps: NonNegative = TINY,
    grad_scale: Number = 1.0,
    *,
    param: Tensor,
    step: Tensor,
) -> Any:
    """Step towards what an oracle answered: w <- (1 - a) w + a s, with a = lr / (lr + step).

    Args:
        lr: >= 0; at most 1 where it is the step size a itself.
        use_default_lr_schedule: False makes a = lr.
        div_by_zero_eps: smallest denominator of a, >= 0.
        grad_scale: factor on s; -epsilon where s is a direction of ascent of dual norm one, as
            `sign`, ``normalize(2)`` and `one_hot_sign` make them.

    Raises:
        ValueError: lr outside its interval.

    Example:
        >>> import torch
        >>> from rai_chain import chain
        >>> tx = chain(l1_oracle(2.0, param_ndim=None), frank_wolfe_step())
        >>> w = torch.zeros(2)
        >>> tx.step(w, torch.tensor([0.5, -1.0]), tx.init(w))[0]
        tensor([0., 2.])

    Source: Jaggi 2013, "Revisiting Frank-Wolfe", ICML, algorithm 1.
    """
    rate = placed(lr, step.device)
    if use_default_lr_schedule:
        rate = rate / clamped(rate + step, div_by_zero_eps, None)
    return param * (1.0 - rate) + grad * (rate * grad_scale)
