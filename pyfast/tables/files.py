"""Stages over files larger than memory: a unit of work is one row group of one file.

A unit is read batch by batch, and its output appears whole or not at all. So an interrupted run
goes on by doing the units whose output is not there, and memory holds a few batches, whatever the
files' size: about `units.BATCH_BYTES` of rows read, as much being written, and what the stage
takes. Of a stage whose rows are dear (`Work.unit_rows`), so many rows are a unit. Where Parquet is
given a few columns more (`Work.little`), all others are copied as they lie.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pyfast._files import clear_leftovers, locked, written_whole
from pyfast.tables import json_lines
from pyfast.tables.json_lines import STANDARD
from pyfast.tables.units import Batch, Unit, Work, all_batches, batches, codec, is_parquet, units
from pyfast.tables.writing import join, write, write_lines, write_units

MARK = "pyfast-tables.json"
"""What a folder of outputs was made of, and by what."""


def run(
    work: Work,
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    progress: bool = True,
) -> int:
    """Run a stage over files.

    Parameters
    ----------
    work : Work
    paths : sequence of paths
        Parquet (``.parquet``) or JSON Lines (``.jsonl``, also ``.gz``, ``.zst``, ``.bz2``); "-" is
        JSON Lines from standard input, packed or not.
    out : path
        A file by its suffix, that is written whole or not at all; or a folder, which gets a file
        for each unit. The same call again does those that are not there yet. "-": JSON Lines to
        standard output, batch by batch. Of a stage with `Work.unit_rows`, what is done of a file is
        in ``FILE.parts`` until all is, and a file that is there already is refused.
    progress : bool
        Show a bar of groups.

    Returns
    -------
    int
        Rows read, those of units done before included where known.

    Raises
    ------
    ValueError
        If a file or a row does not fit; with file and line or row. Or if the folder holds the
        outputs of other settings or inputs.
    OSError
        If something cannot be read or written.
    """
    out, inputs = Path(out), [Path(path) for path in paths]
    parts = units(inputs)
    if inputs.count(STANDARD) > 1:
        raise ValueError("standard input: expected once")
    with _Bar(work.name, parts, progress) as bar:
        if out == STANDARD:
            write_lines(work, all_batches(work, parts), sys.stdout.buffer, bar.update)
        elif not out.suffix or out.is_dir():
            if out.exists() and not out.is_dir():
                raise ValueError(f"{out}: expected a folder, or a file named by what it holds")
            if STANDARD in inputs:
                raise ValueError(f"{out}: expected a file, or -, for standard input; got a folder")
            _write_folder(work, inputs, parts, out, bar)
        elif work.unit_rows is None or STANDARD in inputs:
            write_units(work, parts, out, bar.update)
        else:
            _write_by_parts(work, inputs, parts, out, bar)
        return bar.count


def output_name(part: Unit, piece: int | None = None, suffix: str | None = None) -> str:
    """Return the name of a unit's output in a folder, or of a piece of it."""
    number = "" if piece is None else f".{piece:05d}"
    if is_parquet(part.path):
        return f"{part.path.stem}.{part.group:05d}{number}{suffix or '.parquet'}"
    if piece is None:
        return part.path.name
    stem, _, rest = part.path.name.rpartition(".json")
    stem = stem or part.path.name.partition(".")[0]
    return f"{stem}{number}{suffix or '.json' + rest}"


def _write_folder(
    work: Work,
    inputs: Sequence[Path],
    parts: Sequence[Unit],
    folder: Path,
    bar: _Bar,
    suffix: str | None = None,
) -> list[Path]:
    """Write the outputs that a folder lacks; return all of them, in order."""
    names = [output_name(part) for part in parts]
    double = next((i for i, name in enumerate(names) if name in names[:i]), None)
    if double is not None:
        raise ValueError(
            f"{parts[double].path}: expected files of different names for a folder of outputs; "
            f"{parts[names.index(names[double])].path} would have the same output"
        )
    folder.mkdir(parents=True, exist_ok=True)
    targets = []
    with locked(folder / ".lock"):
        clear_leftovers(folder)
        _check_mark(work, inputs, folder)
        for part in parts:
            if work.unit_rows is None:
                targets.append(folder / output_name(part))
                if targets[-1].exists():
                    bar.update(part.rows or 0)
                else:
                    write_units(work, [part], targets[-1], bar.update)
                continue
            for name, batch in _pieces(work, part, suffix):
                targets.append(folder / name)
                if targets[-1].exists():
                    bar.update(batch.table.num_rows)
                else:
                    write(work, [batch], targets[-1], bar.update, codec([part]))
    return targets


def _pieces(work: Work, part: Unit, suffix: str | None) -> Iterator[tuple[str, Batch]]:
    """Yield the outputs of a unit whose rows are dear: their names, and what they are made of."""
    whole = suffix is not None and is_parquet(Path(f"piece{suffix}"))
    for number, batch in enumerate(batches(work, part, whole=whole)):
        yield output_name(part, number, suffix), batch


def _write_by_parts(
    work: Work, inputs: Sequence[Path], parts: Sequence[Unit], out: Path, bar: _Bar
) -> None:
    """Write a file from a folder of parts, that goes when the file is there."""
    if out.exists():
        raise ValueError(f"{out}: is there already; remove it, or give another name")
    if not is_parquet(out):
        json_lines.check_name(out)
    folder = out.with_name(out.name + ".parts")
    kind = ".parquet" if is_parquet(out) else ".jsonl"
    found = _write_folder(work, inputs, parts, folder, bar, kind)
    with written_whole(out) as beside:
        if not is_parquet(out):
            with json_lines.open_to_write(beside) as stream:
                for path in found:
                    stream.write(path.read_bytes())
        elif found:
            join(found, beside, codec(parts), out)
    shutil.rmtree(folder)


def _check_mark(work: Work, inputs: Sequence[Path], folder: Path) -> None:
    """Refuse a folder of other outputs, and mark a new one, or one that has none yet."""
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in inputs]
    digest = hashlib.sha256(json.dumps(stats).encode()).hexdigest()
    mark = {"stage": work.name, "settings": dict(work.settings or {}), "inputs": digest}
    path = folder / MARK
    others = [e for e in folder.iterdir() if e.name != MARK and not e.name.startswith(".")]
    if path.exists() and others:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if not isinstance(found, dict) or found.keys() != mark.keys():
            raise ValueError(f"{path}: expected the mark of a folder of outputs")
        for name, value in json.loads(json.dumps(mark)).items():
            if found[name] != value:
                raise ValueError(
                    f"{folder}: holds outputs of other {name} ({found[name]!r}, not {value!r}); "
                    "give another folder"
                )
        return
    if others:
        raise ValueError(f"{folder}: expected an empty folder, or one that this stage wrote")
    with written_whole(path) as beside:
        beside.write_text(json.dumps(mark, indent=1) + "\n", encoding="utf-8")


class _Bar:
    """A progress bar of groups, or only their number."""

    def __init__(self, name: str, parts: Sequence[Unit], show: bool) -> None:
        self.count = 0
        self._bar: Any = None
        if show:
            from tqdm import tqdm

            known = [part.rows for part in parts if part.rows is not None]
            total = sum(known) if len(known) == len(parts) else None
            self._bar = tqdm(total=total, desc=name, unit="group", unit_scale=True)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, count: int) -> None:
        """Count groups."""
        self.count += count
        if self._bar is not None:
            self._bar.update(count)
