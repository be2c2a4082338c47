"""What the commands share: how they explain themselves, and what they need."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from typing import NoReturn

from pyfast.train.errors import UserError


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, like all our errors."""

    def error(self, message: str) -> NoReturn:
        """Raise what the command line tells in one line."""
        raise UserError(f"{message} (see {self.prog} --help)")


class Help(argparse.RawDescriptionHelpFormatter):
    """Help as wide as the terminal, up to 100 columns."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=min(100, _terminal_width()))


def _terminal_width() -> int:
    try:
        return max(60, os.get_terminal_size().columns)
    except OSError:
        return 100


@contextlib.contextmanager
def flags_named() -> Iterator[None]:
    """Have errors name a flag where they name a setting of `train`: ``scoring.reward``."""
    try:
        yield
    except UserError as error:
        name, colon, reason = str(error).partition(": ")
        section, _, setting = name.partition(".")
        if colon and section in ("policy", "sampling", "scoring", "selection"):
            raise UserError(f"--{setting.replace('_', '-')}: {reason}") from None
        raise


def need(*packages: str, extra: str = "train") -> None:
    """Refuse to go on without these packages."""
    import importlib.util

    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        wanted = {"tables" if name == "pyarrow" else extra for name in missing if name != "tqdm"}
        extras = ",".join(sorted(wanted or {extra}))  # tqdm is in both
        raise UserError(
            f"this command needs {', '.join(missing)} (try: pip install 'pyfast-align[{extras}]')"
        )
