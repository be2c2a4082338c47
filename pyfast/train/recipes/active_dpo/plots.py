"""The picture of a run in rounds: what its labels have bought (ActiveDPO, figures 1 and 5)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyfast.train.reports.drawing import BLUE, GREEN, GREY, ORANGE, STYLE, draw
from pyfast.train.runs.layout import check_own


def plot(out: Path, lines: Sequence[dict[str, Any]], title: str) -> list[Path]:
    """Draw ``rounds.png`` of a run.

    Parameters
    ----------
    out : Path
        The run's folder.
    lines : sequence of dict
        As `report.curves` makes them.
    title : str

    Returns
    -------
    list of Path
    """
    check_own(out)
    with plt.rc_context(STYLE):
        return [draw(out / "rounds.png", over_labels, lines, title)]


def over_labels(lines: Sequence[dict[str, Any]], title: str) -> Figure:
    """Draw score, win rate, log det V, agreement and lengths over the number of labels."""
    figure: Figure
    figure, axes = plt.subplots(2, 3, figsize=(11, 5.6))
    score, win, volume, agreement, length, pool = axes.flat
    _curve(score, lines, "score/mean", BLUE)
    score.set(title="Held-out answers", ylabel="mean score")
    win.axhline(0.5, color=GREY, lw=0.8)
    _curve(win, lines, "win_rate", BLUE)
    win.set(title="Against the initial model's answers", ylabel="win rate")
    _curve(volume, lines, "logdet", BLUE)
    volume.set(title="Information of the labelled pairs", ylabel="log det V")
    agreement.axhline(0.5, color=GREY, lw=0.8)
    _curve(agreement, lines, "agreement", BLUE)
    agreement.set(title="Labels that the policy foresaw", ylabel="fraction", ylim=(0, 1))
    _curve(length, lines, "picks/length", ORANGE, label="pairs chosen")
    _curve(length, lines, "pool/length", GREY, label="all pairs")
    length.set(title="Length of the responses", ylabel="tokens")
    _curve(pool, lines, "picks/prompts", GREEN, label="prompts of the pairs chosen")
    _curve(pool, lines, "ties", ORANGE, label="ties of the oracle")
    _curve(pool, lines, "skipped", GREY, label="questions skipped")
    pool.set(title="Each round's pairs", ylabel="number")
    for ax in axes.flat:
        ax.set_xlabel("labels")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=7.5)
        if not ax.has_data():
            ax.text(0.5, 0.5, "not measured", ha="center", color=GREY, transform=ax.transAxes)
    figure.suptitle(title, fontsize=10)
    return figure


def _curve(ax: Any, lines: Sequence[dict[str, Any]], name: str, color: str, **look: Any) -> None:
    known = [line for line in lines if name in line]
    if not known:
        return
    x = [line["labels"] for line in known]
    values = [line[name] for line in known]
    if isinstance(values[0], dict):
        low, high = ([value[end] for value in values] for end in ("low", "high"))
        ax.fill_between(x, low, high, color=color, alpha=0.15, lw=0)
        values = [value["mean"] for value in values]
    ax.plot(x, np.array(values), color=color, marker="o", ms=3, **look)
