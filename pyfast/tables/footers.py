"""Parquet's footer, read and written whole: what is not known here is kept as it came.

A footer is one structure of Thrift's compact protocol. Only so much of that is here as it takes
to read any structure and to write it back: a structure is a dict of field number to (type, value),
a list is (type of its elements, values). What the numbers mean is in Parquet's `parquet.thrift`.
"""

from __future__ import annotations

import struct
from typing import Any

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
_INTEGERS = (I16, I32, I64)

Struct = dict[int, tuple[int, Any]]


def decode(data: bytes) -> Struct:
    """Read a structure.

    Raises
    ------
    ValueError
        If it is not one, or something comes after it.
    """
    reader = _Reader(data)
    try:
        found: Struct = reader.value(STRUCT)
    except (IndexError, struct.error):
        raise ValueError("expected a whole footer, it ends early") from None
    if reader.place != len(data):
        raise ValueError("expected a footer, something follows it")
    return found


def encode(value: Struct) -> bytes:
    """Write a structure."""
    out = bytearray()
    _write(out, STRUCT, value)
    return bytes(out)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def value(self, kind: int) -> Any:
        """Read a value of a type."""
        if kind in _INTEGERS:
            return self._integer()
        if kind == BINARY:
            return self._bytes(self._varint())
        if kind == STRUCT:
            return self._struct()
        if kind in (LIST, SET):
            return self._list()
        if kind == BYTE:
            return self._byte()
        if kind == DOUBLE:
            return self._bytes(8)
        raise ValueError(f"expected a footer as Parquet describes it, got a value of type {kind}")

    def _byte(self) -> int:
        self.place += 1
        return self.data[self.place - 1]

    def _bytes(self, count: int) -> bytes:
        found = self.data[self.place : self.place + count]
        self.place += count
        if len(found) != count:
            raise IndexError
        return found

    def _varint(self) -> int:
        found = shift = 0
        while True:
            byte = self._byte()
            found |= (byte & 127) << shift
            if byte < 128:
                return found
            shift += 7

    def _integer(self) -> int:
        found = self._varint()
        return (found >> 1) ^ -(found & 1)

    def _struct(self) -> Struct:
        found: Struct = {}
        number = 0
        while (header := self._byte()) != 0:
            kind = header & 15
            number = number + (header >> 4) if header >> 4 else self._integer()
            found[number] = (kind, kind == TRUE if kind in (TRUE, FALSE) else self.value(kind))
        return found

    def _list(self) -> tuple[int, list[Any]]:
        header = self._byte()
        kind, count = header & 15, header >> 4
        if count == 15:
            count = self._varint()
        if kind in (TRUE, FALSE):
            return kind, [self._byte() for _ in range(count)]
        return kind, [self.value(kind) for _ in range(count)]


def _write(out: bytearray, kind: int, value: Any) -> None:
    if kind in _INTEGERS:
        _write_varint(out, value << 1 if value >= 0 else (-value << 1) - 1)
    elif kind == BINARY:
        _write_varint(out, len(value))
        out += value
    elif kind == STRUCT:
        last = 0
        for number, (inner, held) in sorted(value.items()):
            if inner in (TRUE, FALSE):
                inner = TRUE if held else FALSE
            if 0 < number - last < 16:
                out.append((number - last) << 4 | inner)
            else:
                out.append(inner)
                _write(out, I16, number)
            if inner not in (TRUE, FALSE):
                _write(out, inner, held)
            last = number
        out.append(0)
    elif kind in (LIST, SET):
        inner, values = value
        if len(values) < 15:
            out.append(len(values) << 4 | inner)
        else:
            out.append(15 << 4 | inner)
            _write_varint(out, len(values))
        for held in values:
            if inner in (TRUE, FALSE):
                out.append(held)
            else:
                _write(out, inner, held)
    elif kind == BYTE:
        out.append(value)
    else:  # DOUBLE
        out += value


def _write_varint(out: bytearray, value: int) -> None:
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
