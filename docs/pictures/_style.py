"""What all pictures share: colours that read on light and on dark pages, and reproducible files."""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

TEXT = "#6e7680"
GOOD, BAD, PICK, QUIET = "#2a9d8f", "#e76f51", "#3f7fd6", "#a9b0b8"
REWARDS = mpl.colors.LinearSegmentedColormap.from_list("rewards", [BAD, "#d9c27a", GOOD])

plt.rcParams.update(
    {
        "font.size": 10,
        "axes.titlesize": 10,
        "text.color": TEXT,
        "axes.labelcolor": TEXT,
        "axes.edgecolor": TEXT,
        "axes.titlecolor": TEXT,
        "xtick.color": TEXT,
        "ytick.color": TEXT,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.7,
        "savefig.transparent": True,
        "svg.fonttype": "path",
        "svg.hashsalt": "pyfast",
        "figure.constrained_layout.use": True,
    }
)


def axes(
    width: float, height: float, columns: int = 1, **settings: object
) -> tuple[Figure, list[Axes]]:
    """Return a figure and its axes side by side."""
    figure, made = plt.subplots(1, columns, figsize=(width, height), squeeze=False, **settings)
    return figure, list(made[0])


def plain(ax: Axes, title: str = "") -> None:
    """Show points of a plane: no ticks, one scale."""
    ax.set(xticks=[], yticks=[], aspect="equal", title=title)
    for side in ax.spines.values():
        side.set_visible(False)


def save(figure: Figure, script: str, folder: Path | None = None) -> Path:
    """Write the picture beside its script, or into a folder."""
    path = Path(script).with_suffix(".svg")
    path = path if folder is None else folder / path.name
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return path
