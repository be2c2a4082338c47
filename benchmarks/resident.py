"""By how much a process's resident memory rises above what it is now (Linux).

``ru_maxrss`` will not do: it begins at the peak of the process that started this one, and where
that is larger nothing is ever seen to rise.
"""

from pathlib import Path


def reset() -> int:
    """Let the peak begin anew at what is resident now; return it in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    """Return the peak since the last reset, in bytes."""
    return _status("VmHWM")


def mapped() -> int:
    """Return the bytes of files that are mapped, which the system takes back when it wants to."""
    return _status("RssFile")


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.partition(f"{name}:")[2].split()[0])
