"""What a forward pass keeps for the backward pass: gradient checkpointing, whole or selective.

Full checkpointing keeps the input of each layer and makes everything else anew, for one more
forward pass. Most of that time goes into products with the frozen weights and into attention;
selective checkpointing keeps what those give, and makes anew what is cheap to make: norms, rotary
embeddings, gates, the small products of LoRA.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

CHEAP_PRODUCT = 64
"""Products over at most so many numbers are made anew: a LoRA rank, the width of a head."""

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
_ATTENTION = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)


def selective_checkpointing() -> dict[str, Any]:
    """Return what makes gradient checkpointing selective, for any transformers model.

    Returns
    -------
    dict
        The keyword arguments of ``torch.utils.checkpoint.checkpoint`` that keep large products and
        attention, and make everything else anew in the backward pass.

    Examples
    --------
    ``model.gradient_checkpointing_enable(selective_checkpointing())``
    """
    contexts = functools.partial(create_selective_checkpoint_contexts, _keep)
    return {"use_reentrant": False, "context_fn": contexts}


def enable(model: Any, how: str) -> list[torch.nn.Module]:
    """Switch gradient checkpointing on, in a model that is in evaluation mode.

    Parameters
    ----------
    model : transformers or peft model
    how : {"none", "full", "selective"}

    Returns
    -------
    list of Module
        The layers that are checkpointed while they are in training mode (`checkpointed`).
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    if how == "none":
        return []
    settings = selective_checkpointing() if how == "selective" else {"use_reentrant": False}
    base = model.get_base_model()
    # transformers has renamed it
    named = getattr(base, "activation_checkpointing_enable", base.gradient_checkpointing_enable)
    named(settings)
    return [layer for layer in base.modules() if isinstance(layer, GradientCheckpointingLayer)]


@contextlib.contextmanager
def checkpointed(layers: list[torch.nn.Module]) -> Iterator[None]:
    """Checkpoint these layers in the forward passes of a `with` block.

    transformers does so in training mode alone. The layers themselves are switched to it, not what
    is in them: there is no dropout.
    """
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False


def _keep(context: Any, operator: Any, *args: Any, **settings: Any) -> CheckpointPolicy:
    name = operator.__name__.partition(".")[0]
    large = name in _PRODUCTS and args[-1].shape[-2] > CHEAP_PRODUCT
    kept = large or name in _ATTENTION
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
