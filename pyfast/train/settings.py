"""What settings are: fields that describe and check themselves, in sections, read from JSON.

Every field carries its own help text, unit and range. The command line, the validation and the
error messages are all made from these, so a setting is described in one place.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
import types
import typing
from dataclasses import field
from pathlib import Path
from typing import Any

from pyfast.train.errors import UserError
from pyfast.train.files import read_json

_MOST = 2**53
"""Whole numbers beyond it are slips; as a float, one is another number."""


def setting(
    default: Any,
    text: str,
    *,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """Declare one setting: its default, help text and range (`above` is exclusive)."""
    limits = {"above": above, "least": least, "most": most, "choices": choices}
    return field(default=default, metadata={"help": text, **limits})


class Section:
    """A group of settings that checks itself when it is made."""

    section: typing.ClassVar[str]

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            checked = _check(f"{self.section}.{item.name}", value, hints[item.name], item.metadata)
            object.__setattr__(self, item.name, checked)


def _check(name: str, value: Any, hint: Any, limits: typing.Mapping[str, Any]) -> Any:
    """Return `value` in its field's type, or say which field wants what."""
    optional = isinstance(hint, types.UnionType) and type(None) in hint.__args__
    kind = next(t for t in hint.__args__ if t is not type(None)) if optional else hint
    if value is None and optional:
        return None
    if kind is float and type(value) is int and abs(value) <= _MOST:
        value = float(value)
    nouns = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
    wanted = nouns[kind] + (" or null" if optional else "")
    shown = reprlib.repr(value)
    if type(value) is not kind:  # exact, because bool is a kind of int
        raise UserError(f"{name}: expected {wanted}, got {shown}")
    if limits["choices"] is not None and value not in limits["choices"]:
        raise UserError(f"{name}: expected one of {', '.join(limits['choices'])}; got {shown}")
    if kind is str:
        _check_text(name, value)
    if kind is float and not math.isfinite(value):
        raise UserError(f"{name}: expected a finite number, got {value}")
    above, least, most = limits["above"], limits["least"], limits["most"]
    if kind is int and most is None:
        most = _MOST
    if above is not None and not value > above:
        raise UserError(f"{name}: expected {wanted} > {above}, got {shown}")
    if least is not None and not value >= least:
        raise UserError(f"{name}: expected {wanted} >= {least}, got {shown}")
    if most is not None and not value <= most:
        raise UserError(f"{name}: expected {wanted} <= {most}, got {shown}")
    return value


def _check_text(name: str, value: str) -> None:
    if not value:
        raise UserError(f"{name}: expected a non-empty string")
    if "\0" in value:
        raise UserError(f"{name}: expected no zero byte, got {reprlib.repr(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{name}: expected text that UTF-8 can hold, got {value!a}") from None


class Settings:
    """All the settings of one run: a recipe's subclass is a frozen dataclass of sections."""

    recipe: typing.ClassVar[str]
    order: typing.ClassVar[str]  # the sections, as help and files have them, spaces between

    @classmethod
    def sections(cls) -> dict[str, type[Section]]:
        """Return the kinds of the sections by name, in order."""
        hints = typing.get_type_hints(cls)
        return {name: hints[name] for name in cls.order.split()}

    def to_dict(self) -> dict[str, Any]:
        """Return plain nested dictionaries, as in the JSON file."""
        parts = {name: getattr(self, name) for name in self.sections()}
        return {"recipe": self.recipe, **{k: dataclasses.asdict(v) for k, v in parts.items()}}

    def idle(self) -> dict[str, str]:
        """Return ``{"section.field": why}``: what nothing reads, the other settings being so."""
        return {}

    def lacks_heldout(self) -> bool:
        """Tell whether a file of held-out prompts could be given and is not.

        What else the section evaluation says is then for ``pyfast evaluate``, on other data.
        """
        return False

    def get(self, path: str) -> Any:
        """Return the value of ``"section.field"``; None where the recipe has no such setting."""
        section, _, key = path.partition(".")
        return getattr(getattr(self, section, None), key, None)


Kind = typing.TypeVar("Kind", bound=Settings)


def from_dict(
    kind: type[Kind], values: Any, changes: typing.Mapping[str, Any] | None = None
) -> Kind:
    """Make a recipe's settings of nested dictionaries.

    Parameters
    ----------
    kind : type
        The recipe's `Settings`.
    values : dict
        ``{"recipe": ..., section: {field: value}}``; what is missing takes its default.
    changes : dict, optional
        ``{"section.field": value}`` that go over `values`, such as command-line flags.

    Raises
    ------
    UserError
        Naming the unknown key, or the field and what it expects.
    """
    if not isinstance(values, dict):
        raise UserError(f"expected an object of settings, got {type(values).__name__}")
    sections = kind.sections()
    merged: dict[str, Any] = {name: {} for name in sections}
    for name, section in values.items():
        if name == "recipe":
            if section != kind.recipe:
                raise UserError(f"recipe: expected {kind.recipe}, got {reprlib.repr(section)}")
        elif name not in sections:
            known = ", ".join(["recipe", *sections])
            raise UserError(f"{name}: unknown setting; expected one of {known}")
        elif not isinstance(section, dict):
            raise UserError(f"{name}: expected an object of settings, got {reprlib.repr(section)}")
        else:
            merged[name] = dict(section)
    for path, value in (changes or {}).items():
        name, _, key = path.partition(".")
        merged[name][key] = value
    for name, section_kind in sections.items():
        known_keys = [item.name for item in dataclasses.fields(section_kind)]  # type: ignore[arg-type]
        for key in merged[name]:
            if key not in known_keys:
                expected = ", ".join(known_keys)
                raise UserError(f"{name}.{key}: unknown setting; expected one of {expected}")
        merged[name] = section_kind(**merged[name])
    return kind(**merged)


def from_file(
    kind: type[Kind], path: Path, changes: typing.Mapping[str, Any] | None = None
) -> Kind:
    """Read a recipe's settings from a JSON file; every error names the file."""
    values = read_json(path)
    try:
        from_dict(kind, values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return from_dict(kind, values, changes)


def differences(old: Settings, new: Settings) -> dict[str, tuple[Any, Any]]:
    """Return ``{"section.field": (old value, new value)}`` of the settings that differ."""
    found = {}
    before, after = old.to_dict(), new.to_dict()
    for name in old.sections():
        for key, value in before[name].items():
            if value != after[name][key]:
                found[f"{name}.{key}"] = value, after[name][key]
    return found
