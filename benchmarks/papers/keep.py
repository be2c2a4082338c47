"""Keep what a sweep found: ``python benchmarks/papers/keep.py runs/SWEEP [--baseline ROW]``.

Writes ``results/SWEEP.json`` beside this file: what `pyfast compare` says of the finished runs, the
minutes that each took, the date and the machine. ``docs/results.py`` makes a page of them.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def minutes(run: Path) -> float:
    """Return how long a run's training steps took, from its own file of times."""
    with (run / "timings.jsonl").open(encoding="utf-8") as lines:
        return sum(json.loads(line)["seconds"] for line in lines) / 60


def main() -> None:
    """Compare, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--baseline")
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "pyfast.cli", "compare", str(arguments.sweep), "--json"]
    if arguments.baseline:
        command += ["--baseline", arguments.baseline]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    runs = [path.parent for path in arguments.sweep.glob("*/summary.json")]
    took = sorted(minutes(run) for run in runs)
    kept = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, one thread a run",
        "runs": len(runs),
        "minutes_of_training": {"least": round(took[0], 1), "most": round(took[-1], 1)},
        "comparison": found,
    }
    path = HERE / "results" / f"{arguments.sweep.name}.json"
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
