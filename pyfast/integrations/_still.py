"""Whether a model under an adapter is the one that was given, and stays so in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyfast.models.causal_lm import in_evaluation

_TOKENS = 8
_TAKING = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Values of LoRA's ``init_lora_weights`` that take from the weights what the adapter starts as."""


def row_logits(model: Any) -> Tensor:
    """Return a model's logits of one row."""
    embeddings = model.get_input_embeddings().weight
    tokens = torch.arange(1, _TOKENS + 1, device=embeddings.device) % embeddings.shape[0]
    logits: Tensor = model(input_ids=tokens[None], use_cache=False).logits
    return logits


def still_logits(model: Any, moving: Sequence[tuple[str, Any]]) -> Tensor:
    """Return a reference's logits of one row, or refuse it if they depend on what is trained.

    Parameters
    ----------
    model : module
        The reference, as it is switched now.
    moving : sequence of (name, parameter)
        What is trained.

    Raises
    ------
    ValueError
        If one of them has a part in the logits.
    """
    with torch.set_grad_enabled(bool(moving)):
        logits = row_logits(model)
    if moving and logits.requires_grad:
        slopes = torch.autograd.grad(
            logits.float().sum(), [p for _, p in moving], allow_unused=True
        )
        moved = [n for (n, _), s in zip(moving, slopes, strict=True) if s is not None]
        if moved:
            raise ValueError(
                "model: training would change the reference too, which has no copy of "
                f"{moved[0]}: train no biases of the model itself, or give the reference yourself"
            )
    return logits


def refuse_taken_weights(model: Any) -> None:
    """Refuse a peft model that is another one with its adapter off than before it had one.

    Raises
    ------
    ValueError
        If an active adapter's ``init_lora_weights`` has changed the weights under it.
    """
    for name in model.active_adapters:
        way = getattr(model.peft_config[name], "init_lora_weights", None)
        if isinstance(way, str) and way.lower().startswith(_TAKING):
            raise ValueError(
                f"model: init_lora_weights={way!r} has changed the weights under the adapter, so "
                "that with it off this is another model than it was: give the reference yourself"
            )


def check_adapter_off(model: Any) -> None:
    """Refuse a peft model as a reference, adapter off, that is or becomes another model.

    Raises
    ------
    ValueError
        As `refuse_taken_weights` and `still_logits`.
    """
    refuse_taken_weights(model)
    with in_evaluation(model), model.disable_adapter():
        still_logits(model, [(n, p) for n, p in model.named_parameters() if p.requires_grad])
