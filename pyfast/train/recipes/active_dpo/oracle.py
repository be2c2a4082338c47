"""Oracles: who says which of two responses to a prompt is better.

An oracle is asked about a batch of questions, and yields one answer after the other, so that each
can be on the disk before the next is asked (`labels`). A function ``(prompt, a, b)`` is the
simplest; a file stops the run until somebody has filled it.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import reprlib
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pyfast._files import written_whole
from pyfast.train.config import Section, setting
from pyfast.train.data.lines import as_object, lines
from pyfast.train.errors import UserError, WaitingError
from pyfast.train.files import to_json
from pyfast.train.recipes.active_dpo import human_labels
from pyfast.train.runs.layout import ANNOTATIONS
from pyfast.train.scoring import rewards
from pyfast.train.seeds import derive

ANSWERS = ("a", "b", "skip")
RULES = ("argmax", "btl")


@dataclass(frozen=True)
class Question:
    """Two responses to a prompt, of which one may be better.

    Attributes
    ----------
    prompt : Prompt, str or list of chat messages
    a, b : str
        The responses, in the order in which they are shown.
    """

    prompt: Any
    a: str
    b: str

    @property
    def written(self) -> Any:
        """The prompt as files hold it."""
        return getattr(self.prompt, "written", self.prompt)

    @property
    def key(self) -> str:
        """What tells the question from others, whichever response is shown first."""
        text = to_json([self.written, *sorted((self.a, self.b))])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Answer:
    """What was said of a question.

    Attributes
    ----------
    choice : {"a", "b", "skip"}
    notes : dict
        What else is worth keeping (JSON), such as the scores that it came from.
    """

    choice: str
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OracleConfig(Section):
    """Who says which of two responses is better."""

    section: ClassVar[str] = "oracle"
    oracle: str = setting(
        "argmax",
        "who labels: argmax or btl (by scores), file (people, with pyfast label), or "
        "package.module:function, called with prompt, a and b, for a, b or skip",
    )
    oracle_reward: str | None = setting(
        None, "what scores for argmax and btl, as scoring.reward; default: what is given there"
    )
    btl_scale: float = setting(
        1.0, "of btl: a is better with probability sigmoid(scale (s_a - s_b))", above=0
    )


class Oracle(Protocol):
    """Says which response is better."""

    def ask(self, questions: Sequence[Question], batch: str) -> Iterator[Answer]:
        """Yield the answer to each question, in order, when it is known.

        Parameters
        ----------
        questions : sequence of Question
            Those of the batch that have no answer on the disk yet.
        batch : str
            The batch's name, the same after an interruption; fit for a file's.

        Raises
        ------
        WaitingError
            If the run has to stop until there are answers.
        UserError
            If an answer cannot be had.
        """
        ...


class Scorer:
    """Answers by the scores that a reward gives the two responses.

    Parameters
    ----------
    reward : callable
        ``reward(prompt, responses) -> scores`` (`rewards`).
    rule : {"argmax", "btl"}
        The higher score, a coin deciding between equal ones; or by chance, with the probability
        ``sigmoid(scale (s_a - s_b))`` for a (Bradley-Terry-Luce; ActiveDPO, equation 1).
    scale : float
        Of "btl".
    seed : int
        The same question gets the same answer, whenever and in whichever order it is asked.
    """

    def __init__(self, reward: rewards.Reward, rule: str, scale: float, seed: int) -> None:
        self.reward, self.rule, self.scale, self.seed = reward, rule, scale, seed

    def ask(self, questions: Sequence[Question], batch: str) -> Iterator[Answer]:
        """Yield the answers."""
        return map(self._answer, questions)

    def _answer(self, question: Question) -> Answer:
        texts = sorted((question.a, question.b))  # so that what is shown first decides nothing
        first, second = rewards.score(self.reward, question.prompt, texts)
        coin = derive(self.seed, "coin", question.key) / 2**63
        notes: dict[str, Any] = {}
        if self.rule == "btl":
            gap = self.scale * (first - second)
            better = coin < (1 / (1 + math.exp(-gap)) if gap > -700 else 0.0)
        else:
            better = first > second or (first == second and coin < 0.5)
            notes = {"tie": True} if first == second else {}
        swapped = texts[0] != question.a
        scores = [second, first] if swapped else [first, second]
        return Answer("ab"[better is swapped], {"scores": scores, **notes})


class Function:
    """Answers by a function of one's own.

    Parameters
    ----------
    function : callable
        ``function(prompt, a, b)`` returns "a", "b" or "skip".
    """

    def __init__(self, function: Callable[[Any, str, str], Any]) -> None:
        self.function = function

    def ask(self, questions: Sequence[Question], batch: str) -> Iterator[Answer]:
        """Yield the answers."""
        return map(self._answer, questions)

    def _answer(self, question: Question) -> Answer:
        name = getattr(self.function, "__qualname__", type(self.function).__qualname__)
        where = f"oracle {name}, prompt {reprlib.repr(question.written)}"
        try:
            with contextlib.redirect_stdout(sys.stderr):  # standard output is for results
                said = self.function(question.prompt, question.a, question.b)
        except (Exception, SystemExit) as error:
            raise UserError(f"{where}: it raised {rewards.told(error)}") from error
        if not isinstance(said, str) or said not in ANSWERS:
            expected = ", ".join(map(repr, ANSWERS))
            raise UserError(f"{where}: expected one of {expected}, got {reprlib.repr(said)}")
        return Answer(said)


class Files:
    """Writes each batch of questions to a file, and goes on once people have answered them.

    Parameters
    ----------
    folder : Path
        Of the files, JSON Lines of ``{"id", "prompt", "a", "b", "answer"}``. ``"answer"`` is null
        until somebody puts "a", "b" or "skip" there, which counts more than what was said to
        ``pyfast label`` (`human_labels`).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def ask(self, questions: Sequence[Question], batch: str) -> Iterator[Answer]:
        """Yield the answers, or stop the run until all are there."""
        path = self.folder / f"{batch}.jsonl"
        if not path.exists():
            self.folder.mkdir(exist_ok=True)
            with written_whole(path) as beside:
                beside.write_text("".join(_blank(question) for question in questions), "utf-8")
        answers = self._answers(path)
        missing = sum(answers.get(question.key, "") is None for question in questions)
        if missing:
            raise WaitingError(
                f"{path}: {missing} of {len(answers)} questions have no answer yet; answer them "
                f"with `pyfast label {shlex.quote(str(self.folder.parent))}`, or replace null by "
                f'"a", "b" or "skip" there, and run the same command again'
            )
        for question in questions:
            answer = answers.get(question.key)
            if answer is None:
                raise UserError(f"{path}: expected the question {question.key}, and it is not here")
            yield answer

    def _answers(self, path: Path) -> dict[str, Answer | None]:
        """Return the answers to a file's questions; None where there is none yet."""
        given = human_labels.standing(human_labels.read(self.folder.parent / ANNOTATIONS))
        said, used = human_labels.by_question(given), human_labels.used(given)
        found: dict[str, Answer | None] = {}
        for key, (_, answer) in read_questions(path).items():
            label = used.get(key)
            if answer is None and label is not None and label.answer is not None:
                others = [other.answer for other in said.get(key, {}).values()]
                notes = {
                    "annotator": label.annotator,
                    "annotators": len(others),
                    "agreeing": others.count(label.answer),
                    "again": label.again,
                }
                found[key] = Answer(label.answer, notes)
            else:
                found[key] = None if answer is None else Answer(answer)
        return found


