"""Batches given to a stage, and what it makes written to one file or stream."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pyfast._files import scratch_beside, written_whole
from pyfast.tables import json_lines, splice
from pyfast.tables.http_client import ServerError
from pyfast.tables.json_lines import shown
from pyfast.tables.units import Batch, Unit, Work, all_batches, batches, codec, is_parquet

Item = TypeVar("Item")
Done = Callable[[int], Any]
"""Is told of so many rows done."""


def write(work: Work, found: Iterable[Batch], target: Path, done: Done, codec: str) -> None:
    """Write the output of batches to one file."""
    if not is_parquet(target):
        json_lines.check_name(target)
        with written_whole(target) as beside, json_lines.open_to_write(beside) as stream:
            write_lines(work, found, stream, done)
        return
    with written_whole(target) as beside, _Pieces(beside, target, codec) as pieces:
        for batch in _ahead(found):
            pieces.write(_call(work, batch))
            done(batch.table.num_rows)


def write_units(work: Work, parts: Sequence[Unit], target: Path, done: Done) -> None:
    """Write the output of whole units to one file."""
    paths = [part.path for part in parts]
    into_parquet = is_parquet(target)
    if work.little and into_parquet and all(map(is_parquet, paths)) and splice.usable(paths):
        _splice(work, parts, target, done)
    else:
        rows = all_batches(work, parts, whole=into_parquet)
        write(work, rows, target, done, codec(parts))


def _splice(work: Work, parts: Sequence[Unit], target: Path, done: Done) -> None:
    """Write row groups with the stage's columns set, the others copied as they lie."""
    assert work.adds is not None
    rows = (batch for part in parts for batch in batches(work, part, lean=True))
    with written_whole(target) as beside, splice.Writer(beside, codec(parts)) as writer:
        for part, of_part in groupby(_ahead(rows), lambda batch: batch.part):
            made = []
            for batch in of_part:
                made.append(_call(work, batch).select(list(work.adds)))
                done(batch.table.num_rows)
            writer.add(part.path, part.group, pa.concat_tables(made))
        if writer.empty:
            raise ValueError(f"{target}: expected rows to write, there are none")


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


def write_lines(work: Work, found: Iterable[Batch], stream: Any, done: Done) -> None:
    """Write the output of batches as JSON Lines."""
    for batch in _ahead(found):
        made = _call(work, batch)
        if batch.lines is None or work.adds is None:
            stream.write(_as_lines(work, batch, made))
        else:
            stream.write(
                json_lines.with_columns(batch.part.path, batch.lines, made.select(list(work.adds)))
            )
        done(batch.table.num_rows)
    stream.flush()


def _as_lines(work: Work, batch: Batch, made: pa.Table) -> bytes:
    """Return what a stage made as lines; of what JSON does not hold, name the row it comes from."""
    try:
        return json_lines.from_table(made)
    except ValueError as error:
        if work.unit_rows is not None or made.num_rows == batch.table.num_rows:
            raise ValueError(_placed(batch, _row_of(error), error)) from None
        for row in range(batch.table.num_rows):  # of one row a stage may make several
            try:
                json_lines.from_table(work.run(batch.table.slice(row, 1)))
            except ValueError as reason:
                raise ValueError(_placed(batch, row, reason, named=_row_of(reason))) from None
        raise


def _call(work: Work, batch: Batch) -> pa.Table:
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
        # rows that do not fit each other
        raise ValueError(_placed(batch, _row_of(error), error)) from None
    if work.adds is not None and made.num_rows != table.num_rows:
        raise ValueError(f"{work.name}: expected as many rows as it was given")
    return made


def _row_of(error: Exception) -> int | None:
    """Return the row of a batch that an error names."""
    found = re.search(r"\brow (\d+)\b", str(error))
    return int(found[1]) if found else None


def _placed(batch: Batch, row: int | None, error: Exception, named: int | None = None) -> str:
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


def _ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yield items, the next one being made meanwhile in a thread."""
    source = iter(items)
    end: Any = object()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(next, source, end)
        while (item := future.result()) is not end:
            future = pool.submit(next, source, end)
            yield item
