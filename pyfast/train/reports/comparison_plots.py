"""Pictures of runs side by side: metrics with intervals, and curves over training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyfast._files import written_whole
from pyfast.train.errors import UserError
from pyfast.train.reports.comparing import Row
from pyfast.train.reports.drawing import STYLE
from pyfast.train.reports.measured import measures

Curve = dict[str, dict[float, float]]
"""What a run measured along the way: {metric: {step: value}}."""

MOST = 12
"""Metrics in one picture."""


def draw(
    result: Mapping[str, Any], rows: Sequence[Row], folder: Path, metrics: Sequence[str] | None
) -> list[Path]:
    """Draw the metrics, and the curves of those that were measured along the way.

    Returns
    -------
    list of Path
        The pictures written to the folder.
    """
    known = list(dict.fromkeys(name for row in result["rows"] for name in row["metrics"]))
    names = list(metrics or known)[:MOST]
    pictures = {"comparison.png": _metrics(result, names)}
    curves = {row.label: [_curve(run.folder) for run in row.runs] for row in rows}
    drawn = [name for name in metrics or _worth(curves, known) if _has(curves, name)][:MOST]
    if drawn:
        pictures["comparison_curves.png"] = _curves(curves, drawn)
    paths = []
    for name, figure in pictures.items():
        with written_whole(folder / name) as beside, plt.rc_context(STYLE):
            figure.savefig(beside)
        plt.close(figure)
        paths.append(folder / name)
    return paths


def _has(curves: Mapping[str, Sequence[Curve]], name: str) -> bool:
    return any(name in curve for some in curves.values() for curve in some)


def _worth(curves: Mapping[str, Sequence[Curve]], first: Sequence[str]) -> list[str]:
    """Return what was measured along the way and is not the same in all runs, some of it first."""
    found = sorted({name for some in curves.values() for curve in some for name in curve})
    every = [curve for some in curves.values() for curve in some]
    differ = [
        n for n in found if len(every) == 1 or any(c.get(n) != every[0].get(n) for c in every)
    ]
    return sorted(differ, key=lambda name: first.index(name) if name in first else len(first))


def _colour(labels: Sequence[str], label: str) -> str:
    """Return the colour of a row, which is the same in all panels."""
    return f"C{labels.index(label) % 10}"


def _legend(figure: Figure, axes: Sequence[Axes], title: str | None = None) -> None:
    """Name whatever is drawn in any of the panels, once."""
    found: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        figure.legend(
            found.values(), found.keys(), loc="outside lower center", ncols=4, title=title
        )


def _grid(count: int, height: float) -> tuple[Figure, list[Axes]]:
    columns = min(3, count)
    down = -(-count // columns)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            down, columns, figsize=(4.2 * columns, height * down), squeeze=False
        )
    for unused in axes.flat[count:]:
        unused.set_visible(False)
    return figure, list(axes.flat[:count])


def _axis_of(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the one setting that the rows vary by numbers, at least three of them."""
    if not rows or not rows[0]["values"]:
        return None
    numeric = [
        name
        for name in rows[0]["values"]
        if all(type(row["values"][name]) in (int, float) for row in rows)
        and len({row["values"][name] for row in rows}) >= 3
    ]
    return numeric[0] if len(numeric) == 1 else None


def _metrics(result: Mapping[str, Any], names: Sequence[str]) -> Figure:
    rows, axis = result["rows"], _axis_of(result["rows"])
    labels = [row["label"] for row in rows]
    figure, axes = _grid(len(names), 2.6 if axis else 0.8 + 0.3 * len(rows))
    for name, ax in zip(names, axes, strict=True):
        shown = [row for row in rows if name in row["metrics"]]
        if axis is not None:
            _against(ax, shown, name, axis, _series(rows, axis))
        else:
            _dots(ax, shown, name, labels)
        ax.set_title(name)
    if axis is not None:
        _legend(figure, axes)
    return figure


def _half(part: Mapping[str, Any]) -> float:
    return 0.0 if part["low"] is None else float(part["high"] - part["mean"])


def _dots(ax: Axes, rows: Sequence[Mapping[str, Any]], name: str, labels: Sequence[str]) -> None:
    """One line a row of runs: its seeds, their mean and its interval."""
    for place, row in enumerate(rows):
        part = row["metrics"][name]
        seeds = list(part["by_seed"].values())
        ax.plot(seeds, [place] * len(seeds), "o", ms=3, color="0.6", zorder=1)
        ax.errorbar(
            part["mean"], place, xerr=_half(part), fmt="o", ms=5, capsize=3, zorder=2,
            color=_colour(labels, row["label"]),
        )  # fmt: skip
    ax.set_yticks(range(len(rows)), [row["label"] for row in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)


def _series(rows: Sequence[Mapping[str, Any]], axis: str) -> dict[str, list[Mapping[str, Any]]]:
    """Group rows by all settings but the one of numbers."""
    series: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        others = {k: v for k, v in row["values"].items() if k != axis}
        label = " ".join(f"{k.partition('.')[2]}={v}" for k, v in others.items())
        series.setdefault(label, []).append(row)
    return series


def _against(
    ax: Axes, rows: Sequence[Mapping[str, Any]], name: str, axis: str, known: Mapping[str, Any]
) -> None:
    """One curve for each combination of the other settings, along the one of numbers."""
    for label, some in _series(rows, axis).items():
        some = sorted(some, key=lambda row: row["values"][axis])
        parts = [row["metrics"][name] for row in some]
        ax.errorbar(
            [row["values"][axis] for row in some],
            [part["mean"] for part in parts],
            yerr=[_half(part) for part in parts],
            fmt="o-", ms=4, capsize=3, label=label or None, color=_colour(list(known), label),
        )  # fmt: skip
    ax.set_xlabel(axis.partition(".")[2])


def _curve(folder: Path) -> Curve:
    """Read what a run measured along the way: {metric: {step: value}}."""
    found: Curve = {}
    path = folder / "evaluation" / "metrics.jsonl"
    if not path.exists():
        return found
    for number, record in measures(path):
        at = record.pop("labels", record["step"])
        del record["step"]
        for name, value in record.items():
            if at in found.setdefault(name, {}):
                raise UserError(f"{path}:{number}: {name} stands there for {at:g} already")
            found[name][at] = value
    return found


def _curves(curves: Mapping[str, Sequence[Curve]], names: Sequence[str]) -> Figure:
    figure, axes = _grid(len(names), 2.6)
    for name, ax in zip(names, axes, strict=True):
        for label, runs in curves.items():
            some = [run[name] for run in runs if name in run]
            steps = sorted(set.intersection(*(set(run) for run in some))) if some else []
            if not steps:
                continue
            values = np.array([[run[step] for step in steps] for run in some])
            mean = values.mean(axis=0)
            colour = _colour(list(curves), label)
            ax.plot(steps, mean, "o-", ms=3, label=label, color=colour)
            if len(some) > 1:
                low, high = values.min(axis=0), values.max(axis=0)
                ax.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
        ax.set_title(name)
        ax.set_xlabel("steps or labels")
    _legend(figure, axes, "means over seeds, from the lowest to the highest of them")
    return figure
