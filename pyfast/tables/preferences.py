"""A chosen response and those set against it: lists, numbered columns and TRL's pairs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pyfast.tables.records import (
    Record,
    against,
    as_messages,
    beside,
    is_messages,
    listed,
    without,
)


def _score_columns(record: Record, negatives: list[int]) -> dict[str, Any]:
    if record.scores is None:
        return {}
    scores = [record.scores[i] for i in negatives]
    return {"score_chosen": record.scores[0], "score_rejected": scores}


def read_list(row: Mapping[str, Any]) -> Record:
    """Read a chosen response and a list of rejected ones."""
    rest = without(row, "prompt", "chosen", "rejected")
    return against(row["prompt"], row["chosen"], listed("rejected", row["rejected"]), rest)


def write_list(record: Record) -> list[dict[str, Any]]:
    """Write one row."""
    chosen, *rejected = record.responses
    row = {"prompt": record.prompt, "chosen": chosen, "rejected": rejected}
    return [beside(record, row | _score_columns(record, record.negatives or []))]


def _numbered(row: Mapping[str, Any]) -> list[str]:
    """Return the names rejected1, rejected2, ... (or rejected_1, ...) in the order of numbers."""
    found: dict[int, str] = {}
    for name in row:
        match = re.fullmatch(r"rejected_?(\d+)", name)
        if match is None or row[name] is None:
            continue
        other = found.setdefault(int(match.group(1)), name)
        if other != name:
            raise ValueError(f"{name}: expected another number than that of {other}")
    return [found[number] for number in sorted(found)]


def read_numbered(row: Mapping[str, Any]) -> Record:
    """Read rejected responses in columns of their own (S-DPO's)."""
    names = _numbered(row)
    rest = without(row, "prompt", "chosen", *(n for n in row if re.fullmatch(r"rejected_?\d+", n)))
    return against(row["prompt"], row["chosen"], [row[name] for name in names], rest)


def write_numbered(record: Record) -> list[dict[str, Any]]:
    """Write one row."""
    chosen, *rejected = record.responses
    row = {"prompt": record.prompt, "chosen": chosen}
    row |= {f"rejected{number}": text for number, text in enumerate(rejected, 1)}
    return [beside(record, row | _score_columns(record, record.negatives or []))]


def read_pair(row: Mapping[str, Any]) -> Record:
    """Read one of TRL's pairs, or two whole conversations beside their prompt."""
    rest = without(row, "prompt", "chosen", "rejected")
    prompt, chosen, rejected = row["prompt"], row["chosen"], row["rejected"]
    if isinstance(prompt, str) and is_messages(chosen) and is_messages(rejected):
        # UltraFeedback-binarized: both conversations hold the prompt, as messages, again
        shared, chosen, rejected = _parted(chosen, rejected)
        prompt = shared or as_messages(prompt, "user")
    return against(prompt, chosen, [rejected], rest)


def _parted(chosen: Sequence[Any], rejected: Sequence[Any]) -> tuple[list[Any], ...]:
    """Return the messages with which both conversations begin, and what is left of each."""
    same = [_told(one) == _told(other) for one, other in zip(chosen, rejected, strict=False)]
    shared = same.index(False) if False in same else len(same)
    if shared in (len(chosen), len(rejected)):
        raise ValueError("chosen and rejected: expected different last messages")
    return list(chosen[:shared]), list(chosen[shared:]), list(rejected[shared:])


def _told(turn: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a message that are not null: in Arrow all rows of a column have all."""
    return {name: value for name, value in turn.items() if value is not None}


def read_implicit(row: Mapping[str, Any]) -> Record:
    """Read TRL's pairs without a prompt of their own: the messages that both begin with are it."""
    prompt, chosen, rejected = _parted(row["chosen"], row["rejected"])
    if not prompt:
        raise ValueError("chosen and rejected: expected the same first message")
    return against(prompt, chosen, [rejected], without(row, "chosen", "rejected"))


def write_implicit(record: Record) -> list[dict[str, Any]]:
    """Write a row a negative; both conversations begin with the prompt."""
    prompt = as_messages(record.prompt, "user")
    chosen, *rejected = (prompt + as_messages(text, "assistant") for text in record.responses)
    rows = []
    for number, talk in enumerate(rejected, 1):
        row: dict[str, Any] = {"chosen": chosen, "rejected": talk}
        rows.append(beside(record, row | _pair_scores(record, number)))
    return rows


def write_pairs(record: Record) -> list[dict[str, Any]]:
    """Write a row a negative."""
    chosen, *rejected = record.responses
    rows = []
    for number, text in enumerate(rejected, 1):
        row: dict[str, Any] = {"prompt": record.prompt, "chosen": chosen, "rejected": text}
        rows.append(beside(record, row | _pair_scores(record, number)))
    return rows


def _pair_scores(record: Record, number: int) -> dict[str, float]:
    if record.scores is None:
        return {}
    return {"score_chosen": record.scores[0], "score_rejected": record.scores[number]}
