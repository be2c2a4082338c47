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
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

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


def layers_to_checkpoint(model: Any) -> list[torch.nn.Module]:
    """Return the layers of a model that `checkpointed` can make anew: transformers marks them.

    Parameters
    ----------
    model : transformers or peft model

    Raises
    ------
    ValueError
        If it has none.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    marked = [layer for layer in base.modules() if isinstance(layer, GradientCheckpointingLayer)]
    within = {id(part) for layer in marked for part in layer.modules() if part is not layer}
    layers: list[torch.nn.Module] = [layer for layer in marked if id(layer) not in within]
    if not layers or not getattr(base, "supports_gradient_checkpointing", False):
        raise ValueError(
            f"gradient_checkpointing: {type(base).__name__} does not support it, expected 'none'"
        )
    return layers


@contextlib.contextmanager
def checkpointed(layers: list[torch.nn.Module], how: str) -> Iterator[None]:
    """Checkpoint these layers in the forward passes, without a cache, of a `with` block.

    transformers does so in training mode alone, which in some models (OPT, Falcon, XGLM) switches
    dropout on in the layer itself. So their forwards are wrapped here, and no mode is changed.

    Parameters
    ----------
    layers : list of Module
        As `layers_to_checkpoint` returns them; none for "none".
    how : {"none", "full", "selective"}
    """
    settings = selective_checkpointing() if how == "selective" else {"use_reentrant": False}
    own = [vars(layer).get("forward") for layer in layers]  # where it is not the class's
    for layer in layers:
        vars(layer)["forward"] = functools.partial(_checkpoint, layer.forward, settings)
    try:
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            del vars(layer)["forward"]
            if forward is not None:
                vars(layer)["forward"] = forward


def _checkpoint(forward: Any, settings: dict[str, Any], *args: Any, **named: Any) -> Any:
    return checkpoint(functools.partial(forward, **named), *args, **settings)


def _keep(context: Any, operator: Any, *args: Any, **settings: Any) -> CheckpointPolicy:
    name = operator.__name__.partition(".")[0]
    large = name in _PRODUCTS and args[-1].shape[-2] > CHEAP_PRODUCT
    kept = large or name in _ATTENTION
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
