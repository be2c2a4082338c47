"""A pool of sketches on disk: written whole or not at all, resumed where it stopped."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from pyfast import _arguments as args
from pyfast._files import fsync
from pyfast.sketch._batches import Response, plan
from pyfast.sketch._collector import GradientBatch, LoraGradients
from pyfast.sketch._fidelity import FidelityReport, compare
from pyfast.sketch._guards import check_distinct
from pyfast.sketch._parts import lora_layers

_FORMAT = {"format": "pyfast sketch pool", "version": 1, "projection": "xor-stripes-v1"}
_ARRAYS = ("sketches", "squared_norms", "logps", "lengths")
_REPORT = "fidelity.json"
_SAMPLE = 1 << 16  # numbers of a parameter that its fingerprint looks at


@dataclass(frozen=True)
class SketchPool:
    """Sketches of N responses, memory-mapped from a folder of .npy files and a pool.json.

    Pass ``sketches`` to `select.active_dpo`, which reads them where they lie, normalises each
    response (or each pair) and takes differences by linearity.

    Attributes
    ----------
    sketches : float32 array, shape (N, dim)
        As `LoraGradients` gives them; read-only, on disk until read.
    squared_norms, logps : float64 array, shape (N,)
        Exact squared lengths of the gradients; log pi(y|x).
    lengths : int64 array, shape (N,)
        Response tokens.
    info : dict
        Format, projection, dim, seed, names of the matrices, and a fingerprint of the sketched
        weights, a sample of all others, the tokens and the settings.
    fidelity : FidelityReport or None
        Exact beside sketched inner products of the responses in ``info["report_on"]``.
    """

    sketches: NDArray[np.float32]
    squared_norms: NDArray[np.float64]
    logps: NDArray[np.float64]
    lengths: NDArray[np.int64]
    info: dict[str, Any]
    fidelity: FidelityReport | None = None

    @classmethod
    def open(cls, folder: str | Path) -> SketchPool:
        """Open a folder that `collect` wrote.

        Parameters
        ----------
        folder : str or Path
            Where it is.

        Raises
        ------
        ValueError
            If there is no pool of this version, or its files do not fit together.
        """
        folder = Path(folder)
        try:
            info = json.loads((folder / "pool.json").read_text(encoding="utf-8"))
            arrays = [np.lib.format.open_memmap(folder / f"{name}.npy", "r") for name in _ARRAYS]
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"folder: expected a sketch pool at {folder} ({error})") from None
        if not isinstance(info, dict) or {key: info.get(key) for key in _FORMAT} != _FORMAT:
            raise ValueError(f"folder: expected {_FORMAT} in {folder / 'pool.json'}")
        kinds = _kinds(info)
        for name, array in zip(_ARRAYS, arrays, strict=True):
            dtype, shape = kinds[name]
            if array.dtype != dtype or array.shape != shape:
                raise ValueError(
                    f"folder: the arrays in {folder} do not have the shapes of pool.json: expected "
                    f"{np.dtype(dtype)} {shape} in {name}, got {array.dtype} {array.shape}"
                )
        sketches, squared_norms, logps, lengths = arrays
        report = FidelityReport.load(folder / _REPORT) if info.get("report_on") else None
        return cls(
            sketches, np.array(squared_norms), np.array(logps), np.array(lengths), info, report
        )


def collect(
    collector: LoraGradients,
    responses: Sequence[Response],
    folder: str | Path,
    *,
    max_tokens: int = 4096,
    fidelity: int | None = None,
    resume: bool = True,
    progress: bool = True,
) -> SketchPool:
    """Sketch many responses into a folder on disk.

    The folder appears when it is complete; until then the work lies beside it, in
    ``.NAME.partial``, and a call that was interrupted goes on where it stopped, to the same bits.

    Parameters
    ----------
    collector : LoraGradients
        The model and the projection.
    responses : sequence of (prompt_ids, response_ids)
        Lists of token ids; the end token belongs to the response.
    folder : str or Path
        Where the pool goes; nothing may be there yet.
    max_tokens : int
        Tokens of a batch, padding included: the bound on memory, with dim x 4 bytes a response
        of the batch. The pool itself stays on disk.
    fidelity : int, optional
        How many responses, spread evenly over those that have tokens, to report on; by default 32,
        or what fits into 4 GiB if that is less. Their whole gradients come from the same passes
        and lie beside the pool until it is complete, p x 4 bytes each. 0 for no report, which
        fewer than two responses do not have either.
    resume : bool
        Go on with what is left of an interrupted call; False starts anew.
    progress : bool
        Show a progress bar (needs tqdm).

    Returns
    -------
    SketchPool
        Opened.

    Raises
    ------
    ValueError, TypeError
        If the folder exists, what is left belongs to other weights, tokens or settings, a gradient
        is not finite or zero, or all are equal; the message says which response.
    OSError
        If there is no room for the pool on the disk.
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"folder: {folder} is there already; open it with SketchPool.open")
    if len(responses) == 0:
        raise ValueError("responses: expected at least one")
    plan(responses, max_tokens)  # refuses what does not fit before any work
    beside = folder.with_name(f".{folder.name}.partial")
    info: dict[str, Any] = {
        **_FORMAT,
        "count": len(responses),
        "dim": collector.dim,
        "seed": collector.seed,
        "names": collector.names,
        "sizes": [part.size for part in collector.parts],
        "report_on": _report_on(responses, fidelity, collector.size),
        "fingerprint": _fingerprint(collector, responses, max_tokens),
    }
    if not resume and beside.exists():
        shutil.rmtree(beside)
    arrays = _resumed(beside, info) if beside.exists() else _begun(beside, info)
    done = arrays["done"]
    skip = set(np.flatnonzero(done).tolist())
    report_on = info["report_on"]
    gradients = {n: arrays["gradients"][row] for row, n in enumerate(report_on)}
    with _Bar(len(responses), len(skip), progress) as bar:
        for numbers, batch in collector.stream(
            responses, max_tokens, skip=skip, gradients=gradients
        ):
            _write(arrays, numbers, batch)
            bar.update(len(numbers))
    check_distinct(arrays["sketches"], arrays["squared_norms"], arrays["lengths"])
    if report_on:
        report = compare(collector, arrays["gradients"], arrays["sketches"][report_on])
        report.save(beside / _REPORT)
    del arrays, done, gradients
    _finish(beside, folder)
    return SketchPool.open(folder)


