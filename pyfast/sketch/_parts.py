"""The parts of a sketched gradient: which LoRA matrices of a model are in it, in which order."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from pyfast.sketch._mode import name_of, walk

_FACTORS = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))


@dataclass(frozen=True)
class Site:
    """Where a LoRA matrix works: as A or as B of one layer.

    Attributes
    ----------
    layer, adapter : peft LoRA layer, str
    factors : (str, str)
        The names of the layer's dictionaries of A and of B.
    of_a : bool
        Whether it is A there.
    pair : (weight, weight)
        What A and B were when the part was found; None for one that is not there.
    """

    layer: Any
    adapter: str
    factors: tuple[str, str]
    of_a: bool
    pair: tuple[Any, Any]

    @classmethod
    def find(cls, layer: Any, adapter: str, factors: tuple[str, str], of_a: bool) -> Site:
        """Return a site as it is now."""
        pair = _pair(layer, adapter, factors)
        return cls(layer, adapter, factors, of_a, pair)

    @property
    def in_place(self) -> bool:
        """Whether the layer still has both."""
        now = _pair(self.layer, self.adapter, self.factors)
        return now[0] is self.pair[0] and now[1] is self.pair[1]

    @property
    def weight(self) -> Any:
        """Of the matrix."""
        return self.pair[0 if self.of_a else 1]

    @property
    def after(self) -> Any:
        """For A, the weight of its B; else None."""
        return self.pair[1] if self.of_a else None

    @property
    def module(self) -> Any:
        """The module that multiplies by it; None where a bare parameter does, or nothing."""
        there = getattr(self.layer, self.factors[0 if self.of_a else 1])[self.adapter]
        return None if isinstance(there, nn.Parameter) else there

    @property
    def runs(self) -> bool:
        """Whether the layer sends its input through the module.

        Some layers add the product of A and B to a weight, or look rows of A up.
        """
        from peft.tuners.lora import layer as kinds

        names = ("ParamWrapper", "MultiheadAttention")  # older peft lacks the first
        others = tuple(getattr(kinds, name) for name in names if hasattr(kinds, name))
        return isinstance(self.module, nn.Linear) and not isinstance(self.layer, others)


@dataclass(frozen=True)
class Part:
    """One trainable LoRA matrix.

    Attributes
    ----------
    name : str
        Of its module, in the model's `named_modules`, or of the parameter.
    weight : Parameter
        Maps d_in to r (A) or r to d_out (B).
    long, rank : int
        Its gradient is laid out [long, rank]: A transposed, B as it is.
    transposed : bool
        True for A.
    sites : list of Site
        Where it works: in one layer, or in several that share it.
    """

    name: str
    weight: nn.Parameter
    long: int
    rank: int
    transposed: bool
    sites: list[Site] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Numbers in its gradient."""
        return self.long * self.rank

    def lay_out(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return a gradient of the weight's own shape as [long, rank], float32."""
        flat = gradient.detach().flatten(1)
        return (flat.T if self.transposed else flat).float().contiguous()


def lora_layers(model: Any) -> list[tuple[str, Any]]:
    """Return peft's LoRA layers by name, in the order of the model's `named_modules`."""
    from peft.tuners.lora import LoraLayer

    return [(n, m) for n, m in model.named_modules() if isinstance(m, LoraLayer)]


def _pair(layer: Any, adapter: str, factors: tuple[str, str]) -> tuple[Any, Any]:
    a, b = (getattr(layer, kind) for kind in factors)
    return _weight(a, adapter), _weight(b, adapter)


def _weight(factors: Any, adapter: str) -> Any:
    """Return the weight of one of a layer's A or B; None if there is none."""
    if adapter not in factors:
        return None
    there = factors[adapter]
    return there if isinstance(there, nn.Parameter) else there.weight


def _sites(layer: Any) -> Iterator[tuple[str, Site]]:
    """Walk over a layer's matrices in order, A before B; their names within it."""
    for adapter in layer.active_adapters:
        for factors in _FACTORS:
            for kind in factors:
                site = Site.find(layer, adapter, factors, kind == factors[0])
                if site.weight is not None:
                    yield f"{kind}.{adapter}", site


def find_parts(model: Any) -> tuple[list[Part], list[str]]:
    """Return the trainable A and B of the active adapters, and the other trainable parameters.

    A matrix whose weight does not require grad is frozen, and left out. One that several layers
    share is one part.
    """
    parts: dict[int, Part] = {}
    for name, layer in lora_layers(model):
        for kind, site in _sites(layer):
            weight = site.weight
            if not (isinstance(weight, nn.Parameter) and weight.requires_grad):
                continue
            if id(weight) not in parts:
                rows, columns = weight.shape[0], weight[0].numel()
                long, rank = (columns, rows) if site.of_a else (rows, columns)
                parts[id(weight)] = Part(f"{name}.{kind}", weight, long, rank, site.of_a)
            parts[id(weight)].sites.append(site)
    others = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in parts]
    if not parts:
        raise ValueError(
            "model: expected trainable LoRA weights; found none (load the adapter with "
            "is_trainable=True, or switch it on with set_adapter)"
        )
    if others:
        shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        warnings.warn(
            f"{len(others)} trainable parameters are no LoRA A or B and are left out of the "
            f"sketches: {shown}",
            stacklevel=3,
        )
    return list(parts.values()), others


