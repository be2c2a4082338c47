"""The labels of a run: a file of all answers, each on the disk before the next question is asked.

Answers cost money and patience, so none is asked for twice, whatever happens to the run. The file
only grows, and is never cut back to a checkpoint.
"""

from __future__ import annotations

import contextlib
import errno
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pyfast.train.errors import UserError
from pyfast.train.files import to_json
from pyfast.train.lines import as_object, lines
from pyfast.train.oracle import ANSWERS, Answer, Oracle, Question

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
        return to_json({**record, "check": _check(record)})


def _check(record: dict[str, Any]) -> str:
    return f"{zlib.crc32(to_json(record).encode()):08x}"


def read(path: Path) -> list[Label]:
    """Read the labels of a run, in the order in which they were given.

    Raises
    ------
    UserError
        ``file:line: ...`` for one that is not as it was written.
    """
    return [_label(path, number, text) for number, text in _whole_lines(path)]


def _whole_lines(path: Path) -> list[tuple[int, str]]:
    """Return the numbered lines; what a kill has left after the last whole one is none."""
    if not path.exists():
        return []
    with path.open("rb") as stream:
        return list(lines(path, stream=stream, growing=True))


def _label(path: Path, number: int, text: str) -> Label:
    wanted = "a label as it was written"
    record = as_object(path, number, text, wanted)
    check = record.pop("check", None)
    if check != _check(record):
        raise UserError(f"{path}:{number}: expected {wanted}: its checksum differs")
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
        with _growing(path) as file:
            for question in missing:
                start = file.tell()
                _reserve(file, path, question)
                label = Label(batch, question, _next(answers, question))
                line = label.to_json().encode() + b"\n"
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
                file.truncate(start + len(line))
                os.fsync(file.fileno())
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


@contextlib.contextmanager
def _growing(path: Path) -> Iterator[BinaryIO]:
    """Open the file where its last whole line ends; leave nothing after the last one at the end."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0) as file:
        end = file.read().rfind(b"\n") + 1
        file.truncate(end)
        file.seek(end)
        try:
            yield file
        finally:
            with contextlib.suppress(OSError):
                file.truncate(file.tell())


def _reserve(file: BinaryIO, path: Path, question: Question) -> None:
    """Take the room for an answer from the disk, so that none is lost because it is full."""
    if not hasattr(os, "posix_fallocate"):
        return
    size = len(to_json([question.written, question.a, question.b]).encode()) + _NOTES
    try:
        os.posix_fallocate(file.fileno(), file.tell(), size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # where it cannot be done
            raise OSError(error.errno, error.strerror, str(path)) from None
