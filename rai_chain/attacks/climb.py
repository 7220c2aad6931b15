"""What all attacks do: climb the loss of a model with a pipeline."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from ..core.pipeline import GradientTransformation
from ..data.hyper import Flag
from ..perturbations.solvers import evaluating
from ..solve import maximize, minimize

Model = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross entropy of each image, and log K more where its label has not the largest logit.

    So of all points those where the label changes count first: elsewhere it is at most log K.
    """
    other = logits.argmax(1) != labels
    return cross_entropy(logits, labels, reduction="none") + math.log(logits.shape[1]) * other


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
