"""The works: what is done, and what is to be reached."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from .attacks import CLASSES, EPSILON, attack_builders, ball_builders, class_builders, vmap_builders
from .candidates import (
    BATCHED,
    CLIP,
    COMPILED,
    FLOOR,
    FOOLBOX,
    FUSED,
    HAND,
    OPTIMIZER,
    OURS,
    PLAIN,
    PLAIN_FUSED,
    RAI,
    RAI_FUSED,
    TOPK,
    TORCHOPT,
    TWO,
    Builders,
    clip_builders,
    group_builders,
    optimizer_builders,
    pure_builders,
    top_q_builders,
    top_q_is_exact,
)
from .tensors import HARD, IMAGES, MILLION, MLP, RESNET50, TEN, THOUSAND, TRANSFORMER, Shape

ELEMENTWISE = 600_000  # bytes of scratch: "a few hundred KB"


@dataclass(frozen=True)
class Goal:
    """A figure, and what it has to reach.

    Attributes:
        figure: its name in the table.
        of: the candidate it is about.
        over: the candidate whose time it is compared with.
        bound: what has to be reached; None: shown without a verdict.
        faster: whether the figure is a speed-up (at least `bound`) or a multiple (at most).
    """

    figure: str
    of: str
    over: str
    bound: float | None
    faster: bool = False


@dataclass(frozen=True)
class MemoryGoal:
    """Most bytes that a call of `of` may take above what it works on, and above `over`'s."""

    of: str
    bound: int | None
    over: str | None = None


@dataclass(frozen=True)
class Work:
    """One work.

    Attributes:
        name: its row in the table.
        case: what varies within the row.
        shapes: of the tensors that it is done on.
        build: shapes -> candidate -> what makes it; only what is asked for is made.
        goals: what to reach in time.
        memory: shapes -> what to reach in memory.
        check: shapes -> whether the result is exact; None: not looked at here.
        full_only: candidates that are too slow for a quick run.
        seconds: share of the time that a work usually gets, where there are many alike.
        device: where.
    """

    name: str
    case: str
    shapes: tuple[Shape, ...]
    build: Callable[[Sequence[Shape]], Builders]
    goals: tuple[Goal, ...] = ()
    memory: Callable[[Sequence[Shape]], tuple[MemoryGoal, ...]] | None = None
    check: Callable[[Sequence[Shape]], bool] | None = None
    full_only: frozenset[str] = field(default_factory=frozenset)
    seconds: float = 1.0
    device: str = "cpu"

    def shrunk(self) -> "Work":
        """The same on a few small tensors, for the tests."""
        shapes = tuple(tuple(min(d, 8) for d in shape) for shape in self.shapes[:8])
        return replace(self, shapes=shapes)


def multiple_of_floor(bound: float | None) -> Goal:
    return Goal("F", OURS, FLOOR, bound)


def speed_up(bound: float | None, of: str = OURS, over: str = RAI, figure: str = "R") -> Goal:
    return Goal(figure, of, over, bound, faster=True)


def multiple(over: str, bound: float | None, of: str = OURS, short: str = "") -> Goal:
    return Goal(f"{short}× {over}", of, over, bound)


# ------------------------------------------------------------------ top-q

FRACTIONS = (0.1, 0.5, 0.9, 0.99)
LARGE = (300.0, 180.0, 50.0, 22.0)


