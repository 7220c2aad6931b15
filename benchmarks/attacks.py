"""Who does what attacks need: a step's transform, the projections, the drop-in classes."""

from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD

import rai_chain as rc

from .candidates import BATCHED, FLOOR, FOOLBOX, HAND, OPTIMIZER, OURS, RAI, Builders, floor, peer
from .tensors import Shape, normal
from .timing import Candidate, NotAvailableError

LR, QUANTILE = 0.01, 0.99
EPSILON = {"Linf": 0.03, "L2": 0.5, "SLIDE": 5.0}


class Images(NamedTuple):
    """A batch inside [0, 1], where an attack has got to, and the gradient it found there."""

    center: Tensor
    x: Tensor
    grad: Tensor


def images(shape: Shape) -> Images:
    center = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    (noise,) = normal([shape], seed=1)
    return Images(center, (center + 0.02 * noise).clamp(0.0, 1.0), normal([shape], seed=2)[0])


def pipeline(norm: str, center: Tensor) -> rc.GradientTransformation:
    """A step of the attack: the steepest direction, the ball around the images, the pixels' box."""
    epsilon, item = EPSILON[norm], center.ndim - 1
    direction, ball = {
        "Linf": (rc.sign(), rc.linf_ball(epsilon, center)),
        "L2": (rc.normalize(2, param_ndim=item), rc.l2_ball(epsilon, center, param_ndim=item)),
        "SLIDE": (
            rc.chain(
                rc.top_q(QUANTILE, param_ndim=item), rc.sign(), rc.normalize(1, param_ndim=item)
            ),
            rc.l1_ball(epsilon, center, param_ndim=item),
        ),
    }[norm]
    return rc.chain(direction, rc.scale(LR), ball, rc.box(0.0, 1.0))


def by_hand(norm: str, one: Images) -> Tensor:
    """The same in plain torch, as it stands in a script."""
    center, x, grad = one
    epsilon, shape = EPSILON[norm], (-1, *(1 for _ in x.shape[1:]))
    if norm == "Linf":
        x = x + LR * grad.sign()
        return center.add((x - center).clamp_(-epsilon, epsilon)).clamp_(0.0, 1.0)
    if norm == "L2":
        x = x + LR * grad / grad.flatten(1).norm(dim=1).view(shape)
        delta = x - center
        factor = (epsilon / delta.flatten(1).norm(dim=1)).clamp_(max=1.0).view(shape)
        return center.add(delta.mul_(factor)).clamp_(0.0, 1.0)
    rows = grad.flatten(1)
    k = round((1.0 - QUANTILE) * rows.shape[1])
    kept = rows.abs().topk(k, dim=1).indices
    step = torch.zeros_like(rows).scatter_(1, kept, rows.gather(1, kept).sign())
    delta = (x - center).flatten(1) + LR * step / max(k, 1)
    size = delta.abs()
    ordered = size.sort(dim=1, descending=True).values
    thetas = (ordered.cumsum(1) - epsilon) / torch.arange(1, size.shape[1] + 1)
    count = (ordered > thetas).sum(1, keepdim=True).clamp_(min=1)
    theta = thetas.gather(1, count - 1).clamp_(min=0.0)
    delta = delta.sign() * (size - theta).clamp_(min=0.0)
    return center.add(delta.view_as(x)).clamp_(0.0, 1.0)


def _of_foolbox(norm: str, one: Images) -> Candidate:
    """The lines between two gradients in the loop of foolbox's attacks."""
    try:
        import eagerpy as ep
        import foolbox
    except ImportError as missing:
        raise NotAvailableError("foolbox is not installed") from missing
    kinds = {
        "Linf": foolbox.attacks.LinfProjectedGradientDescentAttack,
        "L2": foolbox.attacks.L2ProjectedGradientDescentAttack,
        "SLIDE": partial(foolbox.attacks.SparseL1DescentAttack, quantile=QUANTILE),
    }
    attack, bounds = kinds[norm](), foolbox.types.Bounds(0, 1)
    center, x, grad = map(ep.astensor, one)

    def run() -> Tensor:
        new = x + LR * attack.normalize(grad, x=x, bounds=bounds)
        new = attack.project(new, center, EPSILON[norm])
        raw: Tensor = ep.clip(new, *bounds).raw
        return raw

    return Candidate(run)


