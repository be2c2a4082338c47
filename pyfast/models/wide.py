"""A model run in a wider number type than it is kept in, without a copy of its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

_HALVES = (torch.float16, torch.bfloat16)


class InFloat32(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every operation on half types is one on float32: its inputs are widened one by one.

    What a half type's rounding does to a model can so be told from what the model does. For
    forward passes without gradients.
    """

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run one operation on wide inputs."""
        if function is torch.ops.aten.embedding.default:  # rows first: a vocabulary is large
            return _wide(function(*args, **(kwargs or {})))
        if any(
            argument.alias_info is not None and argument.alias_info.is_write and _is_half(given)
            for argument, given in zip(function._schema.arguments, args, strict=False)
        ):
            return function(*args, **(kwargs or {}))  # it writes into memory of the model
        return function(*tree_map(_wide, args), **tree_map(_wide, kwargs or {}))


def _is_half(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in _HALVES


def _wide(value: Any) -> Any:
    if _is_half(value):
        return value.float()
    return torch.float32 if isinstance(value, torch.dtype) and value in _HALVES else value