def top_q_works() -> list[Work]:
    works = [
        *_top_q("(1, 1e6)", MILLION, 2.5, LARGE),
        *_top_q("(1, 1e7)", ((1, 10_000_000),), 2.5, slow=True, memory=True, two=True),
        *_top_q("(32, 150528)", ((32, 150_528),), 2.5, memory=True, two=True),
        *_top_q("ResNet-50", RESNET50, 2.5, slow=True, memory=True, whole=True),
        *_top_q("ResNet-50 by rows", RESNET50, 5.0, slow=True),
        *_top_q("(512, 4608)", ((512, 4608),), 4.2, (None, None, 35.0, None)),
        *_top_q("(128, 784)", ((128, 784),), 4.5, (None, None, 18.0, None)),
        *_top_q("(200, 64)", ((200, 64),), 6.0, (None, None, 7.0, None)),
    ]
    for name, data in HARD.items():
        works += _top_q(f"{name} (1, 1e6)", MILLION, 5.0, (), data=data)
    for dtype in (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        works += _top_q(f"{name} (1, 1e6)", MILLION, 2.5, dtype=dtype)
    return works


def _top_q(
    name: str,
    shapes: tuple[Shape, ...],
    most: float,
    least: Sequence[float | None] = (None,) * 4,
    *,
    slow: bool = False,
    memory: bool = False,
    whole: bool = False,
    two: bool = False,
    **options: Any,
) -> list[Work]:
    """A row of top-q: one work for each fraction; with data of its own, exact, and no peer."""
    works = []
    for q, bound in zip(FRACTIONS, least or (None,) * 4, strict=True):
        own = {**options, "q": q, "param_ndim": None if whole else -1}
        own["peers"] = ((RAI,) if least else ()) + ((TWO,) if two and q == 0.9 else ())

        def limits(shapes: Sequence[Shape]) -> tuple[MemoryGoal, ...]:
            return MemoryGoal(OURS, _largest_row(shapes, whole)), MemoryGoal(RAI, None)

        goals = [multiple_of_floor(most)]
        goals += [speed_up(bound)] if least else []
        goals += [speed_up(1.6, TWO, OURS, "R of two threads")] if TWO in own["peers"] else []
        works.append(
            Work(
                f"top-q {name}",
                f"q = {q}",
                shapes,
                partial(top_q_builders, **own),
                tuple(goals),
                memory=limits if memory and q == 0.5 else None,
                check=None if least else partial(top_q_is_exact, q=q, data=options["data"]),
                full_only=frozenset({RAI} if slow else ()),
                seconds=1.0 if least else 0.3,
            )
        )
    return works


def _largest_row(shapes: Sequence[Shape], whole: bool) -> int:
    """Bytes, in float32."""
    sizes = (torch.Size(s if whole else s[1:]).numel() for s in shapes)
    return 4 * max(sizes)


def cuda_works() -> list[Work]:
    """Top-q on a GPU beside `torch.topk` and an in-place pass at the copy bandwidth."""
    kinds: dict[str, tuple[tuple[Shape, ...], int | None]] = {
        "(1, 1e6)": (MILLION, -1),
        "(1, 1e7)": (((1, 10_000_000),), -1),
        "(32, 150528)": (((32, 150_528),), -1),
        "(512, 4608)": (((512, 4608),), -1),
        "ResNet-50": (RESNET50, None),
    }
    goals = (multiple_of_floor(None), speed_up(None, over=TOPK, figure="speed-up over torch topk"))
    return [
        Work(
            f"CUDA top-q {name}",
            f"q = {q}",
            shapes,
            partial(top_q_builders, q=q, param_ndim=param_ndim, peers=(TOPK,), device="cuda"),
            goals,
            device="cuda",
        )
        for name, (shapes, param_ndim) in kinds.items()
        for q in FRACTIONS
    ]


# ------------------------------------------------------------------ attacks


def attack_works() -> list[Work]:
    steps = [
        Work(
            f"attack step {norm}",
            case,
            shapes,
            partial(attack_builders, norm=norm),
            (
                speed_up(1.0, OURS, FOOLBOX, "R over foolbox"),
                multiple(HAND, 2.0),
                speed_up(1.0, OPTIMIZER, FOOLBOX, "optimizer: R over foolbox"),
                multiple(HAND, 2.0, OPTIMIZER, "optimizer: "),
            ),
            seconds=0.5,
        )
        for norm in EPSILON
        for case, shapes in IMAGES.items()
    ]
    classes = [
        Work(
            name,
            case,
            shapes,
            partial(class_builders, name=name),
            (speed_up(1.2),),
            seconds=0.3,
        )
        for name in CLASSES
        for case, shapes in IMAGES.items()
    ]
    balls = [
        Work(
            f"{ball} of (128, 3072)" if ball == "simplex" else f"{ball} ball of (128, 3072)",
            "",
            ((128, 3072),),
            partial(ball_builders, ball=ball),
            (multiple_of_floor(bound),),
            seconds=0.5,
        )
        for ball, bound in (("L1", 18.0), ("L2", 8.0), ("Linf", 3.0), ("simplex", 20.0))
    ]
    vmapped = Work(
        "SLIDE under vmap", "", ((450, 1, 8, 8),), vmap_builders, (multiple(BATCHED, 1.3),)
    )
    return [*steps, *balls, vmapped, *classes]


# ------------------------------------------------------------------ the optimizer


def optimizer_works() -> list[Work]:
    models = {"MLP": MLP, "ResNet-50": RESNET50, "transformer": TRANSFORMER}
    works = [
        _optimizer(inner, name, shapes)
        for inner in ("SGD with momentum", "AdamW")
        for name, shapes in models.items()
    ]
    works.append(
        Work(
            "clamp, scale, bias, SGD: one of 10",
            "",
            TEN,
            partial(optimizer_builders, inner="SGD"),
            (multiple(PLAIN, 1.4), speed_up(None)),
        )
    )
    many = {
        "1000 groups": (THOUSAND, len(THOUSAND)),
        "10000 parameters": (((10,),) * 10_000, 1),
    }
    for name, (shapes, groups) in many.items():
        for construct in (True, False):
            works.append(
                Work(
                    f"{'making' if construct else 'step of'} an optimizer of {name}",
                    "",
                    shapes,
                    partial(group_builders, groups=groups, construct=construct),
                    (multiple(PLAIN, 1.5),),
                    seconds=0.5,
                )
            )
    works.append(
        Work(
            "clip_by_global_norm: transformer",
            "",
            TRANSFORMER,
            clip_builders,
            (multiple(CLIP, 1.05),),
        )
    )
    return works


def _optimizer(inner: str, name: str, shapes: tuple[Shape, ...]) -> Work:
    goals: tuple[Goal, ...] = (
        multiple(PLAIN_FUSED, 1.6),
        multiple(PLAIN, 1.3),
        speed_up(None),
        multiple(PLAIN_FUSED, 1.25, FUSED, "fused: "),
        speed_up(1.5, FUSED, RAI_FUSED, "R, fused in both"),
        multiple(PLAIN_FUSED, 1.15, COMPILED, "compiled: "),
    )

    def limits(shapes: Sequence[Shape]) -> tuple[MemoryGoal, ...]:
        return (
            MemoryGoal(OURS, ELEMENTWISE, PLAIN),
            MemoryGoal(RAI, None, PLAIN),
            MemoryGoal(TORCHOPT, None),  # its momentum is there before the first call
        )

    return Work(
        f"clamp, scale, bias, {inner}: {name}",
        "",
        shapes,
        partial(optimizer_builders, inner=inner),
        goals,
        memory=limits if inner != "AdamW" and shapes is RESNET50 else None,
        full_only=frozenset({COMPILED}),
        seconds=0.6,
    )


# ------------------------------------------------------------------ the pure home


def pure_works() -> list[Work]:
    row = [
        Work(
            "pure step of one of 10",
            f"links: {links}",
            TEN,
            partial(pure_builders, links=links),
            (multiple(TORCHOPT, 1.0),),
            full_only=frozenset({COMPILED}),
            seconds=0.5,
        )
        for links in (1, 3, 6)
    ]
    dict_of_20 = Work(
        "pure step of a dict of 20 of 10, three links",
        "",
        TEN * 20,
        pure_builders,
        (multiple(TORCHOPT, 1.0),),
        full_only=frozenset({COMPILED}),
        seconds=0.5,
    )
    return [*row, dict_of_20]


def all_works() -> list[Work]:
    """Every row of the table."""
    works = [*attack_works(), *top_q_works(), *optimizer_works(), *pure_works()]
    return works + (cuda_works() if torch.cuda.is_available() else [])
