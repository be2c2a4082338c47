"""``pyfast select``: choices in a file of scored groups."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from pyfast.cli._common import Help, flags_named, need
from pyfast.train.errors import UserError

LINE_BY_LINE = ("opt-select", "coreset", "bottom-k", "random", "worst")
SELECTORS = (*LINE_BY_LINE, "kmedoids", "logdet", "hard-preference", "mass-dpo")
K, N_INIT = 7, 10
"""As of `SelectionConfig`, which is not loaded for help alone (a test holds them together)."""

LARGE = 32 << 20
"""Bytes of a file of JSON Lines from which on it is read in blocks, where pyarrow is there."""


def add(commands: Any) -> None:
    """Add the command to the parser."""
    select = commands.add_parser(
        "select",
        formatter_class=Help,
        help="choose positives and negatives in a file of scored groups",
        description=(
            "Choose the best response and k negatives of every group in a file. Each line is a\n"
            'JSON object {"prompt": ..., "responses": [...], "scores": [...],\n'
            '"embeddings": [[...], ...]}; opt-select, coreset, kmedoids and logdet need the\n'
            "embeddings, mass-dpo features, policy_logps and ref_logps. The same lines come out,\n"
            'all their fields as they were written, with "positive" and "negatives" (indices\n'
            "from 0) set; of fewer than k others all become negatives."
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
        choices=SELECTORS,
        default="opt-select",
        help="how the negatives are chosen (default: %(default)s)",
    )
    select.add_argument(
        "--k", type=int, metavar="N", default=K, help="negatives a group (default: %(default)s)"
    )
    select.add_argument(
        "--n-init",
        type=int,
        metavar="N",
        default=N_INIT,
        help="starts of opt-select's and kmedoids' swap search (default: %(default)s)",
    )
    select.add_argument(
        "--gamma",
        type=float,
        metavar="X",
        help="hardness of hard-preference (default: 1), ridge of logdet and mass-dpo (0.1)",
    )
    select.add_argument("--beta", type=float, metavar="X", help="of mass-dpo (default: 0.1)")
    select.add_argument(
        "--plot", metavar="PNG", help="draw what was chosen: scores, ranks, margins, a group"
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
    for name, users in (("gamma", SELECTORS[-3:]), ("beta", SELECTORS[-1:])):
        if getattr(arguments, name) is not None and arguments.selector not in users:
            raise UserError(f"--{name}: expected only with --selector {' or '.join(users)}")
    if not 0 <= arguments.seed < 2**64:  # that of a row is made of it
        raise UserError(f"--seed: expected 0 to {2**64 - 1}, got {arguments.seed}")
    if arguments.plot is not None:
        need("matplotlib", "pyarrow")
        if arguments.out in (None, "-"):
            raise UserError("--plot: expected a file or a folder as --out, which it is drawn from")
    with flags_named():
        status = _run_files(arguments) if _is_large(arguments) else _run_lines(arguments)
    if arguments.plot is not None:
        from pyfast.tables import picture

        try:
            picture.draw(Path(arguments.out), Path(arguments.plot))
        except (ValueError, TypeError) as error:
            raise UserError(f"--plot: {error}") from None
    return status


def _run_lines(arguments: argparse.Namespace) -> int:
    """Choose in one file, of which every line is read and checked as a group."""
    (arguments.groups,) = arguments.groups
    from pyfast._files import written_whole
    from pyfast.tables import seeds
    from pyfast.tables.json_text import with_fields
    from pyfast.train.data import group_lines
    from pyfast.train.recipes.ampo import selection

    config = selection.SelectionConfig(
        arguments.selector, arguments.k, arguments.n_init, arguments.deduplicate
    )
    name = "standard input" if arguments.groups == "-" else arguments.groups
    selected, small = [], 0
    for position, (number, text, group) in enumerate(group_lines.read(arguments.groups)):
        try:
            if group.scores is None:
                raise ValueError("scores are missing")
            seed = arguments.seed  # as of files: every group draws the same stream, or its own
            if config.selector == "random":
                seed = seeds.of_prompt(group.prompt, seed)
            chosen = selection.choose(config, group.scores, group.embeddings, seed, group.responses)
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
    out = Path(arguments.out or "-")
    folder = str(arguments.out).endswith(("/", os.sep)) or out.is_dir()
    if len(arguments.groups) > 1 or packed or folder or arguments.selector not in LINE_BY_LINE:
        return True
    if out.suffix.lower() not in ("", ".jsonl", ".json", ".ndjson"):
        return True
    if arguments.groups == ["-"]:
        return _is_packed(getattr(sys.stdin, "buffer", None))
    here = importlib.util.find_spec("pyarrow") and importlib.util.find_spec("tqdm")
    large = first.is_file() and first.stat().st_size >= LARGE and not arguments.deduplicate
    return large and bool(here) and arguments.out is not None and out.suffix != ""


def _is_packed(stream: Any) -> bool:
    """Tell whether standard input is packed, without taking anything from it."""
    first = stream.peek(4)[:4] if hasattr(stream, "peek") else b""
    return first.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\x04\x22\x4d\x18"))


def _run_files(arguments: argparse.Namespace) -> int:
    need("pyarrow", "tqdm")
    from pyfast.cli.stages import run_work
    from pyfast.tables import stages
    from pyfast.tables.units import Work
    from pyfast.train.recipes.ampo import selection

    if arguments.deduplicate:
        raise UserError("--deduplicate: expected one file of JSON Lines, and a file as --out")
    name = arguments.selector
    settings = {"selector": name, "k": arguments.k, "seed": arguments.seed}
    if name in ("opt-select", "kmedoids"):
        settings["n_init"] = arguments.n_init
    for extra in ("gamma", "beta"):
        if getattr(arguments, extra) is not None:
            settings[extra] = getattr(arguments, extra)
    selection.SelectionConfig(k=arguments.k, n_init=arguments.n_init)  # checks them
    work = Work(
        "select",
        lambda table: stages.select(table, **settings),
        stages.select_needs(name),
        ("positive", "negatives"),
        settings,
        little=True,
    )
    return run_work(work, arguments.groups, arguments.out or "-")


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
