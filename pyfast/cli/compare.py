"""``pyfast compare``: runs side by side."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pyfast.cli._common import Help, need
from pyfast.cli.sweep import MARK, listed
from pyfast.cli.train import recipe_of
from pyfast.train.errors import UserError


def add(commands: Any) -> None:
    """Add the command to the parser."""
    compare = commands.add_parser(
        "compare",
        formatter_class=Help,
        help="compare finished runs: means over seeds, intervals, differences",
        description=(
            "Compare finished runs of one recipe. Runs that differ in their seed alone are one\n"
            "row. For each metric: the mean over seeds with its Student t interval, the mean of\n"
            "the runs' own intervals over prompts, and with --baseline the difference to that\n"
            'row, paired by seed; "noise" marks one whose interval holds 0. In the folder of a\n'
            "sweep, or in --out, it leaves comparison.json and pictures."
        ),
        epilog=(
            "examples:\n"
            "  pyfast compare runs/sweep --baseline random\n"
            "  pyfast compare runs/a-0 runs/a-1 runs/b-0 runs/b-1 --out runs/a-and-b"
        ),
    )
    compare.add_argument("folders", metavar="RUN", nargs="+", help="folders of runs or of sweeps")
    compare.add_argument(
        "--baseline", metavar="ROW", help="label of the row that the others are compared with"
    )
    compare.add_argument(
        "--metrics", metavar="NAMES", help="show these alone, commas between (default: all)"
    )
    compare.add_argument("--out", metavar="FOLDER", help="where JSON and pictures go")
    compare.add_argument("--json", action="store_true", help="print JSON instead of the table")
    compare.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compare, draw and print."""
    need("scipy", "matplotlib")
    from pyfast.train import files
    from pyfast.train.reports import comparing, comparison_plots

    folders = _folders(arguments.folders)
    found, unfinished = _runs(folders)
    if not found:
        raise UserError(f"{folders[0]}: expected a finished run, there is none")
    rows = comparing.rows_of(found)
    baseline = None
    if arguments.baseline is not None:
        baseline = next((row for row in rows if row.label == arguments.baseline), None)
        if baseline is None:
            known = ", ".join(row.label for row in rows)
            raise UserError(f"--baseline: expected one of {known}; got {arguments.baseline!r}")
    metrics = arguments.metrics.split(",") if arguments.metrics else None
    result = {**comparing.compare(rows, baseline), "unfinished": [str(f) for f in unfinished]}
    text = comparing.table(result, metrics)
    out = Path(arguments.out) if arguments.out else folders[0]
    if arguments.out or (len(folders) == 1 and (out / MARK).exists()):
        out.mkdir(parents=True, exist_ok=True)
        files.write_json(out / "comparison.json", result)
        for path in [out / "comparison.json", *comparison_plots.draw(result, rows, out, metrics)]:
            print(path, file=sys.stderr)
    for folder in unfinished:
        print(f"pyfast: left out, not finished: {folder}", file=sys.stderr)
    print(json.dumps(result, ensure_ascii=False, indent=2) if arguments.json else text)
    return 0


def _folders(names: list[str]) -> list[Path]:
    """Return what may be a run or a sweep; a pattern such as SWEEP/* finds its files too."""
    paths = [Path(name) for name in names]
    files = [path for path in paths if path.is_file()]
    if len(files) == len(paths):
        raise UserError(f"{paths[0]}: expected the folder of a run or of a sweep, got a file")
    for path in files:
        print(f"pyfast: left out, a file and no run: {path}", file=sys.stderr)
    return [path for path in paths if path not in files]


def _runs(folders: list[Path]) -> tuple[list[Any], list[Path]]:
    """Return the finished runs of these folders, and the folders of the others."""
    from pyfast.train.reports import comparing

    listed: list[tuple[Path, str | None]] = []
    for folder in folders:
        listed += _of_sweep(folder) if (folder / MARK).exists() else [(folder, None)]
    found: list[comparing.Run] = []
    unfinished = []
    for folder, case in listed:
        if not (folder / "config.json").exists() and case is None and folder in folders:
            raise UserError(f"{folder}: expected a run folder, it has no config.json")
        if not (folder / "summary.json").exists():
            unfinished.append(folder)
            continue
        kind = recipe_of(folder).Settings
        found.append(comparing.read_run(folder, kind, case))
        if found[-1].settings.recipe != found[0].settings.recipe:
            names = f"{found[0].settings.recipe} and {found[-1].settings.recipe}"
            raise UserError(f"{folder}: expected runs of one recipe, got {names}")
    return found, unfinished


def _of_sweep(folder: Path) -> list[tuple[Path, str | None]]:
    return [(folder / Path(run["name"]).name, run["case"]) for run in listed(folder)]
