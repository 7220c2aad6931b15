"""Frank-Wolfe methods, with rai-toolbox's names."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, default_generator

from ..core.define import elementwise
from ..data.hyper import REQUIRED, Bool, NonNegative, Number, Range
from ..data.rows import ParamNdim
from ..links.frank_wolfe import check_rate, frank_wolfe_step, one_hot_sign
from ..links.transforms import TINY
from .adapter import ParamTransformingOptimizer
from .bound import Bound
from .classes import L1qNormedGradientOptim, L2NormedGradientOptim, SignedGradientOptim
from .states import LINKS, Group
from .step import StepOptimizer


def _count(leaf: Tensor) -> dict[str, Tensor]:
    return {"count": torch.zeros((), dtype=torch.int64, device=leaf.device)}


def _check(values: dict[str, Any]) -> None:
    """Refuse a rate above 1 where it is the step size itself, and a radius below 0."""
    check_rate(values)
    if values["in_ball"]:
        Range(0.0).check("lmo_scaling_factor", values["lmo_scaling_factor"])


@elementwise(phase="step", state=_count, check=_check)
def frank_wolfe(
    grad: Tensor,
    lr: NonNegative = 2.0,
    lmo_scaling_factor: Number = 1.0,
    use_default_lr_schedule: Bool = True,
    div_by_zero_eps: NonNegative = TINY,
    in_ball: Bool = False,
    *,
    param: Tensor,
    state: dict[str, Tensor],
) -> Any:
    """`frank_wolfe_step` against directions of ascent, with a count of its own for each leaf."""
    count, switches = state["count"], (use_default_lr_schedule, div_by_zero_eps)
    new = frank_wolfe_step.function(
        grad, lr, *switches, -lmo_scaling_factor, param=param, step=count
    )
    return new, {"count": count + 1}


class FrankWolfe(StepOptimizer):
    """Step by w <- (1 - a) w - a lmo_scaling_factor g, with a = lr / (lr + step).

    Args:
        params: parameters, or dicts that define param groups. Their gradients g are directions
            of dual norm one.
        lr: >= 0; at most 1 without the default schedule. Per group.
        lmo_scaling_factor: radius of the ball; a group's `epsilon` wins over it. Per group.
        use_default_lr_schedule: False makes a = lr.
        div_by_zero_eps: smallest denominator of a, >= 0.

    Raises:
        TypeError: a value of the wrong type.
        ValueError: a value outside its interval.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> optim = FrankWolfe([x], lmo_scaling_factor=3.0)
        >>> (torch.tensor([0.0, 1.0]) * x).sum().backward()
        >>> optim.step()
        >>> x
        tensor([ 0., -3.], requires_grad=True)

    Source: Jaggi 2013, "Revisiting Frank-Wolfe", ICML; the class of the same name in rai-toolbox.
    """

    in_ball: ClassVar[bool] = False  # whether the factor is the radius of a ball

    def __init__(
        self,
        params: Any,
        *,
        lr: float = 2.0,
        lmo_scaling_factor: float = 1.0,
        use_default_lr_schedule: bool = True,
        div_by_zero_eps: float = TINY,
    ) -> None:
        if not isinstance(use_default_lr_schedule, bool):
            raise TypeError(
                f"`use_default_lr_schedule` must be a bool  Got: {use_default_lr_schedule!r}"
            )
        switches = use_default_lr_schedule, div_by_zero_eps, self.in_ball
        link = frank_wolfe(lr, lmo_scaling_factor, *switches)
        keys = {n: n for n in ("lr", "lmo_scaling_factor")}
        super().__init__(params, link, keys)

    def _read(self, bound: Bound, check: Callable[[Bound], None] | None = None) -> Bound:
        """A group's `epsilon` is the radius where it has one, as methods over a ball give it."""
        keys = {"lr": "lr", "lmo_scaling_factor": "lmo_scaling_factor"}
        (link,) = self._pipeline.links
        if "epsilon" in bound.group:
            Range(0.0).check("epsilon", bound.group["epsilon"])
            keys["lmo_scaling_factor"] = "epsilon"
            link = link.with_values({"in_ball": True})
        bound.pipeline = replace(self._pipeline, links=[link], keys=[keys])
        return super()._read(bound, check)

    def __setstate__(self, state: Group) -> None:
        super().__setstate__(state)
        for own in self.state.values():  # rai-toolbox counts in Python integers
            if isinstance(own.get("step"), int):
                own[LINKS] = {"frank_wolfe_0": {"count": torch.tensor(own.pop("step"))}}


class _InBall(FrankWolfe):
    """`FrankWolfe` over a ball, whose radius is not negative."""

    in_ball = True


_InBall.__name__ = "FrankWolfe"  # as it is shown


class _FrankWolfeMethod(ParamTransformingOptimizer):
    """What the methods over one ball share: a direction of ascent, and `FrankWolfe` inside."""

    def __init__(
        self,
        params: Any,
        *,
        epsilon: float = REQUIRED,
        lr: float = 2.0,
        use_default_lr_schedule: bool = True,
        param_ndim: ParamNdim = -1,
        div_by_zero_eps: float = TINY,
    ) -> None:
        super().__init__(
            params,
            _InBall,
            lmo_scaling_factor=_radius(self, epsilon),
            lr=lr,
            use_default_lr_schedule=use_default_lr_schedule,
            param_ndim=param_ndim,
            div_by_zero_eps=div_by_zero_eps,
        )


