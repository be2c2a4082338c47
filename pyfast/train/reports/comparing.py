"""Runs side by side: means with intervals over seeds, and differences paired by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pyfast.train import config as configs
from pyfast.train.config import Settings
from pyfast.train.errors import UserError
from pyfast.train.files import is_number, read_json
from pyfast.train.runs.layout import MODELS, RUN_MARK, SCORERS

SEED = "run.seed"
LEVEL = "evaluation.confidence"
CONFIDENCE = 0.95
ENDS = ("mean", "low", "high")


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes
    ----------
    folder : Path
    settings : Settings
    case : str or None
        Its name in a sweep.
    metrics : dict
        ``summary.json``'s: a number, or ``{"mean", "low", "high"}`` over prompts.
    inputs : dict
        SHA-256 of the files that it read.
    models : dict
        Fingerprints of its models.
    """

    folder: Path
    settings: Settings
    case: str | None
    metrics: dict[str, Any]
    inputs: dict[str, str]
    models: dict[str, dict[str, str]]

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.settings.get(SEED))

    def mean(self, name: str) -> float | None:
        """Return a metric's mean, None if it was not measured."""
        value = self.metrics.get(name)
        return value["mean"] if isinstance(value, dict) else value


@dataclass
class Row:
    """Runs that differ in their seeds alone.

    Attributes
    ----------
    label : str
        What tells them from the others.
    values : dict
        ``{"section.field": value}`` of the settings in which rows differ.
    runs : list of Run, by seed
    """

    label: str
    values: dict[str, Any]
    runs: list[Run] = field(default_factory=list)


def read_run(folder: Path, kind: type[Settings], case: str | None = None) -> Run:
    """Read a finished run.

    Raises
    ------
    UserError
        If it is not finished, or its summary has no metrics, with its folder.
    """
    path = folder / "summary.json"
    if not path.exists():
        raise UserError(f"{folder}: expected a finished run, it has no summary.json")
    metrics = read_json(path).get("metrics")
    if not isinstance(metrics, dict):
        raise UserError(f"{path}: metrics: expected an object; without the file it is made again")
    for name, value in metrics.items():
        parts = [value.get(key) for key in ENDS] if isinstance(value, dict) else [value]
        if not all(map(is_number, parts)):
            raise UserError(
                f"{path}: metrics.{name}: expected a finite number, or such mean, low and high"
            )
    settings = configs.from_file(kind, folder / "config.json")
    read = read_json(folder / RUN_MARK)
    return Run(folder, settings, case, metrics, read.get("inputs", {}), read.get("models", {}))


def rows_of(runs: Sequence[Run]) -> list[Row]:
    """Put runs that differ in nothing but their seed into one row.

    Raises
    ------
    UserError
        If two runs are the same but for their folders, read a file or a model under one name whose
        content was another one each time, or have bootstrap intervals of different levels.
    """
    _check_read(runs)
    _check_levels(runs)
    flat = [_flat(run.settings) for run in runs]
    varied = [name for name in flat[0] if any(one.get(name) != flat[0][name] for one in flat)]
    varied = [name for name in varied if name not in (SEED, *configs.WITHOUT_EFFECT)]
    by_values: dict[str, Row] = {}
    for run, settings in zip(runs, flat, strict=True):
        values = {name: settings[name] for name in varied}
        label = run.case or ""
        rest = {k: v for k, v in values.items() if not run.case or _within_case(k, run, runs)}
        label = " ".join(filter(None, [label, *(_said(k, v) for k, v in rest.items())])) or "run"
        row = by_values.setdefault(repr(values), Row(label, values))
        same = next((other for other in row.runs if other.seed == run.seed), None)
        if same is not None:
            raise UserError(f"{run.folder}: it has the settings and the seed of {same.folder}")
        row.runs.append(run)
    rows = list(by_values.values())
    labels = [row.label for row in rows]
    for row in rows:
        if labels.count(row.label) > 1:  # cases of one name, from two sweeps
            row.label = " ".join([row.label, *(_said(k, v) for k, v in row.values.items())])
        row.runs.sort(key=lambda run: run.seed)
    return rows


def _check_read(runs: Sequence[Run]) -> None:
    """Refuse runs, of whichever rows, that found different things under one name."""
    seen: dict[tuple[Any, ...], tuple[Any, Path]] = {}
    for run in runs:
        get = run.settings.get
        found: dict[tuple[Any, ...], Any] = {}
        for name, digest in run.inputs.items():
            found["data", f"data.{name}", get(f"data.{name}")] = digest
        for name, model in {**MODELS, **SCORERS}.items():
            parts = dict(run.models.get(model, {}))
            how: tuple[Any, ...] = ()
            if model == "policy":  # names and types of its weights follow from these
                how = (get("policy.dtype"), get("policy.training"), get("policy.target_modules"))
                if get("sft.epochs"):  # folded in, of each seed another
                    parts.pop("weights", None)
            if parts:
                key = ("models", name, get(name), *how, bool(get("sft.epochs")))
                found[key] = parts
        for what, content in found.items():
            other, folder = seen.setdefault(what, (content, run.folder))
            if other != content:
                raise UserError(
                    f"{run.folder}: it has read other {what[0]} than {folder}: "
                    f"{what[1]} = {what[2]!r} had another content then"
                )


def _check_levels(runs: Sequence[Run]) -> None:
    """Refuse intervals of different levels beside each other."""
    for run in runs:
        level, first = run.settings.get(LEVEL), runs[0].settings.get(LEVEL)
        if level != first:
            raise UserError(
                f"{run.folder}: {LEVEL}: expected that of {runs[0].folder}, {first}, got {level}; "
                "a finished run that is given another one makes its summary again"
            )


