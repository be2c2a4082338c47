"""Write results.md, the papers' comparisons beside their own numbers: ``python docs/results.py``.

`benchmarks/papers/results` has a JSON file for each sweep that was run (`benchmarks/papers/keep.py`
writes them), ``figures/papers.json`` what is shown of it, the paper's numbers, and how to read it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from performance import table

HERE = Path(__file__).parent
KEPT = HERE.parent / "benchmarks" / "papers" / "results"
INTRODUCTION = """# The papers' comparisons

SmolLM2-135M-Instruct on CPUs, by the sweeps in `benchmarks/papers`: the effect at a scale that
anyone can run, no score of a public benchmark. Ours are means over seeds with 95 % Student t
intervals, and "noise" where the difference to the first row, paired by seed, has an interval that
holds 0. The papers' models have 3 to 8 billion parameters, so their numbers are of another size:
compare the order of rows.

This page is made by `docs/results.py`.
"""


def page(kept: Path = KEPT) -> str:
    """Return the page."""
    papers = json.loads((HERE / "figures" / "papers.json").read_text(encoding="utf-8"))
    sections = [section(name, papers[name], kept / f"{name}.json") for name in papers]
    return "\n".join([INTRODUCTION, *sections])


def section(name: str, told: dict[str, Any], path: Path) -> str:
    """Return a sweep's heading, how it was run, its table and what it says."""
    lines = [f"## {told['title']}", ""]
    if not path.exists():
        lines.append(f"`pyfast sweep benchmarks/papers/{name}.json`: not run yet.")
        return "\n".join([*lines, ""])
    found = json.loads(path.read_text(encoding="utf-8"))
    least, most = (found["minutes_of_training"][end] for end in ("least", "most"))
    lines += [
        f"`pyfast sweep benchmarks/papers/{name}.json`, {found['runs']} runs, {found['date']}, "
        f"{found['machine']}; {least:g} to {most:g} minutes of training steps a run. "
        f"The paper: {told['paper']['source']}.",
        "",
        table(*cells(found["comparison"], told)),
        "",
        told["reading"],
        "",
    ]
    return "\n".join(lines)


def cells(comparison: dict[str, Any], told: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows: ours, then the paper's."""
    theirs = [f"paper: {column}" for column in told["paper"]["columns"]]
    rows = []
    for row in sorted(comparison["rows"], key=lambda row: row["label"] != comparison["baseline"]):
        ours = [ours_of(row["metrics"].get(metric)) for metric in told["shown"].values()]
        paper = told["paper"]["rows"].get(row["label"], ["-"] * len(theirs))
        rows.append([row["label"], str(len(row["seeds"])), *ours, *paper])
    return ["", "seeds", *told["shown"], *theirs], rows


def ours_of(metric: dict[str, Any] | None) -> str:
    """Lay out a metric: mean, interval over seeds, and the difference to the baseline."""
    if metric is None:
        return "-"
    digits = ".3f" if abs(metric["mean"]) < 100 else ",.0f"
    said = f"{metric['mean']:{digits}}"
    if metric.get("low") is not None:
        said += f" [{metric['low']:{digits}}, {metric['high']:{digits}}]"
    difference = metric.get("difference")
    if difference and difference.get("low") is not None:
        noise = difference["low"] <= 0 <= difference["high"]
        said += f"<br>{difference['mean']:+{digits}}" + (" noise" if noise else " not noise")
    return said


if __name__ == "__main__":
    (HERE / "results.md").write_text(page(), encoding="utf-8")
