"""From a store whose rows are all done to a pool in its place."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyfast._files import fsync
from pyfast.sketch._fidelity import FidelityReport, compare
from pyfast.sketch._fingerprint import listed
from pyfast.sketch._job import Job
from pyfast.sketch._pool import NOT_FINITE, REPORT, ZERO, array_kinds, decode, digest, sealed
from pyfast.sketch._shards import Work
from pyfast.sketch._store import PARTS, Entry, Store, clear, save_array, write_json


def finish(job: Job, store: Store) -> None:
    """Write all that a pool has beside its rows; pool.json, which says that it is whole, last."""
    entries = [entry for entry in store.entries if "rows" in entry]
    columns = {**_columns(job.info, entries), "responses": job.digests}
    report = _report(job, store, columns)
    info = {
        **job.info,
        "report_on": [] if report is None else _reported(job, columns),
        "made_with": _distinct([e["session"] for e in store.entries if "session" in e]),
    }
    names = [name for name in array_kinds(info) if name != "sketches"]
    for name in names:
        save_array(store.folder / f"{name}.npy", columns[name])
    files = [f"{name}.npy" for name in names]
    if report is not None:
        report.save(store.folder / REPORT)
        files.append(REPORT)
    info["files"] = {name: digest((store.folder / name).read_bytes()) for name in files}
    info["files"]["sketches.npy"] = digest(store.header)
    write_json(store.folder / "pool.json", sealed(info))
    _warn(job, columns)


def put_in_place(work: Work) -> None:
    """Rename a finished store, if there is one, to the pool; a shorter one makes room."""
    store = work.store()
    if not work.is_complete():
        return
    if work.pool.exists():
        _check_prefix(work.pool, store)
        if work.before.exists():
            clear(work.before)
    clear(store, PARTS)
    fsync(store)
    if work.pool.exists():
        work.pool.rename(work.before)
    store.rename(work.pool)
    fsync(work.pool.parent)


def clear_leftovers(work: Work, count: int) -> None:
    """Remove what was needed to make a pool of `count` responses; not what is for a longer one."""
    if all(info["count"] <= count for info in work.stores().values()):
        with contextlib.suppress(OSError):  # something in it is not ours
            work.clear()


def _check_prefix(pool: Path, store: Path) -> None:
    """Refuse to replace a pool by one that does not begin with it."""
    try:
        old, new = (np.load(folder / "checks.npy") for folder in (pool, store))
        same = len(old) <= len(new) and np.array_equal(old, new[: len(old)])
    except (OSError, ValueError, EOFError):
        same = False
    if not same:
        raise ValueError(
            f"folder: {store} is a complete pool that does not begin with what is in {pool}; "
            "move one of them away"
        )


def _columns(info: dict[str, Any], entries: list[Entry]) -> dict[str, NDArray[Any]]:
    """Return what the entries say of all rows, as the pool's arrays."""
    kinds = {**array_kinds(info), "scales": (np.float64, (info["count"],))}
    columns = {name: np.zeros(shape, dtype) for name, (dtype, shape) in kinds.items()
               if name not in ("sketches", "responses")}  # fmt: skip
    for entry in entries:
        for name, column in columns.items():
            column[entry["rows"]] = entry[name]
    return columns


def _reported(job: Job, columns: dict[str, NDArray[Any]]) -> list[int]:
    """Return the responses to report on whose gradient is neither zero nor not finite."""
    good = [number for number in job.report_on if columns["flags"][number] == 0]
    return good if len(good) > 1 else []


def _report(job: Job, store: Store, columns: dict[str, NDArray[Any]]) -> FidelityReport | None:
    """Compare exact and stored inner products; an extended pool keeps its report."""
    if (store.folder / REPORT).exists():
        return FidelityReport.load(store.folder / REPORT)
    numbers, gradients = _reported(job, columns), store.whole_gradients()
    if not numbers or gradients is None:
        return None
    rows = decode(
        [store.row(number) for number in numbers],
        columns["scales"][numbers].tolist(),
        job.info["dtype"],
        job.info["dim"],
    )
    at = [job.report_on.index(number) for number in numbers]
    whole = gradients if len(at) == len(gradients) else gradients[at]
    return compare(job.collector, whole, rows)


def _distinct(sessions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for session in sessions:
        if session not in found:
            found.append(session)
    return found


def _warn(job: Job, columns: dict[str, NDArray[Any]]) -> None:
    """Say which gradients are zero or not finite, or that different responses have all the same."""
    flags = columns["flags"]
    for flag, what, then in (
        (ZERO, "exactly zero in all matrices", "rows of zeros"),
        (NOT_FINITE, "not finite", "rows of NaN, which selectors refuse"),
    ):
        bad = np.flatnonzero(flags == flag).tolist()
        if bad:
            warnings.warn(
                f"{job.work.pool}: the gradients of {len(bad)} of {len(flags)} responses are "
                f"{what} ({then}; see flags): {listed(bad, 8)}",
                stacklevel=5,
            )
    rows = np.flatnonzero((columns["lengths"] > 0) & (flags == 0))
    same = len(rows) > 2 and len(np.unique(columns["checks"][rows])) == 1
    if same and len(np.unique(job.digests[rows], axis=0)) > 2:
        warnings.warn(
            f"{job.work.pool}: the gradients of all {len(rows)} responses are equal, although "
            "their tokens are not",
            stacklevel=5,
        )
