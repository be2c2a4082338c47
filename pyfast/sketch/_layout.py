"""Which token belongs to which response: rows with padding on either side, or packed rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """How the tokens of a batch fall into R responses.

    ``shape`` is the tokens' leading shape: (rows, T), or (n,). ``places`` is None where row b is
    response b; else it holds, (R, longest), the flat positions of each response's tokens, and
    ``real``, of the same shape, is False where a response is shorter.
    """

    shape: tuple[int, ...]
    responses: int
    places: Tensor | None = None
    real: Tensor | None = None

    @classmethod
    def of_rows(cls, rows: int, length: int) -> Layout:
        """One response a row."""
        return cls((rows, length), rows)

    @classmethod
    def of_owners(cls, owners: Tensor, responses: int) -> Layout:
        """Response `owners[t]` owns token t; -1 is nobody's. Any shape."""
        flat = owners.reshape(-1)
        order = torch.argsort(flat, stable=True)
        order = order[flat[order] >= 0]
        counts = torch.bincount(flat[order], minlength=responses)
        starts = counts.cumsum(0) - counts
        longest = max(1, int(counts.max()))
        within = torch.arange(longest, device=flat.device)
        real = within < counts[:, None]
        if len(order) == 0:
            order = torch.zeros(1, dtype=torch.long, device=flat.device)
        places = order[(starts[:, None] + within).clamp(max=len(order) - 1)]
        return cls(tuple(owners.shape), responses, places, real)

    def fits(self, values: Tensor) -> bool:
        """Tell whether `values` (..., d) may hold one vector for each token, by their number."""
        return values.shape[:-1].numel() == _product(self.shape)

    def per_response(self, values: Tensor) -> Tensor:
        """Return values (..., d) of the tokens as (R, longest, d), zero past a response's end."""
        flat = values.reshape(-1, values.shape[-1])
        if self.places is None or self.real is None:
            return flat.view(self.responses, -1, flat.shape[-1])
        return flat[self.places].masked_fill_(~self.real[..., None], 0)


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


@dataclass(frozen=True)
class Tokens:
    """A checked batch for the model, on its device.

    ``input_ids``, ``response_mask`` and ``owners`` have shape (rows, T); ``attention_mask`` and
    ``position_ids`` too, or are None.
    """

    input_ids: Tensor
    response_mask: Tensor
    attention_mask: Tensor | None
    position_ids: Tensor | None
    owners: Tensor
    responses: int
    layout: Layout

    @property
    def kind(self) -> str:
        """Rows, padded rows (not on the right alone) or packed rows."""
        if self.layout.places is not None:
            return "packed rows"
        return "rows" if self.attention_mask is None else "padded rows"

    @property
    def counts(self) -> Tensor:
        """Response tokens of each response, (R,)."""
        return torch.bincount(self.owners[self.response_mask], minlength=self.responses)

    def apart(self) -> list[Row]:
        """Return the responses as rows of their own, without padding and what follows them."""
        rows = []
        owned = self.owners if self.attention_mask is None else self._real_owners()
        for number in range(self.responses):
            row, column = (owned == number).nonzero(as_tuple=True)
            mask = self.response_mask[row, column]
            end = int(mask.nonzero().max()) + 1 if bool(mask.any()) else 0
            row, column = row[:end], column[:end]
            positions = None
            if self.position_ids is not None:
                found = self.position_ids[row, column]
                if not torch.equal(found, torch.arange(end, device=found.device)):
                    positions = found
            rows.append(Row(self.input_ids[row, column], mask[:end], positions))
        return rows

    def _real_owners(self) -> Tensor:
        assert self.attention_mask is not None
        return self.owners.masked_fill(self.attention_mask == 0, -1)


