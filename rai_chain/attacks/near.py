"""Attacks within a ball around each image."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from .. import random
from ..core.chain import chain
from ..data.messages import told
from ..links.apgd import apgd as adaptive
from ..links.clipping import feasible
from ..links.frank_wolfe import frank_wolfe_step, l1_oracle, l2_oracle, linf_oracle
from ..links.momentum import trace
from ..links.projections import box, l1_ball, l2_ball, linf_ball
from ..links.transforms import normalize, scale, sign, top_q
from .climb import Model, attack, check_images

# Of each norm: the gradient at length 1, the ball, its random points, its extreme points.
DIRECTIONS = {1: normalize(1), 2: normalize(2), math.inf: sign()}
BALLS = {1: l1_ball, 2: l2_ball, math.inf: linf_ball}
STARTS = {1: random.l1_ball, 2: random.l2_ball, math.inf: random.linf_ball}
ORACLES = {1: l1_oracle, 2: l2_oracle, math.inf: linf_oracle}


def of(table: dict[float, Any], norm: float) -> Any:
    """What belongs to a norm."""
    if norm not in table:
        raise ValueError(f"`norm` must be one of 1, 2, inf  Got: {told(norm)}")
    return table[norm]


def within(norm: float, epsilon: Any, images: Tensor, low: float, high: float) -> tuple[Any, Any]:
    """The ball around each image, then the interval, which does not lead out of the ball."""
    return of(BALLS, norm)(epsilon, images), box(low, high)


def start(norm: float, epsilon: Any, low: float, high: float) -> Callable[[Tensor, Tensor], Tensor]:
    """A random point of each ball, clamped to the interval."""
    draw = of(STARTS, norm)
    return lambda x, key: draw(key, x.shape, epsilon, x, dtype=x.dtype).clamp(low, high)


def fgsm(
    model: Model,
    images: Tensor,
    labels: Tensor,
    epsilon: Any,
    *,
    norm: float = math.inf,
    low: float = 0.0,
    high: float = 1.0,
    **options: Any,
) -> Tensor:
    """The fast gradient (sign) method: one step from each image to the end of its ball.

    Args:
        model, images, labels: as in `attack`; `images` within `low` and `high`.
        epsilon: radius of the ball around each image, >= 0: a number, or a tensor (N,).
        norm: which ball: 1, 2 or inf.
        low, high: the interval of pixels.
        **options: `targeted` and `loss`, as in `attack`.

    Returns:
        Images like `images`, each within `epsilon` of its own and within the interval.

    Raises:
        TypeError, ValueError: a value of the wrong type, or outside its interval.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.2, 0.6], [0.5, 0.5]])
        >>> fgsm(lambda x: x, x, torch.tensor([0, 1]), epsilon=0.25)
        tensor([[0.0000, 0.8500],
                [0.7500, 0.2500]])

    Source: Goodfellow et al. 2014, "Explaining and Harnessing Adversarial Examples",
    arXiv 1412.6572.
    """
    check_images(images, epsilon, low, high)
    tx = chain(of(DIRECTIONS, norm), scale(-epsilon), *within(norm, epsilon, images, low, high))
    return attack(model, images, labels, tx, 1, best=False, **options)


def pgd(
    model: Model,
    images: Tensor,
    labels: Tensor,
    epsilon: Any,
    *,
    norm: float = math.inf,
    steps: int = 40,
    step_size: Any = None,
    random_start: bool = True,
    low: float = 0.0,
    high: float = 1.0,
    **options: Any,
) -> Tensor:
    """Projected gradient descent: steps along the gradient, projected to the ball and the interval.

    Args:
        model, images, labels, epsilon, norm, low, high: as in `fgsm`.
        steps: how many, >= 0.
        step_size: length of a step in the norm, a number or a tensor (N,); None is
            ``2.5 * epsilon / steps``.
        random_start: whether to start at a point uniform in the ball, not at the image.
        **options: as in `attack`; `restarts`, say, each from a random start of its own.

    Returns:
        Images, as `attack` and `fgsm`.

    Raises:
        TypeError, ValueError: as `fgsm`.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.2, 0.6], [0.5, 0.5]])
        >>> pgd(lambda x: x, x, torch.tensor([0, 1]), epsilon=0.25)
        tensor([[0.0000, 0.8500],
                [0.7500, 0.2500]])

    Source: Madry et al. 2017, "Towards Deep Learning Models Resistant to Adversarial Attacks",
    arXiv 1706.06083.
    """
    check_images(images, epsilon, low, high)
    size = 2.5 * epsilon / max(steps, 1) if step_size is None else step_size
    tx = chain(of(DIRECTIONS, norm), scale(-size), *within(norm, epsilon, images, low, high))
    init = start(norm, epsilon, low, high) if random_start else None
    return attack(model, images, labels, tx, steps, **{"init": init, **options})


def apgd(
    model: Model,
    images: Tensor,
    labels: Tensor,
    epsilon: Any,
    *,
    norm: float = math.inf,
    steps: int = 100,
    random_start: bool = True,
    low: float = 0.0,
    high: float = 1.0,
    **options: Any,
) -> Tensor:
    """Projected gradient steps that choose their own size, for each image: nothing to tune.

    A step ends at the nearest point that is in the ball and in the interval.

    Args:
        model, images, labels, epsilon, norm, low, high: as in `fgsm`.
        steps: how many, >= 1; the size of the steps depends on them.
        random_start, **options: as in `pgd`.

    Returns:
        Images, as `attack` and `fgsm`.

    Raises:
        TypeError, ValueError: as `fgsm`.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.2, 0.6], [0.5, 0.5]])
        >>> apgd(lambda x: x, x, torch.tensor([0, 1]), epsilon=0.25)
        tensor([[0.0000, 0.8500],
                [0.7500, 0.2500]])

    Source: `rai_chain.apgd` (Croce and Hein 2020, arXiv 2003.01690), which L1 steps take as well.
    """
    check_images(images, epsilon, low, high)
    longest = chain(of(DIRECTIONS, norm), scale(-2.0 * epsilon))
    both = of(BALLS, norm)(epsilon, images, low=low, high=high)
    tx = adaptive(chain(longest, both), steps)
    init = start(norm, epsilon, low, high) if random_start else None
    return attack(model, images, labels, tx, steps, **{"init": init, **options})


def mi_fgsm(
    model: Model,
    images: Tensor,
    labels: Tensor,
    epsilon: Any,
    *,
    steps: int = 10,
    step_size: Any = None,
    decay: float = 1.0,
    low: float = 0.0,
    high: float = 1.0,
    **options: Any,
) -> Tensor:
    """Signed steps along a sum of all gradients, in Linf balls; it transfers to other models.

    Args:
        model, images, labels, epsilon, low, high: as in `fgsm`.
        steps, **options: as in `pgd`.
        step_size: change of a pixel in a step; None is ``epsilon / steps``.
        decay: what is left of the sum in each step, >= 0.

    Returns:
        Images, as `attack` and `fgsm`.

    Raises:
        TypeError, ValueError: as `fgsm`.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.2, 0.6], [0.5, 0.5]])
        >>> mi_fgsm(lambda x: x, x, torch.tensor([0, 1]), epsilon=0.25)
        tensor([[0.0000, 0.8500],
                [0.7500, 0.2500]])

    Source: Dong et al. 2018, "Boosting Adversarial Attacks with Momentum", arXiv 1710.06081.
    """
    check_images(images, epsilon, low, high)
    size = epsilon / max(steps, 1) if step_size is None else step_size
    sums = chain(normalize(1), trace(decay), sign(), scale(-size))
    tx = chain(sums, *within(math.inf, epsilon, images, low, high))
    return attack(model, images, labels, tx, steps, **options)


def slide(
    model: Model,
    images: Tensor,
    labels: Tensor,
    epsilon: Any,
    *,
    q: Any = 0.99,
    steps: int = 40,
    step_size: Any = None,
    low: float = 0.0,
    high: float = 1.0,
    **options: Any,
) -> Tensor:
    """Sparse L1 descent: equal steps in the few pixels that matter most, in L1 balls.

    Args:
        model, images, labels, epsilon, low, high: as in `fgsm`.
        q: the fraction of the pixels that a step leaves as they are, in [0, 1].
        steps, **options: as in `pgd`.
        step_size: L1 length of a step; None is ``2.5 * epsilon / steps``.

    Returns:
        Images, as `attack` and `fgsm`.

    Raises:
        TypeError, ValueError: as `fgsm`.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.2, 0.6], [0.5, 0.5]])
        >>> weights = torch.tensor([1.0, 3.0])
        >>> slide(lambda x: x * weights, x, torch.tensor([0, 1]), epsilon=0.25, q=0.5)
        tensor([[0.2000, 0.8500],
                [0.5000, 0.2500]])

    Source: Tramer and Boneh 2019, "Adversarial Training and Robustness for Multiple
    Perturbations", arXiv 1904.13000.
    """
    check_images(images, epsilon, low, high)
    size = 2.5 * epsilon / max(steps, 1) if step_size is None else step_size
    few = chain(feasible(low, high), top_q(q), sign(), normalize(1), scale(-size))
    tx = chain(few, *within(1, epsilon, images, low, high))
    return attack(model, images, labels, tx, steps, **options)


def frank_wolfe(
    model: Model,
    images: Tensor,
    labels: Tensor,
    epsilon: Any,
    *,
    norm: float = math.inf,
    steps: int = 40,
    lr: Any = 2.0,
    low: float = 0.0,
    high: float = 1.0,
    **options: Any,
) -> Tensor:
    """Steps towards the point of the ball that the gradient likes best: no step size to choose.

    The gradient is first zeroed where a pixel would leave the interval: a point of an L1 ball
    changes one pixel alone.

    Args:
        model, images, labels, epsilon, norm, low, high: as in `fgsm`.
        steps, **options: as in `pgd`.
        lr: step t, from 0, goes the part ``lr / (lr + t)`` of the way, >= 0.

    Returns:
        Images, as `attack` and `fgsm`.

    Raises:
        TypeError, ValueError: as `fgsm`.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.2, 0.6], [0.5, 0.5]])
        >>> frank_wolfe(lambda x: x, x, torch.tensor([0, 1]), epsilon=0.25)
        tensor([[0.0000, 0.8500],
                [0.7500, 0.2500]])

    Source: Chen et al. 2018, "A Frank-Wolfe Framework for Efficient and Effective Adversarial
    Attacks", arXiv 1811.10828, without its momentum.
    """
    check_images(images, epsilon, low, high)
    oracle = chain(feasible(low, high), of(ORACLES, norm)(epsilon, images))
    tx = chain(oracle, frank_wolfe_step(lr), *within(norm, epsilon, images, low, high))
    return attack(model, images, labels, tx, steps, **options)
