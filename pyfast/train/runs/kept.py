"""What a run makes once and keeps: JSON files that tell whether they are as they were written.

A run goes on from them, so one that somebody has changed would be learnt from, or counted, in
silence. Each object holds a checksum: of itself, or of the whole list that it stands in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyfast.train.errors import UserError
from pyfast.train.files import checksum, read_json, write_json

_CHECK = "check"


def write(path: Path, value: Any) -> None:
    """Write an object, or a list of objects, whole or not at all."""
    digest = checksum(value)
    is_one = isinstance(value, dict)
    parts = [{**part, _CHECK: digest} for part in ([value] if is_one else value)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, parts[0] if is_one else parts)


def read(path: Path) -> Any:
    """Read what `write` has written.

    Raises
    ------
    UserError
        With the file, if it is not as it was written.
    """
    value = read_json(path)
    parts = [value] if isinstance(value, dict) else value
    if isinstance(parts, list) and all(isinstance(part, dict) for part in parts):
        found = {repr(part.pop(_CHECK, None)) for part in parts}
        if parts and found == {repr(checksum(value))}:
            return value
    raise UserError(
        f"{path}: expected what the run has kept there, as it was written; put the file back as it "
        "was, or begin the run again in another --out"
    )
