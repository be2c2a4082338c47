"""Parquet files with columns set, all others copied as they lie: neither decoded nor encoded again.

A column of embeddings is most of a file, and a stage that adds a few numbers a response would
spend more on writing it again than on its own work. A row group's columns are runs of bytes that
the footer points at: they are copied, the new ones put beside them, and a footer written for all.
"""

from __future__ import annotations

import functools
import io
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pyfast.tables import footers
from pyfast.tables.footers import BINARY, I16, I32, I64, LIST, STRUCT, Struct

_MAGIC = b"PAR1"
_COPY_BYTES = 1 << 20

# Field numbers of parquet.thrift, by structure.
_SCHEMA, _FILE_ROWS, _ROW_GROUPS, _KEY_VALUES, _CREATED_BY, _ORDERS, _ENCRYPTION = range(2, 9)
_NAME, _CHILDREN = 4, 5
_COLUMNS, _GROUP_BYTES, _GROUP_ROWS = 1, 2, 3
_GROUP_OFFSET, _GROUP_PACKED, _ORDINAL = 5, 6, 7
_OTHER_FILE, _CHUNK_OFFSET, _CHUNK_META = 1, 2, 3
_PAGE_INDEX, _CHUNK_ENCRYPTION = (4, 5, 6, 7), (8, 9)
_PLAIN_BYTES, _PACKED_BYTES, _DATA_PAGE, _INDEX_PAGE, _DICTIONARY_PAGE = 6, 7, 9, 10, 11
_BLOOM = (14, 15)

_ARROW = b"ARROW:schema"


@dataclass(frozen=True)
class Footer:
    """A file's footer, its schema cut into columns.

    Attributes
    ----------
    meta : dict
        The whole footer.
    columns : dict of str to list
        The schema's elements of each column, by its name.
    leaves : dict of str to slice
        Which of a row group's chunks are a column's.
    """

    meta: Struct
    columns: dict[str, list[Struct]]
    leaves: dict[str, slice]


def usable(paths: Sequence[Path]) -> bool:
    """Tell whether the columns of these files can be copied as they lie, into one file.

    Not where files have other schemas, are encrypted, have columns of the same name or in other
    files, or come from the writers of old that told chunks' sizes wrong.
    """
    try:
        found = [footer(path) for path in dict.fromkeys(paths)]
    except ValueError:
        return False
    return all(one is not None and _same(one, found[0]) for one in found)


def footer(path: Path) -> Footer | None:
    """Read a file's footer; None if its columns cannot be copied."""
    stat = path.stat()
    return _footer(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=4)
def _footer(path: Path, _: int, size: int) -> Footer | None:
    if size < 12:
        return None
    with open(path, "rb") as stream:
        stream.seek(size - 8)
        length, magic = struct.unpack("<I4s", stream.read(8))
        if magic != _MAGIC or length + 12 > size:
            return None
        stream.seek(size - 8 - length)
        return _cut(footers.decode(stream.read(length)))


def _cut(meta: Struct) -> Footer | None:
    """Cut a footer's schema, which lists a tree's elements depth first, into columns."""
    elements = meta[_SCHEMA][1][1]
    columns: dict[str, list[Struct]] = {}
    leaves: dict[str, slice] = {}
    place = leaf = 1
    for _ in range(_get(elements[0], _CHILDREN, 0)):
        first, first_leaf, open_ = place, leaf, 1
        while open_:
            inner = _get(elements[place], _CHILDREN, 0)
            open_ += inner - 1
            leaf += not inner
            place += 1
        name = elements[first][_NAME][1].decode()
        if name in columns:
            return None
        columns[name] = elements[first:place]
        leaves[name] = slice(first_leaf - 1, leaf - 1)
    old = re.match(rb"parquet-mr version 1\.[012]\.", _get(meta, _CREATED_BY, b""))
    chunks = [chunk for group in _row_groups(meta) for chunk in group[_COLUMNS][1][1]]
    apart = any(n in chunk for chunk in chunks for n in (_OTHER_FILE, *_CHUNK_ENCRYPTION))
    whole = all(_CHUNK_META in chunk for chunk in chunks)
    if old or apart or not whole or _ENCRYPTION in meta:
        return None
    return Footer(meta, columns, leaves)


