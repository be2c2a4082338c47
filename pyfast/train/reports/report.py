"""The table at the end of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyfast.train.errors import UserError
from pyfast.train.files import read_json
from pyfast.train.recipe import Recipe


def read_summary(kind: type[Recipe], run: Path) -> dict[str, Any]:
    """Read the summary of a finished run, and check that its recipe can show it."""
    path = run / "summary.json"
    summary: dict[str, Any] = read_json(path)
    try:
        kind.table(summary)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError):
        raise UserError(
            f"{path}: expected the summary of a finished run; without the file it is made again"
        ) from None
    return summary


def table(title: str, summary: dict[str, Any]) -> str:
    """Format the comparison of held-out scores for the terminal.

    Parameters
    ----------
    title : str
        What the run was.
    summary : dict
        ``steps``, and ``heldout`` as `evaluate.compare` makes it, or None.

    Returns
    -------
    str
        Several lines, without a final newline.
    """
    title += f" · {summary['steps']} steps"
    result = summary["heldout"]
    if result is None:
        return f"{title}\nno held-out prompts were given, so nothing was compared"
    percent = f"{100 * result['confidence']:g} % CI"
    rows = [("held-out score", "mean", percent)]
    for label, key, sign in (
        ("before", "before", ""),
        ("after", "after", ""),
        ("difference (paired by prompt)", "difference", "+"),
    ):
        part = result[key]
        interval = f"[{part['low']:{sign}.3f}, {part['high']:{sign}.3f}]"
        rows.append((label, f"{part['mean']:{sign}.3f}", interval))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows]
    rule = "-" * len(lines[0])
    note = (
        f"{result['prompts']} held-out prompts x {result['responses_per_prompt']} responses; "
        f"{result['prompts_improved']} prompts improved; bootstrap over prompts"
    )
    return "\n".join([title, rule, lines[0], rule, *lines[1:], rule, note])
