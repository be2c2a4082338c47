"""What a causal language model is: a backbone, a head, and what is done to its logits after it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyfast import losses
from pyfast.losses.precision import without_autocast
from pyfast.models.head import check_head, is_plain


class CausalLM:
    """The parts of a transformers causal language model, checked to be all that there is.

    Parts are looked up in the model whenever they are asked for: an adapter on the head, a resized
    vocabulary or another number type changes them.

    Parameters
    ----------
    model : transformers causal language model
        As it is, or in a peft model.

    Attributes
    ----------
    model : module
        As given.
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
    device : torch.device
        Where the model begins.
    autocast_type : dtype or None
        Of the autocast that the model's own forward pass brings, if it does.
    vocabulary : int
        How many tokens it scores.

    Raises
    ------
    ValueError
        If the model has no head or no hidden states, if its logits are more than one times the
        other, capped and scaled, if its adapter is virtual tokens (prompt tuning and its kin) or
        begins at some tokens (aLoRA), if it is an encoder-decoder, or if it is wrapped for several
        processes or devices (DDP, FSDP, DataParallel).
    """

    def __init__(self, model: Any) -> None:
        _refuse_wrapped(model)
        self.model = model
        self.autocast_type: torch.dtype | None = None
        self.vocabulary = 0
        self._checked: tuple[Any, ...] = ()
        self.check()

    @property
    def base(self) -> Any:
        """The transformers model."""
        return base_of(self.model)

    @property
    def backbone(self) -> Any:
        """What gives the last hidden states."""
        base = self.base
        if base.base_model is not base:
            return base.base_model
        return getattr(base, "model", base)  # Llama-4 names another prefix

    @property
    def head(self) -> Any:
        """What makes logits of hidden states."""
        return self.base.get_output_embeddings()

    @property
    def softcap(self) -> float | None:
        """What logits are capped at."""
        cap: float | None = getattr(_text_config(self.base), "final_logit_softcapping", None)
        return cap  # Gemma

    @property
    def temperature(self) -> float:
        """What logits are divided by."""
        config = _text_config(self.base)
        divisor = getattr(config, "logits_scaling", None) or 1.0  # Granite
        factors = ("logit_scale", "lm_head_multiplier")  # Cohere, Falcon-H1
        for name in factors:
            divisor /= getattr(config, name, None) or 1.0
        return float(divisor)

    @property
    def device(self) -> torch.device:
        """Where the model begins."""
        return self.base.get_input_embeddings().weight.device  # type: ignore[no-any-return]

    def check(self) -> bool:
        """Look at the model again if it has changed since it was looked at last.

        Returns
        -------
        bool
            Whether it had changed.

        Raises
        ------
        ValueError
            As the constructor.
        """
        _refuse_virtual_tokens(self.model)
        _refuse_later_adapters(self.model)
        base = self.base
        if getattr(base.config, "is_encoder_decoder", False):
            raise ValueError(
                f"model: {type(base).__name__} is an encoder-decoder; expected a causal language "
                "model"
            )
        state = self._state(base, self.head)
        if _same(state, self._checked):
            return False
        with in_evaluation(self.model), torch.no_grad():  # dropout would differ
            self.autocast_type, self.vocabulary = check_head(self)
        self._checked = state
        return True

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the autocast that the model's own forward pass runs in, if it brings one.

        A model from accelerate's ``prepare`` does; around it, autocast stays as it is.
        """
        kind = self.device.type
        if self.autocast_type is None or torch.is_autocast_enabled(kind):
            return contextlib.nullcontext()
        return torch.autocast(kind, self.autocast_type)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the model's logits (..., V) in float32 from its last hidden states (..., H)."""
        head = self.head
        weight = getattr(head, "weight", None)
        if isinstance(weight, Tensor) and weight.dtype.is_floating_point:
            hidden = hidden.to(weight.dtype)  # it comes from autocast, where they differ
        with without_autocast():
            logits: Tensor = head(hidden).float()
        return self.after_head(logits)

    def after_head(self, logits: Tensor) -> Tensor:
        """Cap and scale what the head gives, as the model does."""
        softcap = self.softcap
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
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
        head = self.head
        if not is_plain(head):  # it has an adapter or something else of its own
            token_logps = self.logits(hidden).log_softmax(-1).gather(1, labels[:, None]).squeeze(1)
            return torch.stack([part.sum() for part in torch.split(token_logps, counts)])
        return losses.sequence_logps(
            hidden,
            head.weight,
            labels,
            head_bias=head.bias,
            temperature=self.temperature,
            softcap=self.softcap,
            offsets=torch.tensor([0, *counts], device=hidden.device).cumsum(0),
            validate=False,
        ).float()

    def _state(self, base: Any, head: Any) -> tuple[Any, ...]:
        """Return all that what was found out about the model hangs on."""
        weight = getattr(head, "weight", None)
        kind = (weight.dtype, weight.device, weight.shape) if isinstance(weight, Tensor) else ()
        hooks = tuple(
            (tuple(module._forward_hooks), tuple(module._forward_pre_hooks))
            for module in (self.model, base, head)
            if isinstance(module, torch.nn.Module)
        )
        around = self.model
        own = [vars(module).get("forward") for module in (around, base, head) if module is not None]
        classes = (type(around).forward, type(base).forward, getattr(type(head), "forward", None))
        implementation = getattr(base.config, "_attn_implementation", None)
        named = getattr(base.config, "return_dict", True)
        rules = (self.softcap, self.temperature, implementation, named)
        return (base, head, type(head), *own, *classes, kind, hooks, rules)


def base_of(model: Any) -> Any:
    """Return the transformers model inside a peft model, or the model itself."""
    if hasattr(model, "get_base_model"):
        return model.get_base_model()
    try:
        from peft import PeftMixedModel
    except ImportError:  # no peft, or an older one
        return model
    return model.base_model.model if isinstance(model, PeftMixedModel) else model


def _same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Compare states: modules and functions by identity, the rest by value."""
    return len(one) == len(other) and all(
        a is b or (not isinstance(a, torch.nn.Module) and a == b)
        for a, b in zip(one, other, strict=True)
    )


def _text_config(base: Any) -> Any:
    return base.config.get_text_config()


def _refuse_wrapped(model: Any) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.nn.parallel import DataParallel, DistributedDataParallel

    for kind in (DistributedDataParallel, FullyShardedDataParallel, DataParallel):
        if isinstance(model, kind):
            raise ValueError(
                f"model: {kind.__name__} sees only what goes through its own forward pass: wrap "
                "pyfast.models.shared_prompt.GroupScorerModule(model) in it and call that"
            )


def _refuse_virtual_tokens(model: Any) -> None:
    config: Any = getattr(model, "active_peft_config", None)  # the base model knows nothing of it
    if getattr(config, "is_prompt_learning", False):
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise ValueError(f"model: its adapter, {kind}, is virtual tokens, which is not supported")


def _refuse_later_adapters(model: Any) -> None:
    """Refuse aLoRA: the peft model alone knows from which token on it counts."""
    configs: Any = getattr(model, "peft_config", None)
    if not isinstance(configs, dict):
        return
    later = [n for n, c in configs.items() if getattr(c, "alora_invocation_tokens", None)]
    if not later:
        return
    active: Any = model.active_adapters  # transformers has a method of this name
    for name in active() if callable(active) else active:
        if name in later:
            raise ValueError(
                f"model: its adapter {name!r} is an aLoRA, which begins at its invocation tokens; "
                "that is not supported"
            )


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
