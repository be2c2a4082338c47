"""What one call of `collect` is to make, and whether what is there already belongs to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyfast import _arguments as args
from pyfast.sketch._batches import Response, plan_sizes
from pyfast.sketch._collector import LoraGradients
from pyfast.sketch._fingerprint import differences, digest_responses, fingerprint, listed
from pyfast.sketch._pool import FORMAT, SketchPool
from pyfast.sketch._shards import Work

_ANEW = "; pass resume=False to start anew"
_ELSEWHERE = "; give another folder"


class Job:
    """Responses to be sketched into a folder, and what is there of them.

    Attributes
    ----------
    info : dict
        What pool.json will say, once `settle` has looked at what is there.
    base : SketchPool or None
        A finished pool of the first responses.
    """

    def __init__(
        self,
        collector: LoraGradients,
        responses: Sequence[Response],
        sizes: NDArray[np.int64],
        folder: Path,
        *,
        max_tokens: int,
        fidelity: int | None,
        dtype: str,
        base: SketchPool | str | Path | None,
    ) -> None:
        self.collector, self.responses, self.sizes = collector, responses, sizes
        self.work, self.max_tokens, self.fidelity = Work(folder), max_tokens, fidelity
        self.digests = digest_responses(responses)
        self.info: dict[str, Any] = {}
        self.base: SketchPool | None = None
        self._given = base
        self._core: dict[str, Any] = {
            **FORMAT,
            "dim": collector.dim,
            "seed": collector.seed,
            "names": list(collector.names),
            "sizes": [part.size for part in collector.parts],
            "dtype": dtype,
            "left_out": list(collector.left_out),
            "fingerprint": fingerprint(collector),
        }

    @property
    def report_on(self) -> list[int]:
        """Return the responses whose gradients are kept for the report."""
        return self.info["report_asked"]  # type: ignore[no-any-return]

    def settle(self) -> SketchPool | None:
        """Look at what is there, refuse what is another's; return the pool if it is finished."""
        pool = self.work.pool
        self.base = None
        if pool.exists() or pool.is_symlink():
            found = self._checked(SketchPool.open(pool), pool)
            if len(found) == len(self.responses):
                return found
            self.base = found
        elif self._given is not None:
            given = self._given
            found = given if isinstance(given, SketchPool) else SketchPool.open(given)
            if found.folder is None:
                raise ValueError("base: expected a pool that was opened from its folder")
            self.base = self._checked(found, found.folder)
        if self.work.is_of_version_1():
            raise ValueError(f"folder: {self.work.folder} was left by version 1{_ANEW}")
        references = [] if self.base is None else [self.base.info]
        for store, info in self.work.stores().items():
            self._check(info, self._digests_of(store), store, _ANEW)
            references.append(info)
        self.info = self._settled(references)
        return None

    def _checked(self, pool: SketchPool, path: Path) -> SketchPool:
        if pool.info["version"] == 1:
            raise ValueError(
                f"folder: {path} is a pool of version 1, which does not say what it was made from; "
                "open it with SketchPool.open, or give another folder"
            )
        self._check(pool.info, np.load(path / "responses.npy"), path, _ELSEWHERE)
        return pool

    def _check(
        self, info: dict[str, Any], digests: NDArray[np.uint64] | None, path: Path, then: str
    ) -> None:
        """Refuse what was made by another model, of other responses or with other settings."""
        found = [
            _change(name, info.get(name), value)
            for name, value in self._core.items()
            if name != "fingerprint" and info.get(name) != value
        ]
        found += differences(info.get("fingerprint", {}), self._core["fingerprint"])
        if self.fidelity is not None and "pieces" in info:
            count = info["pieces"][0]["count"]
            asked = report_on(self.responses[:count], self.fidelity, self.collector.size)
            if asked != info["report_asked"]:
                were = info["report_asked"]
                found.append(f"fidelity was of {len(were)} responses and is of {len(asked)}")
        found += self._other_responses(digests)
        if found:
            raise ValueError(
                f"folder: {path} was made with other weights, tokens or settings: "
                f"{listed(found)}{then}"
            )

    def _other_responses(self, digests: NDArray[np.uint64] | None) -> list[str]:
        if digests is None:
            return ["responses that it does not tell"]
        if len(digests) > len(self.digests):
            return [f"responses were {len(digests)} and are {len(self.digests)}"]
        other = (digests != self.digests[: len(digests)]).any(axis=1)
        at = np.flatnonzero(other).tolist()
        return [f"{len(at)} of {len(digests)} responses are others: {listed(at)}"] if at else []

    @staticmethod
    def _digests_of(store: Path) -> NDArray[np.uint64] | None:
        try:
            found = np.load(store / "responses.npy")
        except (OSError, ValueError, EOFError):
            return None
        return found if found.dtype == np.uint64 and found.ndim == 2 else None

    def _settled(self, references: list[dict[str, Any]]) -> dict[str, Any]:
        """Return what the pool will say, its batches those that were begun with."""
        count = len(self.responses)
        longest = max(references, key=lambda info: info["count"], default=None)
        if longest is None:
            asked = report_on(self.responses, self.fidelity, self.collector.size)
            pieces = []
        else:
            asked, pieces = longest["report_asked"], list(longest["pieces"])
            for info in references:
                if info["pieces"] != pieces[: len(info["pieces"])]:
                    raise ValueError(
                        f"max_tokens: ranks in {self.work.folder} cut their batches differently: "
                        f"{info['pieces']} and {pieces}; give all of them the same"
                    )
        done = sum(piece["count"] for piece in pieces)
        if count > done:
            pieces.append({"count": count - done, "max_tokens": self.max_tokens})
        return {**self._core, "count": count, "report_asked": asked, "pieces": pieces}

    def batches(self) -> list[list[int]]:
        """Return the batches of all responses: those of one call first, then of the next."""
        found: list[list[int]] = []
        first = 0
        for piece in self.info["pieces"]:
            some = self.sizes[first : first + piece["count"]]
            for batch in plan_sizes(some, piece["max_tokens"]):
                found.append([first + number for number in batch])
            first += piece["count"]
        return found


def report_on(responses: Sequence[Response], wanted: int | None, size: int) -> list[int]:
    """Return the numbers of the responses, at least two or none, whose gradients are kept."""
    rows = [number for number, (_, response) in enumerate(responses) if len(response) > 0]
    most = min(32, (1 << 32) // (4 * size))
    count = min(most if wanted is None else args.check_int(wanted, "fidelity", 0), len(rows))
    return [rows[i * len(rows) // count] for i in range(count)] if count > 1 else []


def _change(name: str, before: Any, now: Any) -> str:
    """Say how a value differs, and of lists the first place where they do."""
    if isinstance(before, list) and isinstance(now, list):
        if len(before) != len(now):
            return f"{name} were {len(before)} and are {len(now)}"
        name, before, now = next(
            (f"{name}[{i}]", *both)
            for i, both in enumerate(zip(before, now, strict=True))
            if both[0] != both[1]
        )
    return f"{name} was {before!r} and is {now!r}"
