"""What a run has measured and chosen, read from its files and checked."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pyfast.train.data.group import Group, group_at, read_groups
from pyfast.train.data.lines import as_object, lines
from pyfast.train.errors import UserError
from pyfast.train.files import is_number


def read_metrics(path: Path, *, every: bool = False) -> list[dict[str, float]]:
    """Read a file of what was measured at steps, and tell on standard error what it lacks.

    Parameters
    ----------
    path : Path
        Such as ``metrics.jsonl``; a last line that a kill has cut is left out, and told.
    every : bool
        Whether it has a line for every step from the first one on.

    Returns
    -------
    list of dict
        The lines. A name that some lack and others have is told.

    Raises
    ------
    UserError
        ``file:line: ...`` for what is no finite number, or a step that is not the next one.
    """
    records: list[dict[str, float]] = []
    for number, record in measures(path):
        if records:
            _check_next(f"{path}:{number}", records[-1]["step"], record["step"], every)
        records.append({name: float(value) for name, value in record.items()})
    if not records:
        raise UserError(f"{path}: expected a line a step, the file has none")
    _tell_gaps(path, records)
    return records


def measures(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the whole lines of such a file, each with its number: all finite numbers, and a step.

    Raises
    ------
    UserError
        ``file:line: ...`` for what is none.
    """
    for number, text in lines(path, growing=True):
        record = as_object(path, number, text, 'an object like {"step": 1, ...}')
        for name, value in {"step": None, **record}.items():
            if not is_number(value):
                raise UserError(
                    f"{path}:{number}: {name}: expected a finite number, got {reprlib.repr(value)}"
                )
        yield number, record


def _check_next(place: str, before: float, step: float, every: bool) -> None:
    if step <= before or (every and step != before + 1):
        wanted = f"{before + 1:g}" if every else f"more than {before:g}, that of the line before"
        raise UserError(f"{place}: step: expected {wanted}; got {step:g}")


def _tell_gaps(path: Path, records: Sequence[dict[str, float]]) -> None:
    """Say which lines have no value of what others have, and whether the last one is cut."""
    if not path.read_bytes().endswith(b"\n"):
        sys.stderr.write(f"pyfast: {path}: the last line is cut, and left out\n")
    names = dict.fromkeys(name for record in records for name in record)
    gaps: dict[tuple[float, ...], list[str]] = {}
    for name in names:
        steps = tuple(record["step"] for record in records if name not in record)
        gaps.setdefault(steps, []).append(name)
    for steps, lacking in gaps.items():
        if steps:
            sys.stderr.write(
                f"pyfast: {path}: {len(steps)} of {len(records)} lines, the first that of step "
                f"{steps[0]:g}, lack {_listed(lacking)}: gaps in the curves\n"
            )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more


def scored_groups(path: Path) -> list[Group]:
    """Read groups whose responses all have scores."""
    groups = read_groups(path)
    for number, group in enumerate(groups, start=1):
        if group.scores is None:
            raise UserError(f"{path}: group {number}: scores are missing")
    return groups


def group_of(path: Path, index: int) -> Group:
    """Read one group of a file that may be larger than memory."""
    count, found = 0, None
    for number, text in lines(path, growing=True):
        if count == index:
            found = group_at(path, number, text)
        count += 1
    if count == 0:
        raise UserError(f"{path}: expected at least one group, the file has none")
    if found is None:
        raise UserError(f"group: expected 0..{count - 1}, got {index}")
    return found
