"""JSON Lines in blocks: parsed by Arrow, written back as they were with fields added."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from pyfast import _native
from pyfast.tables.arrays import set_column
from pyfast.tables.json_text import with_fields

SUFFIXES = (".jsonl", ".json", ".ndjson")
PACKED = (".gz", ".zst", ".bz2", ".lz4")

Needs = Mapping[str, pa.DataType | None]
"""Fields to read, with their types; None: whatever a field's type is."""

Lines = list[tuple[int, bytes]]
"""Numbers in the file, from 1, and texts without the space around them."""


STANDARD = Path("-")
"""Standard input or output: JSON Lines too."""

_BOM = b"\xef\xbb\xbf"

_ESCAPED_ASCII = re.compile(rb"\\u00[2-7]")
"""What the names of our fields could hide behind: no writer escapes these unless it wants to."""

_VECTORS = pa.list_(pa.list_(pa.float32()))

_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bz2",
    b"\x04\x22\x4d\x18": "lz4",
}


def shown(path: Path) -> str:
    """Return what errors call a file."""
    return "standard input" if path == STANDARD else str(path)


def check_name(path: Path) -> None:
    """Refuse a file that is not JSON Lines by its name."""
    if path == STANDARD:
        return
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    if not suffixes or suffixes[-1] not in SUFFIXES:
        known = ", ".join((".parquet", *SUFFIXES))
        raise ValueError(f"{path}: expected a file of {known} (or packed: {', '.join(PACKED)})")


def open_to_write(path: Path) -> Any:
    """Open a file for writing bytes, packed by its suffix."""
    return pa.output_stream(str(path), compression="detect")


def _open_to_read(path: Path) -> Any:
    """Open a file by its suffix, or standard input, packed where its first bytes say so."""
    if path != STANDARD:
        return pa.input_stream(str(path), compression="detect")
    source = getattr(sys.stdin, "buffer", None)
    if source is None or source.closed:
        raise ValueError("standard input: it is closed")
    if not hasattr(source, "peek"):
        source = io.BufferedReader(source)
    first = source.peek(4)[:4]
    stream = pa.PythonFile(source, mode="r")
    for magic, name in _MAGIC.items():
        if first.startswith(magic):
            return pa.CompressedInputStream(stream, name)
    return contextlib.nullcontext(source)


def blocks(path: Path, size: int) -> Iterator[tuple[int, Lines]]:
    """Yield a file's lines in blocks of about `size` bytes: the first one's number, and all.

    Blank lines are left out, and marks of UTF-8 (files put one behind the other have several).
    """
    number, rest = 1, b""
    with _open_to_read(path) as stream:
        try:
            while True:
                block = stream.read(size)
                end = block.rfind(b"\n")
                if end < 0 and block:
                    rest += block  # a line longer than a block
                    continue
                texts = block[: max(end, 0)].split(b"\n")
                texts[0], rest = rest + texts[0], block[end + 1 :]
                found = [
                    (number + i, line)
                    for i, text in enumerate(texts)
                    if (line := text.removeprefix(_BOM).strip())
                ]
                if found:
                    yield number, found
                number += len(texts)
                if not block:
                    return
        except OSError as error:  # of a packed file that is damaged
            raise ValueError(
                f"{shown(path)}: cannot be read on after line {number - 1}: {error}"
            ) from None


def in_counts(found: Iterable[tuple[int, Lines]], count: int) -> Iterator[tuple[int, Lines]]:
    """Yield the lines of blocks again, so many at a time."""
    kept: Lines = []
    for _, texts in found:
        kept += texts
        while len(kept) >= count:
            yield kept[0][0], kept[:count]
            kept = kept[count:]
    if kept:
        yield kept[0][0], kept


