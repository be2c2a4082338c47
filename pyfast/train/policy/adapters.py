"""Adapters that a model already has: folded into its weights, so that the reference has them too.

The policy's own adapter is switched off to make the reference. An adapter that was there before, of
supervised fine-tuning say, must stay on then: it becomes part of the weights.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from pyfast.models.causal_lm import in_evaluation
from pyfast.train.policy import closeness

_LONGEST_PROBE = 64


def fold(model: Any) -> tuple[Any, list[str]]:
    """Return the transformers model inside, its active adapters folded into its weights.

    The sum W + dW is made in float32 at least and rounded once, to the type of W. Layers of a
    sharing pair of which one has an adapter share no longer.

    Parameters
    ----------
    model : transformers or peft causal language model
        It is changed, also where folding fails (`untouched_if_refused` puts it back).

    Returns
    -------
    base : transformers model
        The model itself, where it has no adapters.
    names : list of str
        The adapters that were active.

    Raises
    ------
    ValueError
        If an adapter cannot be part of the weights, is switched off, or if the logits afterwards
        are not those before.
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    if hasattr(base, "model") and type(model).__name__ == "PeftMixedModel":
        base = model.base_model.model
    layers = tuned(base)
    configs = getattr(model, "peft_config", None) or getattr(base, "peft_config", None) or {}
    if not layers and not configs:
        return base, []
    names = _check(model, base, layers, configs)
    tokens = probe(base, configs)
    before = logits(base, tokens)
    # A weight that two layers share, the head and the embedding say, is one layer's alone to adapt.
    owners = Counter(id(p) for module in base.modules() for p in module._parameters.values())
    try:
        _replace(base, {}, owners)
    except (ValueError, NotImplementedError, AttributeError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"model: its adapter {', '.join(names)} cannot be folded into the weights: {error}"
        ) from None
    for attribute in ("peft_config", "_hf_peft_config_loaded"):
        if attribute in vars(base):
            delattr(base, attribute)
    _untie(base)
    close, by = closeness.agree(closeness.differences(logits(base, tokens), before), base)
    if not close:
        raise ValueError(
            f"model: with its adapter {', '.join(names)} folded into the weights its logits differ "
            f"by {by:.1e} of their length"
        )
    return base, names


def targets(base: Any, names: str) -> str | list[str]:
    """Return peft's target modules: "all-linear", or names that each stand for some layers.

    Raises
    ------
    ValueError
        If a name stands for none, with the names that there are.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if wanted == ["all-linear"]:
        return "all-linear"
    existing = [
        name
        for name, module in base.named_modules()
        if isinstance(module, (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d))
        or type(module).__name__ == "Conv1D"
    ]
    for name in wanted or [names]:
        if not any(full == name or full.endswith(f".{name}") for full in existing):
            short = ", ".join(dict.fromkeys(full.rpartition(".")[2] for full in existing))
            raise ValueError(
                f"target_modules: expected all-linear or names of layers ({short}), got {name!r}"
            )
    return wanted


def sort_names(path: Path) -> None:
    """Sort the modules' names in an adapter's settings, which peft writes in a set's order.

    That is another one in each process, and a run that is gone on with ends with the same bytes.
    """
    settings = json.loads(path.read_text(encoding="utf-8"))
    for name in ("target_modules", "exclude_modules"):
        if isinstance(settings.get(name), list):
            settings[name].sort()
    path.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")


def left_out(base: Any) -> list[str]:
    """Return the linear layers that "all-linear" must leave out.

    Some give more than their product, such as routers, which an adapter cannot add to; others peft
    refuses, because state-space kernels read their weights past the adapter.
    """
    from peft import LoraConfig
    from peft.tuners import tuners_utils

    refuse = getattr(tuners_utils, "_check_lora_target_modules_mamba", None)
    odd = {}
    found = []
    for name, module in base.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        if type(module).forward is not nn.Linear.forward:
            odd[module] = name
        try:
            if refuse is not None:
                refuse(LoraConfig(r=1), base, name.rpartition(".")[2])
        except ValueError:
            found.append(name)

    def look(module: Any, given: Any, out: Any) -> None:
        if not (isinstance(out, Tensor) and out.shape[-1] == module.out_features):
            found.append(odd[module])

    handles = [module.register_forward_hook(look) for module in odd]
    try:
        if odd:
            logits(base, probe(base))
    finally:
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys(found))


def tuned(base: Any) -> list[Any]:
    """Return the modules of peft in a model."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return [m for m in base.modules() if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))]


