"""Whether a model is a causal language model, and what keeps it from being understood as one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyfast.models.causal_lm import CausalLM
from pyfast.sketch._randomness import DRAWS, who_draws


def check_kind(base: Any) -> None:
    head = getattr(base, "get_output_embeddings", None)
    if head is None or head() is None:
        raise TypeError(f"model: expected a causal language model, got {type(base).__name__}")


def causal_lm(model: Any, base: Any) -> CausalLM:
    try:
        return CausalLM(model)
    except ValueError as error:
        _refuse_noise(model, base, error)
        raise


@torch.no_grad()
def _refuse_noise(model: Any, base: Any, error: ValueError) -> None:
    """Say so where a head was not understood because no two passes give the same."""
    ids = torch.tensor([[0, 1]], device=base.get_input_embeddings().weight.device)

    def run() -> Tensor:
        logits: Tensor = base(input_ids=ids, use_cache=False).logits
        return logits

    try:
        first = run()
    except (AttributeError, TypeError, ValueError):  # what was said first tells more
        return
    # So many, because a layer that is seldom dropped gives the same several times running.
    if bool(first.isfinite().all()) and any(not torch.equal(first, run()) for _ in range(64)):
        raise ValueError(f"model: {who_draws(model, run)} {DRAWS}") from error
