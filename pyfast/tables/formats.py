"""The shapes in which people keep several responses to a prompt, and one reader for all of them.

Each `Format` is a page of its own: the columns that tell it, and how a row of it becomes a
`Record` and back. Files, `datasets` and trainers all read through here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyfast.tables.records import Record, Text, as_messages, as_text, is_messages


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
    raise ValueError(f"expected the columns of a known format ({known}), got {sorted(columns)}")


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
    return record


def _check_texts(name: str, texts: Sequence[Any]) -> None:
    """Refuse what is neither a text nor chat messages: null would be trained on, or fail later."""
    for text in texts:
        if not isinstance(text, str) and not is_messages(text):
            raise ValueError(f"{name}: expected a text or chat messages, got {text!r}")


# --- the formats ---------------------------------------------------------------------------------


def _rest(row: Mapping[str, Any], *taken: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in taken}


def _listed(name: str, value: Any) -> list[Any]:
    """Return a list; of a text or a message its letters or fields would be taken."""
    if isinstance(value, (str, bytes, Mapping)):
        raise ValueError(f"{name}: expected a list, got {value!r}")
    return list(value)


def _read_groups(row: Mapping[str, Any]) -> Record:
    responses = _listed("responses", row["responses"])
    scores = row.get("scores")
    if scores is not None and len(scores) != len(responses):
        raise ValueError(f"scores: expected one for each of {len(responses)}, got {len(scores)}")
    negatives = row.get("negatives")
    return Record(
        row["prompt"],
        responses,
        None if scores is None else [float(score) for score in scores],
        row.get("positive"),
        None if negatives is None else list(negatives),
        _rest(row, "prompt", "responses", "scores", "positive", "negatives"),
    )


def _write_groups(record: Record) -> list[dict[str, Any]]:
    row: dict[str, Any] = {"prompt": record.prompt, "responses": record.responses}
    optional = {
        "scores": record.scores,
        "positive": record.positive,
        "negatives": record.negatives,
    }
    row |= {name: value for name, value in optional.items() if value is not None}
    return [record.rest | row]


def _against(prompt: Text, chosen: Text, rejected: list[Text], rest: dict[str, Any]) -> Record:
    """Return the record of a chosen response and those set against it."""
    if not rejected:
        raise ValueError("rejected: expected at least one response")
    first, others = rest.pop("score_chosen", None), rest.pop("score_rejected", None)
    scores = None
    if first is not None and others is not None:
        listed = list(others) if isinstance(others, Sequence) else [others]
        if len(listed) != len(rejected):
            raise ValueError(f"score_rejected: expected {len(rejected)}, got {len(listed)}")
        scores = [float(score) for score in (first, *listed)]
    negatives = list(range(1, len(rejected) + 1))
    return Record(prompt, [chosen, *rejected], scores, 0, negatives, rest)


def _score_columns(record: Record, negatives: list[int]) -> dict[str, Any]:
    if record.scores is None:
        return {}
    scores = [record.scores[i] for i in negatives]
    return {"score_chosen": record.scores[0], "score_rejected": scores}


def _read_list(row: Mapping[str, Any]) -> Record:
    rest = _rest(row, "prompt", "chosen", "rejected")
    return _against(row["prompt"], row["chosen"], _listed("rejected", row["rejected"]), rest)


def _write_list(record: Record) -> list[dict[str, Any]]:
    chosen, *rejected = record.responses
    row = {"prompt": record.prompt, "chosen": chosen, "rejected": rejected}
    return [record.rest | row | _score_columns(record, record.negatives or [])]


def _numbered(row: Mapping[str, Any]) -> list[str]:
    """Return the names rejected1, rejected2, ... (or rejected_1, ...) in the order of numbers."""
    numbers = {
        int(match.group(1)): name
        for name in row
        if (match := re.fullmatch(r"rejected_?(\d+)", name)) and row[name] is not None
    }
    return [numbers[number] for number in sorted(numbers)]


def _read_numbered(row: Mapping[str, Any]) -> Record:
    names = _numbered(row)
    rest = _rest(row, "prompt", "chosen", *(n for n in row if re.fullmatch(r"rejected_?\d+", n)))
    return _against(row["prompt"], row["chosen"], [row[name] for name in names], rest)


def _write_numbered(record: Record) -> list[dict[str, Any]]:
    chosen, *rejected = record.responses
    row = {"prompt": record.prompt, "chosen": chosen}
    row |= {f"rejected{number}": text for number, text in enumerate(rejected, 1)}
    return [record.rest | row | _score_columns(record, record.negatives or [])]


def _read_pair(row: Mapping[str, Any]) -> Record:
    rest = _rest(row, "prompt", "chosen", "rejected")
    prompt, chosen, rejected = row["prompt"], row["chosen"], row["rejected"]
    if isinstance(prompt, str) and is_messages(chosen) and is_messages(rejected):
        # UltraFeedback-binarized: both conversations hold the prompt, as messages, again
        shared = 0
        while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
            shared += 1
        prompt = list(chosen[:shared]) or as_messages(prompt, "user")
        chosen, rejected = list(chosen[shared:]), list(rejected[shared:])
        if not chosen or not rejected:
            raise ValueError("chosen and rejected: expected different last messages")
    return _against(prompt, chosen, [rejected], rest)


def _write_pairs(record: Record) -> list[dict[str, Any]]:
    chosen, *rejected = record.responses
    rows = []
    for number, text in enumerate(rejected, 1):
        row: dict[str, Any] = {"prompt": record.prompt, "chosen": chosen, "rejected": text}
        if record.scores is not None:
            row |= {"score_chosen": record.scores[0], "score_rejected": record.scores[number]}
        rows.append(record.rest | row)
    return rows


def _read_ranked(row: Mapping[str, Any]) -> Record:
    """NeMo: completions of a context, each with its rank (0 is best) and, if known, its reward."""
    completions = _listed("completions", row["completions"])
    ranks = [completion["rank"] for completion in completions]
    responses = [completion["completion"] for completion in completions]
    rewards = [completion.get("reward") for completion in completions]
    known = all(reward is not None for reward in rewards)
    scores = [float(r) for r in rewards] if known else [-float(rank) for rank in ranks]
    best = min(range(len(ranks)), key=ranks.__getitem__) if ranks else None
    return Record(
        row["context"], responses, scores, best, None, _rest(row, "context", "completions")
    )


def _write_ranked(record: Record) -> list[dict[str, Any]]:
    scores = record.scores or [-float(i > 0) for i in range(len(record.responses))]
    distinct = sorted(set(scores[1:]), reverse=True)
    completions = []
    for number, (response, score) in enumerate(zip(record.responses, scores, strict=True)):
        completion: dict[str, Any] = {
            "rank": 0 if number == 0 else 1 + distinct.index(score),
            "completion": as_messages(response, "assistant"),
        }
        if record.scores is not None:
            completion["reward"] = score
        completions.append(completion)
    row = {"context": as_messages(record.prompt, "user"), "completions": completions}
    return [record.rest | row]


_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
_SPEAKERS = {role: speaker for speaker, role in _ROLES.items()}


def _turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    return {"role": _ROLES.get(turn["from"], turn["from"]), "content": turn["value"]}


def _spoken(value: Text, role: str) -> list[dict[str, Any]]:
    return [
        {"from": _SPEAKERS.get(turn["role"], turn["role"]), "value": turn["content"]}
        for turn in as_messages(value, role)
    ]


def _read_sharegpt(row: Mapping[str, Any]) -> Record:
    """LLaMA-Factory, ShareGPT style: conversations, then one chosen and one rejected turn."""
    rest = _rest(row, "conversations", "chosen", "rejected")
    prompt: Text = [_turn(turn) for turn in row["conversations"]]
    return _against(prompt, [_turn(row["chosen"])], [[_turn(row["rejected"])]], rest)


def _write_sharegpt(record: Record) -> list[dict[str, Any]]:
    chosen, *rejected = (_spoken(response, "assistant")[-1] for response in record.responses)
    spoken = _spoken(record.prompt, "user")
    return [
        record.rest | {"conversations": spoken, "chosen": chosen, "rejected": turn}
        for turn in rejected
    ]


def _read_alpaca(row: Mapping[str, Any]) -> Record:
    """LLaMA-Factory, Alpaca style: instruction and input, chosen and rejected texts."""
    rest = _rest(row, "instruction", "input", "chosen", "rejected")
    given = row.get("input")
    prompt = f"{row['instruction']}\n{given}" if given else row["instruction"]
    rejected = row["rejected"]
    return _against(
        prompt,
        row["chosen"],
        [rejected] if isinstance(rejected, str) else _listed("rejected", rejected),
        rest,
    )


def _write_alpaca(record: Record) -> list[dict[str, Any]]:
    chosen, *rejected = (as_text(response) for response in record.responses)
    if not isinstance(record.prompt, str) and len(record.prompt) > 1:
        raise ValueError("prompt: expected one message for this format; sharegpt holds more")
    prompt = as_text(record.prompt)
    return [
        record.rest | {"instruction": prompt, "input": "", "chosen": chosen, "rejected": text}
        for text in rejected
    ]


def _read_swift(row: Mapping[str, Any]) -> Record:
    """ms-swift: messages whose last one is the chosen response, and a rejected text."""
    *prompt, chosen = row["messages"]
    if not prompt or chosen["role"] != "assistant":
        raise ValueError("messages: expected a prompt and then the assistant's chosen response")
    rejected = row["rejected_response"]
    listed = [rejected] if isinstance(rejected, str) else _listed("rejected_response", rejected)
    answers: list[Text] = [[{"role": "assistant", "content": text}] for text in listed]
    return _against(prompt, [chosen], answers, _rest(row, "messages", "rejected_response"))


def _write_swift(record: Record) -> list[dict[str, Any]]:
    chosen, *rejected = (as_text(response) for response in record.responses)
    messages = [
        *as_messages(record.prompt, "user"),
        {"role": "assistant", "content": chosen},
    ]
    return [record.rest | {"messages": messages, "rejected_response": text} for text in rejected]


def _read_ultrafeedback(row: Mapping[str, Any]) -> Record:
    """UltraFeedback: an instruction, and completions with an overall score each."""
    completions = _listed("completions", row["completions"])
    responses = [completion["response"] for completion in completions]
    scores = [float(completion["overall_score"]) for completion in completions]
    return Record(
        row["instruction"], responses, scores, None, None, _rest(row, "instruction", "completions")
    )


def _write_ultrafeedback(record: Record) -> list[dict[str, Any]]:
    if record.scores is None:
        raise ValueError("scores: expected one a response for this format")
    completions = [
        {"response": as_text(response), "overall_score": score}
        for response, score in zip(record.responses, record.scores, strict=True)
    ]
    return [record.rest | {"instruction": as_text(record.prompt), "completions": completions}]


FORMATS = {
    kind.name: kind
    for kind in (
        Format("groups", ("prompt", "responses"), _read_groups, _write_groups),
        Format("swift", ("messages", "rejected_response"), _read_swift, _write_swift),
        Format("nemo", ("context", "completions"), _read_ranked, _write_ranked),
        Format(
            "ultrafeedback",
            ("instruction", "completions"),
            _read_ultrafeedback,
            _write_ultrafeedback,
        ),
        Format(
            "sharegpt", ("conversations", "chosen", "rejected"), _read_sharegpt, _write_sharegpt
        ),
        Format("alpaca", ("instruction", "chosen", "rejected"), _read_alpaca, _write_alpaca),
        Format("numbered", ("prompt", "chosen", "rejected1"), _read_numbered, _write_numbered),
        Format("list", ("prompt", "chosen", "rejected"), _read_list, _write_list),
        Format("pairs", ("prompt", "chosen", "rejected"), _read_pair, _write_pairs),
    )
}
"""By name; where the columns of several fit, the first whose rows fit too is meant."""


def _fits(name: str, row: Mapping[str, Any] | None) -> bool:
    """Tell whether a row whose columns fit is of the format: some have the same columns."""
    if row is None or name not in ("list", "pairs"):
        return True
    rejected = row["rejected"]
    several = not isinstance(rejected, str) and not is_messages(rejected)
    return several == (name == "list")
