"""The drawn pictures of the pages: rows, scopes, and what each link does to a gradient."""

import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

TESTS = Path(__file__).parent.parent / "tests"
COLORS = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377"]


@functools.cache
def laws() -> Any:
    """The tests of the links, which know a value for every hyperparameter."""
    sys.path[:0] = [str(TESTS), str(TESTS / "links")]
    return importlib.import_module("test_laws")


def drawn() -> list[str]:
    """The links that have a picture."""
    return sorted(laws().FACTORIES)


def sample(seed: int = 0) -> Tensor:
    """A gradient (6, 16): a wave, noise, and rows of different size."""
    noise = torch.randn(6, 16, generator=torch.Generator().manual_seed(seed))
    wave = torch.sin(torch.arange(16) / 2.5) * torch.linspace(0.3, 1.5, 6)[:, None]
    return wave + 0.35 * noise


def parameters(tx: Any) -> Tensor:
    """What the gradient is of: one row for a link that takes a gradient for each example."""
    return sample(9)[0] if tx.reduces else sample(9)


def asked(tx: Any, gradient: Tensor) -> dict[str, Any]:
    """The inputs that a link asks for by name."""
    given = {"value": torch.tensor(1.0), "grad": gradient, "grad_fn": lambda tree: gradient}
    return {name: given[name] for name in tx.needs}


def before_and_after(name: str) -> Figure:
    """What a link makes of a gradient, or of parameters: at first and, where it differs, later."""
    tx = laws().make(name)
    gradient = tx.phase == "gradient"
    params = parameters(tx)
    state, panels = tx.init(params), []
    for t in range(5):
        g = sample() + 0.3 * sample(t) if t else sample()
        given = asked(tx, g)
        new, state = (
            tx.update(g, state, params=params, **given)
            if gradient
            else tx.step(params, -0.3 * g, state, **given)
        )
        if t == 0:
            panels += [("gradient" if gradient else "parameter", g if gradient else params)]
            panels += [("after" if gradient else "after a step", new)]
        params = params if gradient else new
    if not gradient or ((state != () and "step" not in state) or len(state or ()) > 1):
        panels += [("after 5 steps", new)]
    figure = Figure(figsize=(2.7 * len(panels), 1.75), layout="constrained")
    for ax, (title, shown) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        image(ax, shown, title)
    return figure


def image(ax: Axes, shown: Tensor, title: str, fontsize: int = 9) -> None:
    """One matrix, blue below 0 and red above, with its largest magnitude in the title."""
    shown = shown.reshape(-1, shown.shape[-1])
    largest = float(shown.abs().max())
    ax.imshow(shown, cmap="RdBu_r", vmin=-(largest or 1), vmax=largest or 1, aspect="auto")
    ax.set_title(f"{title}  (max {largest:.3g})", fontsize=fontsize)
    ax.set_xticks([])
    ax.set_yticks([])


def cells(ax: Axes, color: Callable[[int, int, int], int], title: str) -> None:
    """A tensor (2, 2, 3), drawn as two matrices; equal colors are one row."""
    for i in range(2):
        for j in range(2):
            for k in range(3):
                x, y = k, -(j + 2.6 * i)
                c = COLORS[color(i, j, k) % len(COLORS)]
                shade = 0.55 if color(i, j, k) >= len(COLORS) else 1.0
                ax.bar(x, 0.9, 0.94, bottom=y, align="edge", color=c, alpha=shade)
    ax.set_xlim(-0.2, 3.2)
    ax.set_ylim(-3.9, 1.3)
    ax.set_aspect("equal")
    ax.axis("off")
    ax.set_title(title, fontsize=10)


def rows() -> Figure:
    """What is a row of a tensor (2, 2, 3), for each `param_ndim`."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    kinds: list[tuple[str, Callable[[int, int, int], int]]] = [
        ("param_ndim=None\n1 row of 12", lambda i, j, k: 0),
        ("-1 (default)\n2 rows of 6", lambda i, j, k: i),
        ("-2\n4 rows of 3", lambda i, j, k: 2 * i + j),
        ("-3\n12 rows of 1", lambda i, j, k: 6 * i + 3 * j + k),
    ]
    for ax, (title, color) in zip(figure.subplots(1, 4), kinds, strict=True):
        cells(ax, color, title)
    return figure


def scopes() -> Figure:
    """What one call of a link's function sees of two parameters."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    kinds = ["elementwise", "rowwise", "leafwise", "treewise"]
    for place, (ax, kind) in enumerate(zip(figure.subplots(1, 4), kinds, strict=True)):
        number = 0
        for leaf, (height, width) in enumerate([(3, 4), (1, 4)]):
            for i in range(height):
                for j in range(width):
                    same = [number, i + 3 * leaf, leaf, 0][place]
                    box = {"color": COLORS[same % len(COLORS)], "ec": "white"}
                    ax.bar(j, 0.9, 0.94, bottom=-(i + 4 * leaf), align="edge", **box)
                    number += 1
        ax.text(4.2, -0.6, "weight", fontsize=8, color="gray")
        ax.text(4.2, -3.6, "bias", fontsize=8, color="gray")
        ax.set_xlim(-0.2, 5.9)
        ax.set_ylim(-4.3, 1.2)
        ax.set_aspect("equal")
        ax.axis("off")
        ax.set_title(kind, fontsize=10)
    return figure


def figures(block: Any, variables: dict[str, Any], conf: dict[str, Any]) -> str:
    """The figures of an example that no window holds, such as those of `rai_chain.plot`."""
    from sphinx_gallery.scrapers import figure_rst

    paths = []
    for value in list(variables["example_globals"].values()):
        if not isinstance(value, Figure) or value.get_label() == "shown":
            continue
        value.set_label("shown")
        if value.canvas.manager is None:  # else the scraper of pyplot's figures takes it
            paths.append(next(variables["image_path_iterator"]))
            value.savefig(paths[-1], dpi=150)
    made: str = figure_rst(paths, conf["src_dir"])
    return made


def _get_sg_image_scraper() -> Callable[..., str]:
    """What sphinx-gallery asks a module for."""
    return figures


def draw(folder: Path) -> None:
    """Draw all of them."""
    for name in drawn():
        before_and_after(name).savefig(folder / f"{name}.png", dpi=100)
    rows().savefig(folder / "rows.svg")
    scopes().savefig(folder / "scopes.svg")
