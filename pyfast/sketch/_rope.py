"""Rotary embeddings whose frequencies depend on the longest position of the call.

With "longrope" (Phi-3) a row of few tokens gets other frequencies beside a long one; with "dynamic"
scaling it also matters what went through the model before. Here each pass begins as if it were the
model's first, and rows that would change each other's frequencies keep apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


class Rope:
    """The rotary embeddings of a backbone.

    Attributes
    ----------
    growing : list of module
        Those with "dynamic" frequencies.
    switches : list of int
        The lengths beyond which some frequencies are others.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self.growing: list[Any] = []
        self.switches: list[int] = []
        for module in backbone.modules():
            named = getattr(module, "rope_type", None)
            for key, kind in (named if isinstance(named, dict) else {None: named}).items():
                if not isinstance(kind, str):
                    continue
                if "dynamic" in kind and module not in self.growing:
                    self.growing.append(module)
                if "dynamic" in kind or kind == "longrope":
                    self.switches += _switches(module, key)
        self.switches = sorted(set(self.switches))

    def regime(self, length: int) -> int:
        """Return a number that rows must have in common to be in one batch."""
        passed = sum(length > switch for switch in self.switches)
        return length if passed and self.growing else passed

    @contextmanager
    def fresh(self) -> Iterator[None]:
        """Have a pass begin with the frequencies that the model was made with."""
        before = [(module, _state(module)) for module in self.growing]
        try:
            for module in self.growing:
                _reset(module)
            yield
        finally:
            for module, (buffers, values) in before:
                module._buffers.update(buffers)
                for name in [n for n in vars(module) if _is_state(n) and n not in values]:
                    delattr(module, name)
                vars(module).update(values)


def _switches(module: Any, key: str | None) -> list[int]:
    """Return the lengths at which the frequencies change, as far as the configuration tells."""
    settings = getattr(getattr(module, "config", None), "rope_parameters", None) or {}
    settings = settings.get(key, {}) if key is not None else settings
    named = [
        settings.get("original_max_position_embeddings"),
        getattr(module, "original_max_seq_len", None),
    ]
    return [int(length) for length in named if length is not None]


def _is_state(name: str) -> bool:
    return name.endswith(("max_seq_len_cached", "attention_scaling"))


def _state(module: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    values = {name: value for name, value in vars(module).items() if _is_state(name)}
    return dict(module._buffers), values


def _reset(module: Any) -> None:
    for name in list(module._buffers):
        original = getattr(module, name.replace("inv_freq", "original_inv_freq"), None)
        if name.endswith("inv_freq") and "original" not in name and original is not None:
            module._buffers[name] = original.to(module._buffers[name].device)
    for name in [n for n in vars(module) if n.endswith("max_seq_len_cached")]:
        setattr(module, name, module.original_max_seq_len)
