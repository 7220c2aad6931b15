"""The optimizers of rai-toolbox's `optim` page: change the import, and that is the migration."""

from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, default_generator
from torch.linalg import vector_norm
from torch.optim import SGD, Optimizer

from ._adapter import (
    ChainedParamTransformingOptimizer,
    Group,
    ParamTransformingOptimizer,
    Slot,
    slot_of,
)
from ._hyper import REQUIRED, Range
from ._tree import flatten
from .base import Link, Run
from .frank_wolfe import frank_wolfe_step, one_hot_sign
from .projections import box, l2_ball, linf_ball
from .transforms import TINY, clamp, normalize, sign, top_q

__all__ = [
    "ChainedParamTransformingOptimizer",
    "ClampedGradientOptimizer",
    "ClampedParameterOptimizer",
    "FrankWolfe",
    "L1FrankWolfe",
    "L1NormedGradientOptim",
    "L1qFrankWolfe",
    "L1qNormedGradientOptim",
    "L2FrankWolfe",
    "L2NormedGradientOptim",
    "L2ProjectedOptim",
    "LinfFrankWolfe",
    "LinfProjectedOptim",
    "ParamTransformingOptimizer",
    "SignedGradientOptim",
    "StepOptimizer",
    "TopQGradientOptimizer",
]


_ONE = flatten([None])[1]  # the structure of one leaf


def _with(defaults: Group | None, **values: Any) -> Group:
    """`defaults`, completed by the values that were given."""
    defaults = {} if defaults is None else defaults
    for key, value in values.items():
        if value is not REQUIRED:
            defaults.setdefault(key, value)
    return defaults


# ------------------------------------------------------------------ clamp and top-q


class _Clamped(ParamTransformingOptimizer):
    def __init__(
        self,
        params: Any = None,
        InnerOpt: Any = SGD,
        *,
        clamp_min: float | None = None,
        clamp_max: float | None = None,
        defaults: Group | None = None,
        param_ndim: int | None = None,
        **inner_opt_kwargs: Any,
    ) -> None:
        defaults = _with(defaults, clamp_min=clamp_min, clamp_max=clamp_max)
        super().__init__(
            params, InnerOpt, defaults=defaults, param_ndim=param_ndim, **inner_opt_kwargs
        )


class ClampedGradientOptimizer(_Clamped):
    """Clamp each element of the gradients to [clamp_min, clamp_max], then step.

    Args:
        params: parameters, or dicts that define param groups.
        InnerOpt: a torch optimizer class, a partial of one, or an instance.
        clamp_min: lower bound, or None. Per group.
        clamp_max: upper bound, or None; clamp_min <= clamp_max. Per group.
        defaults, param_ndim, **inner_opt_kwargs: as in `ParamTransformingOptimizer`.

    Raises:
        ValueError: no bound is given, or clamp_min > clamp_max.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> optim = ClampedGradientOptimizer([x], clamp_max=2.8, lr=1.0)
        >>> (torch.tensor([1.0, 3.0]) * x).sum().backward()
        >>> optim.step()
        >>> x
        tensor([ 0.0000, -1.8000], requires_grad=True)

    Source: the class of the same name in rai-toolbox.
    """

    def _links(self) -> list[Slot]:
        return [slot_of(clamp)]


class ClampedParameterOptimizer(_Clamped):
    """Step, then clamp each element of the parameters to [clamp_min, clamp_max].

    Args:
        params: parameters, or dicts that define param groups.
        InnerOpt: a torch optimizer class, a partial of one, or an instance.
        clamp_min: lower bound, or None. Per group.
        clamp_max: upper bound, or None; clamp_min <= clamp_max. Per group.
        defaults, param_ndim, **inner_opt_kwargs: as in `ParamTransformingOptimizer`.

    Raises:
        ValueError: no bound is given, or clamp_min > clamp_max.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> optim = ClampedParameterOptimizer([x], clamp_min=-1.0, lr=1.0)
        >>> (torch.tensor([1.0, 3.0]) * x).sum().backward()
        >>> optim.step()
        >>> x
        tensor([ 0., -1.], requires_grad=True)

    Source: the class of the same name in rai-toolbox.
    """

    def _links(self) -> list[Slot]:
        return [slot_of(box, low="clamp_min", high="clamp_max")]


