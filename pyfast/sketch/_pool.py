"""A finished pool of sketches on disk: what it holds, and whether it is what was written."""

from __future__ import annotations

import hashlib
import json
import warnings
import zlib
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyfast import _arguments as args
from pyfast._results import ByValue
from pyfast.sketch._fidelity import FidelityReport
from pyfast.sketch._fingerprint import listed

FORMAT = {"format": "pyfast sketch pool", "version": 2, "projection": "xor-stripes-v1"}
REPORT = "fidelity.json"
DTYPES = ("float32", "float16")
ZERO, NOT_FINITE = 1, 2
"""What `SketchPool.flags` says of a response."""

_KINDS = {"count": int, "dim": int, "dtype": str, "report_on": list, "files": dict, "names": list}
_BLOCK = 1 << 24  # numbers that are widened at a time


@dataclass(frozen=True, eq=False)
class SketchPool(ByValue):
    """Sketches of N responses, memory-mapped from a folder of .npy files and a pool.json.

    Pass ``sketches`` to `select.active_dpo`, which reads them where they lie, normalises each
    response (or each pair) and takes differences by linearity.

    Attributes
    ----------
    stored : float32 or float16 array, shape (N, dim)
        The rows as they lie on the disk, read-only.
    squared_norms, logps : float64 array, shape (N,)
        Exact squared lengths of the gradients; log pi(y|x).
    lengths : int64 array, shape (N,)
        Response tokens.
    info : dict
        Format, projection, dim, seed, names of the matrices, ``left_out`` (trainable parameters
        that are not sketched), a fingerprint of the model in named parts, checksums, and
        ``made_with``: the versions, devices and ``max_tokens`` of the calls that made it.
    fidelity : FidelityReport or None
        Exact beside sketched inner products of the responses in ``info["report_on"]``.
    flags : uint8 array, shape (N,)
        0; 1 where a response has tokens and its gradient is exactly zero (a row of zeros); 2 where
        it is not finite: a row of NaN, which every selector refuses. `response_pairs` leaves out
        whom it is told to: ``response_pairs(offsets, leave_out=pool.flags)``.
    scales : float64 array, shape (N,), or None
        Powers of two, by which rows of float16 are multiplied.
    folder : Path or None
        Where it lies.
    """

    stored: NDArray[Any]
    squared_norms: NDArray[np.float64]
    logps: NDArray[np.float64]
    lengths: NDArray[np.int64]
    info: dict[str, Any]
    fidelity: FidelityReport | None
    flags: NDArray[np.uint8]
    scales: NDArray[np.float64] | None = None
    folder: Path | None = None

    def __len__(self) -> int:
        return len(self.stored)

    @cached_property
    def sketches(self) -> NDArray[np.float32]:
        """float32 (N, dim), as `LoraGradients` gives them, read-only; not normalised.

        On disk until read; of a pool stored in float16, in memory from the first use on: N x dim x
        4 bytes. `rows` reads some of them.
        """
        if self.scales is None:
            return self.stored
        rows = self.rows(slice(None))
        rows.flags.writeable = False
        return rows

    def rows(self, which: Any) -> NDArray[np.float32]:
        """Return a copy of some rows, float32 (n, dim).

        Parameters
        ----------
        which : slice, int array or bool array
            Their numbers.
        """
        rows = np.array(self.stored[which], np.float32)
        if self.scales is not None:
            rows *= self.scales[which].astype(np.float32)[..., None]
        return rows

    def scores(self, other: SketchPool, *, normalize: bool = True) -> NDArray[np.float64]:
        """Compare each response of another pool with each of this one.

        Parameters
        ----------
        other : SketchPool
            M responses, say those of a validation set, of the same seed, dim and matrices.
        normalize : bool
            True for cosines, by the exact lengths of the gradients; a zero gradient's are 0. False
            for inner products of the gradients of log pi.

        Returns
        -------
        float64 array, shape (M, N)
            Row i compares response i of `other`. NaN where a gradient is not finite. Memory: this,
            and about 0.3 GB.

        Raises
        ------
        ValueError, TypeError
            If `other` is no pool, or one of another seed, dim, or other matrices.
        """
        if not isinstance(other, SketchPool):
            raise TypeError(f"other: expected a SketchPool, got {type(other).__name__}")
        for name in ("projection", "dim", "seed", "names", "sizes"):
            if self.info[name] != other.info[name]:
                raise ValueError(
                    f"other: its {name} is not that of this pool: got {_short(other.info[name])}, "
                    f"expected {_short(self.info[name])}"
                )
        step = max(1, _BLOCK // self.info["dim"])
        out = np.empty((len(other), len(self)))
        for i in range(0, len(other), step):
            theirs = other._wide(slice(i, i + step), normalize)
            for j in range(0, len(self), step):
                ours = self._wide(slice(j, j + step), normalize)
                out[i : i + step, j : j + step] = theirs @ ours.T
        return out

    def _wide(self, which: slice, normalize: bool) -> NDArray[np.float64]:
        rows = self.rows(which).astype(np.float64)
        if normalize:
            lengths = np.sqrt(self.squared_norms[which])
            rows /= np.where(lengths > 0, lengths, np.where(lengths == 0, 1, np.nan))[:, None]
        return rows

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = True) -> SketchPool:
        """Open a folder that `collect` wrote.

        Parameters
        ----------
        folder : str or Path
            Where it is.
        verify : bool
            Read all rows and compare their checksums, at 1 to 4 GB/s from memory or as fast as
            the disk. Sizes and all other files are always checked.

        Raises
        ------
        ValueError
            If there is no pool, it is unfinished (the message says what is missing), or its files
            do not fit together or are not what was written (the message says where).

        Notes
        -----
        Pools of version 1 have no checksums: a warning says so.
        """
        folder = Path(folder)
        info = _read_info(folder)
        first = info["version"] == 1
        arrays = _read_arrays(folder, info)
        report = FidelityReport.load(folder / REPORT) if info.get("report_on") else None
        if first:
            warnings.warn(
                f"{folder} is a pool of version 1, which has no checksums: damage goes unseen",
                stacklevel=2,
            )
            arrays["flags"] = np.zeros(info["count"], np.uint8)
        elif verify:
            _check_rows(folder, arrays["sketches"], arrays["checks"])
        return cls(
            arrays["sketches"],
            np.array(arrays["squared_norms"]),
            np.array(arrays["logps"]),
            np.array(arrays["lengths"]),
            info,
            report,
            np.array(arrays["flags"]),
            arrays.get("scales"),
            folder,
        )