def attack_builders(shapes: Sequence[Shape], *, norm: str) -> Builders:
    """What an attack does between two gradients, for a batch of images."""
    one = images(shapes[0])

    def pure() -> Candidate:
        tx = pipeline(norm, one.center)
        state = tx.init(one.x)
        return Candidate(lambda: tx.step(one.x, one.grad, state)[0])

    def optimizer() -> Candidate:
        x = one.x.clone().requires_grad_()
        tx, x.grad = pipeline(norm, one.center).optimizer([x]), one.grad.clone()

        def restore() -> None:
            x.detach().copy_(one.x)
            x.grad.copy_(one.grad)  # type: ignore[union-attr]

        return Candidate(lambda: (tx.step(), x.detach())[1], restore)

    return {
        FLOOR: lambda: floor([one.grad]),
        HAND: lambda: Candidate(partial(by_hand, norm, one)),
        FOOLBOX: lambda: _of_foolbox(norm, one),
        OURS: pure,
        OPTIMIZER: optimizer,
    }


# ------------------------------------------------------------------ projections


def ball_builders(shapes: Sequence[Shape], *, ball: str) -> Builders:
    """Half of the rows' norm as the radius, around a center; the simplex has none."""
    (rows,), (center,) = normal(shapes), normal(shapes, seed=1)
    order = {"L1": 1.0, "L2": 2.0, "Linf": torch.inf, "simplex": 1.0}[ball]
    radius = 0.5 * float((rows - center).norm(order, dim=1).mean())
    project: dict[str, Callable[[], Tensor]] = {
        "L1": lambda: rc.project_l1_ball(rows, radius, center),
        "L2": lambda: rc.project_l2_ball(rows, radius, center),
        "Linf": lambda: rc.project_linf_ball(rows, radius, center),
        "simplex": lambda: rc.project_simplex(rows),
    }
    return {FLOOR: lambda: floor([rows]), OURS: lambda: Candidate(project[ball])}


def vmap_builders(shapes: Sequence[Shape]) -> Builders:
    """SLIDE's step on a batch, and on one image under `vmap`."""
    one = images(shapes[0])
    item = one.x.ndim - 1

    def tx(epsilon: float, param_ndim: int) -> rc.GradientTransformation:
        rows = {"param_ndim": param_ndim}
        select = rc.chain(rc.top_q(QUANTILE, **rows), rc.sign(), rc.normalize(1, **rows))
        return rc.chain(select, rc.scale(LR), rc.l1_ball(epsilon, **rows), rc.box(0.0, 1.0))

    whole = tx(EPSILON["SLIDE"], item)
    state = whole.init(one.x)
    each = torch.func.vmap(lambda x, grad: whole.step(x, grad, whole.init(x))[0])
    return {
        FLOOR: lambda: floor([one.grad]),
        BATCHED: lambda: Candidate(lambda: whole.step(one.x, one.grad, state)[0]),
        OURS: lambda: Candidate(lambda: each(one.x, one.grad)),
    }


# ------------------------------------------------------------------ the drop-in classes

CLASSES: dict[str, dict[str, Any]] = {
    "SignedGradientOptim": {},
    "L1NormedGradientOptim": {},
    "L2NormedGradientOptim": {},
    "L1qNormedGradientOptim": {"q": 0.9, "dq": 0.0},
    "L2ProjectedOptim": {"epsilon": 0.5},
    "LinfProjectedOptim": {"epsilon": 0.03},
    "ClampedGradientOptimizer": {"clamp_min": -1.0, "clamp_max": 1.0},
    "ClampedParameterOptimizer": {"clamp_min": -1.0, "clamp_max": 1.0},
    "TopQGradientOptimizer": {"q": 0.9},
    "L1FrankWolfe": {"epsilon": 5.0},
    "L2FrankWolfe": {"epsilon": 0.5},
    "LinfFrankWolfe": {"epsilon": 0.03},
    "L1qFrankWolfe": {"epsilon": 5.0, "q": 0.9, "dq": 0.0},
}


def class_builders(shapes: Sequence[Shape], *, name: str) -> Builders:
    """A step of a class that both libraries have, on a batch of flat images."""
    start, grad = (x.flatten(1) for x in (*normal(shapes), *normal(shapes, seed=1)))

    def step(module: Callable[[], ModuleType]) -> Candidate:
        x = start.clone().requires_grad_()
        x.grad = grad.clone()
        own = dict(CLASSES[name])
        if "FrankWolfe" not in name:
            own |= {"InnerOpt": SGD}
        optimizer = getattr(module(), name)([x], lr=LR, param_ndim=1, **own)

        def restore() -> None:
            x.detach().copy_(start)
            x.grad.copy_(grad)  # type: ignore[union-attr]

        return Candidate(lambda: (optimizer.step(), x.detach())[1], restore)

    return {
        FLOOR: lambda: floor([grad]),
        OURS: lambda: step(lambda: rc.optim),
        RAI: lambda: step(peer),
    }
