"""What a model is, in a few digests: its weights' bytes, its settings, its tokenizer."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from pyfast.train.files import to_json

NO_MATTER = {"_name_or_path", "transformers_version", "use_cache"}
"""Settings of a model that change no number: where it lay, who wrote it, and a cache."""


def of(model: Any, tokenizer: Any) -> dict[str, str]:
    """Return the SHA-256, in hexadecimal, of what a model computes with.

    Parameters
    ----------
    model : transformers model
        Adapters that are switched on and off (LoRA) are left out.
    tokenizer : transformers tokenizer

    Returns
    -------
    dict of str to str
        ``"weights"``: names, types, shapes and bytes. ``"settings"``: the configuration but
        `NO_MATTER`. ``"tokenizer"``: vocabulary, rules and chat template.
    """
    settings = json.loads(
        model.config.to_json_string(use_diff=False),
        object_pairs_hook=lambda pairs: {k: v for k, v in pairs if k not in NO_MATTER},
    )
    weights = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if ".lora_" in name:
            continue
        weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        numbers = tensor.detach().contiguous().cpu().flatten()
        weights.update(memoryview(numbers.view(torch.uint8).numpy()))
    return {
        "weights": weights.hexdigest(),
        "settings": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        "tokenizer": hashlib.sha256(_rules(tokenizer).encode()).hexdigest(),
    }


def _rules(tokenizer: Any) -> str:
    """Return what a tokenizer does as text; padding and truncation are the call's."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {}
    kept = {key: value for key, value in rules.items() if key not in ("padding", "truncation")}
    vocabulary = sorted(tokenizer.get_vocab().items())
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return to_json([vocabulary, kept, special, str(tokenizer.chat_template)])
