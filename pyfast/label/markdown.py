"""Markdown that models wrote, as HTML that is safe to show: none of it is the model's own."""

from __future__ import annotations

import functools
import html
import re
from typing import Any

from markdown_it import MarkdownIt

LONGEST = 50_000
"""Characters of a text that is rendered, at worst in a second; longer ones stay plain."""

_LINK = re.compile(r"(?:https?://|mailto:)", re.IGNORECASE)


def render(text: str) -> str:
    """Return Markdown as HTML.

    HTML in it stays text, images are links, and links lead to the web or to mail alone.
    """
    if len(text) > LONGEST:
        return f"<pre>{html.escape(text)}</pre>"
    return str(_renderer().render(text))


@functools.cache
def _renderer() -> Any:
    made = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    made.disable("image")  # a model's picture would tell its server who looks at it
    made.validateLink = lambda url: bool(_LINK.match(url))
    made.add_render_rule("link_open", _link_open)
    return made


def _link_open(self: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    tokens[index].attrSet("target", "_blank")  # the page and what is on it stay
    tokens[index].attrSet("rel", "noopener noreferrer nofollow")
    return str(self.renderToken(tokens, index, options, env))
