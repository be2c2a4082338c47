"""Rotary embeddings that depend on the longest position of a call, and how to keep them apart.

Phi-3's longrope takes another set of frequencies as soon as one position of a call is beyond its
original length; dynamic NTK makes new ones for the longest position that it has seen, and keeps
them for a while. So what stands beside a response in a call would change its log-probability, and
so would its own last token. Here each sequence has a *regime*, the same for all that may stand in
one call with it: the one that the model takes when it reads the sequence alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Regime = Callable[[int], int]
"""regime(tokens of prompt and response) -> a number; 0 for short ones."""


def find_regime(backbone: Any, config: Any) -> Regime | None:
    """Return the regime of each length, or None if the model knows no such thing."""
    kinds = {kind for module in backbone.modules() for kind in _kinds(module)}
    if not any("dynamic" in kind or kind == "longrope" for kind in kinds):
        return None
    switches = sorted(_switches(config))

    def regime(length: int) -> int:
        past = sum(length > switch for switch in switches)
        if any("dynamic" in kind for kind in kinds) and length >= min(switches, default=0):
            return length  # frequencies of its own
        return past

    return regime


def forget(backbone: Any, device: torch.device) -> None:
    """Have dynamic frequencies forget the longest call so far: a short one does that."""
    with torch.no_grad():
        backbone(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)


def _kinds(module: Any) -> list[str]:
    kind = getattr(module, "rope_type", None)
    if isinstance(kind, dict):
        kind = list(kind.values())
    return [name for name in (kind if isinstance(kind, list) else [kind]) if isinstance(name, str)]


def _switches(config: Any) -> set[int]:
    """Return every length at which a model of this configuration may change its frequencies."""
    found = set()
    rope = getattr(config, "rope_parameters", None) or {}
    parts = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    for part in parts:
        found.add(part.get("original_max_position_embeddings"))
    for name in ("original_max_position_embeddings", "max_position_embeddings"):
        found.add(getattr(config, name, None))
    return {int(length) for length in found if isinstance(length, int)}