def silent_parts(parts: list[Part]) -> frozenset[int]:
    """Return the numbers of the A whose B is zero, as in a fresh adapter: so is their gradient."""
    behind = [
        (number, torch.stack([site.after.detach().any() for site in part.sites if site.of_a]).any())
        for number, part in enumerate(parts)
        if all(site.of_a for site in part.sites)
    ]
    if not behind:
        return frozenset()
    speaks = torch.stack([spoken for _, spoken in behind]).tolist()
    return frozenset(
        number for (number, _), spoken in zip(behind, speaks, strict=True) if not spoken
    )


def check_ready(model: Any, parts: list[Part]) -> None:
    """Refuse a model whose forward pass would not go through the parts, or would draw at random."""
    modules = walk(model)
    there = {id(module) for module in modules}
    wanted: dict[int, tuple[Any, set[str]]] = {}
    for part in parts:
        for site in part.sites:
            if id(site.layer) not in there or not site.in_place:
                raise ValueError(
                    f"model: {part.name} is no longer in it (its adapter was unloaded, deleted or "
                    "made anew); make a new collector"
                )
            wanted.setdefault(id(site.layer), (site.layer, set()))[1].add(site.adapter)
    ours = {id(part.weight) for part in parts}
    for layer, adapters in wanted.values():
        active, why = list(layer.active_adapters), None
        if layer.disable_adapters:
            why = "is disabled; its gradient is not there"
        elif layer.merged:
            why = "is merged; call unmerge_adapter() first"
        elif set(active) != adapters and (
            not adapters <= set(active) or any(_joined(s, ours, adapters) for _, s in _sites(layer))
        ):
            name = name_of(model, layer)
            raise ValueError(f"model: the active adapter of {name} changed; make a new collector")
        if why is not None:
            raise ValueError(f"model: the adapter of {name_of(model, layer)} {why}")
    for module in modules:
        rate = _dropout(module) if module.training else 0
        if rate:
            raise ValueError(
                f"model: {name_of(model, module)} drops out at rate {rate}, which makes gradients "
                "random; call model.eval() or set the rate to 0"
            )


def _joined(site: Site, ours: set[int], adapters: set[str]) -> bool:
    """Tell whether a trainable matrix is of an adapter that was not active before."""
    new = site.adapter not in adapters and id(site.weight) not in ours
    return new and bool(site.weight.requires_grad)


def _dropout(module: nn.Module) -> float:
    """Return the largest dropout rate that a module names."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return float(module.p)
    rates = [v for k, v in vars(module).items() if "dropout" in k and isinstance(v, float)]
    return max(rates, default=0.0)