class TopQGradientOptimizer(ParamTransformingOptimizer):
    """Keep the round((1 - q) * D) largest elements of each row of the gradients, then step.

    Args:
        params: parameters, or dicts that define param groups.
        InnerOpt: a torch optimizer class, a partial of one, or an instance.
        q: fraction to drop, 0 <= q <= 1. Per group.
        dq: half width of the interval that q is drawn from, once per tensor and step. Per group.
        param_ndim: dimensions of one row, see `rai_chain.to_batch`. Per group.
        generator: draws q. The state of any but torch's default one is saved with the optimizer.
        defaults, **inner_opt_kwargs: as in `ParamTransformingOptimizer`.

    Raises:
        TypeError: `generator` is no `torch.Generator`.
        ValueError: q is missing, or q or dq outside [0, 1].

    Example:
        >>> import torch
        >>> x = torch.ones(3, requires_grad=True)
        >>> optim = TopQGradientOptimizer([x], q=0.33, param_ndim=None, lr=1.0)
        >>> (torch.tensor([1.0, 2.0, 3.0]) * x).sum().backward()
        >>> optim.step()
        >>> x.grad
        tensor([0., 2., 3.])

    Source: the class of the same name in rai-toolbox.
    """

    def __init__(
        self,
        params: Any = None,
        InnerOpt: Any = SGD,
        *,
        q: float = REQUIRED,
        dq: float = 0.0,
        param_ndim: int | None = -1,
        defaults: Group | None = None,
        generator: Generator = default_generator,
        **inner_opt_kwargs: Any,
    ) -> None:
        if not isinstance(generator, Generator):
            raise TypeError(f"`generator` must be a torch.Generator  Got: {generator!r}")
        self._generator = generator
        defaults = _with(defaults, q=q, dq=dq)
        super().__init__(
            params, InnerOpt, defaults=defaults, param_ndim=param_ndim, **inner_opt_kwargs
        )

    def _links(self) -> list[Slot]:
        slot = slot_of(top_q)
        slot.generator = self._generator
        return [slot]


# ------------------------------------------------------------------ norms and signs


class _LpNormOptimizer(ParamTransformingOptimizer):
    _p: int | float

    def __init__(
        self,
        params: Any = None,
        InnerOpt: Any = SGD,
        *,
        param_ndim: int | None = -1,
        defaults: Group | None = None,
        grad_scale: float = 1.0,
        grad_bias: float = 0.0,
        div_by_zero_eps: float = TINY,
        **inner_opt_kwargs: Any,
    ) -> None:
        Range(0.0, static=True).check("div_by_zero_eps", div_by_zero_eps)
        if not isinstance(getattr(self, "_p", None), (int, float)):
            raise TypeError(f"`{type(self).__name__}._p` must be an int or a float")
        self.div_by_zero_eps = div_by_zero_eps
        super().__init__(
            params,
            InnerOpt,
            param_ndim=param_ndim,
            defaults=defaults,
            grad_scale=grad_scale,
            grad_bias=grad_bias,
            **inner_opt_kwargs,
        )

    @property
    def p(self) -> int | float:
        """The order of the norm."""
        return self._p

    def per_datum_norm(self, x: Tensor) -> Tensor:
        """The p-norm of each row of x, (N, D) -> (N,)."""
        norm: Tensor = vector_norm(x, self.p, dim=1)
        return norm

    def _links(self) -> list[Slot]:
        fixed = {"p": self.p, "div_by_zero_eps": self.div_by_zero_eps}
        return [slot_of(normalize, fixed=fixed)]


class L1NormedGradientOptim(_LpNormOptimizer):
    """Divide each row of the gradients by its L1 norm, then step.

    Args:
        params: parameters, or dicts that define param groups.
        InnerOpt: a torch optimizer class, a partial of one, or an instance.
        param_ndim: dimensions of one row, see `rai_chain.to_batch`. Per group.
        div_by_zero_eps: smallest denominator, >= 0.
        grad_scale, grad_bias, defaults, **inner_opt_kwargs: as in `ParamTransformingOptimizer`.

    Raises:
        ValueError: div_by_zero_eps < 0.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> optim = L1NormedGradientOptim([x], param_ndim=None, lr=1.0)
        >>> (torch.tensor([1.0, 3.0]) * x).sum().backward()
        >>> optim.step()
        >>> x.grad
        tensor([0.2500, 0.7500])

    Source: the class of the same name in rai-toolbox.
    """

    _p = 1


