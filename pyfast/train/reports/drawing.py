"""How all pictures of runs look, and how they come into their files: whole or not at all."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pyfast._files import written_whole
from pyfast.train.errors import UserError

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

_DENSE = 400
"""Steps beyond which a curve is drawn with its running mean."""


def draw(path: Path, picture: Callable[..., Figure], *content: Any) -> Path:
    """Draw a figure into a file, and return it."""
    figure = None
    try:
        figure = picture(*content)
        _tell_unmeasured(path, figure)
        with written_whole(path) as beside:
            figure.savefig(beside)
    except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: these numbers cannot be drawn: {error}") from None
    finally:
        if figure is not None:
            plt.close(figure)
    return path


def _tell_unmeasured(path: Path, figure: Figure) -> None:
    """Say in an empty panel that it is, and on standard error which curves have no number."""
    for ax in figure.axes:
        curves = [line for line in ax.lines if line.get_transform() == ax.transData]
        empty = [line for line in curves if not np.isfinite(np.asarray(line.get_ydata())).any()]
        if not empty:
            continue
        if len(empty) == len(curves):
            ax.text(0.5, 0.5, "not measured", ha="center", color=GREY, transform=ax.transAxes)
        labels = [str(line.get_label()) for line in empty]
        shown = ", ".join(dict.fromkeys(label for label in labels if not label.startswith("_")))
        title = f"{ax.get_title()}: {shown}" if shown else ax.get_title()
        sys.stderr.write(f"pyfast: {path.name}: not measured: {title}\n")


def curve(ax: Any, x: NDArray[np.float64], y: NDArray[np.float64], **look: Any) -> None:
    """Draw a curve; one of very many steps thin, under its running mean."""
    if len(x) > _DENSE:
        ax.plot(x, y, color=look["color"], lw=0.4, alpha=0.25)
        width = len(x) // 100
        y = np.convolve(y, np.ones(width) / width, "valid")  # NaN where a step has no number
        x = x[(width - 1) // 2 :][: len(y)]
    ax.plot(x, y, **look)


def short(text: str, width: int) -> str:
    """Shorten to one line, and keep matplotlib from reading dollars as mathematics."""
    return textwrap.shorten(text, width, placeholder="...").replace("$", r"\$")
