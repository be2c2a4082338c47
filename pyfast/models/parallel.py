"""Models of several processes: whose gradients are averaged, and whose are not."""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel


def refuse_outside_ddp(model: Any) -> None:
    """Refuse a pass with gradients through a model in DDP that does not go through DDP's forward.

    DDP prepares the averaging of gradients in its own forward pass. Without that each process goes
    on with its own model, and nothing says so.

    Raises
    ------
    ValueError
        If it would be so.
    """
    distributed = torch.distributed
    if not (torch.is_grad_enabled() and distributed.is_available()):
        return
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return
    if DistributedDataParallel._active_ddp_module is not None:
        return
    wrapped = {id(parameter) for parameter in _wrapped() if parameter.requires_grad}
    if any(id(parameter) in wrapped for parameter in model.parameters()):
        raise ValueError(
            "model: it is wrapped in DistributedDataParallel, which would not average these "
            "gradients: wrap pyfast.models.shared_prompt.GroupScorerModule(model) in it and call "
            "that"
        )


def _wrapped() -> list[torch.nn.Parameter]:
    """Return the parameters of all DDP modules alive: a module does not know what wraps it."""
    return [
        parameter
        for thing in gc.get_objects()
        if issubclass(type(thing), DistributedDataParallel)
        for parameter in thing.parameters()
    ]
