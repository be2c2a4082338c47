"""The labels of a run: a file of all answers, each on the disk before the next question is asked.

Answers cost money and patience, so none is asked for twice, whatever happens to the run. The file
only grows, and is never cut back to a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyfast.train.errors import UserError
from pyfast.train.files import digest_of_start, to_json
from pyfast.train.recipes.active_dpo.appending import (
    append,
    checked,
    growing,
    reserve,
    unchecked,
    whole_lines,
)
from pyfast.train.recipes.active_dpo.oracle import ANSWERS, Answer, Oracle, Question

_NOTES = 4096  # bytes that an answer may take beside its question


@dataclass(frozen=True)
class Label:
    """A question, and what was said of it.

    Attributes
    ----------
    batch : str
        In which it was asked.
    question : Question
    answer : Answer
    """

    batch: str
    question: Question
    answer: Answer

    def to_json(self) -> str:
        """Return its line, with a checksum of the rest."""
        record = {
            "batch": self.batch,
            "prompt": self.question.written,
            "a": self.question.a,
            "b": self.question.b,
            "answer": self.answer.choice,
            "notes": self.answer.notes,
        }
        return checked(record)


def read(path: Path) -> list[Label]:
    """Read the labels of a run, in the order in which they were given.

    Raises
    ------
    UserError
        ``file:line: ...`` for one that is not as it was written, or of a question that has one.
    """
    found: dict[str, Label] = {}
    for number, text in whole_lines(path):
        label = _label(path, number, text)
        if label.question.key in found:
            raise UserError(f"{path}:{number}: the question has an answer on a line before")
        found[label.question.key] = label
    return list(found.values())


def mark(path: Path) -> dict[str, Any]:
    """Return what tells whether the labels so far are still as they are now."""
    size = path.stat().st_size
    return {"bytes": size, "sha256": digest_of_start(path, size)}


def verify(path: Path, marks: Mapping[int, Mapping[str, Any]]) -> None:
    """Refuse a file whose labels are not those that rounds have learnt from.

    Parameters
    ----------
    path : Path
    marks : dict
        By the round's number, the `mark` of the file when it had the round's labels.
    """
    read(path)  # a line that is damaged is told by its number
    for number, then in sorted(marks.items()):
        if digest_of_start(path, then["bytes"]) != then["sha256"]:
            raise UserError(
                f"{path}: the file has changed since round {number} was learnt from its labels; "
                "put it back as it was, or begin the run again in another --out"
            )


def _label(path: Path, number: int, text: str) -> Label:
    record = unchecked(path, number, text, "a label as it was written")
    question = Question(record["prompt"], record["a"], record["b"])
    return Label(record["batch"], question, Answer(record["answer"], record["notes"]))


def ask(path: Path, oracle: Oracle, questions: Sequence[Question], batch: str) -> list[Answer]:
    """Return the answers to questions, from the file where it has them.

    Parameters
    ----------
    path : Path
        The file, made if need be. Only one process may write to it.
    oracle : Oracle
        Asked for what is not there, one question after the other.
    questions : sequence of Question
        Distinct ones.
    batch : str
        The batch's name.

    Returns
    -------
    list of Answer
        In the order of the questions, and for them as they are shown here.

    Raises
    ------
    UserError
        If the file is damaged, or the oracle gives no answer, or none that can be used.
    WaitingError
        If the oracle needs time.
    OSError
        If there is no room for an answer. It is looked for before the question is asked.
    """
    known = {label.question.key: label for label in read(path)}
    missing = [question for question in questions if question.key not in known]
    if missing:
        answers = oracle.ask(missing, batch)
        with growing(path) as file:
            for question in missing:
                shown = to_json([question.written, question.a, question.b])
                reserve(file, path, len(shown.encode()) + _NOTES)
                label = Label(batch, question, _next(answers, question))
                append(file, path, label.to_json())
                known[question.key] = label
    return [_as_shown(known[question.key], question) for question in questions]


def _next(answers: Iterator[Answer], question: Question) -> Answer:
    answer = next(answers, None)
    if answer is None:
        raise UserError(f"oracle: no answer to the question about {question.written!r}")
    if not isinstance(answer, Answer) or answer.choice not in ANSWERS:
        raise UserError(f"oracle: expected an answer {', '.join(ANSWERS)}; got {answer!r}")
    return answer


def _as_shown(label: Label, question: Question) -> Answer:
    """Return an answer as if the responses had been shown in the question's order."""
    choice, notes = label.answer.choice, label.answer.notes
    if label.question.a != question.a and choice in "ab":
        choice = "ba"["ab".index(choice)]
        notes = {**notes, "scores": notes["scores"][::-1]} if "scores" in notes else notes
    return Answer(choice, notes)
