"""Made by `make stubs`: the signatures that decorators and declarations make."""

from typing import Any, TypeAlias

from torch import Generator, Tensor

from ..data.hyper import Schedule
from ..data.rows import ParamNdim
from .adapter import ParamTransformingOptimizer as ParamTransformingOptimizer
from .chained import ChainedParamTransformingOptimizer as ChainedParamTransformingOptimizer
from .classes import L1qNormedGradientOptim as L1qNormedGradientOptim
from .frank_wolfe import FrankWolfe as FrankWolfe
from .frank_wolfe import L1FrankWolfe as L1FrankWolfe
from .frank_wolfe import L1qFrankWolfe as L1qFrankWolfe
from .frank_wolfe import L2FrankWolfe as L2FrankWolfe
from .frank_wolfe import LinfFrankWolfe as LinfFrankWolfe
from .step import StepOptimizer as StepOptimizer

Hyper: TypeAlias = float | Tensor | Schedule | dict[str, Any] | list[Any] | tuple[Any, ...]

class ClampedGradientOptimizer(ParamTransformingOptimizer):
    """Clamp each element of the gradients to [clamp_min, clamp_max], then step."""

    def __init__(
        self,
        params: Any = None,
        InnerOpt: Any = ...,
        *,
        clamp_min: Hyper | None = None,
        clamp_max: Hyper | None = None,
        defaults: dict[str, Any] | None = None,
        param_ndim: ParamNdim = None,
        **inner_opt_kwargs: Any,
    ) -> None: ...

class ClampedParameterOptimizer(ParamTransformingOptimizer):
    """Step, then clamp each element of the parameters to [clamp_min, clamp_max]."""

    def __init__(
        self,
        params: Any = None,
        InnerOpt: Any = ...,
        *,
        clamp_min: Hyper | None = None,
        clamp_max: Hyper | None = None,
        defaults: dict[str, Any] | None = None,
        param_ndim: ParamNdim = None,
        **inner_opt_kwargs: Any,
    ) -> None: ...

class SignedGradientOptim(ParamTransformingOptimizer):
    """Replace each element of the gradients by its sign, then step."""

    def __init__(
        self,
        params: Any = None,
        InnerOpt: Any = ...,
        *,
        grad_scale: float = 1.0,
        grad_bias: float = 0.0,
        defaults: dict[str, Any] | None = None,
        param_ndim: ParamNdim = None,
        **inner_opt_kwargs: Any,
    ) -> None: ...

class TopQGradientOptimizer(ParamTransformingOptimizer):
    """Keep the round((1 - q) * D) largest elements of each row of the gradients, then step."""

    def __init__(
        self,
        params: Any = None,
        InnerOpt: Any = ...,
        *,
        q: Hyper,
        dq: Hyper = 0.0,
        param_ndim: ParamNdim = -1,
        defaults: dict[str, Any] | None = None,
        generator: Generator = ...,
        **inner_opt_kwargs: Any,
    ) -> None: ...

class L1NormedGradientOptim(ParamTransformingOptimizer):
    """Divide each row of the gradients by its L1 norm, then step."""

    def __init__(
        self,
        params: Any = None,
        InnerOpt: Any = ...,
        *,
        param_ndim: ParamNdim = -1,
        defaults: dict[str, Any] | None = None,
        grad_scale: float = 1.0,
        grad_bias: float = 0.0,
        div_by_zero_eps: Hyper = 1.1754943508222875e-38,
        **inner_opt_kwargs: Any,
    ) -> None: ...

class L2NormedGradientOptim(ParamTransformingOptimizer):
    """Divide each row of the gradients by its L2 norm, then step."""

    def __init__(
        self,
        params: Any = None,
        InnerOpt: Any = ...,
        *,
        param_ndim: ParamNdim = -1,
        defaults: dict[str, Any] | None = None,
        grad_scale: float = 1.0,
        grad_bias: float = 0.0,
        div_by_zero_eps: Hyper = 1.1754943508222875e-38,
        **inner_opt_kwargs: Any,
    ) -> None: ...

class LinfProjectedOptim(SignedGradientOptim):
    """Step along the signs of the gradients, then keep each element within [-epsilon, epsilon]."""

    def __init__(
        self,
        params: Any = None,
        InnerOpt: Any = ...,
        *,
        epsilon: Hyper,
        param_ndim: ParamNdim = None,
        grad_scale: float = 1.0,
        grad_bias: float = 0.0,
        defaults: dict[str, Any] | None = None,
        **inner_opt_kwargs: Any,
    ) -> None: ...

class L2ProjectedOptim(L2NormedGradientOptim):
    """Divide each row of the gradients by its L2 norm, step, project rows onto the L2 ball."""

    def __init__(
        self,
        params: Any = None,
        InnerOpt: Any = ...,
        *,
        epsilon: Hyper,
        param_ndim: ParamNdim = -1,
        grad_scale: float = 1.0,
        grad_bias: float = 0.0,
        defaults: dict[str, Any] | None = None,
        div_by_zero_eps: Hyper = 1.1754943508222875e-38,
        **inner_opt_kwargs: Any,
    ) -> None: ...
