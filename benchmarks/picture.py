"""The pictures: bars for each work, peers side by side, the floor as a line."""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import Normal, Stroke

from .attacks import CLASSES
from .candidates import (
    BATCHED,
    CLIP,
    COMPILED,
    FLOOR,
    FOOLBOX,
    FOREACH,
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
)
from .report import Result, number, summary
from .tensors import HARD
from .timing import Spread

COLORS = {
    HAND: "#8c8c8c",
    PLAIN: "#8c8c8c",
    PLAIN_FUSED: "#c4c4c4",
    FOREACH: "#5f5f5f",
    TOPK: "#8c8c8c",
    CLIP: "#8c8c8c",
    BATCHED: "#8c8c8c",
    OURS: "#0b5fa5",
    OPTIMIZER: "#5aa2dc",
    FUSED: "#5aa2dc",
    TWO: "#5aa2dc",
    COMPILED: "#a8d3f2",
    FOOLBOX: "#b5477e",
    RAI: "#d9731a",
    RAI_FUSED: "#f3b27a",
    TORCHOPT: "#4f9d69",
}
FLOOR_COLOR = "#c0392b"
SHORT = {
    "CUDA top-q ": "",
    "top-q ": "",
    "attack step ": "",
    " ball of (128, 3072)": "\nball",
    " of (128, 3072)": "",
    "clamp, scale, bias, SGD with momentum: ": "SGD\n",
    "clamp, scale, bias, SGD: ": "SGD\n",
    "clamp, scale, bias, AdamW: ": "AdamW\n",
    "pure step of a dict of 20 of 10, three links": "a dict of 20",
    "pure step of ": "",
}


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    results: Sequence[Result]
    shown: Collection[str] = frozenset()  # candidates; all where it is empty
    memory: bool = False
    log: bool = True


def draw(results: Sequence[Result], about: dict[str, Any], folder: Path) -> list[Path]:
    """Write the pictures of what there is; returns their paths.

    `results.png` has what a user does, ours and peers; `results_more.png` all else;
    `scaling.png` how times grow.
    """
    hard = [r for r in results if any(name in r.work for name in HARD)]
    topq = [r for r in results if r.work.startswith("top-q") and r not in hard]
    steps = [r for r in results if r.work.startswith("clamp")]
    named = {kind: [r for r in results if r.work.startswith(kind)] for kind in ("attack", "pure")}
    balls = [r for r in results if "(128, 3072)" in r.work or "vmap" in r.work]
    classes = [r for r in results if r.work in CLASSES]
    shown = {OURS, FUSED, RAI_FUSED, PLAIN_FUSED, TORCHOPT}
    lead = {"q = 0.9"}
    pages = {
        "results.png": [
            [Panel("One step of an attack; below: images a batch", named["attack"])],
            [Panel("Keep the largest tenth of a gradient", [r for r in topq if r.case in lead])],
            [Panel("A training step of clamp, scale, bias and the optimizer", steps, shown)],
        ],
        "results_more.png": [
            [Panel("Top-q in place; below the bars: q, the fraction dropped", topq)],
            [Panel("Top-q in place of (1, 1e6) on data that defeats quickselect", hard, log=False)],
            [Panel("Classes of rai-toolbox; below: images a batch", classes)],
            [
                Panel("Projections, and SLIDE's step under vmap", balls),
                Panel("A pure step on ten elements; below: links", named["pure"]),
            ],
            [Panel("A training step, all ways", steps)],
            [Panel("Memory beside the tensors", [r for r in results if r.megabytes], memory=True)],
            [Panel("Top-q in place on the GPU", [r for r in results if r.work.startswith("CUDA")])],
        ],
    }
    written = []
    for name, rows in pages.items():
        rows = [kept for row in rows if (kept := [panel for panel in row if panel.results])]
        if rows:
            written.append(folder / name)
            _page(rows, about, written[-1])
    if curves := [r for r in results if r.work.startswith("scaling")]:
        written.append(folder / "scaling.png")
        _scaling(curves, about, written[-1])
    return written


def _scaling(results: Sequence[Result], about: dict[str, Any], path: Path) -> None:
    """A curve for each candidate: seconds against the size, both logarithmic."""
    works = [(work, list(group)) for work, group in groupby(results, key=lambda r: r.work)]
    figure = Figure(figsize=(13, 3.9), layout="constrained")
    grid = figure.subplots(1, len(works), squeeze=False)[0]
    for axes, (work, cases) in zip(grid, works, strict=True):
        for name in [n for n in (FLOOR, *COLORS) if n in cases[0].seconds]:
            points = [(float(r.case), r.seconds[name].median) for r in cases if name in r.seconds]
            color = COLORS.get(name, FLOOR_COLOR)
            axes.plot(*zip(*points, strict=True), color=color, marker="o", ms=3, label=name)
        axes.set(xscale="log", yscale="log", title=work.removeprefix("scaling: "))
        axes.grid(color="#dddddd", lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False)
    grid[0].set_ylabel("seconds")
    figure.supxlabel(summary(about), fontsize=8, color="#555555")
    figure.savefig(path, dpi=110)


