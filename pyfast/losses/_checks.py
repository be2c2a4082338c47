"""What the named losses accept, and the errors that say what they do not.

Shapes, dtypes and devices are known on the host and cost nothing to check. Values live on the
device: they are folded into one flag, so that a call waits for the device once, and not at all with
``validate=False`` or where values are out of sight; only a call that fails looks for the place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from numbers import Real

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.int32, torch.int64)


def out_of_sight() -> bool:
    """Tell whether nobody can look at values: inside torch.compile and torch.func.vmap."""
    if torch.compiler.is_compiling():
        return True
    transforms = torch._C._functorch.get_interpreter_stack() or ()
    return any(one.key() == torch._C._functorch.TransformType.Vmap for one in transforms)


def check_number(
    name: str, value: float, *, zero: bool = False, below: float = math.inf, signed: bool = False
) -> None:
    """Require a finite number above 0, or from 0 on if `zero`, or any if `signed`."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if signed:
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
        return
    least = "at least 0" if zero else "greater than 0"
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero) or value >= below:
        most = "" if below == math.inf else f" and less than {below}"
        raise ValueError(f"{name} must be finite and {least}{most}, got {value}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Require one of the named choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_groups(
    tensors: Mapping[str, Tensor],
    positive: Mapping[str, Tensor],
    offsets: Tensor | None,
    size: int | None = None,
) -> None:
    """Require float tensors of one layout and device, in groups of at least one response.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Argument names and values. The first sets the shape and the device for the others.
    positive : mapping of str to Tensor
        More of the same, of integers too, whose values must lie above 0.
    offsets : Tensor or None
        Where the groups of a flat layout start and end; on the host or with the tensors.
    size : int, optional
        The exact number of responses that every group must have.
    """
    first = next(iter(tensors))
    for name, tensor in tensors.items():
        _check_tensor(name, tensor, FLOATS, "a floating-point dtype")
        _check_same(name, tensor, first, tensors[first])
    for name, tensor in positive.items():
        _check_tensor(name, tensor, FLOATS + _INTEGERS, "a number dtype")
        _check_same(name, tensor, first, tensors[first])
    _check_layout(first, tensors[first], offsets, size)


def check_values(
    tensors: Mapping[str, Tensor],
    positive: Mapping[str, Tensor],
    offsets: Tensor | None,
    size: int | None = None,
    sums: Sequence[Tensor] = (),
) -> None:
    """Require finite values, above 0 where `positive`, and offsets in order.

    The host waits for the device once. Arguments as in :func:`check_groups`; `sums` are what is
    added up in place of the tensors, where that tells as much.
    """
    if out_of_sight():
        return
    # A sum is finite where all its terms are, or it overflows: then the slow way finds nothing.
    total = _total(sums or [*tensors.values(), *positive.values()])
    wrong = total - total  # 0 or NaN, which counts as true
    for tensor in positive.values():
        wrong = wrong + (tensor <= 0).any()
    if offsets is not None:
        responses = next(iter(tensors.values()))
        unfit = _offsets_unfit(offsets, responses.numel(), 1, size)
        wrong = wrong + unfit.to(responses.device)
    if wrong:
        if offsets is not None:
            _raise_for_offsets(offsets.tolist(), responses.numel(), "responses", 1, size)
        _raise_for_values({**tensors, **positive}, offsets)
        _raise_for_sign(positive, offsets)


def _total(tensors: Sequence[Tensor]) -> Tensor:
    """Add up all values, wide enough that sums of half types do not overflow."""
    total = None
    for tensor in tensors:
        half = tensor.dtype in (torch.float16, torch.bfloat16)
        part = tensor.detach().sum(dtype=torch.float32 if half else None)
        total = part if total is None else total + part
    assert total is not None
    return total


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
    check_offsets(name, values, offsets)


def check_offsets(name: str, values: Tensor, offsets: Tensor) -> None:
    """Require flat values and, for where their groups start and end, a tensor that can say so."""
    if values.dim() != 1:
        shape = tuple(values.shape)
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


def check_order(offsets: Tensor, total: int, of: str, least: int) -> None:
    """Require offsets of groups of at least `least` of `total` things; the host waits."""
    if _offsets_unfit(offsets, total, least):
        _raise_for_offsets(offsets.tolist(), total, of, least)


def _offsets_unfit(offsets: Tensor, total: int, least: int, size: int | None = None) -> Tensor:
    """Say in one flag, without waiting for the device, whether the offsets are out of order."""
    lengths = offsets.diff()
    unfit = (lengths < least) if size is None else (lengths != size)
    return unfit.any() | (offsets[0] != 0) | (offsets[-1] != total)


