"""The policy's adapter folded into the weights for a while, which samples faster."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch

from pyfast.train.policy import adapters, closeness

_SIZE_OF_B = 0.03


@contextlib.contextmanager
def merged(model: Any) -> Iterator[None]:
    """Fold the adapters of a peft model into its weights: W + alpha/rank B A, not two paths.

    The frozen weights are put back, not subtracted back, so that not a bit of them changes; they
    are a second set of weights meanwhile.

    Raises
    ------
    ValueError
        If a weight with an adapter is also another layer's.
    """
    layers = adapters.tuned(model)
    kept = [(p, p.data) for layer in layers for p in layer.get_base_layer().parameters()]
    owners = Counter(id(p) for module in model.modules() for p in module._parameters.values())
    if any(owners[id(parameter)] > 1 for parameter, _ in kept):
        raise ValueError("layers share a weight, and the adapter is one layer's")
    try:
        for weight, original in kept:
            weight.data = original.clone()
        for layer in layers:
            layer.merge()  # in place; peft's safe way refuses NaN, which the sampler tells better
        yield
    finally:
        for layer in layers:
            layer.merged_adapters.clear()
        for weight, original in kept:
            weight.data = original


@torch.no_grad()
def why_not(model: Any) -> str | None:
    """Return why a peft model with its adapter folded in is not the same model; None if it is.

    It is tried with random numbers in the place of B, which is 0 at first. A model that reads a
    layer's weight itself (some state-space models do) goes past the adapter beside it.
    """
    base = model.get_base_model()
    kept = [(p, p.data) for name, p in model.named_parameters() if _is_b(name)]
    generator = torch.Generator().manual_seed(0)
    tokens = adapters.probe(base)
    try:
        for parameter, data in kept:
            noise = torch.randn(data.shape, generator=generator)
            parameter.data = _SIZE_OF_B * noise.to(data)
        apart = adapters.logits(base, tokens)
        with merged(model):
            together = adapters.logits(base, tokens)
    except (ValueError, NotImplementedError, AttributeError, TypeError, RuntimeError) as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    finally:
        for parameter, data in kept:
            parameter.data = data
    close, by = closeness.agree(closeness.differences(together, apart), base)
    return None if close else f"its logits then differ by {by:.1e} of their length"


def _is_b(name: str) -> bool:
    return ".lora_B." in name or ".lora_embedding_B." in name
