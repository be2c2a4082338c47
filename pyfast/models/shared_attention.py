"""Attention over rows that share a prompt, response by response, on the CPU.

In a row ``prompt r_0 r_1 ... r_k`` a response sees the prompt and itself, but attention with a mask
multiplies all pairs of tokens and throws most of them away: (P + (1+k) R)^2 instead of
P^2 + (1+k) R (P + R). FlexAttention skips the others on GPUs, and has no backward pass on CPUs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class SharedPromptMask(Tensor):
    """An additive attention mask (rows, 1, L, L) that knows which parts of its rows see each other.

    It is the mask that its numbers say, wherever it goes; only `scaled_dot_product_attention`
    asks for its parts, and then multiplies what is seen alone. So a model needs no change, and
    one that slices the mask or adds to it first has a plain mask.

    Attributes
    ----------
    parts : list of (list of int, list of Tensor), or None
        For each row the lengths of its prompt, its responses and its padding, which may be 0; and
        the masks of the responses, (R, P + R).
    """

    parts: list[tuple[list[int], list[Tensor]]] | None = None

    @classmethod
    def of(cls, mask: Tensor, segments: Tensor) -> SharedPromptMask:
        """Return the mask of rows with these segments (`Layout.segments`)."""
        shared: SharedPromptMask = mask.as_subclass(cls)
        shared.parts = [_parts(mask[row, 0], line) for row, line in enumerate(segments.cpu())]
        return shared

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Take over scaled_dot_product_attention; be a plain tensor elsewhere."""
        kwargs = kwargs or {}
        if function is scaled_dot_product_attention:
            mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
            if isinstance(mask, cls) and mask.parts is not None and len(args) == 3:
                query, key, value = args
                settings = {name: given for name, given in kwargs.items() if name != "attn_mask"}
                return _attention(query, key, value, mask.parts, settings)
        with torch._C.DisableTorchFunctionSubclass():  # what comes out is no mask of parts
            return function(*args, **kwargs)


def _parts(mask: Tensor, segments: Tensor) -> tuple[list[int], list[Tensor]]:
    """Return the lengths of a row's parts, and the masks of its responses."""
    values, counts = torch.unique_consecutive(segments, return_counts=True)
    lengths = counts.tolist()
    padding = lengths.pop() if values[-1] < 0 else 0
    masks = []
    prompt = start = lengths[0]
    for length in lengths[1:]:
        rows = mask[start : start + length]
        masks.append(torch.cat([rows[:, :prompt], rows[:, start : start + length]], dim=1))
        start += length
    return [*lengths, padding], masks


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    parts: list[tuple[list[int], list[Tensor]]],
    settings: dict[str, Any],
) -> Tensor:
    """Return what scaled_dot_product_attention of all pairs gives; (rows, heads, L, d) each."""
    rows = []
    for row, (lengths, masks) in enumerate(parts):
        (q_prompt, *qs), (k_prompt, *ks), (v_prompt, *vs) = (
            torch.split(states[row : row + 1], lengths, dim=2) for states in (query, key, value)
        )
        causal = {**settings, "is_causal": True}
        seen = [scaled_dot_product_attention(q_prompt, k_prompt, v_prompt, **causal)]
        for q, k, v, mask in zip(qs, ks, vs, masks, strict=False):
            k, v = torch.cat([k_prompt, k], dim=2), torch.cat([v_prompt, v], dim=2)
            seen.append(scaled_dot_product_attention(q, k, v, attn_mask=mask, **settings))
        # padding sees itself alone
        seen.append(vs[-1].repeat_interleave(query.shape[1] // value.shape[1], dim=1))
        rows.append(torch.cat(seen, dim=2))
    return torch.cat(rows)
