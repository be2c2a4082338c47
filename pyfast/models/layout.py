"""How a prompt and its responses lie in the rows that a model reads, and who sees whom there."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Group = tuple[Sequence[int], Sequence[Sequence[int]]]
"""The tokens of a prompt, and those of each of its responses."""


@dataclass(frozen=True)
class Layout:
    """Tokens as a model reads them, and where the predictions of the response tokens come out.

    Attributes
    ----------
    tokens, positions : int64 tensors (rows, L)
    segments : int64 tensor (rows, L)
        0 for the prompt, 1, 2, ... for the responses of a row, -1 for padding.
    sources : int64 tensor (T,)
        For each of all T response tokens, the place (in rows * L) of the one before it, whose
        hidden state predicts it.
    labels : int64 tensor (T,)
        The response tokens, group by group, response by response.
    counts : list of int
        Tokens of each response; they add up to T.
    own : int64 tensor (T,), or None
        The places of the response tokens themselves, where rows are whole.
    prompts : list of (int, int)
        For each response the place where its prompt begins, and the prompt's tokens.
    """

    tokens: Tensor
    positions: Tensor
    segments: Tensor
    sources: Tensor
    labels: Tensor
    counts: list[int]
    own: Tensor | None
    prompts: list[tuple[int, int]]


def lay_out(groups: Sequence[Group], *, share: bool = True, whole: bool = False) -> Layout:
    """Lay out groups, one row for each (`share`) or one row for each response.

    The last token of a response predicts nothing and is left out, unless rows are to be `whole`.

    Raises
    ------
    ValueError
        If there is no group, no response in one, or an empty prompt or response.
    """
    check_groups(groups)
    if not share:
        groups_of_rows: list[Group] = [(x, [y]) for x, responses in groups for y in responses]
    else:
        groups_of_rows = list(groups)
    rows, sources, own, counts, prompts = [], [], [], [], []
    labels: list[int] = []
    for row, (prompt, responses) in enumerate(groups_of_rows):
        read, at = list(prompt), list(range(len(prompt)))
        whose = [0] * len(prompt)
        for segment, response in enumerate(responses, 1):
            first, rest = len(read), len(response) - (0 if whole else 1)
            places = (len(prompt) - 1, *range(first, first + len(response) - 1))
            sources += [(row, place) for place in places]
            own += [(row, first + i) for i in range(len(response))]
            prompts.append((row, len(prompt)))
            read += response[:rest]
            at += range(len(prompt), len(prompt) + rest)
            whose += [segment] * rest
            labels += response
            counts.append(len(response))
        rows.append((read, at, whose))
    length = max(len(read) for read, _, _ in rows)
    tokens, positions, segments = (
        torch.tensor([row[i] + [fill] * (length - len(row[i])) for row in rows])
        for i, fill in enumerate((0, 0, -1))
    )
    flat, flat_own = (
        torch.tensor([row * length + place for row, place in found]) for found in (sources, own)
    )
    return Layout(
        tokens,
        positions,
        segments,
        flat,
        torch.tensor(labels),
        counts,
        flat_own if whole else None,
        [(row * length, count) for row, count in prompts],
    )


def check_integers(tokens: Sequence[int], group: int) -> None:
    """Refuse tokens of a group that are no integers.

    Raises
    ------
    TypeError
        If it is so.
    """
    if set(map(type, tokens)) == {int}:
        return
    for token in tokens:
        try:
            operator.index(token)
            wrong = getattr(token, "dtype", type(token)) in (bool, torch.bool)
        except TypeError:
            wrong = True
        if wrong:
            raise TypeError(f"groups: expected integers as tokens, got {token!r} in group {group}")


def check_groups(groups: Sequence[Group]) -> None:
    """Refuse no group, no response in one, and an empty prompt or response."""
    if len(groups) == 0:
        raise ValueError("groups: expected at least one")
    for g, (prompt, responses) in enumerate(groups):
        if len(prompt) == 0:
            raise ValueError(f"groups: expected at least one token in the prompt of group {g}")
        if len(responses) == 0 or min(len(response) for response in responses) == 0:
            raise ValueError(
                f"groups: expected at least one response in group {g}, each of at least one token"
            )


def visible(segments: Tensor) -> Tensor:
    """Return who sees whom: bool (rows, L, L), ``[r, a, b]`` true where a attends to b.

    A token sees the prompt and its own response up to itself; padding sees itself alone, because
    a softmax over nothing is not a number.
    """
    mine, theirs = segments[:, :, None], segments[:, None, :]
    order = torch.arange(segments.shape[1], device=segments.device)
    earlier = order[:, None] >= order[None, :]
    same = (mine == theirs) & (mine >= 0)
    prompt = (theirs == 0) & (mine >= 0)
    return ((same | prompt) & earlier) | (order[:, None] == order[None, :])


def block_mask(segments: Tensor) -> Any:
    """Return `visible` as FlexAttention's BlockMask, which stores and reads blocks alone."""
    from torch.nn.attention.flex_attention import create_block_mask

    def see(row: Tensor, head: Tensor, a: Tensor, b: Tensor) -> Tensor:
        mine, theirs = segments[row, a], segments[row, b]
        earlier = (a >= b) & (mine >= 0)
        return ((mine == theirs) | (theirs == 0)) & earlier | (a == b)

    rows, length = segments.shape
    return create_block_mask(see, rows, None, length, length, device=str(segments.device))
