"""The shapes in which people keep several responses to a prompt, and one reader for all of them.

Each `Format` says by which columns it is told, and how a row of it becomes a `Record` and back
(`preferences`, `projects`). Files, `datasets` and trainers all read through here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyfast.tables import preferences, projects
from pyfast.tables.records import (
    Record,
    as_messages,
    beside,
    is_messages,
    listed,
    number,
    without,
)


@dataclass(frozen=True)
class Format:
    """A shape of rows.

    Attributes
    ----------
    name : str
        What it is called in arguments and errors.
    columns : tuple of str
        Those that it must have (of a numbered family the first).
    read, write : callables
        Row to `Record`, and a `Record` that is `Record.chosen_first` to rows (pairs give one a
        negative).
    """

    name: str
    columns: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], Record]
    write: Callable[[Record], list[dict[str, Any]]]


def find(columns: Iterable[str], row: Mapping[str, Any] | None = None) -> Format:
    """Tell the format of rows that have these columns; a first row tells alike ones apart.

    Raises
    ------
    ValueError
        If none fits; it names the columns found and the formats known.
    """
    columns = list(columns)
    found = {re.sub(r"^rejected_(\d+)$", r"rejected\1", name) for name in columns}
    for kind in FORMATS.values():
        if set(kind.columns) <= found and _fits(kind.name, row):
            return kind
    known = "; ".join(f"{kind.name}: {', '.join(kind.columns)}" for kind in FORMATS.values())
    hint = ""
    if {"chosen", "rejected"} <= found:
        hint = (
            "; chosen and rejected without a column prompt are two conversations, as chat "
            "messages, that begin with it; beside texts, give or rename a column prompt"
        )
    raise ValueError(
        f"expected the columns of a known format ({known}), got {sorted(columns)}{hint}"
    )


def read(row: Mapping[str, Any]) -> Record:
    """Read a row of any format.

    Raises
    ------
    ValueError
        If no format fits, or what is in the row does not fit its format.
    """
    kind = find(row, row)
    try:
        record = kind.read(row)
    except (KeyError, TypeError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"expected a row of the format {kind.name!r}, got one with {what}"
        ) from None
    _check_texts("prompt", [record.prompt])
    _check_texts("responses", record.responses)
    talks = [response for response in record.responses if not isinstance(response, str)]
    for first, *_ in talks:
        if first["role"] in ("system", "developer", "user"):
            raise ValueError(
                "responses: expected the assistant's messages, got one that begins with the role "
                f"{first['role']!r}; what is answered belongs to the prompt alone"
            )
    if talks and isinstance(record.prompt, str):
        return replace(record, prompt=as_messages(record.prompt, "user"))
    return record


def _check_texts(name: str, texts: Sequence[Any]) -> None:
    """Refuse what is neither a text nor chat messages: null would be trained on, or fail later."""
    for text in texts:
        if isinstance(text, str):
            continue
        if not is_messages(text):
            raise ValueError(f"{name}: expected a text or chat messages, got {text!r}")
        for turn in text:
            content = turn.get("content")
            empty = content is None and not any(turn[key] for key in turn if key != "role")
            if empty or not isinstance(content, (str, list, type(None))):
                raise ValueError(f"{name}: content: expected a text in every message, got {turn!r}")


def _read_groups(row: Mapping[str, Any]) -> Record:
    responses = listed("responses", row["responses"])
    scores = row.get("scores")
    if scores is not None and len(scores) != len(responses):
        raise ValueError(f"scores: expected one for each of {len(responses)}, got {len(scores)}")
    negatives, valid = row.get("negatives"), row.get("valid")
    return Record(
        row["prompt"],
        responses,
        None if scores is None else [number("scores", score) for score in scores],
        row.get("positive"),
        None if negatives is None else list(negatives),
        without(row, "prompt", "responses", "scores", "positive", "negatives", "valid"),
        None if valid is None else listed("valid", valid),
    )


def _write_groups(record: Record) -> list[dict[str, Any]]:
    row: dict[str, Any] = {"prompt": record.prompt, "responses": record.responses}
    optional = {
        "scores": record.scores,
        "positive": record.positive,
        "negatives": record.negatives,
        "valid": record.valid,
    }
    row |= {name: value for name, value in optional.items() if value is not None}
    return [beside(record, row)]


FORMATS = {
    kind.name: kind
    for kind in (
        Format("groups", ("prompt", "responses"), _read_groups, _write_groups),
        Format(
            "swift", ("messages", "rejected_response"), projects.read_swift, projects.write_swift
        ),
        Format("nemo", ("context", "completions"), projects.read_ranked, projects.write_ranked),
        Format(
            "ultrafeedback",
            ("instruction", "completions"),
            projects.read_ultrafeedback,
            projects.write_ultrafeedback,
        ),
        Format(
            "sharegpt",
            ("conversations", "chosen", "rejected"),
            projects.read_sharegpt,
            projects.write_sharegpt,
        ),
        Format(
            "alpaca",
            ("instruction", "chosen", "rejected"),
            projects.read_alpaca,
            projects.write_alpaca,
        ),
        Format(
            "numbered",
            ("prompt", "chosen", "rejected1"),
            preferences.read_numbered,
            preferences.write_numbered,
        ),
        Format(
            "list", ("prompt", "chosen", "rejected"), preferences.read_list, preferences.write_list
        ),
        Format(
            "pairs",
            ("prompt", "chosen", "rejected"),
            preferences.read_pair,
            preferences.write_pairs,
        ),
        Format(
            "implicit",
            ("chosen", "rejected"),
            preferences.read_implicit,
            preferences.write_implicit,
        ),
    )
}
"""By name; where the columns of several fit, the first whose rows fit too is meant."""


def _fits(name: str, row: Mapping[str, Any] | None) -> bool:
    """Tell whether a row whose columns fit is of the format: some have the same columns."""
    if row is None or name not in ("list", "pairs", "implicit"):
        return True
    if name == "implicit":
        return is_messages(row["chosen"]) and is_messages(row["rejected"])
    rejected = row["rejected"]
    several = not isinstance(rejected, str) and not is_messages(rejected)
    return several == (name == "list")
