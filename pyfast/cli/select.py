"""``pyfast select``: choices in a file of scored groups."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from pyfast.cli._common import Help, need
from pyfast.train.errors import UserError
from pyfast.train.recipes import ampo


def add(commands: Any) -> None:
    """Add the command to the parser."""
    defaults = ampo.SelectionConfig()
    select = commands.add_parser(
        "select",
        formatter_class=Help,
        help="choose positives and negatives in a file of scored groups",
        description=(
            "Choose the best response and k negatives of every group in a file. Each line is a\n"
            'JSON object {"prompt": ..., "responses": [...], "scores": [...],\n'
            '"embeddings": [[...], ...]}; opt-select and coreset need the embeddings. The same\n'
            'lines come out, all their fields as they were written, with "positive" and\n'
            '"negatives" (indices from 0) set; of fewer than k others all become negatives.'
        ),
        epilog=(
            "examples:\n"
            "  pyfast select groups.jsonl --k 3 --out selected.jsonl\n"
            "  pyfast select groups.jsonl --selector bottom-k | head\n"
            "  zcat groups.jsonl.gz | pyfast select - --k 3 --out selected.jsonl\n"
            "  pyfast select scored/*.parquet --k 7 --out selected/"
        ),
    )
    select.add_argument(
        "groups",
        metavar="GROUPS",
        nargs="+",
        help="groups file (JSON Lines), or - for standard input; or several files of JSON Lines, "
        "packed or not, or of Parquet (needs pyarrow)",
    )
    select.add_argument(
        "--selector",
        choices=ampo.SELECTORS,
        default=defaults.selector,
        help="how the negatives are chosen (default: %(default)s)",
    )
    select.add_argument(
        "--k", type=int, metavar="N", default=defaults.k, help="negatives a group (default: 7)"
    )
    select.add_argument(
        "--n-init",
        type=int,
        metavar="N",
        default=defaults.n_init,
        help="starts of opt-select's swap search (default: %(default)s)",
    )
    select.add_argument(
        "--seed", type=int, metavar="N", default=0, help="seed of what is random (default: 0)"
    )
    select.add_argument(
        "--deduplicate",
        action="store_true",
        help="choose among distinct responses alone (of one file of JSON Lines)",
    )
    select.add_argument(
        "--out",
        metavar="PATH",
        help="where to write (default: standard output); a folder gets a file for each row group, "
        "and the same command again does what is missing",
    )
    select.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Choose in every group, and write the lines with the choice only if all went well."""
    if _is_large(arguments):
        return _run_files(arguments)
    (arguments.groups,) = arguments.groups
    from pyfast._files import written_whole
    from pyfast.tables.json_text import with_fields
    from pyfast.train import group_lines
    from pyfast.train.seeds import derive

    config = ampo.SelectionConfig(
        arguments.selector, arguments.k, arguments.n_init, arguments.deduplicate
    )
    name = "standard input" if arguments.groups == "-" else arguments.groups
    selected, small = [], 0
    for position, (number, text, group) in enumerate(group_lines.read(arguments.groups)):
        try:
            if group.scores is None:
                raise ValueError("scores are missing")
            seed = derive(arguments.seed, "select", position)
            chosen = ampo.choose(config, group.scores, group.embeddings, seed, group.responses)
        except (ValueError, TypeError) as error:
            raise UserError(f"{name}:{number}: group {position + 1}: {error}") from None
        small += len(chosen.negatives) < config.k
        choice = {"positive": chosen.positive, "negatives": chosen.negatives}
        selected.append(with_fields(text, choice))
    if arguments.out is None:
        _print(selected)
    else:
        with written_whole(Path(arguments.out)) as beside:
            beside.write_text("".join(line + "\n" for line in selected), "utf-8", newline="\n")
    if small:
        sys.stderr.write(
            f"pyfast: note: all others became negatives in {small} of {len(selected)} groups, "
            f"which have fewer than k = {config.k}\n"
        )
    return 0


def _is_large(arguments: argparse.Namespace) -> bool:
    """Tell what goes through tables: Parquet, packed or several files, a folder of outputs."""
    first = Path(arguments.groups[0])
    packed = first.suffix.lower() in (".parquet", ".pq", ".gz", ".zst", ".bz2", ".lz4")
    out = arguments.out or ""
    folder = out.endswith(("/", os.sep)) or (out != "" and Path(out).is_dir())
    return len(arguments.groups) > 1 or packed or folder


def _run_files(arguments: argparse.Namespace) -> int:
    need("pyarrow", "tqdm")
    from pyfast.cli.stages import run_work
    from pyfast.tables import stages
    from pyfast.tables.files import Work

    if arguments.out is None:
        raise UserError("--out: expected a file or a folder for files like these")
    if arguments.deduplicate:
        raise UserError("--deduplicate: expected one file of JSON Lines, and a file as --out")
    name = arguments.selector
    settings = {"selector": name, "k": arguments.k, "seed": arguments.seed}
    if name == "opt-select":
        settings["n_init"] = arguments.n_init
    ampo.SelectionConfig(name, arguments.k, arguments.n_init)  # checks them
    work = Work(
        "select",
        lambda table: stages.select(table, **settings),
        stages.select_needs(name),
        ("positive", "negatives"),
        settings,
    )
    return run_work(work, arguments.groups, arguments.out)


def _print(lines: list[str]) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    try:  # beforehand: what a terminal lacks would come out as escapes that are not JSON's
        for line in lines:
            line.encode(encoding)
    except UnicodeEncodeError as error:
        raise UserError(
            f"standard output: its encoding, {error.encoding}, cannot hold all of the text; "
            "try --out FILE, which is UTF-8"
        ) from None
    for line in lines:
        print(line)
