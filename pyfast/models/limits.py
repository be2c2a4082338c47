"""How far a model reads, as its configuration and its buffers say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
_WINDOWS = ("sliding_window", "attention_chunk_size", "attention_window_size", "local_attention")


def find_length(config: Any) -> int | None:
    """Return how many positions there are, if that is said."""
    return min(_named(config, _LENGTHS), default=None)


def find_window(config: Any) -> int | None:
    """Return how far back some layer sees, if it is not all the way."""
    names = list(_WINDOWS)
    if not getattr(config, "use_sliding_window", True):
        names.remove("sliding_window")
    return min(_named(config, names), default=None)


def find_longest_row(backbone: Any, config: Any) -> int | None:
    """Return the length up to which a row hides nothing more than its mask does.

    Some models (GPT-Neo) keep a causal mask of their own, by places in the row instead of
    positions; it ends somewhere, and of a layer with a window it is a band.
    """
    spans = _named(config, ["window_size"])
    for buffer in backbone.buffers():
        square = buffer.ndim >= 2 and buffer.shape[-1] == buffer.shape[-2] > 1
        if square and not buffer[..., 0, 1:].any():  # the first sees nothing that follows
            spans.append(int((buffer[..., -1, :] != 0).sum(-1).min()))
    return min(spans, default=None)


def special_tokens(config: Any) -> set[int]:
    """Return the tokens that a configuration gives a meaning: padding, images, ends."""
    found = set()
    for name, value in config.to_dict().items():
        if name.endswith(("token_id", "token_index")):
            ids = value if isinstance(value, list) else [value]
            found |= {i for i in ids if isinstance(i, int)}
    return found


def _named(config: Any, names: Sequence[str]) -> list[int]:
    """Return what is said under these names, where it is a number above 0."""
    found: list[Any] = [getattr(config, name, None) for name in names]
    return [value for value in found if _counts(value)]


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
