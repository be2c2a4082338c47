"""The training loop. It reads from top to bottom: `run`, then what it calls, in order."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pyfast._files import write_folder
from pyfast.train import files, processes, sft
from pyfast.train.context import Context
from pyfast.train.descent import adamw, check_finite, learning_rate, take_step
from pyfast.train.errors import DivergedError
from pyfast.train.evaluation import metrics
from pyfast.train.policy import fingerprint, loading
from pyfast.train.processes import ALONE, Team
from pyfast.train.recipe import Recipe, TrainingGroup
from pyfast.train.reports import reporting
from pyfast.train.reports.report import read_summary
from pyfast.train.reports.reporting import Reporter
from pyfast.train.runs import checkpoint, kept, rundir
from pyfast.train.runs.layout import TIMES
from pyfast.train.scoring import rewards


def run(kind: type[Recipe], settings: Any, inputs: Any, out: Path) -> dict[str, Any]:
    """Train by a recipe, or go on with a run that was interrupted, and evaluate.

    In several processes (`processes`) all of them call it, and all get the summary.

    Parameters
    ----------
    kind : type
        The recipe.
    settings : Settings
        Its settings.
    inputs : Inputs
        What ``kind.read(settings)`` made.
    out : Path
        The run folder. New: a run starts. Interrupted run with the same settings: it goes on, and
        ends with the same files, bit for bit, as if it had never stopped. Finished run: nothing
        is done, or with more steps, only those. What else may change: `rundir.FREE`.

    Returns
    -------
    dict
        The content of ``summary.json``.

    Raises
    ------
    UserError
        For whatever the user can mend.
    """
    reporting.check(settings.run.report_to)
    steps, examples = kind.steps(settings, inputs), sft.read(kind, settings, inputs)
    with (
        processes.team(settings) as team,
        rundir.claim_for(team, out),
        reporting.reporter(settings, out) as report,
    ):
        is_finished = rundir.open_for(team, settings, inputs, steps, out)
        team.once(lambda: kept.verify_all(out))
        team.once(lambda: kind.verify(settings, out))
        if is_finished:
            # killed after the summary, it was not tidied yet
            team.once(lambda: rundir.tidy(out))
            return read_summary(kind, out)
        if not team.once(lambda: rundir.is_trained(steps, out)):
            quiet_libraries()
            start = sft.run(settings, examples, out, team)
            recipe = load(kind, settings, inputs, out, start, team)
            policy, models = recipe.ctx.policy, models_of(recipe)
            team.agree("the models' content", files.to_json(models))
            team.once(lambda: rundir.check_models(out, models))
            train(recipe, settings, steps, out, report)
            team.once(lambda: write_folder(out / policy.saves, policy.save))
        return team.once(lambda: finish(kind, settings, inputs, steps, out, report))


def finish(
    kind: type[Recipe], settings: Any, inputs: Any, steps: int, out: Path, report: Reporter
) -> dict[str, Any]:
    """Write the summary and the pictures of a trained run."""
    summary = {"recipe": settings.recipe, **kind.summary(settings, inputs, out)}
    kind.plots(out)
    report.summary(steps, summary)
    files.write_json(out / "summary.json", summary)  # last: with it a run is finished
    rundir.tidy(out)
    return summary


def load(
    kind: type[Recipe],
    settings: Any,
    inputs: Any,
    out: Path,
    start: Path | None = None,
    team: Team = ALONE,
) -> Recipe:
    """Load the policy of a run, as its fine-tuning left it, and make its recipe."""
    policy = loading.load(settings.policy, settings.run.seed, start)
    text = dataclasses.asdict(settings.text)
    return kind(settings, inputs, Context(policy, settings.run.seed, out, team, **text))


def models_of(recipe: Recipe) -> dict[str, dict[str, str]]:
    """Load the scorers, and return the fingerprints of all models of a run, by name."""
    policy = recipe.ctx.policy
    of_policy = fingerprint.of(policy.base, policy.tokenizer)
    scorers = rewards.ready(getattr(recipe.inputs, "rewards", {}), policy.device)
    return {"policy": of_policy, **scorers, **recipe.fingerprints()}


def train(recipe: Recipe, settings: Any, steps: int, out: Path, report: Reporter) -> None:
    """Take the optimiser steps that a run still lacks, and evaluate when that is due.

    Raises
    ------
    DivergedError
        With the step, as soon as a loss, a gradient or a weight is not finite. The checkpoints
        that are there stay, and nothing that is not finite gets into one.
    """
    ctx, optim, every = recipe.ctx, settings.optimisation, settings.get("evaluation.every")

    def is_due(step: int) -> bool:
        ends = step == recipe.schedule(step - 1)[1] if step else True
        return ends or bool(every and step % every == 0)

    parameters = ctx.policy.trainable()
    optimiser = adamw(parameters, optim)
    done = checkpoint.restore_for(ctx.team, out, parameters, optimiser)
    ctx.once(lambda: report.begin(done))
    recipe.prepare()
    if is_due(done):
        recipe.evaluate(done)
        ctx.once(lambda: report.curves(done))
    for step in tqdm(range(done, steps), "training", steps, unit="step", initial=done):
        started = time.perf_counter()
        start, end = recipe.schedule(step)
        if step == start:
            optimiser.state.clear()
        lr = learning_rate(optim, step - start, end - start)
        optimiser.zero_grad()
        try:
            groups = recipe.groups(step)
            ctx.agree_on(step, groups)
            learnt = learn_all(recipe, groups, step)
            ctx.reduce(parameters)
            what = f"the {ctx.policy.saves}"
            norm = take_step(optimiser, parameters, lr, optim.max_grad_norm, what)
            ctx.team.agree(f"the gradient of step {step + 1}", repr(norm))
            measured = metrics.mean_of([record for record, _ in learnt])
            measured = {"step": step + 1, "lr": lr, "grad_norm": norm, **measured}
            saves = (step + 1) % settings.run.checkpoint_every == 0 or step + 1 in (end, steps)
            if saves:
                ctx.team.agree_on_weights(what, parameters)

            def write(measured: dict[str, Any] = measured, saves: bool = saves) -> None:
                checkpoint.append(out / "metrics.jsonl", files.to_json(measured))
                told = {name: measured[name] for name in measured if name != "step"}
                report.log(measured["step"], told)
                if saves:
                    checkpoint.save(out, measured["step"], parameters, optimiser)

            ctx.once(write)
        except DivergedError as error:
            raise DivergedError(
                f"diverged at step {step + 1}: {error}; {_what_is_kept(out)} "
                "(a lower optimisation.lr may help, in another --out)"
            ) from None
        # Times differ from run to run, so they have a file of their own.
        seconds = {"step": step + 1, "seconds": round(time.perf_counter() - started, 3)}
        if ctx.team.is_first:
            checkpoint.append(out / TIMES, files.to_json(seconds))
        if is_due(step + 1):
            recipe.evaluate(step + 1)
            ctx.once(lambda at=step + 1: report.curves(at))  # type: ignore[misc]


def learn_all(
    recipe: Recipe, groups: Sequence[TrainingGroup], step: int
) -> list[tuple[dict[str, float], str | None]]:
    """Add the gradients of this process's groups, and write the lines of all."""
    ctx = recipe.ctx
    learnt = ctx.each(groups, lambda group: learn(recipe, group, step, len(groups)))

    def write() -> None:
        for _, line in learnt:
            if line is not None:
                checkpoint.append(ctx.folder / "groups.jsonl", line)

    ctx.once(write)
    return learnt


def learn(
    recipe: Recipe, group: TrainingGroup, step: int, groups: int
) -> tuple[dict[str, float], str | None]:
    """Add one group's gradient; return what was measured, and the group's line."""
    record, x = dict(group.measured), None
    if len(group.responses) > 1:
        x = recipe.ctx.score(group)
        measured: dict[str, torch.Tensor] = {}
        check_finite("a log-probability", x.policy_logps, x.ref_logps)
        loss = recipe.loss(x, step, measured)
        check_finite("the loss", loss)
        if group.prefers:
            (loss / groups).backward()  # type: ignore[no-untyped-call]
        record |= {"loss": loss.item(), **{name: value.item() for name, value in measured.items()}}
    return record, None if group.line is None else group.line(x)


def _what_is_kept(out: Path) -> str:
    step = checkpoint.latest_step(out)
    return f"the checkpoint of step {step} is kept" if step else "no checkpoint was made before"


def quiet_libraries() -> None:
    """Leave the terminal to our own progress bars."""
    from transformers.utils import logging

    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
