"""The run folder: whose it is, and whether a run may start or go on in it."""

from __future__ import annotations

import contextlib
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from pyfast._files import clear_leftovers, locked
from pyfast._threads import MOST_THREADS
from pyfast.train import config as configs
from pyfast.train import files
from pyfast.train.config import Settings
from pyfast.train.errors import UserError
from pyfast.train.processes import Team
from pyfast.train.recipe import Inputs
from pyfast.train.runs import checkpoint, kept
from pyfast.train.runs.layout import (
    ANNOTATIONS,
    FOLDERS,
    LABELS,
    MODELS,
    RUN_MARK,
    SCORERS,
    TRAINED,
    check_own,
)

STEPS = "optimisation.steps"
FREE = configs.WITHOUT_EFFECT | {
    "scoring.against", "scoring.judge", "scoring.tolerance",
    "evaluation.bootstrap", "evaluation.confidence", "evaluation.every",
}  # fmt: skip
"""Settings that a run may go on without: they change no mathematics of the training."""

ROUNDING = frozenset({"policy.device", "run.threads"})
"""Those of them that sum in another order."""

SUMMARISED = frozenset({
    "evaluation.bootstrap", "evaluation.confidence", "scoring.against", "scoring.judge",
    "scoring.tolerance",
})  # fmt: skip


def open_run(config: Settings, inputs: Inputs, steps: int, out: Path, processes: int = 1) -> bool:
    """Start a run folder, or check that the one that is there can be gone on with.

    Parameters
    ----------
    config, inputs, steps, out
        The run's.
    processes : int
        How many share it; another number than before is recorded, and told.

    Returns
    -------
    bool
        Whether the run is finished as these settings have it. Where they ask for more steps or
        for another summary than a finished run has, what is out of date has been removed.

    Raises
    ------
    UserError
        If the folder is of another run: a setting that matters differs, the prompts' files have
        changed, fewer steps are asked for than are done, or a file of it is damaged.
    """
    if not (out / "config.json").exists():
        if (out / RUN_MARK).exists():
            read_environment(out)  # a stranger's file of that name is not overwritten
        _start(config, inputs, out, processes)
        return False
    old = configs.from_file(type(config), out / "config.json")
    environment = read_environment(out)
    done, finished = checkpoint.latest_step(out), (out / "summary.json").exists()
    changes = configs.differences(old, config)
    reason = _why_not(changes, config, environment, inputs, steps, out, done)
    labelled = _is_labelled(out)
    if reason is not None and (done or finished or labelled):
        raise UserError(reason)
    if reason is not None:
        sys.stderr.write(f"pyfast: {out} has no step done; starting it again, as it is asked now\n")
        _remove(out, "eval_before.jsonl", "evaluation", "kept")
        _start(config, inputs, out, processes)
        return False
    if not finished or STEPS in changes:
        _take_up_processes(environment, processes, out, done)
    if changes:
        _take_up(changes, environment, config, out, done)
        finished = (out / "summary.json").exists()
    torch.set_num_threads(environment["threads"])  # more would sum in another order
    if not finished:
        _tell_versions(environment["versions"])
        sys.stderr.write(f"pyfast: resuming {out} after step {done} of {steps}\n")
    return finished


def open_for(team: Team, config: Settings, inputs: Inputs, steps: int, out: Path) -> bool:
    """Do as `open_run` in several processes, of which the first one writes.

    Raises
    ------
    UserError
        As `open_run`; or if the processes do not see the same folder, or read other files.
    """
    finished = team.once(lambda: open_run(config, inputs, steps, out, team.count))
    if team.count > 1:
        threads = team.once(torch.get_num_threads)
        torch.set_num_threads(threads)  # more would sum in another order
        seen = (out / "config.json").read_text() if (out / "config.json").exists() else ""
        team.agree(f"{out} (expected a folder that all processes see)", seen)
        read = [config.to_dict(), dict(inputs.hashes)]
        team.agree("the settings, or the files that they name", files.to_json(read))
    return finished


