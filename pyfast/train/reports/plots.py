"""Pictures of a run, from the files in its folder alone."""

from __future__ import annotations

import reprlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pyfast.train.data.group import Group
from pyfast.train.errors import UserError
from pyfast.train.files import read_json
from pyfast.train.reports.drawing import BLUE, GREEN, GREY, ORANGE, STYLE, curve, draw, short
from pyfast.train.reports.measured import group_of, read_metrics, scored_groups
from pyfast.train.runs.layout import check_own

MANY = 60
"""Held-out prompts beyond which they are drawn without their texts."""


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

    Raises
    ------
    UserError
        If it is no run folder, a file of it is damaged, or there is no such group.
    """
    if not (run / "metrics.jsonl").exists():
        raise UserError(f"{run}: no metrics.jsonl here; expected a run folder with a step done")
    check_own(run)
    drawn = []
    with plt.rc_context(STYLE), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.filterwarnings("ignore", "Glyph")  # a script that the font lacks
        k, selector, kind = _selection(run / "config.json")
        records = read_metrics(run / "metrics.jsonl", every=True)
        drawn.append(draw(run / "training_curves.png", training_curves, records, k, kind))
        if (run / "eval_after.jsonl").exists():
            answers = [scored_groups(run / f"eval_{name}.jsonl") for name in ("before", "after")]
            if [g.prompt for g in answers[0]] != [g.prompt for g in answers[1]]:
                raise UserError(f"{run}: eval_before.jsonl and eval_after.jsonl have other prompts")
            drawn.append(draw(run / "heldout_scores.png", score_distributions, *answers))
        shown = group_of(run / "groups.jsonl", group)
        if shown.embeddings is not None:
            path = run / "selected_responses.png"
            drawn.append(draw(path, response_map, shown, selector))
    return drawn


_IMPLICIT = {
    "dpo": "β log(π / π_ref)  [nats]",
    "length_normalized": "β log(π / π_ref) / length  [nats]",
    "simpo": "β log π / length  [nats]",
}


def _selection(path: Path) -> tuple[int, str, str]:
    """Read how many negatives a run chose, how, and what its implicit rewards are."""
    config = read_json(path)
    loss = config.get("loss") if isinstance(config, dict) else None
    kind = loss.get("implicit_reward", "dpo") if isinstance(loss, dict) else "dpo"
    if not isinstance(kind, str) or kind not in _IMPLICIT:
        raise UserError(f"{path}: loss.implicit_reward: expected one of {', '.join(_IMPLICIT)}")
    section = config.get("selection") if isinstance(config, dict) else None
    if not isinstance(section, dict):
        raise UserError(f"{path}: selection: expected an object of settings")
    k, selector = section.get("k"), section.get("selector")
    k = 1 if selector == "worst" else k
    if type(k) is not int or not 1 <= k <= 2**53:
        raise UserError(f"{path}: selection.k: expected a whole number, got {reprlib.repr(k)}")
    if not isinstance(selector, str):
        raise UserError(f"{path}: selection.selector: expected a string")
    return k, selector, kind


def training_curves(
    records: Sequence[dict[str, float]], k: int, implicit_reward: str = "dpo"
) -> Figure:
    """Draw loss, scores, implicit rewards, effective negatives, gradient norm and learning rate.

    Parameters
    ----------
    records : sequence of dict
        The lines of ``metrics.jsonl``.
    k : int
        Negatives a group, the most that can be effective.
    implicit_reward : {"dpo", "length_normalized", "simpo"}
        What the implicit rewards are.
    """

    def column(name: str) -> NDArray[np.float64]:
        return np.array([record.get(name, np.nan) for record in records])

    step = column("step")
    figure: Figure
    figure, axes = plt.subplots(2, 3, figsize=(11, 5.6), sharex=True)
    loss, scores, rewards, negatives, norm, rate = axes.flat

    curve(loss, step, column("loss"), color=BLUE)
    loss.set(title="SWEPO loss", ylabel="nats", ylim=(0, None))

    mean, spread = column("scores/mean"), column("scores/std")
    scores.fill_between(
        step, mean - spread, mean + spread, color=BLUE, alpha=0.15, lw=0, label="± 1 s.d."
    )
    curve(scores, step, mean, color=BLUE, label="mean of all sampled")
    curve(scores, step, column("scores/chosen"), color=GREEN, ls="--", label="chosen")
    curve(scores, step, column("scores/rejected"), color=ORANGE, ls=":", label="selected negatives")
    scores.set(title="Scores of the sampled responses", ylabel="score")
    # the legend gets a band of its own above the data
    low, high = scores.get_ylim()
    scores.set_ylim(low, high + 0.3 * (high - low))
    scores.legend(fontsize=7.5, ncols=2, loc="upper center")

    rewards.axhline(0, color=GREY, lw=0.8)
    curve(rewards, step, column("rewards/chosen"), color=GREEN, ls="--", label="chosen")
    curve(rewards, step, column("rewards/rejected"), color=ORANGE, ls=":", label="negatives (mean)")
    curve(rewards, step, column("rewards/margins"), color=BLUE, label="margin")
    rewards.set(title="Implicit rewards", ylabel=_IMPLICIT[implicit_reward])
    rewards.legend(fontsize=7.5)

    negatives.axhline(k, color=GREY, lw=0.8, ls="--")
    curve(negatives, step, column("negatives/effective"), color=BLUE)
    negatives.set(title=f"Effective negatives (of k = {k})", ylabel="exp(entropy)")
    negatives.set(ylim=(0.5, k + 0.5))

    curve(norm, step, column("grad_norm"), color=BLUE)
    norm.set(title="Gradient norm before clipping", ylabel="L2 norm", ylim=(0, None))
    curve(rate, step, column("lr"), color=BLUE)
    rate.set(title="Learning rate", ylabel="lr", ylim=(0, None))
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    for ax in axes[1]:
        ax.set_xlabel("optimiser step")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def score_distributions(before: Sequence[Group], after: Sequence[Group]) -> Figure:
    """Draw the held-out scores before and after: all responses, and each prompt's mean.

    Of more than `MANY` prompts, each one's difference, in order.
    """
    first = [np.array(group.scores) for group in before]
    second = [np.array(group.scores) for group in after]
    pooled = np.concatenate([*first, *second])
    many = len(before) > MANY
    height = 5.0 if many else max(4.0, 1.6 + 0.24 * len(before))
    figure: Figure
    figure, (all_ax, prompt_ax) = plt.subplots(1, 2, figsize=(11, height), width_ratios=(1, 1.1))

    low, high = pooled.min(), pooled.max()
    room = 0.0 if high > low else 0.5 * max(1.0, abs(high))
    bins = np.linspace(low - room, high + room, 21)
    for values, color, label in ((first, ORANGE, "before"), (second, BLUE, "after")):
        flat = np.concatenate(values)
        label = f"{label}, mean {flat.mean():.2f}"
        all_ax.hist(flat, bins=list(bins), color=color, alpha=0.45, label=label)
        all_ax.axvline(float(flat.mean()), color=color, ls="--")
    all_ax.set(title="All held-out responses", xlabel="score", ylabel="responses")
    all_ax.legend(loc="upper left")

    means = np.array([[x.mean() for x in first], [x.mean() for x in second]])
    order = np.argsort(means[1] - means[0], kind="stable")
    if many:
        _differences(prompt_ax, (means[1] - means[0])[order])
    else:
        _each_prompt(prompt_ax, means[:, order], [before[i].prompt for i in order])
    return figure


def _each_prompt(ax: Any, means: NDArray[np.float64], prompts: list[str]) -> None:
    rows = np.arange(len(prompts))
    ax.plot(means, [rows, rows], color=GREY, lw=1, zorder=1)
    ax.scatter(means[0], rows, color=ORANGE, label="before", zorder=2)
    ax.scatter(means[1], rows, color=BLUE, label="after", zorder=2)
    ax.set_yticks(rows, [short(prompt, 60) for prompt in prompts], fontsize=7.5)
    ax.set(title="Each held-out prompt's mean", xlabel="mean score")
    ax.set_ylim(-0.7, len(prompts) - 0.3)


def _differences(ax: Any, sorted_differences: NDArray[np.float64]) -> None:
    """Draw a difference a prompt, in order; where they cross zero says how many improved."""
    share = 100 * (np.arange(len(sorted_differences)) + 0.5) / len(sorted_differences)
    better = 100 * float((sorted_differences > 0).mean())
    worse = 100 * float((sorted_differences < 0).mean())
    for part, color, label in (
        (sorted_differences > 0, BLUE, f"better: {better:.0f} %"),
        (sorted_differences < 0, ORANGE, f"worse: {worse:.0f} %"),
    ):
        ax.fill_between(
            share, 0, sorted_differences, where=part, color=color, alpha=0.45, lw=0, label=label
        )
    ax.plot(share, sorted_differences, color=GREY, lw=1)
    mean = float(sorted_differences.mean())
    ax.axhline(mean, color=BLUE, ls="--", label=f"mean {mean:+.2f}")
    ax.axhline(0, color=GREY, lw=0.8)
    ax.set(
        title=f"Mean score after - before, of {len(sorted_differences):,} held-out prompts",
        xlabel="% of the prompts, in order",
        ylabel="difference",
        xlim=(0, 100),
    )
    ax.legend(loc="upper left")


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
    ax.set_title(f"{short(group.prompt, 70)}\n{len(points)} responses, {selector}", fontsize=9)
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
