"""Files of sampled and selected groups: made a line at a time, and gone on with after a kill."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from pyfast.train.data import Group, group_at
from pyfast.train.errors import UserError
from pyfast.train.lines import lines
from pyfast.train.metrics import sample_metrics


def make(path: Path, prompts: Sequence[str], one: Callable[[int], Group]) -> list[Group]:
    """Return a file's groups, one a prompt and in their order; make those that it lacks.

    Parameters
    ----------
    path : Path
        JSON Lines; a last line that a kill has cut is made again.
    prompts : sequence of str
    one : callable
        Makes the group of the i-th prompt. What it makes must not depend on those before.

    Raises
    ------
    UserError
        If a line is damaged, or of another prompt.
    """
    from pyfast.train import checkpoint  # loads torch, which reading settings does without

    groups: list[Group] = []
    if path.exists():
        _cut_torn_line(path)
        for number, text in lines(path):
            group = group_at(path, number, text)
            at = len(groups)
            if at == len(prompts) or group.prompt != prompts[at]:
                raise UserError(
                    f"{path}:{number}: expected the group of "
                    f"{reprlib.repr(str(prompts[at])) if at < len(prompts) else 'no more prompt'}"
                )
            groups.append(group)
    path.parent.mkdir(parents=True, exist_ok=True)
    left = range(len(groups), len(prompts))
    for i in tqdm(left, path.stem, len(prompts), unit="prompt", initial=len(groups), leave=False):
        text = one(i).to_json()
        checkpoint.append(path, text)
        groups.append(group_at(path, i + 1, text))  # what a run that goes on reads
    return groups


def _cut_torn_line(path: Path) -> None:
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)


def measure(group: Group) -> dict[str, float]:
    """Describe a sampled group and its selection, for a step's line of metrics."""
    scores, tokens = group.scores or [], group.token_ids or []
    negatives, positive = group.negatives or [], group.positive or 0
    lengths, finished = [len(row) for row in tokens], group.meta["finished"]
    measured = sample_metrics(scores, positive, negatives, lengths, finished, group.responses)
    return {**measured, **group.meta["selection"]}
