"""One perturbation for all images, and training against attacks."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..core.chain import chain
from ..links.transforms import scale
from ..perturbations.solvers import evaluating
from .climb import Loss, Model, attack, check_images, losses
from .near import BALLS, DIRECTIONS, of


def universal(
    model: Model,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    *,
    norm: float = math.inf,
    steps: int = 40,
    step_size: Any = None,
    low: float = 0.0,
    high: float = 1.0,
    loss: Loss = losses,
    **options: Any,
) -> Tensor:
    """One perturbation for all images, which raises their mean loss.

    Args:
        model, images, labels, norm, low, high: as in `fgsm`.
        epsilon: radius of the ball around 0 that the perturbation stays in, a number >= 0.
        steps, step_size: as in `pgd`; it starts at 0.
        loss, **options: as in `attack`.

    Returns:
        The perturbation, of the shape of one image, to be used as
        ``(images + perturbation).clamp(low, high)``.

    Raises:
        TypeError, ValueError: as `fgsm`.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.2, 0.6], [0.5, 0.5]])
        >>> universal(lambda x: x, x, torch.tensor([1, 1]), epsilon=0.25)
        tensor([ 0.2500, -0.2500])

    Source: Shafahi et al. 2020, "Universal Adversarial Training", arXiv 1811.11304.
    """
    check_images(images, epsilon, low, high)
    size = 2.5 * epsilon / max(steps, 1) if step_size is None else step_size
    tx = chain(of(DIRECTIONS, norm), scale(-size), of(BALLS, norm)(epsilon))

    none = torch.zeros_like(images[:1])
    with evaluating(model):
        return attack(
            lambda shift: model((images + shift).clamp(low, high)),
            none,
            labels,
            tx,
            steps,
            loss=lambda logits, labels: loss(logits, labels).mean(),
            **options,
        )[0]


def adversarial_step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    attack: Callable[[torch.nn.Module, Tensor, Tensor], Tensor],
    loss: Loss = cross_entropy,
) -> Tensor:
    """One step of adversarial training: attack the images, then learn from what came out.

    Args:
        model: to be trained; the attack sees it in eval mode, the step in its own.
        optimizer: of its parameters.
        images, labels: a batch, (N, ...) and (N,).
        attack: ``(model, images, labels) -> images``, such as
            ``functools.partial(pgd, epsilon=0.1, steps=7)``.
        loss: ``(logits, labels) -> losses``, (N,) or their mean; the cross entropy.

    Returns:
        The mean loss of the attacked images, before the step, a 0-dim tensor without a graph.

    Raises:
        TypeError, ValueError: as `attack`.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> from rai_chain.attacks import fgsm
        >>> net = torch.nn.Linear(2, 2)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> x, y = torch.tensor([[0.2, 0.6], [0.5, 0.5]]), torch.tensor([0, 1])
        >>> adversarial_step(net, optimizer, x, y, partial(fgsm, epsilon=0.1)).shape
        torch.Size([])

    Source: Madry et al. 2017, arXiv 1706.06083, equation 2.1.
    """
    attacked = attack(model, images, labels)
    optimizer.zero_grad()
    mean = loss(model(attacked), labels).mean()
    mean.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return mean.detach()
