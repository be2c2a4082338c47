"""Responses from any server that speaks OpenAI's HTTP protocol (vLLM, SGLang, llama.cpp, ...)."""

from __future__ import annotations

import http.client
import json
import queue
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

Prompt = str | list[dict[str, Any]] | list[int]
"""A text, chat messages, or without the chat endpoint a prompt's tokens."""

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0
_OWN = ("messages", "prompt", "n", "stream", "seed", "max_tokens", "max_completion_tokens")
_SAID = 300
"""Characters of a server's own words in an error."""


class ServerError(RuntimeError):
    """A server that cannot be reached, refuses, or answers with something else than responses."""


@dataclass(frozen=True)
class Drawn:
    """The responses to one prompt.

    Attributes
    ----------
    responses : list of str
    finish_reasons : list of str or None
        Why each ended: "stop", "length" where it was cut, or what else a server says.
    token_ids : list of list of int, optional
        The tokens of each, where the sampler knows them.
    """

    responses: list[str]
    finish_reasons: list[str | None]
    token_ids: list[list[int]] | None = None


class Server:
    """Draws n responses to each prompt from an OpenAI-compatible server.

    Parameters
    ----------
    url : str
        ``http://host:port``, with ``/v1`` or what else the path begins with.
    model : str
        As the server calls it.
    n : int
        Responses to a prompt. They are asked for in one request; from a server that gives fewer,
        or refuses several, in as many requests as it takes.
    max_tokens : int
        Longest response.
    temperature : float
        0 takes the likeliest token (n equal responses, with most servers).
    seed : int, optional
        Sent where it is given; request i of a prompt gets ``seed`` + the responses had before.
    extra : mapping, optional
        More fields of each request, such as ``{"top_p": 0.9}``.
    chat : bool
        Ask ``/chat/completions``, a text as the user's message; else ``/completions``.
    key : str, optional
        Sent as a bearer token; it is in no message.
    timeout : float
        Seconds without a byte after which a request has failed.
    retries : int
        How often a request is sent again that met no server, a timeout, a broken answer or the
        status 408, 425, 429 or 5xx. Between them it waits 0.5 s, 1 s, 2 s, ... or as long as the
        server asks for, at most 60 s.
    concurrency : int
        Requests at a time.
    keep_empty : bool
        Take a choice without text as the response "". Else it is an error: with reasoning models
        it often means that `max_tokens` was used up before the answer.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of its range.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        n: int = 8,
        max_tokens: int = 512,
        temperature: float = 1.0,
        seed: int | None = None,
        extra: Mapping[str, Any] | None = None,
        chat: bool = True,
        key: str | None = None,
        timeout: float = 300.0,
        retries: int = 5,
        concurrency: int = 8,
        keep_empty: bool = False,
    ) -> None:
        self._url = _endpoint(url, "chat/completions" if chat else "completions")
        for name, value, least in (
            ("n", n, 1),
            ("max_tokens", max_tokens, 1),
            ("retries", retries, 0),
            ("concurrency", concurrency, 1),
        ):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        if not 0 <= temperature < float("inf"):
            raise ValueError(f"temperature: expected a number >= 0, got {temperature}")
        if not 0 < timeout < float("inf"):
            raise ValueError(f"timeout: expected a number of seconds above 0, got {timeout}")
        if key is not None and (not key.isascii() or not key.isprintable() or not key.strip()):
            raise ValueError("key: expected one line of ASCII letters")
        self.n, self._chat, self._key = n, chat, key
        self._timeout, self._retries, self._concurrency = timeout, retries, concurrency
        self._seed, self._keep_empty = seed, keep_empty
        self._one_at_a_time = False
        self._length_name, self._length = "max_tokens", max_tokens
        self._body: dict[str, Any] = {"model": model, "temperature": temperature}
        for name, value in (extra or {}).items():
            if name in (*_OWN, *self._body):
                raise ValueError(f"extra: {name} has an argument of its own, or cannot be set")
            self._body[name] = value
        try:
            json.dumps(self._body, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"model and extra: expected what JSON holds ({error})") from None
        # Not even a redirect is followed: the key would go with it.
        self._opener = urllib.request.build_opener(_NoRedirect)

    def __call__(
        self, prompts: Sequence[Prompt], seeds: Sequence[int] | None = None
    ) -> list[Drawn]:
        """Draw the responses to prompts, several prompts at a time.

        Parameters
        ----------
        prompts : sequence of prompts
        seeds : sequence of int, optional
            One a prompt, in place of the one for all.

        Raises
        ------
        ServerError
            With the number of the prompt.
        """
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[int, Drawn | BaseException]] = queue.SimpleQueue()
        stop = threading.Event()
        for number in range(len(prompts)):
            todo.put(number)

        def seed_of(number: int) -> int | None:
            return self._seed if seeds is None else seeds[number]

        def work() -> None:
            while not stop.is_set():
                try:
                    number = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((number, self._draw(prompts[number], seed_of(number), stop)))
                except BaseException as error:
                    done.put((number, error))
                    return

        # Daemons: after Ctrl-C nobody waits for requests that are under way.
        for _ in range(min(self._concurrency, len(prompts))):
            threading.Thread(target=work, daemon=True).start()
        found: dict[int, Drawn] = {}
        try:
            while len(found) < len(prompts):
                number, drawn = done.get()
                if isinstance(drawn, ServerError):
                    raise ServerError(f"row {number}: {drawn}") from drawn.__cause__
                if isinstance(drawn, BaseException):
                    raise drawn
                found[number] = drawn
        finally:
            stop.set()
        return [found[number] for number in range(len(prompts))]

    def call(self, name: str, body: Mapping[str, Any]) -> bytes:
        """Send a request to another endpoint beside it, such as ``load_lora_adapter``.

        Raises
        ------
        ServerError
            As for prompts.
        """
        path = self._url
        for known in ("/chat/completions", "/completions"):
            path = path.replace(known, f"/{name}")
        return self._sent(path, dict(body), threading.Event())

    def _draw(self, prompt: Prompt, seed: int | None, stop: threading.Event) -> Drawn:
        responses: list[str] = []
        reasons: list[str | None] = []
        while len(responses) < self.n:
            asked = 1 if self._one_at_a_time else self.n - len(responses)
            choices = self._ask(self._request(prompt, asked, len(responses), seed), stop)
            for choice in choices[: self.n - len(responses)]:
                text, reason = self._read(choice)
                responses.append(text)
                reasons.append(reason)
        return Drawn(responses, reasons)

    def _request(self, prompt: Prompt, asked: int, had: int, seed: int | None) -> dict[str, Any]:
        body = {**self._body, self._length_name: self._length}
        if self._chat:
            turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            # Arrow gives every message all the fields that one of them has.
            body["messages"] = [
                {name: value for name, value in turn.items() if value is not None}
                for turn in turns
                if isinstance(turn, dict)
            ]
            if len(body["messages"]) < len(turns):
                raise ServerError("expected a text or messages, with the chat endpoint; got tokens")
        elif isinstance(prompt, str) or all(isinstance(token, int) for token in prompt):
            body["prompt"] = prompt
        else:
            raise ServerError("expected a text as prompt, without the chat endpoint; got messages")
        if asked > 1:
            body["n"] = asked
        if seed is not None:
            body["seed"] = seed + had
        return body

    def _read(self, choice: Any) -> tuple[str, str | None]:
        """Return a choice's text, and why it ended there."""
        if not isinstance(choice, dict):
            raise ServerError(f"expected a choice, got {_shortened(choice)}")
        reason = choice.get("finish_reason")
        if self._chat:
            message = choice.get("message")
            text = message.get("content") if isinstance(message, dict) else None
        else:
            text = choice.get("text")
        if text is not None and not isinstance(text, str):
            raise ServerError(f"expected a text as content, got {_shortened(text)}")
        try:
            (text or "").encode()
        except UnicodeEncodeError as error:
            raise ServerError(f"a choice has no text of Unicode: {error}") from None
        if not text and not self._keep_empty:
            raise ServerError(
                f"a choice has no text (finish_reason {reason!r}): longer responses may help where "
                "a model reasons first; or keep them as empty ones"
            )
        return text or "", None if reason is None else str(reason)

    def _ask(self, body: dict[str, Any], stop: threading.Event) -> list[Any]:
        """Return the choices that a request got, at least one."""
        return _choices(self._sent(self._url, body, stop, _choices))

    def _sent(
        self,
        url: str,
        body: dict[str, Any],
        stop: threading.Event,
        check: Callable[[bytes], Any] = bytes,
    ) -> bytes:
        """Return the answer to a request, sent again after what may pass."""
        for attempt in range(self._retries + 1):
            wait = min(_FIRST_WAIT * 2**attempt, _LONGEST_WAIT)
            try:
                content = self._post(url, body)
                check(content)
                return content
            except urllib.error.HTTPError as error:
                with error:
                    said = _words(error)
                if error.code in (400, 422) and self._simpler(body, said):
                    return self._sent(url, body, stop, check)
                problem: Exception = ServerError(f"status {error.code}: {said}")
                if not _may_pass(error.code, said):
                    raise ServerError(f"{url}: {problem}") from None
                wait = _asked_wait(error.headers.get("Retry-After"), wait)
            except (OSError, http.client.HTTPException, _BrokenAnswerError) as error:
                problem = error
            if attempt < self._retries and stop.wait(wait):
                raise ServerError("stopped")
        reason = getattr(problem, "reason", problem)
        kind = f"{type(reason).__name__}: " if not isinstance(reason, ServerError) else ""
        raise ServerError(f"{url}: tried {self._retries + 1} times; {kind}{reason}")

    def _simpler(self, body: dict[str, Any], said: str) -> bool:
        """Change a refused request to what more servers take, if there is anything left."""
        if "max_completion_tokens" in said and "max_tokens" in body:
            body["max_completion_tokens"] = body.pop("max_tokens")
            self._length_name = "max_completion_tokens"
            return True
        if body.get("n", 1) > 1:
            del body["n"]
            self._one_at_a_time = True
            return True
        return False

    def _post(self, url: str, body: dict[str, Any]) -> bytes:
        headers = {"Content-Type": "application/json", "User-Agent": "pyfast"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        with self._opener.open(request, timeout=self._timeout) as answer:
            content: bytes = answer.read()
        return content


class _BrokenAnswerError(Exception):
    """An answer that ends before its end."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _endpoint(url: str, name: str) -> str:
    """Return where requests go."""
    if not isinstance(url, str):
        raise TypeError(f"url: expected a string, got {type(url).__name__}")
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"url: {error}") from None
    if parts.scheme not in ("http", "https") or not host or not url.isprintable() or " " in url:
        raise ValueError(f"url: expected http://HOST or https://HOST, got {url!r}")
    if parts.username is not None or parts.password is not None:
        raise ValueError("url: expected no user or password in it; give a key instead")
    path = parts.path.rstrip("/")
    for known in ("/chat/completions", "/completions"):
        path = path.removesuffix(known)
    path = f"{path or '/v1'}/{name}"
    return urllib.parse.urlunsplit(parts._replace(path=path, fragment=""))


def _choices(content: bytes) -> list[Any]:
    try:
        answer = json.loads(content)
    except RecursionError:
        raise ServerError("expected an answer not nested so deeply") from None
    except ValueError:
        if content.lstrip()[:1] in (b"{", b""):
            raise _BrokenAnswerError("the answer ends before its end") from None
        said = _shortened(content.decode(errors="replace"))
        raise ServerError(f"expected JSON, got {said}") from None
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list):
        raise ServerError(f"expected choices, got {_shortened(answer)}")
    if not choices:
        raise ServerError("expected at least one choice, got none")
    places = [choice.get("index") if isinstance(choice, dict) else None for choice in choices]
    whole = all(type(place) is int for place in places)
    if whole and len(set(places)) == len(places):  # some servers call all of them 0
        choices = sorted(choices, key=lambda choice: int(choice["index"]))
    return choices


def _words(error: urllib.error.HTTPError) -> str:
    """Return what a server says of an error, in one line."""
    if 300 <= error.code < 400:
        return f"redirects to {error.headers.get('Location')}; give that as the server"
    try:
        text = error.read(100_000).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return str(error.reason)
    try:
        found = json.loads(text)
        found = found.get("error", found.get("detail", found)) if isinstance(found, dict) else found
        found = found.get("message", found) if isinstance(found, dict) else found
    except ValueError:
        found = text
    return _shortened(found or error.reason)


def _shortened(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    text = " ".join(text.split())
    return text if len(text) <= _SAID else text[: _SAID - 3] + "..."


def _may_pass(code: int, said: str) -> bool:
    """Tell whether the same request may be answered later."""
    return (code in (408, 425, 429) or code >= 500) and "insufficient_quota" not in said


def _asked_wait(header: str | None, wait: float) -> float:
    """Return the seconds that a server asks to wait for (a number, or a date), if it does."""
    if header is None:
        return wait
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time()
        except (ValueError, TypeError):
            return wait
    return min(max(seconds, 0.0), _LONGEST_WAIT) if seconds == seconds else wait
