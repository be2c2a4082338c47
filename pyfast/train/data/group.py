"""The group: one prompt, its responses and all that is known about them; one line of a file."""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyfast._results import ByValue
from pyfast.train.data.lines import as_object, lines
from pyfast.train.data.prompts import Prompt, check_messages
from pyfast.train.errors import UserError
from pyfast.train.files import to_json

_NUMBERS = frozenset((int, float))


@dataclass(frozen=True, eq=False)
class Group(ByValue):
    """One prompt with its N candidate responses; one line of a groups file.

    What is not known is None. Log-probabilities are sums over response tokens (end token
    included, prompt excluded), in nats; entry i is None where response i was not evaluated.

    Attributes
    ----------
    prompt : str
        A `Prompt` may be a chat.
    responses : list of str, length N
    scores : list of float, length N, optional
    embeddings : float32 array (N, d), optional
    token_ids : list of N lists of int, optional
        The tokens as they were sampled; tokenising the text again need not give them back.
    policy_logps, ref_logps : list of (float or None), length N, optional
    positive : int, optional
        Index of the chosen response.
    negatives : list of int, optional
        Indices of the selected negatives.
    meta : dict
        Anything else (JSON values), such as the step.
    """

    prompt: str
    responses: list[str]
    scores: list[float] | None = None
    embeddings: NDArray[np.float32] | None = None
    token_ids: list[list[int]] | None = None
    policy_logps: list[float | None] | None = None
    ref_logps: list[float | None] | None = None
    positive: int | None = None
    negatives: list[int] | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the group as one line of JSON, without the fields that are not known."""
        record: dict[str, Any] = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Prompt):
                value = value.written
            if isinstance(value, np.ndarray):
                # repr of a float32 is the shortest text that reads back to the same float32
                value = [[float(str(x)) for x in row] for row in value.astype(np.float32)]
            if value is not None and value != {}:
                record[item.name] = value
        return to_json(record)


def read_groups(path: str | Path) -> list[Group]:
    """Read a groups file (JSON Lines, see `Group`).

    Raises
    ------
    UserError
        ``file:line: expected ...`` for the first bad line, or if there is no group at all.
    """
    path = Path(path)
    groups = [group_at(path, number, text) for number, text in lines(path)]
    if not groups:
        raise UserError(f"{path}: expected at least one group, the file has none")
    return groups


def group_at(path: Path, number: int, text: str) -> Group:
    """Read the group of one line; errors name the file and the line."""
    record = as_object(path, number, text, "a group object")
    try:
        return group_of(record)
    except UserError as error:
        raise UserError(f"{path}:{number}: {error}") from None


def write_groups(path: str | Path, groups: Iterable[Group]) -> None:
    """Write a groups file, one line a group."""
    with Path(path).open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(group.to_json() + "\n" for group in groups)


def group_of(record: dict[str, Any], *, strict: bool = True) -> Group:
    """Make a group of a JSON object.

    Parameters
    ----------
    record : dict
    strict : bool
        Refuse a field that is not a group's (else leave it out).

    Raises
    ------
    UserError
        ``field: expected ...``
    """
    known = [item.name for item in dataclasses.fields(Group)]
    for key in record:
        if strict and key not in known:
            raise UserError(f"{key}: unknown field; expected one of {', '.join(known)}")
    prompt, responses = record.get("prompt"), record.get("responses")
    if isinstance(prompt, list):
        check_messages(prompt, "prompt")
        prompt = Prompt(prompt)
    if not isinstance(prompt, str):
        raise UserError("prompt: expected a string or a list of messages")
    if not isinstance(responses, list) or not all(isinstance(y, str) for y in responses):
        raise UserError("responses: expected a list of strings")
    if not responses:
        raise UserError("responses: expected at least one")
    n = len(responses)
    check_numbers(record, "scores", n, nullable=False)
    check_numbers(record, "policy_logps", n, nullable=True)
    check_numbers(record, "ref_logps", n, nullable=True)
    _check_indices(record, n)
    tokens = record.get("token_ids")
    if tokens is not None and (not isinstance(tokens, list) or len(tokens) != n):
        raise UserError(f"token_ids: expected {n} lists of whole numbers, one a response")
    if not isinstance(record.get("meta", {}), dict):
        raise UserError("meta: expected an object")
    for name in ("token_ids", "meta"):
        try:
            to_json(record.get(name))
        except (ValueError, RecursionError):
            raise UserError(f"{name}: expected finite numbers, not nested deeply") from None
    embeddings = _embeddings(record.get("embeddings"), n)
    fields = {key: value for key, value in record.items() if key in known}
    return Group(**{**fields, "prompt": prompt, "embeddings": embeddings})


def check_numbers(record: dict[str, Any], name: str, n: int, nullable: bool) -> None:
    """Refuse a field that is not one finite number a response, or missing."""
    values = record.get(name)
    if values is None:
        return
    if not isinstance(values, list) or len(values) != n:
        got = f"{len(values)}" if isinstance(values, list) else repr(values)
        raise UserError(f"{name}: expected {n} numbers, one a response, got {got}")
    for i, value in enumerate(values):
        if value is None and nullable:
            continue
        if not _is_finite(value):
            raise UserError(f"{name}[{i}]: expected a finite number, got {reprlib.repr(value)}")
        if type(value) is int and int(float(value)) != value:
            raise UserError(f"{name}[{i}]: expected a number that float64 holds, got {value}")


def _is_finite(value: Any) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # an integer beyond float64
        return False


def _check_indices(record: dict[str, Any], n: int) -> None:
    positive, negatives = record.get("positive"), record.get("negatives")
    if positive is not None and (type(positive) is not int or not 0 <= positive < n):
        raise UserError(f"positive: expected a whole number in 0..{n - 1}, got {positive!r}")
    if negatives is None:
        return
    if not isinstance(negatives, list):
        raise UserError("negatives: expected a list of whole numbers")
    for i, value in enumerate(negatives):
        if type(value) is not int or not 0 <= value < n:
            raise UserError(f"negatives[{i}]: expected a whole number in 0..{n - 1}, got {value!r}")


def _embeddings(rows: Any, n: int) -> NDArray[np.float32] | None:
    if rows is None:
        return None
    array: NDArray[np.float32] = np.empty(0, np.float32)
    if isinstance(rows, list) and all(isinstance(row, list) for row in rows):
        try:
            array = np.asarray(rows, dtype=np.float32)
        except (TypeError, ValueError):
            pass
        except OverflowError:  # an integer beyond float64
            bad = next(i for i, row in enumerate(rows) if not all(map(_is_finite, row)))
            raise UserError(f"embeddings[{bad}]: expected finite numbers") from None
    if array.ndim != 2 or array.shape[0] != n or array.shape[1] == 0:
        raise UserError(f"embeddings: expected {n} rows of equally many numbers")
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise UserError(f"embeddings[{row}]: expected finite numbers")
    for i, row in enumerate(rows):
        if not _NUMBERS.issuperset(map(type, row)):  # numpy takes "1" and true for a number
            raise UserError(f"embeddings[{i}]: expected finite numbers")
    return array