def scorer_of(config: OracleConfig, reward: rewards.Reward) -> rewards.Reward:
    """Return what scores for the rules: ``oracle.oracle_reward``, or else the reward given."""
    if config.oracle_reward is None:
        return reward
    if config.oracle not in RULES:
        raise UserError(
            f"oracle.oracle_reward: expected oracle argmax or btl, got {config.oracle!r}"
        )
    return rewards.load(config.oracle_reward, "oracle.oracle_reward")


def load(config: OracleConfig, reward: rewards.Reward) -> Callable[[int, Path], Oracle]:
    """Find an oracle by its settings, before anything heavy is loaded.

    Parameters
    ----------
    config : OracleConfig
    reward : callable
        What scores for the rules (`scorer_of`).

    Returns
    -------
    callable
        ``make(seed, folder)`` returns the oracle of a run: of a seed, and with a folder for files.

    Raises
    ------
    UserError
        If it cannot be found.
    """
    spec, scale = config.oracle, config.btl_scale
    if spec in RULES:
        return lambda seed, folder: Scorer(reward, spec, scale, seed)
    if spec == "file":
        return lambda seed, folder: Files(folder)
    function = rewards.imported(spec, "oracle.oracle", *RULES, "file")
    return lambda seed, folder: Function(function)


def _blank(question: Question) -> str:
    shown = {"id": question.key, "prompt": question.written, "a": question.a, "b": question.b}
    return to_json({**shown, "answer": None}) + "\n"


def read_questions(path: Path) -> dict[str, tuple[Question, str | None]]:
    """Read a file of `Files`.

    Returns
    -------
    dict
        By its key, each question and the answer in the file, None where there is none.

    Raises
    ------
    UserError
        ``file:line: ...`` for a question that is not as it was written, or twice there.
    """
    found: dict[str, tuple[Question, str | None]] = {}
    for number, text in lines(path):
        wanted = "a question as it was written, with its answer"
        record = as_object(path, number, text, wanted)
        place = f"{path}:{number}"
        if record.keys() != {"id", "prompt", "a", "b", "answer"} or not all(
            isinstance(record[name], str) for name in ("id", "a", "b")
        ):
            raise UserError(f"{place}: expected {wanted}")
        question = Question(record["prompt"], record["a"], record["b"])
        if question.key != record["id"]:
            raise UserError(f"{place}: expected {wanted}: its prompt or responses were changed")
        answer = record["answer"]
        if answer is not None and answer not in ANSWERS:
            raise UserError(
                f'{place}: answer: expected "a", "b", "skip" or null, got {reprlib.repr(answer)}'
            )
        if record["id"] in found:
            raise UserError(f"{place}: the question stands here twice")
        found[record["id"]] = question, answer
    return found
