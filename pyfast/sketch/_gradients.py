"""The two ways from tokens to LoRA gradients: of a whole batch at once, or of one response alone.

The batch is fast and leans on whose each token is inside the model. The response alone is what
everything else is held to: autograd's own gradient of the weights, whatever the layers do.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Collection
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pyfast.models.causal_lm import CausalLM
from pyfast.models.head import is_plain
from pyfast.models.length import find_regime, forget
from pyfast.sketch._capture import Capture
from pyfast.sketch._frozen import Frozen, unhook
from pyfast.sketch._layout import Layout, Tokens
from pyfast.sketch._parts import Part
from pyfast.sketch._randomness import Watch


class Sink(Protocol):
    """What takes gradients as they appear, part by part in descending order."""

    def factors(self, number: int, wide: Tensor, narrow: Tensor) -> None:
        """Take ``sum_t wide[b, t] narrow[b, t]^T``: (R, T, long), (R, T, rank), float32."""

    def whole(self, number: int, gradient: Tensor) -> None:
        """Take one response's gradient, float32 (long, rank)."""


class Passes:
    """Forward and backward passes of a model, which is left as it was.

    Parameters
    ----------
    model : module
        All of it, adapters included.
    lm : CausalLM
        Its backbone and head.
    parts : list of Part
        Whose gradients are wanted.
    """

    def __init__(self, model: Any, lm: CausalLM, parts: list[Part]) -> None:
        self.model, self.lm, self.parts = model, lm, parts
        self.regime = find_regime(lm.backbone, lm.base.config.get_text_config())
        self.watch = Watch()
        taken = inspect.signature(lm.backbone.forward).parameters.values()
        self._all_taken = any(p.kind is p.VAR_KEYWORD for p in taken)
        self._taken = {p.name for p in taken}

    @property
    def embeddings(self) -> Any:
        """The module that looks tokens up."""
        return self.lm.base.get_input_embeddings()

    @property
    def vocabulary(self) -> tuple[int, int]:
        """How many tokens the embeddings know, and the head."""
        return int(self.embeddings.weight.shape[0]), self.lm.vocabulary

    @property
    def why_not_together(self) -> str | None:
        """Why gradients of single responses cannot be caught in a batch's pass, if they cannot."""
        for part in self.parts:
            for site in part.sites:
                if not site.runs:
                    kind = type(site.layer).__name__
                    return f"{part.name} works in a LoRA layer ({kind}) that adds it to a weight"
                if site.of_a != part.transposed:
                    return f"{part.name} is A of one layer and B of another"
        return None

    def together(
        self, tokens: Tokens, sink: Sink, *, unused: Collection[str] | None = ()
    ) -> NDArray[np.float64]:
        """Hand every response's factors to `sink`; return log pi of each.

        Parts that are never run are an error, unless `unused` names them or is None.
        """
        frozen = Frozen(self.model)
        capture = Capture(self.parts, sink.factors, unused=unused)
        self._forget()
        try:
            with torch.enable_grad(), frozen, contextlib.ExitStack() as stack:
                with self.lm.autocast():  # how a layer is caught depends on it
                    stack.enter_context(capture)
                capture.layout = tokens.layout
                hidden = self.hidden(tokens)
                capture.layout = Layout.of_owners(
                    tokens.owners[tokens.response_mask], tokens.responses
                )
                gradient, logps = self._run_head(hidden, tokens)
                capture.layout = tokens.layout
                capture.backward = True
                torch.autograd.backward(hidden, gradient)
        finally:  # what a Ctrl-C at the beginning of an __exit__ skipped
            capture.undo()
            frozen.undo()
        self.watch.refuse_randomness(self, tokens)
        return logps

    def alone(
        self, tokens: Tokens, sink: Sink, shake: Callable[[Tensor], Tensor] | None = None
    ) -> NDArray[np.float64]:
        """Hand one response's gradients to `sink`; return its log pi, shape (1,).

        `shake` changes the embeddings' output.
        """
        weights = [part.weight for part in self.parts]
        frozen = Frozen(self.model, weights)

        def shaken(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
            assert shake is not None
            return shake(output)

        embeddings = self.embeddings
        self._forget()
        try:
            with torch.enable_grad(), frozen:
                if shake is not None:
                    embeddings.register_forward_hook(shaken)
                hidden = self.hidden(tokens)
                gradient, logps = self._run_head(hidden, tokens)
                torch.autograd.backward(hidden, gradient)
                for number in reversed(range(len(weights))):
                    found = weights[number].grad
                    if found is None:  # this response did not need it
                        found = torch.zeros_like(weights[number])
                    weights[number].grad = None
                    sink.whole(number, self.parts[number].lay_out(found))
        finally:
            unhook(embeddings, shaken)
            frozen.undo()
        self.watch.refuse_randomness(self, tokens)
        return logps

    def hidden(self, tokens: Tokens) -> Tensor:
        """Return the last hidden states, (rows, T, H)."""
        given = {"attention_mask": tokens.attention_mask, "position_ids": tokens.position_ids}
        inputs = {name: value for name, value in given.items() if self.takes(name)}
        with self.lm.autocast(), self.watch:
            found: Tensor = self.lm.backbone(
                input_ids=tokens.input_ids, use_cache=False, **inputs
            ).last_hidden_state
        return found

    def _forget(self) -> None:
        """Begin with the frequencies that the model was made with."""
        if self.regime is not None:
            forget(self.lm.backbone, self.embeddings.weight.device)

    def takes(self, name: str) -> bool:
        """Tell whether the backbone's forward pass has an argument of this name."""
        return self._all_taken or name in self._taken

    def _run_head(self, hidden: Tensor, tokens: Tokens) -> tuple[Tensor, NDArray[np.float64]]:
        """Return the gradient of all log pi with respect to `hidden`, and each log pi.

        The head sees the places that predict response tokens, and what it makes is dropped before
        the backward pass through the layers begins.
        """
        row, column = tokens.response_mask.nonzero(as_tuple=True)
        owners, targets = tokens.owners[row, column], tokens.input_ids[row, column]
        place = hidden.detach()[row, column - 1].requires_grad_()
        token_logps = self._token_logps(place, targets.to(place.device))
        torch.autograd.backward(token_logps.sum())
        gradient = torch.zeros_like(hidden)
        assert place.grad is not None
        gradient[row, column - 1] = place.grad
        logps = torch.zeros(tokens.responses, dtype=torch.float64)
        logps.index_add_(0, owners.cpu(), token_logps.detach().double().cpu())
        return gradient, logps.numpy()

    def _token_logps(self, place: Tensor, targets: Tensor) -> Tensor:
        """Return log pi of each target, (n,), from the hidden state (n, H) that predicts it."""
        if is_plain(self.lm.head):  # in tiles: no logits
            return self.lm.logps(place, targets, [1] * len(targets))
        logits = self.lm.logits(place)  # a head with parts in it, for example
        return -nn.functional.cross_entropy(logits, targets, reduction="none")
