"""What every training loop does with gradients: AdamW's learning rate, and no step into NaN."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from pyfast.train.errors import DivergedError


def adamw(parameters: Mapping[str, torch.Tensor], config: Any) -> torch.optim.AdamW:
    """Return AdamW over parameters by name; `config` has lr and weight_decay."""
    return torch.optim.AdamW(
        parameters.values(), config.lr, weight_decay=config.weight_decay, fused=True
    )


def take_step(
    optimiser: torch.optim.Optimizer,
    parameters: Mapping[str, torch.Tensor],
    lr: float,
    longest: float,
    what: str,
) -> float:
    """Clip the gradient to a length, take a step, and return how long the gradient was.

    Raises
    ------
    DivergedError
        If the gradient, or `what` is trained, is not finite.
    """
    for settings in optimiser.param_groups:
        settings["lr"] = lr
    norm = torch.nn.utils.clip_grad_norm_(parameters.values(), longest)
    check_finite("the gradient's norm", norm)  # clipping by it would make all NaN
    optimiser.step()
    check_finite(what, *parameters.values())
    return norm.item()


def learning_rate(config: Any, step: int, steps: int) -> float:
    """Return the learning rate of a step, from 0, of so many.

    Linear warm-up over the first ``w = ceil(warmup * steps)`` steps, lr (step + 1) / w; then a
    cosine from lr at step w down to min_lr_ratio * lr, which step `steps` would have.
    """
    warmup = math.ceil(config.warmup * steps)
    if step < warmup:
        return float(config.lr * (step + 1) / warmup)
    progress = (step - warmup) / (steps - warmup)
    low = config.min_lr_ratio
    return float(config.lr * (low + (1 - low) * (1 + math.cos(math.pi * progress)) / 2))


def check_finite(what: str, *values: torch.Tensor) -> None:
    """Refuse to go on with NaN or infinity."""
    finite = torch.stack([value.detach().isfinite().all() for value in values])
    if not finite.all():
        numbers = [value.detach() for value, fine in zip(values, finite, strict=True) if not fine]
        bad = numbers[0][~numbers[0].isfinite()].flatten()[0].item()
        raise DivergedError(f"{what} is {bad}")
