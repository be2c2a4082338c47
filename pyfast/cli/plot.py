"""``pyfast plot``: a run's pictures, drawn again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pyfast.cli._common import Help, need


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
        epilog="example:\n  pyfast plot runs/demo-opt-select-0 --group 5",
    )
    plot.add_argument("folder", metavar="RUN", help="run folder")
    plot.add_argument(
        "--group",
        type=int,
        metavar="N",
        default=0,
        help="which line of groups.jsonl the map of responses shows, from 0 (default: 0)",
    )
    plot.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Draw, and print the pictures' paths."""
    need("matplotlib")
    from pyfast.cli.train import recipe_of

    out = Path(arguments.folder)
    for path in recipe_of(out).plots(out, group=arguments.group):
        print(path)
    return 0
