"""Checkpoints of a run: whole or absent, checked when they are read, without pickle.

A checkpoint is a folder ``checkpoint/step-N`` that appears by one rename. It holds what
is trained, the adapter or the whole model, the optimiser's moments (safetensors), and
``state.json``: the step, how long each append-only file was, and the SHA-256 of all three.
Randomness needs no state (see `pyfast.train.seeds`), nor does the learning rate, which is a
function of the step. Resuming cuts the append-only files back to those lengths, so whatever was
written after the checkpoint is written again, the same.

The checkpoint before the newest is kept until the run is finished, in case the newest is damaged.
Nothing is removed, cut or followed but what these names stand for in the run's own folder: a run
folder may come from somebody else.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyfast._files import fsync, write_folder, written_whole
from pyfast.train.errors import DivergedError, UserError
from pyfast.train.files import parse_json, read_json, sha256, to_json, write_json
from pyfast.train.processes import Team
from pyfast.train.runs.layout import APPENDED, TIMES

_TENSORS = ("adapter.safetensors", "optimiser.safetensors")
_KEPT = 2


class _DamagedError(Exception):
    """A checkpoint cannot be gone on from; the message says what is wrong with which file."""


def _folders(run: Path) -> list[tuple[int, Path]]:
    """Return the checkpoints of a run, (step, folder), the newest first."""
    found = [
        (int(named.group(1)), path)
        for path in (run / "checkpoint").glob("step-*")
        if (named := re.fullmatch(r"step-([1-9][0-9]{0,15})", path.name, re.ASCII))
        and path.is_dir()
        and not path.is_symlink()
    ]
    return sorted(found, reverse=True)


def latest_step(run: Path) -> int:
    """Return the number of steps in a run's newest checkpoint; 0 without one."""
    return next((step for step, _ in _folders(run)), 0)


def keep(run: Path, count: int) -> None:
    """Remove all checkpoints but the `count` newest."""
    for _, folder in _folders(run)[count:]:
        shutil.rmtree(folder)


def append(path: Path, line: str) -> None:
    """Append one line to a file."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(path, flags, 0o666), "a", encoding="utf-8", newline="\n") as stream:
        stream.write(line + "\n")


def save(
    run: Path, step: int, parameters: Mapping[str, Tensor], optimiser: torch.optim.Optimizer
) -> None:
    """Write the checkpoint of a run after `step` steps, then drop those before the last two.

    Parameters
    ----------
    run : Path
        The run folder.
    step : int
        Steps done.
    parameters : dict of str to tensor
        What is trained, in the order in which the optimiser was given it.
    optimiser : torch.optim.Optimizer
        Its state per parameter must consist of tensors, as AdamW's does.

    Raises
    ------
    DivergedError
        If any of these numbers is not finite. Nothing is written then.
    """
    from safetensors.torch import save_file

    weights = {name: value.detach().contiguous() for name, value in parameters.items()}
    moments = {
        f"{key}:{name}": value.contiguous()
        for name, parameter in parameters.items()
        for key, value in optimiser.state[parameter].items()
    }
    for name, value in {**weights, **moments}.items():
        if not value.isfinite().all():
            raise DivergedError(f"{name} is not finite")
    sizes = {}
    for name in APPENDED:
        path = run / name
        sizes[name] = path.stat().st_size if path.exists() else 0
        if path.exists():
            fsync(path)  # the lines must not be younger than the checkpoint that counts them

    def fill(folder: Path) -> None:
        for name, tensors in zip(_TENSORS, (weights, moments), strict=True):
            save_file(tensors, folder / name)
        digests = {name: sha256(folder / name) for name in _TENSORS}
        state = {"step": step, "sizes": sizes, "sha256": digests}
        write_json(folder / "state.json", {**state, "state_sha256": _digest(state)})

    folder = run / "checkpoint" / f"step-{step}"
    if folder.is_dir():  # damaged, or it would have been gone on from
        shutil.rmtree(folder)
    write_folder(folder, fill)
    keep(run, _KEPT)


def restore(run: Path, parameters: Mapping[str, Tensor], optimiser: torch.optim.Optimizer) -> int:
    """Put a run back to its newest checkpoint that is whole, or to its beginning without any.

    Parameters
    ----------
    run, parameters, optimiser
        As for `save`; the tensors are overwritten in place.

    Returns
    -------
    int
        Steps done.

    Raises
    ------
    UserError
        If a checkpoint does not belong to these weights, or none is whole, with the reason.
    """
    folders = _folders(run)
    reasons = []
    for step, folder in folders:
        try:
            sizes, weights, states = _read(run, step, folder, parameters)
        except _DamagedError as error:
            reasons.append(str(error))
            continue
        if reasons:
            sys.stderr.write(f"pyfast: warning: {reasons[0]}; going on from {folder.name}\n")
        _put(weights, states, parameters, optimiser)
        for name, size in sizes.items():
            if (run / name).exists():
                os.truncate(run / name, size)
        _cut_times(run / TIMES, step)
        for _, damaged in folders[: len(reasons)]:
            shutil.rmtree(damaged)
        return step
    if reasons:
        raise UserError(
            f"{reasons[0]}; no checkpoint of this run is whole: give another --out, or remove "
            f"{run / 'checkpoint'} to begin again"
        )
    for name in (*APPENDED, TIMES):
        (run / name).unlink(missing_ok=True)
    return 0


def restore_for(
    team: Team, run: Path, parameters: Mapping[str, Tensor], optimiser: torch.optim.Optimizer
) -> int:
    """Do as `restore` in several processes: the first one puts the run back, the others read it."""
    done = team.once(lambda: restore(run, parameters, optimiser))

    def read() -> None:
        if done and not team.is_first:
            load_weights(run, parameters, optimiser)

    team.everywhere(read)
    team.agree_on_weights("the checkpoint", parameters)
    return done


def load_weights(
    run: Path,
    parameters: Mapping[str, Tensor],
    optimiser: torch.optim.Optimizer | None = None,
) -> int:
    """Overwrite what is trained by a run's newest checkpoint, and leave the run as it is.

    Parameters
    ----------
    run, parameters
        As for `restore`.
    optimiser : torch.optim.Optimizer, optional
        Gets its state too.

    Returns
    -------
    int
        Steps done.

    Raises
    ------
    UserError
        If there is none, it is not whole, or it does not belong to these weights.
    """
    for step, folder in _folders(run)[:1]:
        try:
            _, weights, states = _read(run, step, folder, parameters)
        except _DamagedError as error:
            raise UserError(str(error)) from None
        _put(weights, states, parameters, optimiser)
        return step
    raise UserError(f"{run}: expected a run with a checkpoint")


def _put(
    weights: Mapping[str, Tensor],
    states: dict[int, dict[str, Tensor]],
    parameters: Mapping[str, Tensor],
    optimiser: torch.optim.Optimizer | None,
) -> None:
    """Overwrite what is trained, and an optimiser's moments."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    if optimiser is not None:
        groups = optimiser.state_dict()["param_groups"]
        optimiser.load_state_dict({"state": states, "param_groups": groups})


