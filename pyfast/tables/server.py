"""Responses from any server that speaks OpenAI's HTTP protocol (vLLM, SGLang, llama.cpp, ...)."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyfast.tables.answers import choices_of, refuse_told_failure, response_of
from pyfast.tables.http_client import Sender, ServerError, endpoint

Prompt = str | list[dict[str, Any]] | list[int]
"""A text, chat messages, or without the chat endpoint a prompt's tokens."""

_OWN = ("messages", "prompt", "n", "stream", "seed", "max_tokens", "max_completion_tokens")


@dataclass(frozen=True)
class Drawn:
    """The responses to one prompt.

    Attributes
    ----------
    responses : list of str
    finish_reasons : list of str or None
        Why each ended: "stop", "length" where it was cut, or what else a server says. What a
        server broke off ("error", "abort") or a filter cut is no response.
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
        How often a request is sent again that met no server, a timeout, a broken answer, one with
        a choice that the server broke off, or the status 408, 425, 429 or 5xx. Between them it
        waits 0.5 s, 1 s, 2 s, ... or as long as the server asks for, at most 60 s.
    concurrency : int
        Requests at a time.
    keep_empty : bool
        Take a choice without text as the response "". Else it is an error: with reasoning models
        it often means that `max_tokens` was used up before the answer.
    exact : bool
        Refuse an answer that names another model. Some servers have aliases; others answer by the
        model that is loaded, whatever they are asked for.

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
        exact: bool = False,
    ) -> None:
        self._url = endpoint(url, "chat/completions" if chat else "completions")
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
        self.n, self._chat = n, chat
        self._sender, self._concurrency = Sender(key, timeout, retries), concurrency
        self._seed, self._keep_empty = seed, keep_empty
        self._one_at_a_time = False
        self._model = model if exact else None
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
        stop = threading.Event()
        return self._sender.send(path, dict(body), stop, check=refuse_told_failure)

    def _draw(self, prompt: Prompt, seed: int | None, stop: threading.Event) -> Drawn:
        responses: list[str] = []
        reasons: list[str | None] = []
        while len(responses) < self.n:
            asked = 1 if self._one_at_a_time else self.n - len(responses)
            choices = self._ask(self._request(prompt, asked, len(responses), seed), stop)
            for choice in choices[: self.n - len(responses)]:
                text, reason = response_of(choice, chat=self._chat, keep_empty=self._keep_empty)
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

    def _ask(self, body: dict[str, Any], stop: threading.Event) -> list[Any]:
        """Return the choices that a request got, at least one."""
        prompt = body.get("prompt")
        sent = len(prompt) if isinstance(prompt, list) else None
        content = self._sender.send(self._url, body, stop, check=choices_of, simpler=self._simpler)
        return choices_of(content, sent, self._model)

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
