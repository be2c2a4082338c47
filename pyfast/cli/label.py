"""``pyfast label``: people answer the questions of a run."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from pyfast.cli._common import Help, need
from pyfast.train.errors import UserError

FORMATS = ("label-studio", "argilla")


def add(commands: Any) -> None:
    """Add the command to the parser."""
    label = commands.add_parser(
        "label",
        formatter_class=Help,
        help="label the pairs that a run asks about, in the terminal or in a browser",
        description=(
            "Label the pairs that a run with --oracle file asks about: which of two responses is\n"
            "better. Each label is on the disk before the next pair is shown; stop and go on at\n"
            "any time, here or in the browser. When all are labelled, the run's own command goes\n"
            "on. Without a terminal, keys are read from standard input, one a line."
        ),
        epilog=(
            "examples:\n"
            "  pyfast label runs/mine\n"
            "  pyfast label runs/mine --web\n"
            "  pyfast label runs/mine --annotator bob --web\n"
            "  pyfast label runs/mine --disagreements\n"
            "  pyfast label runs/mine --export label-studio --out tasks.json"
        ),
    )
    label.add_argument("folder", metavar="RUN", help="run folder")
    label.add_argument(
        "--annotator",
        metavar="NAME",
        help="who labels (default: first; of an import: whom the file names)",
    )
    label.add_argument("--web", action="store_true", help="show a page for a browser instead")
    label.add_argument(
        "--port", type=int, metavar="N", default=0, help="the page's port (default: a free one)"
    )
    label.add_argument(
        "--disagreements",
        action="store_true",
        help="ask again where annotators disagree; that label is the one that the run uses",
    )
    what = label.add_mutually_exclusive_group()
    what.add_argument("--agreement", action="store_true", help="say how far annotators agree")
    what.add_argument(
        "--export", choices=FORMATS, help="write pairs and labels for another tool, to --out"
    )
    what.add_argument(
        "--import", choices=FORMATS, dest="import_", help="read labels of another tool, from --from"
    )
    label.add_argument("--out", metavar="FILE", help="of --export: the file to write")
    label.add_argument("--from", metavar="FILE", dest="source", help="of --import: the file")
    label.add_argument("--json", action="store_true", help="of --agreement: print JSON")
    label.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Label, or do what else was asked."""
    from pyfast.label import agreement, exchange, terminal
    from pyfast.label.desk import Desk, Run

    _check(arguments)
    found = Run(Path(arguments.folder))
    if arguments.export:
        if arguments.out == "-":
            raise UserError("--out: expected the name of a file, got '-'")
        count = exchange.write(found, arguments.export, Path(arguments.out))
        print(f"{count} pairs: {arguments.out}")
        return 0
    if arguments.import_:
        told = exchange.read(found, arguments.import_, Path(arguments.source), arguments.annotator)
        print(told)
        return _end(found)
    if arguments.agreement:
        state = found.state()
        if arguments.json:
            print(json.dumps([_plain(pair) for pair in agreement.pairs(state)], indent=2))
        else:
            print(agreement.table(state) or "one annotator so far; another one: --annotator NAME")
        return 0
    name = "first" if arguments.annotator is None else arguments.annotator
    desk = Desk(
        found, name, via="page" if arguments.web else "terminal", again=arguments.disagreements
    )
    if arguments.web:
        need("starlette", "uvicorn", "markdown_it", extra="label")
        from pyfast.label import page

        page.serve(desk, arguments.port, lambda link: print(link, flush=True))
    else:
        width = terminal.width_of(sys.stdout)
        with contextlib.suppress(KeyboardInterrupt), terminal.keys_of(sys.stdin) as keys:
            terminal.run(desk, keys, terminal.standard_write, width)
    return _end(found)


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what would have no effect."""
    given = {name for name, value in vars(arguments).items() if value}
    for name, flag, needed in (("out", "--out", "export"), ("source", "--from", "import_")):
        if (name in given) != (needed in given):
            raise UserError(f"{flag} and --{needed.rstrip('_')} go together")
    for name, needed in (("port", "web"), ("json", "agreement")):
        if name in given and needed not in given:
            raise UserError(f"--{name} goes with --{needed}")
    for what in given & {"agreement", "export", "import_"}:
        useless = {"web", "disagreements"} | (set() if what == "import_" else {"annotator"})
        for name in sorted(given & useless):
            raise UserError(f"--{name} has no effect on --{what.rstrip('_')}")


def _plain(pair: Any) -> dict[str, Any]:
    """Return a comparison as JSON."""
    return {**vars(pair), "annotators": list(pair.annotators), "agreement": pair.raw}


def _end(found: Any) -> int:
    """Say how far annotators agree, and how many labels the run still waits for."""
    from pyfast.label import agreement

    state = found.state()
    compared = agreement.table(state)
    if compared:
        print(compared)
    waiting = sum(map(state.is_open, state.asked))
    folder = shlex.quote(str(found.folder))
    if waiting:
        print(f"the run waits for {waiting} more labels; to go on: pyfast label {folder}")
    elif all(asked.taken for asked in state.asked.values()):
        print("the run waits for no labels")
    else:
        print(
            "the run has all the labels that it waits for; to go on, give its command again, or: "
            f"pyfast train {found.recipe} --config {folder}/config.json --out {folder}"
        )
    return 0
