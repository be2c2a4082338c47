"""The one global setting of the package: how many threads a native call may use."""

import operator
import os

# More is a slip; asking the system for a million threads would end the process.
MOST_THREADS = 1024

_limit: int | None = None
_forked = False


def _after_fork() -> None:
    # The OpenMP runtime does not survive a fork: a child that enters a parallel region hangs.
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _available() -> int:
    named = os.environ.get("OMP_NUM_THREADS", "")
    if named.isdecimal() and int(named) > 0:
        return min(int(named), MOST_THREADS)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def get_num_threads() -> int:
    """Return the number of threads that a call without ``n_threads`` may use.

    The value set by :func:`set_num_threads`; else ``OMP_NUM_THREADS``; else the CPUs this
    process may run on. Always 1 in a forked child.
    """
    return 1 if _forked else _limit or _available()


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
    _limit = None if n_threads is None else resolve_threads(n_threads)


def resolve_threads(n_threads: int | None) -> int:
    """Return the number of threads for one call; 1 in a forked child, whatever is asked."""
    if n_threads is None:
        return get_num_threads()
    try:
        if isinstance(n_threads, bool):
            raise TypeError
        number = operator.index(n_threads)  # numpy's integers too
    except TypeError:
        kind = type(n_threads).__name__
        raise TypeError(f"n_threads: expected an int or None, got {kind}") from None
    if not 1 <= number <= MOST_THREADS:
        raise ValueError(f"n_threads: expected 1 to {MOST_THREADS}, got {number}")
    return 1 if _forked else number