def parse(path: Path, number: int, lines: Lines, needs: Needs, *, whole: bool = False) -> pa.Table:
    """Parse a block of lines: the fields in `needs`, where a line has them, or `whole` lines.

    Raises
    ------
    ValueError
        If a line is not a JSON object of such fields; with file and line.
    """
    text = b"\n".join(line for _, line in lines)
    known = {name: kind for name, kind in needs.items() if kind is not None}
    if not text.isascii():
        _check_utf8(path, lines)
    vectors = {} if len(needs) < 2 and not whole else _vectors(text, known)
    if vectors:
        _, text = next(iter(vectors.values()))
        known = {name: kind for name, kind in known.items() if name not in vectors}
    all_known = not whole and len(known) + len(vectors) == len(needs)
    try:
        table = _parsed(text, known, all_known=all_known)
        texts = {field.name: _without_times(field.type) for field in table.schema}
        dated = any(texts[field.name] != field.type for field in table.schema)
        if dated or (b"null" in text and any(map(_nested, texts.values()))):
            # Read again with the types that were found: a text that looks like a date is a text;
            # and Arrow loses the last null of lists whose type it finds after a first one.
            table = _parsed(text, texts, all_known=all_known)
    except pa.ArrowInvalid as error:
        _find_bad(path, lines, needs)
        for place, line in lines:
            if (reason := _reason(line, known, all_known)) is not None:
                raise ValueError(f"{shown(path)}:{place}: {reason}") from None
        raise ValueError(f"{shown(path)}: lines {number} and on: {error}") from None
    except RecursionError:
        raise ValueError(
            f"{shown(path)}: lines {number} and on: expected values not nested so deeply"
        ) from None
    if table.num_rows != len(lines):
        _find_bad(path, lines, needs)
        raise ValueError(f"{shown(path)}: lines {number} and on: expected one JSON object a line")
    if vectors:
        for name, (column, _) in vectors.items():
            table = set_column(table, name, column)
        first = [n for n in needs if needs[n] is not None and n in table.column_names]
        table = table.select([*first, *(n for n in table.column_names if n not in first)])
    wanted = table.column_names if whole else [n for n in table.column_names if n in needs]
    present = [n for n in wanted if n not in needs or table[n].null_count < len(lines)]
    table = table.select(present)
    _refuse_rounded(path, lines, table)
    return table


def _check_utf8(path: Path, lines: Lines) -> None:
    for number, line in lines:
        try:
            line.decode()
        except UnicodeDecodeError:
            raise ValueError(f"{shown(path)}:{number}: expected UTF-8 text") from None


def _vectors(text: bytes, known: Mapping[str, pa.DataType]) -> dict[str, tuple[pa.Array, bytes]]:
    """Read the field of vectors, by far the longest, apart: its column, and the lines without it.

    Lines in which it is not plain - then or else wrong - are left to the other parser, whole.
    """
    names = [name for name, kind in known.items() if kind == _VECTORS]
    if len(names) != 1:
        return {}
    found = _native.json_vectors(text, names[0])
    if found is None:
        return {}
    values, counts, rest = found
    inner = np.arange(len(values) + 1, dtype=np.int32) * np.int32(values.shape[1])
    rows = pa.ListArray.from_arrays(pa.array(inner), pa.array(values.reshape(-1)))
    ends = pa.array(np.cumsum([0, *counts]).astype(np.int32))
    return {names[0]: (pa.ListArray.from_arrays(ends, rows), rest)}


def _parsed(text: bytes, types: Mapping[str, pa.DataType], *, all_known: bool) -> pa.Table:
    options = pj.ParseOptions(
        explicit_schema=pa.schema(list(types.items())) if types else None,
        newlines_in_values=False,
        unexpected_field_behavior="ignore" if all_known else "infer",
    )
    blocks = pj.ReadOptions(block_size=max(len(text) + 1, 1 << 16))
    return pj.read_json(io.BytesIO(text), blocks, options)


def _nested(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_struct(kind))


def _without_times(kind: pa.DataType) -> pa.DataType:
    """Return a type with strings where Arrow has guessed times."""
    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_without_times(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(f.name, _without_times(f.type)) for f in kind])
    return kind


def _refuse_rounded(path: Path, lines: Lines, table: pa.Table) -> None:
    """Refuse whole numbers that float64 does not hold: they would be other numbers, or tie.

    A field has one type for all lines: with a fraction in one of them, or a number beyond int64,
    all its numbers are float64.
    """
    for name in table.column_names:
        largest = (pc.max(pc.abs(values)).as_py() for values in _doubles(table[name]))
        if not any(value is not None and value >= 2**53 for value in largest):
            continue
        for (number, line), found in zip(lines, table[name].to_pylist(), strict=True):
            rounded = _rounded(json.loads(line).get(name), found)
            if rounded is not None:
                raise ValueError(
                    f"{shown(path)}:{number}: {name}: expected numbers that float64 holds, got "
                    f"{rounded} (a text keeps all digits)"
                )


