"""The works: what is done, and what is to be reached."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from .candidates import (
    COMPILED,
    FLOOR,
    FOREACH,
    FUSED,
    OURS,
    RAI,
    RAI_FUSED,
    SGD_FUSED,
    SGD_PLAIN,
    SORT,
    TOPK,
    TORCHOPT,
    Builders,
    l1_ball_builders,
    optimizer_builders,
    pure_builders,
    top_q_builders,
    top_q_is_exact,
)
from .tensors import HARD, HUNDRED_MILLION, MILLION, RESNET50, TEN, THOUSAND, Shape

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
    device: str = "cpu"

    def shrunk(self) -> "Work":
        """The same on a few small tensors, for the tests."""
        shapes = tuple(tuple(min(d, 8) for d in shape) for shape in self.shapes[:8])
        return replace(self, shapes=shapes)


def multiple_of_floor(bound: float | None) -> Goal:
    return Goal("F", OURS, FLOOR, bound)


def speed_up(bound: float | None, of: str = OURS, over: str = RAI, figure: str = "R") -> Goal:
    return Goal(figure, of, over, bound, faster=True)


def multiple(of: str, over: str, bound: float | None, short: str = "") -> Goal:
    return Goal(f"{short}× {over}", of, over, bound)


# ------------------------------------------------------------------ top-q

FRACTIONS = (0.1, 0.5, 0.9, 0.99)
LARGE = (100.0, 60.0, 18.0, 7.0)
SMALL = (60.0, 30.0, 12.0, 3.0)
HALF = (50.0, 30.0, 9.0, 3.0)


def top_q_works() -> list[Work]:
    works = [
        *_top_q("(1, 1e6)", MILLION, 8.0, LARGE),
        *_top_q("(1, 1e7)", ((1, 10_000_000),), 8.0, LARGE, slow=True, memory=True),
        *_top_q("(32, 150528)", ((32, 150_528),), 8.0, LARGE, memory=True),
        *_top_q("ResNet-50", RESNET50, 8.0, LARGE, slow=True, memory=True, whole=True),
        *_top_q("(512, 4608)", ((512, 4608),), 10.0, SMALL),
        *_top_q("(128, 784)", ((128, 784),), 20.0, SMALL),
    ]
    for name, data in HARD.items():
        works += _top_q(f"{name} (1, 1e6)", MILLION, 20.0, data=data, check=True)
    for dtype in (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        works += _top_q(f"{name} (1, 1e6)", MILLION, None, HALF, dtype=dtype)
    return works


def _top_q(
    name: str,
    shapes: tuple[Shape, ...],
    most: float | None,
    least: Sequence[float] = (),
    *,
    slow: bool = False,
    memory: bool = False,
    whole: bool = False,
    check: bool = False,
    **options: Any,
) -> list[Work]:
    """A row of top-q: one work for each fraction."""
    works = []
    for q, bound in zip(FRACTIONS, least or (None,) * 4, strict=True):
        own = {**options, "q": q, "param_ndim": None if whole else -1}
        own["peer"] = RAI if least else None

        def limits(shapes: Sequence[Shape]) -> tuple[MemoryGoal, ...]:
            return MemoryGoal(OURS, _largest_row(shapes, whole)), MemoryGoal(RAI, None)

        works.append(
            Work(
                f"top-q {name}",
                f"q = {q}",
                shapes,
                partial(top_q_builders, **own),
                (multiple_of_floor(most), *((speed_up(bound),) if least else ())),
                memory=limits if memory and q == 0.5 else None,
                check=partial(top_q_is_exact, q=q, data=options["data"]) if check else None,
                full_only=frozenset({RAI} if slow else ()),
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
            partial(top_q_builders, q=q, param_ndim=param_ndim, peer=TOPK, device="cuda"),
            goals,
            device="cuda",
        )
        for name, (shapes, param_ndim) in kinds.items()
        for q in FRACTIONS
    ]


# ------------------------------------------------------------------ the optimizer


def optimizer_works() -> list[Work]:
    return [
        _optimizer("ResNet-50", RESNET50, large=True),
        _optimizer("one of 1e8", HUNDRED_MILLION, large=True),
        _optimizer("1000 of 100", THOUSAND, large=False),
        Work(
            "clamp, scale, bias, SGD: one of 10",
            "",
            TEN,
            partial(optimizer_builders, momentum=0.0),
            (multiple(OURS, SGD_PLAIN, 1.6), speed_up(1.8)),
        ),
    ]


def _optimizer(name: str, shapes: tuple[Shape, ...], large: bool) -> Work:
    both = speed_up(5.0 if not large else None, FUSED, RAI_FUSED, "R, fused in both")
    if large:
        goals: tuple[Goal, ...] = (
            multiple(OURS, SGD_PLAIN, 1.25),
            speed_up(1.35),
            multiple(FUSED, SGD_FUSED, 1.45, "fused: "),
            speed_up(1.8, FUSED, RAI, "fused: R"),
            both,
            multiple(COMPILED, SGD_FUSED, 1.15, "compiled: "),
        )
    else:
        goals = (speed_up(2.5), both)

    def limits(shapes: Sequence[Shape]) -> tuple[MemoryGoal, ...]:
        return (
            MemoryGoal(OURS, ELEMENTWISE, SGD_PLAIN),
            MemoryGoal(RAI, None, SGD_PLAIN),
            MemoryGoal(TORCHOPT, None),  # its momentum is there before the first call
        )

    return Work(
        f"clamp, scale, bias, SGD with momentum: {name}",
        "",
        shapes,
        optimizer_builders,
        goals,
        memory=limits,
        full_only=frozenset({COMPILED} if len(shapes) > 1 else ()),
    )


# ------------------------------------------------------------------ the pure home


def pure_works() -> list[Work]:
    def limits(shapes: Sequence[Shape]) -> tuple[MemoryGoal, ...]:
        return MemoryGoal(OURS, ELEMENTWISE, FOREACH), MemoryGoal(TORCHOPT, None, FOREACH)

    goals = (multiple(OURS, FOREACH, 1.5), multiple(COMPILED, FOREACH, None, "compiled: "))
    works = [
        Work(
            "pure update of three links: ResNet-50",
            "",
            RESNET50,
            pure_builders,
            goals,
            limits,
            full_only=frozenset({COMPILED}),
        )
    ]
    for name, shape in (("(1, 1e6)", (1, 1_000_000)), ("(512, 4608)", (512, 4608))):
        for part in (0.01, 0.5):
            works.append(
                Work(
                    f"L1-ball projection {name}",
                    f"radius = {part} of the norm",
                    (shape,),
                    partial(l1_ball_builders, part=part),
                    (speed_up(5.0, over=SORT, figure="speed-up over torch sort"),),
                )
            )
    return works


def all_works() -> list[Work]:
    """Every row of the table."""
    works = [*top_q_works(), *optimizer_works(), *pure_works()]
    return works + (cuda_works() if torch.cuda.is_available() else [])
