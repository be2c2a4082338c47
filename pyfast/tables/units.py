"""What files are read as: units of work, and their rows batch by batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pyfast.tables import json_lines
from pyfast.tables.json_lines import STANDARD

Stage = Callable[[pa.Table], pa.Table]

BATCH_BYTES = 32 << 20
"""How much of a file is read at once."""

PARQUET = (".parquet", ".pq")


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
        The columns that it reads, with their types in JSON Lines (None: whatever they are); Parquet
        has types of its own.
    adds : tuple of str, or None
        The columns that it sets, where it keeps all rows and all other columns. JSON Lines then
        come out as they were written, with these fields set. None: it makes rows of its own.
    settings : mapping
        What its results depend on, to tell outputs of one run from another's.
    unit_rows : int, optional
        Rows of a unit of work, where each of them is dear (sampling): no row of a unit that is done
        is made again, neither after an interruption nor to find one that does not fit.
    little : bool
        What it adds is a few numbers a response: those of a whole row group fit into memory, and
        Parquet's other columns are copied as they lie, row groups and all.
    """

    name: str
    run: Stage
    needs: json_lines.Needs
    adds: tuple[str, ...] | None = None
    settings: Mapping[str, Any] | None = None
    unit_rows: int | None = None
    little: bool = False


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
    """Return the units of work of files, in order: of a row group without rows none.

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
        with parquet(path) as file:
            meta = file.metadata
            counts = [meta.row_group(i).num_rows for i in range(file.num_row_groups)]
            found += [Unit(path, i, count) for i, count in enumerate(counts) if count]
    return found


@dataclass(frozen=True)
class Batch:
    """Rows of a unit; of JSON Lines with the lines' own texts."""

    part: Unit
    table: pa.Table
    lines: json_lines.Lines | None


def all_batches(work: Work, parts: Sequence[Unit], *, whole: bool = False) -> Iterator[Batch]:
    """Read units one after the other."""
    for part in parts:
        yield from batches(work, part, whole=whole)


def batches(work: Work, part: Unit, *, whole: bool = False, lean: bool = False) -> Iterator[Batch]:
    """Read a unit in batches, of `Work.unit_rows` where that is said.

    Of JSON Lines that come out as lines the fields that are needed are enough: the lines are kept.
    `whole` asks for all. Of Parquet all columns are read, or with `lean` those that are needed, if
    they are all there (else an error is to tell which are).
    """
    whole = whole or work.adds is None
    if not is_parquet(part.path):
        blocks = json_lines.blocks(part.path, BATCH_BYTES // 2)
        if work.unit_rows is not None:
            blocks = json_lines.in_counts(blocks, work.unit_rows)
        for number, lines in blocks:
            table = json_lines.parse(part.path, number, lines, work.needs, whole=whole)
            yield Batch(part, table, lines)
        return
    with parquet(part.path) as file:
        meta = file.metadata.row_group(part.group)
        fitting = BATCH_BYTES * meta.num_rows // max(meta.total_byte_size, 1)
        rows = work.unit_rows or max(1, min(meta.num_rows, fitting))
        enough = lean and set(work.needs) <= set(file.schema_arrow.names)
        columns = list(work.needs) if enough else None
        for batch in file.iter_batches(rows, row_groups=[part.group], columns=columns):
            yield Batch(part, pa.Table.from_batches([batch]), None)


def codec(parts: Sequence[Unit]) -> str:
    """Return how the first Parquet file is compressed, to do likewise."""
    if not parts or not is_parquet(parts[0].path):
        return "zstd"
    with parquet(parts[0].path) as file:
        name: str = file.metadata.row_group(parts[0].group).column(0).compression.lower()
    return "none" if name == "uncompressed" else name


@contextlib.contextmanager
def parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file."""
    try:
        # A map, not a buffer for whole columns: what is not looked at takes no memory of ours.
        file = pq.ParquetFile(path, memory_map=True)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: expected a Parquet file ({error})") from None
    with file:
        yield file
