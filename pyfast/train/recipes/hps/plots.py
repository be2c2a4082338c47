"""Pictures of a run of HPS, from the files in its folder alone."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyfast.train.errors import UserError
from pyfast.train.reports.drawing import BLUE, GREEN, GREY, ORANGE, STYLE, curve, draw
from pyfast.train.reports.measured import read_metrics, scored_groups
from pyfast.train.reports.plots import score_distributions
from pyfast.train.runs.layout import check_own

Records = Sequence[dict[str, float]]


def plot_run(run: Path) -> list[Path]:
    """Draw all the pictures that a run's files allow.

    Returns
    -------
    list of Path
        ``training_curves.png``; with held-out prompts ``heldout_scores.png`` and
        ``heldout_curves.png``.
    """
    if not (run / "metrics.jsonl").exists():
        raise UserError(f"{run}: no metrics.jsonl here; expected a run folder with a step done")
    check_own(run)
    with plt.rc_context(STYLE), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.filterwarnings("ignore", "Glyph")  # a script that the font lacks
        records = read_metrics(run / "metrics.jsonl", every=True)
        drawn = [draw(run / "training_curves.png", training_curves, records)]
        if (run / "eval_after.jsonl").exists():
            answers = [scored_groups(run / f"eval_{name}.jsonl") for name in ("before", "after")]
            path = run / "heldout_scores.png"
            drawn.append(draw(path, score_distributions, *answers))
        measured = run / "evaluation" / "metrics.jsonl"
        if measured.exists():
            path = run / "heldout_curves.png"
            drawn.append(draw(path, heldout_curves, read_metrics(measured)))
    return drawn


def training_curves(records: Records) -> Figure:
    """Draw loss, implicit rewards, scores of what was drawn, gamma, tokens and gradient norm."""
    step = _column(records, "step")
    figure: Figure
    figure, axes = plt.subplots(2, 3, figsize=(11, 5.6), sharex=True)
    loss, rewards, scores, gamma, tokens, norm = axes.flat
    curve(loss, step, _column(records, "loss"), color=BLUE)
    loss.set(title="Loss", ylabel="loss of a group")

    rewards.axhline(0, color=GREY, lw=0.8)
    for name, color, style, label in (
        ("chosen", GREEN, "--", "chosen"),
        ("rejected", ORANGE, ":", "negatives (mean)"),
        ("margins", BLUE, "-", "margin"),
    ):
        values = _column(records, f"rewards/{name}")
        curve(rewards, step, values, color=color, ls=style, label=label)
    rewards.set(title="Implicit rewards", ylabel="β log(π / π_ref)  [nats]")
    rewards.legend(fontsize=7.5)

    chosen, rejected = _column(records, "scores/chosen"), _column(records, "scores/rejected")
    curve(scores, step, chosen, color=GREEN, ls="--", label="chosen")
    curve(scores, step, rejected, color=ORANGE, ls=":", label="negatives that were taken")
    scores.set(title="Scores", ylabel="score")
    low, high = scores.get_ylim()
    scores.set_ylim(low, high + 0.15 * (high - low))  # the legend has a band above the data
    scores.legend(fontsize=7.5, ncols=2, loc="upper center")

    gamma.axhline(0, color=GREY, lw=0.8)
    gamma.step(step, _column(records, "negatives/gamma"), color=BLUE, where="mid")
    gamma.set(title=r"$\gamma$: above 0, hard negatives are drawn", ylabel=r"$\gamma$")

    total = np.cumsum(_column(records, "tokens/forwarded"))
    curve(tokens, step, total, color=BLUE)
    tokens.set(title="Tokens forwarded with a gradient", ylabel="tokens, a group a step in all")
    tokens.set(ylim=(0, None))

    curve(norm, step, _column(records, "grad_norm"), color=BLUE)
    norm.set(title="Gradient norm before clipping", ylabel="L2 norm", ylim=(0, None))
    for ax in axes[1]:
        ax.set_xlabel("optimiser step")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def heldout_curves(records: Records) -> Figure:
    """Draw what was measured of held-out prompts: margins of pairs, divergences, scores."""
    step = _column(records, "step")
    figure: Figure
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6))
    panels = (
        (
            "Reward margins of held-out pairs",
            "nats",
            (("rm_dpo", "RM DPO", BLUE, "o-"), ("rm_r_dpo", "RM R-DPO", ORANGE, "s--")),
        ),
        (
            "From the reference",
            "log(π / π_ref)  [nats]",
            (
                ("kl_chosen", "on the chosen response", GREEN, "o-"),
                ("kl_sampled", "on samples (KL)", BLUE, "s--"),
            ),
        ),
        (
            "Scores of the answers",
            "score",
            (("score/mean", "mean", BLUE, "o-"), ("score/best", "best", GREEN, "s--")),
        ),
    )
    for ax, (title, label, shown) in zip(axes, panels, strict=True):
        if label != "score":
            ax.axhline(0, color=GREY, lw=0.8)
        for name, words, color, style in shown:
            ax.plot(step, _column(records, name), style, color=color, ms=4, label=words)
        ax.set(title=title, ylabel=label, xlabel="optimiser step")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend(fontsize=7.5)
    return figure


def _column(records: Records, name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([record.get(name, np.nan) for record in records])
