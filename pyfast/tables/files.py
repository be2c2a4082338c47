"""Stages over files larger than memory: a unit of work is one row group of one file.

A unit is read batch by batch, and its output appears whole or not at all. So an interrupted run
goes on by doing the units whose output is not there, and memory holds a few batches, whatever the
files' size: about `BATCH_BYTES` of rows read, as much again being written, and what the stage
takes. Of a stage whose rows are dear (`Work.unit_rows`), so many rows are a unit.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pyfast._files import clear_leftovers, locked, scratch_beside, written_whole
from pyfast.tables import json_lines
from pyfast.tables.json_lines import STANDARD, shown
from pyfast.tables.server import ServerError

Stage = Callable[[pa.Table], pa.Table]
Item = TypeVar("Item")

BATCH_BYTES = 32 << 20
PARQUET = (".parquet", ".pq")
MARK = "pyfast-tables.json"
"""What a folder of outputs was made of, and by what."""


@dataclass(frozen=True)
class Work:
    """A stage, and what files need to know of it.

    Attributes
    ----------
    name : str
        What it is called in errors and on the progress bar.
    run : callable
        `pyarrow.Table` -> `pyarrow.Table`.
    needs : mapping of str to DataType or None
        The columns that it reads, for JSON Lines (None: of whatever type); Parquet has types of
        its own.
    adds : tuple of str, or None
        The columns that it sets, where it keeps all rows and all other columns. JSON Lines then
        come out as they were written, with these fields set. None: it makes rows of its own.
    settings : mapping
        What its results depend on, to tell outputs of one run from another's.
    unit_rows : int, optional
        Rows of a unit of work, where each of them is dear (sampling): no row of a unit that is done
        is made again, neither after an interruption nor to find one that does not fit.
    """

    name: str
    run: Stage
    needs: json_lines.Needs
    adds: tuple[str, ...] | None = None
    settings: Mapping[str, Any] | None = None
    unit_rows: int | None = None


@dataclass(frozen=True)
class Unit:
    """One row group of a Parquet file, or one file of JSON Lines (`group` 0)."""

    path: Path
    group: int
    rows: int | None


def is_parquet(path: Path) -> bool:
    """Tell a Parquet file by its name."""
    return path.suffix.lower() in PARQUET


def units(paths: Sequence[Path]) -> list[Unit]:
    """Return the units of work of files, in order.

    Raises
    ------
    ValueError
        If a file is neither Parquet nor JSON Lines by its name, or is not readable as Parquet.
    OSError
        If there is no such file.
    """
    found = []
    for path in paths:
        if not is_parquet(path):
            json_lines.check_name(path)
        if path != STANDARD:
            path.stat()
        if not is_parquet(path):
            found.append(Unit(path, 0, None))
            continue
        with _parquet(path) as file:
            meta = file.metadata
            found += [Unit(path, i, meta.row_group(i).num_rows) for i in range(file.num_row_groups)]
    return found


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
            _write_lines(work, _all_batches(work, parts), sys.stdout.buffer, bar)
        elif not out.suffix or out.is_dir():
            if STANDARD in inputs:
                raise ValueError(f"{out}: expected a file, or -, for standard input; got a folder")
            _write_folder(work, inputs, parts, out, bar)
        elif work.unit_rows is None or STANDARD in inputs:
            _write(work, _all_batches(work, parts, whole=is_parquet(out)), out, bar, _codec(parts))
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
            for target, rows, batches in _pieces(work, part, suffix):
                targets.append(folder / target)
                if targets[-1].exists():
                    bar.update(rows or 0)
                else:
                    _write(work, batches, targets[-1], bar, _codec([part]))
    return targets


def batches(work: Work, part: Unit) -> Iterator[pa.Table]:
    """Read a unit as a stage would be given it."""
    for batch in _batches(work, part):
        yield batch.table


def _pieces(
    work: Work, part: Unit, suffix: str | None
) -> Iterator[tuple[str, int | None, Iterable[_Batch]]]:
    """Yield the outputs of a unit: name, rows if known, and the batches that it is made of."""
    if work.unit_rows is None:
        yield output_name(part), part.rows, _batches(work, part)
        return
    whole = suffix is not None and is_parquet(Path(f"piece{suffix}"))
    for number, batch in enumerate(_batches(work, part, whole=whole)):
        yield output_name(part, number, suffix), batch.table.num_rows, [batch]


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
            join(found, beside, _codec(parts), out)
    shutil.rmtree(folder)


def _check_mark(work: Work, inputs: Sequence[Path], folder: Path) -> None:
    """Refuse a folder of other outputs, and mark a new one."""
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in inputs]
    digest = hashlib.sha256(json.dumps(stats).encode()).hexdigest()
    mark = {"stage": work.name, "settings": dict(work.settings or {}), "inputs": digest}
    path = folder / MARK
    if path.exists():
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
    if any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise ValueError(f"{folder}: expected an empty folder, or one that this stage wrote")
    with written_whole(path) as beside:
        beside.write_text(json.dumps(mark, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _Batch:
    """Rows of a unit; of JSON Lines with the lines' own texts."""

    part: Unit
    table: pa.Table
    lines: json_lines.Lines | None


