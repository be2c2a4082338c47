"""Does a forward pass draw at random? Its gradients would be those of one draw."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

DRAWS = (
    "draws random numbers in its forward pass (noise, dropped layers, router jitter?), which makes "
    "gradients random; call model.eval() or switch it off"
)
_TRIES = 8  # draws of which at least one must show, if what is drawn matters


class Watch:
    """While entered, notices whether a shared random generator moves."""

    def __init__(self) -> None:
        self._before: Any = None
        self._drew = self._harmless = False

    def __enter__(self) -> None:
        self._before = None if self._harmless else _state()

    def __exit__(self, *_: object) -> None:
        self._drew = self._before is not None and not _same(self._before, _state())

    def refuse_randomness(self, passes: Any, tokens: Any) -> None:
        """Refuse a model that drew in the last pass, if other draws give other hidden states."""
        if not self._drew:
            return
        with _generators_kept(), torch.no_grad():
            found = []
            for seed in range(_TRIES):
                _seed(seed)
                found.append(passes.hidden(tokens))
            if all(torch.equal(found[0], other) for other in found[1:]):
                self._harmless = True  # something draws and has no use for it
                return
            name = who_draws(passes.model, lambda: passes.hidden(tokens))
        raise ValueError(f"model: {name} {DRAWS}")


def who_draws(model: Any, call: Callable[[], object]) -> str:
    """Return the name of the innermost module that moves a generator first; "it" if none does."""
    names = {id(module): name for name, module in model.named_modules()}
    before: dict[int, Any] = {}
    found: list[str] = []

    def enter(module: nn.Module, _inputs: Any) -> None:
        before[id(module)] = _state()

    def leave(module: nn.Module, _inputs: Any, _output: Any) -> None:
        state = before.pop(id(module), None)
        if not found and state is not None and not _same(state, _state()):
            found.append(names[id(module)])

    handles = []
    try:
        for module in model.modules():
            # Last in, first out: what its own hooks draw counts as the module's.
            handles.append(module.register_forward_pre_hook(enter, prepend=True))
            handles.append(module.register_forward_hook(leave))
        call()
    finally:
        for handle in handles:
            handle.remove()
    return (found[0] if found else "") or "it"


def _state() -> tuple[Any, ...]:
    """Return the state of the generators that everything draws from unless told otherwise."""
    words = np.random.get_state()  # noqa: NPY002 - what others' code draws from
    tensors: list[Tensor] = [torch.get_rng_state()]
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        tensors += torch.cuda.get_rng_state_all()
    return tensors, random.getstate(), (words[1].tobytes(), words[2])  # type: ignore[index]


def _same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    tensors = all(torch.equal(a, b) for a, b in zip(one[0], other[0], strict=True))
    return tensors and one[1:] == other[1:]


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002


@contextlib.contextmanager
def _generators_kept() -> Iterator[None]:
    python, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = list(range(torch.cuda.device_count()))
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)  # noqa: NPY002
