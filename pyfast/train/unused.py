"""Settings that were given and that nothing reads, such as the draws of a mode that draws none."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from pyfast.train.config import Settings
from pyfast.train.errors import UserError

Kind = TypeVar("Kind", bound=Settings)


def unused(settings: Settings) -> dict[str, str]:
    """Return ``{"section.field": why}`` of what has no effect, and is not at its default."""
    idle, default = settings.idle(), _defaults(settings)
    return {name: why for name, why in idle.items() if settings.get(name) != default.get(name)}


def effective(settings: Kind) -> Kind:
    """Return the settings with those that have no effect at their defaults.

    Runs of equal effective settings are the same run.
    """
    default = _defaults(settings)
    sections: dict[str, Any] = {}
    for name in unused(settings):
        section, _, field = name.partition(".")
        part = sections.get(section, getattr(settings, section))
        sections[section] = dataclasses.replace(part, **{field: default.get(name)})
    return dataclasses.replace(settings, **sections)  # type: ignore[type-var]


def tell(settings: Settings, flags: Iterable[str] = (), where: str = "") -> None:
    """Say on standard error what has no effect.

    Parameters
    ----------
    settings : Settings
    flags : iterable of str
        ``"section.field"`` that were asked for by name, not in a file that may serve several runs.
    where : str
        Put before each line.

    Raises
    ------
    UserError
        For a flag without effect.
    """
    found = unused(settings)
    for name in flags:
        if name in found:
            raise UserError(f"{name}: it has no effect here: {found[name]}; leave it out")
    for name, why in found.items():
        value = settings.get(name)
        sys.stderr.write(f"pyfast: {where}{name} = {value!r} has no effect: {why}\n")


def _defaults(settings: Settings) -> Any:
    made = object.__new__(type(settings))  # not checked: only the sections' defaults are read
    for name, kind in settings.sections().items():
        object.__setattr__(made, name, kind())
    return made
