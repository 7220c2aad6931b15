"""Optimizers that transform gradients and project parameters, with rai-toolbox's names.

Each is a declaration: the links, and the arguments in rai-toolbox's order.
"""

from functools import partial
from typing import Any, ClassVar

from torch import Generator, Tensor, default_generator
from torch.linalg import vector_norm
from torch.optim import SGD

from ..core.define import elementwise
from ..data.hyper import REQUIRED, Bound
from ..data.rows import ParamNdim
from ..links.projections import l2_ball, linf_ball
from ..links.transforms import TINY, check_bounds, clamp, clamped, normalize, sign, top_q
from .adapter import ParamTransformingOptimizer
from .chained import ChainedParamTransformingOptimizer
from .states import Group

NO_BOX: Group = {"center": None, "low": None, "high": None}  # of a ball, here around the origin


@elementwise(phase="parameter", check=check_bounds)
def clamp_parameter(
    param: Tensor, clamp_min: Bound = None, clamp_max: Bound = None, *, out: Tensor | None = None
) -> Tensor:
    """Clamp each element of the parameters: `clamp`, in the phase "parameter"."""
    return clamped(param, clamp_min, clamp_max, out)


class ClampedGradientOptimizer(ParamTransformingOptimizer):
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

    links: ClassVar[tuple[Any, ...]] = (clamp,)
    takes = "clamp_min clamp_max defaults param_ndim=None"


class ClampedParameterOptimizer(ParamTransformingOptimizer):
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

    links: ClassVar[tuple[Any, ...]] = (clamp_parameter,)
    takes = "clamp_min clamp_max defaults param_ndim=None"


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

    links: ClassVar[tuple[Any, ...]] = (top_q,)
    takes = "q dq param_ndim defaults generator"
    _generator: Generator = default_generator


class _LpNormOptimizer(ParamTransformingOptimizer):
    links: ClassVar[tuple[Any, ...]] = (normalize,)
    takes = "param_ndim defaults grad_scale grad_bias div_by_zero_eps"
    _p: int | float

    @property
    def fixed(self) -> Group:  # type: ignore[override]
        """What is no param-group key."""
        return {"p": self.p, "div_by_zero_eps": self.div_by_zero_eps, **NO_BOX}

    @property
    def p(self) -> int | float:
        """The order of the norm."""
        if not isinstance(getattr(self, "_p", None), (int, float)):
            raise TypeError(f"`{type(self).__name__}._p` must be an int or a float")
        return self._p

    def per_datum_norm(self, x: Tensor) -> Tensor:
        """The p-norm of each row of x, (N, D) -> (N,)."""
        norm: Tensor = vector_norm(x, self.p, dim=1)
        return norm


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

    links: ClassVar[tuple[Any, ...]] = (normalize, l2_ball)
    takes = "epsilon param_ndim grad_scale grad_bias defaults div_by_zero_eps"


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

    links: ClassVar[tuple[Any, ...]] = (sign,)
    takes = "grad_scale grad_bias defaults param_ndim=None"


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

    links: ClassVar[tuple[Any, ...]] = (sign, linf_ball)
    fixed: ClassVar[Group] = NO_BOX
    takes = "epsilon param_ndim=None grad_scale grad_bias defaults"


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
        param_ndim: ParamNdim = -1,
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
