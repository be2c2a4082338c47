"""A griffe extension: what a page says of parameters is what the signature says.

griffe gives each of ``a, b`` in ``a, b : text`` the type and the default of a, and takes the first
of ``{"x", "y"}`` for the default.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

import griffe

KINDS = (griffe.DocstringSectionKind.parameters, griffe.DocstringSectionKind.attributes)


class Parameters(griffe.Extension):
    """Take defaults from signatures; names that are explained together stay together."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Read the docstring with the loader's parser, and mend what it made of it."""
        if obj.docstring is None or obj.docstring.parser is None:
            return
        for section in obj.docstring.parsed:
            if section.kind in KINDS:
                section.value = [
                    _together(obj, list(entries))
                    for _, entries in groupby(section.value, lambda entry: entry.description)
                ]


def _together(obj: griffe.Object, entries: list[Any]) -> Any:
    first = entries[0]
    if len(entries) > 1:
        first.name = ", ".join(entry.name for entry in entries)
        first.annotation = first.value = None
    elif isinstance(first, griffe.DocstringParameter):
        first.value = _default(obj, first.name)
    if isinstance(first.annotation, str):  # shown as code, all of it
        first.annotation = first.annotation.replace("`", "")
    return first


def _default(obj: griffe.Object, name: str) -> Any:
    """Return a parameter's default, or that of a dataclass's field; None if it has none."""
    parameters = {parameter.name: parameter for parameter in getattr(obj, "parameters", ())}
    if name.startswith("*"):  # griffe's defaults of these are () and {}
        return None
    if name in parameters:
        return parameters[name].default
    return getattr(obj.members.get(name), "value", None)