def _start(config: Settings, inputs: Inputs, out: Path, processes: int) -> None:
    if config.get("run.threads") is not None:
        torch.set_num_threads(config.get("run.threads"))
    threads = torch.get_num_threads()
    environment = {"versions": versions(), "threads": threads, "inputs": inputs.hashes}
    if processes > 1:
        environment["processes"] = processes
    files.write_json(out / RUN_MARK, environment)
    files.write_json(out / "config.json", config.to_dict())


def _why_not(
    changes: Mapping[str, tuple[Any, Any]],
    config: Settings,
    environment: Mapping[str, Any],
    inputs: Inputs,
    steps: int,
    out: Path,
    done: int,
) -> str | None:
    """Return why a run cannot go on with these settings and prompts, or None."""
    recorded, idle = environment["inputs"], config.idle()
    for name, (old, new) in changes.items():
        section, _, key = name.partition(".")
        if name in FREE or name in idle:  # such as the epochs, where steps are asked for now
            continue
        if section == "data" and None not in (old, new) and recorded.get(key) == inputs.hashes[key]:
            continue  # another way to the same prompts
        if name == "sampling.server" and None not in (old, new):
            continue  # the same model at another address
        if name in MODELS and MODELS[name] in environment.get("models", {}):
            continue  # perhaps another way to the same weights: `check_models` looks at them
        if name == STEPS and steps >= done:
            continue
        if name == STEPS:
            return f"{out} has done {done} steps; expected {STEPS} >= {done}, got {steps}"
        return (
            f"{out} was started with {name} = {old!r}, not {new!r}; "
            "give the same settings to go on with it, or another --out"
        )
    for name, digest in inputs.hashes.items():
        if recorded.get(name) != digest:
            return f"data.{name}: the file has changed since {out} was started"
    return None


def _take_up(
    changes: Mapping[str, tuple[Any, Any]],
    environment: dict[str, Any],
    config: Settings,
    out: Path,
    done: int,
) -> None:
    """Record new settings, say what they do, and remove what they make out of date."""
    outdated = []
    if changes.keys() & SUMMARISED:
        outdated = ["summary.json"]
    if STEPS in changes:  # the summary last: a folder with it is a finished run
        outdated = ["summary.json", "eval_after.jsonl", *TRAINED]
        old, new = changes[STEPS]
        if done:
            sys.stderr.write(
                f"pyfast: {STEPS} was {old} and is now {new}: from step {done + 1} on the learning "
                f"rate is that of a run of {new} steps, which the first {done} were not\n"
            )
    if changes.keys() & ROUNDING and done:
        names = ", ".join(sorted(changes.keys() & ROUNDING))
        sys.stderr.write(f"pyfast: {names} changed: the run may differ in its last bits\n")
    _remove(out, *outdated)
    if "run.threads" in changes and config.get("run.threads") is not None:
        environment["threads"] = config.get("run.threads")
    if done:
        entry = {
            "after_step": done,
            "changed": {name: list(pair) for name, pair in changes.items()},
        }
        history = environment.setdefault("history", [])
        if history[-1:] != [entry]:  # killed before the settings were written, it is there
            history.append(entry)
    files.write_json(out / RUN_MARK, environment)
    files.write_json(out / "config.json", config.to_dict())


def _take_up_processes(environment: dict[str, Any], processes: int, out: Path, done: int) -> None:
    """Record and tell that other processes share the run from now on."""
    before = environment.get("processes", 1)
    if processes == before:
        return
    environment["processes"] = processes
    if done:
        sys.stderr.write(
            f"pyfast: {before} processes shared {out} and now {processes} do: the run may differ "
            "in its last bits\n"
        )
        entry = {"after_step": done, "changed": {"processes": [before, processes]}}
        environment.setdefault("history", []).append(entry)
    files.write_json(out / RUN_MARK, environment)


def is_trained(steps: int, out: Path) -> bool:
    """Tell whether only the summary of a run is missing: the adapter or model is written last."""
    return checkpoint.latest_step(out) == steps and any((out / name).is_dir() for name in TRAINED)


