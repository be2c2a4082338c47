"""A made-up language model with LoRA, and responses of many lengths."""

from types import SimpleNamespace

import pytest
import torch

VOCABULARY = 60


def make_model(**changes):
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.1,
        "pad_token_id": 0,
        **changes,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**settings)).eval()


def make_lora(model=None, *, rank=4, fresh=False, **changes):
    """A model whose adapter does something, unless it is fresh (B = 0)."""
    from peft import LoraConfig, get_peft_model

    settings = {"r": rank, "lora_alpha": 8, "target_modules": "all-linear", **changes}
    model = make_model() if model is None else model
    training = model.training
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = get_peft_model(model, LoraConfig(**settings))
        if not fresh:
            for name, parameter in model.named_parameters():
                if "lora_A" in name or "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.1)
    return model.train(training)


def make_responses(count, seed=0, *, longest=12):
    generator = torch.Generator().manual_seed(seed)

    def tokens(low, high):
        size = int(torch.randint(low, high + 1, (1,), generator=generator))
        return torch.randint(1, VOCABULARY, (size,), generator=generator).tolist()

    return [(tokens(1, 6), tokens(1, longest)) for _ in range(count)]


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """Tiny matrices gain nothing from threads, and lose much on a busy machine."""


@pytest.fixture(scope="session")
def tiny():
    """Return what the made-up model and its responses are made of."""
    return SimpleNamespace(
        model=make_model, lora=make_lora, responses=make_responses, vocabulary=VOCABULARY
    )
