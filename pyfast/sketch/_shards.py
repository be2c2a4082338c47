"""Where the work on a pool lies until it is finished, and how much of it there is.

Beside a pool NAME: the lock ``.NAME.lock``, and the folder ``.NAME.partial`` with one store for
each rank that has worked on it, ``0-of-1`` if that is one process.
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyfast.sketch._store import clear, read_info, read_journal

_STORE = re.compile(r"(\d+)-of-(\d+)")


@dataclass(frozen=True)
class Work:
    """The paths of what is beside a pool."""

    pool: Path

    @property
    def lock(self) -> Path:
        """Held by all who write."""
        return self.pool.with_name(f".{self.pool.name}.lock")

    @property
    def folder(self) -> Path:
        """Where unfinished work is."""
        return self.pool.with_name(f".{self.pool.name}.partial")

    @property
    def before(self) -> Path:
        """Where a pool goes when a longer one takes its place."""
        return self.folder / "before"

    def store(self, rank: int = 0, world: int = 1) -> Path:
        """Return a rank's store."""
        return self.folder / f"{rank}-of-{world}"

    def rank_lock(self, rank: int, world: int) -> Path:
        """Return what a rank holds while it works."""
        return self.folder / f"{rank}-of-{world}.lock"

    def stores(self) -> dict[Path, dict[str, Any]]:
        """Return all stores that have begun, with what they are for."""
        if not self.folder.is_dir():
            return {}
        found = {p: read_info(p) for p in sorted(self.folder.iterdir()) if _STORE.fullmatch(p.name)}
        return {path: info for path, info in found.items() if info is not None}

    def done(self) -> set[int]:
        """Return the responses that are in a finished pool, or that some rank has sketched."""
        rows = set(range(self.finished()))
        for store in self.stores():
            for entry in read_journal(store):
                rows.update(entry.get("rows", ()))
        return rows

    def is_done(self) -> bool:
        """Tell whether nothing is missing."""
        counts = [info["count"] for info in self.stores().values()]
        return bool(counts) and len(self.done()) >= max(counts)

    def is_complete(self) -> bool:
        """Tell whether all is written and only has to be put in place."""
        return (self.store() / "pool.json").exists()

    def finished(self) -> int:
        """Return the responses of the pool that is there, 0 if none is."""
        try:
            info = json.loads((self.pool / "pool.json").read_text(encoding="utf-8"))
            return int(info["count"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def is_of_version_1(self) -> bool:
        """Tell whether the version before left it."""
        return (self.folder / "pool.json").exists() or (self.folder / "done.npy").exists()

    def clear(self) -> None:
        """Remove it all; what is not ours stays, and is an error.

        Raises
        ------
        OSError
            If something is not ours, or cannot be removed.
        """
        if not self.folder.exists():
            return
        for path in self.folder.iterdir():
            if _STORE.fullmatch(path.name) or path == self.before:
                clear(path)
            elif path.name.endswith(".lock") and _STORE.fullmatch(path.stem):
                path.unlink()
        clear(self.folder)


def what_is_missing(pool: Path) -> str:
    """Say how far the work on a pool has come, or nothing where none is."""
    work = Work(pool)
    stores = work.stores()
    if work.is_complete():
        return "it is complete; the same call of collect puts it in place"
    if not stores:
        return ""
    count = max(info["count"] for info in stores.values())
    said = [f"it is unfinished: {len(work.done())} of {count} responses are sketched"]
    worlds = {info["share"]["world"] for info in stores.values()}
    for world in sorted(worlds - {1}):
        begun = {i["share"]["rank"]: s for s, i in stores.items() if i["share"]["world"] == world}
        for rank, store in sorted(begun.items()):
            rows, have = stores[store]["share"]["rows"], _rows_of(store)
            if have < rows:
                said.append(f"rank {rank} of {world} has {have} of its {rows}")
        absent = [str(rank) for rank in range(world) if rank not in begun]
        if absent:
            said.append(f"of {world} ranks {', '.join(absent)} have not begun")
    return "; ".join(said)


def _rows_of(store: Path) -> int:
    with contextlib.suppress(OSError):
        return sum(len(entry.get("rows", ())) for entry in read_journal(store))
    return 0
