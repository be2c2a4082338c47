"""Stages over files larger than memory: a unit of work is one row group of one file.

A unit is read batch by batch, and its output appears whole or not at all. So an interrupted run
goes on by doing the units whose output is not there, and memory holds a few batches, whatever the
files' size: about `BATCH_BYTES` of rows read, as much again being written, and what the stage
takes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pyfast._files import clear_leftovers, locked, written_whole
from pyfast.tables import json_lines

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
    """

    name: str
    run: Stage
    needs: json_lines.Needs
    adds: tuple[str, ...] | None = None
    settings: Mapping[str, Any] | None = None


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
            path.stat()
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
        Parquet (``.parquet``) or JSON Lines (``.jsonl``, also ``.gz``, ``.zst``, ``.bz2``).
    out : path
        A file by its suffix, that is written whole or not at all; or a folder, which gets a file
        for each unit. The same call again does those that are not there yet.
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
    if out.suffix and not out.is_dir():
        with _Bar(work.name, parts, progress) as bar:
            _write(work, parts, out, bar)
            return bar.count
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / ".lock"), _Bar(work.name, parts, progress) as bar:
        clear_leftovers(out)
        _check_mark(work, inputs, out)
        for part in parts:
            target = out / output_name(part)
            if target.exists():
                bar.update(part.rows or 0)
            else:
                _write(work, [part], target, bar)
        return bar.count


def output_name(part: Unit) -> str:
    """Return the name of a unit's output in a folder."""
    if is_parquet(part.path):
        return f"{part.path.stem}.{part.group:05d}.parquet"
    return part.path.name


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


def _write(work: Work, parts: Sequence[Unit], target: Path, bar: _Bar) -> None:
    """Write the output of some units to one file."""
    lines_out = not is_parquet(target)
    if lines_out:
        json_lines.check_name(target)
    with written_whole(target) as beside:
        writer: Any = None
        with contextlib.ExitStack() as stack:
            if lines_out:
                stream = stack.enter_context(json_lines.open_to_write(beside))
            for part in parts:
                for table, texts in _ahead(_batches(work, part)):
                    made = _call(work, part, table, texts)
                    if lines_out:
                        stream.write(_as_lines(work, texts, made))
                    else:
                        writer = writer or stack.enter_context(_new_writer(beside, made, parts))
                        writer.write_table(_like(made, writer.schema), row_group_size=1 << 30)
                    bar.update(table.num_rows)
            if writer is None and not lines_out:
                raise ValueError(f"{parts[0].path}: expected rows, there are none")


def _batches(work: Work, part: Unit) -> Iterator[tuple[pa.Table, _Texts | None]]:
    """Read a unit in batches; of JSON Lines with the lines' own texts."""
    if not is_parquet(part.path):
        for number, texts in json_lines.blocks(part.path, BATCH_BYTES // 2):
            needs = work.needs if work.adds is not None else None
            yield json_lines.parse(part.path, number, texts, needs), _Texts(number, texts)
        return
    with _parquet(part.path) as file:
        meta = file.metadata.row_group(part.group)
        rows = max(
            1, min(meta.num_rows, BATCH_BYTES * meta.num_rows // max(meta.total_byte_size, 1))
        )
        for batch in file.iter_batches(rows, row_groups=[part.group]):
            yield pa.Table.from_batches([batch]), None


@dataclass(frozen=True)
class _Texts:
    first: int
    lines: list[tuple[int, bytes]]


def _call(work: Work, part: Unit, table: pa.Table, texts: _Texts | None) -> pa.Table:
    """Run the stage; of rows that do not fit, name the first by its place."""
    try:
        made = work.run(table)
    except (ValueError, TypeError) as error:
        for row in range(table.num_rows):
            try:
                work.run(table.slice(row, 1))
            except (ValueError, TypeError) as reason:
                if texts is not None:
                    place = f"{part.path}:{texts.lines[row][0]}"
                else:
                    place = f"{part.path}: row group {part.group}, row {row} of a batch"
                # the row that it names is the first of one: the place says which
                said = re.sub(r" (in|at|for) (row|group) 0\b,?", "", str(reason))
                raise ValueError(f"{place}: {said}") from None
        raise ValueError(f"{part.path}: {error}") from None
    if work.adds is not None and made.num_rows != table.num_rows:
        raise ValueError(f"{work.name}: expected as many rows as it was given")
    return made


def _as_lines(work: Work, texts: _Texts | None, made: pa.Table) -> bytes:
    if texts is None or work.adds is None:
        return json_lines.from_table(made)
    return json_lines.with_columns(texts.lines, made.select(list(work.adds)))


def _new_writer(path: Path, table: pa.Table, parts: Sequence[Unit]) -> Any:
    """Open a Parquet file that is compressed as the input is."""
    codec = "zstd"
    if is_parquet(parts[0].path):
        with _parquet(parts[0].path) as file:
            codec = file.metadata.row_group(parts[0].group).column(0).compression.lower()
    codec = "none" if codec == "uncompressed" else codec
    return pq.ParquetWriter(path, table.schema, compression=codec, use_dictionary=False)


def _like(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the table in a schema that says the same: nullability and metadata may differ."""
    return table if table.schema.equals(schema) else table.cast(schema)


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
