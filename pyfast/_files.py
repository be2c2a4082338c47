"""Files and folders that are written whole or not at all."""

import contextlib
import errno
import glob
import os
import secrets
import shutil
import stat
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

SECONDS_TO_LIVE = 86_400
"""The age at which a file that is being written counts as left behind, where others may write."""


def fsync(path: Path) -> None:
    """Push a file's content, or a folder's list of names, to the disk."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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


@contextlib.contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold a lock file; the system lets go of it when the process ends, however it ends.

    Parameters
    ----------
    path : Path
        An empty file, made if need be. What is there is not emptied, a link not followed. A holder
        who was alone removes it.
    shared : bool
        Hold it beside others who share it; else alone.

    Raises
    ------
    BlockingIOError
        If another process, or another call in this one, holds it.
    OSError
        If it cannot be made, or is no regular file.

    Notes
    -----
    Where the file system knows no locks a warning says so; Windows goes without one.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    handle = _open_lock(path)
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_NB | (fcntl.LOCK_SH if shared else fcntl.LOCK_EX))
            except BlockingIOError:
                raise BlockingIOError(errno.EWOULDBLOCK, "in use", str(path)) from None
            except OSError as error:
                warnings.warn(
                    f"{path}: cannot be locked here ({error.strerror}); let only one process "
                    "at a time write to what it stands for",
                    stacklevel=4,
                )
            if _is_at(handle, path):
                break
            os.close(handle)  # the holder before removed it in the meantime
            handle = _open_lock(path)
        try:
            yield
        finally:
            if not shared and _is_at(handle, path):
                path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _open_lock(path: Path) -> int:
    """Open a lock file: O_NONBLOCK, because a pipe of that name would wait for a reader."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    handle = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "expected a regular file", str(path))
    return handle


def _is_at(handle: int, path: Path) -> bool:
    """Tell whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


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
