"""A made-up language model and encoder, small enough to train in a second."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

TEXT = """good great happy love nice bad sad awful hate poor a the day dog rain sun is was and not
tell me about in one short sentence system user assistant"""
WORDS = TEXT.split()
SPECIAL = ["[PAD]", "[UNK]", "<s>", "</s>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant' }}{% endif %}"
)


def make_tokenizer(chat_template=None, start=False):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if start:  # as sentence encoders have it: also an empty text has a token
        backend.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 2)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=64,
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def make_model(**changes):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "vocab_size": len(SPECIAL) + len(WORDS),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
        **changes,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**settings))


@pytest.fixture(scope="session")
def tiny():
    """Return what the made-up model is made of."""
    return SimpleNamespace(model=make_model, tokenizer=make_tokenizer, chat_template=CHAT_TEMPLATE)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A folder with a random two-layer Llama, its tokenizer and a chat template."""
    folder = tmp_path_factory.mktemp("tiny-model")
    make_model().save_pretrained(folder)
    make_tokenizer(CHAT_TEMPLATE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory) -> Path:
    """A folder with a random one-layer BERT and its tokenizer."""
    import torch
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny-encoder")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = BertModel(
            BertConfig(
                vocab_size=len(SPECIAL) + len(WORDS),
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=32,
                max_position_embeddings=64,
            )
        )
    model.save_pretrained(folder)
    make_tokenizer(start=True).save_pretrained(folder)
    return folder


@pytest.fixture
def make_policy():
    """Return a function that makes a policy whose adapter does something."""
    import torch

    from pyfast.train.policy import Policy

    def make(chat_template=None, adapter=0.3, how="none", **changes):
        policy = Policy(
            make_model(**changes),
            make_tokenizer(chat_template),
            rank=2,
            alpha=4.0,
            gradient_checkpointing=how,
        )
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in policy.trainable().values():
                parameter.copy_(adapter * torch.randn(parameter.shape, generator=generator))
        return policy

    return make


@pytest.fixture(scope="session")
def make_settings(tiny_model, tiny_encoder):
    """Return a function that writes prompts to a folder and returns a run's settings.

    The run takes a second or two on the made-up model.
    """

    def make(folder):
        prompts, heldout = folder / "prompts.jsonl", folder / "heldout.txt"
        topics = ["dog", "day", "rain", "sun", "sad dog"]
        lines = [json.dumps({"prompt": f"tell me about {topic}"}) for topic in topics]
        prompts.write_text("\n".join(lines))
        heldout.write_text("tell me about the sad rain\ntell me about love\nabout a day\n")
        return {
            "data": {"prompts": str(prompts), "heldout": str(heldout)},
            "policy": {"model": str(tiny_model), "lora_rank": 2, "lora_alpha": 4, "device": "cpu"},
            "sampling": {"responses": 8, "max_new_tokens": 8, "temperature": 1.0},
            "scoring": {"reward": "vader", "encoder": str(tiny_encoder)},
            "selection": {"k": 3, "n_init": 2},
            "optimisation": {"steps": 6, "lr": 0.02},
            "evaluation": {"responses": 4, "bootstrap": 200},
            "run": {"seed": 3, "checkpoint_every": 2, "threads": 1},
        }

    return make


@pytest.fixture
def tiny_settings(make_settings, tmp_path):
    """Return the settings of a run whose prompts lie in `tmp_path`."""
    return make_settings(tmp_path)
