"""Whether the reference that TRL makes is the model as it was given, and stays so."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets.fingerprint import Hasher, generate_random_fingerprint
from torch import Tensor
from trl.trainer.utils import hash_module, use_adapter

from pyfast.integrations._still import row_logits, still_logits
from pyfast.models.causal_lm import in_evaluation

_EXACT, _HALF = 1e-3, 5e-2
"""How far logits may be apart, as a part of their length: in float32, and in half precision."""
_WHERE = ("_name_or_path", "transformers_version", "base_model_name_or_path", "revision")
"""What a configuration says of where a model is from."""


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
        return row_logits(model)


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
        logits = still_logits(judge, moving)
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


def what_scores(model: Any, collator: Any, *, logits: bool) -> tuple[str, ...]:
    """Return what tells by which model, and of which tokens, log-probs of a data set's rows are.

    Weights alone do not: of two models with the same, one may have another ``rope_theta``, cap
    logits elsewhere or scale its adapter otherwise, and a collator cuts rows.

    Parameters
    ----------
    model : module
    collator : callable
        Rows -> batch.
    logits : bool
        Whether a row may be read, for what neither weights nor configuration say.
    """
    configs = [model.config.to_dict()]
    configs += [adapter.to_dict() for adapter in getattr(model, "peft_config", {}).values()]
    said = [
        json.dumps({k: v for k, v in c.items() if k not in _WHERE}, sort_keys=True, default=str)
        for c in configs
    ]
    seen = probe(model) if logits else None
    if seen is not None:
        said.append(f"{seen.dtype} {Hasher.hash(seen.float().cpu().numpy().tobytes())}")
    try:
        cut = Hasher.hash(collator)
    except Exception:  # whatever cannot be pickled raises what it likes: then nothing is found
        cut = generate_random_fingerprint()
    return (hash_module(model), cut, *said)


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
