"""From rows of a data set to token ids of groups, and from groups to a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from pyfast.tables.formats import read
from pyfast.tables.records import Record, Text, as_text

Selector = Callable[[Mapping[str, Any]], Any]
"""Row -> a result of `pyfast.select` (with ``positive`` and ``negatives``), or positions."""


def select_responses(record: Record, row: Mapping[str, Any], selector: Selector | None) -> Record:
    """Return a record whose chosen response comes first, then those set against it.

    Raises
    ------
    ValueError
        If the selector's positions are not distinct ones of the responses, at least two of them.
    TypeError
        If it gives something else.
    """
    if selector is None:
        return record.chosen_first()
    picked = selector(row)
    if hasattr(picked, "negatives"):
        positions = [int(picked.positive), *(int(i) for i in picked.negatives)]
    elif isinstance(picked, Iterable):
        positions = [int(i) for i in picked]
    else:
        raise TypeError(
            f"selector: expected a result of pyfast.select or positions, got {picked!r}"
        )
    total = len(record.responses)
    distinct = len(set(positions)) == len(positions)
    if len(positions) < 2 or not distinct or min(positions) < 0 or max(positions) >= total:
        raise ValueError(
            "selector: expected distinct positions, the chosen one first, at least two of "
            f"{total} responses, got {positions}"
        )
    return replace(record, positive=positions[0], negatives=positions[1:]).chosen_first()


def tokenize(
    record: Record, tokenizer: Any, *, tools: Any = None, template: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return ``prompt_ids``, ``response_ids`` and, if known, ``scores`` of a record.

    Each response is tokenized with the prompt before it, as TRL does, and starts where all of
    these and the prompt alone stop to agree.

    Raises
    ------
    ValueError
        If a response has no token of its own.
    """
    extra = {"tools": tools, **(template or {})}

    def encode(value: Text, **more: Any) -> list[int]:
        if isinstance(value, str):
            return list(tokenizer(text=value)["input_ids"])
        found = tokenizer.apply_chat_template(
            value, tokenize=True, return_dict=True, **extra, **more
        )
        return list(found["input_ids"])

    prompt = record.prompt
    if isinstance(prompt, str):
        end = tokenizer.eos_token
        if end is None:
            raise ValueError("tokenizer: expected one with an end token (eos_token), got none")
        texts = [as_text("responses", y).removesuffix(end) + end for y in record.responses]
        alone, whole = encode(prompt), [encode(prompt + text) for text in texts]
    else:
        alone = encode(prompt, add_generation_prompt=True)
        whole = [encode([*prompt, *_turns(y)]) for y in record.responses]
    start = min(_agreeing(alone, ids) for ids in whole)
    responses = [ids[start:] for ids in whole]
    if start == 0 or not all(responses):
        raise ValueError("prompt and responses: expected a token of each")
    found: dict[str, Any] = {"prompt_ids": alone[:start], "response_ids": responses}
    if record.scores is not None:
        found["scores"] = record.scores
    return found


def _turns(response: Text) -> list[dict[str, Any]]:
    if isinstance(response, str):
        return [{"role": "assistant", "content": response}]
    return list(response)


def _agreeing(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many first tokens are the same."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))


def prepare(
    row: Mapping[str, Any], tokenizer: Any, selector: Selector | None = None
) -> dict[str, Any]:
    """Return a row's columns for `GroupCollator`; a row that has them already is left alone."""
    if "prompt_ids" in row and "response_ids" in row:
        return {}
    tools, template = row.get("tools"), row.get("chat_template_kwargs")
    if isinstance(tools, str):
        import json

        tools = json.loads(tools)
    record = select_responses(read(row), row, selector)
    return tokenize(record, tokenizer, tools=tools, template=template)


@dataclass
class GroupCollator:
    """Make a batch of groups.

    Parameters
    ----------
    max_length : int, optional
        Longest prompt and response together; what is over is cut.
    keep : {"start", "end"}
        What is kept then. With "end" every response has the end of the prompt that fits before it.

    Notes
    -----
    A batch holds ``counts``, int64 (B,), the responses of each group; ``groups``, a list of
    (prompt, responses) of token ids, a group that was cut at the start in pieces of one response;
    ``lengths``, int64 (responses,); ``scores`` and ``ref_logps``, float32 (responses,), where the
    rows have them; and ``input_ids``, all tokens of all groups in one row, for who counts them.
    """

    max_length: int | None = None
    keep: str = "start"

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the batch of these rows."""
        for row in rows:
            if "prompt_ids" not in row or "response_ids" not in row:
                raise ValueError(
                    "rows: expected prompt_ids and response_ids, which "
                    "pyfast.integrations.transformers.tokenize_rows makes of rows of any format; "
                    f"got {sorted(row)}"
                )
        groups = [group for row in rows for group in self._cut(row)]
        lengths = [len(response) for _, responses in groups for response in responses]
        tokens = [t for prompt, ys in groups for t in (*prompt, *(t for y in ys for t in y))]
        batch: dict[str, Any] = {
            "counts": torch.tensor([len(row["response_ids"]) for row in rows]),
            "groups": groups,
            "lengths": torch.tensor(lengths),
            "input_ids": torch.tensor([tokens]),
        }
        for name in ("scores", "ref_logps"):
            have = [row.get(name) is not None for row in rows]
            if all(have):
                numbers = [float(value) for row in rows for value in row[name]]
                batch[name] = torch.tensor(numbers)
            elif any(have):
                raise ValueError(f"{name}: expected in every row of a batch, or in none")
        return batch

    def _cut(self, row: Mapping[str, Any]) -> list[tuple[list[int], list[list[int]]]]:
        prompt, responses = list(row["prompt_ids"]), [list(y) for y in row["response_ids"]]
        if self.max_length is None:
            return [(prompt, responses)]
        room = self.max_length - len(prompt)
        if max(map(len, responses)) <= room:
            return [(prompt, responses)]
        if self.keep == "start":
            if room < 1:
                raise ValueError(
                    f"max_length: expected room for a response after a prompt of {len(prompt)} "
                    f"tokens, got {self.max_length}"
                )
            return [(prompt, [response[:room] for response in responses])]
        pieces = []
        for response in responses:
            kept = (prompt + response)[-self.max_length :]
            own = min(len(response), len(kept) - 1)  # the first one has nothing before it
            pieces.append((kept[:-own], [kept[-own:]]))
        return pieces
