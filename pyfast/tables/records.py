"""One prompt with its responses, as every format is read: texts or chat messages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any

Text = str | list[dict[str, Any]]
"""A text, or chat messages: dicts of role and content."""


@dataclass(frozen=True)
class Record:
    """One prompt with its responses, whatever shape it came in.

    Attributes
    ----------
    prompt : str or list of messages
        What the responses answer.
    responses : list of str or of lists of messages
        The candidates.
    scores : list of float or None
        One a response, higher is better.
    positive : int or None
        Which response is the chosen one.
    negatives : list of int or None
        Which are set against it.
    rest : dict
        All other columns, as they came.
    valid : list of int or None
        Which responses are right, where several are.
    """

    prompt: Text
    responses: list[Text]
    scores: list[float] | None = None
    positive: int | None = None
    negatives: list[int] | None = None
    rest: dict[str, Any] = field(default_factory=dict)
    valid: list[int] | None = None

    def chosen_first(self) -> Record:
        """Return the same with only the chosen response and those set against it, in that order.

        Without a choice, the response of the highest score (the first of equals) is chosen, and
        all others are set against it.

        Raises
        ------
        ValueError
            If there are neither a choice nor scores, nothing is set against the chosen one, these
            or the right ones are not distinct responses, or a score of theirs is not finite.
        """
        if self.positive is None and self.scores is None:
            raise ValueError("expected scores or a chosen response")
        if len(self.responses) < 2:
            raise ValueError("expected at least one response beside the chosen one")
        top = self.positive
        if top is None:
            assert self.scores is not None
            _check_finite(self.scores, range(len(self.scores)))
            top = max(range(len(self.scores)), key=self.scores.__getitem__)
        against = self.negatives
        if against is None:
            against = [i for i in range(len(self.responses)) if i != top]
        if not against:
            raise ValueError("expected at least one response beside the chosen one")
        count = len(self.responses)
        order = _distinct(["positive", *["negatives"] * len(against)], [top, *against], count)
        valid = self.valid
        if valid is not None:
            right = _distinct(["valid"] * len(valid), valid, count)
            valid = sorted(order.index(place) for place in right if place in order)
        if self.scores is not None:
            _check_finite(self.scores, order)
        return replace(
            self,
            responses=[self.responses[i] for i in order],
            scores=None if self.scores is None else [self.scores[i] for i in order],
            positive=0,
            negatives=list(range(1, len(order))),
            valid=valid,
        )


def _check_finite(scores: Sequence[float], places: Sequence[int]) -> None:
    for place in places:
        if not math.isfinite(scores[place]):
            raise ValueError(
                f"scores: expected finite numbers, got {scores[place]} for response {place}"
            )


def _distinct(names: Sequence[str], places: Sequence[Any], count: int) -> list[int]:
    """Return places of responses, each of which is called by a name in errors."""
    found: list[int] = []
    for name, place in zip(names, places, strict=True):
        whole = isinstance(place, Integral) or (isinstance(place, float) and place.is_integer())
        if not whole or isinstance(place, bool) or not 0 <= place < count:
            raise ValueError(f"{name}: expected places of {count} responses, got {place!r}")
        if int(place) in found:
            raise ValueError(f"{name}: expected another response each, got {int(place)} twice")
        found.append(int(place))
    return found


def check_beside(before: Sequence[Record], after: Sequence[Record]) -> None:
    """Refuse columns of one entry a response, in all these rows, where responses have moved.

    Raises
    ------
    ValueError
        If there is one; it would stand beside other responses than before.
    """
    moved = any(a.responses != b.responses for a, b in zip(before, after, strict=True))
    names = dict.fromkeys(name for record in before for name in record.rest) if moved else {}
    for name in names:
        columns = [record.rest.get(name) for record in before]
        if all(
            isinstance(column, list) and len(column) == len(record.responses)
            for column, record in zip(columns, before, strict=True)
        ):
            raise ValueError(
                f"{name}: expected no list of one entry a response: the chosen one comes first "
                f"now, and others may be left out; drop it (--drop {name})"
            )


def is_messages(value: Any) -> bool:
    """Tell whether a value is chat messages."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) > 0
        and all(isinstance(turn, Mapping) and "role" in turn for turn in value)
    )


def as_text(name: str, value: Text) -> str:
    """Return a text, or what the only chat message says, for formats that hold no more.

    Raises
    ------
    ValueError
        If there are several messages, or there is more to the one than a text: they would be lost.
    """
    if isinstance(value, str):
        return value
    if len(value) != 1:
        raise ValueError(
            f"{name}: expected a text or one message for this format, got {len(value)} messages; "
            "groups, list, pairs and implicit hold several"
        )
    return said(name, value[0])


def said(name: str, turn: Mapping[str, Any]) -> str:
    """Return what a chat message says, if that is all: no calls of tools, pictures, reasoning."""
    content = turn.get("content")
    if not isinstance(content, str):
        raise ValueError(f"{name}: content: expected a text for this format, got {content!r}")
    more = [key for key, value in turn.items() if key not in ("role", "content") and value]
    if more:
        raise ValueError(
            f"{name}: expected messages of role and content alone for this format, got {more} "
            "beside them; groups, list, pairs and implicit keep all of a message"
        )
    return content


def as_messages(value: Text, role: str) -> list[dict[str, Any]]:
    """Return a prompt or a response as chat messages."""
    return [{"role": role, "content": value}] if isinstance(value, str) else list(value)


# --- what readers and writers of formats share ----------------------------------------------------


def without(row: Mapping[str, Any], *taken: str) -> dict[str, Any]:
    """Return the columns of a row that are none of these."""
    return {name: value for name, value in row.items() if name not in taken}


def beside(record: Record, row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with the columns that are not ours; none of them is written over."""
    for name, value in row.items():
        if record.rest.get(name) not in (None, value):
            raise ValueError(
                f"{name}: expected no such column beside the format's own, which would take its "
                "place; rename it, or drop it"
            )
    return record.rest | row


def listed(name: str, value: Any) -> list[Any]:
    """Return a list; of a text or a message its letters or fields would be taken."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise ValueError(f"{name}: expected a list, got {value!r}")
    return list(value)


def number(name: str, value: Any) -> float:
    """Return a number as float64."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name}: expected a number, got {value!r}") from None


def against(prompt: Text, chosen: Text, rejected: list[Text], rest: dict[str, Any]) -> Record:
    """Return the record of a chosen response and those set against it."""
    if not rejected:
        raise ValueError("rejected: expected at least one response")
    first, others = rest.get("score_chosen"), rest.get("score_rejected")
    scores = None
    if first is not None and others is not None:
        rest = without(rest, "score_chosen", "score_rejected")
        others = list(others) if isinstance(others, Sequence) else [others]
        if len(others) != len(rejected):
            raise ValueError(f"score_rejected: expected {len(rejected)}, got {len(others)}")
        scores = [number("score_chosen", first), *(number("score_rejected", s) for s in others)]
    negatives = list(range(1, len(rejected) + 1))
    return Record(prompt, [chosen, *rejected], scores, 0, negatives, rest)
