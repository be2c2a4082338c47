"""What a step of bt, hps and pl costs: tokens forwarded, seconds and processor seconds.

    python benchmarks/papers/hps_cost.py [--groups FILE] [--rounds N] [--json FILE]

The modes take turns on the same groups with the same model, so that whatever else the machine does
falls on all of them. A step is the draw, both forward passes and the backward pass of one group; of
each group the first turn, which warms up, is left out. Processor time tells more than wall time on
a machine that is not alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from pyfast.train import config as configs
from pyfast.train import loop
from pyfast.train.context import Context
from pyfast.train.policy import loading
from pyfast.train.recipes.hps import Hps, HpsSettings

MODES: dict[str, dict[str, Any]] = {
    "bt": {"mode": "bt"},
    "hps": {"mode": "hps"},
    "hps, 4 draws": {"mode": "hps", "draws": 4},
    "hps, all": {"mode": "hps", "draws": 0},
    "pl": {"mode": "pl"},
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--groups", default="runs/demo-hps-data/train.jsonl")
    parser.add_argument(
        "--rounds", type=int, default=6, help="groups that each mode takes a step on"
    )
    parser.add_argument("--model", help="default: the demo's")
    parser.add_argument("--json", help="also written here")
    arguments = parser.parse_args()

    policy: Any = None
    recipes = {}
    folder = Path(tempfile.mkdtemp())
    for name, negatives in MODES.items():
        values: dict[str, Any] = {"data": {"groups": arguments.groups}, "negatives": negatives}
        if arguments.model:
            values["policy"] = {"model": arguments.model}
        settings = configs.from_dict(HpsSettings, values)
        policy = policy or loading.load(settings.policy, 0)
        recipes[name] = Hps(settings, Hps.read(settings), Context(policy, 0, folder))
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in MODES}
    for step in range(arguments.rounds + 1):
        for name, recipe in recipes.items():
            wall, processor = time.perf_counter(), time.process_time()
            (group,) = recipe.groups(step)
            measured, _ = loop.learn(recipe, group, step, 1)
            spent = time.perf_counter() - wall, time.process_time() - processor
            if step:
                found[name].append((measured["tokens/forwarded"], *spent))
    table = {}
    for name, rows in found.items():
        tokens, seconds, processor_seconds = (list(column) for column in zip(*rows, strict=True))
        table[name] = {
            "tokens": statistics.mean(tokens),
            "seconds": statistics.median(seconds),
            "processor_seconds": statistics.median(processor_seconds),
        }
    for row in table.values():
        row |= {f"{key} / bt": value / table["bt"][key] for key, value in [*row.items()]}
    text = json.dumps(
        {k: {n: round(v, 3) for n, v in row.items()} for k, row in table.items()}, indent=2
    )
    print(text)
    if arguments.json:
        Path(arguments.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