def _same(one: Footer, other: Footer | None) -> bool:
    """Tell whether two files' row groups fit one footer."""
    if other is None:
        return False
    same = (_SCHEMA, _ORDERS, _KEY_VALUES, _CREATED_BY)
    return all(one.meta.get(number) == other.meta.get(number) for number in same)


class Writer:
    """Writes row groups of files with columns set.

    Parameters
    ----------
    path : path
        The file to write.
    codec : str
        How the columns that are set are compressed.
    """

    def __init__(self, path: Path, codec: str) -> None:
        self._path, self._codec = path, codec
        self._groups: list[Struct] = []
        self._rows = 0
        self._meta: Struct | None = None
        self._expected: pa.Schema | None = None
        self._buffer = memoryview(bytearray(_COPY_BYTES))

    def __enter__(self) -> Writer:
        self._stream = open(self._path, "wb")
        self._stream.write(_MAGIC)
        return self

    @property
    def empty(self) -> bool:
        """Whether no row group was written."""
        return self._meta is None

    def add(self, path: Path, group: int, table: pa.Table) -> None:
        """Add a row group of a `usable` file, with the columns of a table of as many rows set.

        Raises
        ------
        ValueError
            If the table's rows are not as many, or its columns' types not those of before.
        """
        source = footer(path)
        assert source is not None  # it was usable
        kept = _row_groups(source.meta)[group]
        if table.num_rows != kept[_GROUP_ROWS][1]:
            raise ValueError(
                f"{path}: expected {kept[_GROUP_ROWS][1]} rows of row group {group}, "
                f"got {table.num_rows}"
            )
        data = io.BytesIO()
        pq.write_table(
            table, data, compression=self._codec, use_dictionary=False, row_group_size=1 << 30
        )
        made = data.getvalue()
        (length,) = struct.unpack("<I", made[-8:-4])
        fresh = _cut(footers.decode(made[-8 - length : -8]))
        assert fresh is not None
        assert len(_row_groups(fresh.meta)) == 1
        meta = self._head(path, source, fresh, table.schema)
        if self._meta is not None and meta != self._meta:
            raise ValueError(f"{path}: expected columns of the same types in all row groups")
        self._meta = meta
        with open(path, "rb", buffering=0) as stream:
            chunks = []
            for name in _names(source, fresh):
                if name in fresh.columns:
                    found = _row_groups(fresh.meta)[0][_COLUMNS][1][1][fresh.leaves[name]]
                    chunks += [self._copy(chunk, data) for chunk in found]
                else:
                    found = kept[_COLUMNS][1][1][source.leaves[name]]
                    chunks += [self._copy(chunk, stream) for chunk in found]
        self._groups.append(_row_group(chunks, table.num_rows, len(self._groups)))
        self._rows += table.num_rows

    def _copy(self, chunk: Struct, stream: Any) -> Struct:
        """Copy a column's bytes, and return where they are now."""
        meta = chunk[_CHUNK_META][1]
        pages = [_get(meta, n, 0) for n in (_DATA_PAGE, _INDEX_PAGE, _DICTIONARY_PAGE)]
        start = min(page for page in pages if page > 0)
        moved = self._stream.tell() - start
        left = meta[_PACKED_BYTES][1]
        stream.seek(start)
        while left:
            count = stream.readinto(self._buffer[:left])
            if not count:
                raise ValueError("expected a whole Parquet file, a column's bytes end early")
            self._stream.write(self._buffer[:count])
            left -= count
        meta = {number: held for number, held in meta.items() if number not in _BLOOM}
        for number in (_DATA_PAGE, _INDEX_PAGE, _DICTIONARY_PAGE):
            if _get(meta, number, 0) > 0:
                meta[number] = (I64, meta[number][1] + moved)
        chunk = {number: held for number, held in chunk.items() if number not in _PAGE_INDEX}
        return chunk | {_CHUNK_OFFSET: (I64, 0), _CHUNK_META: (STRUCT, meta)}

    def _head(self, path: Path, source: Footer, fresh: Footer, added: pa.Schema) -> Struct:
        """Return the footer without row groups."""
        names = _names(source, fresh)
        elements, orders = [], []
        for name in names:
            of = fresh if name in fresh.columns else source
            elements += of.columns[name]
            known = _get(of.meta, _ORDERS, (STRUCT, []))[1]
            orders += known[of.leaves[name]]
        root = source.meta[_SCHEMA][1][1][0] | {_CHILDREN: (I32, len(names))}
        meta = source.meta | {_SCHEMA: (LIST, (STRUCT, [root, *elements]))}
        if _ORDERS in meta:
            meta[_ORDERS] = (LIST, (STRUCT, orders))
        if self._expected is None:
            self._expected = _set_fields(pq.read_schema(path), added)
        if _KEY_VALUES in meta:
            pairs = [_arrow(pair, self._expected) for pair in meta[_KEY_VALUES][1][1]]
            meta[_KEY_VALUES] = (LIST, (STRUCT, pairs))
        apart = (_FILE_ROWS, _ROW_GROUPS)
        return {number: held for number, held in meta.items() if number not in apart}

    def __exit__(self, kind: Any, *_: object) -> None:
        with self._stream:
            if kind is not None or self._meta is None:
                return
            groups = (LIST, (STRUCT, self._groups))
            meta = self._meta | {_FILE_ROWS: (I64, self._rows), _ROW_GROUPS: groups}
            data = footers.encode(meta)
            self._stream.write(data + struct.pack("<I", len(data)) + _MAGIC)
        self._check()

    def _check(self) -> None:
        """Refuse what Arrow would not read as the columns that were meant."""
        with pq.ParquetFile(self._path) as file:
            found = file.schema_arrow
            if not found.equals(self._expected) or file.metadata.num_rows != self._rows:
                raise ValueError(
                    f"{self._path}: expected the columns {self._expected}, would be {found}"
                )


