"""Pictures of a run that ranks candidates, from the files in its folder alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pyfast.train.errors import UserError
from pyfast.train.recipes.mass_dpo.ranking import CURVE, FOLDER
from pyfast.train.reports.drawing import BLUE, GREEN, GREY, ORANGE, STYLE, curve, draw
from pyfast.train.reports.measured import read_metrics
from pyfast.train.runs.layout import check_own

Records = Sequence[dict[str, float]]


def plot_run(run: Path) -> list[Path]:
    """Draw the pictures that a run's files allow.

    Returns
    -------
    list of Path
        The PNG files written in `run`.

    Raises
    ------
    UserError
        If it is no run folder, or a file of it is damaged.
    """
    if not (run / "metrics.jsonl").exists():
        raise UserError(f"{run}: no metrics.jsonl here; expected a run folder with a step done")
    check_own(run)
    drawn = []
    with plt.rc_context(STYLE):
        records = read_metrics(run / "metrics.jsonl", every=True)
        drawn.append(draw(run / "training_curves.png", training_curves, records))
        if (run / FOLDER / CURVE).exists():
            heldout = read_metrics(run / FOLDER / CURVE)
            drawn.append(draw(run / "heldout_curves.png", heldout_curves, heldout))
    return drawn


def _column(records: Records, name: str) -> NDArray[np.float64]:
    return np.array([record.get(name, np.nan) for record in records])


def heldout_curves(records: Records) -> Figure:
    """Draw margin, accuracy and chosen reward over the steps (MASS-DPO, figure 2), and MRR.

    Parameters
    ----------
    records : sequence of dict
        The lines of ``evaluation/metrics.jsonl``.
    """
    step = _column(records, "step")
    figure: Figure
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.2))
    margin, accuracy, chosen, rank = axes
    look: dict[str, Any] = {"marker": "o", "ms": 4}
    for ax, name, title, unit in (
        (margin, "eval_rewards/margins", "Margin", "β (h - mean h of the others)  [nats]"),
        (chosen, "eval_rewards/chosen", "Chosen reward", "β log(π / π_ref)  [nats]"),
    ):  # fmt: skip
        ax.axhline(0, color=GREY, lw=0.8)
        ax.plot(step, _column(records, name), color=BLUE, **look)
        ax.set(title=title, ylabel=unit)
    by = (("rewards", BLUE, "by β h"), ("logps", ORANGE, "by log π"))
    for name, color, label in by:
        rank.plot(step, _column(records, f"eval_{name}/MRR"), color=color, label=label, **look)
        share = 100 * _column(records, f"eval_{name}/hit@1")
        accuracy.plot(step, share, color=color, label=label, **look)
    accuracy.set(
        title="Accuracy: the right one beats all", ylabel="% of held-out prompts", ylim=(0, None)
    )
    rank.set(title="Mean reciprocal rank", ylabel="MRR", ylim=(0, None))
    for ax in (accuracy, rank):
        ax.legend(fontsize=7.5)
    for ax in axes:
        ax.set_xlabel("optimiser step")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def training_curves(records: Records) -> Figure:
    """Draw loss, implicit rewards, what the selection gains, gradient norm and learning rate.

    Parameters
    ----------
    records : sequence of dict
        The lines of ``metrics.jsonl``.
    """
    step = _column(records, "step")
    figure: Figure
    figure, axes = plt.subplots(2, 3, figsize=(11, 5.6), sharex=True)
    loss, rewards, logdet, overlap, norm, rate = axes.flat

    curve(loss, step, _column(records, "loss"), color=BLUE)
    loss.set(title="Loss", ylabel="nats", ylim=(0, None))
    rewards.axhline(0, color=GREY, lw=0.8)
    for name, color, label in (
        ("chosen", GREEN, "right one"),
        ("rejected", ORANGE, "negatives (mean)"),
        ("margins", BLUE, "margin"),
    ):
        curve(rewards, step, _column(records, f"rewards/{name}"), color=color, label=label)
    rewards.set(title="Implicit rewards", ylabel="β log(π / π_ref)  [nats]")
    rewards.legend(fontsize=7.5)

    gained = _column(records, "selection/logdet") - _column(records, "selection/logdet_random")
    if np.isfinite(gained).any():
        logdet.axhline(0, color=GREY, lw=0.8)
        curve(logdet, step, gained, color=BLUE)
        curve(overlap, step, 100 * _column(records, "selection/overlap_random"), color=BLUE)
    else:
        for ax in (logdet, overlap):
            ax.text(0.5, 0.5, "random negatives", transform=ax.transAxes, ha="center", color=GREY)
    logdet.set(title="log det H: selected - random", ylabel="nats")
    overlap.set(title="Selected that are random picks too", ylabel="% of k")

    curve(norm, step, _column(records, "grad_norm"), color=BLUE)
    norm.set(title="Gradient norm before clipping", ylabel="L2 norm", ylim=(0, None))
    curve(rate, step, _column(records, "lr"), color=BLUE)
    rate.set(title="Learning rate", ylabel="lr", ylim=(0, None))
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    for ax in axes[1]:
        ax.set_xlabel("optimiser step")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
