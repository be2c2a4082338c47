"""By how much a process's resident memory rises above what it is now (Linux).

``ru_maxrss`` will not do: it begins at the peak of the process that started this one, and where
that is larger nothing is ever seen to rise.
"""

import os
import sys
from pathlib import Path

import pytest

MEASURED = pytest.mark.skipif(
    not sys.platform.startswith("linux") or "asan" in os.environ.get("LD_PRELOAD", ""),
    reason="reads the peak as Linux tells it, and a sanitizer keeps what is freed",
)


def reset() -> int:
    """Let the peak begin anew at what is resident now; return it in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    """Return the peak since the last reset, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])