def _page(rows: list[list[Panel]], about: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(13, 0.6 + 4.2 * len(rows)), layout="constrained")
    parts = figure.subfigures(len(rows), squeeze=False)[:, 0]
    for part, row in zip(parts, rows, strict=True):
        shares = [2 + len(panel.results) for panel in row]
        grid = part.subplots(1, len(row), squeeze=False, width_ratios=shares)[0]
        for axes, panel in zip(grid, row, strict=True):
            _panel(axes, panel)
    parts[-1].supxlabel(summary(about), fontsize=8, color="#555555")
    figure.savefig(path, dpi=110)


def _panel(axes: Axes, panel: Panel) -> None:
    """Clusters of bars, one for each work and case; the cases of a work side by side."""
    x, ticks, used = 0.0, {}, set()
    for work, group in groupby(panel.results, key=lambda r: r.work):
        start, cases = x, list(group)
        for result in cases:
            values, goals = _heights(result, panel.memory)
            values = {n: v for n, v in values.items() if not panel.shown or n in panel.shown}
            for i, (name, value) in enumerate(values.items()):
                numbered = len(panel.results) * len(values) < 40
                _bar(axes, x + i, COLORS[name], value, goals.get(name), numbered=numbered)
                used.add(name)
            if result.case and not panel.memory:
                ticks[x + (len(values) - 1) / 2] = re.findall(r"[\d.]+", result.case)[0]
            x += len(values) + 0.4
        middle, x = (start + x - 1.4) / 2, x + 1.2
        axes.annotate(
            _short(work, panel.memory),
            (middle, 0),
            xycoords=("data", "axes fraction"),
            xytext=(0, -18 if ticks else -5),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=8 if panel.memory else 9,
        )
    _dress(axes, panel, used)
    axes.set_xticks(list(ticks), list(ticks.values()), fontsize=7)
    axes.set_xlim(-1, x - 1)


def _dress(axes: Axes, panel: Panel, used: Iterable[str]) -> None:
    axes.set_title(panel.title, loc="left", fontweight="bold", fontsize=11)
    axes.set_ylabel("megabytes" if panel.memory else "time, multiples of the floor")
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y", color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    high = axes.get_ylim()[1]
    if panel.log:
        low = 0.1 if panel.memory else 0.5
        axes.set_yscale("log")
        axes.set_ylim(low, high * (high / low) ** 0.2)  # room for the legend
    else:
        axes.set_ylim(0, 1.25 * high)
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    if not panel.memory:
        axes.axhline(1, color=FLOOR_COLOR, lw=1.4)
    handles: list[Any] = [Patch(color=COLORS[n], label=n) for n in COLORS if n in used]
    if not panel.memory:
        handles.append(Line2D([], [], color=FLOOR_COLOR, lw=1.4, label="floor: one in-place pass"))
    handles.append(Line2D([], [], color="black", lw=2, label="to reach: at most"))
    columns = 2 if len(panel.results) < 5 else 4 if panel.memory else 6
    axes.legend(handles=handles, ncols=columns, fontsize=8, frameon=False, loc="upper left")


def _heights(result: Result, memory: bool) -> tuple[dict[str, Spread], dict[str, float]]:
    """The bars of one work, and up to where each of them may go."""
    if memory:
        shown = {name: max(0.01, value) for name, value in result.megabytes.items()}
        return {n: Spread(v, v, v, 1) for n, v in shown.items()}, result.megabyte_targets
    return {n: result.floors[n] for n in COLORS if n in result.floors}, result.targets


def _bar(
    axes: Axes, x: float, color: str, value: Spread, goal: float | None, *, numbered: bool
) -> None:
    errors = [[value.median - value.low], [value.high - value.median]]
    style = {"ecolor": "#444444", "elinewidth": 0.7}
    axes.bar(x, value.median, 0.9, color=color, yerr=errors, error_kw=style)
    top = value.high
    if goal is not None:
        effects = [Stroke(linewidth=3.5, foreground="white"), Normal()]
        axes.plot([x - 0.45, x + 0.45], [goal] * 2, "k", lw=2, path_effects=effects, zorder=3)
        top = goal if top < goal < 1.6 * top else top
    if numbered:
        axes.annotate(
            number(value.median),
            (x, top),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=7,
        )


def _short(work: str, memory: bool) -> str:
    """A row's name under its bars."""
    if memory:
        work = work.replace("top-q ", "top-q\n").replace(" with momentum", "")
    for long, short in SHORT.items():
        work = work.replace(long, short)
    if work in CLASSES:
        work = re.sub(r"(?<=[a-z])(?=[A-Z])", "\n", re.sub(r"Optim(izer)?$", "", work))
    name = work.removesuffix(" (1, 1e6)")
    return name if name in HARD else work.replace(" (", "\n(")
