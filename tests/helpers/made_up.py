"""Tiny models of many kinds, and the slow truth: one response at a time, all the logits."""

import torch
from one_at_a_time import plain_logp

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def small(kind, config, **settings):
    """Return a model with random weights, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(config(**settings)).eval()


def one_at_a_time(model, groups):
    """Score one response after the other."""
    return torch.stack([plain_logp(model, x, y) for x, ys in groups for y in ys])
