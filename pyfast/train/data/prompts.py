"""Prompts: a text or the messages of a chat, and the files that hold them."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyfast.train.data.lines import as_object, lines
from pyfast.train.errors import UserError

ROLES = ("system", "developer", "user", "assistant", "tool")


class Prompt(str):
    """A prompt, and the other fields of its line in the prompts file, which rewards may ask for.

    As a string, a chat is its messages as "role: content" with an empty line between; a chat of
    one user's message is that message.

    Attributes
    ----------
    fields : dict
        JSON values by name.
    messages : list of {"role": str, "content": str}, or None
        The chat that it was written as, if it was.
    """

    fields: dict[str, Any]
    messages: list[dict[str, str]] | None

    def __new__(
        cls,
        text: str | list[dict[str, str]],
        fields: dict[str, Any] | None = None,
    ) -> Prompt:
        """Make a prompt of its text or its messages, which `check_messages` found right."""
        messages = None if isinstance(text, str) else text
        if not isinstance(text, str):
            text = _as_text(text)
        prompt = super().__new__(cls, text)
        prompt.fields, prompt.messages = fields or {}, messages
        return prompt

    def __eq__(self, other: object) -> bool:
        messages = getattr(other, "messages", None)
        return str.__eq__(self, other) is True and self.messages == messages

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return str.__hash__(self)

    @property
    def written(self) -> str | list[dict[str, str]]:
        """The prompt as files hold it."""
        return str(self) if self.messages is None else self.messages


def _as_text(messages: list[dict[str, str]]) -> str:
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in messages)


def prompt_of(value: Any, fields: dict[str, Any] | None = None) -> Prompt:
    """Make a prompt of what stands in a file.

    Raises
    ------
    UserError
        ``prompt...: expected ...``
    """
    if isinstance(value, str) and value.strip():
        return Prompt(value, fields)
    if isinstance(value, list):
        check_messages(value, "prompt")
        return Prompt(value, fields)
    got = "nothing" if value is None else reprlib.repr(value)
    raise UserError(f'expected a non-empty string "prompt", or a list of messages, got {got}')


def check_messages(messages: list[Any], name: str) -> None:
    """Refuse what is no chat that a response can follow.

    Raises
    ------
    UserError
        Naming the message and what it should be.
    """
    if not messages:
        raise UserError(f"{name}: expected at least one message")
    for i, turn in enumerate(messages):
        where = f"{name}[{i}]"
        if not isinstance(turn, dict) or set(turn) != {"role", "content"}:
            shown = sorted(turn) if isinstance(turn, dict) else reprlib.repr(turn)
            raise UserError(f'{where}: expected {{"role", "content"}}, got {shown}')
        if turn["role"] not in ROLES:
            known = ", ".join(ROLES)
            raise UserError(f"{where}.role: expected one of {known}; got {turn['role']!r}")
        if not isinstance(turn["content"], str):
            shown = reprlib.repr(turn["content"])
            raise UserError(f"{where}.content: expected a string, got {shown}")
    if messages[-1]["role"] not in ("user", "tool"):
        raise UserError(
            f"{name}: expected a last message of the user or a tool, which a response answers; "
            f"got one of {messages[-1]['role']}"
        )
    if not any(turn["content"].strip() for turn in messages):
        raise UserError(f"{name}: expected a message that is not empty")


def numbered_prompts(path: str | Path) -> list[tuple[int, Prompt]]:
    """Read a prompts file as `read_prompts` does, each prompt with its line's number."""
    path = Path(path)
    prompts = []
    for number, text in lines(path):
        if path.suffix == ".txt":
            prompts.append((number, Prompt(text)))
            continue
        record = as_object(path, number, text, 'an object like {"prompt": "..."}')
        prompt = record.pop("prompt", None)
        try:
            prompts.append((number, prompt_of(prompt, record)))
        except UserError as error:
            raise UserError(f"{path}:{number}: {error}") from None
    if not prompts:
        raise UserError(f"{path}: expected at least one prompt, the file has none")
    return prompts


def read_prompts(path: str | Path) -> list[Prompt]:
    """Read a prompts file.

    Parameters
    ----------
    path : str or Path
        ``*.txt``: one prompt a line. Anything else: JSON Lines (or packed, as `.gz` and `.zst`),
        each line an object whose ``"prompt"`` is a string or a list of messages,
        ``{"role", "content"}``; other keys are kept with it (`Prompt`). Blank lines are skipped.

    Returns
    -------
    list of Prompt
        In file order.

    Raises
    ------
    UserError
        ``file:line: expected ...`` for the first bad line, or if there is no prompt at all.
    """
    return [prompt for _, prompt in numbered_prompts(path)]


def check_heldout(prompts: Sequence[str], heldout: Sequence[str], path: str | Path) -> None:
    """Refuse a held-out prompt that is also trained on: its score would say nothing.

    A text and the chat of it as one message are the same prompt to the model.
    """
    trained = {str(prompt) for prompt in prompts}
    for prompt in heldout:
        if str(prompt) in trained:
            raise UserError(f"{path}: held-out prompt is also a training prompt: {str(prompt)!r}")
