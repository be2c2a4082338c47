"""``pyfast evaluate``: a finished run on other data."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pyfast.cli._common import Help, need
from pyfast.cli.train import recipe_of


def add(commands: Any) -> None:
    """Add the command to the parser."""
    evaluate = commands.add_parser(
        "evaluate",
        formatter_class=Help,
        help="evaluate a finished run on other held-out data, without training",
        description=(
            "Evaluate the policy of a finished run, and the model that it began with, on other\n"
            "held-out data: prompts or groups, as the run's recipe takes them for --heldout. The\n"
            "run is left as it is. The new folder can be given to pyfast compare."
        ),
        epilog="example:\n  pyfast evaluate runs/hps-0 --data other.jsonl --out runs/on-other",
    )
    evaluate.add_argument("folder", metavar="RUN", help="folder of a finished run")
    evaluate.add_argument("--data", metavar="FILE", required=True, help="the other held-out data")
    evaluate.add_argument(
        "--out", metavar="FOLDER", help="where the result goes (default: RUN-on-NAME-OF-FILE)"
    )
    evaluate.add_argument("--json", action="store_true", help="print the summary as JSON")
    evaluate.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, and print the table."""
    need("torch", "transformers", "peft", "safetensors", "tqdm")
    folder = Path(arguments.folder)
    kind = recipe_of(folder)
    name = Path(arguments.data).name.partition(".")[0]
    out = Path(arguments.out) if arguments.out else folder.with_name(f"{folder.name}-on-{name}")
    from pyfast.train.evaluation import transfer

    summary = transfer.evaluate_on(kind, folder, arguments.data, out)
    if arguments.json:
        print(json.dumps(summary, ensure_ascii=False, indent=2))
    else:
        print(kind.table(summary))
        print(f"\nanswers and summary: {out}")
    return 0
