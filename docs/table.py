"""Writes the page of benchmarks of what benchmarks/results.json holds."""

import json
from pathlib import Path

HERE = Path(__file__).parent


def milliseconds(spread: dict) -> str:
    return "" if spread is None else f"{1e3 * spread['median']:.4g}"


def write() -> None:
    """One row a work and case, one column a candidate; the pictures beside."""
    results = json.loads((HERE.parent / "benchmarks" / "results.json").read_text())
    lines = [
        "# Benchmarks",
        "",
        f"Median milliseconds a call, on {results['processor']}, {results['threads']} thread(s), "
        f"{results['date'][:10]}; "
        + ", ".join(f"{name} {version}" for name, version in results["versions"].items())
        + ". `make bench` measures again; {doc}`speed` says what each work is.",
        "",
        "![times as multiples of one in-place pass](../benchmarks/results.png)",
        "",
        "![hard data, projection, memory](../benchmarks/results_more.png)",
        "",
        "![seconds against sizes](../benchmarks/scaling.png)",
        "",
    ]
    groups: dict[tuple[str, ...], list[dict]] = {}
    for work in results["works"]:
        groups.setdefault(tuple(work["seconds"]), []).append(work)
    for candidates, works in groups.items():
        lines += [
            f"| work | case | {' | '.join(candidates)} |",
            "|---" * (2 + len(candidates)) + "|",
        ]
        for work in works:
            cells = [milliseconds(work["seconds"][name]) for name in candidates]
            lines.append(f"| {work['work']} | {work['case']} | {' | '.join(cells)} |")
        lines.append("")
    (HERE / "benchmarks.md").write_text("\n".join(lines))
