"""Files and folders that are written whole or not at all."""

import contextlib
import errno
import functools
import glob
import os
import re
import shutil
import socket
import stat
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

SECONDS_TO_LIVE = 86_400
"""The age at which a file that is being written counts as left behind, where others may write."""


_TEMPORARY = re.compile(r"\.tmp-(?:([0-9a-f]{8})-)?(\d+)-[0-9a-f]{8}(?:\.[^/]*)?$")
"""How the names of what is being written end: machine, process, a random number, suffix."""


def fsync(path: Path) -> None:
    """Push a file's content, or a folder's list of names, to the disk."""
    folder = path.is_dir()
    if folder and os.name == "nt":  # Windows cannot open folders
        return
    handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if not (folder and error.errno in (errno.EINVAL, errno.ENOTSUP, errno.EBADF)):
            raise  # some file systems know no flushing of folders
    finally:
        os.close(handle)


def clear_leftovers(folder: Path, pattern: str = ".*.tmp-*", *, age: float = 0.0) -> None:
    """Remove what killed writers have left in a folder: names as `written_whole` makes them.

    Parameters
    ----------
    folder : Path
        Of a caller who is alone in it, where `age` is 0.
    pattern : str
        Names to remove, as for `Path.glob`.
    age : float
        Seconds since the last change, at least; what a dead process of this machine was writing
        is removed at once.
    """
    for left in folder.glob(pattern):
        writer = _TEMPORARY.search(left.name)
        if writer is None and ".tmp-" in left.name:
            continue  # somebody else's
        with contextlib.suppress(OSError):  # another process may be faster
            now = left.lstat()
            if time.time() - now.st_mtime >= age or (writer and _is_dead(*writer.groups())):
                shutil.rmtree(left) if stat.S_ISDIR(now.st_mode) else left.unlink()


def _is_dead(machine: str | None, process: str) -> bool:
    """Tell whether a writer is known to have ended; one of another machine is not."""
    if machine != _this_machine() or os.name == "nt":  # there the question would end the process
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass
    return False


@functools.cache
def _this_machine() -> str:
    """Return what tells this machine, its start and its container from others.

    A process's number means nothing in those.
    """
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        parts.append(os.readlink("/proc/self/ns/pid"))
    import hashlib  # takes as long to load as all that is around it

    return hashlib.blake2b("\n".join(parts).encode(), digest_size=4).hexdigest()


@contextlib.contextmanager
def locked(path: Path, *, shared: bool = False, keep: bool = False) -> Iterator[None]:
    """Hold a lock file; the system lets go of it when the process ends, however it ends.

    Parameters
    ----------
    path : Path
        An empty file, made if need be. What is there is not emptied, a link not followed. A holder
        who was alone removes it, unless it is to be kept.
    shared : bool
        Hold it beside others who share it; else alone.
    keep : bool
        Leave the file where it is.

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
            if not (shared or keep) and _is_at(handle, path):
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
    stem = os.fsdecode(os.fsencode(path.stem)[:180])  # a name may take 255 bytes
    start, end = f".{stem}.tmp-", path.suffix
    pattern = f"{glob.escape(start)}*{glob.escape(end)}"
    clear_leftovers(path.parent, pattern, age=SECONDS_TO_LIVE)
    return path.with_name(f"{start}{_this_machine()}-{os.getpid()}-{os.urandom(4).hex()}{end}")


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Write a file beside `path`, and rename it into place only once it is complete.

    Parameters
    ----------
    path : Path
        New or to be replaced. Of a symbolic link, the file that it stands for is written; a file
        that is replaced leaves its mode (and its owner, where the system allows it) to the new
        one. Of a file with several names (hard links) the others keep what it was. A pipe, a
        device or ``/dev/stdout`` gets the content once it is complete.

    Yields
    ------
    Path
        The temporary path to write to; it keeps the suffix of `path`. After an error nothing at
        `path` has changed. Of several writers the last one to be complete is what stays.

    Raises
    ------
    OSError
        With the name of `path` or of its folder: a folder, no such folder, write-protected, a full
        disk, a name too long.
    """
    path = Path(path)
    target = _destination(path)
    try:
        before = os.stat(target)
    except FileNotFoundError:
        before = None
    if before is not None and stat.S_ISDIR(before.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if before is not None and (not stat.S_ISREG(before.st_mode) or _descriptor(target)):
        with tempfile.TemporaryDirectory() as folder:
            whole = Path(folder) / f"whole{path.suffix}"
            yield whole
            _pour(whole, target)
        return
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(target.parent))
    if before is not None and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, "write-protected", str(path))
    beside = _beside(target)
    try:
        yield beside
        fsync(beside)
        if before is not None:
            _give_mode(beside, before)
        beside.replace(target)
        fsync(target.parent)
    except OSError as error:
        if error.filename in (str(beside), os.fspath(beside)):  # a name that says nothing
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


@contextlib.contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """Make a folder beside `path` for a while; what a killed process leaves is cleared as a file's.

    Yields
    ------
    Path
    """
    folder = _beside(path)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _destination(path: Path) -> Path:
    """Follow symbolic links up to what is to be written; an open file of a process is an end."""
    start = path
    for _ in range(40):  # as many as Linux follows
        path = Path(os.path.realpath(path.parent)) / path.name
        if _descriptor(path) or not os.path.islink(path):
            return path
        path = path.parent / os.readlink(path)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(start))


def _descriptor(path: Path) -> re.Match[str] | None:
    """Recognise the open files of a process, such as what ``/dev/stdout`` stands for."""
    return re.fullmatch(r"/proc/(\d+)(?:/task/\d+)?/fd/(\d+)|/dev/(fd)/(\d+)", str(path))


def _pour(source: Path, target: Path) -> None:
    """Write a file's content to what is no file of a folder."""
    found = _descriptor(target)
    try:
        if found and (found[3] or int(found[1]) == os.getpid()):
            handle = os.dup(int(found[2] or found[4]))  # where it stands: `>> file` goes on
        else:
            handle = os.open(target, os.O_WRONLY)
        with open(source, "rb") as whole, open(handle, "wb") as sink:
            shutil.copyfileobj(whole, sink)
    except BrokenPipeError:
        raise
    except OSError as error:
        error.filename = error.filename or str(target)
        raise


def _give_mode(path: Path, like: os.stat_result) -> None:
    """Give a new file the mode of the one that it replaces, and its owner if that is allowed."""
    with contextlib.suppress(OSError, AttributeError):  # another's file; Windows
        os.chown(path, -1, like.st_gid)
        os.chown(path, like.st_uid, -1)
    with contextlib.suppress(OSError):  # file systems without modes
        os.chmod(path, stat.S_IMODE(like.st_mode))


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
