"""Who may speak to the page: this machine's browser, at the page's own address, with its token.

A page on the loopback address is within reach of every page that the same browser shows, and of
every user of the machine. So a request has to name a loopback host (or a foreign name could be
made to lead here), come from the page itself, and carry the secret that only the link has.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

from starlette.responses import JSONResponse

_HOST = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\])(?::\d{1,5})?", re.IGNORECASE)

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""What each answer says: scripts and styles are the page's own files, and nobody frames it."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Guard:
    """An application behind its guard.

    Parameters
    ----------
    app : ASGI application
    token : str
        The secret.
    open_paths : frozenset of str
        What needs no token: files that are the same for everybody.
    """

    def __init__(self, app: App, token: str, open_paths: frozenset[str]) -> None:
        self.app, self.token, self.open_paths = app, token, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it; mark the answer either way."""

        async def marked(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        if scope["type"] != "http":  # no web sockets here
            return
        refusal = self._refusal(scope)
        app: Any = JSONResponse({"error": refusal}, status_code=403) if refusal else self.app
        await app(scope, receive, marked)

    def _refusal(self, scope: Scope) -> str | None:
        """Return why a request is refused."""
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        hosts, origins = headers.get("host", []), headers.get("origin", [])
        if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
            return "this page is served to this machine alone, as 127.0.0.1 or localhost"
        if scope["method"] not in ("GET", "POST"):
            return "expected GET or POST"
        if scope["method"] == "POST" and not origins:
            return "expected an Origin"
        if any(origin.lower() != f"http://{hosts[0].lower()}" for origin in origins):
            return "another site's page may not speak to this one"
        sites = set(headers.get("sec-fetch-site", []))
        if scope["path"].startswith("/api/") and sites - {"same-origin"}:
            return "another site's page may not speak to this one"
        if scope["path"] in self.open_paths or self._knows(scope, headers):
            return None
        return "the link's token is missing or wrong; use the link that pyfast label has printed"

    def _knows(self, scope: Scope, headers: dict[str, list[str]]) -> bool:
        """Tell whether a request has the token: the page in its link, all else in a header."""
        if scope["path"] == "/":
            given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        else:
            given = headers.get("authorization", [])
        wanted = self.token if scope["path"] == "/" else f"Bearer {self.token}"
        return len(given) == 1 and secrets.compare_digest(given[0].encode(), wanted.encode())
