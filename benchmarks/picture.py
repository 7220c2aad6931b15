"""The pictures: bars for each work, peers side by side, the floor as a line."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import Normal, Stroke

from .candidates import (
    COMPILED,
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
)
from .report import Result, number, summary
from .tensors import HARD
from .timing import Spread

COLORS = {
    SGD_PLAIN: "#8c8c8c",
    SGD_FUSED: "#c4c4c4",
    FOREACH: "#5f5f5f",
    SORT: "#8c8c8c",
    TOPK: "#8c8c8c",
    OURS: "#0b5fa5",
    FUSED: "#5aa2dc",
    COMPILED: "#a8d3f2",
    RAI: "#d9731a",
    RAI_FUSED: "#f3b27a",
    TORCHOPT: "#4f9d69",
}
FLOOR_COLOR = "#c0392b"
SHORT = {
    "CUDA top-q ": "",
    "top-q ": "",
    "L1-ball projection ": "",
    "clamp, scale, bias, SGD with momentum: ": "step with momentum\n",
    "clamp, scale, bias, SGD: ": "step\n",
    "pure update of three links: ": "pure update\n",
}


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    results: Sequence[Result]
    memory: bool = False
    log: bool = True


def draw(results: Sequence[Result], about: dict[str, Any], folder: Path) -> list[Path]:
    """Write `results.png` (speed) and `results_more.png` (the rest); returns what was written."""
    cuda = [r for r in results if r.work.startswith("CUDA")]
    hard = [r for r in results if any(name in r.work for name in HARD)]
    topq = [r for r in results if r.work.startswith("top-q") and r not in hard]
    steps = [r for r in results if r.work.startswith(("clamp", "pure"))]
    balls = [r for r in results if r.work.startswith("L1")]
    memory = [r for r in results if r.megabytes]
    pages = {
        "results.png": [
            [Panel("Top-q in place; below the bars: q, the fraction dropped", topq)],
            [
                Panel(
                    "A step of clamp, scale, bias, SGD; and the pure update of the three links",
                    steps,
                )
            ],
        ],
        "results_more.png": [
            [Panel("Top-q in place of (1, 1e6) on data that defeats quickselect", hard, log=False)],
            [
                Panel("Projection onto the L1 ball; radius over norm", balls),
                Panel("Memory that a call takes beside its tensors", memory, memory=True),
            ],
            [Panel("Top-q in place on the GPU", cuda)],
        ],
    }
    written = []
    for name, rows in pages.items():
        rows = [kept for row in rows if (kept := [panel for panel in row if panel.results])]
        if rows:
            written.append(folder / name)
            _page(rows, about, written[-1])
    return written


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
            for i, (name, value) in enumerate(values.items()):
                numbered = len(panel.results) < 12
                _bar(axes, x + i, COLORS[name], value, goals.get(name), numbered=numbered)
                used.add(name)
            if result.case and not panel.memory:
                digits = "".join(c for c in result.case if c in "0123456789.")
                ticks[x + (len(values) - 1) / 2] = digits
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
    name = work.removesuffix(" (1, 1e6)")
    return name if name in HARD else work.replace(" (", "\n(")
