"""JSON objects that are given fields without a change to the rest of their text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_NOT_SPACE = re.compile(r"[^ \t\n\r]")


def with_fields(text: str, fields: Mapping[str, Any]) -> str:
    """Set fields of a JSON object in its text.

    Parameters
    ----------
    text : str
        A JSON object.
    fields : dict
        JSON values. A field that is there gets the new value in its place; others come last.

    Returns
    -------
    str
        The object; every other character is as it was.

    Raises
    ------
    ValueError
        If one of the fields stands there twice: readers would not agree on its value.
    """
    missing = dict(fields)
    pieces, done, any_member = [], 0, False
    for name, start, end in _members(text):
        any_member = True
        if name in missing:
            pieces += [text[done:start], _to_json(missing.pop(name))]
            done = end
        elif name in fields:
            raise ValueError(f"{name!r} stands twice in one object")
    close = text.rindex("}")
    pieces.append(text[done:close].rstrip())
    for name, value in missing.items():
        pieces.append((", " if any_member else "") + f"{_to_json(name)}: {_to_json(value)}")
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


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
