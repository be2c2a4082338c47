"""The run folder: whose it is, and whether a run may start or go on in it."""

from __future__ import annotations

import contextlib
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from pyfast._files import clear_leftovers
from pyfast.train import checkpoint, files
from pyfast.train import config as configs
from pyfast.train.config import TrainConfig
from pyfast.train.errors import UserError
from pyfast.train.inputs import Inputs

RUN_MARK = "environment.json"
"""The first file of a run folder, by which it is known as one."""


def open_run(config: TrainConfig, inputs: Inputs, out: Path) -> None:
    """Start a run folder, or check that an interrupted one is of this run."""
    now = versions()
    if (out / "config.json").exists():
        check_same_run(config, inputs, out)
        then = files.read_json(out / RUN_MARK)
        # Another number of threads would sum in another order.
        torch.set_num_threads(then["threads"])
        for name, number in now.items():
            if then["versions"].get(name) != number:
                sys.stderr.write(
                    f"pyfast: warning: {name} was {then['versions'].get(name)} and is now {number}:"
                    " the resumed run may differ in its last bits\n"
                )
        step = checkpoint.latest_step(out)
        steps = config.optimisation.steps
        sys.stderr.write(f"pyfast: resuming {out} after step {step} of {steps}\n")
        return
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    environment = {"versions": now, "threads": torch.get_num_threads(), "inputs": inputs.hashes}
    files.write_json(out / RUN_MARK, environment)
    files.write_json(out / "config.json", config.to_dict())


def check_same_run(config: TrainConfig, inputs: Inputs, out: Path) -> None:
    """Refuse to go on with other settings or other prompts than a run began with."""
    difference = configs.first_difference(configs.from_file(out / "config.json"), config)
    if difference is not None:
        name, old, new = difference
        raise UserError(
            f"{out} was started with {name} = {old!r}, not {new!r}; "
            "give the same settings to go on with it, or another --out"
        )
    recorded = files.read_json(out / RUN_MARK)["inputs"]
    for name, digest in inputs.hashes.items():
        if recorded.get(name) != digest:
            raise UserError(f"data.{name}: the file has changed since {out} was started")


@contextlib.contextmanager
def claim(out: Path) -> Iterator[None]:
    """Hold a run folder for this process alone; the system lets go of it when the process ends.

    What a killed run was writing is removed.
    """
    others = {p.name for p in out.iterdir()} if out.is_dir() else set()
    others -= {name for name in others if _left_by_a_start(name)}
    if others and RUN_MARK not in others:
        raise UserError(f"{out} exists and is not a run folder; give another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot make the run folder: {error.strerror}") from None
    with (out / ".lock").open("w") as lock:
        try:
            import fcntl
        except ImportError:  # not on Windows
            yield
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{out}: another process is training in this folder") from None
        for folder in (out, out / "checkpoint"):
            clear_leftovers(folder)
        yield


def _left_by_a_start(name: str) -> bool:
    """Tell the files that a kill at the very start leaves behind."""
    return name == ".lock" or name.startswith(f".{Path(RUN_MARK).stem}.tmp")


def versions() -> dict[str, str]:
    """Return the versions that a run's numbers may depend on."""
    found = {"python": platform.python_version()}
    for name in ("pyfast-align", "numpy", "torch", "transformers", "peft"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
