"""A picture of what was chosen in files of groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pyfast._files import written_whole
from pyfast.tables import arrays, files, units

MOST = 100_000
"""Groups that are drawn: the first ones."""

_BLUE, _ORANGE, _GREY = "#0072b2", "#d55e00", "#7f7f7f"


def draw(selected: Path, target: Path) -> None:
    """Draw the choices in a file, or a folder of files, of `pyfast.tables.stages.select`.

    Scores of the chosen, of those set against them and of those left out; ranks of those set
    against; how far the chosen are ahead of their mean; and where there are embeddings the first
    group in the plane of its two largest principal components.

    Parameters
    ----------
    selected : Path
        Parquet or JSON Lines with ``scores``, ``positive`` and ``negatives``.
    target : Path
        The picture; its suffix says its kind (.png, .svg, .pdf).

    Raises
    ------
    ValueError
        If a column is missing, or there is no group.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = FigureCanvasAgg.get_supported_filetypes()
    if target.suffix[1:].lower() not in kinds:
        known = ", ".join(f".{kind}" for kind in sorted(kinds))
        raise ValueError(f"{target}: expected a file of {known}")
    tables = _read(selected)
    found = _Choices(tables)
    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(9, 6.5), dpi=120, layout="constrained")
        axes = figure.subplots(2, 2)
        _draw_scores(axes[0, 0], found)
        _draw_ranks(axes[0, 1], found)
        _draw_margins(axes[1, 0], found)
        _draw_group(axes[1, 1], tables[0])
        more = ", the first ones" if found.groups >= MOST else ""
        figure.suptitle(f"{selected.name}: {found.groups:,} groups{more}")
        with written_whole(target) as beside:
            figure.savefig(beside)


def _read(selected: Path) -> list[pa.Table]:
    """Return the columns that are drawn, of up to `MOST` groups."""
    paths = [selected]
    if selected.is_dir():
        paths = [p for p in sorted(selected.iterdir()) if p.name[0] != "." and p.name != files.MARK]
    numbers, places = pa.list_(pa.float64()), pa.list_(pa.int64())
    needs = {
        "scores": numbers,
        "positive": pa.int64(),
        "negatives": places,
        "embeddings": pa.list_(pa.list_(pa.float32())),
    }
    work = units.Work("plot", lambda table: table, needs, ())
    tables: list[pa.Table] = []
    groups = 0
    for part in units.units(paths):
        for batch in units.batches(work, part, lean=True):
            table = batch.table
            wanted = [n for n in needs if n in table.column_names]
            if tables:
                wanted = [n for n in wanted if n != "embeddings"]  # of the first group alone
            tables.append(table.select(wanted).slice(0, MOST - groups))
            groups += tables[-1].num_rows
            if groups >= MOST:
                return tables
    if not groups:
        raise ValueError(f"{selected}: expected groups, there are none")
    return tables


class _Choices:
    """Scores and ranks of the responses of all groups, by what became of them."""

    def __init__(self, tables: list[pa.Table]) -> None:
        chosen, against, left, ranks, margins = [], [], [], [], []
        self.groups = 0
        for table in tables:
            scores, offsets = arrays.numbers(table, "scores")
            negatives, ends = arrays.numbers(table, "negatives")
            tops = arrays.whole(table, "positive").to_numpy(zero_copy_only=False)
            self.groups += table.num_rows
            for row in range(table.num_rows):
                own = np.asarray(scores[offsets[row] : offsets[row + 1]], np.float64)
                picked = negatives[ends[row] : ends[row + 1]].astype(int)
                top = int(tops[row])
                rest = np.setdiff1d(np.arange(len(own)), np.append(picked, top))
                chosen.append(own[[top]])
                against.append(own[picked])
                left.append(own[rest])
                if len(own) > 1:
                    places = (-own).argsort(kind="stable").argsort(kind="stable")
                    ranks.append(places[picked] / (len(own) - 1))
                if len(picked):
                    margins.append([own[top] - own[picked].mean()])
        join = self._join
        self.chosen, self.against, self.left = join(chosen), join(against), join(left)
        self.ranks, self.margins = join(ranks), join(margins)

    @staticmethod
    def _join(parts: list[Any]) -> NDArray[np.float64]:
        return np.concatenate([np.zeros(0), *parts])


def _draw_scores(ax: Any, found: _Choices) -> None:
    everything = np.concatenate([found.chosen, found.against, found.left])
    edges = np.histogram_bin_edges(everything, 60)
    for values, label, colour in (
        (found.left, "left out", _GREY),
        (found.against, "negatives", _ORANGE),
        (found.chosen, "positive", _BLUE),
    ):
        if len(values):
            ax.hist(values, edges, density=True, alpha=0.45, color=colour, label=label)
    ax.set(title="Scores", xlabel="score", ylabel="density")
    ax.legend(frameon=False)


def _draw_ranks(ax: Any, found: _Choices) -> None:
    ax.hist(found.ranks, np.linspace(0, 1, 33), color=_ORANGE, alpha=0.7)
    ax.set(title="Ranks of the negatives in their groups", ylabel="negatives")
    ax.set_xlabel("0: the best of the group, 1: the worst")


def _draw_margins(ax: Any, found: _Choices) -> None:
    ax.hist(found.margins, 50, color=_BLUE, alpha=0.7)
    if len(found.margins):
        ax.axvline(np.median(found.margins), color="black", linewidth=1)
        ax.set_title(f"Margins (median {np.median(found.margins):.3g})")
    ax.set(xlabel="score of the positive - mean of its negatives", ylabel="groups")


def _draw_group(ax: Any, table: pa.Table) -> None:
    if "embeddings" not in table.column_names:
        ax.axis("off")
        ax.text(0.5, 0.5, "no embeddings", ha="center", va="center", color=_GREY)
        return
    first = table.slice(0, 1).to_pylist()[0]
    points = np.asarray(first["embeddings"], np.float64)
    points = points - points.mean(axis=0)
    u, s, _ = np.linalg.svd(points, full_matrices=False)
    plane = np.zeros((len(points), 2))
    plane[:, : min(2, len(s))] = (u * s)[:, :2]
    others = np.setdiff1d(np.arange(len(points)), [first["positive"], *first["negatives"]])
    for places, label, colour, size in (
        (others, "left out", _GREY, 18),
        (first["negatives"], "negatives", _ORANGE, 45),
        ([first["positive"]], "positive", _BLUE, 70),
    ):
        ax.scatter(*plane[places].T, s=size, color=colour, label=label)
    ax.set(title="The first group", xlabel="principal component 1", ylabel="component 2")
    ax.legend(frameon=False)
