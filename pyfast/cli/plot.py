"""``pyfast plot``: a run's pictures, drawn again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pyfast.cli._common import Help, need
from pyfast.train.errors import UserError


def add(commands: Any) -> None:
    """Add the command to the parser."""
    plot = commands.add_parser(
        "plot",
        formatter_class=Help,
        help="draw the pictures of a run again",
        description=(
            "Draw a run's pictures from its files: training curves, held-out scores before and\n"
            "after, and one prompt's responses in the plane with the selected ones marked. It\n"
            "works on an unfinished run too."
        ),
        epilog="examples:\n  pyfast plot runs/demo-opt-select-0 --group 5\n"
        "  pyfast plot runs/demo-opt-select-0 --tsne 0,5,10",
    )
    plot.add_argument("folder", metavar="RUN", help="run folder")
    plot.add_argument(
        "--group",
        type=int,
        metavar="N",
        default=0,
        help="which line of groups.jsonl the map of responses shows, from 0 (default: 0)",
    )
    plot.add_argument(
        "--tsne",
        metavar="N,N,...",
        help="draw figure 2 of AMPO instead: these lines of groups.jsonl in t-SNE's plane, with "
        "what bottom-k, coreset and opt-select choose, side by side (needs scikit-learn)",
    )
    plot.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Draw, and print the pictures' paths."""
    need("matplotlib")
    from pyfast.cli.train import recipe_of

    out = Path(arguments.folder)
    options: dict[str, Any] = {"group": arguments.group}
    if arguments.tsne is not None:
        if recipe_of(out).Settings.recipe != "ampo":
            raise UserError(f"--tsne: expected a run of ampo, {out} is another recipe's")
        options = {"tsne": _numbers(arguments.tsne)}
    for path in recipe_of(out).plots(out, **options):
        print(path)
    return 0


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isascii() and part.strip().isdigit() for part in parts):
        raise UserError(f"--tsne: expected whole numbers with commas between, got {text!r}")
    return [int(part) for part in parts]
