"""What stands around a model: wrappers to look through, or weights that are not all here."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from pyfast.sketch._mode import walk


def unwrap(model: Any) -> Any:
    """Return the module inside DistributedDataParallel, DataParallel or torch.compile.

    Raises
    ------
    TypeError
        If it is no module.
    ValueError
        If its weights are sharded over processes, or offloaded.
    """
    while True:
        if isinstance(model, (DistributedDataParallel, DataParallel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):  # torch.compile's
            model = model._orig_mod
        else:
            break
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch module, got {type(model).__name__}")
    for module in walk(model):
        kind = type(module).__name__
        if kind == "FullyShardedDataParallel":
            _refuse("its weights are sharded (FullyShardedDataParallel)")
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if hasattr(parameter, "placements"):  # a DTensor
                _refuse(f"{name} of a {kind} is sharded (a DTensor: FSDP2 or tensor parallel)")
            if hasattr(parameter, "ds_id"):
                _refuse(f"{name} of a {kind} is sharded (DeepSpeed ZeRO-3)")
            if parameter.is_meta:
                _refuse(f"{name} of a {kind} is on the meta device (offloaded to memory or disk)")
    return model


def _refuse(why: str) -> None:
    raise ValueError(
        f"model: {why}; gradients of single responses need all weights in one process, on a device"
    )