def tidy(out: Path) -> None:
    """Keep of a finished run the last checkpoint alone."""
    checkpoint.keep(out, 1)


def _is_labelled(out: Path) -> bool:
    """Tell whether somebody was asked something: the answers are not to be had again."""
    return any((out / name).exists() for name in (LABELS, ANNOTATIONS, "questions"))


def _remove(out: Path, *names: str) -> None:
    for name in names:
        if name in FOLDERS:
            shutil.rmtree(out / name, ignore_errors=True)
        else:
            kept.remove(out / name)


def check_models(out: Path, found: dict[str, dict[str, str]]) -> None:
    """Record what a run's models are, or refuse others than it began with.

    Parameters
    ----------
    out : Path
        An open run.
    found : dict
        ``{"policy": fingerprints, "encoder": fingerprints}``, as `fingerprint.of` makes them.
    """
    environment = read_environment(out)
    recorded = environment.get("models")
    if recorded == found:
        return
    if recorded is not None:
        differing = [
            (setting, part)
            for setting, name in {**MODELS, **SCORERS}.items()
            for part in {**found.get(name, {}), **recorded.get(name, {})}
            if recorded.get(name, {}).get(part) != found.get(name, {}).get(part)
        ]
        setting, part = differing[0] if differing else ("models", "names")
        if checkpoint.latest_step(out) or _is_labelled(out):
            raise UserError(
                f"{setting}: {out} was started with a model of another content: the {part} differ; "
                "give the same model to go on with it, or another --out"
            )
        _remove(out, "eval_before.jsonl", "evaluation", "kept")
    environment["models"] = found
    files.write_json(out / RUN_MARK, environment)


def read_environment(out: Path) -> dict[str, Any]:
    """Read what a run recorded of where it ran, and check it."""
    path = out / RUN_MARK
    value = files.read_json(path)

    def texts(name: str) -> bool:
        part = value.get(name)
        return isinstance(part, dict) and all(isinstance(text, str) for text in part.values())

    threads = value.get("threads") if isinstance(value, dict) else None
    if (
        not isinstance(value, dict)
        or not texts("versions")
        or not texts("inputs")
        or type(threads) is not int
        or not 1 <= threads <= MOST_THREADS
        or not isinstance(value.get("history", []), list)
        or type(value.get("processes", 1)) is not int
    ):
        raise UserError(f"{path}: expected what a run records of where it ran")
    models = value.get("models", {"": {}})
    if not isinstance(models, dict) or not all(isinstance(part, dict) for part in models.values()):
        raise UserError(f"{path}: models: expected the fingerprints of a run's models")
    return value


@contextlib.contextmanager
def claim_for(team: Team, out: Path) -> Iterator[None]:
    """Hold a run folder for these processes alone: the first one holds it."""
    with contextlib.ExitStack() as stack:
        team.once(lambda: stack.enter_context(claim(out)))
        yield


@contextlib.contextmanager
def claim(out: Path) -> Iterator[None]:
    """Hold a run folder for this process alone; the system lets go of it when the process ends.

    What a killed run was writing is removed.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: cannot make the run folder: a file is there")
    others = {p.name for p in out.iterdir()} if out.is_dir() else set()
    others -= {name for name in others if _left_by_a_start(name)}
    if others and RUN_MARK not in others:
        raise UserError(f"{out} exists and is not a run folder; give another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot make the run folder: {error.strerror}") from None
    check_own(out)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(out / ".lock", keep=True))
        except BlockingIOError:
            raise UserError(f"{out}: another process is training in this folder") from None
        except OSError as error:
            raise UserError(f"{out / '.lock'}: {error.strerror}") from None
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


def _tell_versions(then: Mapping[str, str]) -> None:
    for name, number in versions().items():
        if then.get(name) != number:
            sys.stderr.write(
                f"pyfast: warning: {name} was {then.get(name)} and is now {number}:"
                " the resumed run may differ in its last bits\n"
            )
