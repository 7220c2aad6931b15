"""A pipeline drawn: its links from top to bottom, what each sees, and what it keeps."""

import re
from html import escape
from typing import Any, NamedTuple

from ..data.hyper import show
from ..data.rows import UNSET

COLORS = {"element": "#4477aa", "row": "#228833", "leaf": "#b8860b", "tree": "#aa3377"}
SEES = {"element": "each element", "leaf": "a whole tensor", "tree": "all tensors"}
CHAR, LINE, PAD, GAP = 7.3, 17, 12, 24  # pixels, of a monospace font of 12
WRAP = 64  # characters of a line


class Box(NamedTuple):
    """What is drawn of one link."""

    title: list[str]
    notes: list[str]
    color: str
    inside: "list[tuple[str, list[Box]]]"  # prefix -> the links of a pipeline

    @property
    def width(self) -> float:
        """Its least width."""
        own = CHAR * max(map(len, [*self.title, *self.notes])) + 2 * PAD
        return max([own, *(b.width + 2 * PAD for _, boxes in self.inside for b in boxes)])

    @property
    def height(self) -> float:
        """Its height."""
        return LINE * (len(self.title) + len(self.notes)) + PAD + self.held

    @property
    def held(self) -> float:
        """The height of what is inside."""
        return sum(
            LINE * bool(prefix) + PAD + sum(box.height for box in boxes) + GAP * (len(boxes) - 1)
            for prefix, boxes in self.inside
        )


def box_of(link: Any, name: str) -> Box:
    """What is drawn of a link: its name and values, what it sees, what it keeps."""
    own = getattr(link, "options", link.values)
    shown = link.name if name.startswith(f"{link.name}_") else f"{name}: {link.name}"
    title = [f"{shown}("]
    for i, (key, value) in enumerate(own.items()):
        said = re.sub(r"<(?:function )?([^<>]*?) at 0x\w+>", r"\1", show(value))
        part = f"{key}={said}" + (", " if i + 1 < len(own) else "")
        if len(title[-1] + part) > WRAP:
            title.append("    ")
        title[-1] += part
    title[-1] += ")"
    rows = getattr(link, "param_ndim", UNSET)
    sees = SEES.get(link.scope, f"each row: param_ndim is {rows}")
    notes = [] if link.inners else [f"sees {sees}"]
    once = link.once | link.counters(link.values)
    notes += [f"keeps {', '.join(sorted(link.trees))} for each tensor"] if link.trees else []
    notes += [f"keeps {', '.join(sorted(once))} once"] if once else []
    inside = [
        (prefix, [box_of(k, n) for k, n in zip(t.links, t.names, strict=True)])
        for prefix, t in link.inners.items()
    ]
    return Box(title, notes, "#666666" if inside else COLORS[link.scope], inside)


def written(x: float, y: float, text: str, style: str = "") -> str:
    """A line of text."""
    return f'<text x="{x:g}" y="{y:g}" xml:space="preserve" {style}>{escape(text)}</text>'


def arrow(x: float, y: float, length: float = GAP) -> str:
    """An arrow downwards."""
    end = y + length - 2
    head = f"M{x - 4:g},{end - 5:g} L{x:g},{end:g} L{x + 4:g},{end - 5:g}"
    return f'<path d="M{x:g},{y + 2:g} V{end:g} {head}" fill="none" stroke="#777777"/>'


def draw_boxes(boxes: list[Box], x: float, y: float, width: float) -> list[str]:
    """Boxes, one below the other, with arrows between."""
    parts = []
    for i, box in enumerate(boxes):
        if i:
            parts.append(arrow(x + width / 2, y - GAP))
        parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{box.height:g}" rx="4" '
            f'fill="#ffffff" stroke="{box.color}"/>'
            f'<rect x="{x:g}" y="{y:g}" width="5" height="{box.height:g}" fill="{box.color}"/>'
        )
        line = y + LINE
        for text in box.title:
            parts.append(written(x + PAD, line, text, 'font-weight="bold"'))
            line += LINE
        for text in box.notes:
            parts.append(written(x + PAD, line, text, 'fill="#555555"'))
            line += LINE
        top = line - LINE + PAD
        for prefix, held in box.inside:
            if prefix:
                parts.append(written(x + PAD, top + PAD / 2, prefix, f'fill="{box.color}"'))
                top += LINE
            parts += draw_boxes(held, x + PAD, top, width - 2 * PAD)
            top += sum(b.height for b in held) + GAP * (len(held) - 1) + PAD
        y += box.height + GAP
    return parts


def svg(tx: Any) -> str:
    """The pipeline as an SVG: what enters, its links, what leaves."""
    boxes = [box_of(link, name) for link, name in zip(tx.links, tx.names, strict=True)]
    phases = {link.phase for link in tx.links}
    ends = ["parameters" if phases == {"parameter"} else "gradients"]
    ends.append(
        "new parameters"
        if phases - {"gradient"}
        else "updates, to be added to the parameters"
        if tx.updates
        else "gradients, or updates to be added"
    )
    width = max([*(CHAR * len(end) for end in ends), *(box.width for box in boxes)])
    height = sum(box.height + GAP for box in boxes) + GAP + 2 * LINE + 2 * PAD
    middle, top = PAD + width / 2, PAD + LINE + GAP
    centered = 'text-anchor="middle" fill="#555555"'
    parts = [written(middle, PAD + LINE - 4, ends[0], centered), arrow(middle, PAD + LINE)]
    parts += draw_boxes(boxes, PAD, top, width)
    end = top + sum(box.height + GAP for box in boxes) - GAP * bool(boxes)
    parts += [arrow(middle, end), written(middle, end + GAP + LINE - 4, ends[1], centered)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width + 2 * PAD:g}" '
        f'height="{height:g}" viewBox="0 0 {width + 2 * PAD:g} {height:g}" '
        'font-family="monospace" font-size="12">'
        f'<rect width="100%" height="100%" fill="#ffffff"/>{"".join(parts)}</svg>'
    )


class Drawn:
    """What has a picture in a notebook."""

    def _repr_html_(self) -> str:
        return svg(self)
