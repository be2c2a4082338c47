from types import SimpleNamespace

import pytest

from pyfast.train.data.tokens import end_ids, prompt_tokens
from pyfast.train.errors import UserError


def processed(tiny, *pieces):
    """Return a tokenizer that puts special tokens around a text, such as "<s> $A </s>"."""
    from tokenizers import processors

    tokenizer = tiny.tokenizer()
    special = [("<s>", 2), ("</s>", 3)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(pieces), special_tokens=special
    )
    return tokenizer


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["$A"], "good day"),
        (["<s>", "$A"], "<s> good day"),
        (["$A", "</s>"], "good day"),  # T5's
        (["<s>", "$A", "</s>"], "<s> good day"),  # Llama's with add_eos_token, BERT's
        (["<s>", "$A", "</s>", "</s>"], "<s> good day"),
    ],
)
def test_a_prompt_has_no_end_token_that_the_tokenizer_appends(tiny, pieces, expected):
    tokenizer = processed(tiny, *pieces)
    assert tokenizer.decode(prompt_tokens(tokenizer, "good day")) == expected


def test_an_end_token_of_the_text_itself_stays(tiny):
    tokenizer = processed(tiny, "<s>", "$A", "</s>")
    assert tokenizer.decode(prompt_tokens(tokenizer, "good </s> day </s>")) == (
        "<s> good </s> day </s>"
    )


def test_a_chat_template_alone_says_what_is_around_a_prompt(tiny):
    tokenizer = processed(tiny, "<s>", "$A", "</s>")
    tokenizer.chat_template = "<s> {{ messages[0]['content'] }} user"
    assert tokenizer.decode(prompt_tokens(tokenizer, "good day")) == "<s> good day user"


def test_prompts_that_are_nothing(tiny):
    with pytest.raises(UserError, match="makes no token of the prompt '  '"):
        prompt_tokens(tiny.tokenizer(), "  ")
    assert prompt_tokens(processed(tiny, "<s>", "$A", "</s>"), " ") == [2]
    tokenizer = tiny.tokenizer("{{ raise_exception('system first') }}")
    with pytest.raises(UserError, match="its chat template refuses a prompt: system first"):
        prompt_tokens(tokenizer, "good day")


@pytest.mark.parametrize(
    ("generation", "config", "tokenizer", "expected"),
    [
        (3, None, None, {3}),
        ([3, 5], None, 3, {3, 5}),
        (None, 7, 3, {3, 7}),
        (None, [7, 8], None, {7, 8}),
        ([3, 10**6], None, None, {3}),  # beyond what the model can say
        (-1, None, 3, {3}),
    ],
)
def test_end_tokens(tiny, generation, config, tokenizer, expected):
    model = tiny.model(eos_token_id=config)
    model.generation_config.eos_token_id = generation
    found = end_ids(model, SimpleNamespace(eos_token_id=tokenizer))
    assert found == expected


def test_end_tokens_that_never_come(tiny):
    model = tiny.model(eos_token_id=None)
    model.generation_config = None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        end_ids(model, SimpleNamespace(eos_token_id=None))
    with pytest.raises(UserError, match=r"end-of-sequence tokens, \[500\], are beyond"):
        end_ids(model, SimpleNamespace(eos_token_id=500))
