"""A pool in the making: rows in files, and a journal that says which of them are done.

A store is a folder that one process fills. ``info.json`` says what it is for, ``sketches.npy`` has
room for all rows, ``gradients.npy`` for those of the report, and each line of ``journal.jsonl``
tells of one pass: its responses, what else it gave, and checksums of their rows. A line is written
once the rows are on the disk, in one piece and with a checksum of its own: what a kill tears off is
made again, by passes over the same responses, to the same bits.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyfast._files import written_whole

Entry = dict[str, Any]
"""A journal's line: lists of one length, `rows` and what was found for each of them."""

PARTS = ("info.json", "journal.jsonl", "gradients.npy")
"""What only a pool in the making has."""


class Store:
    """A folder to be filled, made if need be.

    Attributes
    ----------
    entries : list of Entry
        What is done, every row of it checked.
    redo : list of list of int
        Passes whose rows were found damaged, to be made again in the same company.
    """

    def __init__(
        self,
        folder: Path,
        info: dict[str, Any],
        own: Sequence[int] = (),
        digests: NDArray[np.uint64] | None = None,
    ) -> None:
        self.folder, self.info = folder, info
        self.entries: list[Entry] = []
        self.redo: list[list[int]] = []
        if folder.is_symlink():
            raise ValueError(f"folder: {folder} is a link; expected a folder of ours, or nothing")
        new = read_info(folder) is None
        if new and folder.exists():  # what its rows are of cannot be told
            clear(folder)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._rows = Rows(folder / "sketches.npy", info["dtype"], info["count"], info["dim"])
            self._rows.reserve(own)
            self._wanted = {number: row for row, number in enumerate(info["report_asked"])}
            self._gradients = None
            if self._wanted:
                size = sum(info["sizes"])
                self._gradients = Rows(folder / "gradients.npy", "float32", len(self._wanted), size)
                mine = set(own)
                self._gradients.reserve([r for n, r in self._wanted.items() if n in mine])
        except OSError:
            if new:
                clear(folder)
            raise
        if digests is not None:
            save_array(folder / "responses.npy", digests)
            write_json(folder / "info.json", info)
        self._read_journal()

    def _read_journal(self) -> None:
        path = self.folder / "journal.jsonl"
        lines = read_journal(self.folder)
        for entry in lines:
            good = "rows" not in entry or self._is_good(entry)
            if good:
                self.entries.append(entry)
            else:
                self.redo.append(entry["rows"])
        with _room(path), written_whole(path) as beside:  # without what was torn off
            beside.write_bytes(b"".join(_line(entry) for entry in self.entries))
        self._journal = _open(path, os.O_WRONLY | os.O_APPEND)

    def _is_good(self, entry: Entry) -> bool:
        """Tell whether an entry's rows are what was written."""
        fits = all(0 <= row < self.info["count"] for row in entry["rows"])
        return (
            fits
            and all(
                zlib.crc32(self._rows.read(row)) == crc
                for row, crc in zip(entry["rows"], entry["checks"], strict=True)
            )
            and all(
                number in self._wanted
                and self._gradients is not None
                and zlib.crc32(self._gradients.read(self._wanted[number])) == crc
                for number, crc in zip(*entry["gradients"], strict=True)
            )
        )

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._journal)
        self._rows.close()
        if self._gradients is not None:
            self._gradients.close()

    @property
    def done(self) -> set[int]:
        """Return the numbers of the rows that are done."""
        return {row for entry in self.entries for row in entry.get("rows", ())}

    def note(self, session: dict[str, Any]) -> None:
        """Write down with what the passes from here on are made."""
        self._append({"session": session})

    def write(
        self, entry: Entry, rows: Sequence[bytes], gradients: dict[int, NDArray[np.float32]]
    ) -> None:
        """Write one pass: its rows, and when they are on the disk, that they are done.

        `entry` has all but the checksums; `gradients` are those of the responses by number.
        """
        for number, row in zip(entry["rows"], rows, strict=True):
            self._rows.write(number, row)
        for number, gradient in gradients.items():
            assert self._gradients is not None
            self._gradients.write(self._wanted[number], gradient.tobytes())
        self._rows.flush()
        if self._gradients is not None and gradients:
            self._gradients.flush()
        checks = [zlib.crc32(row) for row in rows]
        of_gradients = [list(gradients), [zlib.crc32(g.tobytes()) for g in gradients.values()]]
        self._append({**entry, "checks": checks, "gradients": of_gradients})

    def _append(self, entry: Entry) -> None:
        with _room(self.folder / "journal.jsonl"):
            _write_all(self._journal, _line(entry))
            os.fsync(self._journal)
        self.entries.append(entry)

    def rows_of(self, entry: Entry) -> tuple[list[bytes], dict[int, NDArray[np.float32]]]:
        """Return what `write` was given for an entry."""
        gradients = {}
        for number in entry["gradients"][0]:
            assert self._gradients is not None
            row = self._gradients.read(self._wanted[number])
            gradients[number] = np.frombuffer(row, np.float32)
        return [self._rows.read(row) for row in entry["rows"]], gradients

    def row(self, number: int) -> bytes:
        """Return a response's row as it is stored."""
        return self._rows.read(number)

    @property
    def header(self) -> bytes:
        """What the file of rows begins with."""
        return self._rows.header

    def whole_gradients(self) -> NDArray[np.float32] | None:
        """Return the gradients of the report, mapped, or None where some were never made."""
        made = {n for entry in self.entries for n in entry.get("gradients", ((),))[0]}
        if self._gradients is None or made != set(self._wanted):
            return None
        return np.lib.format.open_memmap(self.folder / "gradients.npy", "r")