class L2NormedGradientOptim(_LpNormOptimizer):
    """Divide each row of the gradients by its L2 norm, then step.

    Args:
        params: parameters, or dicts that define param groups.
        InnerOpt: a torch optimizer class, a partial of one, or an instance.
        param_ndim: dimensions of one row, see `rai_chain.to_batch`. Per group.
        div_by_zero_eps: smallest denominator, >= 0.
        grad_scale, grad_bias, defaults, **inner_opt_kwargs: as in `ParamTransformingOptimizer`.

    Raises:
        ValueError: div_by_zero_eps < 0.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> optim = L2NormedGradientOptim([x], param_ndim=None, lr=1.0)
        >>> (torch.tensor([3.0, 4.0]) * x).sum().backward()
        >>> optim.step()
        >>> x.grad
        tensor([0.6000, 0.8000])

    Source: the class of the same name in rai-toolbox.
    """

    _p = 2


class L2ProjectedOptim(L2NormedGradientOptim):
    """Divide each row of the gradients by its L2 norm, step, project rows onto the L2 ball.

    Args:
        params: parameters, or dicts that define param groups.
        InnerOpt: a torch optimizer class, a partial of one, or an instance.
        epsilon: radius of the ball, >= 0. Per group.
        param_ndim: dimensions of one row, see `rai_chain.to_batch`. Per group.
        div_by_zero_eps: smallest denominator, >= 0.
        grad_scale, grad_bias, defaults, **inner_opt_kwargs: as in `ParamTransformingOptimizer`.

    Raises:
        ValueError: epsilon is missing, or a value is negative.

    Example:
        >>> import torch
        >>> x = torch.zeros(2, requires_grad=True)
        >>> optim = L2ProjectedOptim([x], epsilon=0.5, param_ndim=None, lr=1.0)
        >>> (torch.tensor([-3.0, -4.0]) * x).sum().backward()
        >>> optim.step()
        >>> x
        tensor([0.3000, 0.4000], requires_grad=True)

    Source: the class of the same name in rai-toolbox.
    """

    def __init__(
        self,
        params: Any = None,
        InnerOpt: Any = SGD,
        *,
        epsilon: float = REQUIRED,
        param_ndim: int | None = -1,
        grad_scale: float = 1.0,
        grad_bias: float = 0.0,
        defaults: Group | None = None,
        div_by_zero_eps: float = TINY,
        **inner_opt_kwargs: Any,
    ) -> None:
        super().__init__(
            params,
            InnerOpt,
            defaults=_with(defaults, epsilon=epsilon),
            param_ndim=param_ndim,
            grad_scale=grad_scale,
            grad_bias=grad_bias,
            div_by_zero_eps=div_by_zero_eps,
            **inner_opt_kwargs,
        )

    def _links(self) -> list[Slot]:
        return [*super()._links(), slot_of(l2_ball, fixed={"center": None})]


class SignedGradientOptim(ParamTransformingOptimizer):
    """Replace each element of the gradients by its sign, then step.

    Args:
        params: parameters, or dicts that define param groups.
        InnerOpt: a torch optimizer class, a partial of one, or an instance.
        grad_scale, grad_bias, defaults, param_ndim, **inner_opt_kwargs: as in
            `ParamTransformingOptimizer`.

    Raises:
        TypeError: a value of the wrong type.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> optim = SignedGradientOptim([x], lr=0.1)
        >>> (torch.tensor([2.0, -3.0]) * x).sum().backward()
        >>> optim.step()
        >>> x
        tensor([0.9000, 1.1000], requires_grad=True)

    Source: the class of the same name in rai-toolbox.
    """

    def __init__(
        self,
        params: Any = None,
        InnerOpt: Any = SGD,
        *,
        grad_scale: float = 1.0,
        grad_bias: float = 0.0,
        defaults: Group | None = None,
        param_ndim: int | None = None,
        **inner_opt_kwargs: Any,
    ) -> None:
        super().__init__(
            params,
            InnerOpt,
            param_ndim=param_ndim,
            grad_scale=grad_scale,
            grad_bias=grad_bias,
            defaults=defaults,
            **inner_opt_kwargs,
        )

    def _links(self) -> list[Slot]:
        return [slot_of(sign)]


