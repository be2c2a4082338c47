"""The policy's LoRA layers as one node of the graph each (`pyfast._lora`)."""

from __future__ import annotations

import types
from typing import Any

from torch import Tensor

from pyfast._lora import LoraLinear, is_plain


def fuse(model: Any) -> None:
    """Replace the forward pass of a peft model's LoRA layers, where it does no more than this.

    Parameters
    ----------
    model : peft model
        With one adapter. Layers with dropout, DoRA or another variant, or whose adapter has another
        number type than the weight, keep peft's forward pass; so does a layer while its adapter is
        merged, or while there are hooks on what is in it, such as `pyfast.sketch`'s.
    """
    from peft.tuners.lora import Linear

    for layer in model.modules():
        if isinstance(layer, Linear) and is_plain(layer, layer.active_adapters[0]):
            layer.forward = types.MethodType(_forward, layer)


def _forward(layer: Any, x: Tensor) -> Tensor:
    if layer.disable_adapters and not layer.merged:
        return layer.base_layer(x)  # type: ignore[no-any-return]
    name = layer.active_adapters[0]
    if not is_plain(layer, name):
        return type(layer).forward(layer, x)  # type: ignore[no-any-return]
    a, b, base = layer.lora_A[name], layer.lora_B[name], layer.base_layer
    return LoraLinear.apply(  # type: ignore[no-any-return, no-untyped-call]
        x, base.weight, base.bias, a.weight, b.weight, layer.scaling[name]
    )


_forward.same_as_peft = True  # type: ignore[attr-defined]  # pyfast.sketch may take its place
