"""A Markdown extension: formulas as MathML, which needs no scripts, and docstrings' words of reST.

``$...$`` and ``$$...$$`` are formulas, as are ``:math:`` and ``.. math::``; other roles
(``:func:``) are names. Words of inline code are marked, for site.css to keep them whole.
"""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.blockprocessors import BlockProcessor
from markdown.inlinepatterns import InlineProcessor
from markdown.preprocessors import Preprocessor
from markdown.treeprocessors import Treeprocessor
from markdown.util import AtomicString

LONGEST_WORD = 32  # characters of code that a telephone shows in one line
BREAKS = re.compile(r"[^\w. ]")
SPACE = "http://www.w3.org/1998/Math/MathML"
INLINE = r"(?<![\\$\w])\$(?![\s$])([^$]*[^$\s\\])\$(?![\w$])"
ROLE = re.compile(r":(?:func|class|meth|mod|attr|data):`~?([^`]+)`")
FORMULA = re.compile(r":math:`([^`]+)`")
PARAMETER = re.compile(r"^(\w[\w, ]*) : (.+)\n((?:    .*\n?)+)", re.MULTILINE)
DIRECTIVE = re.compile(r"^( *)\.\. math:: *(.*(?:\n\1 +.*|\n *(?=\n\1 ))*)", re.MULTILINE)


def formula(tex: str, display: str = "inline") -> str:
    """Return a formula as MathML; refuse what the converter does not know."""
    math = ElementTree.fromstring(convert(tex, display=display))
    if any("\\" in (node.text or "") for node in math.iter()):
        raise ValueError(f"docs: not a formula that latex2mathml knows: {tex}")
    for node in math.iter(f"{{{SPACE}}}msub"):
        if display == "block" and node[0].text in ("min", "max"):
            node.tag = f"{{{SPACE}}}munder"  # what is minimised over stands below
    for row in list(math.iter()):
        _space_functions(row)
    ElementTree.register_namespace("", SPACE)
    return ElementTree.tostring(math, encoding="unicode")


def _space_functions(row: ElementTree.Element) -> None:
    """Keep ``log`` apart from the name that follows it, as TeX does."""
    for place in range(len(row) - 1, 0, -1):
        name, following = row[place - 1], row[place]
        first = following[0] if following.tag.endswith("}msub") else following
        if name.text in ("log", "exp") and first.tag.endswith("}mi"):
            row.insert(place, ElementTree.Element(f"{{{SPACE}}}mspace", {"width": "0.17em"}))


class Inline(InlineProcessor):
    """A formula within a line."""

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[Any, int, int]:  # type: ignore[override]  # noqa: N802
        """Return the formula as raw HTML."""
        return self.md.htmlStash.store(formula(m.group(1))), m.start(0), m.end(0)


class Display(BlockProcessor):
    """A paragraph that is one formula."""

    def test(self, parent: ElementTree.Element, block: str) -> bool:
        """Tell whether the paragraph begins and ends with two dollar signs."""
        return len(block) > 4 and block.strip().startswith("$$") and block.strip().endswith("$$")

    def run(self, parent: ElementTree.Element, blocks: list[str]) -> None:
        """Put the formula in a scrolling box of its own: it may be wider than a telephone."""
        html = formula(blocks.pop(0).strip()[2:-2].strip(), "block")
        place = ElementTree.SubElement(parent, "div", {"class": "formula"})
        place.text = self.parser.md.htmlStash.store(html)


class Words(Treeprocessor):
    """Inline code as words that stay whole: ``--flag`` has a break behind its hyphens otherwise."""

    def run(self, root: ElementTree.Element) -> None:
        """Put each word that is not too long into an element of its own."""
        for parent in root.iter():
            if parent.tag == "pre":
                continue
            for code in parent.findall("code"):
                pieces, code.text = re.split("( )", code.text or ""), ""
                for piece in pieces:
                    if len(piece) <= LONGEST_WORD and BREAKS.search(piece):
                        word = ElementTree.SubElement(code, "span", {"class": "word"})
                        word.text = AtomicString(piece)
                    elif len(code):
                        code[-1].tail = AtomicString((code[-1].tail or "") + piece)
                    else:
                        code.text = AtomicString(code.text + piece)


class Docstrings(Preprocessor):
    """What our docstrings say in reST, in Markdown."""

    def run(self, lines: list[str]) -> list[str]:
        """Turn roles, ``.. math::`` and the ``::`` before a literal block."""
        text = FORMULA.sub(r"$\1$", ROLE.sub(r"`\1`", "\n".join(lines)))
        text = DIRECTIVE.sub(self._display, text)
        text = PARAMETER.sub(self._parameter, text)
        return re.sub(r"(?<=[\w)`.])::$", ":", text, flags=re.MULTILINE).split("\n")

    @staticmethod
    def _parameter(found: re.Match[str]) -> str:  # those that mkdocstrings has not made a list of
        return f"- **{found[1]}** (`{found[2]}`): {' '.join(found[3].split())}\n"

    @staticmethod
    def _display(found: re.Match[str]) -> str:
        tex = " ".join(found[2].split()).replace(r"\Big", "")
        return f"{found[1]}\n{found[1]}$$ {tex} $$\n"


class Markup(Extension):
    """Register them."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        """Before escapes and emphasis, which would read the formulas' own signs."""
        md.preprocessors.register(Docstrings(md), "docstrings", 23)
        md.inlinePatterns.register(Inline(INLINE, md), "mathml", 185)
        md.parser.blockprocessors.register(Display(md.parser), "mathml", 95)
        md.treeprocessors.register(Words(md), "words", 15)


def makeExtension(**settings: Any) -> Markup:  # noqa: N802
    """Make the extension (Markdown's own name for this function)."""
    return Markup(**settings)