def _within_case(name: str, run: Run, runs: Sequence[Run]) -> bool:
    """Tell whether a setting differs among the runs of one case."""
    values = [other.settings.get(name) for other in runs if other.case == run.case]
    return any(value != values[0] for value in values)


def _flat(settings: Settings) -> dict[str, Any]:
    sections = {k: v for k, v in settings.to_dict().items() if isinstance(v, dict)}
    return {f"{name}.{key}": v for name, part in sections.items() for key, v in part.items()}


def _said(name: str, value: Any) -> str:
    return f"{name.partition('.')[2]}={'none' if value is None else value}"


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> dict[str, Any]:
    """Return a mean with its Student t interval over seeds; None for its ends with one seed.

    Parameters
    ----------
    values : sequence of float
        One a seed.
    confidence : float

    Returns
    -------
    dict
        ``mean``, ``low``, ``high``, ``n``.
    """
    from scipy.stats import t

    array = np.asarray(values, dtype=np.float64)
    n, mean = len(array), float(array.mean())
    if n < 2:
        return {"mean": mean, "low": None, "high": None, "n": n}
    half = float(t.ppf((1 + confidence) / 2, n - 1) * array.std(ddof=1) / np.sqrt(n))
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def compare(rows: Sequence[Row], baseline: Row | None = None) -> dict[str, Any]:
    """Compare rows of runs.

    Returns
    -------
    dict
        ``confidence`` of intervals over seeds, ``prompts_confidence`` of those over prompts, and
        ``rows``: for each its ``label``, ``values``, ``seeds`` and ``metrics``: by name
        ``{"mean", "low", "high", "n"}`` over the seeds, ``"by_seed"``, and ``"prompts"``: the mean
        over the runs of each one's own interval over prompts (None where it has none). With a
        baseline also ``"difference"``: of the seeds that both have, paired.
    """
    names = dict.fromkeys(name for row in rows for run in row.runs for name in run.metrics)
    made = []
    for row in rows:
        metrics = {}
        for name in names:
            by_seed = {run.seed: run.mean(name) for run in row.runs}
            known = {seed: value for seed, value in by_seed.items() if value is not None}
            if not known:
                continue
            metrics[name] = {**interval(list(known.values())), "by_seed": known}
            metrics[name]["prompts"] = _over_prompts(row, name)
            if baseline is not None and row is not baseline:
                metrics[name]["difference"] = _difference(row, baseline, name)
        seeds = [run.seed for run in row.runs]
        made.append({"label": row.label, "values": row.values, "seeds": seeds, "metrics": metrics})
    return {
        "confidence": CONFIDENCE,
        "prompts_confidence": rows[0].runs[0].settings.get(LEVEL),
        "baseline": None if baseline is None else baseline.label,
        "rows": made,
    }


def _over_prompts(row: Row, name: str) -> dict[str, float] | None:
    parts = [run.metrics.get(name) for run in row.runs]
    known = [part for part in parts if isinstance(part, dict)]
    if not known:
        return None
    return {end: float(np.mean([part[end] for part in known])) for end in ("low", "high")}


def _difference(row: Row, baseline: Row, name: str) -> dict[str, Any] | None:
    theirs = {run.seed: run.mean(name) for run in baseline.runs}
    pairs = [(run.mean(name), theirs.get(run.seed)) for run in row.runs]
    known = [one - other for one, other in pairs if one is not None and other is not None]
    return interval(known) if known else None


def table(result: Mapping[str, Any], metrics: Sequence[str] | None = None) -> str:
    """Format a comparison for the terminal: a block for each metric.

    Raises
    ------
    UserError
        If a metric is asked for that no run has.
    """
    rows = result["rows"]
    known = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    for name in metrics or []:
        if name not in known:
            raise UserError(f"--metrics: no run has {name!r}; they have {', '.join(known)}")
    percent = f"{100 * result['confidence']:g} %"
    of_prompts = f"{100 * result['prompts_confidence']:g} %"
    lines = []
    for name in metrics or known:
        header = [name, "mean", f"{percent} over seeds", f"{of_prompts} over prompts", "seeds"]
        if result["baseline"] is not None:
            header.append(f"minus {result['baseline']} (paired)")
        cells = [header]
        for row in rows:
            part = row["metrics"].get(name)
            if part is None:
                continue
            cell = [row["label"], _number(part["mean"]), _ends(part), _ends(part["prompts"])]
            cell.append(str(part["n"]))
            if result["baseline"] is not None:
                cell.append(_signed(part.get("difference")))
            cells.append(cell)
        lines += [*_columns(cells), ""]
    return "\n".join(lines[:-1])


def _columns(cells: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    made = []
    for row in cells:
        first = row[0].ljust(widths[0])
        rest = [text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)]
        made.append("  ".join([first, *rest]).rstrip())
    return made


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.4g}" if abs(value) >= 1000 else f"{value:{sign}.3f}"


def _ends(part: Mapping[str, Any] | None) -> str:
    if part is None or part["low"] is None:
        return "-"
    return f"[{_number(part['low'])}, {_number(part['high'])}]"


def _signed(part: Mapping[str, Any] | None) -> str:
    if part is None:
        return "-"
    mean = _number(part["mean"], "+")
    if part["low"] is None:
        return mean
    noise = "" if part["low"] > 0 or part["high"] < 0 else " noise"
    return f"{mean} [{_number(part['low'], '+')}, {_number(part['high'], '+')}]{noise}"
