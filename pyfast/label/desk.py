"""The desk at which an annotator sits: the next question, an answer, and back again.

Terminal, page and import all work through it. Nothing is kept between calls: each looks at the
files anew, under a lock, so that any number of windows and processes may be at work on a run.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

from pyfast._files import locked
from pyfast.train.errors import UserError
from pyfast.train.files import read_json
from pyfast.train.recipes.active_dpo import human_labels, labels, oracle
from pyfast.train.recipes.active_dpo.human_labels import Annotation, Standing
from pyfast.train.recipes.active_dpo.oracle import Question
from pyfast.train.runs.layout import ANNOTATIONS, LABELS, check_own
from pyfast.train.seeds import derive

CHOICES = {"1": 0, "2": 1, "s": None}
"""What an annotator may say: the response that was shown first, the other, or neither."""

PATIENCE = 20.0
"""Seconds that others may hold the files. An answer takes milliseconds."""

T = TypeVar("T")


class RefusedError(UserError):
    """What was asked for no longer fits: another window has been faster, or the run has."""


@dataclass(frozen=True)
class Asked:
    """A question of a run.

    Attributes
    ----------
    batch : str
        The name of the file in which it stands.
    question : Question
    written : {"a", "b", "skip"} or None
        The answer that somebody wrote into that file.
    taken : bool
        Whether the run has taken an answer to it: that one is final.
    """

    batch: str
    question: Question
    written: str | None
    taken: bool


@dataclass(frozen=True)
class Shown:
    """A question as an annotator sees it.

    Attributes
    ----------
    id, batch : str
    prompt : str or list of chat messages
    responses : tuple of str
        In the order in which they are shown.
    first : {"a", "b"}
        Which of the file's responses that begins with.
    """

    id: str
    batch: str
    prompt: Any
    responses: tuple[str, str]
    first: str


@dataclass(frozen=True)
class View:
    """Where an annotator stands.

    Attributes
    ----------
    shown : Shown or None
        The next question; None where all are answered.
    done, total : int
        Questions that the annotator has answered, and all that are the annotator's to answer.
    waiting : int
        Questions that the run still waits for.
    last : int or None
        Place of the annotator's last label, which may be taken back.
    """

    shown: Shown | None
    done: int
    total: int
    waiting: int
    last: int | None


@dataclass(frozen=True)
class State:
    """All that the files say: the questions by id, and the labels that stand."""

    asked: dict[str, Asked]
    labels: Standing
    said: dict[str, dict[str, Annotation]] = field(init=False)
    said_again: dict[str, dict[str, Annotation]] = field(init=False)
    used: dict[str, Annotation] = field(init=False)

    def __post_init__(self) -> None:
        """Order the labels."""
        object.__setattr__(self, "said", human_labels.by_question(self.labels))
        again = human_labels.by_question(self.labels, again=True)
        object.__setattr__(self, "said_again", again)
        object.__setattr__(self, "used", human_labels.used(self.labels))

    def is_open(self, key: str) -> bool:
        """Tell whether the run waits for an answer to a question."""
        asked = self.asked[key]
        return not (asked.taken or asked.written or key in self.used)

    def disputed(self) -> list[str]:
        """Return the questions of which annotators say different things."""
        return [
            key
            for key in self.asked
            if len({given.answer for given in self.said.get(key, {}).values()}) > 1
        ]


class Run:
    """A run folder whose questions people answer.

    Parameters
    ----------
    folder : Path

    Raises
    ------
    UserError
        If it is not one, or has no questions.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder}: no config.json here; expected a run folder")
        check_own(folder)
        config = read_json(folder / "config.json")
        oracle_is = _get(config, "oracle", "oracle")
        if not list((folder / "questions").glob("*.jsonl")):
            raise UserError(
                f"{folder}: no questions here (yet); a run with --oracle file stops when it has "
                f"some, and this one's oracle is {oracle_is!r}"
            )
        seed = _get(config, "run", "seed")
        self.seed = seed if isinstance(seed, int) else 0
        self.recipe = str(_get(config, "recipe"))
        self._read: dict[Path, tuple[tuple[int, int, int], Any]] = {}

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold what people say of the run for this call alone; wait for others to end theirs."""
        deadline = time.monotonic() + PATIENCE
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(locked(self.folder / ".annotations.lock", keep=True))
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise UserError(
                            f"{self.folder}: another process holds the annotations"
                        ) from None
                    time.sleep(0.005)
            yield

    def state(self) -> State:
        """Read the files."""
        taken = {label.question.key for label in self._cached(self.folder / LABELS, labels.read)}
        found: dict[str, Asked] = {}
        for path in sorted((self.folder / "questions").glob("*.jsonl"), key=_natural):
            for key, (question, written) in self._cached(path, oracle.read_questions).items():
                found.setdefault(key, Asked(path.stem, question, written, key in taken))
        given = human_labels.read(self.folder / ANNOTATIONS)
        return State(found, human_labels.standing(given))

    def write(self, *given: Annotation) -> None:
        """Put annotations on the disk."""
        human_labels.add(self.folder / ANNOTATIONS, given)

    @contextlib.contextmanager
    def untaken(self) -> Iterator[None]:
        """Keep the run from starting meanwhile: it would take what is about to be changed."""
        try:
            with locked(self.folder / ".lock", keep=True):
                yield
        except BlockingIOError:
            raise RefusedError(
                f"{self.folder}: the run is at work and has taken its labels up; they stand"
            ) from None

    def _cached(self, path: Path, read: Callable[[Path], T]) -> T:
        """Return what a file holds, read anew only where it has changed."""
        try:
            now = path.stat()
        except FileNotFoundError:
            return read(path)
        mark = (now.st_mtime_ns, now.st_size, now.st_ino)
        if path not in self._read or self._read[path][0] != mark:
            self._read[path] = (mark, read(path))
        found: T = self._read[path][1]
        return found


class Desk:
    """An annotator's place at a run.

    Parameters
    ----------
    run : Run
    annotator : str
        The annotator's name.
    via : str
        How answers come: "terminal" or "page".
    again : bool
        Ask about the questions of which annotators say different things, once more.
    """

    def __init__(self, run: Run, annotator: str, *, via: str, again: bool = False) -> None:
        self.run, self.via, self.again = run, via, again
        self.annotator = human_labels.check_annotator(annotator)

    def look(self) -> View:
        """Return the next question, and how far the annotator is."""
        return self._view(self.run.state())

    def answer(self, key: str, choice: str) -> View:
        """Write down what the annotator says of a question, and return what comes next.

        Parameters
        ----------
        key : str
            The id of the question.
        choice : {"1", "2", "s"}

        Raises
        ------
        RefusedError
            If the question has an answer already. That one stands.
        UserError
            If there is no such question or choice.
        """
        if choice not in CHOICES:
            raise UserError(f"choice: expected 1, 2 or s, got {choice!r}")
        with self.run.alone():
            state = self.run.state()
            if key not in state.asked:
                raise UserError(f"id: this run asks no question {key!r}")
            refusal = self._refusal(state, key)
            if refusal:
                raise RefusedError(refusal)
            first = self._first(key)
            place = CHOICES[choice]
            said = "skip" if place is None else (first + "ba"["ab".index(first)])[place]
            given = Annotation(key, self.annotator, said, first, self.via, now(), self.again)
            changing = key in state.used
            with self.run.untaken() if changing and self.again else contextlib.nullcontext():
                self.run.write(given)
            return self._view(self.run.state())

    def undo(self, place: int) -> View:
        """Take the annotator's last label back, and return what comes next: the same question.

        Parameters
        ----------
        place : int
            Of the label, as `View.last` has it.

        Raises
        ------
        RefusedError
            If another label is the last by now, or the run has taken this one.
        """
        with self.run.alone():
            state = self.run.state()
            last = self._last(state)
            if last is None or last[0] != place:
                raise RefusedError("this label is not your last one any more; nothing was undone")
            given = last[1]
            if state.asked[given.id].taken and state.used.get(given.id) == given:
                raise RefusedError("the run has taken this label up; it stands")
            back = Annotation(
                given.id, self.annotator, None, given.first, self.via, now(), self.again
            )
            with self.run.untaken():
                self.run.write(back)
            return self._view(self.run.state())

    def _view(self, state: State) -> View:
        mine = self._mine(state)
        left = [key for key in mine if not self._answered(state, key)]
        last = self._last(state)
        return View(
            self._show(state.asked[left[0]], left[0]) if left else None,
            len(mine) - len(left),
            len(mine),
            sum(map(state.is_open, state.asked)),
            last[0] if last else None,
        )

    def _mine(self, state: State) -> list[str]:
        """Return the questions that are the annotator's, those that the run waits for first."""
        if self.again:
            final = {key for key, asked in state.asked.items() if asked.taken or asked.written}
            return [key for key in state.disputed() if key not in final]
        keys = [
            key
            for key, asked in state.asked.items()
            if key in state.said or not (asked.written or asked.taken)
        ]
        mine = {key for key in keys if self._answered(state, key)}
        return sorted(keys, key=lambda key: not (state.is_open(key) or key in mine))

    def _answered(self, state: State, key: str) -> bool:
        if self.again:
            return key in state.said_again
        return (key, self.annotator, False) in state.labels

    def _refusal(self, state: State, key: str) -> str | None:
        """Return why a question takes no answer from this annotator."""
        before = state.labels.get((key, self.annotator, self.again))
        if before:
            return f"that pair has your answer already: {self._told(before[1])}. It stands."
        if self.again and self._answered(state, key):
            return "that pair was asked again already. That answer stands."
        if self.again and key not in state.disputed():
            return "annotators do not disagree about this pair"
        if state.asked[key].written:
            return "that pair has an answer in the questions' file. It stands."
        if state.asked[key].taken and (self.again or key not in state.said):
            return "the run has taken an answer to this pair already. It stands."
        return None

    def _told(self, given: Annotation) -> str:
        """Return a label as the annotator saw it."""
        if given.answer == "skip":
            return "skipped"
        return f"response {1 if given.answer == given.first else 2}"

    def _last(self, state: State) -> tuple[int, Annotation] | None:
        mine = [
            found
            for (_, annotator, again), found in state.labels.items()
            if annotator == self.annotator and again is self.again and found[1].id in state.asked
        ]
        return max(mine, key=lambda found: found[0], default=None)

    def _first(self, key: str) -> str:
        """Return which response is shown first: the same one at each look, of a seeded coin."""
        purpose = "again" if self.again else "label"
        return "ab"[derive(self.run.seed, purpose, self.annotator, key) % 2]

    def _show(self, asked: Asked, key: str) -> Shown:
        first, question = self._first(key), asked.question
        pair = (question.a, question.b) if first == "a" else (question.b, question.a)
        return Shown(key, asked.batch, question.written, pair, first)


def _get(value: Any, *names: str) -> Any:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _natural(path: Path) -> list[tuple[int, str]]:
    """Return what sorts round-2 before round-10."""
    parts: list[str] = re.findall(r"\d+|\D+", path.stem)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def now() -> str:
    """Return the time, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
