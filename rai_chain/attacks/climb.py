"""What all attacks do: climb the loss of a model with a pipeline."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..core.pipeline import GradientTransformation
from ..data.hyper import Flag, Range
from ..data.messages import told
from ..data.plain import is_plain
from ..perturbations.solvers import evaluating
from ..solve import maximize, minimize

Model = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross entropy of each image, and log K more where its label has not the largest logit.

    So of all points those where the label changes count first: elsewhere it is at most log K.
    """
    alike = isinstance(labels, Tensor) and labels.shape == logits.shape[:1]
    if not alike or labels.dtype != torch.int64:
        raise ValueError(
            f"`labels` must be int64, one for each of the {len(logits)} images  Got: {told(labels)}"
        )
    other = logits.argmax(1) != labels
    return cross_entropy(logits, labels, reduction="none") + math.log(logits.shape[1]) * other


def check_images(images: Any, epsilon: Any, low: float, high: float) -> None:
    """Refuse images outside of the interval, which ball and interval need not meet near."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        raise TypeError(f"`images` must be a floating tensor (N, ...)  Got: {told(images)}")
    Range(0.0).check("epsilon", epsilon)
    if isinstance(epsilon, Tensor) and epsilon.numel() > 1 and epsilon.shape != images.shape[:1]:
        raise ValueError(
            f"`epsilon` must be a number, or one for each of the {len(images)} images  "
            f"Got: {told(epsilon)}"
        )
    inside = low > high or not is_plain((images,))  # or else refused, or not to be read
    if not inside and bool(((images < low) | (images > high)).any()):
        least, most = (float(x) for x in images.aminmax())
        raise ValueError(
            f"`images` must satisfy {low} <= images <= {high}, which are `low` and `high`  "
            f"Got: from {least:.4g} to {most:.4g}"
        )


def attack(
    model: Model,
    images: Tensor,
    labels: Tensor,
    tx: GradientTransformation,
    steps: int,
    *,
    targeted: bool = False,
    loss: Loss = losses,
    **options: Any,
) -> Tensor:
    """Climb a model's loss with any pipeline: what all attacks here do.

    Args:
        model: images -> logits (N, K). A `torch.nn.Module` is in eval mode meanwhile, and no
            gradient of its parameters is written.
        images: (N, ...), floating dtype.
        labels: (N,), int64: the true ones, or where `targeted` the wanted ones.
        tx: a pipeline that descends, on ``-loss``, or on the loss where `targeted`.
        steps: how many, >= 0.
        targeted: whether to go towards `labels`, not away from them.
        loss: ``(logits, labels) -> losses`` (N,); by default the cross entropy, and log K more
            where the label has not the largest logit, so that what fools the model counts first.
        **options: passed on to `rai_chain.solve.maximize`: `best`, `restarts`, `init`, `stop`,
            `callback`, `progress`, `seed`.

    Returns:
        Images like `images`: of all that were met, for each that with the largest loss, the
        smallest where `targeted`. No input is written.

    Raises:
        TypeError, ValueError: as `rai_chain.solve.maximize`.

    Example:
        >>> import torch
        >>> from rai_chain import adam, box, chain
        >>> x = torch.tensor([[0.2, 0.6], [0.5, 0.5]])
        >>> tx = chain(adam(0.1), box(0.0, 1.0))
        >>> attack(lambda x: x, x, torch.tensor([0, 1]), tx, steps=10)
        tensor([[0., 1.],
                [1., 0.]])

    Source: this library.
    """
    Flag().check("targeted", targeted)
    solve = minimize if targeted else maximize
    with evaluating(model):
        return solve(lambda x: loss(model(x), labels), images, tx, steps, **options).x  # type: ignore[no-any-return]