def _report_on(responses: Sequence[Response], wanted: int | None, size: int) -> list[int]:
    """Return the numbers of the responses, at least two or none, whose gradients are kept."""
    rows = [number for number, (_, response) in enumerate(responses) if len(response) > 0]
    most = min(32, (1 << 32) // (4 * size))
    count = min(most if wanted is None else args.check_int(wanted, "fidelity", 0), len(rows))
    return [rows[i * len(rows) // count] for i in range(count)] if count > 1 else []


def response_pairs(offsets: ArrayLike) -> NDArray[np.int64]:
    """Return all pairs of responses to the same prompt, for `select.active_dpo`.

    Parameters
    ----------
    offsets : array_like of int, shape (prompts + 1,)
        Prompt i has the responses ``offsets[i]`` to ``offsets[i+1] - 1``.

    Returns
    -------
    int64 array, shape (P, 2)
        Rows of the pool, prompt by prompt.

    Examples
    --------
    >>> response_pairs([0, 3, 5]).tolist()
    [[0, 1], [0, 2], [1, 2], [3, 4]]
    """
    total = np.asarray(offsets).reshape(-1)[-1] if np.size(offsets) else 0
    edges = args.check_offsets(offsets, int(total))
    pairs = [
        start + np.stack(np.triu_indices(end - start, 1), axis=1)
        for start, end in pairwise(edges.tolist())
    ]
    return np.concatenate(pairs).astype(np.int64)


def _begun(beside: Path, info: dict[str, Any]) -> dict[str, Any]:
    """Make the files, full of zeros."""
    beside.mkdir(parents=True)
    for name, (dtype, shape) in _all_kinds(info).items():
        np.lib.format.open_memmap(beside / f"{name}.npy", "w+", dtype, shape)
    try:
        for path in beside.iterdir():
            _reserve(path)
    except OSError:
        shutil.rmtree(beside)
        raise
    (beside / "pool.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
    return _mapped(beside, info)


def _kinds(info: dict[str, Any]) -> dict[str, tuple[type, tuple[Any, ...]]]:
    """Return each array's dtype and shape."""
    count, dim = info.get("count"), info.get("dim")
    return {
        "sketches": (np.float32, (count, dim)),
        "squared_norms": (np.float64, (count,)),
        "logps": (np.float64, (count,)),
        "lengths": (np.int64, (count,)),
    }


def _all_kinds(info: dict[str, Any]) -> dict[str, tuple[type, tuple[Any, ...]]]:
    """Return those of what is there while a pool is being made, too."""
    kinds = {**_kinds(info), "done": (np.uint8, (info["count"],))}
    if info["report_on"]:
        kinds["gradients"] = (np.float32, (len(info["report_on"]), sum(info["sizes"])))
    return kinds


def _reserve(path: Path) -> None:
    """Take a file's blocks from the disk: where none are left, writing to a map ends a process."""
    if not hasattr(os, "posix_fallocate"):
        return
    handle = os.open(path, os.O_RDWR)
    try:
        os.posix_fallocate(handle, 0, path.stat().st_size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that cannot
            raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(handle)


def _resumed(beside: Path, info: dict[str, Any]) -> dict[str, Any]:
    """Open what an interrupted call left, if it is of this very call."""
    try:
        left = json.loads((beside / "pool.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # stopped before it began
        shutil.rmtree(beside)
        return _begun(beside, info)
    if left != info:
        raise ValueError(
            f"folder: {beside} was left by a call with other weights, tokens or settings; "
            "pass resume=False to start anew"
        )
    return _mapped(beside, info)


def _mapped(beside: Path, info: dict[str, Any]) -> dict[str, Any]:
    return {
        name: np.load(beside / f"{name}.npy", mmap_mode="r+", allow_pickle=False)
        for name in _all_kinds(info)
    }


def _write(arrays: dict[str, Any], numbers: list[int], batch: GradientBatch) -> None:
    """Write a batch's rows, and only when they are on disk that they are done."""
    arrays["sketches"][numbers] = batch.sketches.cpu().numpy()
    arrays["squared_norms"][numbers] = batch.squared_norms
    arrays["logps"][numbers] = batch.logps
    arrays["lengths"][numbers] = batch.lengths
    for name in arrays.keys() - {"done"}:
        arrays[name].flush()
    arrays["done"][numbers] = 1
    arrays["done"].flush()


def _finish(beside: Path, folder: Path) -> None:
    for path in [*beside.iterdir(), beside]:
        fsync(path)
    beside.rename(folder)
    fsync(folder.parent)
    for name in ("gradients", "done"):  # last: without them, work cannot be resumed
        (folder / f"{name}.npy").unlink(missing_ok=True)


def _fingerprint(collector: LoraGradients, responses: Sequence[Response], max_tokens: int) -> str:
    """Digest the model, the tokens and the settings; the same in every process."""
    digest = hashlib.sha256(f"{max_tokens} {len(responses)}".encode())
    for name, layer in lora_layers(collector.model):
        scales = [layer.scaling.get(adapter) for adapter in layer.active_adapters]
        digest.update(f"{name} {type(layer).__name__} {layer.active_adapters} {scales}".encode())
    ours = {id(part.weight) for part in collector.parts}
    for name, parameter in collector.model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        if not parameter.is_meta:
            numbers = parameter.detach().reshape(-1)
            if id(parameter) not in ours:  # an odd step, not to stay within few columns
                numbers = numbers[:: len(numbers) // _SAMPLE | 1]
            digest.update(numbers.contiguous().cpu().view(torch.uint8).numpy().tobytes())
    for prompt, response in responses:
        for ids in (prompt, response):
            digest.update(len(ids).to_bytes(8, "little"))
            digest.update(np.asarray(ids, np.int64).tobytes())
    return digest.hexdigest()


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
