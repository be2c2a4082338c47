"""What a finished run of HPS found: the numbers of the paper's tables, from the run's files."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyfast.train.data.group import Group, read_groups
from pyfast.train.data.lines import as_object, lines
from pyfast.train.errors import UserError
from pyfast.train.evaluation import bleu, blinded, judging
from pyfast.train.evaluation.metrics import bootstrap_interval
from pyfast.train.recipes.hps import heldout_pairs
from pyfast.train.recipes.hps.inputs import Inputs
from pyfast.train.runs import kept
from pyfast.train.scoring import rewards
from pyfast.train.seeds import derive

COSTS = ("tokens/forwarded", "responses/forwarded")


def complete(found: dict[str, Any], settings: Any, inputs: Inputs, out: Path) -> dict[str, Any]:
    """Add to a summary what else HPS measures, and write the table for people.

    Parameters
    ----------
    found : dict
        As `AnsweringRecipe.summary` makes it.
    settings, inputs, out
        Of the run.

    Returns
    -------
    dict
        Its ``metrics`` are ``score/mean`` and ``score/best`` (of the answers to a prompt) by the
        evaluation's scorer, ``training_score/*`` by the training's; ``bleu/*`` and
        ``bleu_char/*`` against the chosen response, the mean and the best of the answers; those of
        `heldout_pairs.MEASURES`; ``win/RUN``, ``tie/RUN``, ``lose/RUN`` and ``win_rate/RUN`` (a tie
        is 1/2) against the model before and other runs; and totals of what was forwarded.
        Intervals are bootstraps over prompts.
    """
    interval = functools.partial(_interval, settings)
    values: dict[str, NDArray[np.float64]] = {}
    if inputs.pairs:
        path = out / "evaluation" / f"pairs-step-{found['steps']}.jsonl"
        values |= heldout_pairs.read_measures(path, len(inputs.pairs))
        values |= _of_answers(out / "eval_after.jsonl", inputs, "")
        values |= _against_others(settings, inputs, out)
        values |= _of_answers(out / "eval_before.jsonl", inputs, "_before")
    metrics = {name: interval(value) for name, value in values.items()}
    cut = out / "kept" / "cut.json"
    return {
        **found,
        "metrics": {**metrics, **_costs(settings, out), **found["metrics"]},
        "groups": inputs.counts,
        "pairs": sum(item.chosen is not None for item in inputs.pairs),
        "same_scorer": inputs.same_scorer,
        "cut": kept.read(cut) if cut.exists() else {},
    }


def _interval(settings: Any, values: NDArray[np.float64]) -> dict[str, float]:
    low, high = bootstrap_interval(
        values,
        confidence=settings.evaluation.confidence,
        resamples=settings.evaluation.bootstrap,
        seed=derive(settings.run.seed, "bootstrap"),
    )
    return {"mean": float(values.mean()), "low": low, "high": high}


def _answers(path: Path, prompts: Sequence[str]) -> list[Group]:
    groups = read_groups(path)
    if [group.prompt for group in groups] != list(prompts):
        raise UserError(f"{path}: expected answers to the prompts of data.heldout, in its order")
    for number, group in enumerate(groups, start=1):
        if group.scores is None:
            raise UserError(f"{path}: group {number}: scores are missing")
    return groups


def _of_answers(path: Path, inputs: Inputs, end: str) -> dict[str, NDArray[np.float64]]:
    """Measure the answers to each prompt: their mean, and the best."""
    groups = _answers(path, inputs.heldout)
    each = {"score": [group.scores or [] for group in groups]}
    if inputs.reward is not None:
        each["training_score"] = [
            rewards.score(inputs.reward, prompt, group.responses)
            for prompt, group in zip(inputs.heldout, groups, strict=True)
        ]
    right = [item.chosen for item in inputs.pairs]
    if any(text is not None for text in right) and bleu.is_there():
        for name, of in (("bleu", "word"), ("bleu_char", "char")):
            each[name] = [
                [bleu.bleu(y, text, of=of) for y in group.responses]
                for group, text in zip(groups, right, strict=True)
                if text is not None
            ]
    found = {}
    for name, rows in each.items():
        found[f"{name}/mean{end}"] = np.array([np.mean(row) for row in rows])
        found[f"{name}/best{end}"] = np.array([max(row) for row in rows])
    return found


def _against_others(settings: Any, inputs: Inputs, out: Path) -> dict[str, NDArray[np.float64]]:
    """Judge the best answer to each prompt against those of the model before, and of other runs."""
    prompts, scoring = inputs.heldout, settings.scoring
    paths = {"after": out / "eval_after.jsonl", "before": out / "eval_before.jsonl"}
    best = {
        name: [_best(group) for group in _answers(path, prompts)]
        for name, path in {**paths, **inputs.against}.items()
    }
    texts = {name: [text for _, text in rows] for name, rows in best.items()}
    scores = {name: np.array([score for score, _ in rows]) for name, rows in best.items()}
    rated = {name: list(zip(prompts, answers, strict=True)) for name, answers in texts.items()}
    blinded.write(out / "evaluation", rated, derive(settings.run.seed, "blind"))
    found = {}
    for name in best:
        if name == "after":
            continue
        if inputs.referee is None:
            won = judging.by_score(scores["after"], scores[name], scoring.tolerance)
        else:
            pair = texts["after"], texts[name]
            won = judging.outcomes(prompts, *pair, inputs.referee, scoring.tolerance)
        for outcome, value in (("win", 1.0), ("tie", 0.5), ("lose", 0.0)):
            found[f"{outcome}/{name}"] = (won == value).astype(np.float64)
        found[f"win_rate/{name}"] = won
    return found


def _best(group: Group) -> tuple[float, str]:
    scores = group.scores or []
    best = max(scores)
    return best, group.responses[scores.index(best)]


def _costs(settings: Any, out: Path) -> dict[str, float]:
    """Return the totals over the steps; a step's line has the mean over its groups."""
    path, count = out / "metrics.jsonl", settings.optimisation.groups_per_step
    if not path.exists():  # evaluated without training
        return {}
    rows = [as_object(path, number, text, "a step's metrics") for number, text in lines(path)]
    return {name: round(count * sum(row[name] for row in rows), 3) for name in COSTS}


def table(summary: dict[str, Any]) -> str:
    """Format a finished run's summary for the terminal."""
    groups, metrics = summary["groups"], summary["metrics"]
    title = (
        f"hps · {summary['label']} · seed {summary['seed']} · {summary['steps']} steps\n"
        f"{groups['groups'] - groups['skipped']} groups learnt from, {groups['skipped']} without a "
        f"negative skipped; {metrics.get('tokens/forwarded', 0):,.0f} tokens forwarded"
    )
    compared = summary["heldout"]
    if compared is None:
        return f"{title}\nno held-out prompts were given, so nothing was compared"
    percent = f"{100 * compared['confidence']:g} % CI"
    rows = [("held out", "mean", percent)]
    for name, value in metrics.items():
        if isinstance(value, dict):
            interval = f"[{value['low']:.3f}, {value['high']:.3f}]"
            rows.append((name, f"{value['mean']:.3f}", interval))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    body = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows]
    rule = "-" * len(body[0])
    note = (
        f"{compared['prompts']} held-out prompts x {compared['responses_per_prompt']} responses, "
        f"{summary['pairs']} pairs; bootstrap over prompts"
    )
    if summary["same_scorer"]:
        note += "\nthe scorer of the answers also made the training scores"
    return "\n".join([title, rule, body[0], rule, *body[1:], rule, note])
