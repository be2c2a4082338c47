"""``pyfast sweep``: runs over a grid of settings."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pyfast._files import locked
from pyfast.cli._common import Help, need
from pyfast.cli.train import DEMOS, recipe
from pyfast.train import config as configs
from pyfast.train import unused
from pyfast.train.errors import UserError
from pyfast.train.runs.layout import RUN_MARK
from pyfast.train.runs.sweeps import Planned, read_sweep

MARK = "sweep.json"
"""The file of a sweep's folder that lists its runs."""


def add(commands: Any) -> None:
    """Add the command to the parser."""
    sweep = commands.add_parser(
        "sweep",
        formatter_class=Help,
        help="train with a grid of settings and seeds, a run folder each",
        description=(
            "Run a recipe with all the settings of a sweep file, one run folder each. All of them\n"
            "are checked before the first one starts. The same command goes on after an\n"
            "interruption: finished runs are skipped, the one that was cut off is resumed. A run\n"
            "that fails is told, and the others go on.\n\n"
            "The file is JSON or YAML:\n\n"
            "  recipe: hps\n"
            "  config: base.json          # or demo; settings: {section: {field: value}} over it\n"
            "  cases:                     # settings that belong together, by name\n"
            "    hps: {negatives.mode: hps, negatives.draws: 1}\n"
            "    bt: {negatives.mode: bt}\n"
            "  grid:                      # all combinations\n"
            "    loss.beta: [0.1, 0.5]\n"
            "    run.seed: [0, 1, 2]"
        ),
        epilog=(
            "examples:\n"
            "  pyfast sweep sweep.yaml --out runs/sweep\n"
            "  pyfast sweep sweep.yaml --out runs/sweep --dry-run\n"
            "  pyfast compare runs/sweep"
        ),
    )
    sweep.add_argument("file", metavar="SWEEP", help="sweep file, .json or .yaml")
    sweep.add_argument(
        "--out", metavar="FOLDER", help="folder of the runs' folders (default: runs/NAME-OF-FILE)"
    )
    sweep.add_argument(
        "--dry-run", action="store_true", help="check everything, and show what would run"
    )
    sweep.add_argument("--json", action="store_true", help="print the runs' states as JSON")
    sweep.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run what is not finished, and tell how the runs are."""
    path = Path(arguments.file)
    out = Path(arguments.out) if arguments.out else Path("runs") / path.stem
    planned = read_sweep(path, recipe, DEMOS)
    hashes = {}
    for each in planned:  # bad input of the last one is told before hours of the first
        try:
            hashes[each.name] = recipe(each.settings.recipe).read(each.settings).hashes
        except UserError as error:
            raise UserError(f"{path}: run {each.name}: {error}") from None
    if arguments.dry_run:
        states = {each.name: _state(out, each, hashes[each.name]) for each in planned}
        for each in planned:  # else each run tells it
            unused.tell(each.settings, where=f"run {each.name}: ")
    else:
        need("torch", "transformers", "peft", "safetensors", "tqdm", "matplotlib")
        with _claim(out):
            states = {each.name: _state(out, each, hashes[each.name]) for each in planned}
            _train_all(out, planned, states)
    if arguments.json:
        print(json.dumps({"out": str(out), "runs": states}, ensure_ascii=False, indent=2))
    else:
        for name, state in states.items():
            print(f"{state:<12} {out / name}")
    return 2 if any(state.startswith("failed") for state in states.values()) else 0


@contextlib.contextmanager
def _claim(out: Path) -> Iterator[None]:
    """Hold a sweep's folder alone: another sweep in it would change the settings of runs to come.

    Each run reads its settings there when its turn comes, and the list of runs is all sweeps'.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot make the folder: {error.strerror}") from None
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(out / ".lock", keep=True))
        except BlockingIOError:
            raise UserError(
                f"{out}: another sweep is at work in this folder; give another --out"
            ) from None
        except OSError as error:
            raise UserError(f"{out / '.lock'}: {error.strerror}") from None
        yield


def _train_all(out: Path, planned: list[Planned], states: dict[str, str]) -> None:
    """Run what is not finished, one after the other, and note how each ended."""
    _record(out, planned)
    for number, each in enumerate(planned, start=1):
        if states[each.name] != "finished":
            print(f"[{number}/{len(planned)}] {each.name}", file=sys.stderr)
            states[each.name] = _train(out, each)


def _state(out: Path, planned: Planned, hashes: Mapping[str, str]) -> str:
    """Return whether a run is new, unfinished or finished, as its settings and files are now.

    Parameters
    ----------
    out : Path
        The sweep's folder.
    planned : Planned
    hashes : dict of str to str
        SHA-256 of the files that it would read.
    """
    folder = out / planned.name
    if not (folder / "config.json").exists():
        return "new"
    kind = recipe(planned.settings.recipe).Settings
    there = configs.from_file(kind, folder / "config.json")
    finished = (folder / "summary.json").exists()
    if finished and there == planned.settings and _has_read(folder, hashes):
        return "finished"
    return "unfinished"  # what may differ, and what not, is the run's to say


def _has_read(folder: Path, hashes: Mapping[str, str]) -> bool:
    """Tell whether a run has read what its files hold now."""
    from pyfast.train.files import read_json

    recorded = read_json(folder / RUN_MARK) if (folder / RUN_MARK).exists() else None
    inputs = recorded.get("inputs") if isinstance(recorded, dict) else None
    return isinstance(inputs, dict) and inputs.items() >= hashes.items()


def _record(out: Path, planned: list[Planned]) -> None:
    """Write which runs belong to the sweep, and each run's settings."""
    from pyfast.train.files import write_json

    runs = [{"name": p.name, "case": p.case, "values": p.values} for p in planned]
    if (out / MARK).exists():  # runs of a sweep file that has since changed are still there
        names = {run["name"] for run in runs}
        runs += [run for run in listed(out) if run["name"] not in names]
    write_json(out / MARK, {"recipe": planned[0].settings.recipe, "runs": runs})
    for each in planned:
        write_json(out / f"{each.name}.json", each.settings.to_dict())


def listed(out: Path) -> list[dict[str, Any]]:
    """Return the runs of a sweep's folder, ``{"name", "case", "values"}`` each."""
    from pyfast.train.files import read_json

    value = read_json(out / MARK)
    runs = value.get("runs") if isinstance(value, dict) else None
    if not isinstance(runs, list) or not all(
        isinstance(run, dict) and isinstance(run.get("name"), str) and "case" in run for run in runs
    ):
        raise UserError(f"{out / MARK}: expected the list of a sweep's runs")
    return runs


def _train(out: Path, planned: Planned) -> str:
    """Train in a process of its own, so that nothing of a run is left to the next."""
    command = [sys.executable, "-m", "pyfast.cli", "train", planned.settings.recipe]
    command += ["--config", str(out / f"{planned.name}.json"), "--out", str(out / planned.name)]
    started = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ)
    try:
        status = child.wait()
    except KeyboardInterrupt:
        child.wait()  # the terminal has told it too; it stops at the next step
        raise
    if status == 130:
        raise KeyboardInterrupt
    if status == 3:
        return "waiting"
    minutes = (time.monotonic() - started) / 60
    return f"failed ({status})" if status else f"finished, {minutes:.1f} min"
