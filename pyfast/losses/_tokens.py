"""Which tokens are scored, and how their values come together by sequence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyfast.losses._checks import FLOATS, check_offsets, check_order
from pyfast.losses.reference import Groups

IGNORED = -100


@dataclass(frozen=True, eq=False)
class ScoredTokens:
    """The scored tokens of a batch.

    Attributes
    ----------
    index : Tensor
        (n,) int64, their places in the flattened labels.
    labels : Tensor
        (n,) int64, their labels.
    shape : tuple of int
        The shape of all labels.
    offsets : Tensor or None
        Where the sequences of a flat layout start and end.
    """

    index: Tensor
    labels: Tensor
    shape: tuple[int, ...]
    offsets: Tensor | None

    def place(self, values: Tensor) -> Tensor:
        """Put values (n,) in their places, with 0 elsewhere: the shape of the labels."""
        flat = values.new_zeros(self.shape).reshape(-1)
        return flat.index_copy(0, self.index, values).reshape(self.shape)

    def total(self, values: Tensor) -> Tensor:
        """Sum values (n,) by sequence: () for one, else (B,)."""
        placed = self.place(values)
        if self.offsets is None:
            return placed.sum(-1)
        if placed.dtype == torch.float32 and placed.device.type != "mps":  # has no float64
            placed = placed.double()  # added one by one, thousands would lose digits in float32
        return Groups.of(placed, self.offsets).sum(placed).to(values.dtype)


def check_head(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, mask: Tensor | None
) -> None:
    """Check types, shapes and devices: all that is known without looking at values."""
    named = {"hidden": hidden, "head_weight": weight, "head_bias": bias}
    for name, tensor in named.items():
        if tensor is None and name == "head_bias":
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.dtype not in FLOATS:
            raise TypeError(f"{name} must have a floating-point dtype, got {tensor.dtype}")
        if tensor.device != hidden.device:
            raise ValueError(
                f"{name} must be on the device of hidden ({hidden.device}), got {tensor.device}"
            )
    shape = tuple(hidden.shape)
    if hidden.dim() not in (2, 3) or shape[-1] == 0:
        raise ValueError(f"hidden must have shape (B, L, H), (L, H) or (T, H), got {shape}")
    if weight.dim() != 2 or weight.shape[1] != shape[-1] or weight.shape[0] == 0:
        raise ValueError(f"head_weight must have shape (V, {shape[-1]}), got {tuple(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"head_bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    for name, given in {"labels": labels, "mask": mask}.items():
        if given is None and name == "mask":
            continue
        if not isinstance(given, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(given).__name__}")
        if (
            given.is_floating_point()
            or given.is_complex()
            or (name, given.dtype)
            == (
                "labels",
                torch.bool,
            )
        ):
            wanted = "integers" if name == "labels" else "bool or integers"
            raise TypeError(f"{name} must hold {wanted}, got {given.dtype}")
        if given.shape != hidden.shape[:-1]:
            raise ValueError(
                f"{name} must have the shape of hidden without its last axis {shape[:-1]}, "
                f"got {tuple(given.shape)}"
            )
        if given.device != hidden.device:
            raise ValueError(
                f"{name} must be on the device of hidden ({hidden.device}), got {given.device}"
            )


def scored_tokens(
    labels: Tensor, mask: Tensor | None, offsets: Tensor | None, vocabulary: int, *, validate: bool
) -> ScoredTokens:
    """List the scored tokens, after a look at their labels and at the offsets."""
    if offsets is not None:
        check_offsets("labels", labels, offsets)
        if validate:
            check_order(offsets, labels.numel(), "tokens", least=0)
    labels = labels.long()  # -100 is 156 to a uint8
    scored = labels != IGNORED if mask is None else mask != 0
    index = scored.reshape(-1).nonzero().squeeze(1)
    found = labels.reshape(-1)[index]
    if validate:
        bad = (found < 0) | (found >= vocabulary)
        if bad.any():
            place = int(index[bad.nonzero()[0]])
            where = divmod(place, labels.shape[-1]) if labels.dim() == 2 else place
            raise ValueError(
                f"labels must be from 0 to {vocabulary - 1} where scored, "
                f"got {int(labels.reshape(-1)[place])} at {where}"
            )
    return ScoredTokens(index, found, tuple(labels.shape), offsets)
