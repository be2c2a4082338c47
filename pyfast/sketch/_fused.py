"""Plain LoRA layers as one node of the graph that tells the factors of its gradients.

peft makes B A x, s B A x and the sum, each as large as the layer's output, and goes through them
again backward. Here the low-rank part is added in the product that makes it, both ways, and the
factors of A's and B's gradients are there without a hook of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

# tell(of_a, wide, narrow): of A's gradient, or else of B's, the factors (tokens, long) and (tokens,
# rank).
Tell = Callable[[bool, Tensor, Tensor], None]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_plain(layer: Any, adapter: str) -> bool:
    """Tell whether peft's forward pass of a layer is W x + s B A x and nothing that looks on."""
    from peft.tuners.lora import Linear

    if type(layer) is not Linear or list(layer.active_adapters) != [adapter]:
        return False
    own = layer.__dict__.get("forward")  # somebody's, unless it says that it is peft's
    if own is not None and not getattr(own, "same_as_peft", False):
        return False
    base, dropout = layer.base_layer, layer.lora_dropout[adapter]
    a, b = layer.lora_A[adapter], layer.lora_B[adapter]
    return (
        adapter not in layer.lora_variant
        and all(type(module) is nn.Linear for module in (base, a, b))
        and isinstance(dropout, (nn.Identity, nn.Dropout))  # at rate 0: check_ready
        and a.bias is None
        and b.bias is None
        and a.weight.dtype == b.weight.dtype == base.weight.dtype
        and not any(getattr(m, hooks) for m in (base, dropout, a, b) for hooks in _HOOKS)
        and not any("forward" in module.__dict__ for module in (base, dropout, a, b))
        and not torch.is_autocast_enabled(base.weight.device.type)
    )


class FusedLora(torch.autograd.Function):
    """y = W x + s B A x, frozen; ``tell`` hears the factors of dB, then those of dA, if wanted."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layer: Any, adapter: str, wanted: tuple[bool, bool], tell: Tell
    ) -> Tensor:
        a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        base, scale = layer.base_layer, layer.scaling[adapter]
        rows = x.flatten(0, -2)
        low = (rows @ a.t()).mul_(scale)
        # Not in place: selective checkpointing keeps what a product gives as it is.
        out = torch.addmm(nn.functional.linear(rows, base.weight, base.bias), low, b.t())
        ctx.save_for_backward(
            rows if wanted[0] else None, low if wanted[1] else None, base.weight, a, b
        )
        ctx.scale, ctx.tell = scale, tell
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        rows, low, weight, a, b = ctx.saved_tensors
        above = grad.flatten(0, -2)
        if low is not None:
            ctx.tell(False, above, low)
        grad_low = (above @ b).mul_(ctx.scale)
        if rows is not None:
            ctx.tell(True, rows, grad_low)
        grad_x = (above @ weight).addmm_(grad_low, a)
        return grad_x.view(*grad.shape[:-1], -1), None, None, None, None
