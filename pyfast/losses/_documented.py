"""Docstrings of the losses, completed by what the package's says of the arguments they share."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

Loss = TypeVar("Loss", bound=Callable[..., Any])

SHARED = "Parameters that mean the same everywhere:"
RETURNS = """\
Returns
-------
Tensor
    A scalar, or for "none" the loss of each group."""
RAISES = """\
Raises
------
TypeError, ValueError
    An argument is not as said above; the message names it, the place and what was expected."""

_SECTION = re.compile(r"^(?=\w[\w ]*\n-{3,}$)", re.MULTILINE)
_ENTRY = re.compile(r"^(?=\w[\w, ]* : )", re.MULTILINE)


def documented(loss: Loss) -> Loss:
    """Fill in a loss's Parameters, in the order of its signature, Returns and Raises.

    What its own Parameters section says goes before what all losses share.
    """
    package = sys.modules[__package__].__doc__
    if loss.__doc__ is None or package is None:  # python -OO
        return loss
    intro, *sections = _SECTION.split(inspect.cleandoc(loss.__doc__))
    own = [text for text in sections if text.startswith("Parameters\n")]
    rest = [text for text in sections if not text.startswith("Parameters\n")]
    entries = _entries(package.partition(SHARED)[2].partition("\n\nLosses are")[0])
    for text in own:
        entries |= _entries(text)
    wanted = (entries[name] for name in inspect.signature(loss).parameters)
    parameters = "Parameters\n----------\n" + "\n".join(dict.fromkeys(wanted))
    parts = [intro, parameters, RETURNS, RAISES, *rest]
    loss.__doc__ = "\n\n".join(part.strip("\n") for part in parts) + "\n"
    return loss


def _entries(text: str) -> dict[str, str]:
    """Return the entries of a Parameters section by the names that they begin with."""
    found = {}
    for entry in _ENTRY.split(text)[1:]:
        for name in entry.partition(" : ")[0].split(", "):
            found[name] = entry.rstrip()
    return found
