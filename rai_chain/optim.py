"""The optimizers of rai-toolbox's `optim` page: change the import, and that is the migration."""

from ._adapter import ParamTransformingOptimizer
from ._chained import ChainedParamTransformingOptimizer
from ._gradient_optim import (
    ClampedGradientOptimizer,
    ClampedParameterOptimizer,
    L1NormedGradientOptim,
    L1qNormedGradientOptim,
    L2NormedGradientOptim,
    L2ProjectedOptim,
    LinfProjectedOptim,
    SignedGradientOptim,
    TopQGradientOptimizer,
)
from ._step_optim import (
    FrankWolfe,
    L1FrankWolfe,
    L1qFrankWolfe,
    L2FrankWolfe,
    LinfFrankWolfe,
    StepOptimizer,
)

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
