"""Pictures of a run, from the files in its folder alone."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pyfast._files import written_whole
from pyfast.train.data import Group, read_groups
from pyfast.train.errors import UserError
from pyfast.train.files import read_json

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#7f7f7f"
STYLE: dict[Any, Any] = {
    "figure.dpi": 120,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def plot_run(run: Path, group: int = 0) -> list[Path]:
    """Draw all the pictures that a run's files allow.

    Parameters
    ----------
    run : Path
        A run folder, finished or not.
    group : int
        Which group of ``groups.jsonl`` the map of responses shows, from 0.

    Returns
    -------
    list of Path
        The PNG files written in `run`.
    """
    if not (run / "metrics.jsonl").exists():
        raise UserError(f"{run}: no metrics.jsonl here; expected a run folder with a step done")
    drawn = []
    with plt.rc_context(STYLE):
        config = read_json(run / "config.json")
        records = [json.loads(x) for x in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
        figure = training_curves(records, k=config["selection"]["k"])
        drawn.append(_save(figure, run / "training_curves.png"))
        if (run / "eval_after.jsonl").exists():
            before = read_groups(run / "eval_before.jsonl")
            after = read_groups(run / "eval_after.jsonl")
            drawn.append(_save(score_distributions(before, after), run / "heldout_scores.png"))
        groups = read_groups(run / "groups.jsonl")
        if not 0 <= group < len(groups):
            raise UserError(f"group: expected 0..{len(groups) - 1}, got {group}")
        if groups[group].embeddings is not None:
            figure = response_map(groups[group], config["selection"]["selector"])
            drawn.append(_save(figure, run / "selected_responses.png"))
    return drawn


def _save(figure: Figure, path: Path) -> Path:
    with written_whole(path) as beside:
        figure.savefig(beside)
    plt.close(figure)
    return path


def training_curves(records: Sequence[dict[str, float]], k: int) -> Figure:
    """Draw loss, scores, implicit rewards, effective negatives, gradient norm and learning rate.

    Parameters
    ----------
    records : sequence of dict
        The lines of ``metrics.jsonl``.
    k : int
        Negatives a group, the most that can be effective.
    """

    def column(name: str) -> NDArray[np.float64]:
        return np.array([record[name] for record in records])

    step = column("step")
    figure: Figure
    figure, axes = plt.subplots(2, 3, figsize=(11, 5.6), sharex=True)
    loss, scores, rewards, negatives, norm, rate = axes.flat

    loss.plot(step, column("loss"), color=BLUE)
    loss.set(title="SWEPO loss", ylabel="nats", ylim=(0, None))

    mean, spread = column("scores/mean"), column("scores/std")
    scores.fill_between(
        step, mean - spread, mean + spread, color=BLUE, alpha=0.15, lw=0, label="± 1 s.d."
    )
    scores.plot(step, mean, color=BLUE, label="mean of all sampled")
    scores.plot(step, column("scores/chosen"), color=GREEN, ls="--", label="chosen")
    scores.plot(step, column("scores/rejected"), color=ORANGE, ls=":", label="selected negatives")
    scores.set(title="Scores of the sampled responses", ylabel="score")
    # the legend gets a band of its own above the data
    low, high = scores.get_ylim()
    scores.set_ylim(low, high + 0.3 * (high - low))
    scores.legend(fontsize=7.5, ncols=2, loc="upper center")

    rewards.axhline(0, color=GREY, lw=0.8)
    rewards.plot(step, column("rewards/chosen"), color=GREEN, ls="--", label="chosen")
    rewards.plot(step, column("rewards/rejected"), color=ORANGE, ls=":", label="negatives (mean)")
    rewards.plot(step, column("rewards/margins"), color=BLUE, label="margin")
    rewards.set(title="Implicit rewards", ylabel="β log(π / π_ref)  [nats]")
    rewards.legend(fontsize=7.5)

    negatives.axhline(k, color=GREY, lw=0.8, ls="--")
    negatives.plot(step, column("negatives/effective"), color=BLUE)
    negatives.set(title=f"Effective negatives (of k = {k})", ylabel="exp(entropy)")
    negatives.set(ylim=(0.5, k + 0.5))

    norm.plot(step, column("grad_norm"), color=BLUE)
    norm.set(title="Gradient norm before clipping", ylabel="L2 norm", ylim=(0, None))
    rate.plot(step, column("lr"), color=BLUE)
    rate.set(title="Learning rate", ylabel="lr", ylim=(0, None))
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    for ax in axes[1]:
        ax.set_xlabel("optimiser step")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def score_distributions(before: Sequence[Group], after: Sequence[Group]) -> Figure:
    """Draw the held-out scores before and after: all responses, and each prompt's mean."""
    first = [np.array(group.scores) for group in before]
    second = [np.array(group.scores) for group in after]
    pooled = np.concatenate([*first, *second])
    height = max(4.0, 1.6 + 0.24 * len(before))
    figure: Figure
    figure, (all_ax, prompt_ax) = plt.subplots(1, 2, figsize=(11, height), width_ratios=(1, 1.1))

    bins = np.linspace(pooled.min(), pooled.max() + 1e-9, 21)
    for values, color, label in ((first, ORANGE, "before"), (second, BLUE, "after")):
        flat = np.concatenate(values)
        label = f"{label}, mean {flat.mean():.2f}"
        all_ax.hist(flat, bins=list(bins), color=color, alpha=0.45, label=label)
        all_ax.axvline(float(flat.mean()), color=color, ls="--")
    all_ax.set(title="All held-out responses", xlabel="score", ylabel="responses")
    all_ax.legend(loc="upper left")

    means = sorted(
        zip([x.mean() for x in first], [x.mean() for x in second], before, strict=True),
        key=lambda row: row[1] - row[0],
    )
    for y, (old, new, _) in enumerate(means):
        prompt_ax.plot([old, new], [y, y], color=GREY, lw=1, zorder=1)
    rows = range(len(means))
    prompt_ax.scatter([m[0] for m in means], rows, color=ORANGE, label="before", zorder=2)
    prompt_ax.scatter([m[1] for m in means], rows, color=BLUE, label="after", zorder=2)
    prompt_ax.set_yticks(rows, [_short(m[2].prompt, 60) for m in means], fontsize=7.5)
    prompt_ax.set(title="Each held-out prompt's mean", xlabel="mean score")
    prompt_ax.set_ylim(-0.7, len(means) - 0.3)
    return figure