def response_pairs(offsets: ArrayLike, *, leave_out: ArrayLike | None = None) -> NDArray[np.int64]:
    """Return all pairs of responses to the same prompt, for `select.active_dpo`.

    Parameters
    ----------
    offsets : array_like of int, shape (prompts + 1,)
        Prompt i has the responses ``offsets[i]`` to ``offsets[i+1] - 1``.
    leave_out : array_like of bool or int, shape (responses,), optional
        Not 0 for responses that are in no pair: a pool's ``flags``, or ``flags == 2``.

    Returns
    -------
    int64 array, shape (P, 2)
        Rows of the pool, prompt by prompt.

    Examples
    --------
    >>> response_pairs([0, 3, 5]).tolist()
    [[0, 1], [0, 2], [1, 2], [3, 4]]
    >>> response_pairs([0, 3, 5], leave_out=[0, 1, 0, 0, 0]).tolist()
    [[0, 2], [3, 4]]
    """
    total = np.asarray(offsets).reshape(-1)[-1] if np.size(offsets) else 0
    edges = args.check_offsets(offsets, int(total))
    pairs = np.concatenate(
        [
            start + np.stack(np.triu_indices(end - start, 1), axis=1)
            for start, end in pairwise(edges.tolist())
        ]
    ).astype(np.int64)
    if leave_out is None:
        return pairs
    out = np.asarray(leave_out)
    if out.dtype.kind not in "biu":
        raise TypeError(f"leave_out: expected booleans or integers, got {out.dtype}")
    if out.shape != (total,):
        raise ValueError(f"leave_out: expected shape ({total},), got {out.shape}")
    kept: NDArray[np.int64] = pairs[(out[pairs] == 0).all(axis=1)]
    return kept


def encode(rows: NDArray[np.float32], dtype: str) -> tuple[list[bytes], list[float]]:
    """Return rows as they are stored, and the powers of two that bring them back.

    In float16 a row's largest number comes to lie in 2^14 .. 2^15, so that only numbers 2^28 times
    smaller lose more than their last bits.
    """
    scales = np.ones(len(rows))
    if dtype == "float16":
        _, exponents = np.frexp(np.abs(rows).max(axis=1))
        scales = np.ldexp(1.0, np.where(np.isfinite(rows).all(axis=1), exponents - 15, 0))
        rows = (rows / scales[:, None]).astype(np.float16)
    little = rows.astype(rows.dtype.newbyteorder("<"), copy=False)
    return [row.tobytes() for row in little], scales.tolist()


def decode(rows: list[bytes], scales: list[float], dtype: str, dim: int) -> NDArray[np.float32]:
    """Return stored rows as float32 (n, dim)."""
    found = np.frombuffer(b"".join(rows), np.dtype(dtype).newbyteorder("<"))
    wide = found.reshape(len(rows), dim).astype(np.float32)
    return wide if dtype == "float32" else wide * np.asarray(scales, np.float32)[:, None]


