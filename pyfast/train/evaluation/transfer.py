"""A finished run's policy, evaluated on other data without training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pyfast.train import config as configs
from pyfast.train import files, loop, sft
from pyfast.train.errors import UserError
from pyfast.train.recipe import Recipe
from pyfast.train.runs import checkpoint, kept, rundir
from pyfast.train.runs.layout import RUN_MARK

ORIGIN = "trained_in"


def evaluate_on(kind: type[Recipe], run: Path, data: str, out: Path) -> dict[str, Any]:
    """Evaluate a finished run on other held-out data, before and after its training.

    Parameters
    ----------
    kind : type
        The run's recipe.
    run : Path
        A finished run; it is left as it is.
    data : str
        The other data, of the kind that the run's own held-out data is.
    out : Path
        A new folder, or one of an evaluation that was cut off.

    Returns
    -------
    dict
        The summary, which `out` then has as ``summary.json``; ``pyfast compare`` reads it.

    Raises
    ------
    UserError
        If the run is not finished, the data is not fit for it, or its model has changed since.
    """
    if not (run / "summary.json").exists():
        raise UserError(f"{run}: expected a finished run, it has no summary.json")
    trained = configs.from_file(kind.Settings, run / "config.json")
    steps = checkpoint.latest_step(run)
    settings, inputs = kind.elsewhere(trained, data, steps)
    environment = rundir.read_environment(run)
    origin = {**environment, "inputs": inputs.hashes, ORIGIN: files.sha256(run / "config.json")}
    with rundir.claim(out):
        _check_same(out, origin)
        kept.verify_all(out)
        files.write_json(out / RUN_MARK, origin)
        files.write_json(out / "config.json", settings.to_dict())
        loop.quiet_libraries()
        recipe = loop.load(kind, settings, inputs, out, sft.finished(settings, run))
        rundir.check_models(out, loop.models_of(recipe))
        recipe.prepare()
        recipe.evaluate(0)
        checkpoint.load_weights(run, recipe.ctx.policy.trainable())
        recipe.evaluate(steps)
        summary = {"recipe": settings.recipe, **kind.summary(settings, inputs, out)}
        summary |= {"run": str(run), "data": data}
        files.write_json(out / "summary.json", summary)
        return summary


def _check_same(out: Path, origin: dict[str, Any]) -> None:
    """Refuse to mix an evaluation with another that began in the folder."""
    if not (out / RUN_MARK).exists():
        return
    there = rundir.read_environment(out)
    if any(there.get(key) != origin[key] for key in ("inputs", ORIGIN)):
        raise UserError(f"{out}: it is of another run or other data; give another --out")
    sys.stderr.write(f"pyfast: going on in {out}\n")
