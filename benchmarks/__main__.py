"""Measure everything, print the table, write JSON and pictures."""

import argparse
import gc
import re
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from .candidates import FLOOR
from .memory import measure_apart
from .picture import draw
from .report import MEGABYTE, Figure, Result, machine, summary, table, write_json
from .scaling import scaling_works
from .timing import (
    FULL,
    QUICK,
    Candidate,
    Effort,
    NotAvailableError,
    measure,
    on_cpu,
    on_cuda,
    ratio,
    spread,
)
from .works import Work, all_works


def run(work: Work, effort: Effort, *, quick: bool = False, memory: bool = True) -> Result:
    """Measure one work."""
    result = Result(work.name, work.case)
    _time(work, effort, quick, result)
    if work.memory is not None and memory:
        _weigh(work, quick, result)
    if work.check is not None:
        result.exact = work.check(work.shapes)
    return result


def _time(work: Work, effort: Effort, quick: bool, result: Result) -> None:
    candidates: dict[str, Candidate] = {}
    for name, build in work.build(work.shapes).items():
        if quick and name in work.full_only:
            result.missing[name] = "only in a full run"
            continue
        try:
            candidates[name] = build()
        except NotAvailableError as reason:
            result.missing[name] = f"not available: {reason}"
    effort = replace(effort, seconds=effort.seconds * work.seconds)
    samples = measure(candidates, effort, on_cuda if work.device == "cuda" else on_cpu)
    for name, times in samples.items():
        result.seconds[name] = spread([t for t in times if t is not None])
        result.floors[name] = ratio(samples, name, FLOOR)
    for goal in work.goals:
        absent = [result.missing[n] for n in (goal.of, goal.over) if n in result.missing]
        above, below = (goal.over, goal.of) if goal.faster else (goal.of, goal.over)
        value = None if absent else ratio(samples, above, below)
        note = absent[0] if absent else ""
        result.figures.append(Figure(goal.figure, value, goal.bound, goal.faster, note=note))
        if goal.bound is not None and not absent:
            base = result.floors[goal.over].median
            height = base / goal.bound if goal.faster else base * goal.bound
            result.targets[goal.of] = min(height, result.targets.get(goal.of, height))


def _weigh(work: Work, quick: bool, result: Result) -> None:
    assert work.memory is not None
    goals = [g for g in work.memory(work.shapes) if g.bound is not None or not quick]
    peaks = {
        name: measure_apart(work, name)
        for name in dict.fromkeys(n for g in goals for n in (g.over, g.of) if n)
        if name not in result.missing
    }
    for goal in goals:
        if goal.of not in peaks:
            continue
        base = peaks[goal.over].growth if goal.over else 0
        growth = result.megabytes[goal.of] = (peaks[goal.of].growth - base) / MEGABYTE
        above = f", above {goal.over}" if goal.over else ""
        bound = None if goal.bound is None else goal.bound / MEGABYTE
        name = f"memory of {goal.of}{above}"
        result.figures.append(Figure(name, spread([growth]), bound, unit="MB"))
        if bound is not None:
            result.megabyte_targets[goal.of] = bound
            fresh = spread([peaks[goal.of].fresh / MEGABYTE])
            result.figures.append(Figure("new pages in a later call", fresh, unit="MB"))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, slow peers out")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent, help="folder for JSON and pictures"
    )
    parser.add_argument("--only", default="", metavar="PATTERN", help="regex: works to measure")
    options = parser.parse_args(arguments)

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="TypedStorage is deprecated")  # rai-toolbox
    start = time.perf_counter()
    about = {**machine(), "quick": options.quick}
    every = [*all_works(), *scaling_works()]
    works = [w for w in every if re.search(options.only, w.name, re.IGNORECASE)]
    results = []
    progress = tqdm(works, unit="work", dynamic_ncols=True)
    for work in progress:
        progress.set_description(f"{work.name} {work.case}".strip())
        results.append(run(work, QUICK if options.quick else FULL, quick=options.quick))
        gc.collect()  # it is off while a work is timed
    about["minutes"] = round((time.perf_counter() - start) / 60, 1)

    print(table(results))
    print(f"\n{summary(about)}; {about['minutes']} minutes")
    if about["gpu"] is None:
        print("No GPU here: nothing was measured on one.")
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / "results.json", about, results)
    for path in draw(results, about, options.out):
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
