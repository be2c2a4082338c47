"""Labelling in a terminal: a key an answer."""

from __future__ import annotations

import contextlib
import os
import sys
import textwrap
import unicodedata
from collections.abc import Callable, Iterator
from typing import TextIO

from pyfast.label.desk import Desk, RefusedError, View
from pyfast.train.files import to_json

ALL_DONE = "\nAll are answered. u: undo the last, any other key: end\n"
KEYS = "1 or 2: that response is better, s: skip, u: undo, q: stop"


def run(desk: Desk, keys: Iterator[str], write: Callable[[str], object], width: int = 80) -> View:
    """Ask until all is answered, or the annotator stops.

    Parameters
    ----------
    desk : Desk
    keys : iterator of str
        What the annotator types, a key at a time.
    write : callable
        Gets what is to be shown.
    width : int
        Columns.

    Returns
    -------
    View
        Where the annotator stands at the end.
    """
    view = desk.look()
    while True:
        write(question(view, width) if view.shown else ALL_DONE)
        following = _next(desk, view, keys, write)
        if following is None:
            return desk.look()
        view = following


def _next(
    desk: Desk, view: View, keys: Iterator[str], write: Callable[[str], object]
) -> View | None:
    """Wait for a key that does something; do it, and return what comes next, None at the end."""
    for key in keys:
        key = key.strip().lower()
        try:
            if key == "u" and view.last is not None:
                return desk.undo(view.last)
            if key == "q" or view.shown is None:
                return None
            if key in ("1", "2", "s"):
                return desk.answer(view.shown.id, key)
        except RefusedError as error:
            write(f"  {error}\n")
            return desk.look()
        write("  nothing to undo\n" if key == "u" else f"  {KEYS}\n")
    return None


def question(view: View, width: int) -> str:
    """Return a question as text: nothing that a model wrote moves the cursor or changes colours."""
    assert view.shown is not None
    rule = "-" * min(width, 100)
    shown = view.shown
    parts = [f"\n{rule}\n{view.done + 1} of {view.total} ({shown.batch})\n"]
    if isinstance(shown.prompt, str):
        parts.append(_wrapped(shown.prompt, width))
    else:
        parts += [
            f"[{visible(role)}]\n{_wrapped(content, width)}"
            for role, content in messages(shown.prompt)
        ]
    for number, response in enumerate(shown.responses, start=1):
        parts.append(f"--- {number} ---\n{_wrapped(response, width)}")
    parts.append(f"{KEYS}\n")
    return "\n".join(parts)


def messages(prompt: object) -> list[tuple[str, str]]:
    """Return role and text of each message of a chat; whatever else there is as JSON."""
    found = []
    for message in prompt if isinstance(prompt, list) else [prompt]:
        if isinstance(message, dict) and isinstance(message.get("content"), str):
            found.append((str(message.get("role", "")), message["content"]))
        else:
            found.append(("", to_json(message)))
    return found


_HARMLESS = "\n\t\u200c\u200d\u200e\u200f\u061c"
"""Of the characters that are not seen: lines, tabs, joiners, and marks of right-to-left texts."""


def visible(text: str) -> str:
    """Return text in which characters that steer a terminal, or turn others round, are spelt."""
    return "".join(
        c
        if c in _HARMLESS or unicodedata.category(c) not in ("Cc", "Cf", "Cs")
        else c.encode("unicode_escape").decode()
        for c in text.replace("\r\n", "\n")
    )


def _wrapped(text: str, width: int) -> str:
    lines = visible(text or "(empty)").split("\n")
    return "\n".join(textwrap.fill(line, width, replace_whitespace=False) for line in lines) + "\n"


@contextlib.contextmanager
def keys_of(stream: TextIO) -> Iterator[Iterator[str]]:
    """Give the keys that are pressed in a terminal as they come, or else the lines of a stream."""
    if os.name == "nt" or not stream.isatty():
        yield iter(stream.readline, "")
        return
    import termios
    import tty

    before = termios.tcgetattr(stream.fileno())
    try:
        tty.setcbreak(stream.fileno())  # Ctrl-C interrupts as ever
        yield _pressed(stream)
    finally:
        termios.tcsetattr(stream.fileno(), termios.TCSADRAIN, before)


def _pressed(stream: TextIO) -> Iterator[str]:
    """Yield keys; what was typed before a question was shown is no answer to it."""
    import termios

    while True:
        termios.tcflush(stream.fileno(), termios.TCIFLUSH)
        key = os.read(stream.fileno(), 32)
        if key in (b"", b"\x04"):  # the end; Ctrl-D
            return
        yield key.decode(errors="replace")[:1] if not key.startswith(b"\x1b") else "?"


def width_of(stream: TextIO) -> int:
    """Return how many columns a terminal has, up to 100."""
    try:
        return max(20, min(100, os.get_terminal_size(stream.fileno()).columns))
    except (OSError, ValueError):
        return 80


def standard_write(text: str) -> None:
    """Show text on standard output at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