def _names(source: Footer, fresh: Footer) -> list[str]:
    """Return all columns in order: those that are set in their old places, or last."""
    return list(dict.fromkeys([*source.columns, *fresh.columns]))


def _set_fields(schema: pa.Schema, added: pa.Schema) -> pa.Schema:
    for field in added:
        place = schema.get_field_index(field.name)
        schema = schema.append(field) if place < 0 else schema.set(place, field)
    return schema


def _arrow(pair: Struct, schema: pa.Schema) -> Struct:
    """Return a pair of the footer's key and value, Arrow's own schema being that of all columns."""
    if pair[1][1] != _ARROW:
        return pair
    data = io.BytesIO()
    pq.write_table(schema.empty_table(), data)
    made = data.getvalue()
    (length,) = struct.unpack("<I", made[-8:-4])
    meta = footers.decode(made[-8 - length : -8])
    (value,) = [held[2][1] for held in meta[_KEY_VALUES][1][1] if held[1][1] == _ARROW]
    return {1: (BINARY, _ARROW), 2: (BINARY, value)}


def _row_groups(meta: Struct) -> list[Struct]:
    found: list[Struct] = _get(meta, _ROW_GROUPS, (STRUCT, []))[1]
    return found


def _row_group(chunks: list[Struct], rows: int, ordinal: int) -> Struct:
    metas = [chunk[_CHUNK_META][1] for chunk in chunks]
    first = metas[0]
    start = min(n for f in (_DATA_PAGE, _DICTIONARY_PAGE) if (n := _get(first, f, 0)) > 0)
    made: Struct = {
        _COLUMNS: (LIST, (STRUCT, chunks)),
        _GROUP_BYTES: (I64, sum(meta[_PLAIN_BYTES][1] for meta in metas)),
        _GROUP_ROWS: (I64, rows),
        _GROUP_OFFSET: (I64, start),
        _GROUP_PACKED: (I64, sum(meta[_PACKED_BYTES][1] for meta in metas)),
    }
    if ordinal < 1 << 15:
        made[_ORDINAL] = (I16, ordinal)
    return made


def _get(value: Struct, number: int, otherwise: Any) -> Any:
    return value[number][1] if number in value else otherwise
