"""How times grow: with elements, tensors, links and the members of a `vmap`."""

from collections.abc import Sequence
from functools import partial

import torch

import rai_chain as rc

from .candidates import (
    FLOOR,
    HAND,
    OURS,
    PLAIN,
    RAI,
    TORCHOPT,
    Builders,
    floor,
    optimizer_builders,
    pure_builders,
    top_q_builders,
)
from .tensors import Shape, normal
from .timing import Candidate
from .works import Work


def member_builders(shapes: Sequence[Shape]) -> Builders:
    """A pure step of each member of an ensemble: under `vmap`, and one after the other."""
    (params,), (grads,) = normal(shapes), normal(shapes, seed=1)
    tx = rc.chain(rc.top_q(0.9), rc.clip_by_norm(1.0), rc.scale(-0.1))
    state = tx.init(params[0])
    each = torch.func.vmap(lambda p, g: tx.step(p, g, state)[0])
    return {
        FLOOR: lambda: floor([grads]),
        OURS: lambda: Candidate(lambda: each(params, grads)),
        HAND: lambda: Candidate(
            lambda: [tx.step(p, g, state)[0] for p, g in zip(params, grads, strict=True)]
        ),
    }


def only(build: partial[Builders], names: Sequence[str], shapes: Sequence[Shape]) -> Builders:
    return {name: made for name, made in build(shapes).items() if name in names}


def scaling_works() -> list[Work]:
    select = partial(top_q_builders, q=0.9, peers=(RAI,))
    step = partial(optimizer_builders, inner="SGD")
    shapes: dict[str, list[tuple[str, tuple[Shape, ...], partial[Builders]]]] = {
        "scaling: top-q, elements": [
            (f"{10**n}", ((1, 10**n),), partial(only, select, (FLOOR, OURS, RAI)))
            for n in range(3, 8)
        ]
        + [("100000000", ((1, 10**8),), partial(only, select, (FLOOR, OURS)))],
        "scaling: optimizer step, tensors of 100": [
            (f"{n}", ((100,),) * n, partial(only, step, (FLOOR, PLAIN, OURS, RAI)))
            for n in (1, 10, 100, 1000, 10_000)
        ],
        "scaling: pure step of 10, links": [
            (
                f"{n}",
                ((10,),),
                partial(only, partial(pure_builders, links=n), (FLOOR, OURS, TORCHOPT)),
            )
            for n in (1, 2, 5, 10, 20, 50)
        ],
        "scaling: pure step of 1000, members": [
            (f"{n}", ((n, 1000),), partial(member_builders)) for n in (1, 4, 16, 64, 256)
        ],
    }
    return [
        Work(name, case, sizes, build, seconds=0.15)
        for name, rows in shapes.items()
        for case, sizes, build in rows
    ]