def _digest(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(to_json(state).encode()).hexdigest()


def _read(
    run: Path, step: int, folder: Path, parameters: Mapping[str, Tensor]
) -> tuple[dict[str, int], dict[str, Tensor], dict[int, dict[str, Tensor]]]:
    """Read a checkpoint: the files' lengths, the adapter, and the moments by place."""
    sizes, digests = _read_state(folder / "state.json", step)
    for name in _TENSORS:
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise _DamagedError(f"{path}: no such file")
        if sha256(path) != digests[name]:
            raise _DamagedError(f"{path}: the file has changed since it was written")
    for name, size in sizes.items():
        _check_length(run / name, size)
    weights, moments = (_tensors(folder / name) for name in _TENSORS)
    if weights.keys() != parameters.keys() or any(
        weights[name].shape != parameters[name].shape for name in weights
    ):
        raise UserError(f"{folder}: the checkpoint holds other weights than those that are trained")
    order = {name: index for index, name in enumerate(parameters)}
    states: dict[int, dict[str, Tensor]] = {}
    for full_name, value in moments.items():
        key, _, name = full_name.partition(":")
        if name not in order or value.shape not in (parameters[name].shape, ()):
            raise UserError(f"{folder}: the checkpoint holds moments of other weights")
        states.setdefault(order[name], {})[key] = value.clone()
    return sizes, weights, states


def _read_state(path: Path, step: int) -> tuple[dict[str, int], dict[str, str]]:
    """Read what a checkpoint counts, and trust none of it that is not as `save` writes it."""
    if path.is_symlink() or not path.is_file():
        raise _DamagedError(f"{path}: no such file")
    try:
        state = read_json(path)
    except UserError as error:
        raise _DamagedError(str(error)) from None
    if not isinstance(state, dict) or not isinstance(state.get("sizes"), dict):
        raise _DamagedError(f"{path}: expected the state of a checkpoint")
    if set(state["sizes"]) != set(APPENDED):
        raise _DamagedError(f"{path}: sizes: expected those of {' and '.join(APPENDED)} alone")
    if any(type(size) is not int or size < 0 for size in state["sizes"].values()):
        raise _DamagedError(f"{path}: sizes: expected whole numbers >= 0")
    digest = state.pop("state_sha256", None)
    digests = state.get("sha256")
    if (
        not isinstance(digests, dict)
        or set(digests) != set(_TENSORS)
        or not all(isinstance(text, str) for text in (*digests.values(), digest))
    ):
        raise _DamagedError(f"{path}: sha256: expected those of {' and '.join(_TENSORS)}")
    if state.keys() != {"step", "sizes", "sha256"} or type(state["step"]) is not int:
        raise _DamagedError(f"{path}: expected step, sizes and sha256")
    if state["step"] != step or digest != _digest(state):
        raise _DamagedError(f"{path}: the file has changed since it was written")
    return state["sizes"], digests


def _check_length(path: Path, size: int) -> None:
    """Refuse an append-only file that has lost lines, or that would be cut inside one."""
    actual = path.stat().st_size if path.exists() else 0
    if actual < size:
        raise _DamagedError(
            f"{path}: the checkpoint counts {size} bytes, but the file has {actual}"
        )
    if size:
        with path.open("rb") as stream:
            stream.seek(size - 1)
            if stream.read(1) != b"\n":
                raise _DamagedError(f"{path}: the checkpoint counts {size} bytes, inside a line")


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise _DamagedError(f"{path}: {error}") from None
    return found


def _cut_times(path: Path, step: int) -> None:
    """Keep the times of the steps that are done: a line each, and none that a kill cut."""
    if not path.exists():
        return
    kept: dict[int, str] = {}
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            value = parse_json(line)["step"]
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
        if type(value) is int and 1 <= value <= step:
            kept.setdefault(value, line)
    with written_whole(path) as beside:
        beside.write_text("".join(f"{kept[key]}\n" for key in sorted(kept)), "utf-8")
