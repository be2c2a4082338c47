"""Where a prompt ends and where a response ends, in tokens."""

from __future__ import annotations

from typing import Any

from pyfast.train.errors import UserError


def prompt_tokens(tokenizer: Any, prompt: str) -> list[int]:
    """Return the tokens of a prompt, in the chat template if there is one.

    A plain prompt gets what the tokenizer puts before a text, and not what it puts after it: an end
    token there (T5's, or with ``add_eos_token``) would end the text before the response.

    Raises
    ------
    UserError
        If the template takes no single user's turn, or there is no token at all.
    """
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": prompt}]
        try:
            text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # a template may raise what it likes
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"policy.model: its chat template refuses a prompt: {reason}") from None
        tokens = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    else:
        tokens = _without_end(tokenizer, prompt)
    if not tokens:
        raise UserError(f"policy.model: its tokenizer makes no token of the prompt {prompt!r}")
    return tokens


def _without_end(tokenizer: Any, text: str) -> list[int]:
    whole = list(tokenizer(text)["input_ids"])
    bare = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    for before in range(len(whole) - len(bare) + 1):
        if whole[before : before + len(bare)] == bare:
            return whole[: before + len(bare)] if bare else _leading(tokenizer, whole)
    return _leading(tokenizer, whole)


def _leading(tokenizer: Any, tokens: list[int]) -> list[int]:
    """Return tokens without the end tokens after them, where the text's own are not to be told."""
    ends = {tokenizer.eos_token_id, getattr(tokenizer, "sep_token_id", None)}
    ends -= {tokenizer.bos_token_id, None}
    while tokens and tokens[-1] in ends:
        tokens = tokens[:-1]
    return tokens


def end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the tokens that end a response, by the generation settings and the tokenizer.

    Those beyond the model's vocabulary are left out: it never says them.

    Raises
    ------
    UserError
        If there are none.
    """
    found: list[int] = []
    text_config = model.config.get_text_config()
    for source in (getattr(model, "generation_config", None), text_config, tokenizer):
        configured = getattr(source, "eos_token_id", None)
        ids = configured if isinstance(configured, (list, tuple)) else [configured]
        found += [int(i) for i in ids if i is not None]
    if not found:
        raise UserError("policy.model: its tokenizer has no end-of-sequence token")
    head = getattr(model.get_output_embeddings(), "weight", None)
    rows = text_config.vocab_size if head is None else head.shape[0]
    within = frozenset(i for i in found if 0 <= i < rows)
    if not within:
        raise UserError(
            f"policy.model: its end-of-sequence tokens, {sorted(set(found))}, are beyond its "
            f"vocabulary of {rows}"
        )
    return within