def _raise_for_offsets(
    offsets: list[int], total: int, of: str, least: int, size: int | None = None
) -> None:
    if offsets[0] != 0:
        raise ValueError(f"offsets must start at 0, got offsets[0] = {offsets[0]}")
    for group, (start, end) in enumerate(pairwise(offsets)):
        here = f"offsets[{group}] = {start} and offsets[{group + 1}] = {end}"
        if end < start:
            raise ValueError(f"offsets must not decrease, got {here}")
        if end - start < least:
            raise ValueError(f"offsets must leave no group empty, got group {group} with {here}")
        if size is not None and end - start != size:
            raise ValueError(
                f"offsets must make groups of exactly {size}, "
                f"got {end - start} {of} in group {group}"
            )
    if offsets[-1] != total:
        raise ValueError(
            f"offsets must end at the number of {of} ({total}), "
            f"got offsets[{len(offsets) - 1}] = {offsets[-1]}"
        )


def _raise_for_values(tensors: Mapping[str, Tensor], offsets: Tensor | None) -> None:
    """Name the first value that is not finite; pass where there is none."""
    for name, tensor in tensors.items():
        bad = ~torch.isfinite(tensor)
        if bad.any():
            value, place = _first(tensor, bad, offsets)
            raise ValueError(
                f"{name} must be finite, got {value} in {place} "
                "(leave a response without a value out of its group)"
            )


def check_not_negative(
    name: str, tensor: Tensor, offsets: Tensor | None, *, values: bool = True
) -> None:
    """Require values from 0 on; the host waits for the device unless told not to look."""
    if values and not out_of_sight() and (tensor < 0).any():
        value, place = _first(tensor, tensor < 0, offsets)
        raise ValueError(f"{name} must be at least 0, got {value} in {place}")


def check_at_most(
    name: str, tensor: Tensor, most: float, offsets: Tensor | None, *, values: bool = True
) -> None:
    """Require values up to `most`; the host waits for the device unless told not to look."""
    if values and not out_of_sight() and (tensor > most).any():
        value, place = _first(tensor, tensor > most, offsets)
        raise ValueError(f"{name} must be at most {most}, got {value} in {place}")


def check_one_a_group(
    name: str, tensor: Tensor, shape: torch.Size, responses: Tensor, *, values: bool = True
) -> None:
    """Require a finite value for each group; the host waits for the device unless told not to."""
    _check_tensor(name, tensor, FLOATS, "a floating-point dtype")
    if tensor.shape != shape:
        raise ValueError(
            f"{name} must hold one value for each of {shape.numel()} groups in shape "
            f"{tuple(shape)}, got shape {tuple(tensor.shape)}"
        )
    if tensor.device != responses.device:
        raise ValueError(
            f"{name} must be on the device of policy_logps ({responses.device}), "
            f"got {tensor.device}"
        )
    if values and not out_of_sight() and not torch.isfinite(tensor).all():
        flat = tensor.reshape(-1)
        group = int((~torch.isfinite(flat)).nonzero()[0])
        raise ValueError(f"{name} must be finite, got {flat[group].item()} in group {group}")


def check_one_number(name: str, tensor: Tensor, responses: Tensor, *, values: bool = True) -> None:
    """Require a tensor of one finite number from 0 on; the host waits unless told not to look."""
    _check_tensor(name, tensor, FLOATS + _INTEGERS, "a number dtype")
    if tensor.numel() != 1:
        raise ValueError(f"{name} must be one number, got shape {tuple(tensor.shape)}")
    if tensor.device not in (responses.device, torch.device("cpu")):
        raise ValueError(
            f"{name} must be on the CPU or the device of policy_logps ({responses.device}), "
            f"got {tensor.device}"
        )
    if values and not out_of_sight():
        check_number(name, tensor.item(), zero=True)


def check_mask(name: str, mask: Tensor, responses: Tensor) -> None:
    """Require a boolean tensor with a value for each response."""
    _check_tensor(name, mask, (torch.bool,), "a boolean dtype")
    _check_same(name, mask, "policy_logps", responses)


def check_valid(valid: Tensor, responses: Tensor, starts: Tensor, *, values: bool = True) -> None:
    """Require a mask of responses that holds the first of every group."""
    check_mask("valid", valid, responses)
    if values and not out_of_sight():
        first = valid.reshape(-1)[starts]
        if not first.all():
            group = int((~first).nonzero()[0])
            raise ValueError(
                f"valid must hold the first response of every group, not so in {group}"
            )


def _raise_for_sign(tensors: Mapping[str, Tensor], offsets: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if (tensor <= 0).any():
            value, place = _first(tensor, tensor <= 0, offsets)
            raise ValueError(f"{name} must be greater than 0, got {value} in {place}")


def _first(tensor: Tensor, bad: Tensor, offsets: Tensor | None) -> tuple[float, str]:
    """Return the first marked value, and where it lies."""
    index = int(bad.reshape(-1).nonzero()[0])
    if offsets is None:
        group, position = divmod(index, tensor.shape[-1])
    else:
        group = int((offsets <= index).sum()) - 1
        position = index - int(offsets[group])
    return tensor.reshape(-1)[index].item(), f"group {group}, position {position}"
