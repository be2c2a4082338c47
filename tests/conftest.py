"""What several rooms' tests share, a made-up language model among it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

# A shell's background job ignores Ctrl-C, and so would the runs that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

TEXT = """good great happy love nice bad sad awful hate poor a the day dog rain sun is was and not
tell me about in one short sentence system user assistant"""
WORDS = TEXT.split()
SPECIAL = ["[PAD]", "[UNK]", "<s>", "</s>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant' }}{% endif %}"
)


@pytest.fixture(scope="session")
def threads_at_first():
    """Torch's threads, None if nothing has loaded it: neither does this."""
    torch = sys.modules.get("torch")
    return None if torch is None else torch.get_num_threads()


@pytest.fixture(autouse=True)
def _same_threads(threads_at_first):
    """A run sets torch's threads, of the whole process: no test finds what another has left."""
    if threads_at_first is not None:
        sys.modules["torch"].set_num_threads(threads_at_first)


@pytest.fixture
def one_thread(_same_threads):
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., str]:
    """Run a snippet in a fresh interpreter, fail on a bad exit or a hang, return its output."""

    paths = [str(Path(__file__).parent / "helpers"), os.environ.get("PYTHONPATH")]

    def run(code: str, timeout: float = 120) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=tmp_path,  # not the tree: -c would import its unbuilt sources
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


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
    return SimpleNamespace(
        model=make_model,
        tokenizer=make_tokenizer,
        chat_template=CHAT_TEMPLATE,
        vocabulary=len(SPECIAL) + len(WORDS),
    )


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A folder with a random two-layer Llama, its tokenizer and a chat template."""
    folder = tmp_path_factory.mktemp("tiny-model")
    make_model().save_pretrained(folder)
    make_tokenizer(CHAT_TEMPLATE).save_pretrained(folder)
    return folder


@pytest.fixture
def make_policy():
    """Return a function that makes a policy whose adapter does something."""
    import torch

    from pyfast.train.policy.policy import Policy

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
def tiny_encoder(tiny, tmp_path_factory) -> Path:
    """A folder with a random one-layer BERT and its tokenizer."""
    import torch
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny-encoder")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = BertModel(
            BertConfig(
                vocab_size=tiny.vocabulary,
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=32,
                max_position_embeddings=64,
            )
        )
    model.save_pretrained(folder)
    tiny.tokenizer(start=True).save_pretrained(folder)
    return folder


@pytest.fixture
def fresh_accelerate():
    """Let a test choose its own mixed precision: accelerate keeps the first of a process."""
    from accelerate.state import AcceleratorState, PartialState

    def forget():
        AcceleratorState._reset_state()
        PartialState._reset_state()

    forget()
    yield
    forget()