def _write(work: Work, batches: Iterable[_Batch], target: Path, bar: _Bar, codec: str) -> None:
    """Write the output of batches to one file."""
    if not is_parquet(target):
        json_lines.check_name(target)
        with written_whole(target) as beside, json_lines.open_to_write(beside) as stream:
            _write_lines(work, batches, stream, bar)
        return
    with written_whole(target) as beside, _Pieces(beside, target, codec) as pieces:
        for batch in _ahead(batches):
            pieces.write(_call(work, batch))
            bar.update(batch.table.num_rows)


class _Pieces:
    """Writes tables to a Parquet file: one of other types than before begins a piece of its own.

    JSON Lines tell their types batch by batch: a column may be null, or whole, for a long time. At
    the end pieces are joined in types that hold them all.
    """

    def __init__(self, path: Path, target: Path, codec: str) -> None:
        self._paths, self._target, self._codec = [path], target, codec
        self._stack = contextlib.ExitStack()
        self._writer: Any = None

    def __enter__(self) -> _Pieces:
        self._folder = self._stack.enter_context(scratch_beside(self._target))
        return self

    def write(self, table: pa.Table) -> None:
        """Add a table."""
        if self._writer is None or not self._writer.schema.equals(table.schema):
            if self._writer is not None:
                self._writer.close()
                self._paths.append(self._folder / f"{len(self._paths)}.parquet")
            self._writer = self._open(self._paths[-1], table.schema)
        self._writer.write_table(table, row_group_size=1 << 30)

    def _open(self, path: Path, schema: pa.Schema) -> Any:
        return pq.ParquetWriter(path, schema, compression=self._codec, use_dictionary=False)

    def __exit__(self, kind: Any, *_: object) -> None:
        with self._stack:
            if self._writer is not None:
                self._writer.close()
            if kind is not None:
                return
            if self._writer is None:
                raise ValueError(f"{self._target}: expected rows to write, there are none")
            if len(self._paths) > 1:
                whole = self._folder / "whole.parquet"
                join(self._paths, whole, self._codec, self._target)
                whole.replace(self._paths[0])


def join(paths: Sequence[Path], whole: Path, codec: str, target: Path) -> None:
    """Write Parquet files one after the other, in types that hold those of all.

    Raises
    ------
    ValueError
        If there are none for a column.
    """
    try:
        schema = pa.unify_schemas([pq.read_schema(p) for p in paths], promote_options="permissive")
        with pq.ParquetWriter(whole, schema, compression=codec, use_dictionary=False) as writer:
            for path in paths:
                with pq.ParquetFile(path) as file:
                    for number in range(file.num_row_groups):
                        table = file.read_row_group(number)
                        for field in schema:
                            if field.name not in table.column_names:
                                nothing = pa.nulls(len(table), field.type)
                                table = table.append_column(field, nothing)
                        writer.write_table(table.select(schema.names).cast(schema))
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(
            f"{target}: expected columns of one type each, which Parquet has ({error}); JSON Lines "
            "take them as they are"
        ) from None