class LinfProjectedOptim(SignedGradientOptim):
    """Step along the signs of the gradients, then keep each element within [-epsilon, epsilon].

    Args:
        params: parameters, or dicts that define param groups.
        InnerOpt: a torch optimizer class, a partial of one, or an instance.
        epsilon: radius of the ball, >= 0. Per group.
        param_ndim, grad_scale, grad_bias, defaults, **inner_opt_kwargs: as in
            `ParamTransformingOptimizer`.

    Raises:
        ValueError: epsilon is missing or negative.

    Example:
        >>> import torch
        >>> x = torch.zeros(2, requires_grad=True)
        >>> optim = LinfProjectedOptim([x], epsilon=0.5, lr=1.0)
        >>> (torch.tensor([2.0, -3.0]) * x).sum().backward()
        >>> optim.step()
        >>> x
        tensor([-0.5000,  0.5000], requires_grad=True)

    Source: the class of the same name in rai-toolbox.
    """

    def __init__(
        self,
        params: Any = None,
        InnerOpt: Any = SGD,
        *,
        epsilon: float = REQUIRED,
        param_ndim: int | None = None,
        grad_scale: float = 1.0,
        grad_bias: float = 0.0,
        defaults: Group | None = None,
        **inner_opt_kwargs: Any,
    ) -> None:
        super().__init__(
            params,
            InnerOpt,
            defaults=_with(defaults, epsilon=epsilon),
            param_ndim=param_ndim,
            grad_scale=grad_scale,
            grad_bias=grad_bias,
            **inner_opt_kwargs,
        )

    def _links(self) -> list[Slot]:
        return [*super()._links(), slot_of(linf_ball, fixed={"center": None})]


class L1qNormedGradientOptim(ChainedParamTransformingOptimizer):
    """Top-q, sign, then L1-normalise the rows of the gradients, then step: the step of SLIDE.

    Args:
        params: parameters, or dicts that define param groups.
        InnerOpt: a torch optimizer class, a partial of one, or an instance.
        q: fraction to drop, 0 <= q <= 1. Per group.
        dq: half width of the interval that q is drawn from, once per tensor and step. Per group.
        param_ndim: dimensions of one row, see `rai_chain.to_batch`. Per group.
        div_by_zero_eps: smallest denominator, >= 0.
        generator: draws q, see `TopQGradientOptimizer`.
        grad_scale, grad_bias, defaults, **inner_opt_kwargs: as in `ParamTransformingOptimizer`.

    Raises:
        TypeError: `generator` is no `torch.Generator`.
        ValueError: q is missing, or a value outside its interval.

    Example:
        >>> import torch
        >>> x = torch.ones(4, requires_grad=True)
        >>> optim = L1qNormedGradientOptim([x], q=0.5, param_ndim=None, lr=1.0)
        >>> (torch.tensor([1.0, -3.0, 2.0, 0.0]) * x).sum().backward()
        >>> optim.step()
        >>> x.grad
        tensor([ 0.0000, -0.5000,  0.5000,  0.0000])

    Source: Tramer and Boneh 2019, arXiv 1904.13000; the class of the same name in rai-toolbox.
    """

    def __init__(
        self,
        params: Any = None,
        InnerOpt: Any = SGD,
        *,
        q: float = REQUIRED,
        dq: float = 0.0,
        param_ndim: int | None = -1,
        grad_scale: float = 1.0,
        grad_bias: float = 0.0,
        defaults: Group | None = None,
        div_by_zero_eps: float = TINY,
        generator: Generator = default_generator,
        **inner_opt_kwargs: Any,
    ) -> None:
        super().__init__(
            partial(TopQGradientOptimizer, q=q, dq=dq, generator=generator),
            SignedGradientOptim,
            partial(L1NormedGradientOptim, div_by_zero_eps=div_by_zero_eps),
            params=params,
            InnerOpt=InnerOpt,
            param_ndim=param_ndim,
            grad_scale=grad_scale,
            grad_bias=grad_bias,
            defaults=defaults,
            **inner_opt_kwargs,
        )


# ------------------------------------------------------------------ Frank-Wolfe


