"""Pictures: a pipeline, what was recorded of a run, images in rows.

`pipeline` needs nothing else, and a notebook shows a pipeline so by itself. The others return a
matplotlib `Figure`, which ``pip install "rai_chain[plot]"`` brings: save it with
``figure.savefig(path)``, or look at it in a notebook.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .core.drawing import svg
from .core.pipeline import GradientTransformation
from .data.messages import told

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["images", "pipeline", "records"]


def pipeline(tx: GradientTransformation) -> str:
    """Draw a pipeline: its links from top to bottom, what each sees, and what it keeps.

    A colour is a scope: blue sees elements, green rows, ochre a whole tensor, purple all of them.
    A link with others inside is grey.

    Args:
        tx: any pipeline, or one link.

    Returns:
        An SVG of its own, to be written to a file.

    Raises:
        TypeError: `tx` is no pipeline.

    Example:
        >>> from rai_chain import chain, plot, scale, top_q
        >>> plot.pipeline(chain(top_q(0.9), scale(-1.0)))[:38]
        '<svg xmlns="http://www.w3.org/2000/svg'

    Source: this library.
    """
    if not isinstance(tx, GradientTransformation):
        raise TypeError(f"`tx` must be a pipeline or a link  Got: {told(tx)}")
    return svg(tx)


def records(records: Mapping[str, Tensor], *, log: bool = False) -> "Figure":
    """Draw what was recorded of a run against the steps, one panel a name.

    Args:
        records: name -> numbers (T,), or (N, T) for N runs, such as `rai_chain.records` returns.
        log: whether the vertical axes are logarithmic.

    Returns:
        A matplotlib figure.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError, ValueError: `records` is no such mapping, or empty.

    Example:
        >>> import torch
        >>> from rai_chain import global_norm, plot, record, records
        >>> tx, params = record("norm of the gradient", global_norm), torch.ones(2)
        >>> state = tx.init(params)
        >>> for t in range(4):
        ...     _, state = tx.update(params / (1 + t), state)
        >>> figure = plot.records(records(state))
        >>> figure.axes[0].get_ylabel()
        'norm of the gradient'

    Source: this library.
    """
    _check_tensors("records", records, "numbers (T,) or (N, T)", (1, 2))
    figure = _figure(figsize=(6.4, 2.0 * len(records) + 0.4))
    panels = figure.subplots(len(records), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, values) in zip(panels, records.items(), strict=True):
        for run in values.detach().double().cpu().reshape(-1, values.shape[-1]):
            axes.plot(range(len(run)), run.numpy(), linewidth=1.2)
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
        if log:
            axes.set_yscale("log")
    panels[-1].set_xlabel("step")
    return figure


def images(rows: Mapping[str, Tensor], titles: Sequence[str] = ()) -> "Figure":
    """Draw rows of images, such as those before an attack, what it changed, and those after it.

    A row with values below 0 is drawn from blue over white, which is 0, to red; another from 0,
    black, to 1 or its largest value, white.

    Args:
        rows: name -> images (N, H, W), (N, 1, H, W), or (N, 3, H, W) with colours in [0, 1].
        titles: what stands above each column, N strings; empty for nothing.

    Returns:
        A matplotlib figure.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError, ValueError: rows that are no images, or not equally many.

    Example:
        >>> import torch
        >>> from rai_chain import plot
        >>> x = torch.rand(4, 1, 8, 8)
        >>> figure = plot.images({"before": x, "after": x.clamp(0.2, 0.8)}, titles=list("abcd"))
        >>> len(figure.axes)
        8

    Source: this library.
    """
    _check_tensors("rows", rows, "images (N, H, W) or (N, C, H, W)", (3, 4))
    counts = {name: len(row) for name, row in rows.items()}
    count = next(iter(counts.values()))
    if set(counts.values()) != {count} or count == 0:
        raise ValueError(f"`rows` must have equally many images, at least one  Got: {counts}")
    if titles and len(titles) != count:
        raise ValueError(f"`titles` must be as many as images, {count}  Got: {len(titles)}")
    for name, row in rows.items():
        if row.ndim == 4 and row.shape[1] not in (1, 3):
            raise ValueError(f"`rows` must have 1 or 3 channels  Got: {told(row)} for {name!r}")
    figure = _figure(figsize=(1.3 * count + 0.4, 1.3 * len(rows) + (0.3 if titles else 0.0)))
    grid = figure.subplots(len(rows), count, squeeze=False)
    for panels, (name, row) in zip(grid, rows.items(), strict=True):
        row = row.detach().float().cpu()
        largest = float(row.abs().nan_to_num(0.0, 0.0, 0.0).max()) or 1.0
        style: dict[str, Any] = {"cmap": "gray", "vmin": 0.0, "vmax": max(1.0, largest)}
        if bool((row < 0).any()):
            style = {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest}
            if row.ndim == 4 and row.shape[1] == 3:  # colours say which channel, not which sign
                row, style = 0.5 + row / (2 * largest), {}
        for axes, image in zip(panels, row, strict=True):
            image = image.movedim(0, -1).squeeze(-1) if image.ndim == 3 else image
            axes.imshow(image.numpy(), **style)
            axes.set_xticks([])
            axes.set_yticks([])
        panels[0].set_ylabel(name)
    for axes, title in zip(grid[0], titles, strict=False):
        axes.set_title(title, fontsize=10)
    return figure


def _figure(**options: Any) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'rai_chain.plot needs matplotlib: pip install "rai_chain[plot]"'
        ) from error
    return Figure(layout="constrained", **options)


def _check_tensors(name: str, given: Any, kind: str, ndims: tuple[int, ...]) -> None:
    if not isinstance(given, Mapping):
        raise TypeError(f"`{name}` must be a dict name -> {kind}  Got: {told(given)}")
    if not given:
        raise ValueError(f"`{name}` must have at least one entry  Got: {given}")
    for key, value in given.items():
        text = f"`{name}` must be a dict name -> {kind}  Got: {told(value)} for {key!r}"
        if not isinstance(value, Tensor):
            raise TypeError(text)
        if value.ndim not in ndims or value.is_complex():
            raise ValueError(text)
