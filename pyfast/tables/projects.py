"""The formats of other projects: NeMo, LLaMA-Factory (two), ms-swift and UltraFeedback."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyfast.tables.records import (
    Record,
    Text,
    against,
    as_messages,
    as_text,
    beside,
    listed,
    number,
    said,
    without,
)


def read_ranked(row: Mapping[str, Any]) -> Record:
    """Read NeMo: completions of a context, each with its rank (0 is best) and perhaps a reward."""
    completions = listed("completions", row["completions"])
    ranks = [number("rank", completion["rank"]) for completion in completions]
    responses = [completion["completion"] for completion in completions]
    rewards = [completion.get("reward") for completion in completions]
    known = all(reward is not None for reward in rewards)
    scores = [number("reward", r) for r in rewards] if known else [-rank for rank in ranks]
    best = min(range(len(ranks)), key=ranks.__getitem__) if ranks else None
    return Record(
        row["context"], responses, scores, best, None, without(row, "context", "completions")
    )


def write_ranked(record: Record) -> list[dict[str, Any]]:
    """Write one row: the chosen response has rank 0, and equal scores equal ranks."""
    scores = record.scores or [-float(i > 0) for i in range(len(record.responses))]
    distinct = sorted(set(scores[1:]), reverse=True)
    completions = []
    for place, (response, score) in enumerate(zip(record.responses, scores, strict=True)):
        completion: dict[str, Any] = {
            "rank": 0 if place == 0 else 1 + distinct.index(score),
            "completion": as_messages(response, "assistant"),
        }
        if record.scores is not None:
            completion["reward"] = score
        completions.append(completion)
    row = {"context": as_messages(record.prompt, "user"), "completions": completions}
    return [beside(record, row)]


_ROLES = {"human": "user", "gpt": "assistant", "observation": "tool", "system": "system"}
_SPEAKERS = {role: speaker for speaker, role in _ROLES.items()}


def _system(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return LLaMA-Factory's optional column as the message that it stands for."""
    text = row.get("system")
    return [{"role": "system", "content": text}] if text else []


def _turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    role = _ROLES.get(turn["from"], turn["from"])
    if role not in _SPEAKERS:
        raise ValueError(f"from: expected one of {', '.join(_ROLES)}, got {turn['from']!r}")
    return {"role": role, "content": turn["value"]}


def _spoken(name: str, turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"from": _SPEAKERS[turn["role"]], "value": said(name, turn)} for turn in turns]


def read_sharegpt(row: Mapping[str, Any]) -> Record:
    """Read LLaMA-Factory, ShareGPT style: conversations, then one chosen and one rejected turn."""
    rest = without(row, "conversations", "chosen", "rejected", "system")
    prompt = [_turn(turn) for turn in row["conversations"]]
    if before := _system(row):
        if prompt and prompt[0]["role"] == "system":
            raise ValueError(
                "system: expected none beside a conversation that begins with one of its own"
            )
        prompt = [*before, *prompt]
    return against(prompt, [_turn(row["chosen"])], [[_turn(row["rejected"])]], rest)


def write_sharegpt(record: Record) -> list[dict[str, Any]]:
    """Write a row a negative."""
    prompt = as_messages(record.prompt, "user")
    _check_in_turn(prompt, ("user", "tool"))
    chosen, *rejected = (
        {"from": "gpt", "value": as_text("responses", response)} for response in record.responses
    )
    spoken = _spoken("prompt", prompt)
    return [
        beside(record, {"conversations": spoken, "chosen": chosen, "rejected": turn})
        for turn in rejected
    ]


def _check_in_turn(turns: list[dict[str, Any]], asking: tuple[str, ...]) -> None:
    """Refuse prompts that LLaMA-Factory leaves out, with no more than a line in its log."""
    roles = [turn["role"] for turn in turns]
    begin = 1 if roles[0] == "system" else 0
    in_turn = all(
        role in (asking if place % 2 == 0 else ("assistant",))
        for place, role in enumerate(roles[begin:])
    )
    if len(roles[begin:]) % 2 == 0 or not in_turn:
        raise ValueError(
            f"prompt: expected a system message or none, then {' or '.join(asking)} and assistant "
            f"in turn, {' or '.join(asking)} last, for this format; got {roles}; groups, list, "
            "pairs and implicit hold more"
        )


