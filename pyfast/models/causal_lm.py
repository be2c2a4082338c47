"""What a causal language model is: a backbone, a head, and what is done to its logits after it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyfast import losses


class CausalLM:
    """The parts of a transformers causal language model, checked to be all that there is.

    Parameters
    ----------
    model : transformers causal language model
        As it is, or in a peft model.

    Attributes
    ----------
    base : module
        The transformers model inside.
    backbone : module
        Gives the last hidden states.
    head : module
        Makes logits of them.
    softcap : float or None
        c of ``c tanh(z / c)``, what logits are capped at.
    temperature : float
        What they are divided by then.

    Raises
    ------
    ValueError
        If the model has no head or no hidden states, if its logits are more than one times the
        other, capped and scaled, or if its adapter is virtual tokens (prompt tuning and its kin).
    """

    def __init__(self, model: Any) -> None:
        _refuse_virtual_tokens(model)
        self.base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.backbone: Any = self.base.base_model
        self.head: Any = self.base.get_output_embeddings()
        self.softcap, self.temperature = self._after_head()
        with in_evaluation(self.base):  # dropout would differ
            self._check_head()

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the model's logits (..., V) in float32 from its last hidden states (..., H)."""
        logits: Tensor = self.head(hidden).float()
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits / self.temperature

    def logps(self, hidden: Tensor, labels: Tensor, counts: list[int]) -> Tensor:
        """Return log pi of sequences that lie end to end.

        Parameters
        ----------
        hidden : float tensor (T, H)
            Last hidden states, each the one that predicts the label at its place.
        labels : int64 tensor (T,)
            Tokens of the model.
        counts : list of int
            Tokens of each sequence; they add up to T.

        Returns
        -------
        float32 tensor (sequences,)
            Sums of log-probabilities in nats, differentiable.
        """
        if not isinstance(self.head, torch.nn.Linear):  # it has an adapter of its own
            token_logps = self.logits(hidden).log_softmax(-1).gather(1, labels[:, None]).squeeze(1)
            return torch.stack([part.sum() for part in torch.split(token_logps, counts)])
        return losses.sequence_logps(
            hidden,
            self.head.weight,
            labels,
            head_bias=self.head.bias,
            temperature=self.temperature,
            softcap=self.softcap,
            offsets=torch.tensor([0, *counts], device=hidden.device).cumsum(0),
            validate=False,
        ).float()

    def _after_head(self) -> tuple[float | None, float]:
        """Return what the model does to its logits: the softcap, then the divisor."""
        config = self.base.config.get_text_config()
        softcap = getattr(config, "final_logit_softcapping", None)  # Gemma
        divisor = getattr(config, "logits_scaling", None) or 1.0  # Granite
        return softcap, divisor / (getattr(config, "logit_scale", None) or 1.0)  # Cohere

    @torch.no_grad()
    def _check_head(self) -> None:
        """Refuse a model whose logits are not what `logits` makes of its hidden states."""
        name = type(self.base).__name__
        if self.head is None:
            raise ValueError(f"model: {name} has no head that gives logits")
        tokens = torch.tensor([[0, 1]], device=self.head.weight.device)
        hidden = getattr(self.backbone(input_ids=tokens), "last_hidden_state", None)
        if hidden is None:
            raise ValueError(f"model: {name} does not give its last hidden states")
        ours, theirs = self.logits(hidden), self.base(input_ids=tokens).logits
        # The model may cap and scale in its own type, with a rounding at each step.
        allowed = max(1e-3, 4 * torch.finfo(theirs.dtype).eps)
        if not torch.allclose(ours, theirs.float(), rtol=allowed, atol=allowed):
            raise ValueError(
                f"model: {name} changes its logits after the head in a way that is not supported"
            )


def _refuse_virtual_tokens(model: Any) -> None:
    config: Any = getattr(model, "active_peft_config", None)  # the base model knows nothing of it
    if getattr(config, "is_prompt_learning", False):
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise ValueError(f"model: its adapter, {kind}, is virtual tokens, which is not supported")


@contextlib.contextmanager
def in_evaluation(model: torch.nn.Module) -> Iterator[None]:
    """Switch a model to evaluation mode, and each of its modules back to its own."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