def _radius(optimizer: Any, epsilon: Any) -> Any:
    """The radius of a ball, checked by its own name."""
    if epsilon is REQUIRED:
        raise TypeError(f"`epsilon` must be given to {type(optimizer).__name__}  Got: nothing")
    Range(0.0).check("epsilon", epsilon)
    return epsilon


class L1FrankWolfe(_FrankWolfeMethod):
    """Minimise over the L1 ball by Frank-Wolfe steps.

    Args:
        params: parameters, or dicts that define param groups.
        epsilon: radius of the ball. Per group.
        lr, use_default_lr_schedule: as in `FrankWolfe`.
        param_ndim: dimensions of one row, see `rai_chain.to_batch`. Per group.
        div_by_zero_eps: smallest denominator, >= 0.

    Raises:
        ValueError: a value outside its interval.

    Example:
        >>> import torch
        >>> x = torch.zeros(2, requires_grad=True)
        >>> optim = L1FrankWolfe([x], epsilon=2.0, param_ndim=None)
        >>> (torch.tensor([1.0, -3.0]) * x).sum().backward()
        >>> optim.step()
        >>> x
        tensor([0., 2.], requires_grad=True)

    Source: Jaggi 2013, "Revisiting Frank-Wolfe", ICML; the class of the same name in rai-toolbox.
    """

    links: ClassVar[tuple[Any, ...]] = (one_hot_sign,)


class L2FrankWolfe(_FrankWolfeMethod, L2NormedGradientOptim):
    """Minimise over the L2 ball by Frank-Wolfe steps.

    Args:
        params: parameters, or dicts that define param groups.
        epsilon: radius of the ball. Per group.
        lr, use_default_lr_schedule: as in `FrankWolfe`.
        param_ndim: dimensions of one row, see `rai_chain.to_batch`. Per group.
        div_by_zero_eps: smallest denominator, >= 0.

    Raises:
        ValueError: a value outside its interval.

    Example:
        >>> import torch
        >>> x = torch.zeros(2, requires_grad=True)
        >>> optim = L2FrankWolfe([x], epsilon=5.0, param_ndim=None)
        >>> (torch.tensor([3.0, -4.0]) * x).sum().backward()
        >>> optim.step()
        >>> x
        tensor([-3.,  4.], requires_grad=True)

    Source: Jaggi 2013, "Revisiting Frank-Wolfe", ICML; the class of the same name in rai-toolbox.
    """


class LinfFrankWolfe(_FrankWolfeMethod, SignedGradientOptim):
    """Minimise over the Linf ball by Frank-Wolfe steps.

    Args:
        params: parameters, or dicts that define param groups.
        epsilon: radius of the ball. Per group.
        lr, use_default_lr_schedule: as in `FrankWolfe`.
        param_ndim: has no effect here. Per group.
        div_by_zero_eps: smallest denominator, >= 0.

    Raises:
        ValueError: a value outside its interval.

    Example:
        >>> import torch
        >>> x = torch.zeros(2, requires_grad=True)
        >>> optim = LinfFrankWolfe([x], epsilon=2.0)
        >>> (torch.tensor([1.0, -3.0]) * x).sum().backward()
        >>> optim.step()
        >>> x
        tensor([-2.,  2.], requires_grad=True)

    Source: Jaggi 2013, "Revisiting Frank-Wolfe", ICML; the class of the same name in rai-toolbox.
    """


class L1qFrankWolfe(L1qNormedGradientOptim):
    """Minimise by Frank-Wolfe steps towards sparse points of the L1 sphere.

    Args:
        params: parameters, or dicts that define param groups.
        q: fraction of zeros, 0 <= q <= 1. Per group.
        epsilon: radius of the ball. Per group.
        dq: half width of the interval that q is drawn from, once per tensor and step. Per group.
        lr, use_default_lr_schedule: as in `FrankWolfe`.
        param_ndim: dimensions of one row, see `rai_chain.to_batch`. Per group.
        div_by_zero_eps: smallest denominator, >= 0.
        generator: draws q, see `TopQGradientOptimizer`.

    Raises:
        TypeError: `generator` is no `torch.Generator`.
        ValueError: a value outside its interval.

    Example:
        >>> import torch
        >>> x = torch.zeros(4, requires_grad=True)
        >>> optim = L1qFrankWolfe([x], q=0.5, epsilon=2.0, param_ndim=None)
        >>> (torch.tensor([1.0, -3.0, 2.0, 0.0]) * x).sum().backward()
        >>> optim.step()
        >>> x
        tensor([ 0.,  1., -1.,  0.], requires_grad=True)

    Source: the class of the same name in rai-toolbox.
    """

    def __init__(
        self,
        params: Any,
        *,
        q: float = REQUIRED,
        epsilon: float = REQUIRED,
        dq: float = 0.0,
        lr: float = 2.0,
        use_default_lr_schedule: bool = True,
        param_ndim: ParamNdim = -1,
        div_by_zero_eps: float = TINY,
        generator: Generator = default_generator,
    ) -> None:
        super().__init__(
            params,
            _InBall,
            lmo_scaling_factor=_radius(self, epsilon),
            q=q,
            dq=dq,
            lr=lr,
            use_default_lr_schedule=use_default_lr_schedule,
            param_ndim=param_ndim,
            div_by_zero_eps=div_by_zero_eps,
            generator=generator,
        )
