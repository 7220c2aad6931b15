"""What was measured, as a table and as JSON."""

import json
import os
import platform
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .timing import Spread

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Figure:
    """One figure of one work.

    Attributes:
        name: "F", "R", ...
        value: None where it was not measured.
        bound: what it has to reach; None: nothing.
        at_least: whether the bound is the least or the most.
        unit: "" for a ratio, or "MB".
        note: why there is no value, or what else is to be known.
    """

    name: str
    value: Spread | None
    bound: float | None = None
    at_least: bool = False
    unit: str = ""
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the median reaches the bound; None where that cannot be said."""
        if self.bound is None or self.value is None:
            return None
        if self.at_least:
            return self.value.median >= self.bound
        return self.value.median <= self.bound


@dataclass
class Result:
    """All figures of one work.

    Attributes:
        work: its row.
        case: what varies within the row.
        seconds: candidate -> seconds a call.
        floors: candidate -> multiple of the floor.
        targets: candidate -> multiple of the floor that it has to reach.
        megabytes: candidate -> growth of memory in MB.
        megabyte_targets: candidate -> MB that it may take.
        exact: whether the result was right to the bit; None: not looked at.
        missing: candidate -> why it was not measured.
    """

    work: str
    case: str
    seconds: dict[str, Spread] = field(default_factory=dict)
    floors: dict[str, Spread] = field(default_factory=dict)
    targets: dict[str, float] = field(default_factory=dict)
    megabytes: dict[str, float] = field(default_factory=dict)
    megabyte_targets: dict[str, float] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    exact: bool | None = None
    missing: dict[str, str] = field(default_factory=dict)


# ------------------------------------------------------------------ the table


def number(value: float) -> str:
    """Three digits, as short as they go."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if value >= 10 else f"{value:.2f}"


def table(results: Iterable[Result]) -> str:
    """Markdown, a line for each row and figure; cases of a row side by side."""
    lines = [
        "| work | figure | to reach | measured | quartiles within | |",
        "|---|---|---|---|---|---|",
    ]
    for work, group in groupby(results, key=lambda r: r.work):
        rows = list(group)
        kind = _cases([r.case for r in rows])
        label = f"{work}; {kind}" if rows[0].case else work
        names = dict.fromkeys(f.name for r in rows for f in r.figures)
        for name in names:
            found = [f for r in rows for f in r.figures if f.name == name]
            lines.append(_line(label, found, rows if name == "F" else ()))
            label = ""
    return "\n".join(lines)


def _cases(cases: Sequence[str]) -> str:
    """Cases side by side: what is alike in all stands once."""
    stems = {re.sub(r"[\d.]+", "{}", case, count=1) for case in cases}
    if len(stems) > 1 or "{}" not in (stem := stems.pop()):
        return " / ".join(cases)
    return stem.format(" / ".join(re.findall(r"[\d.]+", case)[0] for case in cases))


def _line(label: str, figures: Sequence[Figure], checked: Sequence[Result]) -> str:
    first = figures[0]
    bounds = ["-" if f.bound is None else f"{f.bound:.3g}" for f in figures]
    bounds = bounds[:1] if len(set(bounds)) == 1 else bounds
    sign = "≥" if first.at_least else "≤"
    target = "" if bounds == ["-"] else f"{sign} {' / '.join(bounds)} {first.unit}".rstrip()
    values = [f.value for f in figures]
    measured = " / ".join("-" if v is None else number(v.median) for v in values)
    known = [v for v in values if v is not None and v.median and v.count > 1]
    width = max(((v.high - v.low) / 2 / abs(v.median) for v in known), default=None)
    inexact = [r.case for r in checked if r.exact is False]
    exact = ", exact" if any(r.exact for r in checked) and not inexact else ""
    cells = [
        label,
        first.name,
        target,
        f"{measured} {first.unit}".rstrip() + exact,
        "" if width is None else f"±{100 * width:.0f}%",
        _verdict(figures, inexact),
    ]
    return f"| {' | '.join(cells)} |"


def _verdict(figures: Sequence[Figure], inexact: Sequence[str]) -> str:
    if inexact:
        return f"not reached: not exact for {', '.join(inexact)}"
    if any(f.reached is False for f in figures):
        return "not reached"
    notes = sorted({f.note for f in figures if f.value is None and f.note})
    if notes:
        return "; ".join(notes)
    return "reached" if any(f.reached for f in figures) else ""


# ------------------------------------------------------------------ JSON


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    features: Any = np.show_config(mode="dicts")
    packages = ("torch", "numpy", "torchopt", "rai_toolbox", "foolbox", "rai_chain")
    return {
        "machine": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in packages},
        "numpy_simd": features.get("SIMD Extensions", {}).get("found", []),
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", path.read_text()) if path.exists() else None
    return found[1] if found else platform.processor()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def summary(about: dict[str, Any]) -> str:
    """The machine in two lines."""
    versions = ", ".join(f"{name} {found}" for name, found in about["versions"].items() if found)
    return (
        f"{about['processor']}, {about['cores']} cores, {about['threads']} thread(s); "
        f"numpy with {', '.join(about['numpy_simd']) or 'no SIMD found'}\n"
        f"{about['date'][:10]}; {versions}"
    )


def write_json(path: Path, about: dict[str, Any], results: Sequence[Result]) -> None:
    works = []
    for result in results:
        one = asdict(result)
        for figure, made in zip(result.figures, one["figures"], strict=True):
            made["reached"] = figure.reached
        works.append(one)
    text = json.dumps({**about, "works": works}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
