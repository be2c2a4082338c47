"""A model for the time of a pass: which of its weights get gradients, and how it is put back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyfast.sketch._mode import walk


class Frozen:
    """For a while, no parameter but those to `keep` requires grad, and the embeddings' output does.

    Then the backward pass carries gradients down to every layer, and computes none of any weight
    but those kept, whose ``.grad`` begins as None and is theirs again afterwards.
    """

    def __init__(self, model: Any, keep: Sequence[nn.Parameter] = ()) -> None:
        self._model = model
        self._keep = list(keep)
        self._before: list[tuple[nn.Parameter, bool]] = []
        self._gradients: list[tuple[nn.Parameter, Tensor | None]] = []
        self._embeddings: Any = None

    def __enter__(self) -> None:
        try:
            kept = {id(parameter) for parameter in self._keep}
            self._before = [
                (p, p.requires_grad)
                for module in walk(self._model)
                for p in module._parameters.values()
                if p is not None and p.requires_grad != (id(p) in kept)
            ]
            self._gradients = [(p, p.grad) for p in self._keep]
            for parameter, required in self._before:
                parameter.requires_grad_(not required)
            for parameter, _ in self._gradients:
                parameter.grad = None
            self._embeddings = self._model.get_input_embeddings()
            self._embeddings.register_forward_hook(require_grad)
        except BaseException:
            self.undo()
            raise

    def __exit__(self, *_: object) -> None:
        self.undo()

    def undo(self) -> None:
        """Leave the model as it was; a second call, after a Ctrl-C in the first, does the rest."""
        if self._embeddings is not None:
            unhook(self._embeddings, require_grad)
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        for parameter, required in self._before:
            parameter.requires_grad_(required)


def require_grad(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
    """Have all that follows an output require grad; it may be changed in place, as CTRL does."""
    return alias(output.requires_grad_(True))


def alias(tensor: Tensor) -> Tensor:
    """Return the same numbers as a tensor that autograd does not take for a view.

    What is changed in place after a function of our own may be no view of what that returned.
    """
    found: Tensor = torch.ops.aten._unsafe_view(tensor, tensor.shape)
    return found


def unhook(module: nn.Module, hook: Any) -> None:
    """Take a forward hook away, if it is there: Ctrl-C may come before its handle is at hand."""
    for key in [key for key, there in module._forward_hooks.items() if there is hook]:
        del module._forward_hooks[key]
