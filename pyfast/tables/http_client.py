"""One HTTP request to a server, sent again until it is answered or will not be."""

from __future__ import annotations

import http.client
import ipaddress
import json
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0
_LONG_WAIT = 10.0  # from here on it is told
_SAID = 300
"""Characters of a server's own words in an error."""


class ServerError(RuntimeError):
    """A server that cannot be reached, refuses, or answers with something else than responses."""


class FailedAnswerError(Exception):
    """An answer that ends before its end, or that tells of a failure: the next may be whole."""


class Sender:
    """Sends JSON by POST, and again after what may pass.

    Parameters
    ----------
    key : str or None
        Sent as a bearer token; it is in no message.
    timeout : float
        Seconds without a byte after which a request has failed.
    retries : int
        How often a request is sent again.
    """

    def __init__(self, key: str | None, timeout: float, retries: int) -> None:
        self._key, self._timeout, self._retries = key, timeout, retries
        # Not even a redirect is followed: the key would go with it.
        self._opener = urllib.request.build_opener(_NoRedirect, _Proxies)

    def send(
        self,
        url: str,
        body: dict[str, Any],
        stop: threading.Event,
        *,
        check: Callable[[bytes], Any] = bytes,
        simpler: Callable[[dict[str, Any], str], bool] = lambda body, said: False,
    ) -> bytes:
        """Return the answer to a request.

        Parameters
        ----------
        url : str
        body : dict
            Sent as JSON.
        stop : Event
            Ends the waiting.
        check : callable
            Raises `FailedAnswerError` of an answer after which the request is sent again.
        simpler : callable
            Changes the body of a refused request, given the server's words; returns whether that
            is to be sent.

        Raises
        ------
        ServerError
            If it is not answered.
        """
        proxy = proxy_of(url)
        place = url if proxy is None else f"{url} (through the environment's proxy {proxy})"
        for attempt in range(self._retries + 1):
            wait = min(_FIRST_WAIT * 2**attempt, _LONGEST_WAIT)
            try:
                content = self._post(url, body)
                check(content)
                return content
            except urllib.error.HTTPError as error:
                with error:
                    said = _words(error)
                if error.code in (400, 422) and simpler(body, said):
                    return self.send(url, body, stop, check=check, simpler=simpler)
                problem: Exception = ServerError(f"status {error.code}: {said}")
                if not may_pass(error.code, said):
                    raise ServerError(f"{place}: {problem}") from None
                wait = _asked_wait(error.headers.get("Retry-After"), wait)
            except (OSError, http.client.HTTPException) as error:
                problem = error
            except FailedAnswerError as error:
                problem = ServerError(str(error))
            if attempt < self._retries and wait >= _LONG_WAIT:
                sys.stderr.write(f"pyfast: {place}: {problem}; again in {wait:.0f} s\n")
            if attempt < self._retries and stop.wait(wait):
                raise ServerError("stopped")
        reason = getattr(problem, "reason", problem)
        kind = f"{type(reason).__name__}: " if not isinstance(reason, ServerError) else ""
        raise ServerError(f"{place}: tried {self._retries + 1} times; {kind}{reason}")

    def _post(self, url: str, body: dict[str, Any]) -> bytes:
        headers = {"Content-Type": "application/json", "User-Agent": "pyfast"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        with self._opener.open(request, timeout=self._timeout) as answer:
            packed = answer.headers.get("Content-Encoding", "identity")
            if packed.lower() != "identity":
                raise ServerError(f"{url}: answers packed as {shortened(packed)}, unasked")
            content: bytes = answer.read()
        return content


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


class _Proxies(urllib.request.ProxyHandler):
    """The environment's proxies, which have no way to what listens on this machine alone."""

    def proxy_open(self, req: urllib.request.Request, proxy: str, type: str) -> Any:
        if _is_loopback(urllib.parse.urlsplit(req.full_url).hostname):
            return None
        return super().proxy_open(req, proxy, type)


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def proxy_of(url: str) -> str | None:
    """Return the host of the proxy through which requests go, if they do."""
    parts = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or _is_loopback(parts.hostname) or urllib.request.proxy_bypass(parts.netloc):
        return None
    return urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}").hostname


def endpoint(url: str, name: str) -> str:
    """Return where requests go."""
    if not isinstance(url, str):
        raise TypeError(f"url: expected a string, got {type(url).__name__}")
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"url: {error}") from None
    plain = url.isascii() and url.isprintable() and " " not in url
    if parts.scheme not in ("http", "https") or not host or not plain:
        raise ValueError(f"url: expected http://HOST or https://HOST in ASCII, got {url!r}")
    if parts.username is not None or parts.password is not None:
        raise ValueError("url: expected no user or password in it; give a key instead")
    path = parts.path.rstrip("/")
    for known in ("/chat/completions", "/completions"):
        path = path.removesuffix(known)
    path = f"{path or '/v1'}/{name}"
    return urllib.parse.urlunsplit(parts._replace(path=path, fragment=""))


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
    return shortened(found or error.reason)


def shortened(value: Any) -> str:
    """Return a server's words, or what it sent, in one line that is not too long.

    What a terminal would obey and not show is shown as its escape.
    """
    text = value if isinstance(value, str) else json.dumps(value)
    text = " ".join(text[:100_000].split())[: _SAID + 1]
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text if len(text) <= _SAID else text[: _SAID - 3] + "..."


def may_pass(code: int, said: str) -> bool:
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
