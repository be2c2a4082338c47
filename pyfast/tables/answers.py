"""The responses in an answer of OpenAI's protocol, and what is none."""

from __future__ import annotations

import json
from typing import Any

from pyfast.tables.http_client import FailedAnswerError, ServerError, may_pass, shortened

_BROKEN_OFF = ("error", "abort", "cancel", "fail", "timeout", "interrupt")
"""In a `finish_reason`: the server broke off. What came so far is no response."""
_CUT_OUT = ("filter", "safety", "recitation", "block", "tool", "function")
"""In a `finish_reason`: the text is not, or not all, what the model said."""


def choices_of(content: bytes, sent: int | None = None, model: str | None = None) -> list[Any]:
    """Return the choices of an answer, at least one, in the order of their places.

    Parameters
    ----------
    content : bytes
    sent : int, optional
        Tokens of the prompt, where they are known: a server that says that it has read fewer
        answers a part of the prompt.
    model : str, optional
        Who is to answer: a server that names another model has answered by that one.

    Raises
    ------
    FailedAnswerError
        If it ends before its end, or tells of a failure that may pass.
    ServerError
        If it is something else, or tells of a failure that will not pass.
    """
    try:
        answer = json.loads(content)
    except RecursionError:
        raise ServerError("expected an answer not nested so deeply") from None
    except UnicodeDecodeError as error:
        # Of one that was cut in the middle of a letter, the next may be whole.
        if error.end == len(content) and error.reason == "unexpected end of data":
            raise FailedAnswerError("the answer ends before its end") from None
        said = shortened(content.decode(errors="replace"))
        raise ServerError(f"expected JSON in UTF-8 ({error}), got {said}") from None
    except ValueError:
        if content.lstrip()[:1] in (b"{", b""):
            raise FailedAnswerError("the answer ends before its end") from None
        said = shortened(content.decode(errors="replace"))
        raise ServerError(f"expected JSON, got {said}") from None
    _refuse_failure(answer)
    usage = answer.get("usage") if isinstance(answer, dict) else None
    read = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    if sent is not None and type(read) is int and 0 < read < sent:
        raise ServerError(f"has read {read} of the prompt's {sent} tokens, and cut off the others")
    named = answer.get("model") if isinstance(answer, dict) else None
    if model is not None and isinstance(named, str) and named != model:
        raise ServerError(f"says that {shortened(named)} has answered, in place of {model}")
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list):
        raise ServerError(f"expected choices, got {shortened(answer)}")
    if not choices:
        raise ServerError("expected at least one choice, got none")
    for choice in choices:
        _refuse_failure(choice)
    places = [choice.get("index") if isinstance(choice, dict) else None for choice in choices]
    whole = all(type(place) is int for place in places)
    if whole and len(set(places)) == len(places):  # some servers call all of them 0
        choices = sorted(choices, key=lambda choice: int(choice["index"]))
    return choices


def refuse_told_failure(content: bytes) -> None:
    """Stop at an answer that tells of a failure, whatever its status.

    Raises
    ------
    FailedAnswerError, ServerError
        As for an answer with choices. What is no JSON tells of none.
    """
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        return
    _refuse_failure(answer)


def response_of(choice: Any, *, chat: bool, keep_empty: bool) -> tuple[str, str | None]:
    """Return a choice's text, and why it ended there.

    Raises
    ------
    ServerError
        If it is no response of the model's.
    """
    if not isinstance(choice, dict):
        raise ServerError(f"expected a choice, got {shortened(choice)}")
    reason = choice.get("finish_reason")
    if chat:
        message = choice.get("message")
        text = message.get("content") if isinstance(message, dict) else None
    else:
        text = choice.get("text")
    if text is not None and not isinstance(text, str):
        raise ServerError(f"expected a text as content, got {shortened(text)}")
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        raise ServerError(f"a choice has no text of Unicode: {error}") from None
    if not text and not keep_empty:
        raise ServerError(
            f"a choice has no text (finish_reason {reason!r}): longer responses may help where "
            "a model reasons first; or keep them as empty ones"
        )
    if text and _has(reason, _CUT_OUT):
        raise ServerError(
            f"a choice is not, or not all, what the model said (finish_reason {reason!r}): "
            f"{shortened(text)}"
        )
    return text or "", None if reason is None else str(reason)


def _refuse_failure(found: Any) -> None:
    """Stop at an answer, or a choice in it, that the server has broken off."""
    if not isinstance(found, dict):
        return
    error = found.get("error")
    if found.get("object") == "error" and ("message" in found or "code" in found):
        error = found
    if error:
        code = error.get("code") if isinstance(error, dict) else None
        said = error.get("message") if isinstance(error, dict) else None
        said = shortened(said or error)
        if may_pass(code if isinstance(code, int) else 500, said):
            raise FailedAnswerError(said)
        raise ServerError(said)
    if _has(found.get("finish_reason"), _BROKEN_OFF):
        raise FailedAnswerError(
            f"a choice was broken off, finish_reason {found['finish_reason']!r}"
        )


def _has(reason: Any, parts: tuple[str, ...]) -> bool:
    return isinstance(reason, str) and any(part in reason.lower() for part in parts)
