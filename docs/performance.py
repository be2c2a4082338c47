"""Write performance.md from the figures: ``python docs/performance.py [runs/benchmarks]``.

docs/figures has a JSON file for each table, with its date and its machine. Given the folder that
`make bench` wrote, the selectors' figures are taken from there first, with today's date; the notes
on the old ones go.
"""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FIGURES = ("select", "step", "losses", "sketch")
INTRODUCTION = """# Speed

Every figure here had its answer checked first and its peer timed in the same run
(`benchmarks/harness.py`: the least of several repeats of each, in turn). The target is what we set
out to reach, met or missed. Of the peers, fasterpam is the package kmedoids', App. E the code that
AMPO's appendix prints, onebatch a package of that name; numpy is a page of numpy. How times and
memory grow with n, d, k and threads: [how the selectors grow](scaling.md).

This page is made by `docs/performance.py` from `docs/figures`.
"""
CLOSING = """## How good the answers are

Ten starts of Opt-Select's default search found the optimum, proved by integer program, of 160 in
160 groups with 2-dimensional latents; FasterPAM's search (`search="eager"`) of 155.
"""


def page(folder: Path = HERE / "figures") -> str:
    """Return the page."""
    sections = [INTRODUCTION]
    for name in FIGURES:
        figures = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        rows = figures["rows"]
        body = table(figures["columns"], rows) if "columns" in figures else timings(rows)
        said = f"{figures['made_by']}, {figures['date']}, {figures['machine']['name']}."
        notes = f" {figures['notes']}" if figures.get("notes") else ""
        sections.append(f"## {figures['title']}\n\n{said}{notes}\n\n{body}\n")
    return "\n".join([*sections, CLOSING])


def timings(rows: list[dict[str, Any]]) -> str:
    """Lay out rows of the harness: times of an item."""
    columns = ["case", "ours", "peer", "ratio", "target", "times the limit", "checked"]
    cells = []
    for row in rows:
        limit = f"{row['ours'] / row['limit']:.1f} ({row['bound_by']})" if row["limit"] else "-"
        cells.append(
            [
                row["name"],
                time(row["ours"]) + ("" if row["unit"] == "problem" else f" a {row['unit']}"),
                f"{row['peer']}: {time(row['theirs'])}",
                f"{row['ratio']:.{1 if row['ratio'] < 100 else 0}f}x",
                targets(row),
                limit,
                row["checked"],
            ]
        )
    return table(columns, cells)


def time(seconds: float) -> str:
    """Return a time in the unit that reads best, to three digits."""
    for unit, size in (("s", 1), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{float(f'{seconds / size:.3g}'):g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def targets(row: dict[str, Any]) -> str:
    """Say which targets a row has, and whether it met them."""
    said = []
    if row["target"] is not None:
        met = row["ours"] <= row["target"]
        said.append(f"<= {time(row['target'])}: {'met' if met else 'missed'}")
    if row["target_ratio"] is not None:
        met = row["ratio"] >= row["target_ratio"]
        said.append(f">= {row['target_ratio']:g}x: {'met' if met else 'missed'}")
    return ", ".join(said) or "-"


def table(columns: list[str], rows: list[list[str]]) -> str:
    """Lay out a table of Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def take(folder: Path) -> None:
    """Take the selectors' figures of a run of `make bench`."""
    new = json.loads((folder / "selectors.json").read_text(encoding="utf-8"))
    old = json.loads((HERE / "figures" / "select.json").read_text(encoding="utf-8"))
    kept = {name: old[name] for name in ("title", "made_by")}
    new = {**kept, "date": datetime.date.today().isoformat(), **new}
    text = json.dumps(new, indent=1, ensure_ascii=False) + "\n"
    (HERE / "figures" / "select.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        take(Path(sys.argv[1]))
    (HERE / "performance.md").write_text(page(), encoding="utf-8")
