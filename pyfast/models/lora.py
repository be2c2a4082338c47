"""A LoRA layer as one node of the graph: W x + s B A x without tensors that last for nothing.

peft makes B A x, s B A x and the sum, each as large as the layer's output, and goes through them
again backward. Here the low-rank part is added in the product that makes it, both ways, and the
factors of A's and B's gradients are at hand for whoever wants these token by token.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyfast.losses.precision import as_given

Tell = Callable[[bool, Tensor, Tensor], None]
"""tell(of_a, wide, narrow): factors of A's gradient, or else of B's, (n, long) and (n, rank)."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_plain(layer: Any, adapter: str, *, now: bool = False) -> bool:
    """Tell whether peft's forward pass of a layer is W x + s B A x and nothing that looks on.

    It is not where there is dropout, unless it is asked about `now` and the layer is not training.
    """
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
        and not layer.merged
        and all(type(module) is nn.Linear for module in (base, a, b))
        and isinstance(dropout, (nn.Identity, nn.Dropout))
        and (getattr(dropout, "p", 0) == 0 or (now and not dropout.training))
        and a.bias is None
        and b.bias is None
        and not any(parameter.requires_grad for parameter in base.parameters())
        and a.weight.dtype == b.weight.dtype == base.weight.dtype
        and not any(getattr(m, hooks) for m in (base, dropout, a, b) for hooks in _HOOKS)
        and not any("forward" in module.__dict__ for module in (base, dropout, a, b))
        and not torch.is_autocast_enabled(base.weight.device.type)
    )


class LoraLinear(torch.autograd.Function):
    """y = W x + s B A x with W frozen; what backward does not need is not kept.

    ``tell``, if there is one, hears the factors of dB and then those of dA, as far as ``wanted`` =
    (of A, of B).
    """

    @staticmethod
    @as_given
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scale: float,
        tell: Tell | None = None,
        wanted: tuple[bool, bool] = (False, False),
    ) -> Tensor:
        """Return y, for x of any leading shape."""
        rows = x.flatten(0, -2)
        low = rows @ a.t()
        out = nn.functional.linear(rows, weight, bias)
        # Neither in place: selective checkpointing keeps what a product gives as it is.
        out = torch.addmm(out, low, b.t(), alpha=scale)
        keep_rows = wanted[0] or ctx.needs_input_grad[3]
        keep_low = wanted[1] or ctx.needs_input_grad[4]
        ctx.save_for_backward(rows if keep_rows else None, low if keep_low else None, weight, a, b)
        ctx.scale, ctx.tell, ctx.wanted = scale, tell, wanted
        # No view of what was made here: the caller may change it in place.
        shape = (*x.shape[:-1], out.shape[-1])
        return torch.ops.aten._unsafe_view(out, shape)  # type: ignore[no-any-return]

    @staticmethod
    @torch.autograd.function.once_differentiable
    @as_given
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Return the gradients of what needs one."""
        rows, low, weight, a, b = ctx.saved_tensors
        above = grad.flatten(0, -2)
        grad_low = (above @ b).mul_(ctx.scale)
        if ctx.wanted[1]:
            ctx.tell(False, above, low * ctx.scale)
        if ctx.wanted[0]:
            ctx.tell(True, rows, grad_low)
        grad_a = grad_low.t() @ rows if ctx.needs_input_grad[3] else None
        grad_b = (above.t() @ low).mul_(ctx.scale) if ctx.needs_input_grad[4] else None
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (above @ weight).addmm_(grad_low, a).view(*grad.shape[:-1], -1)
        return grad_x, None, None, grad_a, grad_b, None, None, None


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
