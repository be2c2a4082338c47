"""Lines of a groups file, each with its text and what it says."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from pyfast.train.data.group import Group, group_of
from pyfast.train.data.lines import as_object, lines
from pyfast.train.errors import UserError


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
