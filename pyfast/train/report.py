"""The table at the end of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyfast.train.errors import UserError
from pyfast.train.files import read_json


def read_summary(run: Path) -> dict[str, Any]:
    """Read the summary of a finished run, and check that `table` can show it."""
    path = run / "summary.json"
    summary: dict[str, Any] = read_json(path)
    try:
        table(summary)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError):
        raise UserError(
            f"{path}: expected the summary of a finished run; without the file it is made again"
        ) from None
    return summary


def table(summary: dict[str, Any]) -> str:
    """Format a run's summary for the terminal.

    Parameters
    ----------
    summary : dict
        The content of ``summary.json``.

    Returns
    -------
    str
        Several lines, without a final newline.
    """
    title = f"{summary['recipe']} · {summary['selector']} · seed {summary['seed']}"
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