def response_map(group: Group, selector: str) -> Figure:
    """Draw one group's responses in the plane: scores, the positive and its negatives.

    The plane is that of the two leading principal components of the embeddings (compare AMPO,
    figure 2, which uses t-SNE).
    """
    if group.embeddings is None or group.scores is None or group.positive is None:
        raise UserError("the map of responses needs embeddings, scores and a selection")
    points, share = principal_plane(group.embeddings)
    negatives = np.array(group.negatives or [], dtype=int)
    best = group.positive
    others = np.setdiff1d(np.arange(len(points)), [best, *negatives])
    scores = np.array(group.scores)
    looks: dict[str, Any] = {"cmap": "viridis", "vmin": scores.min(), "vmax": scores.max()}

    figure: Figure
    figure, ax = plt.subplots(figsize=(7.4, 5.4))
    x, y = points.T
    shown = ax.scatter(x[others], y[others], c=scores[others], s=36, label="not used", **looks)
    ax.scatter(
        x[negatives], y[negatives], c=scores[negatives], s=80, marker="s", lw=1.8,
        edgecolors=ORANGE, label="selected negative", **looks,
    )  # fmt: skip
    ax.scatter(
        x[[best]], y[[best]], c=scores[[best]], s=260, marker="*", lw=1.4,
        edgecolors="black", label="positive (best score)", **looks,
    )  # fmt: skip
    figure.colorbar(shown, ax=ax, label="score")
    ax.set_xlabel(f"principal component 1 ({100 * share[0]:.0f} % of the variance)")
    ax.set_ylabel(f"principal component 2 ({100 * share[1]:.0f} %)")
    ax.set_title(f"{_short(group.prompt, 70)}\n{len(points)} responses, {selector}", fontsize=9)
    ax.margins(0.08)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def principal_plane(
    embeddings: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Project rows on their two leading principal components.

    Returns
    -------
    points : float64 array (n, 2)
        Signs are fixed (the largest coordinate of each axis is positive), so a picture is the
        same each time it is drawn.
    share : float64 array (2,)
        Fraction of the variance on each axis.
    """
    centred = embeddings.astype(np.float64) - embeddings.mean(axis=0, dtype=np.float64)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(centred), 2))
    share = np.zeros(2)
    width = min(2, len(s))
    points[:, :width] = u[:, :width] * s[:width]
    points *= np.where(points[np.abs(points).argmax(axis=0), [0, 1]] < 0, -1.0, 1.0)
    total = float((s**2).sum())
    if total > 0:
        share[:width] = s[:width] ** 2 / total
    return points, share


def _short(text: str, width: int) -> str:
    """Shorten to one line, and keep matplotlib from reading dollars as mathematics."""
    return textwrap.shorten(text, width, placeholder="...").replace("$", r"\$")
