"""Lines of a groups file, given fields without a change to the rest of their text."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pyfast.train.data import Group, as_object, group_of, lines
from pyfast.train.errors import UserError
from pyfast.train.files import to_json

_NOT_SPACE = re.compile(r"[^ \t\n\r]")


def read(path: str) -> Iterator[tuple[int, str, Group]]:
    """Read a groups file whose lines may have fields of their own.

    Parameters
    ----------
    path : str
        JSON Lines (see `Group`), or ``"-"``: standard input.

    Yields
    ------
    number : int
        The line's number in the file, from 1; blank lines count, and are left out.
    text : str
        The line, without the space around it.
    group : Group
        What it says, without the fields that are not a group's.

    Raises
    ------
    UserError
        ``file:line: expected ...`` for the first bad line, or if there is no group at all.
    """
    name, found = path, False
    stream = None
    if path == "-":
        name = "standard input"
        stream = getattr(sys.stdin, "buffer", None)
        if stream is None:
            raise UserError(f"{name}: it is closed")
    for number, text in lines(Path(path), name, stream):
        record = as_object(name, number, text, "a group object")
        try:
            yield number, text, group_of(record, strict=False)
        except UserError as error:
            raise UserError(f"{name}:{number}: {error}") from None
        found = True
    if not found:
        raise UserError(f"{name}: expected at least one group, the file has none")


def with_fields(text: str, fields: Mapping[str, Any]) -> str:
    """Set fields of a JSON object in its text.

    Parameters
    ----------
    text : str
        A JSON object, no name in it twice.
    fields : dict
        JSON values. A field that is there gets the new value in its place; others come last.

    Returns
    -------
    str
        The object; every other character is as it was.
    """
    missing = dict(fields)
    pieces, done, any_member = [], 0, False
    for name, start, end in _members(text):
        any_member = True
        if name in missing:
            pieces += [text[done:start], to_json(missing.pop(name))]
            done = end
    close = text.rindex("}")
    pieces.append(text[done:close].rstrip())
    for name, value in missing.items():
        pieces.append((", " if any_member else "") + f"{to_json(name)}: {to_json(value)}")
        any_member = True
    return "".join(pieces) + text[close:]


def _members(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield each field's name, and where its value starts and ends in the text."""
    decoder = json.JSONDecoder()

    def skip(position: int) -> int:
        found = _NOT_SPACE.search(text, position)
        return found.start() if found else len(text)

    position = skip(text.index("{") + 1)
    while text[position] != "}":
        name, position = decoder.raw_decode(text, position)
        start = skip(skip(position) + 1)  # after the colon
        _, end = decoder.raw_decode(text, start)
        yield name, start, end
        position = skip(end)
        if text[position] == ",":
            position = skip(position + 1)