def read_alpaca(row: Mapping[str, Any]) -> Record:
    """Read LLaMA-Factory, Alpaca style: instruction and input, chosen and rejected texts.

    With a ``system`` text or a ``history`` of [question, answer], the prompt is chat messages.
    """
    taken = ("instruction", "input", "chosen", "rejected", "system", "history")
    given = row.get("input")
    prompt: Text = f"{row['instruction']}\n{given}" if given else row["instruction"]
    before = _system(row)
    for pair in row.get("history") or []:
        if isinstance(pair, str) or len(pair) != 2 or not all(isinstance(t, str) for t in pair):
            raise ValueError(f"history: expected [question, answer] in texts, got {pair!r}")
        before += [*as_messages(pair[0], "user"), *as_messages(pair[1], "assistant")]
    if before:
        prompt = [*before, *as_messages(prompt, "user")]
    rejected = row["rejected"]
    return against(
        prompt,
        row["chosen"],
        [rejected] if isinstance(rejected, str) else listed("rejected", rejected),
        without(row, *taken),
    )


def write_alpaca(record: Record) -> list[dict[str, Any]]:
    """Write a row a negative; earlier turns go into ``system`` and ``history``."""
    chosen, *rejected = (as_text("responses", response) for response in record.responses)
    turns = as_messages(record.prompt, "user")
    _check_in_turn(turns, ("user",))
    before = [said("prompt", turn) for turn in turns]
    row: dict[str, Any] = {"instruction": before.pop(), "input": ""}
    if turns[0]["role"] == "system":
        row["system"] = before.pop(0)
    if before:
        row["history"] = [list(pair) for pair in zip(before[::2], before[1::2], strict=True)]
    return [beside(record, row | {"chosen": chosen, "rejected": text}) for text in rejected]


def read_swift(row: Mapping[str, Any]) -> Record:
    """Read ms-swift: messages whose last one is the chosen response, and a rejected text."""
    *prompt, chosen = row["messages"]
    if not prompt or chosen["role"] != "assistant":
        raise ValueError("messages: expected a prompt and then the assistant's chosen response")
    rejected = row["rejected_response"]
    texts = [rejected] if isinstance(rejected, str) else listed("rejected_response", rejected)
    answers: list[Text] = [as_messages(text, "assistant") for text in texts]
    return against(prompt, [chosen], answers, without(row, "messages", "rejected_response"))


def write_swift(record: Record) -> list[dict[str, Any]]:
    """Write a row a negative."""
    chosen, *rejected = (as_text("responses", response) for response in record.responses)
    messages = [
        *as_messages(record.prompt, "user"),
        {"role": "assistant", "content": chosen},
    ]
    return [beside(record, {"messages": messages, "rejected_response": text}) for text in rejected]


def read_ultrafeedback(row: Mapping[str, Any]) -> Record:
    """Read UltraFeedback: an instruction, and completions with an overall score each."""
    completions = listed("completions", row["completions"])
    responses = [completion["response"] for completion in completions]
    scores = [number("overall_score", completion["overall_score"]) for completion in completions]
    return Record(
        row["instruction"],
        responses,
        scores,
        None,
        None,
        without(row, "instruction", "completions"),
    )


def write_ultrafeedback(record: Record) -> list[dict[str, Any]]:
    """Write one row."""
    if record.scores is None:
        raise ValueError("scores: expected one a response for this format")
    completions = [
        {"response": as_text("responses", response), "overall_score": score}
        for response, score in zip(record.responses, record.scores, strict=True)
    ]
    row = {"instruction": as_text("prompt", record.prompt), "completions": completions}
    return [beside(record, row)]
