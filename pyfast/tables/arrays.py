"""Arrow columns as numpy arrays, without a copy, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pyfast import _arguments as args

Floats = NDArray[np.float32] | NDArray[np.float64]


def check_table(table: Any) -> None:
    """Refuse the batches that `datasets` and Ray Data give where nobody asked them for Arrow's.

    Raises
    ------
    TypeError
        With what to ask for.
    """
    if not isinstance(table, pa.Table):
        raise TypeError(
            f"table: expected a pyarrow.Table, got {type(table).__name__} (datasets gives one "
            'after with_format("arrow"), with batched=True; Ray Data with batch_format="pyarrow")'
        )


def whole(table: pa.Table, name: str) -> pa.Array:
    """Return a column as one array (without a copy if it has one chunk).

    Raises
    ------
    ValueError
        If there is no such column, or more than one; it names those that there are.
    """
    if name not in table.column_names:
        raise ValueError(f"{name}: expected a column of this name, got {table.column_names}")
    if table.column_names.count(name) > 1:
        raise ValueError(f"{name}: expected one column of this name, got {table.column_names}")
    column = table.column(name)
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # of an empty table
        array = pa.array([], column.type)
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def numbers(table: pa.Table, name: str) -> tuple[Floats, NDArray[np.int64]]:
    """Return a column of one list of numbers a row, end to end, with offsets (rows + 1,).

    Raises
    ------
    ValueError
        If it holds something else, or nothing in some place.
    """
    values, offsets = _lists(whole(table, name), name)
    return _floats(values, name), offsets


def vectors(table: pa.Table, name: str) -> tuple[Floats, NDArray[np.int64]]:
    """Return a column of one list of equally long vectors a row: (T, d), with offsets (rows + 1,).

    Raises
    ------
    ValueError
        If it holds something else, nothing in some place, or vectors of several lengths.
    """
    rows, offsets = _lists(whole(table, name), name)
    if isinstance(rows, pa.ExtensionArray):
        rows = rows.storage
    values, inner = _lists(rows, name)
    flat = _floats(values, name)
    lengths = np.diff(inner)
    if len(lengths) == 0:
        return flat.reshape(0, 0), offsets
    if (lengths != lengths[0]).any() or lengths[0] == 0:
        bad = int((lengths != lengths[0]).argmax())
        row = int(np.searchsorted(offsets, bad, side="right")) - 1
        raise ValueError(
            f"{name}: expected vectors of {lengths[0]} numbers, got {lengths[bad]} in row {row}"
        )
    return flat.reshape(-1, int(lengths[0])), offsets


def lists(values: NDArray[Any], offsets: NDArray[np.int64], kind: pa.DataType) -> pa.Array:
    """Return a column of one list a row from values end to end."""
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values, type=kind))


def set_column(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    """Return the table with a column in its old place, or at the end.

    Raises
    ------
    ValueError
        If there are several of its name.
    """
    if table.column_names.count(name) > 1:
        raise ValueError(f"{name}: expected one column of this name, got {table.column_names}")
    place = table.schema.get_field_index(name)
    if place >= 0:
        return table.set_column(place, name, column)
    return table.append_column(name, column)


def _lists(array: pa.Array, name: str) -> tuple[pa.Array, NDArray[np.int64]]:
    """Return the values of a column of lists, and where those of each row begin, from 0."""
    if array.null_count:
        row = int(np.asarray(array.is_null()).argmax())
        raise ValueError(f"{name}: expected a list in every row, got null in row {row}")
    kind = array.type
    if pa.types.is_fixed_size_list(kind):
        values = array.flatten()  # of a slice, its own
        return values, np.arange(len(array) + 1, dtype=np.int64) * kind.list_size
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise ValueError(f"{name}: expected lists, got {kind}")
    offsets = np.asarray(array.offsets).astype(np.int64)
    values = array.values[int(offsets[0]) : int(offsets[-1])]
    return values, offsets - offsets[0]


def _floats(values: pa.Array, name: str) -> Floats:
    """Return numbers as float32 or float64: as they lie if they are one of these."""
    if values.null_count:
        raise ValueError(f"{name}: expected a number in every place, got null")
    if not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type)):
        raise ValueError(f"{name}: expected numbers, got {values.type}")
    return args.as_floats(values.to_numpy(zero_copy_only=False), name)
