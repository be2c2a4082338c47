"""Loading the policy that a configuration names: a model, or an adapter and the model under it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch

from pyfast.train.config import PolicyConfig
from pyfast.train.errors import UserError
from pyfast.train.files import PACKAGE_SCHEME, read_json, resolve
from pyfast.train.policy import adapters, pretrained
from pyfast.train.policy.gguf import gguf_folder
from pyfast.train.policy.policy import Policy

_SETTING = "policy.model"
_DEEPEST = 8  # adapters on adapters


def load(config: PolicyConfig, seed: int, start: Path | None = None) -> Policy:
    """Load the policy that a configuration names.

    Parameters
    ----------
    config : PolicyConfig
        ``model`` may be a folder, a hub id, a ``.gguf`` file, or ``pkg://PACKAGE/PATH`` of one; and
        an adapter in peft's layout, which is folded into the model that it names.
    seed : int
        The run's seed; it sets the start of the adapter.
    start : Path, optional
        What supervised fine-tuning has made of that model (`sft.run`): a folder ``adapter``, which
        is folded into its weights, or ``model``, which takes its place.

    Raises
    ------
    UserError
        If there is no such model, or it lacks weights, in one line.
    """
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    spec, dtype = config.model, getattr(torch, config.dtype)
    if start is not None and start.name == "model":
        spec = str(start)
    model, tokenizer = _load(spec, dtype, depth=0)
    if start is not None and start.name == "adapter":
        model = _with_adapter(model, str(start), start)
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        reason = pretrained.one_line(error)
        raise UserError(f"policy.device: cannot use {device!r}: {reason}") from None
    return Policy(
        model,
        tokenizer,
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        target_modules=config.target_modules,
        seed=seed,
        training=config.training,
        gradient_checkpointing=config.gradient_checkpointing,
    )


def _load(spec: str, dtype: torch.dtype, depth: int) -> tuple[Any, Any]:
    """Return a model and its tokenizer; an adapter is part of the weights."""
    from transformers import AutoModelForCausalLM

    path = resolve(spec)
    if path is None and (spec.endswith(".gguf") or spec[0] in "./~"):
        raise UserError(f"{_SETTING}: no such file or folder: {spec}")
    if path is not None and path.is_file():
        path = _of_gguf(path, spec)
    source = str(path or spec)
    settings = _adapter_settings(source, path)
    if settings is not None:
        return _load_adapter(source, path, settings, dtype, depth)
    tokenizer = pretrained.tokenizer(source, _SETTING)
    return pretrained.weights(AutoModelForCausalLM, source, _SETTING, dtype=dtype), tokenizer


def _of_gguf(path: Path, spec: str) -> Path:
    try:
        return gguf_folder(path)
    except UserError:
        raise
    except Exception as error:
        reason = pretrained.one_line(error)
        raise UserError(f"{_SETTING}: cannot load {spec!r}: {reason}") from None


def _adapter_settings(source: str, path: Path | None) -> dict[str, Any] | None:
    """Return an adapter's settings, or None if `source` is none."""
    file = pretrained.adapter_file(source, _SETTING)
    if file is None:
        return None
    settings = read_json(Path(file))
    if not isinstance(settings, dict):
        raise UserError(f"{_SETTING}: {file}: expected an object of settings")
    if path is not None and (path / "config.json").is_file():
        raise UserError(
            f"{_SETTING}: {source!r} holds a whole model and an adapter; "
            "expected each in a folder of its own"
        )
    return settings


def _load_adapter(
    source: str, path: Path | None, settings: dict[str, Any], dtype: torch.dtype, depth: int
) -> tuple[Any, Any]:
    spec = _base_of(source, path, settings)
    if depth == _DEEPEST:
        raise UserError(f"{_SETTING}: {source!r}: expected at most {_DEEPEST} adapters on another")
    try:
        base, tokenizer = _load(spec, dtype, depth + 1)
    except UserError as error:
        reason = str(error).removeprefix(f"{_SETTING}: ")
        raise UserError(f"{_SETTING}: {source!r} is an adapter; its base model: {reason}") from None
    if path is None or (path / "tokenizer_config.json").is_file():
        try:
            tokenizer = pretrained.tokenizer(source, _SETTING)
        except UserError:
            if path is not None:
                raise  # a hub adapter may have none
    return _with_adapter(base, source, path), tokenizer


def _with_adapter(base: Any, source: str, path: Path | None) -> Any:
    """Return a model with an adapter in its weights."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they tell is refused here
            model = _attach(base, source)
        folded, _ = adapters.fold(model)
    except Exception as error:
        reason = pretrained.one_line(error).removeprefix("model: ")
        raise UserError(f"{_SETTING}: cannot load the adapter {source!r}: {reason}") from None
    # A run's adapter goes on top of this one, so this is the base model that it names.
    folded.name_or_path = folded.config._name_or_path = str(path.resolve()) if path else source
    return folded


def _base_of(source: str, path: Path | None, settings: dict[str, Any]) -> str:
    """Return which model an adapter is for; a relative path may start from the adapter's folder."""
    spec = settings.get("base_model_name_or_path")
    if not isinstance(spec, str) or not spec:
        raise UserError(
            f"{_SETTING}: {source!r} is an adapter and names no base model "
            f"(base_model_name_or_path is {json.dumps(spec)})"
        )
    if path is None or spec.startswith(PACKAGE_SCHEME) or Path(spec).expanduser().is_absolute():
        return spec
    found = {p.resolve(): str(p) for p in (Path(spec), path / spec) if _holds_model(p)}
    if len(found) > 1:
        raise UserError(
            f"{_SETTING}: {source!r} is an adapter, and both of "
            f"{' and '.join(map(str, found))} may be its base model, {spec}"
        )
    return next(iter(found.values()), spec)


def _holds_model(path: Path) -> bool:
    return path.is_file() or any(
        (path / name).is_file() for name in ("config.json", "adapter_config.json")
    )


def _attach(base: Any, source: str) -> Any:
    """Return a peft model with the adapter of a folder or hub id, of which all keys fit."""
    from peft import PeftConfig, PeftModel
    from peft.utils.save_and_load import load_peft_weights

    config = PeftConfig.from_pretrained(source)
    kind = getattr(config.peft_type, "value", config.peft_type)
    if config.is_prompt_learning or config.is_adaption_prompt or kind == "XLORA":
        raise UserError(f"{kind} cannot be folded into the weights, which is what is supported")
    config.inference_mode = True
    _resize(base, load_peft_weights(source, device="cpu"))
    model = PeftModel(base, config)
    try:
        report = model.load_adapter(source, "default", is_trainable=False)
    except KeyError as error:
        raise UserError(f"it lacks {error}") from None
    for what, keys in (("lacks", report.missing_keys), ("has too", report.unexpected_keys)):
        if keys:
            raise UserError(f"it {what} the weights {pretrained.few(sorted(keys))}")
    return model


def _resize(base: Any, stored: dict[str, torch.Tensor]) -> None:
    """Give a model as many tokens as the embeddings have that were saved with its adapter."""
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    names = {id(module): name for name, module in base.named_modules()}
    keys = [f"base_model.model.{names[id(part)]}.weight" for part in (embedding, head)]
    if keys[0] not in stored or len(stored[keys[0]]) == len(embedding.weight):
        return
    if head.weight is not embedding.weight and keys[1] not in stored:
        raise UserError(f"it has other tokens than its base model, and lacks the weights {keys[1]}")
    base.resize_token_embeddings(len(stored[keys[0]]), mean_resizing=False)