def _check(model: Any, base: Any, layers: list[Any], configs: dict[str, Any]) -> list[str]:
    """Refuse what cannot be folded; return the names of the adapters that are active."""
    for name, config in configs.items():
        kind = getattr(config.peft_type, "value", config.peft_type)
        if getattr(config, "is_prompt_learning", False):
            raise ValueError(
                f"model: its adapter {name}, {kind}, is virtual tokens, which is not supported"
            )
        if getattr(config, "is_adaption_prompt", False) or kind == "XLORA":
            raise ValueError(
                f"model: its adapter {name}, {kind}, cannot be folded into the weights"
            )
    listed = ", ".join(map(str, configs)) or "(unnamed)"
    if not layers:
        raise ValueError(f"model: its adapters, {listed}, are nowhere in it")
    if any(getattr(layer, "disable_adapters", False) for layer in layers):
        raise ValueError(
            f"model: its adapters, {listed}, are switched off; switch on what it should start "
            "from, or take them out (unload)"
        )
    names: list[str] = []
    for layer in layers:
        merged = list(getattr(layer, "merged_adapters", []))
        active = merged if merged else layer.active_adapters
        names += [n for n in ([active] if isinstance(active, str) else active) if n not in names]
    if not names:
        raise ValueError(
            f"model: none of its adapters, {listed}, is active; set one (set_adapter), or take "
            "them out (unload)"
        )
    if getattr(base, "is_quantized", False):
        raise ValueError("model: an adapter on quantized weights cannot be folded into them")
    if any(parameter.is_meta for parameter in base.parameters()):
        raise ValueError("model: an adapter on offloaded weights cannot be folded into them")
    return names


def _replace(parent: nn.Module, done: dict[int, Any], owners: Counter[int]) -> None:
    """Put the folded layer in the place of each layer with an adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for name, child in list(parent._modules.items()):
        if child is None:
            continue
        if id(child) not in done:
            if isinstance(child, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
                done[id(child)] = _folded(child, owners)
            else:
                done[id(child)] = child
                _replace(child, done, owners)
        parent._modules[name] = done[id(child)]


def _folded(layer: Any, owners: Counter[int]) -> nn.Module:
    """Return the layer under an adapter, with the adapter in its weights."""
    types = {}
    for module in layer.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if owners[id(parameter)] > 1:
                parameter = nn.Parameter(parameter.data.clone(), parameter.requires_grad)
                module._parameters[name] = parameter
            types[parameter] = parameter.dtype
            if parameter.dtype in (torch.bfloat16, torch.float16):
                parameter.data = parameter.data.float()
    if hasattr(layer, "unload_and_optionally_merge_module"):
        plain = layer.unload_and_optionally_merge_module(
            merge=True, safe_merge=True, adapter_names=None
        )
    else:
        plain = layer
        while hasattr(plain, "base_layer"):  # adapters of several parameters lie in each other
            if not plain.merged:
                plain.merge(safe_merge=True)
            plain = plain.base_layer
    for parameter in plain.parameters():
        parameter.data = parameter.data.to(types.get(parameter, parameter.dtype))
    return plain  # type: ignore[no-any-return]


def _untie(base: Any) -> None:
    """Let the settings say that head and embedding differ, where only one had an adapter."""
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    if head is None or getattr(head, "weight", None) is getattr(embedding, "weight", None):
        return
    for config in {id(c): c for c in (base.config, base.config.get_text_config())}.values():
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False


def probe(base: Any, configs: Mapping[str, Any] = MappingProxyType({})) -> Tensor:
    """Return two rows of tokens (2, T), those that an adapter trains of their own among them."""
    weight = base.get_input_embeddings().weight
    own = [i for c in configs.values() for i in _tokens_of(c) if 0 <= i < len(weight)]
    spread = torch.linspace(0, len(weight) - 1, 16).long().tolist()
    row = [*spread, *own[:_LONGEST_PROBE]]
    return torch.tensor([row, row[::-1]], device=weight.device)


def _tokens_of(config: Any) -> list[int]:
    own = getattr(config, "trainable_token_indices", None) or []
    lists = own.values() if isinstance(own, dict) else [own]
    return [int(i) for indices in lists for i in indices or []]


@torch.no_grad()
def logits(base: Any, tokens: Tensor) -> Tensor:
    """Return the logits of a model in float32, without dropout."""
    with in_evaluation(base):
        return base(input_ids=tokens).logits.float()  # type: ignore[no-any-return]


@contextlib.contextmanager
def untouched_if_refused(model: nn.Module) -> Iterator[None]:
    """Put a model back as it was, if the block ends in an error.

    Modules, parameters, flags, modes, hooks and settings are put back, and the tensors that were
    the weights: meanwhile those are kept, besides what takes their place.
    """
    objects: dict[int, Any] = {}
    for module in model.modules():
        objects[id(module)] = module
        for name in ("config", "generation_config"):
            if name in vars(module) and hasattr(vars(module)[name], "__dict__"):
                objects[id(vars(module)[name])] = vars(module)[name]
        for config in (vars(module).get("peft_config") or {}).values():
            objects[id(config)] = config
    kept = [(thing, type(thing), dict(vars(thing))) for thing in objects.values()]
    inside = [
        (value, value.copy())
        for _, _, attributes in kept
        for value in attributes.values()
        if isinstance(value, (dict, set, list))
    ]
    parameters = [(p, p.data, p.requires_grad, p.grad) for p in model.parameters()]
    try:
        yield
    except BaseException:
        for thing, kind, attributes in kept:
            if type(thing) is not kind:
                thing.__class__ = kind
            vars(thing).clear()
            vars(thing).update(attributes)
        for value, content in inside:  # the same containers, which handles of hooks point to
            value.clear()
            value.extend(content) if isinstance(value, list) else value.update(content)
        for parameter, data, wanted, grad in parameters:
            parameter.data, parameter.grad = data, grad
            parameter.requires_grad_(wanted)
        raise
