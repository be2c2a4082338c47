"""Files of sampled and selected groups: made a line at a time, and gone on with after a kill."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pyfast.train.data.group import Group, group_at
from pyfast.train.errors import UserError
from pyfast.train.evaluation.metrics import sample_metrics

if TYPE_CHECKING:
    from pyfast.train.context import Context


class KeptGroups:
    """The groups of a file, read when they are asked for: a pool may be larger than memory."""

    def __init__(self, path: Path) -> None:
        self.path, self._starts = path, [0]

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, i: int) -> Group:
        with self.path.open("rb") as stream:
            stream.seek(self._starts[:-1][i])
            return self._read(i, stream.readline())

    def _read(self, i: int, raw: bytes) -> Group:
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{self.path}:{i + 1}: expected UTF-8 text") from None
        return group_at(self.path, i + 1, text)

    def add(self, raw: bytes) -> Group:
        """Count one more line of the file, and return what it says."""
        group = self._read(len(self), raw)
        self._starts.append(self._starts[-1] + len(raw))
        return group


def make(
    ctx: Context, path: Path, prompts: Sequence[str], one: Callable[[int], Group]
) -> KeptGroups:
    """Return a file's groups, one a prompt and in their order; make those that it lacks.

    Parameters
    ----------
    ctx : Context
        The run's; its processes make groups side by side.
    path : Path
        JSON Lines; a last line that a kill has cut is made again.
    prompts : sequence of str
    one : callable
        Makes the group of the i-th prompt. What it makes must not depend on those before.

    Raises
    ------
    UserError
        If a line is damaged, or of another prompt, or a file that was whole has changed.
    """
    from pyfast.train.runs import checkpoint, kept  # torch, which reading settings does without

    groups = KeptGroups(path)
    if ctx.once(lambda: _whole_lines(path)):
        with path.open("rb") as stream:
            for raw in stream:
                at = len(groups)
                if at == len(prompts) or groups.add(raw).prompt != prompts[at]:
                    shown = "no more" if at == len(prompts) else reprlib.repr(str(prompts[at]))
                    raise UserError(f"{path}:{at + 1}: expected the group of {shown}")
    from tqdm import tqdm  # the recipes are known, and explained, without the trainer's packages

    bar = tqdm(None, path.stem, len(prompts), unit="prompt", initial=len(groups), leave=False)
    at_once = ctx.team.count  # alone, each is on the disk before the next is made
    for start in range(len(groups), len(prompts), at_once):
        some = range(start, min(start + at_once, len(prompts)))
        texts = ctx.each(some, lambda i: one(i).to_json())

        def write(texts: list[str] = texts) -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            for text in texts:
                checkpoint.append(path, text)

        ctx.once(write)
        for text in texts:
            groups.add(f"{text}\n".encode())
        bar.update(len(some))
    bar.close()
    ctx.once(lambda: kept.seal(path))
    return groups


def lacks(path: Path, count: int) -> bool:
    """Tell whether a file has fewer groups than so many."""
    return not path.exists() or path.read_bytes().count(b"\n") < count


def _whole_lines(path: Path) -> bool:
    """Tell whether there is such a file, without the line that a kill has cut."""
    if not path.exists():
        return False
    _cut_torn_line(path)
    return True


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
