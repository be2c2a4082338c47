"""What a run makes once and keeps: files that tell whether they are as they were written.

A run goes on from them, so one that somebody has changed would be learnt from, or counted, in
silence. Beside each lies its SHA-256, under its name and ``.sha256``.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyfast._files import written_whole
from pyfast.train.errors import UserError
from pyfast.train.files import read_json, sha256, to_json


def write(path: Path, value: Any) -> None:
    """Write a JSON value, whole or not at all."""
    content = (to_json(value, indent=2) + "\n").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_digest(path, hashlib.sha256(content).hexdigest())  # first: no file is without one
    with written_whole(path) as beside:
        beside.write_bytes(content)


def read(path: Path) -> Any:
    """Read what `write` has written.

    Raises
    ------
    UserError
        With the file, if it is not as it was written.
    """
    if not _digest_path(path).exists():
        raise _changed(path)
    verify(path)
    return read_json(path)


@contextlib.contextmanager
def sealed(path: Path) -> Iterator[Path]:
    """Write a file whole or not at all (`written_whole`), and its digest before it is there."""
    with written_whole(path) as beside:
        yield beside
        _write_digest(path, sha256(beside))


def verify_all(run: Path) -> None:
    """Refuse a run folder in which a file is not as its digest says; a file may be missing."""
    for folder in (run, run / "evaluation"):
        for digest in sorted(folder.glob("*.sha256")):
            if digest.with_suffix("").exists():
                verify(digest.with_suffix(""))


def remove(path: Path) -> None:
    """Remove a file and its digest, where they are."""
    path.unlink(missing_ok=True)
    _digest_path(path).unlink(missing_ok=True)


def seal(path: Path) -> None:
    """Keep a file's digest, or refuse the file if there is one and it is another."""
    if _digest_path(path).exists():
        verify(path)
    else:
        _write_digest(path, sha256(path))


def verify(path: Path) -> None:
    """Refuse a file that is not as its digest says."""
    if _digest_path(path).read_bytes().strip() != sha256(path).encode():
        raise _changed(path)


def _digest_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _write_digest(path: Path, digest: str) -> None:
    with written_whole(_digest_path(path)) as beside:
        beside.write_text(digest + "\n", encoding="ascii")


def _changed(path: Path) -> UserError:
    return UserError(
        f"{path}: expected what the run has kept there, as it was written; put the file back as it "
        "was, or begin the run again in another --out"
    )
