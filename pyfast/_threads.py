"""The one global setting of the package: how many threads a native call may use."""

import math
import operator
import os
import re
import warnings
from pathlib import Path

import numpy as np

from pyfast import _native

# More is a slip; asking the system for a million threads would end the process.
MOST_THREADS = 1024

_limit: int | None = None
_forked = False
_ROOT = Path("/")
_quotas: dict[Path, int | None] = {}  # by root: read once, since a call takes microseconds
_told: set[str] = set()
_runtime_at_start = _native.openmp_threads()


def _after_fork() -> None:
    # A forked child is one of many workers as a rule, each with a CPU to itself at best.
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _named(variable: str, most: int) -> int | None:
    """Return the first number of an OpenMP variable, None if there is none up to `most`.

    OMP_NUM_THREADS may be a list, one number for each level of nested parallel regions; ours are
    not nested.
    """
    text = os.environ.get(variable)
    if not text:
        return None
    first = text.partition(",")[0].strip()
    number = int(first) if re.fullmatch(r"\+?[0-9]{1,18}", first) else 0
    if 0 < number <= most:
        return number
    if text.strip() and (told := f"{variable}={text}") not in _told:
        _told.add(told)
        warnings.warn(
            f"{variable}: expected 1 to {most} threads, or a list of such numbers, got {text!r}, "
            "which is ignored",
            RuntimeWarning,
            stacklevel=4,
        )
    return None


def _cpus() -> int:
    """Return the CPUs that this process may run on, and may use by its container's quota."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    if _ROOT not in _quotas:
        _quotas[_ROOT] = cgroup_cpus(_ROOT)
    return min(count, _quotas[_ROOT] or count)


def cgroup_cpus(root: Path) -> int | None:
    """Return the CPUs that the cgroups of this process allow, rounded up; None without a quota.

    Of version 2 (cpu.max) and 1 (cpu.cfs_quota_us by cpu.cfs_period_us), in the process's own group
    and all above it: the least holds. `root` stands for the file system's.
    """
    quotas = []
    for folder in _cgroup_folders(root):
        for of_files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            try:
                words = " ".join((folder / name).read_text() for name in of_files).split()
                quota, period = int(words[0]), int(words[1])
            except (OSError, ValueError, IndexError):  # "max", no such file, or not readable
                continue
            if quota > 0 and period > 0:
                quotas.append(max(1, math.ceil(quota / period)))
    return min(quotas, default=None)


def _cgroup_folders(root: Path) -> list[Path]:
    """Return the folders of this process's groups up to where the file systems are mounted."""
    mounted = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):
        lines = []
    folders = [mounted, mounted / "cpu", mounted / "cpu,cpuacct"]
    for line in lines:
        parts = line.split(":", 2)  # number, controllers, path
        if len(parts) < 3 or ".." in Path(parts[2]).parts:
            continue
        if parts[1] == "":
            tops = [mounted, mounted / "unified"]
        elif "cpu" in parts[1].split(","):
            tops = [mounted / parts[1], mounted / "cpu"]
        else:
            continue
        own = Path(parts[2].lstrip("/"))
        for top in tops:
            folders += [top / own, *(top / above for above in own.parents)]
    return folders


def _available() -> int:
    named = _named("OMP_NUM_THREADS", MOST_THREADS)
    count = named if named is not None else _cpus()
    # threadpoolctl and omp_set_num_threads change what OpenMP would take, in this thread. 0: this
    # build does not ask it.
    runtime = _native.openmp_threads()
    if runtime > 0 and (named is None or runtime != _runtime_at_start):
        count = min(count, runtime)
    return count


def _capped(number: int) -> int:
    """Return `number`, at most OMP_THREAD_LIMIT: OpenMP would not give more."""
    limit = _named("OMP_THREAD_LIMIT", 2**31 - 1)
    return number if limit is None else min(number, limit)


def get_num_threads() -> int:
    """Return the number of threads that a call without ``n_threads`` may use.

    The value set by :func:`set_num_threads`. Else the first number of ``OMP_NUM_THREADS``; or, if
    it is not set, the CPUs that this process may run on, of a container no more than its quota
    (cgroup 1 or 2, read at the first call, rounded up). What OpenMP itself has been limited to
    here and now, by threadpoolctl for one, limits these too, unless the extension was built
    without it. Never more than ``OMP_THREAD_LIMIT`` or 1024, and always 1 in a forked child.
    """
    return 1 if _forked else _capped(_limit or _available())


def set_num_threads(n_threads: int | None) -> None:
    """Set the number of threads for later calls, in this process alone.

    Results do not depend on it, and torch's own setting is left as it is.

    Parameters
    ----------
    n_threads : int or None
        1 to 1024; None goes back to the default of :func:`get_num_threads`.

    Raises
    ------
    ValueError, TypeError
        If `n_threads` is not a positive int or None.
    """
    global _limit
    _limit = None if n_threads is None else _checked(n_threads)


def resolve_threads(n_threads: int | None) -> int:
    """Return the number of threads for one call; 1 in a forked child, whatever is asked."""
    if n_threads is None:
        return get_num_threads()
    number = _checked(n_threads)
    return 1 if _forked else _capped(number)


def _checked(n_threads: int) -> int:
    try:
        if isinstance(n_threads, (bool, np.bool_)):
            raise TypeError
        number = operator.index(n_threads)  # numpy's integers too
    except TypeError:
        kind = type(n_threads).__name__
        raise TypeError(f"n_threads: expected an int or None, got {kind}") from None
    if not 1 <= number <= MOST_THREADS:
        raise ValueError(f"n_threads: expected 1 to {MOST_THREADS}, got {number}")
    return number
