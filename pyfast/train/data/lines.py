"""Lines of text files, packed ones too, and the JSON objects on them."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pyfast.train.errors import UserError
from pyfast.train.files import parse_json


def lines(
    path: Path,
    name: str | None = None,
    stream: IO[bytes] | None = None,
    *,
    growing: bool = False,
) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text) of UTF-8 text, blank lines left out.

    Parameters
    ----------
    path : Path
        The file; with the suffix .gz, .bz2, .xz or .zst it is unpacked.
    name : str, optional
        What errors call it; default: its path.
    stream : binary file, optional
        Read instead of the file.
    growing : bool
        Lines are still being added: leave out a last one without its end.
    """
    name = name or str(path)
    try:
        with contextlib.nullcontext(stream) if stream else unpacked(path) as source:
            for number, raw in enumerate(source, start=1):
                if growing and not raw.endswith(b"\n"):
                    break
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                except UnicodeDecodeError:
                    raise UserError(f"{name}:{number}: expected UTF-8 text") from None
                if "\0" in text:  # as in UTF-16 without its mark
                    raise UserError(f"{name}:{number}: expected UTF-8 text, got a zero byte")
                if text:
                    yield number, text
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{name}: {getattr(error, 'strerror', None) or error}") from None


def unpacked(path: Path) -> IO[bytes]:
    """Open a file for reading bytes, unpacked by its suffix."""
    kinds = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _zstandard}
    return kinds.get(path.suffix.lower(), open)(path, "rb")  # type: ignore[no-any-return,operator]


def _zstandard(path: Path, mode: str) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise UserError(f"{path}: reading .zst needs pyarrow (pip install pyarrow)") from None
    path.open(mode).close()  # its own errors have no plain words
    return pyarrow.input_stream(str(path), compression="zstd")


def as_object(name: str | Path, number: int, text: str, wanted: str) -> dict[str, Any]:
    """Read the JSON object of one line; `wanted` says what it should be."""
    place = f"{name}:{number}"
    try:
        value = parse_json(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: expected {wanted}; not JSON: {error.msg}") from None
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    except RecursionError:
        raise UserError(f"{place}: expected {wanted}, not nested so deeply") from None
    if not isinstance(value, dict):
        raise UserError(f"{place}: expected {wanted}, got {type(value).__name__}")
    return value