@dataclass(frozen=True)
class Row:
    """One response on its own: token ids (n,), which of them are the response's, positions.

    Positions are None where they count from 0.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor | None

    def __len__(self) -> int:
        return len(self.ids)


def join(rows: list[Row]) -> Tokens:
    """Return a batch of rows, padded on the right."""
    length = max(map(len, rows))
    device = rows[0].ids.device
    ids = torch.zeros(len(rows), length, dtype=torch.long, device=device)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    positions = torch.arange(length, device=device).repeat(len(rows), 1)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row.ids
        mask[number, : len(row)] = row.mask
        if row.positions is not None:
            positions[number, : len(row)] = row.positions
    usual = all(row.positions is None for row in rows)
    owners = torch.arange(len(rows), device=device)[:, None].expand(len(rows), length)
    layout = Layout.of_rows(len(rows), length)
    return Tokens(ids, mask, None, None if usual else positions, owners, len(rows), layout)


Vocabulary = tuple[int, int]
"""How many tokens the embeddings know, and the head."""


def check_tokens(
    input_ids: Any,
    response_mask: Any,
    attention_mask: Any,
    position_ids: Any,
    segments: Any,
    device: torch.device,
    vocabulary: Vocabulary,
) -> Tokens:
    """Check a batch's tensors and say whose each token is. `LoraGradients.batch` names them."""
    ids = _integers(input_ids, "input_ids", None).to(device)
    if ids.ndim != 2 or 0 in ids.shape:
        raise ValueError(f"input_ids: expected shape (rows, T), got {tuple(ids.shape)}")
    mask = _mask(response_mask, "response_mask", ids)
    read, scored = vocabulary
    _refuse_at((ids < 0) | (ids >= read), "input_ids", f"tokens from 0 to {read - 1}")
    _refuse_at(mask & (ids >= scored), "input_ids", f"response tokens from 0 to {scored - 1}")
    if segments is not None and attention_mask is not None:
        raise ValueError("attention_mask: expected none beside segments; give padding segment -1")
    real = None if attention_mask is None else _mask(attention_mask, "attention_mask", ids)
    if real is not None:
        _refuse_at(mask & ~real, "response_mask", "no response token where attention_mask is 0")
        if bool((real[:, :-1] >= real[:, 1:]).all()):
            real = None  # padding on the right: causal attention never looks at it
    positions = None
    if position_ids is not None:
        positions = _integers(position_ids, "position_ids", ids.shape).to(device)
    if segments is None:
        rows, length = ids.shape
        owners = torch.arange(rows, device=device)[:, None].expand(rows, length)
        first = torch.zeros_like(mask)
        first[:, 0] = True
        if real is not None:  # the first real token of a row
            first = real & (real.cumsum(1) == 1)
        responses, layout = rows, Layout.of_rows(rows, length)
        if positions is None and real is not None:
            positions = (real.cumsum(1) - 1).clamp(min=0)
        elif positions is not None:
            _refuse_falling(positions, mask, real)
    else:
        owners, responses, first = _packed(segments, mask, positions, ids)
        layout = Layout.of_owners(owners, responses)
    _refuse_at(mask & first, "response_mask", "a token before the first one of the response")
    if real is not None:  # the token before is what predicts
        padded = torch.zeros_like(mask)
        padded[:, 1:] = ~real[:, :-1]
        _refuse_at(mask & padded, "response_mask", "no padding just before a response token")
    attention = None if real is None else real.long()
    return Tokens(ids, mask, attention, positions, owners, responses, layout)


def _refuse_falling(positions: Tensor, mask: Tensor, real: Tensor | None) -> None:
    """Refuse rows of several texts that do not say so: they would count as one response."""
    read = mask.flip(1).cumsum(1).flip(1) > 0  # up to the last token of the response
    read = read if real is None else read & real
    falls = torch.zeros_like(mask)
    falls[:, 1:] = (positions[:, 1:] <= positions[:, :-1]) & read[:, 1:] & read[:, :-1]
    wanted = "positions that rise within a row (rows of several responses need segments)"
    _refuse_at(falls, "position_ids", wanted)


def _packed(
    segments: Any, mask: Tensor, positions: Tensor | None, ids: Tensor
) -> tuple[Tensor, int, Tensor]:
    """Check packed rows; return the owners, their number, and where each begins."""
    owners = _integers(segments, "segments", ids.shape).to(ids.device)
    if positions is None:
        raise ValueError("position_ids: expected beside segments, restarting in each of them")
    responses = int(owners.max()) + 1
    present = torch.bincount((owners + 1).clamp(min=0).reshape(-1), minlength=responses + 1)[1:]
    if responses < 1 or bool((owners < -1).any()) or bool((present == 0).any()):
        raise ValueError("segments: expected 0 to R - 1, each at least once, and -1 for padding")
    before = torch.full_like(owners[:, :1], -2)
    first = owners != torch.cat([before, owners[:, :-1]], dim=1)
    starts = torch.bincount(owners[first & (owners >= 0)], minlength=responses)
    if bool((starts != 1).any()):
        bad = int((starts != 1).int().argmax())
        raise ValueError(f"segments: expected segment {bad} in one piece, within one row")
    # A model tells segments apart by positions that do not rise by one.
    rises = torch.zeros_like(first)
    rises[:, 1:] = positions[:, 1:] == positions[:, :-1] + 1
    _refuse_at(first & rises & (owners >= 0), "position_ids", "positions that restart there")
    _refuse_at(~first & ~rises & (owners >= 0), "position_ids", "positions that rise by one there")
    _refuse_at(mask & (owners < 0), "response_mask", "no response token outside the segments")
    return owners, responses, first


def _integers(value: Any, name: str, shape: Any) -> Tensor:
    tensor = torch.as_tensor(value)
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype == torch.bool:
        raise TypeError(f"{name}: expected integers, got {tensor.dtype}")
    if shape is not None and tensor.shape != shape:
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(tensor.shape)}")
    return tensor.long()


def _mask(value: Any, name: str, like: Tensor) -> Tensor:
    tensor = torch.as_tensor(value)
    if tensor.shape != like.shape:
        raise ValueError(f"{name}: expected shape {tuple(like.shape)}, got {tuple(tensor.shape)}")
    if tensor.dtype != torch.bool and bool(((tensor != 0) & (tensor != 1)).any()):
        raise ValueError(f"{name}: expected only 0 and 1")
    return tensor.to(device=like.device, dtype=torch.bool)


def _refuse_at(bad: Tensor, name: str, expected: str) -> None:
    if bool(bad.any()):
        row, column = (int(i) for i in bad.nonzero()[0])
        raise ValueError(f"{name}: expected {expected}, at row {row}, column {column}")
