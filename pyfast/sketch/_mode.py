"""What a model's gradients may depend on beside its weights and tokens: its mode, as one value."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Hashable
from typing import Any

import torch

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_SWITCHES = ("drop", "jitter", "noise", "checkpointing", "alpha")


def walk(model: Any) -> list[Any]:
    """Return a model's modules, each once, in the order of `named_modules` and far sooner."""
    found: dict[int, Any] = {}
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if module is None or id(module) in found:
            continue
        found[id(module)] = module
        waiting.extend(reversed(module._modules.values()))
    return list(found.values())


def name_of(model: Any, module: Any) -> str:
    """Return a module's name in a model."""
    return next((name for name, other in model.named_modules() if other is module), "?") or "it"


def mode(model: Any, base: Any, silent: frozenset[int]) -> Hashable:
    """Return a value that differs when a model may have begun to compute otherwise.

    Parameters
    ----------
    model : module
        All of it.
    base : module
        The transformers model inside.
    silent : frozenset of int
        The parts whose gradient is zero now: nothing was seen of them.
    """
    config = base.config
    modules = walk(model)
    names = ("_attn_implementation", "_experts_implementation", "return_dict")
    return (
        tuple(_of_module(module) for module in modules),
        frozenset(
            (p.dtype, p.device)
            for module in modules
            for p in module._parameters.values()
            if p is not None
        ),
        tuple(getattr(config, name, None) for name in names),
        weakref.ref(base.get_output_embeddings()),
        tuple((torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")),
        silent,
    )


def _of_module(module: Any) -> Hashable:
    """Training or not, what is hooked in, what was put in its place, and its numbers and names."""
    own = module.__dict__
    hooks = tuple(key for name in _HOOKS for key in own.get(name, ()))  # none comes twice
    switches = tuple(
        (name, value)
        for name, value in own.items()
        if _is_switch(name) and isinstance(value, (int, float))
    )
    forward = _Same(own["forward"]) if "forward" in own else None
    return weakref.ref(module), bool(module.training), forward, hooks, switches


class _Same:
    """An object that equals itself alone, and is kept, so that no other takes its address."""

    def __init__(self, it: object) -> None:
        self.it = it

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.it is other.it

    def __hash__(self) -> int:
        return id(self.it)


@functools.cache  # modules have few names
def _is_switch(name: str) -> bool:
    return name == "p" or any(switch in name for switch in _SWITCHES)
