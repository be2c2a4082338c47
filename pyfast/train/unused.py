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
    for name in _for_later(settings):
        sys.stderr.write(
            f"pyfast: {where}{name} = {settings.get(name)!r} is read by pyfast evaluate alone: "
            "data.heldout is not given, and the run evaluates nothing\n"
        )


def _for_later(settings: Settings) -> list[str]:
    """Return what was asked of the evaluation in a run that has nothing to evaluate on."""
    if not settings.lacks_heldout():
        return []
    default, part = _defaults(settings), settings.evaluation  # type: ignore[attr-defined]
    names = [f"evaluation.{item.name}" for item in dataclasses.fields(part)]
    idle = settings.idle()
    return [n for n in names if n not in idle and settings.get(n) != default.get(n)]


def _defaults(settings: Settings) -> Any:
    made = object.__new__(type(settings))  # not checked: only the sections' defaults are read
    for name, kind in settings.sections().items():
        object.__setattr__(made, name, kind())
    return made
