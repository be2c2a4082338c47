"""What gradients depend on, in named parts, so that a refusal can say what has changed."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyfast.models.causal_lm import base_of
from pyfast.sketch._batches import Response
from pyfast.sketch._collector import LoraGradients
from pyfast.sketch._parts import lora_layers

_WHOLE = 1 << 20  # numbers up to which all bytes of a tensor are digested
_SAMPLE = 1 << 16  # of a larger one: so many, and a checksum over all of them
_BLOCK = 1 << 24  # numbers that are looked at at a time

# What a configuration holds beside what a gradient depends on.
_NOT_MATHEMATICS = {
    "_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "architectures",
    "auto_map", "tokenizer_class", "use_cache", "return_dict", "output_attentions",
    "output_hidden_states", "id2label", "label2id", "problem_type", "bos_token_id", "eos_token_id",
    "torch_dtype", "dtype", "initializer_range",
}  # fmt: skip


def fingerprint(collector: LoraGradients) -> dict[str, dict[str, Any]]:
    """Return what the gradients of a collector depend on; the same in every process.

    Every bit of every weight is in it, of large ones in a checksum (4 GB/s). Not in it: code that
    was changed, and hooks.
    """
    model = collector.model
    base = base_of(model)
    kind = collector.device.type
    with collector.autocast():
        autocast = str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else "off"
    rope = json.dumps(_plain(_as_dict(base.config)))
    longest = "dynamic" in rope or "longrope" in rope  # whose tables are made anew in each pass
    found = {
        "model": {
            "class": type(base).__name__,
            "training": any(module.training for module in model.modules()),
            "autocast": autocast,
            "float32 matrix products": torch.get_float32_matmul_precision(),
        },
        "model.config": _config(base.config),
        "adapter": {
            name: [type(layer).__name__, list(layer.active_adapters), _scaling(layer)]
            for name, layer in lora_layers(model)
        },
        "modules": _constants(model),
        "weights": {name: _digest(tensor) for name, tensor in model.named_parameters()},
        "buffers": {
            name: _digest(tensor)
            for name, tensor in model.named_buffers()
            if not (longest and "inv_freq" in name)
        },
    }
    return json.loads(json.dumps(_plain(found)))  # type: ignore[no-any-return]


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Say by name what differs between two fingerprints, the weights last."""
    found = []
    for part in dict.fromkeys([*now, *before]):
        old, new = before.get(part, {}), now.get(part, {})
        for key in dict.fromkeys([*new, *old]):
            if old.get(key) != new.get(key):
                values = f"was {_shown(old, key)} and is {_shown(new, key)}"
                if part in ("weights", "buffers"):
                    values = f"{_shown(old, key)} before, {_shown(new, key)} now"
                found.append(f"{part}: {key} {values}")
    return found


def listed(names: Sequence[Any], most: int = 3) -> str:
    """Return the first few, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(str(name) for name in names[:most]) + more


def digest_responses(responses: Sequence[Response]) -> NDArray[np.uint64]:
    """Return 128 bits for each response, prompt and tokens apart: uint64 of shape (N, 2)."""
    found = np.empty((len(responses), 2), np.uint64)
    for number, (prompt, response) in enumerate(responses):
        digest = hashlib.blake2b(len(prompt).to_bytes(8, "little"), digest_size=16)
        digest.update(np.asarray([*prompt, *response], "<i8").tobytes())
        found[number] = np.frombuffer(digest.digest(), "<u8")
    return found


def _shown(part: dict[str, Any], key: str) -> str:
    return repr(part[key]) if key in part else "absent"


def _as_dict(config: Any) -> dict[str, Any]:
    return config.to_dict() if hasattr(config, "to_dict") else dict(vars(config))


def _config(config: Any) -> dict[str, Any]:
    """Return a configuration, flat, without paths and versions, and how attention is computed."""
    flat: dict[str, Any] = {}

    def add(values: dict[Any, Any], before: str) -> None:
        for key, value in values.items():
            if key in _NOT_MATHEMATICS:
                continue
            if isinstance(value, dict):
                add(value, f"{before}{key}.")
            else:
                flat[f"{before}{key}"] = value

    add(_as_dict(config), "")
    for name in ("_attn_implementation", "_experts_implementation"):
        flat[name.strip("_")] = getattr(config, name, None)
    return flat


def _scaling(layer: Any) -> list[Any]:
    return [layer.scaling.get(adapter) for adapter in layer.active_adapters]


def _constants(model: Any) -> dict[str, Any]:
    """Return the real numbers that modules hold (epsilons, scales), equal layers in one line."""
    found: dict[str, set[float]] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, float) and key != "p" and "dropout" not in key:
                found.setdefault(f"{re.sub(r'[.][0-9]+', '.*', name)}.{key}", set()).add(value)
    return {key: sorted(values) for key, values in found.items()}


def _digest(tensor: torch.Tensor) -> str:
    """Return dtype, shape and a digest of a tensor's bits."""
    kind = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
    if tensor.is_meta:  # offloaded: what it holds cannot be seen
        return kind
    numbers = tensor.detach().reshape(-1)
    digest, check = hashlib.sha256(), 0
    if len(numbers) > _WHOLE:
        for start in range(0, len(numbers), _BLOCK):
            check = zlib.crc32(_bytes(numbers[start : start + _BLOCK]), check)
        numbers = numbers[:: len(numbers) // _SAMPLE | 1]  # odd, not to stay within few columns
    digest.update(_bytes(numbers))
    return f"{kind} {digest.hexdigest()[:16]}{check:08x}"


def _bytes(numbers: torch.Tensor) -> memoryview:
    return numbers.contiguous().cpu().view(torch.uint8).numpy().data


def _plain(value: Any) -> Any:
    """Return a value as JSON holds it, the same in every process."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value) if isinstance(value, torch.dtype) else type(value).__name__