def _write_lines(work: Work, batches: Iterable[_Batch], stream: Any, bar: _Bar) -> None:
    for batch in _ahead(batches):
        made = _call(work, batch)
        if batch.lines is None or work.adds is None:
            stream.write(json_lines.from_table(made))
        else:
            stream.write(json_lines.with_columns(batch.lines, made.select(list(work.adds))))
        bar.update(batch.table.num_rows)
    stream.flush()


def _all_batches(work: Work, parts: Sequence[Unit], *, whole: bool = False) -> Iterator[_Batch]:
    for part in parts:
        yield from _batches(work, part, whole=whole)


def _batches(work: Work, part: Unit, *, whole: bool = False) -> Iterator[_Batch]:
    """Read a unit in batches, of `Work.unit_rows` where that is said.

    Of JSON Lines that come out as lines the fields that are needed are enough: the lines are kept.
    `whole` asks for all.
    """
    whole = whole or work.adds is None
    if not is_parquet(part.path):
        blocks = json_lines.blocks(part.path, BATCH_BYTES // 2)
        if work.unit_rows is not None:
            blocks = json_lines.in_counts(blocks, work.unit_rows)
        for number, lines in blocks:
            table = json_lines.parse(part.path, number, lines, work.needs, whole=whole)
            yield _Batch(part, table, lines)
        return
    with _parquet(part.path) as file:
        meta = file.metadata.row_group(part.group)
        fitting = BATCH_BYTES * meta.num_rows // max(meta.total_byte_size, 1)
        rows = work.unit_rows or max(1, min(meta.num_rows, fitting))
        for batch in file.iter_batches(rows, row_groups=[part.group]):
            yield _Batch(part, pa.Table.from_batches([batch]), None)


def _call(work: Work, batch: _Batch) -> pa.Table:
    """Run the stage; of rows that do not fit, name the first by its place."""
    table = batch.table
    try:
        made = work.run(table)
    except ServerError as error:
        raise ServerError(_placed(batch, _row_of(error), error)) from error.__cause__
    except (ValueError, TypeError) as error:
        if work.unit_rows is not None:
            raise ValueError(_placed(batch, _row_of(error), error)) from None
        for row in range(table.num_rows):
            try:
                work.run(table.slice(row, 1))
            except (ValueError, TypeError) as reason:
                # the row that it names is the first of one: the place says which
                raise ValueError(_placed(batch, row, reason, named=0)) from None
        raise ValueError(f"{shown(batch.part.path)}: {error}") from None
    if work.adds is not None and made.num_rows != table.num_rows:
        raise ValueError(f"{work.name}: expected as many rows as it was given")
    return made


def _row_of(error: Exception) -> int | None:
    """Return the row of a batch that an error names."""
    found = re.search(r"\brow (\d+)\b", str(error))
    return int(found[1]) if found else None


def _placed(batch: _Batch, row: int | None, error: Exception, named: int | None = None) -> str:
    """Return an error's text with the place of a row in front, and not as it was numbered there."""
    path = shown(batch.part.path)
    if row is None or row >= batch.table.num_rows:
        return f"{path}: {error}"
    if batch.lines is not None:
        place = f"{path}:{batch.lines[row][0]}"
    else:
        place = f"{path}: row group {batch.part.group}, row {row} of a batch"
    number = row if named is None else named
    said = re.sub(rf"^row {number}: | (in|at|for) (row|group) {number}\b,?", "", str(error))
    return f"{place}: {said}"


def _codec(parts: Sequence[Unit]) -> str:
    """Return how the first Parquet file is compressed, to do likewise."""
    if not parts or not is_parquet(parts[0].path):
        return "zstd"
    with _parquet(parts[0].path) as file:
        codec: str = file.metadata.row_group(parts[0].group).column(0).compression.lower()
    return "none" if codec == "uncompressed" else codec


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        # A map, not a buffer for whole columns: what is not looked at takes no memory of ours.
        file = pq.ParquetFile(path, memory_map=True)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: expected a Parquet file ({error})") from None
    with file:
        yield file


def _ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yield items, the next one being made meanwhile in a thread."""
    source = iter(items)
    end: Any = object()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(next, source, end)
        while (item := future.result()) is not end:
            future = pool.submit(next, source, end)
            yield item


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
