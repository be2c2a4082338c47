"""LoRA layers as one node of the graph: W x + s B A x without tensors that last for nothing.

peft makes B A x, s B A x and the sum, each as large as the layer's output, and goes through them
again backward. Here the low-rank part is added in the product that makes it, both ways.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor


def fuse(model: Any) -> None:
    """Replace the forward pass of a peft model's LoRA layers, where it does no more than this.

    Parameters
    ----------
    model : peft model
        With one adapter. Layers with dropout, DoRA or another variant, or whose adapter has another
        number type than the weight, keep peft's forward pass; so does a layer while its adapter is
        merged, or while there are hooks on its A or B, such as `pyfast.sketch`'s.
    """
    from peft.tuners.lora import Linear

    for layer in model.modules():
        if isinstance(layer, Linear) and _is_plain(layer):
            layer.forward = types.MethodType(_forward, layer)


def _is_plain(layer: Any) -> bool:
    (name,) = layer.active_adapters
    return (
        type(layer.base_layer) is torch.nn.Linear
        and isinstance(layer.lora_dropout[name], torch.nn.Identity)
        and not layer.lora_bias[name]
        and name not in layer.lora_variant
        and layer.lora_A[name].weight.dtype == layer.base_layer.weight.dtype
    )


def _forward(layer: Any, x: Tensor) -> Tensor:
    if layer.disable_adapters:
        return layer.base_layer(x)  # type: ignore[no-any-return]
    (name,) = layer.active_adapters
    a, b, base = layer.lora_A[name], layer.lora_B[name], layer.base_layer
    hooked = any(part._forward_hooks or part._forward_pre_hooks for part in (a, b))
    if layer.merged or hooked:
        return type(layer).forward(layer, x)  # type: ignore[no-any-return]
    return _LoraLinear.apply(  # type: ignore[no-any-return, no-untyped-call]
        x, base.weight, base.bias, a.weight, b.weight, layer.scaling[name]
    )


_forward.same_as_peft = True  # type: ignore[attr-defined]  # pyfast.sketch may take its place


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scale: float,
    ) -> Tensor:
        rows = x.flatten(0, -2)
        low = rows @ a.t()
        out = torch.nn.functional.linear(rows, weight, bias)
        # Not in place: selective checkpointing keeps `out` as it is.
        out = torch.addmm(out, low, b.t(), alpha=scale)
        ctx.save_for_backward(rows, low, weight, a, b)
        ctx.scale = scale
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        rows, low, weight, a, b = ctx.saved_tensors
        above = grad.flatten(0, -2)
        grad_low = (above @ b).mul_(ctx.scale)
        grad_a, grad_b = grad_low.t() @ rows, (above.t() @ low).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (above @ weight).addmm_(grad_low, a).view(*grad.shape[:-1], -1)
        return grad_x, None, None, grad_a, grad_b, None
