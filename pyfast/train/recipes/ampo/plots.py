"""AMPO's figure 2: what three selectors choose among the same responses, in a t-SNE plane."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pyfast.train import config as configs
from pyfast.train.data.group import Group
from pyfast.train.errors import UserError
from pyfast.train.recipes.ampo.selection import Chosen, SelectionConfig, choose
from pyfast.train.recipes.ampo.settings import AmpoSettings
from pyfast.train.reports.drawing import ORANGE, STYLE, draw, short
from pyfast.train.reports.measured import group_of
from pyfast.train.seeds import derive

FILE = "selections.png"
SHOWN = ("bottom-k", "coreset", "opt-select")


def plot_selections(run: Path, numbers: Sequence[int]) -> Path:
    """Draw figure 2 for some groups of a run, a row each, and return the picture.

    Parameters
    ----------
    run : Path
        A run folder of AMPO, finished or not, with embeddings (``run.save_embeddings``).
    numbers : sequence of int
        Lines of ``groups.jsonl``, from 0.

    Raises
    ------
    UserError
        If scikit-learn is missing, there is no such group, or it has no embeddings.
    """
    settings = configs.from_file(AmpoSettings, run / "config.json")
    groups = [group_of(run / "groups.jsonl", number) for number in numbers]
    for number, group in zip(numbers, groups, strict=True):
        if group.embeddings is None or group.scores is None or len(group.responses) < 3:
            raise UserError(
                f"{run / 'groups.jsonl'}: group {number}: expected embeddings and scores of three "
                "responses or more (run.save_embeddings)"
            )
    seeds = [derive(settings.run.seed, "figure 2", number) for number in numbers]
    with plt.rc_context(STYLE):
        return draw(run / FILE, selection_maps, groups, settings.selection, seeds)


def selection_maps(
    groups: Sequence[Group], config: SelectionConfig, seeds: Sequence[int]
) -> Figure:
    """Draw a row a group, a column a selector: its negatives, the best response, the others."""
    rows, columns = len(groups), len(SHOWN)
    figure: Figure
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.6 * columns, 3.1 * rows + 0.7), squeeze=False
    )
    for row, group, seed in zip(axes, groups, seeds, strict=True):
        assert group.embeddings is not None
        assert group.scores is not None
        points, scores = tsne(group.embeddings), np.array(group.scores)
        for ax, selector in zip(row, SHOWN, strict=True):
            chosen = _choice(group, config, selector, seed)
            shown = _draw(ax, points, scores, chosen)
            ax.set_title(f"{selector}: negatives' mean {scores[chosen.negatives].mean():.2f}")
        prompt = textwrap.fill(short(str(group.prompt), 84), 42)
        row[0].set_ylabel(prompt, fontsize=8)
        figure.colorbar(shown, ax=list(row), label="score", aspect=30)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def _choice(group: Group, config: SelectionConfig, selector: str, seed: int) -> Chosen:
    """Return what a selector chooses of a group; of the run's own, what it has chosen."""
    if selector == group.meta.get("selector") and group.positive is not None and group.negatives:
        return Chosen(group.positive, group.negatives)
    if selector != config.selector:  # what only the run's own selector takes
        config = dataclasses.replace(config, exact=False, certify=False, cover_top=False)
    config = dataclasses.replace(config, selector=selector)
    return choose(config, group.scores or [], group.embeddings, seed, group.responses)


def _draw(ax: Any, points: NDArray[np.float64], scores: Any, chosen: Chosen) -> Any:
    others = np.setdiff1d(np.arange(len(points)), chosen.indices)
    looks: dict[str, Any] = {"cmap": "viridis", "vmin": scores.min(), "vmax": scores.max()}
    for where, style in (
        (others, {"s": 24, "label": "not used"}),
        (
            chosen.negatives,
            {"s": 64, "marker": "s", "lw": 1.8, "edgecolors": ORANGE, "label": "negative"},
        ),
        (
            [chosen.positive],
            {"s": 190, "marker": "*", "lw": 1.2, "edgecolors": "black", "label": "best"},
        ),
    ):
        x, y = points[where].T
        shown = ax.scatter(x, y, c=scores[where], **style, **looks)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.margins(0.1)
    return shown


def tsne(embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the plane of scikit-learn's t-SNE (van der Maaten & Hinton 2008), the same each time.

    Returns
    -------
    float64 array (n, 2)
        Perplexity 30, or a third of the others where those are few; a start by principal
        components.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise UserError("t-SNE needs the package scikit-learn (pip install scikit-learn)") from None
    if np.ptp(embeddings, axis=0).max() == 0:  # there is no direction to start along
        return np.zeros((len(embeddings), 2))
    perplexity = min(30.0, max(1.0, (len(embeddings) - 1) / 3))
    how = TSNE(perplexity=perplexity, init="pca", random_state=0)
    points: NDArray[np.float64] = how.fit_transform(embeddings.astype(np.float64))
    return points.astype(np.float64)
