"""Checkpoints of a run: whole or absent, without pickle.

A checkpoint is a folder ``checkpoint/step-N`` that appears by one rename. It holds the adapter and
the optimiser's moments (safetensors), and ``state.json``: the step, and how long each append-only
file was. Randomness needs no state (see `pyfast.train.seeds`), nor does the learning rate, which
is a function of the step. Resuming cuts the append-only files back to those lengths, so whatever
was written after the checkpoint is written again, the same.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pyfast._files import fsync, write_folder
from pyfast.train.errors import UserError
from pyfast.train.files import read_json, write_json

APPENDED = ("metrics.jsonl", "groups.jsonl")
"""The files of a run folder that grow by a line a step or a group."""


def latest(run: Path) -> Path | None:
    """Return the folder of a run's newest checkpoint, or None."""
    steps = [
        (int(found.group(1)), path)
        for path in (run / "checkpoint").glob("step-*")
        if (found := re.fullmatch(r"step-(\d+)", path.name))
    ]
    return max(steps)[1] if steps else None


def latest_step(run: Path) -> int:
    """Return the number of steps in a run's newest checkpoint; 0 without one."""
    folder = latest(run)
    return int(folder.name.removeprefix("step-")) if folder else 0


def append(path: Path, line: str) -> None:
    """Append one line to a file."""
    with path.open("a", encoding="utf-8", newline="\n") as stream:
        stream.write(line + "\n")


def save(
    run: Path, step: int, parameters: Mapping[str, Tensor], optimiser: torch.optim.Optimizer
) -> None:
    """Write the checkpoint of a run after `step` steps, then drop the older ones.

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
    """
    from safetensors.torch import save_file

    sizes = {}
    for name in APPENDED:
        path = run / name
        sizes[name] = path.stat().st_size if path.exists() else 0
        if path.exists():
            fsync(path)  # the lines must not be younger than the checkpoint that counts them
    moments = {
        f"{key}:{name}": value.contiguous()
        for name, parameter in parameters.items()
        for key, value in optimiser.state[parameter].items()
    }

    def fill(folder: Path) -> None:
        weights = {name: value.detach().contiguous() for name, value in parameters.items()}
        save_file(weights, folder / "adapter.safetensors")
        save_file(moments, folder / "optimiser.safetensors")
        write_json(folder / "state.json", {"step": step, "sizes": sizes})

    folder = run / "checkpoint" / f"step-{step}"
    write_folder(folder, fill)
    for other in folder.parent.iterdir():
        if other != folder:
            shutil.rmtree(other)


def restore(run: Path, parameters: Mapping[str, Tensor], optimiser: torch.optim.Optimizer) -> int:
    """Put a run back to its newest checkpoint, or to its beginning without one.

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
        If the checkpoint does not belong to this adapter, or an append-only file lost lines.
    """
    from safetensors.torch import load_file

    folder = latest(run)
    if folder is None:
        for name in APPENDED:
            (run / name).unlink(missing_ok=True)
        return 0
    state = read_json(folder / "state.json")
    weights = load_file(folder / "adapter.safetensors")
    if weights.keys() != parameters.keys() or any(
        weights[name].shape != parameters[name].shape for name in weights
    ):
        raise UserError(f"{folder}: the checkpoint holds a different adapter than the policy")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    moments = load_file(folder / "optimiser.safetensors")
    states: dict[int, dict[str, Tensor]] = {}
    order = {name: index for index, name in enumerate(parameters)}
    for full_name, value in moments.items():
        key, _, name = full_name.partition(":")
        states.setdefault(order[name], {})[key] = value.clone()
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": states, "param_groups": groups})
    for name, size in state["sizes"].items():
        _cut(run / name, size)
    return int(state["step"])


def _cut(path: Path, size: int) -> None:
    """Cut a file back to `size` bytes."""
    actual = path.stat().st_size if path.exists() else 0
    if actual < size:
        raise UserError(f"{path}: the checkpoint counts {size} bytes, but the file has {actual}")
    if path.exists():
        os.truncate(path, size)