def _doubles(column: pa.Array | pa.ChunkedArray) -> Iterator[pa.Array]:
    """Yield what a column has of float64, at all depths."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_float64(array.type):
        yield array
    elif pa.types.is_list(array.type):
        yield from _doubles(array.flatten())
    elif pa.types.is_struct(array.type):
        for place in range(array.type.num_fields):
            yield from _doubles(array.field(place))


def _rounded(written: Any, found: Any) -> int | None:
    """Return the first whole number in a value that was read as another one."""
    pairs: Iterable[tuple[Any, Any]] = ()
    if isinstance(written, int) and isinstance(found, float):
        return None if int(found) == written else written
    if isinstance(written, list) and isinstance(found, list):
        pairs = zip(written, found, strict=True)
    elif isinstance(written, dict) and isinstance(found, dict):
        pairs = ((value, found.get(name)) for name, value in written.items())
    rounded = (_rounded(*pair) for pair in pairs)
    return next((value for value in rounded if value is not None), None)


def _find_bad(path: Path, lines: Lines, needs: Needs) -> None:
    """Raise for the first line that cannot be read, by the slower parser that knows places."""
    for number, line in lines:
        try:
            value = json.loads(line, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{shown(path)}:{number}: expected a JSON object; {error}") from None
        if not isinstance(value, dict):
            raise ValueError(
                f"{shown(path)}:{number}: expected a JSON object, got {type(value).__name__}"
            ) from None
        for name, kind in needs.items():
            try:
                if kind is not None:
                    pa.array([value.get(name)], kind)
            except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, OverflowError) as error:
                reason = str(error).splitlines()[0]
                raise ValueError(
                    f"{shown(path)}:{number}: {name}: expected {kind} ({reason})"
                ) from None


def _reason(line: bytes, known: Mapping[str, pa.DataType], all_known: bool) -> str | None:
    """Say what Arrow has against a line, if anything, without the number that it has there."""
    try:
        _parsed(line, known, all_known=all_known)
    except pa.ArrowInvalid as error:
        return re.sub(r"\.? in row 0$", "", str(error))
    return None


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def with_columns(path: Path, lines: Lines, table: pa.Table) -> bytes:
    """Return lines with the columns of a table set as fields; all else as it was written.

    Raises
    ------
    ValueError
        If such a field stands twice in a line, or JSON has no such value; with file and line.
    """
    keys = [json.dumps(name).encode() for name in table.column_names]
    made: list[bytes | memoryview] = []
    for (number, line), row in zip(lines, table.to_pylist(), strict=True):
        try:
            if any(key in line for key in keys) or _ESCAPED_ASCII.search(line):
                made.append(with_fields(line.decode("utf-8"), row).encode() + b"\n")
                continue
            fields = ", ".join(f"{json.dumps(n)}: {_as_json(value)}" for n, value in row.items())
        except (ValueError, TypeError, RecursionError) as error:
            reason = _no_json(row) or error
            raise ValueError(f"{shown(path)}:{number}: {reason}") from None
        end = len(line) - 1
        while line[end - 1 : end].isspace():
            end -= 1
        comma = "" if end == 1 else ", "
        made += [memoryview(line)[:end], f"{comma}{fields}}}\n".encode()]
    return b"".join(made)


def from_table(table: pa.Table) -> bytes:
    """Return a table's rows as lines.

    Raises
    ------
    ValueError
        If JSON has no such value (not a number, bytes, a time); with the row.
    """
    lines = []
    for number, row in enumerate(table.to_pylist()):
        try:
            lines.append(_as_json(row))
        except (ValueError, TypeError) as error:
            raise ValueError(f"row {number}: {_no_json(row) or error}") from None
    return "".join(line + "\n" for line in lines).encode()


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _no_json(row: Mapping[str, Any]) -> str | None:
    """Say which field of a row JSON has no words for, if any."""
    for name, value in row.items():
        try:
            _as_json(value)
        except (ValueError, TypeError) as error:
            return f"{name}: expected what JSON holds ({error}); Parquet takes it"
    return None
