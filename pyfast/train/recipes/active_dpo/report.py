"""What a run in rounds found: its curves over the labels, its summary's part, table and picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyfast._files import written_whole
from pyfast.train.data.group import read_groups
from pyfast.train.errors import UserError
from pyfast.train.evaluation.answering import answers_file
from pyfast.train.evaluation.metrics import bootstrap_interval
from pyfast.train.files import to_json
from pyfast.train.runs import kept
from pyfast.train.seeds import derive

CURVES = Path("evaluation") / "metrics.jsonl"
_COLUMNS = (
    ("labels", "labels", "{:.0f}"), ("mean score", "score/mean", "{:.3f}"),
    ("win rate", "win_rate", "{:.3f}"), ("log det V", "logdet", "{:.2f}"),
    ("agreement", "agreement", "{:.2f}"), ("tokens of picks", "picks/length", "{:.1f}"),
    ("of the pool", "pool/length", "{:.1f}"),
)  # fmt: skip


def wins(scores: Sequence[NDArray[np.float64]], initial: Sequence[NDArray[np.float64]]) -> Any:
    """Return how often each prompt's answers beat its initial ones, float64 (prompts,).

    Each answer is held to each of the initial ones; equal scores are half a win.
    """
    shares = []
    for new, old in zip(scores, initial, strict=True):
        gaps = new[:, None] - old[None, :]
        shares.append(float(((gaps > 0) + 0.5 * (gaps == 0)).mean()))
    return np.array(shares)


def scores_of(path: Path) -> list[NDArray[np.float64]]:
    """Return the scores of each prompt's answers (`evaluate.answer`)."""
    found = []
    for number, group in enumerate(read_groups(path), start=1):
        if group.scores is None:
            raise UserError(f"{path}: group {number}: scores are missing")
        found.append(np.array(group.scores))
    return found


def curves(settings: Any, out: Path, ends: Sequence[int]) -> list[dict[str, Any]]:
    """Return a line for each evaluation that there is: what is known, by labels and steps.

    Parameters
    ----------
    settings : Settings
        With the sections evaluation and run.
    out : Path
        The run's folder.
    ends : sequence of int
        After how many steps each round ends.

    Returns
    -------
    list of dict
        ``step``, ``labels``, ``round`` but for the first, and what the round measured
        (`ActiveDpo`). With held-out prompts
        ``score/mean`` and ``win_rate`` as {"mean", "low", "high"}, a bootstrap over the prompts.
    """

    def interval(values: NDArray[np.float64]) -> dict[str, float]:
        low, high = bootstrap_interval(
            values,
            confidence=settings.evaluation.confidence,
            resamples=settings.evaluation.bootstrap,
            seed=derive(settings.run.seed, "bootstrap"),
        )
        return {"mean": float(values.mean()), "low": low, "high": high}

    lines: list[dict[str, Any]] = [{"step": 0, "labels": 0}]
    for number, end in enumerate(ends, start=1):
        path = out / "kept" / f"round-{number}" / "labelled.json"
        report = kept.read(path)["report"] if path.exists() else {}
        if report or answers_file(out, end, ends[-1]).exists():  # on other data without a round
            labels = number * settings.active.labels
            lines.append({"step": end, "labels": labels, "round": number, **report})
    initial: list[NDArray[np.float64]] = []
    for line in lines:
        path = answers_file(out, line["step"], ends[-1])
        if not path.exists():
            continue
        scores = scores_of(path)
        if line["step"] == 0:
            initial = scores
        if not initial:
            raise UserError(f"{path}: expected the initial answers, eval_before.jsonl, beside it")
        if len(scores) != len(initial):
            raise UserError(f"{path}: expected answers to the same prompts as before")
        line["score/mean"] = interval(np.array([values.mean() for values in scores]))
        line["win_rate"] = interval(wins(scores, initial))
    return lines


def write_curves(out: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Write the lines where `pyfast compare` looks for them, means alone."""
    path = out / CURVES
    path.parent.mkdir(exist_ok=True)
    flat = [
        {name: x["mean"] if isinstance(x, dict) else x for name, x in line.items()}
        for line in lines
    ]
    with written_whole(path) as beside:
        beside.write_text("".join(to_json(line) + "\n" for line in flat), "utf-8")


FIRST = ("score/mean", "win_rate", "logdet", "agreement", "picks/length", "pool/length")
"""The metrics that matter most, in order."""


def metrics_of(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the metrics of a finished run: the last line's, and means over the rounds.

    A run that is evaluated on other data has no line of the rounds before the last: then there are
    no means over the rounds, and nobody was asked anything.
    """
    last, after = lines[-1], lines[1:]
    found = {name: last[name] for name in FIRST[:2] if name in last}
    if [line["round"] for line in after if "score/mean" in line] == _all_rounds(lines):
        found["score/mean_over_rounds"] = float(np.mean([x["score/mean"]["mean"] for x in after]))
        found["win_rate_over_rounds"] = float(np.mean([x["win_rate"]["mean"] for x in after]))
    rest = [name for name in last if name not in (*FIRST, "step", "round")]
    found |= {name: last[name] for name in (*FIRST[2:], *rest) if name in last}
    return found | _asked(lines)


def _all_rounds(lines: Sequence[dict[str, Any]]) -> list[int]:
    """Return the numbers of the rounds up to the last line's."""
    return list(range(1, lines[-1].get("round", 0) + 1))


def _asked(lines: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Return how many questions of all rounds were skipped and ties, where the rounds are here."""
    names, after = ("skipped", "ties"), lines[1:]
    known = [line["round"] for line in after if all(name in line for name in names)]
    if known != _all_rounds(lines):
        return {}
    return {name: sum(line[name] for line in after) for name in names}


def totals(lines: Sequence[dict[str, Any]], confidence: float, same: bool) -> dict[str, Any]:
    """Return what else the table shows; `same` is whether the oracle's scorer also evaluates."""
    scorers = "the same scorer" if same else "different scorers"
    return {
        "rounds": list(lines),
        "confidence": confidence,
        **_asked(lines),
        "judge": f"the oracle and the evaluation use {scorers}",
    }


def table(title: str, summary: dict[str, Any]) -> str:
    """Format a finished run for the terminal: a line a round.

    Parameters
    ----------
    title : str
        What the run was.
    summary : dict
        With what `totals` returns.

    Returns
    -------
    str
        Several lines, without a final newline.
    """
    shown = [column for column in _COLUMNS if any(column[1] in x for x in summary["rounds"])]
    rows = [["round", *(column[0] for column in shown)]]
    for line in summary["rounds"]:
        row = [str(line.get("round", 0))]
        for _, name, form in shown:
            value = line.get(name)
            if isinstance(value, dict):
                row.append(
                    f"{form.format(value['mean'])} "
                    f"[{form.format(value['low'])}, {form.format(value['high'])}]"
                )
            else:
                row.append("" if value is None else form.format(value))
        rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(x.rjust(width) for x, width in zip(r, widths, strict=True)) for r in rows]
    rule = "-" * len(lines[0])
    notes = []
    if "skipped" in summary:
        notes = [f"{summary['skipped']} questions skipped, {summary['ties']} ties told by a coin"]
    if any("score/mean" in line for line in summary["rounds"]):
        notes.append(
            f"{100 * summary['confidence']:g} % intervals: bootstrap over held-out prompts; "
            "win rate against the initial model's answers"
        )
    return "\n".join([title, rule, lines[0], rule, *lines[1:], rule, *notes, summary["judge"]])
