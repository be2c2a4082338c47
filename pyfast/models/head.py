"""Whether a model's logits are its head times its hidden states, capped and scaled as is known.

The model itself runs, and its head is listened to: what goes in must be the backbone's last hidden
states, and what comes out of the model must be what is known to follow the head. That is tried on
logits of all sizes put in the place of the head's: a cap at 30 hardly shows on those of a few
tokens, nor does a factor near 1.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pyfast.models.causal_lm import CausalLM

_LINEAR_FORWARD = torch.nn.Linear.forward
TOKENS = 8
LARGEST = 3e4  # of the logits tried: float16 holds it


def is_plain(head: Any) -> bool:
    """Tell whether a head is W h + b and nothing else: no subclass, hook, or forward of its own."""
    return (
        type(head) is torch.nn.Linear
        and torch.nn.Linear.forward is _LINEAR_FORWARD
        and "forward" not in vars(head)
        and not (head._forward_hooks or head._forward_pre_hooks)
        and not (head._backward_hooks or head._backward_pre_hooks)
        and all(
            part is None or type(part) in (torch.nn.Parameter, Tensor)
            for part in (head.weight, head.bias)
        )
        and type(head.weight.data) is Tensor
        and head.weight.dtype.is_floating_point
    )


@dataclass
class _Heard:
    """What was heard while the model ran."""

    hidden: Tensor | None = None  # into the head
    logits: Tensor | None = None  # out of the head
    type: torch.dtype | None = None  # of the autocast that the backbone ran in


@contextlib.contextmanager
def _listening(lm: CausalLM, instead: Tensor | None = None) -> Iterator[_Heard]:
    """Listen to head and backbone, and put other logits in the place of the head's."""
    heard, kind = _Heard(), lm.device.type

    def into_backbone(*_: Any) -> None:
        if torch.is_autocast_enabled(kind):
            heard.type = torch.get_autocast_dtype(kind)

    def into_head(_: Any, inputs: Any, named: Any) -> None:
        heard.hidden = inputs[0] if inputs else next(iter(named.values()))

    def out_of_head(_module: Any, _inputs: Any, logits: Tensor) -> Tensor | None:
        heard.logits = logits
        return instead

    handles = [
        lm.backbone.register_forward_pre_hook(into_backbone),
        lm.head.register_forward_pre_hook(into_head, prepend=True, with_kwargs=True),
        lm.head.register_forward_hook(out_of_head),
    ]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def check_head(lm: CausalLM) -> tuple[torch.dtype | None, int]:
    """Refuse a model whose logits are not what `lm.logits` makes of its hidden states.

    Parameters
    ----------
    lm : CausalLM
        In evaluation mode, without gradients.

    Returns
    -------
    torch.dtype or None
        The type of the autocast that the model's own forward pass brings, if it does.
    int
        How many tokens it scores.

    Raises
    ------
    ValueError
        If there is no head, or the logits are something else.
    """
    name = type(lm.base).__name__
    if lm.head is None:
        raise ValueError(f"model: {name} has no head that gives logits")
    if not getattr(lm.base.config, "return_dict", True):
        raise ValueError(f"model: {name} gives bare tuples; set model.config.return_dict = True")
    size = lm.base.get_input_embeddings().weight.shape[0]
    tokens = (torch.arange(1, TOKENS + 1, device=lm.device) % size)[None]
    with _listening(lm) as heard, _outside_autocast(lm):
        theirs = _logits(lm, tokens)
    with torch.autocast(lm.device.type, heard.type) if heard.type else _outside_autocast(lm):
        output = lm.backbone(input_ids=tokens, use_cache=False)
    hidden = getattr(output, "last_hidden_state", None)
    if hidden is None:
        raise ValueError(f"model: {name} does not give its last hidden states")
    if heard.hidden is None or heard.logits is None:
        raise ValueError(f"model: {name} makes its logits without the head that it names")
    if not bool(torch.isfinite(theirs).all()):
        _refuse_not_finite(lm, name)
    _check_before(name, hidden, heard.hidden)
    _check_after(lm, name, tokens, heard.logits)
    _check_itself(lm, name, hidden, theirs, heard.type)
    return heard.type, theirs.shape[-1]


def _outside_autocast(lm: CausalLM) -> contextlib.AbstractContextManager[Any]:
    kind = lm.device.type
    if not torch.is_autocast_enabled(kind):
        return contextlib.nullcontext()
    return torch.autocast(kind, enabled=False)


def _logits(lm: CausalLM, tokens: Tensor) -> Tensor:
    """Run all of the model: what stands around it (peft, accelerate) may change what comes out."""
    model = getattr(lm.model, "_orig_mod", lm.model)  # nothing is compiled for a look
    logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits


def _refuse_not_finite(lm: CausalLM, name: str) -> None:
    bad = [n for n, p in lm.model.named_parameters() if not bool(torch.isfinite(p).all())]
    where = f"; the first of its parameters that is not is {bad[0]}" if bad else ""
    raise ValueError(f"model: the logits of {name} are not finite{where}")


def _check_before(name: str, ours: Tensor, theirs: Tensor) -> None:
    """Compare the backbone's states with those that go into the head."""
    allowed = 4 * max(torch.finfo(states.dtype).eps for states in (ours, theirs))
    near = ours.shape == theirs.shape and _distance(ours, theirs) <= allowed
    if not near:
        raise ValueError(
            f"model: {name} changes its hidden states before the head in a way that is not "
            "supported"
        )


def _check_after(lm: CausalLM, name: str, tokens: Tensor, like: Tensor) -> None:
    """Compare what follows the head, on logits of all sizes and both signs, in float32."""
    generator = torch.Generator().manual_seed(0)
    draw = torch.rand(like.shape, generator=generator, dtype=torch.float64)
    size = LARGEST * 10 ** (-7 * torch.rand(like.shape, generator=generator, dtype=torch.float64))
    instead = torch.where(draw < 0.5, -size, size).float().to(like.device)
    with _listening(lm, instead), _outside_autocast(lm):
        theirs = _logits(lm, tokens)
    ours = lm.after_head(instead)
    # The model may cap and scale in its own type, with a rounding at each step.
    allowed = max(1e-5, 4 * torch.finfo(theirs.dtype).eps)
    near = ours.shape == theirs.shape and torch.allclose(
        ours, theirs.float(), rtol=allowed, atol=allowed * LARGEST * 1e-6
    )
    if not near:
        raise ValueError(
            f"model: {name} changes its logits after the head in a way that is not supported"
        )


def _check_itself(
    lm: CausalLM, name: str, hidden: Tensor, theirs: Tensor, autocast: torch.dtype | None
) -> None:
    """Compare the logits themselves, made of the same hidden states."""
    ours, types = lm.logits(hidden), [torch.float32, hidden.dtype, theirs.dtype]
    weight = getattr(lm.head, "weight", None)
    if isinstance(weight, Tensor) and weight.dtype.is_floating_point:
        types.append(weight.dtype)
    if autocast is not None:
        types.append(autocast)
    coarsest = max(torch.finfo(dtype).eps for dtype in types)
    scale = float(ours.double().square().mean().sqrt())
    error = float((ours.double() - theirs.double()).abs().max())
    if not error <= 32 * coarsest * max(scale, 1e-30):
        raise ValueError(
            f"model: {name} makes other logits of its hidden states than its head does"
        )


def _distance(one: Tensor, other: Tensor) -> float:
    """Return how far states are apart, as a part of their length."""
    wide = other.double()
    return float((one.double() - wide).norm() / wide.norm().clamp(min=1e-300))
