"""The passes over a model that fill a store, and rows that come from elsewhere."""

from __future__ import annotations

import platform
import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyfast.sketch._batches import split
from pyfast.sketch._fingerprint import listed
from pyfast.sketch._job import Job
from pyfast.sketch._pool import NOT_FINITE, REPORT, ZERO, SketchPool, decode, encode
from pyfast.sketch._shards import Work
from pyfast.sketch._store import Entry, Store

_AT_ONCE = 256  # rows of a finished pool that are taken over together


def passes_left(job: Job, store: Store, done: set[int], rank: int, world: int) -> list[list[int]]:
    """Return the passes that a rank still has to make, each within max_tokens.

    Batches go to the ranks in turn. What was cut into a smaller batch by a call before is cut
    at the same places, because the rest of a batch begins where its last pass ended.
    """
    batches = [
        [number for number in batch if number not in done]
        for at, batch in enumerate(job.batches())
        if at % world == rank
    ]
    again = [[n for n in rows if n not in done] for rows in store.redo]
    damaged = {number for rows in again for number in rows}
    batches = [[n for n in batch if n not in damaged] for batch in batches]
    if damaged:
        warnings.warn(
            f"{store.folder}: the rows of {len(damaged)} responses were damaged on the disk and "
            f"are made again: {listed(sorted(damaged))}",
            stacklevel=4,
        )
    return [p for b in [*again, *batches] for p in split(b, job.sizes, job.max_tokens)]


def sketch_all(job: Job, store: Store, passes: list[list[int]], progress: bool) -> None:
    """Make the passes, after a look whether the model still gives what it gave."""
    if not passes:
        return
    _probe(job, store)
    store.note(_session(job))
    total, left = len(job.responses), sum(map(len, passes))
    with _Bar(total, total - left, progress) as bar:
        for numbers in passes:
            store.write(*_sketched(job, numbers))
            bar.update(len(numbers))


def adopt_pool(store: Store, pool: SketchPool) -> None:
    """Copy a finished pool's rows, whose checksums are right, and its report into a store."""
    done = store.done
    if pool.fidelity is not None:
        pool.fidelity.save(store.folder / REPORT)
    for start in range(0, len(pool), _AT_ONCE):
        rows = [n for n in range(start, min(start + _AT_ONCE, len(pool))) if n not in done]
        if rows:
            scales = np.ones(len(pool)) if pool.scales is None else pool.scales
            entry = {
                "rows": rows,
                "flags": pool.flags[rows].tolist(),
                "lengths": pool.lengths[rows].tolist(),
                "squared_norms": pool.squared_norms[rows].tolist(),
                "logps": pool.logps[rows].tolist(),
                "scales": scales[rows].tolist(),
            }
            store.write(entry, [pool.stored[row].tobytes() for row in rows], {})
    for session in pool.info["made_with"]:
        store.note(session)


def adopt_stores(work: Work, store: Store) -> None:
    """Copy what other ranks have done into a store; what is damaged there is made again here."""
    for folder, info in work.stores().items():
        if folder == store.folder:
            continue
        with Store(folder, info) as other:
            done = store.done
            for entry in other.entries:
                if "session" in entry:
                    store.note(entry["session"])
                elif not done.issuperset(entry["rows"]):
                    store.write(entry, *other.rows_of(entry))
            store.redo += other.redo


def _sketched(
    job: Job, numbers: list[int]
) -> tuple[Entry, list[bytes], dict[int, NDArray[np.float32]]]:
    """Sketch some responses in one pass, bad gradients flagged: what `Store.write` takes."""
    reported = set(job.report_on)
    gradients = {n: np.empty(job.collector.size, np.float32) for n in numbers if n in reported}
    batch = job.collector.sketch_numbers(job.responses, numbers, gradients)
    rows = batch.sketches.cpu().numpy()
    finite = np.isfinite(batch.part_norms).all(axis=1) & np.isfinite(rows).all(axis=1)
    zero = (batch.part_norms == 0).all(axis=1) & (batch.lengths > 0)
    norms = np.where(finite, batch.squared_norms, np.nan)
    rows[~finite] = np.nan
    stored, scales = encode(rows, job.info["dtype"])
    entry = {
        "rows": numbers,
        "flags": np.where(finite, np.where(zero, ZERO, 0), NOT_FINITE).tolist(),
        "lengths": batch.lengths.tolist(),
        "squared_norms": norms.tolist(),
        "logps": batch.logps.tolist(),
        "scales": scales,
    }
    return entry, stored, gradients


def _probe(job: Job, store: Store) -> None:
    """Refuse to go on with a model that gives other gradients than those that are there.

    The shortest response is sketched again. Other batches, devices and versions round differently;
    what no fingerprint sees (code that was changed, hooks) does more than that.
    """
    usable = [
        (int(job.sizes[row]), row, scale)
        for entry in store.entries
        if "rows" in entry
        for row, scale, flag, length in zip(
            *(entry[name] for name in ("rows", "scales", "flags", "lengths")), strict=True
        )
        if length > 0 and flag == 0
    ]
    if not usable:
        return
    _, number, scale = min(usable)
    dtype, dim = job.info["dtype"], job.info["dim"]
    before = decode([store.row(number)], [scale], dtype, dim)
    now = job.collector.sketch_numbers(job.responses, [number], {}).sketches.cpu().numpy()
    error = float(np.linalg.norm(now - before) / np.linalg.norm(before))
    half = any(p.dtype in (torch.float16, torch.bfloat16) for p in job.collector.model.parameters())
    if not error <= (0.2 if half else 0.01):
        raise ValueError(
            f"model: the gradient of response {number} is not what it was in {store.folder} "
            f"(relative difference {error:.2g}), although weights and configuration are: something "
            "else has changed (code, a hook); pass resume=False to start anew"
        )


def _session(job: Job) -> dict[str, Any]:
    """Return what numbers may depend on in their last bits."""
    found = {"python": platform.python_version()}
    for name in ("pyfast-align", "numpy", "torch", "transformers", "peft"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    device = job.collector.device
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {**found, "device": f"{device.type} {kind}", "max_tokens": job.max_tokens}


class _Bar:
    """tqdm's progress bar, or nothing."""

    def __init__(self, total: int, done: int, show: bool) -> None:
        self._bar: Any = None
        if show:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=total, initial=done, desc="sketching", unit="response")

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, count: int) -> None:
        """Move on by `count` responses."""
        if self._bar is not None:
            self._bar.update(count)
