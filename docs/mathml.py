"""A Markdown extension: ``$...$`` and ``$$...$$`` become MathML, which needs no scripts."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.blockprocessors import BlockProcessor
from markdown.inlinepatterns import InlineProcessor

INLINE = r"(?<![\\$\w])\$(?![\s$])([^$\n]*[^$\s\\])\$(?![\w$])"


class Inline(InlineProcessor):
    """A formula within a line."""

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[Any, int, int]:  # type: ignore[override]  # noqa: N802
        """Return the formula as raw HTML."""
        return self.md.htmlStash.store(convert(m.group(1))), m.start(0), m.end(0)


class Display(BlockProcessor):
    """A paragraph that is one formula."""

    def test(self, parent: ElementTree.Element, block: str) -> bool:
        """Tell whether the paragraph begins and ends with two dollar signs."""
        return len(block) > 4 and block.strip().startswith("$$") and block.strip().endswith("$$")

    def run(self, parent: ElementTree.Element, blocks: list[str]) -> None:
        """Put the formula in a scrolling box of its own: it may be wider than a telephone."""
        html = convert(blocks.pop(0).strip()[2:-2].strip(), display="block")
        place = ElementTree.SubElement(parent, "div", {"class": "formula"})
        place.text = self.parser.md.htmlStash.store(html)


class MathML(Extension):
    """Register both."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        """Before escapes and emphasis, which would read the formulas' own signs."""
        md.inlinePatterns.register(Inline(INLINE, md), "mathml", 185)
        md.parser.blockprocessors.register(Display(md.parser), "mathml", 95)


def makeExtension(**settings: Any) -> MathML:  # noqa: N802
    """Make the extension (Markdown's own name for this function)."""
    return MathML(**settings)
