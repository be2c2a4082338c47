"""Whether the reference that TRL makes is the model as it was given, and stays so."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor
from trl.trainer.utils import use_adapter

from pyfast.models.causal_lm import in_evaluation

_TOKENS = 8
_EXACT, _HALF = 1e-3, 5e-2
"""How far logits may be apart, as a part of their length: in float32, and in half precision."""


def check_adapters(model: Any) -> None:
    """Refuse a peft model of which TRL would keep another adapter than the active one.

    TRL keeps a copy of the adapter that is called "default", whichever is active.

    Raises
    ------
    ValueError
        If that is not the one and only active adapter.
    """
    if not isinstance(model, torch.nn.Module) or not is_peft_model(model):
        return
    active = list(getattr(model, "active_adapters", []))
    if active != ["default"]:
        raise ValueError(
            "model: expected one active adapter, called 'default', which is what TRL keeps as the "
            f"reference; active are {', '.join(active) or 'none'}: fold them into the model "
            "(merge_and_unload), or give the reference yourself"
        )


def probe(model: Any) -> Tensor | None:
    """Return the logits of one row; None for a model that is not loaded yet or cannot say."""
    if not isinstance(model, torch.nn.Module):
        return None
    with in_evaluation(model), torch.no_grad():
        return _logits(model)


def starts_elsewhere(adapter: Any) -> bool:
    """Tell whether a new adapter is to change the model from the start."""
    return any(
        getattr(adapter, name, True) is False for name in ("init_lora_weights", "init_weights")
    )


def complete_copy(model: Any) -> None:
    """Copy all of the adapter "default" to the adapter "ref".

    TRL copies what has more of a name after the adapter's. Adapters of embeddings, IA3, VeRA, LoHa,
    LoKr and new tokens end with it, and keep the numbers that they were made with.
    """
    if not is_peft_model(model) or "ref" not in model.peft_config:
        return
    named = dict(model.named_parameters(remove_duplicate=False))
    named.update(model.named_buffers(remove_duplicate=False))
    with torch.no_grad():
        for name, value in named.items():
            parts = name.split(".")
            if "default" in parts:
                copy = named.get(".".join("ref" if p == "default" else p for p in parts))
                if copy is not None and copy.shape == value.shape:
                    copy.copy_(value)


def check_reference(model: Any, reference: Any, given: Tensor | None, *, half: bool) -> None:
    """Refuse a reference that is not the model as it was given, or that training would change.

    Parameters
    ----------
    model : module
        What is trained.
    reference : module or None
        What TRL keeps; by default the model with another adapter, or with none.
    given : Tensor, optional
        `probe` of the model as it was given.
    half : bool
        Whether something is computed in half precision.

    Raises
    ------
    ValueError
        If it is so.
    """
    with _as_reference(model, reference) as judge, in_evaluation(judge):
        moving = [(n, p) for n, p in judge.named_parameters() if p.requires_grad]
        moving = [] if reference is not None else [(n, p) for n, p in moving if not _kept(n)]
        with torch.set_grad_enabled(bool(moving)):
            logits = _logits(judge)
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
    if given is None:
        return
    apart = float((logits.detach().float().cpu() - given.float().cpu()).norm())
    apart /= max(float(given.float().norm()), 1e-30)
    if not apart <= (_HALF if half else _EXACT):
        raise ValueError(
            "model: the reference that TRL makes of it is another model than it was (its logits "
            f"are {apart:.1e} of their length apart): give the reference yourself, fold an adapter "
            "into the weights first, or save the model and load it again"
        )


def _kept(name: str) -> bool:
    """Tell whether a parameter is of the reference's adapter, which only looks trainable."""
    return "ref" in name.split(".")


@contextlib.contextmanager
def _as_reference(model: Any, reference: Any) -> Iterator[Any]:
    if reference is not None:
        yield reference
    elif is_peft_model(model):
        with use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None):
            yield model
    else:
        yield model


def _logits(model: Any) -> Tensor:
    embeddings = model.get_input_embeddings().weight
    tokens = torch.arange(1, _TOKENS + 1, device=embeddings.device) % embeddings.shape[0]
    logits: Tensor = model(input_ids=tokens[None], use_cache=False).logits
    return logits
