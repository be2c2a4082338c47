"""What bt, hps and pl cost: tokens forwarded and seconds of a step.

    pyfast sweep benchmarks/papers/hps-cost.json --out runs/hps-cost
    python benchmarks/papers/hps_cost.py runs/hps-cost

Prints JSON: of each mode the mean over its runs, and both beside those of bt. The first step of a
run, which warms caches up, is left out of the seconds; of the rest, the median.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path


def rows(path: Path) -> list[dict[str, float]]:
    """Return the lines of a file that grows by one a step."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def main(folder: Path) -> None:
    """Print the costs of the runs in a folder."""
    costs: dict[str, dict[str, list[float]]] = {}
    for run in sorted(path for path in folder.iterdir() if (path / "summary.json").exists()):
        mode = json.loads((run / "config.json").read_text())["negatives"]["mode"]
        steps, seconds = rows(run / "metrics.jsonl"), rows(run / "timings.jsonl")
        found = costs.setdefault(mode, {"tokens": [], "responses": [], "seconds": []})
        found["tokens"].append(statistics.mean(step["tokens/forwarded"] for step in steps))
        found["responses"].append(statistics.mean(step["responses/forwarded"] for step in steps))
        found["seconds"].append(statistics.median(step["seconds"] for step in seconds[1:]))
    table = {
        mode: {name: round(statistics.mean(values), 3) for name, values in found.items()}
        for mode, found in costs.items()
    }
    for found in table.values():
        found["tokens / bt"] = round(found["tokens"] / table["bt"]["tokens"], 3)
        found["seconds / bt"] = round(found["seconds"] / table["bt"]["seconds"], 3)
    print(json.dumps(table, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
