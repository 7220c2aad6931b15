"""SLIDE, the sparse L1 descent attack, image for image with foolbox's and CleverHans's.

foolbox's projection onto the L1 ball divides by one too many and so leaves the ball; here it has
the exact one, by the sort of Duchi et al. in float64. CleverHans scales what has left the ball,
which is no projection; here its steps stay inside. All else is their own.
"""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rai_chain as rc

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Please import", DeprecationWarning)  # scipy to foolbox
    import foolbox
    from cleverhans.torch.attacks.sparse_l1_descent import sparse_l1_descent

pytestmark = [
    pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated"),
]


EPSILON, STEP, STEPS, PIXELS = 3.0, 0.6, 12, 64


def by_sorting(way: Any, epsilon: float) -> Any:
    """Rows, float64, projected onto the L1 ball."""
    size = np.abs(way)
    ordered = -np.sort(-size, axis=1)
    excess = np.cumsum(ordered, axis=1) - epsilon
    count = np.arange(1, way.shape[1] + 1)
    last = (ordered * count > excess).sum(1, keepdims=True)
    shift = np.take_along_axis(excess, last - 1, 1) / last
    near = np.sign(way) * np.maximum(size - shift, 0)
    return np.where(size.sum(1, keepdims=True) <= epsilon, way, near)


class Exact(foolbox.attacks.SparseL1DescentAttack):  # type: ignore[misc]
    """foolbox's attack with the projection that it means."""

    def project(self, x: Any, x0: Any, epsilon: float) -> Any:
        way = (x - x0).numpy().astype(np.float64)
        near = by_sorting(way.reshape(len(way), -1), epsilon).reshape(way.shape)
        return x0 + type(x)(torch.tensor(near).to(x.raw.dtype))


def problem(seed: int) -> tuple[Any, Tensor, Tensor]:
    """A net, and images many of whose pixels are black or white."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 32), nn.Tanh(), nn.Linear(32, 10)).double()
    images = (1.5 * torch.randn(20, 1, 8, 8, dtype=torch.float64) + 0.5).clamp(0.0, 1.0)
    return net.eval().requires_grad_(False), images, net(images).argmax(1)


def ours(
    net: Any, images: Tensor, labels: Tensor, *links: Any, k: int = 1, epsilon: float = EPSILON
) -> Tensor:
    """The last images of an attack whose first links are given."""
    cost = nn.CrossEntropyLoss(reduction="none")
    tx = rc.chain(
        *links,
        rc.top_k(k),
        rc.sign(),
        rc.normalize(1),
        rc.scale(-STEP),
        rc.l1_ball(epsilon, images),
        rc.box(0.0, 1.0),
    )
    loss = lambda x: cost(net(x), labels)  # noqa: E731
    found: Tensor = rc.solve.maximize(loss, images, tx, STEPS, best=False).x
    return found


def theirs(attack: Any, net: Any, images: Tensor, labels: Tensor, quantile: float) -> Tensor:
    model = foolbox.PyTorchModel(net, bounds=(0.0, 1.0), device="cpu")
    made = attack(quantile=quantile, abs_stepsize=STEP, steps=STEPS)
    raw = made.run(model, images, foolbox.criteria.Misclassification(labels), epsilon=EPSILON)
    assert isinstance(raw, Tensor)
    return raw.detach()


@pytest.mark.parametrize("quantile", [0.5, 0.8, 0.95, 0.99])
@pytest.mark.parametrize("seed", range(3))
def test_slide_with_what_is_feasible_is_foolboxs(quantile: float, seed: int) -> None:
    net, images, labels = problem(seed)
    k = PIXELS - math.ceil(quantile * (PIXELS - 1))  # what reaches numpy's quantile
    expected = theirs(Exact, net, images, labels, quantile)
    found = ours(net, images, labels, rc.feasible(0.0, 1.0), k=k)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    without = ours(net, images, labels, k=k)
    assert (without - expected).abs().amax() > 0.01


def test_foolboxs_own_projection_leaves_its_ball() -> None:
    net, images, labels = problem(0)
    size = lambda x: (x - images).abs().flatten(1).sum(1).amax()  # noqa: E731
    assert size(theirs(foolbox.attacks.SparseL1DescentAttack, net, images, labels, 0.8)) > EPSILON
    assert size(ours(net, images, labels, rc.feasible(0.0, 1.0), k=13)) <= EPSILON * (1 + 1e-15)


@pytest.mark.parametrize("percent", [80, 95, 99])
@pytest.mark.parametrize("seed", range(3))
def test_slide_with_what_is_feasible_is_cleverhanss(percent: int, seed: int) -> None:
    net, images, labels = problem(seed)
    net, images = net.float(), images.float()  # which it makes of any images
    reach = STEP * STEPS
    sizes = {"eps": reach, "eps_iter": STEP, "nb_iter": STEPS, "clip_min": 0.0, "clip_max": 1.0}
    expected = sparse_l1_descent(
        net, images, y=labels, clip_grad=True, grad_sparsity=percent, **sizes
    )
    k = PIXELS - int(percent / 100 * PIXELS) + 1
    found = ours(net, images, labels, rc.feasible(0.0, 1.0), k=k, epsilon=reach)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    without = ours(net, images, labels, k=k, epsilon=reach)
    assert (without - expected).abs().amax() > 0.01
