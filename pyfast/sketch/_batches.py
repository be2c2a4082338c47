"""Many responses, shared out to batches of like lengths, and what a batch gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyfast import _arguments as args
from pyfast._results import ByValue
from pyfast.sketch._layout import Vocabulary

Response = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True, eq=False)
class GradientBatch(ByValue):
    """What one pass gives for its R responses.

    Attributes
    ----------
    sketches : float32 tensor, shape (R, dim)
        Sketches of the gradients of log pi(y|x), on the model's device; not normalised.
    squared_norms : float64 array, shape (R,)
        Exact squared lengths of the gradients.
    part_norms : float64 array, shape (R, parts)
        The same for each LoRA matrix; the columns are `LoraGradients.names`.
    logps : float64 array, shape (R,)
        log pi(y|x), summed over the response tokens, in nats.
    lengths : int64 array, shape (R,)
        Response tokens. A response without any has a sketch of zeros.
    """

    sketches: Tensor
    squared_norms: NDArray[np.float64]
    part_norms: NDArray[np.float64]
    logps: NDArray[np.float64]
    lengths: NDArray[np.int64]


def pad(
    responses: Sequence[Response], vocabulary: Vocabulary | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (input_ids, response_mask, attention_mask) of responses, padded on the right."""
    check_list(responses)
    rows = [_token_ids(response, n, vocabulary) for n, response in enumerate(responses)]
    ids = torch.zeros(len(rows), max(map(len, rows), default=0), dtype=torch.long)
    mask, real = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, tokens in enumerate(rows):
        end = len(tokens)
        ids[row, :end] = tokens
        mask[row, len(responses[row][0]) : end] = 1
        real[row, :end] = 1
    return ids, mask, real


def _token_ids(response: Response, number: int, vocabulary: Vocabulary | None = None) -> Tensor:
    """Return the tokens of a prompt and its response, checked; `number` names it in errors."""
    try:
        prompt, answer = response
        parts = [torch.as_tensor(tokens) for tokens in (prompt, answer)]
        flat = all(part.ndim == 1 for part in parts)
    except (TypeError, ValueError, KeyError, RuntimeError):
        flat = False
    if not flat or isinstance(response, dict):
        raise TypeError(
            "responses: expected (prompt_ids, response_ids), two lists of token ids, at "
            f"{number}, got {_shown(response)}"
        )
    if len(prompt) == 0:
        raise ValueError(f"responses: expected a prompt of at least one token, at {number}")
    for part in parts:
        wrong = part.dtype == torch.bool or part.is_floating_point() or part.is_complex()
        if wrong and len(part):
            raise TypeError(f"responses: expected integer token ids, got {part.dtype} at {number}")
    ids = torch.cat([part.cpu().long() for part in parts])
    if vocabulary is not None:
        start = len(response[0])
        for tokens, end in zip((ids[:start], ids[start:]), vocabulary, strict=True):
            if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < end:
                at = int(((tokens < 0) | (tokens >= end)).int().argmax())
                whose = "prompt" if tokens.data_ptr() == ids.data_ptr() else "response"
                raise ValueError(
                    f"responses: expected tokens from 0 to {end - 1}, got {int(tokens[at])} at "
                    f"{number}, token {at} of the {whose}"
                )
    return ids


def check_list(responses: object) -> None:
    """Refuse what has no numbered rows."""
    if not (hasattr(responses, "__len__") and hasattr(responses, "__getitem__")):
        raise TypeError(
            "responses: expected a list of (prompt_ids, response_ids), got "
            f"{type(responses).__name__}"
        )


def _shown(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def sizes_of(
    responses: Sequence[Response], vocabulary: Vocabulary | None = None
) -> NDArray[np.int64]:
    """Return the tokens of each response and its prompt, all checked."""
    check_list(responses)
    tokens = (_token_ids(r, number, vocabulary) for number, r in enumerate(responses))
    return np.array([len(ids) for ids in tokens], np.int64)


def plan(
    responses: Sequence[Response], max_tokens: int, vocabulary: Vocabulary | None = None
) -> list[list[int]]:
    """Share responses out to batches of at most `max_tokens` padded tokens, the longest first."""
    max_tokens = args.check_int(max_tokens, "max_tokens", 1)
    return plan_sizes(sizes_of(responses, vocabulary), max_tokens)


def plan_sizes(sizes: NDArray[np.int64], max_tokens: int) -> list[list[int]]:
    """Do so for responses of these sizes."""
    return split(np.argsort(-sizes, kind="stable").tolist(), sizes, max_tokens)


def split(numbers: Sequence[int], sizes: NDArray[np.int64], max_tokens: int) -> list[list[int]]:
    """Cut responses, the longest first, into batches of at most `max_tokens` padded tokens.

    A batch keeps to its first and longest one: what is left of `numbers` after some of the batches
    is cut as it was.
    """
    batches: list[list[int]] = []
    for number in numbers:
        if sizes[number] > max_tokens:
            raise ValueError(
                f"max_tokens: expected at least {sizes[number]}, the tokens of response {number}; "
                f"got {max_tokens}"
            )
        longest = sizes[batches[-1][0]] if batches else 0
        if batches and (len(batches[-1]) + 1) * longest <= max_tokens:
            batches[-1].append(number)
        else:
            batches.append([number])
    return batches