def array_kinds(info: dict[str, Any]) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Return the dtype and shape of each of a pool's arrays."""
    count, dim = info.get("count"), info.get("dim")
    kinds: dict[str, Any] = {
        "sketches": (info.get("dtype", "float32"), (count, dim)),
        "squared_norms": (np.float64, (count,)),
        "logps": (np.float64, (count,)),
        "lengths": (np.int64, (count,)),
    }
    if info["version"] > 1:
        kinds["flags"] = (np.uint8, (count,))
        kinds["checks"] = (np.uint32, (count,))
        kinds["responses"] = (np.uint64, (count, 2))
    if info.get("dtype") == "float16":
        kinds["scales"] = (np.float64, (count,))
    return kinds


def digest(content: bytes) -> str:
    """Return what pool.json says of a file's content."""
    return hashlib.sha256(content).hexdigest()


def sealed(info: dict[str, Any]) -> dict[str, Any]:
    """Return pool.json's content with a digest of itself."""
    info = {key: value for key, value in info.items() if key != "sha256"}
    return {**info, "sha256": digest(json.dumps(info, sort_keys=True).encode())}


def _read_info(folder: Path) -> dict[str, Any]:
    path = folder / "pool.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        from pyfast.sketch._shards import what_is_missing

        unfinished = what_is_missing(folder)
        reason = f"; {unfinished}" if unfinished else f" ({error})"
        raise ValueError(f"folder: expected a sketch pool at {folder}{reason}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"folder: expected a sketch pool at {folder} ({error})") from None
    formats = [{**FORMAT, "version": version} for version in (2, 1)]
    if not isinstance(info, dict) or {key: info.get(key) for key in FORMAT} not in formats:
        raise ValueError(f"folder: expected {FORMAT} in {path}")
    if (info["version"] > 1 or "sha256" in info) and info != sealed(info):
        raise ValueError(f"folder: {path} is not what was written (its digest differs)")
    kinds = {"count": int} if info["version"] == 1 else _KINDS
    for name, kind in kinds.items():
        if type(info.get(name)) is not kind:
            raise ValueError(f"folder: expected {kind.__name__} {name} in {path}")
    return info


def _read_arrays(folder: Path, info: dict[str, Any]) -> dict[str, Any]:
    """Return the arrays, mapped; their sizes and all but the rows' content checked."""
    kinds = array_kinds(info)
    if info["version"] > 1:
        _check_files(folder, info, [f"{name}.npy" for name in kinds])
    arrays: dict[str, Any] = {}
    for name, (dtype, shape) in kinds.items():
        path = folder / f"{name}.npy"
        try:
            array = arrays[name] = np.lib.format.open_memmap(path, "r")
        except (OSError, ValueError, EOFError, SyntaxError, TokenError) as error:
            raise ValueError(f"folder: expected a sketch pool at {folder} ({error})") from None
        if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
            raise ValueError(
                f"folder: the arrays in {folder} do not have the shapes of pool.json: expected "
                f"{np.dtype(dtype)} {shape} in {name}, got {array.dtype} {array.shape}"
            )
        if path.stat().st_size != array.offset + array.nbytes:
            raise ValueError(f"folder: {path} has bytes after its rows")
    return arrays


def _check_files(folder: Path, info: dict[str, Any], names: list[str]) -> None:
    """Refuse files that are not what was written; of the rows, their header is looked at here."""
    names += [REPORT] if info["report_on"] else []
    if set(info["files"]) != set(names):
        raise ValueError(f"folder: expected digests of {sorted(names)} in {folder / 'pool.json'}")
    width = info["dim"] * np.dtype(info["dtype"]).itemsize
    for name in names:
        path = folder / name
        try:
            with path.open("rb") as file:
                rows = name == "sketches.npy"
                header = max(0, path.stat().st_size - info["count"] * width)
                content = file.read(header if rows else -1)
        except (OSError, ValueError) as error:
            raise ValueError(f"folder: expected a sketch pool at {folder} ({error})") from None
        if digest(content) != info["files"][name]:
            raise ValueError(
                f"folder: {path} is not what was written (its digest or length differs)"
            )


def _check_rows(folder: Path, rows: NDArray[Any], checks: NDArray[np.uint32]) -> None:
    bad = [n for n, row in enumerate(rows) if zlib.crc32(row) != checks[n]]
    if bad:
        raise ValueError(
            f"folder: {len(bad)} rows of {folder / 'sketches.npy'} are not what was written "
            f"(their checksums differ): {listed(bad)}"
        )


def _short(value: Any) -> str:
    return f"{len(value)} of them" if isinstance(value, list) else repr(value)
