"""The policy: a causal language model with a LoRA adapter, or trained whole.

The N responses to one prompt share it, so the prompt goes through the model once, to sample
(`sampling`) and to score (`shared_prompt`). The results are those of one response at a time.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyfast.models import checkpointing, lora
from pyfast.models.shared_prompt import Features, GroupScorer
from pyfast.train.config import SamplingConfig
from pyfast.train.data.tokens import end_ids, prompt_tokens
from pyfast.train.errors import UserError
from pyfast.train.policy import adapters, merging, pretrained
from pyfast.train.policy.sampling import Sampler, Samples
from pyfast.train.seeds import derive

_NAMED = ("model:", "target_modules:", "gradient_checkpointing:", "training:")


class Policy:
    """A causal language model that is trained, and its reference: the model as it was given.

    With LoRA the reference is the adapter off. Trained in full, it is a frozen copy: 20 bytes a
    parameter in all (weights, gradient, AdamW's two moments, the copy) beside the activations, and
    12 in each checkpoint.

    Parameters
    ----------
    model : transformers or peft causal language model
        It is switched to evaluation mode (no dropout, in training neither), and is frozen and gets
        an adapter, or is trained itself. Adapters that are active in it are folded into its weights
        first, so that the reference is the model as it stands. A model that is refused is left as
        it was.
    tokenizer : transformers tokenizer
        With a chat template, prompts are given as a user's turn.
    rank, alpha : int, float
        The adapter adds ``alpha / rank * B A`` to each linear layer; B starts at zero.
    target_modules : str
        Which layers get an adapter: ``"all-linear"``, every linear layer but the head, or the
        layers' names, with commas between.
    seed : int
        Seed of the start of A.
    training : {"lora", "full"}
        What is trained: an adapter, or all the weights, which must be float32 then (in half
        precision most updates would be rounded away). `rank`, `alpha`, `target_modules` and `seed`
        are the adapter's alone.
    gradient_checkpointing : {"none", "selective", "full"}
        What scoring keeps for the backward pass (`checkpointing`).

    Attributes
    ----------
    folded : list of str
        Names of the adapters that the model had, now part of its weights.
    why_slower : str or None
        Which slower way sampling goes, and why; None if none, or before the first use.
    why_not_merged : str or None
        Why `answer` does not fold the adapter into the weights; None if it does, or likewise.

    Raises
    ------
    UserError
        If the model, its adapters or the tokenizer cannot be used, in one line.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        rank: int = 16,
        alpha: float = 32.0,
        target_modules: str = "all-linear",
        seed: int = 0,
        training: str = "lora",
        gradient_checkpointing: str = "none",
    ) -> None:
        if training not in ("lora", "full"):
            raise UserError(f"policy.training: expected lora or full, got {training!r}")
        if not hasattr(model, "get_output_embeddings"):
            raise UserError(
                "policy.model: expected a transformers causal language model, "
                f"got {type(model).__name__}"
            )
        self.tokenizer, self.training = tokenizer, training
        self._checkpointing = gradient_checkpointing
        self._checkpointed: list[torch.nn.Module] = []
        self._merged = self._tried_merging = False
        self.why_not_merged: str | None = None
        with adapters.untouched_if_refused(model):
            try:
                pretrained.check_finite(model, "model")
                base, self.folded = adapters.fold(model)
                if self.folded:
                    base.name_or_path = ""  # no file holds these weights
                self.end_ids = end_ids(base, tokenizer)
                if training == "full":
                    self.model: Any = _whole(base)
                    self._frozen: Any = copy.deepcopy(base).requires_grad_(False)
                    self._frozen_scorer = GroupScorer(self._frozen)
                else:
                    targets = adapters.targets(base, target_modules)
                    self.model = _with_lora(base, rank, alpha, targets, seed)
                self._scorer = GroupScorer(self.model)
                self._sampler = Sampler(self._scorer.lm, tokenizer, self.end_ids)
                if gradient_checkpointing != "none":
                    self._checkpointed = checkpointing.layers_to_checkpoint(self.model)
            except ValueError as error:
                text = pretrained.one_line(error)
                named = text.startswith(_NAMED)
                prefix = "" if text.startswith("policy.") else "policy."
                raise UserError(
                    f"{prefix}{'' if prefix == '' or named else 'model: '}{text}"
                ) from None
            except (AttributeError, TypeError, NotImplementedError, RuntimeError) as error:
                text = pretrained.one_line(error)
                kind = type(model).__name__
                raise UserError(f"policy.model: {kind} cannot be used: {text}") from error

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.model.parameters()).device  # type: ignore[no-any-return]

    @property
    def base(self) -> Any:
        """The transformers model, without its adapter."""
        return self.model if self.training == "full" else self.model.get_base_model()

    @property
    def reference_model(self) -> Any:
        """A transformers model with the weights of the reference, for fingerprints of them."""
        return self._frozen if self.training == "full" else self.base

    def trainable(self) -> dict[str, Tensor]:
        """Return the parameters that are trained by name, in the model's order."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    @property
    def saves(self) -> str:
        """What `save` writes, a name for its folder: ``"adapter"`` or ``"model"``."""
        return "model" if self.training == "full" else "adapter"

    def save(self, folder: Path) -> None:
        """Write what was trained to a folder: the adapter (`save_adapter`), or the whole model.

        A whole model has its tokenizer beside it.
        """
        if self.training == "lora":
            self.save_adapter(folder)
            return
        self.model.save_pretrained(str(folder))
        self.tokenizer.save_pretrained(str(folder))

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter to a folder in peft's layout (safetensors).

        It belongs on the model as it was given. Where adapters were folded into that, no file holds
        such a model, and the adapter names no base model; one that `load` read from a folder is
        named as the base model.
        """
        self.model.save_pretrained(str(folder), save_embedding_layers=False)
        adapters.sort_names(folder / "adapter_config.json")

    def prompt_ids(self, prompt: str) -> list[int]:
        """Return the tokens of a prompt, in the model's chat template if it has one."""
        return prompt_tokens(self.tokenizer, prompt)

    @property
    def why_slower(self) -> str | None:
        """Why sampling goes a slower way (`Sampler`), or None."""
        return self._sampler.why_slower

    @contextlib.contextmanager
    def merged(self) -> Iterator[None]:
        """Fold the adapter into the weights for a while: W + alpha/rank B A instead of two paths.

        Sampling is then about a quarter faster, for the memory of a second set of weights. The
        frozen weights are put back, not subtracted back, so that not a bit of them changes. There
        is nothing to fold in where the model is trained whole.
        """
        if self.training == "full":
            yield
            return
        with merging.merged(self.model):
            self._merged = True
            try:
                yield
            finally:
                self._merged = False

    def sample(
        self,
        prompts: list[list[int]],
        n: int,
        *,
        max_new_tokens: int,
        temperature: float,
        seeds: list[int],
    ) -> list[Samples]:
        """Sample N responses to each of several prompts (`Sampler`), with the adapter apart."""
        return self._sampler(
            prompts, n, max_new_tokens=max_new_tokens, temperature=temperature, seeds=seeds
        )

    def answer(
        self, prompts: list[list[int]], n: int, config: SamplingConfig, seeds: list[int]
    ) -> list[Samples]:
        """Sample (`sample`) as a configuration says.

        Where the model with its adapter folded in is not the same model, the adapter stays apart,
        and that is told once (`why_not_merged`).
        """
        merge = config.merge and self.training == "lora" and self._may_merge()
        with torch.no_grad(), self.merged() if merge else contextlib.nullcontext():
            return self.sample(
                prompts,
                n,
                max_new_tokens=config.max_new_tokens,
                temperature=config.temperature,
                seeds=seeds,
            )

    def _may_merge(self) -> bool:
        if self._tried_merging is False:
            self.why_not_merged, self._tried_merging = merging.why_not(self.model), True
            if self.why_not_merged is not None:
                sys.stderr.write(
                    f"pyfast: sampling with the adapter beside the weights: {self.why_not_merged}\n"
                )
        return self.why_not_merged is None

    def logps(
        self, prompt_ids: list[int], responses: list[list[int]], *, reference: bool = False
    ) -> Tensor:
        """Return log pi(y|x) of each response to one prompt.

        Parameters
        ----------
        prompt_ids : list of int
            Tokens of the prompt.
        responses : list of n non-empty lists of int
            Tokens of the responses, exactly as sampled. The sum goes over these: the end token
            counts where there is one, the prompt and the padding do not.
        reference : bool
            Take the reference, and compute no gradient.

        Returns
        -------
        float32 tensor (n,)
            Sums of log-probabilities at temperature 1, in nats.
        """
        with self._scoring(reference) as scorer:
            return scorer.logps([(prompt_ids, responses)])

    def logps_and_features(
        self,
        prompt_ids: list[int],
        responses: list[list[int]],
        features: Features = "response",
        *,
        reference: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return log pi(y|x) and a feature vector of each response to one prompt; no gradients.

        Parameters
        ----------
        prompt_ids, responses, reference
            As for `logps`.
        features : {"response", "all"}
            `GroupScorer.logps_and_features`.

        Returns
        -------
        logps : float32 tensor (n,)
            As of `logps`.
        features : float32 tensor (n, H)
            float64 from a model of that type.
        """
        with torch.no_grad(), self._scoring(reference) as scorer:
            return scorer.logps_and_features([(prompt_ids, responses)], features)

    @contextlib.contextmanager
    def _scoring(self, reference: bool) -> Iterator[GroupScorer]:
        """Give what scores by the policy, or by the reference without a gradient."""
        if not reference:
            with checkpointing.checkpointed(self._checkpointed, self._checkpointing):
                yield self._scorer
        elif self.training == "full":
            with torch.no_grad():
                yield self._frozen_scorer
        else:
            if self._merged:
                raise ValueError("reference: the adapter is folded into the weights just now")
            with torch.no_grad(), self.model.disable_adapter():
                yield self._scorer


def _whole(base: Any) -> Any:
    """Return a model of which every weight is trained, in evaluation mode."""
    narrow = [
        n for n, p in base.named_parameters() if p.dtype not in (torch.float32, torch.float64)
    ]
    if narrow:
        raise ValueError(
            "training: full training expects float32 weights (policy.dtype), or most updates "
            f"are rounded away; others are {pretrained.few(narrow)}"
        )
    return base.requires_grad_(True).eval()


def _with_lora(base: Any, rank: int, alpha: float, targets: str | list[str], seed: int) -> Any:
    """Return a peft model with a fresh adapter, in evaluation mode."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=targets,
        exclude_modules=adapters.left_out(base) or None if targets == "all-linear" else None,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, "adapter"))
        model = get_peft_model(base, settings)
    lora.fuse(model)
    return model.eval()
