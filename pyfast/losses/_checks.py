"""What the named losses accept, and the errors that say what they do not.

Shapes, dtypes and devices are known on the host and cost nothing to check. Values live on the
device: they are folded into one flag, so that a call waits for the device once; only a call that
is going to fail looks for the place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from numbers import Real

import torch
from torch import Tensor

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.int32, torch.int64)


def check_number(name: str, value: float, *, zero: bool = False) -> None:
    """Require a finite number above 0, or from 0 on if `zero`."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    least = "at least 0" if zero else "greater than 0"
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{name} must be finite and {least}, got {value}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Require one of the named choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_groups(
    tensors: Mapping[str, Tensor], offsets: Tensor | None, *, size: int | None = None
) -> None:
    """Require finite float tensors of one layout and device, in groups of at least one response.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Argument names and values. The first sets the shape and the device for the others.
    offsets : Tensor or None
        Where the groups of a flat layout start and end; on the host or with the tensors.
    size : int, optional
        The exact number of responses that every group must have.
    """
    first = next(iter(tensors))
    for name, tensor in tensors.items():
        _check_tensor(name, tensor, _FLOATS, "a floating-point dtype")
        _check_same(name, tensor, first, tensors[first])
    values = tensors[first]
    _check_layout(first, values, offsets, size)

    flags = [torch.isfinite(tensor).all() for tensor in tensors.values()]
    if offsets is not None:
        flags.append(_offsets_hold(offsets, values.numel(), size).to(values.device))
    if not torch.stack(flags).all():
        if offsets is not None:
            _raise_for_offsets(offsets.tolist(), values.numel(), size)
        _raise_for_values(tensors, offsets)


def _check_tensor(name: str, value: object, dtypes: tuple[torch.dtype, ...], wanted: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{name} must have {wanted} ({names}), got {value.dtype}")


def _check_same(name: str, tensor: Tensor, first: str, model: Tensor) -> None:
    if tensor.shape != model.shape:
        raise ValueError(
            f"{name} must have the shape of {first} {tuple(model.shape)}, got {tuple(tensor.shape)}"
        )
    if tensor.device != model.device:
        raise ValueError(
            f"{name} must be on the device of {first} ({model.device}), got {tensor.device}"
        )


def _check_layout(name: str, values: Tensor, offsets: Tensor | None, size: int | None) -> None:
    shape = tuple(values.shape)
    if offsets is None:
        if values.dim() not in (1, 2):
            raise ValueError(f"{name} must be one group (n,) or a batch (B, n), got shape {shape}")
        if values.numel() == 0:
            raise ValueError(f"{name} must hold at least one response, got shape {shape}")
        if size is not None and shape[-1] != size:
            raise ValueError(f"{name} must have groups of exactly {size}, got shape {shape}")
        return
    if values.dim() != 1:
        raise ValueError(f"{name} must be flat (T,) when offsets are given, got shape {shape}")
    _check_tensor("offsets", offsets, _INTEGERS, "an integer dtype")
    if offsets.dim() != 1 or offsets.numel() < 2:
        raise ValueError(
            f"offsets must have shape (B+1,) with B at least 1, got {tuple(offsets.shape)}"
        )
    if offsets.device not in (values.device, torch.device("cpu")):
        raise ValueError(
            f"offsets must be on the CPU or the device of {name} ({values.device}), "
            f"got {offsets.device}"
        )


def _offsets_hold(offsets: Tensor, total: int, size: int | None) -> Tensor:
    """Say in one flag, without waiting for the device, whether the offsets are in order."""
    lengths = offsets.diff()
    fit = (lengths > 0) if size is None else (lengths == size)
    return fit.all() & (offsets[0] == 0) & (offsets[-1] == total)


def _raise_for_offsets(offsets: list[int], total: int, size: int | None) -> None:
    if offsets[0] != 0:
        raise ValueError(f"offsets must start at 0, got offsets[0] = {offsets[0]}")
    for group, (start, end) in enumerate(pairwise(offsets)):
        here = f"offsets[{group}] = {start} and offsets[{group + 1}] = {end}"
        if end < start:
            raise ValueError(f"offsets must not decrease, got {here}")
        if end == start:
            raise ValueError(f"offsets must leave no group empty, got group {group} with {here}")
        if size is not None and end - start != size:
            raise ValueError(
                f"offsets must make groups of exactly {size}, "
                f"got {end - start} responses in group {group}"
            )
    if offsets[-1] != total:
        raise ValueError(
            f"offsets must end at the number of responses ({total}), "
            f"got offsets[{len(offsets) - 1}] = {offsets[-1]}"
        )


def _raise_for_values(tensors: Mapping[str, Tensor], offsets: Tensor | None) -> None:
    for name, tensor in tensors.items():
        bad = (~torch.isfinite(tensor)).reshape(-1).nonzero()
        if bad.numel() == 0:
            continue
        index = int(bad[0])
        if offsets is None:
            group, position = divmod(index, tensor.shape[-1])
        else:
            group = int((offsets <= index).sum()) - 1
            position = index - int(offsets[group])
        raise ValueError(
            f"{name} must be finite, got {tensor.reshape(-1)[index].item()} in group {group}, "
            f"position {position} (leave a response without a value out of its group)"
        )
