"""The parts of a sketched gradient: which LoRA matrices of a model are in it, in which order."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Part:
    """One trainable LoRA matrix.

    Attributes
    ----------
    name : str
        Of its module, in the model's `named_modules`.
    module : nn.Linear
        Maps d_in to r (A) or r to d_out (B).
    long, rank : int
        Its gradient is laid out [long, rank]: A transposed, B as it is.
    transposed : bool
        True for A.
    after : nn.Linear or None
        For A, the B that its output goes to.
    layer, adapter : peft LoRA layer, str
        Where it belongs.
    """

    name: str
    module: nn.Linear
    long: int
    rank: int
    transposed: bool
    after: nn.Linear | None
    layer: Any
    adapter: str

    @property
    def size(self) -> int:
        """Numbers in its gradient."""
        return self.long * self.rank

    @property
    def in_place(self) -> bool:
        """Whether its layer still has it, and for A that B."""
        a, b = (
            dict(factors.items()).get(self.adapter)
            for factors in (self.layer.lora_A, self.layer.lora_B)
        )
        return (a, b) == (self.module, self.after) if self.transposed else b is self.module


def lora_layers(model: Any) -> list[tuple[str, Any]]:
    """Return peft's LoRA layers by name, in the order of the model's `named_modules`."""
    from peft.tuners.lora import LoraLayer

    return [(n, m) for n, m in model.named_modules() if isinstance(m, LoraLayer)]


def _runs_its_matrices(layer: Any) -> bool:
    """Tell whether a layer sends its input through A and B; some add their product to a weight."""
    from peft.tuners.lora import layer as kinds

    names = ("ParamWrapper", "MultiheadAttention")  # older peft lacks the first
    return not isinstance(layer, tuple(getattr(kinds, n) for n in names if hasattr(kinds, n)))


def find_parts(model: Any) -> tuple[list[Part], list[str]]:
    """Return the trainable A and B of the active adapters, and the other trainable parameters.

    A matrix whose weight does not require grad is frozen, and left out.
    """
    parts: list[Part] = []
    for name, layer in lora_layers(model):
        if not _runs_its_matrices(layer):
            continue
        for adapter in layer.active_adapters:
            for kind in ("lora_A", "lora_B"):
                modules = getattr(layer, kind)
                if adapter not in modules or type(modules[adapter]) is not nn.Linear:
                    continue
                if modules[adapter].weight.requires_grad:
                    parts.append(_part(f"{name}.{kind}.{adapter}", layer, kind, adapter))
    ours = {id(part.module.weight) for part in parts}
    others = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in ours]
    if not parts:
        raise ValueError(
            "model: expected trainable LoRA weights in linear layers; found none (load the "
            "adapter with is_trainable=True, or switch it on with set_adapter)"
        )
    if others:
        shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        warnings.warn(
            f"{len(others)} trainable parameters are no LoRA A or B of a linear layer and are left "
            f"out of the sketches: {shown}",
            stacklevel=3,
        )
    return parts, others


def _part(name: str, layer: Any, kind: str, adapter: str) -> Part:
    module = getattr(layer, kind)[adapter]
    after = layer.lora_B[adapter] if kind == "lora_A" else None
    rows, columns = module.weight.shape
    long, rank = (rows, columns) if after is None else (columns, rows)
    return Part(name, module, long, rank, after is not None, after, layer, adapter)


def silent_parts(parts: list[Part]) -> frozenset[int]:
    """Return the numbers of the A whose B is zero, as in a fresh adapter: so is their gradient."""
    behind = [
        (number, part.after.weight) for number, part in enumerate(parts) if part.after is not None
    ]
    if not behind:
        return frozenset()
    speaks = torch.stack([weight.detach().any() for _, weight in behind]).tolist()
    return frozenset(
        number for (number, _), spoken in zip(behind, speaks, strict=True) if not spoken
    )


def check_ready(model: Any, parts: list[Part]) -> None:
    """Refuse a model whose forward pass would not go through the parts, or would draw at random."""
    layers = lora_layers(model)
    there = {id(layer) for _, layer in layers}
    for part in parts:
        if id(part.layer) not in there or not part.in_place:
            raise ValueError(
                f"model: {part.name} is no longer in it (its adapter was unloaded, deleted or "
                "made anew); make a new collector"
            )
    wanted = {id(part.module): part.name for part in parts}
    for name, layer in layers:
        modules = [m for d in (layer.lora_A, layer.lora_B) for m in d.values()]
        if not any(id(m) in wanted for m in modules):
            continue
        if layer.disable_adapters:
            raise ValueError(f"model: the adapter of {name} is disabled; its gradient is not there")
        if layer.merged:
            raise ValueError(
                f"model: the adapter of {name} is merged; call unmerge_adapter() first"
            )
        both = (layer.lora_A, layer.lora_B)
        active = {id(d[a]) for d in both for a in layer.active_adapters if a in d}
        if not active >= {id(m) for m in modules if id(m) in wanted}:
            raise ValueError(f"model: the active adapter of {name} changed; make a new collector")
    for name, module in model.named_modules():
        rate = _dropout(module)
        if module.training and rate:
            raise ValueError(
                f"model: {name or 'it'} drops out at rate {rate}, which makes gradients random; "
                "call model.eval() or set the rate to 0"
            )


def _dropout(module: nn.Module) -> float:
    """Return the largest dropout rate that a module names."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return float(module.p)
    rates = [v for k, v in vars(module).items() if "dropout" in k and isinstance(v, float)]
    return max(rates, default=0.0)


class Frozen:
    """For a while, no parameter requires grad and the embeddings' output does.

    Then the backward pass carries gradients down to every layer and computes none of any weight.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._trainable: list[torch.nn.Parameter] = []
        self._embeddings: Any = None

    def __enter__(self) -> None:
        try:
            self._trainable = [p for p in self._model.parameters() if p.requires_grad]
            for parameter in self._trainable:
                parameter.requires_grad_(False)
            self._embeddings = self._model.get_input_embeddings()
            self._embeddings.register_forward_hook(_require_grad)
        except BaseException:
            self.undo()
            raise

    def __exit__(self, *_: object) -> None:
        self.undo()

    def undo(self) -> None:
        """Leave the model as it was; a second call, after a Ctrl-C in the first, does the rest."""
        if self._embeddings is not None:
            unhook(self._embeddings, _require_grad)
        for parameter in self._trainable:
            parameter.requires_grad_(True)


def _require_grad(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output.requires_grad_(True)


def unhook(module: nn.Module, hook: Any) -> None:
    """Take a forward hook away, if it is there: Ctrl-C may come before its handle is at hand."""
    for key in [key for key, there in module._forward_hooks.items() if there is hook]:
        del module._forward_hooks[key]