class Rows:
    """An .npy file of equal rows, read and written one by one."""

    def __init__(self, path: Path, dtype: str, count: int, width: int) -> None:
        self.path = path
        self._size = width * np.dtype(dtype).itemsize
        header = io.BytesIO()
        kind = {"descr": np.dtype(dtype).newbyteorder("<").str, "fortran_order": False}
        np.lib.format.write_array_header_1_0(header, {**kind, "shape": (count, width)})
        self.header = header.getvalue()
        self._start = len(self.header)
        self._handle = _open(path, os.O_RDWR)
        self._total = self._start + count * self._size
        with _room(path):
            os.ftruncate(self._handle, self._total)
            _write_all(self._handle, self.header, 0)

    def reserve(self, rows: Sequence[int]) -> None:
        """Take the blocks of rows from the disk, so that what does not fit is told at once."""
        if not hasattr(os, "posix_fallocate"):
            return
        numbers = np.unique(np.asarray(rows, np.int64))
        for run in np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1):
            if len(run) == 0:
                continue
            try:
                with _room(self.path):
                    place = self._start + int(run[0]) * self._size
                    os.posix_fallocate(self._handle, place, len(run) * self._size)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # where it cannot be done
                    raise
                return

    def read(self, row: int) -> bytes:
        """Return a row's bytes."""
        parts, place, left = [], self._start + row * self._size, self._size
        while left > 0:
            part = _read_at(self._handle, left, place)
            if not part:
                raise OSError(errno.EIO, "is shorter than it was", str(self.path))
            parts.append(part)
            place, left = place + len(part), left - len(part)
        return b"".join(parts)

    def write(self, row: int, content: bytes) -> None:
        """Write a row's bytes."""
        with _room(self.path):
            _write_all(self._handle, content, self._start + row * self._size)

    def flush(self) -> None:
        """Push what was written to the disk."""
        with _room(self.path):
            os.fsync(self._handle)

    def close(self) -> None:
        os.close(self._handle)


def read_journal(folder: Path) -> list[Entry]:
    """Return the lines of a store's journal that are whole."""
    try:
        content = (folder / "journal.jsonl").read_bytes()
    except FileNotFoundError:
        return []
    entries = []
    for line in content.split(b"\n"):
        with contextlib.suppress(ValueError):
            check, text = line[:8], line[9:]
            if int(check, 16) == zlib.crc32(text):
                entries.append(json.loads(text))
    return entries


def read_info(folder: Path) -> dict[str, Any] | None:
    """Return what a store is for, or None where nothing can be read."""
    try:
        info = json.loads((folder / "info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return info if isinstance(info, dict) else None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a dictionary as JSON, whole or not at all."""
    with _room(path), written_whole(path) as beside:
        beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write an .npy file, whole or not at all."""
    with _room(path), written_whole(path) as beside:
        np.save(beside, array, allow_pickle=False)


def clear(folder: Path, names: Sequence[str] | None = None) -> None:
    """Remove a folder of ours, one level deep, or some of its files; what is not ours stays.

    Raises
    ------
    OSError
        If something in it is not ours, or cannot be removed.
    """
    if folder.is_symlink():
        raise OSError(errno.ELOOP, "is a link, which is not followed", str(folder))
    for path in sorted(folder.iterdir()):
        ours = path.name in (OURS if names is None else names)
        if ours or (path.name.startswith(".") and ".tmp-" in path.name):
            path.unlink(missing_ok=True)
    if names is None:
        folder.rmdir()


OURS = (
    *PARTS, "pool.json", "fidelity.json", "sketches.npy", "squared_norms.npy", "logps.npy",
    "lengths.npy", "flags.npy", "scales.npy", "checks.npy", "responses.npy", "done.npy",
)  # fmt: skip
"""The names of our files; done.npy is of version 1."""


def _line(entry: Entry) -> bytes:
    text = json.dumps(entry).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _open(path: Path, flags: int) -> int:
    """Open a file of ours for writing, made if need be; links are not followed."""
    flags |= os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.open(path, flags, 0o666)


def _read_at(handle: int, count: int, place: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(handle, count, place)
    os.lseek(handle, place, os.SEEK_SET)  # Windows
    return os.read(handle, count)


def _write_at(handle: int, content: memoryview, place: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(handle, content, place)
    os.lseek(handle, place, os.SEEK_SET)
    return os.write(handle, content)


def _write_all(handle: int, content: bytes, place: int | None = None) -> None:
    view = memoryview(content)
    while view:
        count = os.write(handle, view) if place is None else _write_at(handle, view, place)
        view, place = view[count:], None if place is None else place + count


@contextlib.contextmanager
def _room(path: Path) -> Iterator[None]:
    """Say which file it is that the disk has no room for."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, getattr(errno, "EDQUOT", None), errno.EFBIG):
            raise
        reason = f"{error.strerror}; what is done is kept, and the same call goes on with it"
        raise OSError(error.errno, reason, str(path)) from None