class StepOptimizer(Optimizer):
    """A torch optimizer whose update is a link that steps by itself.

    Args:
        params: parameters, or dicts that define param groups.
        link: a link of the phase "step"; its hyperparameters are param-group keys.

    Raises:
        TypeError: `link` does not step.

    Example:
        >>> import torch
        >>> from rai_chain import frank_wolfe_step
        >>> x = torch.ones(2, requires_grad=True)
        >>> optim = StepOptimizer([x], frank_wolfe_step())
        >>> (torch.tensor([2.0, -3.0]) * x).sum().backward()
        >>> optim.step()
        >>> x
        tensor([ 2., -3.], requires_grad=True)

    Source: the phase "step" of this library's design.
    """

    def __init__(self, params: Any, link: Link, defaults: Group | None = None) -> None:
        if not isinstance(link, Link) or link.phase != "step":
            raise TypeError(f"`link` must be a link that steps  Got: {link!r}")
        self._link = link
        super().__init__(params, {**link.values} if defaults is None else defaults)

    def _values(self, group: Group) -> Group:
        return {name: group[name] for name in self._link.values}

    def step(self, closure: Any = None) -> Any:
        """Step every parameter that has a gradient.

        Args:
            closure: evaluates the model and returns the loss.

        Returns:
            The loss of `closure`, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                values = self._values(group)
                self._link.check_values(values)
                for p in group["params"]:
                    if p.grad is not None:
                        self._step_one(p, values)
        return loss

    def _step_one(self, p: Tensor, values: Group) -> None:
        run = Run(_ONE, [p], writable=[False])
        state = self.state[p] or self._link.start([p], run, values)
        (new,), state = self._link.apply([p.grad], state, run, values)
        p.copy_(new)  # type: ignore[arg-type]
        self.state[p].update(state)


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
        self._use_default_lr_schedule = use_default_lr_schedule
        self._eps = div_by_zero_eps
        link = frank_wolfe_step(lr, use_default_lr_schedule, div_by_zero_eps)
        super().__init__(params, link, {"lr": lr, "lmo_scaling_factor": lmo_scaling_factor})
        for group in self.param_groups:
            self._check_group(group)

    def _check_group(self, group: Group) -> None:
        Range().check("lmo_scaling_factor", group["lmo_scaling_factor"])
        if "epsilon" in group:
            Range(0.0).check("epsilon", group["epsilon"])
        self._link.check_values(self._values(group))

    def _values(self, group: Group) -> Group:
        radius: Any = group.get("epsilon", group["lmo_scaling_factor"])
        return {**self._link.values, "lr": group["lr"], "grad_scale": -radius}


class _FrankWolfeMethod:
    """What the Frank-Wolfe classes share: a group's `epsilon` is checked like any other value."""

    def _check_group(self, group: Group) -> None:
        if "epsilon" in group:
            Range(0.0).check("epsilon", group["epsilon"])
        super()._check_group(group)  # type: ignore[misc]


class L1FrankWolfe(_FrankWolfeMethod, ParamTransformingOptimizer):
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

    def __init__(
        self,
        params: Any,
        *,
        epsilon: float,
        lr: float = 2.0,
        use_default_lr_schedule: bool = True,
        param_ndim: int | None = -1,
        div_by_zero_eps: float = TINY,
    ) -> None:
        super().__init__(
            params,
            FrankWolfe,
            lmo_scaling_factor=epsilon,
            lr=lr,
            use_default_lr_schedule=use_default_lr_schedule,
            param_ndim=param_ndim,
            div_by_zero_eps=div_by_zero_eps,
        )

    def _links(self) -> list[Slot]:
        return [slot_of(one_hot_sign)]


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

    def __init__(
        self,
        params: Any,
        *,
        epsilon: float,
        lr: float = 2.0,
        use_default_lr_schedule: bool = True,
        param_ndim: int | None = -1,
        div_by_zero_eps: float = TINY,
    ) -> None:
        super().__init__(
            params,
            FrankWolfe,
            lmo_scaling_factor=epsilon,
            lr=lr,
            use_default_lr_schedule=use_default_lr_schedule,
            param_ndim=param_ndim,
            div_by_zero_eps=div_by_zero_eps,
        )


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

    def __init__(
        self,
        params: Any,
        *,
        epsilon: float,
        lr: float = 2.0,
        use_default_lr_schedule: bool = True,
        param_ndim: int | None = -1,
        div_by_zero_eps: float = TINY,
    ) -> None:
        super().__init__(
            params,
            FrankWolfe,
            lmo_scaling_factor=epsilon,
            lr=lr,
            use_default_lr_schedule=use_default_lr_schedule,
            param_ndim=param_ndim,
            div_by_zero_eps=div_by_zero_eps,
        )


class L1qFrankWolfe(_FrankWolfeMethod, L1qNormedGradientOptim):
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
        q: float,
        epsilon: float,
        dq: float = 0.0,
        lr: float = 2.0,
        use_default_lr_schedule: bool = True,
        param_ndim: int | None = -1,
        div_by_zero_eps: float = TINY,
        generator: Generator = default_generator,
    ) -> None:
        super().__init__(
            params,
            FrankWolfe,
            lmo_scaling_factor=epsilon,
            q=q,
            dq=dq,
            lr=lr,
            use_default_lr_schedule=use_default_lr_schedule,
            param_ndim=param_ndim,
            div_by_zero_eps=div_by_zero_eps,
            generator=generator,
        )
