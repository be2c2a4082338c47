"""The code blocks of README and docs; ``python tests/docs/blocks.py`` lists them.

Blocks of Python share the names of their page. Blocks of sh run in bash. A comment before a block,
``<!--- skip: next "reason" -->``, says why one is not run here; blocks without a language, and
commands that are not run, still have to parse.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PIECE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SETUP = re.compile(r"<!--- invisible-code-block: python\n(.*?)-->", re.DOTALL)
COMMAND = re.compile(r"^(pyfast .*?[^\\])$", re.DOTALL | re.MULTILINE)


def shell(example: Example) -> None:
    """Run a block of sh where the test is, with the commands of this environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", example.parsed],
        env={**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join([".", *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def examples(page: Path) -> list[Example]:
    """Return what is run of a page, in its order, setups and reasons to skip included."""
    parsers = [PythonCodeBlockParser(), CodeBlockParser("sh", shell), SkipParser()]
    return list(Sybil(parsers=parsers).parse(page).examples())


def commands(page: Path) -> list[list[str]]:
    """Return all commands of ours that a page's blocks hold, run or not, each in words."""
    found = []
    for language, text in PIECE.findall(page.read_text(encoding="utf-8")):
        if language in ("", "sh", "text"):
            joined = text.replace("\\\n", " ")
            for line in COMMAND.findall(joined):
                first = re.split(r"\s[|>]\s?|\s#", line)[0]
                found.append(shlex.split(first)[1:])
    return found


def needs_model(page: Path) -> bool:
    """Tell whether a page's setup takes the made-up model."""
    return any("tiny_model" in text for text in SETUP.findall(page.read_text(encoding="utf-8")))


def listing() -> str:
    """Return a line for each block: where it is, and what becomes of it."""
    lines = []
    for page in PAGES:
        reason = None
        for example in examples(page):
            if isinstance(example.parsed, tuple):  # a skip
                reason = example.parsed[1]
                continue
            first = next((line for line in str(example.parsed).splitlines() if line.strip()), "")
            fate = f"not run: {reason}" if reason else "run"
            lines.append(f"{page.relative_to(ROOT)}:{example.line}: {fate}: {first.strip()}")
            reason = None
    return "\n".join(lines)


if __name__ == "__main__":
    print(listing())
