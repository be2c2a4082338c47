"""What people said of a run's questions, who said it, and which of it the run uses.

One file of the run folder, ``annotations.jsonl``, to which every label and every undoing adds a
line. Nothing in it is ever changed. The label that a run uses of a question is

1. the one that somebody gave when they were asked again about a disagreement, the last such one;
2. else the earliest that stands, whoever gave it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from pyfast.train.errors import UserError
from pyfast.train.recipes.active_dpo.appending import (
    append,
    checked,
    growing,
    reserve,
    unchecked,
    whole_lines,
)

_NAME = re.compile(r"[^\W_][\w .@+-]{0,63}")


@dataclass(frozen=True)
class Annotation:
    """A label that a person gave, or took back.

    Attributes
    ----------
    id : str
        The question's (`oracle.Question.key`).
    annotator : str
        Who.
    answer : {"a", "b", "skip"} or None
        In terms of the questions' file; None takes the annotator's label of the question back.
    first : {"a", "b"}
        Which response was shown first.
    via : str
        How: "terminal", "page", "label-studio" or "argilla".
    at : str
        When, ISO 8601.
    again : bool
        Whether annotators had disagreed before.
    """

    id: str
    annotator: str
    answer: str | None
    first: str
    via: str
    at: str
    again: bool = False


Standing = dict[tuple[str, str, bool], tuple[int, Annotation]]
"""By question, annotator and ``again``: the label that stands, and its place in the file."""


def check_annotator(name: str, where: str = "annotator") -> str:
    """Return an annotator's name, or refuse it."""
    if not _NAME.fullmatch(name) or name != name.rstrip():
        raise UserError(
            f"{where}: expected a name of at most 64 letters, digits, spaces and . @ + - _ that "
            f"begins with a letter or digit, got {name!r}"
        )
    return name


def read(path: Path) -> list[Annotation]:
    """Read the annotations of a run, in the order in which they were given.

    Raises
    ------
    UserError
        ``file:line: ...`` for one that is not as it was written.
    """
    wanted = "an annotation as it was written"
    found = []
    for number, text in whole_lines(path):
        record = unchecked(path, number, text, wanted)
        try:
            found.append(Annotation(**record))
        except TypeError:
            raise UserError(f"{path}:{number}: expected {wanted}") from None
    return found


def add(path: Path, annotations: Iterable[Annotation]) -> None:
    """Append annotations, each on the disk before the next. Only one process may do so."""
    with growing(path) as file:
        for annotation in annotations:
            line = checked(asdict(annotation))
            reserve(file, path, len(line.encode()) + 1)
            append(file, path, line)


def standing(annotations: Iterable[Annotation]) -> Standing:
    """Return the labels that were not taken back."""
    found: Standing = {}
    for place, given in enumerate(annotations):
        key = (given.id, given.annotator, given.again)
        found.pop(key, None)
        if given.answer is not None:
            found[key] = (place, given)
    return found


def by_question(labels: Standing, *, again: bool = False) -> dict[str, dict[str, Annotation]]:
    """Return the labels by question and annotator: the first ones, or those of asking again."""
    found: dict[str, dict[str, Annotation]] = {}
    for (question, annotator, is_again), (_, given) in sorted(
        labels.items(), key=lambda item: item[1][0]
    ):
        if is_again is again:
            found.setdefault(question, {})[annotator] = given
    return found


def used(labels: Standing) -> dict[str, Annotation]:
    """Return the label that the run uses of each question (see above)."""
    first = {key: next(iter(given.values())) for key, given in by_question(labels).items()}
    last = {key: list(given.values())[-1] for key, given in by_question(labels, again=True).items()}
    return {**first, **last}
