"""Files that only grow, by a line at a time, each on the disk before anything follows from it."""

from __future__ import annotations

import contextlib
import errno
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pyfast._files import fsync
from pyfast.train.data.lines import as_object, lines
from pyfast.train.errors import UserError
from pyfast.train.files import to_json


def checked(record: dict[str, Any]) -> str:
    """Return a record as a line of JSON with a checksum of itself, without the line's end."""
    return to_json({**record, "check": _check(record)})


def unchecked(path: Path, number: int, text: str, wanted: str) -> dict[str, Any]:
    """Return the record of a line that `checked` made.

    Raises
    ------
    UserError
        ``file:line: expected {wanted}: ...`` for one that is not as it was written.
    """
    record = as_object(path, number, text, wanted)
    check = record.pop("check", None)
    if check != _check(record):
        raise UserError(f"{path}:{number}: expected {wanted}: its checksum differs")
    return record


def _check(record: dict[str, Any]) -> str:
    return f"{zlib.crc32(to_json(record).encode()):08x}"


def whole_lines(path: Path) -> list[tuple[int, str]]:
    """Return the numbered lines; what a kill has left after the last whole one is none."""
    if not path.exists():
        return []
    with path.open("rb") as stream:
        return list(lines(path, stream=stream, growing=True))


@contextlib.contextmanager
def growing(path: Path) -> Iterator[BinaryIO]:
    """Open a file where its last whole line ends; leave nothing after the last one at the end."""
    is_new = not path.exists()
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0) as file:
        if is_new:
            fsync(path.parent)  # or its name could be lost, and the lines with it
        end = file.read().rfind(b"\n") + 1
        file.truncate(end)
        file.seek(end)
        try:
            yield file
        finally:
            with contextlib.suppress(OSError):
                file.truncate(file.tell())


def append(file: BinaryIO, path: Path, line: str) -> None:
    """Write a line, and push it to the disk.

    Raises
    ------
    OSError
        If there is no room for it.
    """
    start = file.tell()
    data = line.encode() + b"\n"
    if file.write(data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    file.truncate(start + len(data))
    os.fsync(file.fileno())


def reserve(file: BinaryIO, path: Path, size: int) -> None:
    """Take the room for a line from the disk, so that none is lost because it is full."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file.fileno(), file.tell(), size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # where it cannot be done
            raise OSError(error.errno, error.strerror, str(path)) from None
