"""Where a prompt ends and where a response ends, in tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pyfast.train.errors import UserError

if TYPE_CHECKING:
    from pyfast.train.data.records import Record


_MARK = "zqzqz"
"""A text that no chat template has of its own."""


class Tokeniser:
    """Makes tokens of prompts and of given responses.

    Prompt and response are tokenised apart and put one after the other, as in sampling.

    Parameters
    ----------
    tokenizer : transformers tokenizer
    ends : collection of int
        The tokens that end a response (`end_ids`).
    system : str, optional
        A system message, in front of every prompt that has none of its own.
    max_prompt, max_response : int, optional
        Longer ones are cut: a prompt from the left, a response from the right (then it has no end
        token).
    vocabulary : int, optional
        How many tokens the model has. A tokenizer may make others, such as added ones that its
        model was never given; they are refused.

    Attributes
    ----------
    cut : Counter
        How many ``"prompts"`` and ``"responses"`` were cut.
    """

    def __init__(
        self,
        tokenizer: Any,
        ends: Iterable[int],
        *,
        system: str | None = None,
        max_prompt: int | None = None,
        max_response: int | None = None,
        vocabulary: int | None = None,
    ) -> None:
        self.tokenizer, self.ends, self._vocabulary = tokenizer, frozenset(ends), vocabulary
        self._system, self._max_prompt, self._max_response = system, max_prompt, max_response
        self.end = end_of_response(tokenizer, self.ends)
        self.cut: Counter[str] = Counter()

    def prompt(self, prompt: str) -> list[int]:
        """Return the tokens of a prompt (`prompt_tokens`)."""
        tokens = self._known(prompt_tokens(self.tokenizer, prompt, self._system))
        longest = self._max_prompt
        if longest is not None and len(tokens) > longest:
            self.cut["prompts"] += 1
            tokens = tokens[-longest:]
        return tokens

    def response(self, text: str) -> list[int]:
        """Return the tokens of a response: its text's, and exactly one end token.

        End tokens that the text ends with are taken for the one.

        Raises
        ------
        UserError
            If the text says an end token and goes on.
        """
        tokens = self._known(list(self.tokenizer(text, add_special_tokens=False)["input_ids"]))
        while tokens and tokens[-1] in self.ends:
            tokens.pop()
        for token in tokens:
            if token in self.ends:
                shown = self.tokenizer.decode([token])
                raise UserError(f"expected no end token inside a response, got {shown!r}")
        tokens.append(self.end)
        longest = self._max_response
        if longest is not None and len(tokens) > longest:
            self.cut["responses"] += 1
            tokens = tokens[:longest]
        return tokens

    def _known(self, tokens: list[int]) -> list[int]:
        most = self._vocabulary
        if most is not None and max(tokens, default=0) >= most:
            token = next(t for t in tokens if t >= most)
            raise UserError(
                f"policy.model: it has {most} tokens, and its tokenizer makes the token {token}, "
                f"{self.tokenizer.convert_ids_to_tokens(token)!r}; expected its own tokenizer"
            )
        return tokens

    def encode(self, record: Record) -> tuple[list[int], list[list[int]]]:
        """Return the tokens of a record's prompt, and of each of its responses.

        Raises
        ------
        UserError
            With the record's place.
        """
        try:
            prompt = self.prompt(record.prompt)
            responses = []
            for i, text in enumerate(record.responses):
                try:
                    responses.append(self.response(text))
                except UserError as error:
                    raise UserError(f"responses[{i}]: {error}") from None
        except UserError as error:
            raise UserError(f"{record.place}: {error}") from None
        return prompt, responses


def prompt_tokens(tokenizer: Any, prompt: str, system: str | None = None) -> list[int]:
    """Return the tokens of a prompt, in the chat template if there is one.

    A plain prompt gets what the tokenizer puts before a text, and not what it puts after it: an end
    token there (T5's, or with ``add_eos_token``) would end the text before the response.

    Parameters
    ----------
    tokenizer : transformers tokenizer
    prompt : str
        A text is the user's turn; a `prompts.Prompt` may be a chat.
    system : str, optional
        A system message, in front of a chat that begins with none.

    Raises
    ------
    UserError
        If the template does not take such turns, or there is none and they are more than one
        user's; or if there is no token at all.
    """
    turns = getattr(prompt, "messages", None) or [{"role": "user", "content": str(prompt)}]
    if system is not None and turns[0]["role"] not in ("system", "developer"):
        turns = [{"role": "system", "content": system}, *turns]
    if tokenizer.chat_template:
        tokens = _of_chat(tokenizer, turns)
    elif len(turns) > 1 or turns[0]["role"] != "user":
        raise UserError(
            "policy.model: its tokenizer has no chat template, which messages and "
            "a system prompt need; expected plain prompts"
        )
    else:
        tokens = _without_end(tokenizer, turns[0]["content"])
    if not tokens:
        shown = str(prompt)
        raise UserError(f"policy.model: its tokenizer makes no token of the prompt {shown!r}")
    return tokens


def _of_chat(tokenizer: Any, turns: list[dict[str, str]]) -> list[int]:
    try:
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template may raise what it likes
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"policy.model: its chat template refuses a prompt: {reason}") from None
    for turn in turns:  # a template may leave a role out without a word
        content = turn["content"].strip()
        if turn["role"] != "assistant" and content and content not in text:
            raise UserError(
                f"policy.model: its chat template drops or changes the message of the role "
                f"{turn['role']}: {turn['content']!r}"
            )
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def end_of_response(tokenizer: Any, ends: frozenset[int]) -> int:
    """Return the one end token of a response: what a chat template puts after the assistant's.

    Without a template, or where that is no end token, it is the tokenizer's own.
    """
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}]
        try:
            whole = tokenizer.apply_chat_template(turns, tokenize=False)
        except Exception:  # a template may raise what it likes
            whole = ""
        after = tokenizer(whole.rpartition(_MARK)[2], add_special_tokens=False)["input_ids"]
        for token in after:
            if token in ends:
                return int(token)
    own = tokenizer.eos_token_id
    return own if own in ends else min(ends)


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
