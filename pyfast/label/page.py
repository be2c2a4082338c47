"""The page for a browser: an application that serves it, and the loopback server around it."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pyfast.label import agreement
from pyfast.label.desk import Desk, RefusedError, View
from pyfast.label.guard import Guard
from pyfast.label.markdown import render
from pyfast.label.terminal import messages
from pyfast.train.errors import UserError
from pyfast.train.files import parse_json

STATIC = Path(__file__).parent / "static"
FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
LARGEST = 65_536
"""Bytes of a request."""


def app(desk: Desk, token: str) -> Guard:
    """Return the application: the page, what it shows next, an answer, and undoing.

    Parameters
    ----------
    desk : Desk
    token : str
        The secret of the link.
    """
    page = Page(desk)
    routes = [
        *(Route(path, page.file, methods=["GET"]) for path in FILES),
        Route("/api/view", page.view, methods=["GET"]),
        Route("/api/answer", page.answer, methods=["POST"]),
        Route("/api/undo", page.undo, methods=["POST"]),
    ]
    return Guard(Starlette(routes=routes), token, frozenset(FILES) - {"/"})


class Page:
    """The page's answers to requests.

    Parameters
    ----------
    desk : Desk
    """

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    async def file(self, request: Request) -> Response:
        """Serve a file of the package."""
        name, kind = FILES[request.url.path]
        return Response((STATIC / name).read_bytes(), media_type=kind)

    async def view(self, request: Request) -> Response:
        """Say what is to be shown."""
        markdown = request.query_params.get("markdown") == "1"
        return await self._told(self.desk.look, markdown)

    async def answer(self, request: Request) -> Response:
        """Take an answer ``{"id", "choice", "markdown"}``; it is on the disk before this ends."""
        return await self._done(request, {"id": str, "choice": str}, self.desk.answer)

    async def undo(self, request: Request) -> Response:
        """Take a label back, ``{"place", "markdown"}``."""
        return await self._done(request, {"place": int}, self.desk.undo)

    async def _done(
        self, request: Request, kinds: dict[str, type], act: Callable[..., View]
    ) -> Response:
        try:
            given = await _body(request)
            if given.keys() - {"markdown"} != kinds.keys() or not all(
                type(given[name]) is kind for name, kind in kinds.items()
            ):
                raise UserError(f"expected {', '.join(kinds)} and markdown")
        except UserError as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        markdown = given.get("markdown") is True
        return await self._told(lambda: act(*(given[name] for name in kinds)), markdown)

    async def _told(self, act: Callable[[], View], markdown: bool) -> Response:
        """Do something, and return what is to be shown then; 409 where it no longer fits."""

        def work() -> tuple[dict[str, Any], int]:
            try:
                return self._shown(act(), markdown), 200
            except RefusedError as error:
                return {"error": str(error), **self._shown(self.desk.look(), markdown)}, 409
            except UserError as error:
                return {"error": str(error)}, 400
            except OSError as error:
                return {"error": f"not kept: {error.filename}: {error.strerror}"}, 507

        content, status = await run_in_threadpool(work)
        return JSONResponse(content, status_code=status)

    def _shown(self, view: View, markdown: bool) -> dict[str, Any]:
        """Return a view as JSON, with HTML beside the texts where Markdown is wished for."""

        def text(written: str) -> dict[str, str]:
            return {"text": written, **({"html": render(written)} if markdown else {})}

        found: dict[str, Any] = {
            "done": view.done,
            "total": view.total,
            "waiting": view.waiting,
            "last": view.last,
            "annotator": self.desk.annotator,
            "again": self.desk.again,
            "question": None,
            "agreement": "" if view.shown else agreement.table(self.desk.run.state()),
        }
        shown = view.shown
        if shown is not None:
            chat = isinstance(shown.prompt, list)
            prompt = messages(shown.prompt) if chat else [("", str(shown.prompt))]
            found["question"] = {
                "id": shown.id,
                "batch": shown.batch,
                "prompt": [{"role": role, **text(said)} for role, said in prompt],
                "responses": [text(response) for response in shown.responses],
            }
        return found


async def _body(request: Request) -> dict[str, Any]:
    """Return the JSON object of a request."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise UserError("expected application/json")
    data = b""
    async for block in request.stream():
        data += block
        if len(data) > LARGEST:
            raise UserError(f"expected at most {LARGEST} bytes")
    try:
        value = parse_json(data.decode())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise UserError("expected JSON") from None
    if not isinstance(value, dict):
        raise UserError("expected a JSON object")
    return value


def serve(desk: Desk, port: int, tell: Callable[[str], object]) -> None:
    """Serve the page on the loopback address until Ctrl-C.

    Parameters
    ----------
    desk : Desk
    port : int
        0 takes a free one.
    tell : callable
        Gets the link, once it can be followed.

    Raises
    ------
    UserError
        If the port cannot be had.
    """
    token = secrets.token_urlsafe(24)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise UserError(f"--port {port}: {getattr(error, 'strerror', None) or error}") from None
        listening.listen()
        config = uvicorn.Config(
            app(desk, token),
            log_level="warning",
            access_log=False,  # it would write the token down
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=2,
        )
        tell(f"http://127.0.0.1:{listening.getsockname()[1]}/?token={token}")
        with contextlib.suppress(KeyboardInterrupt):  # the way to end it
            uvicorn.Server(config).run(sockets=[listening])
