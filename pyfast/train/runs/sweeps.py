"""A sweep: runs of one recipe over a grid of settings, planned from one file."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyfast.train import config as configs
from pyfast.train.config import Settings
from pyfast.train.errors import UserError
from pyfast.train.files import read_json
from pyfast.train.recipe import Recipe
from pyfast.train.unused import effective, unused

_KEYS = ("recipe", "config", "settings", "cases", "grid")
_LONGEST = 120  # of a folder's name


@dataclass(frozen=True)
class Planned:
    """One run of a sweep.

    Attributes
    ----------
    name : str
        Of its folder, in the sweep's.
    settings : Settings
    case : str or None
        Name of its case, where the sweep has cases.
    values : dict
        ``{"section.field": value}`` of the grid.
    """

    name: str
    settings: Settings
    case: str | None
    values: dict[str, Any]


def read_sweep(path: Path, recipe: Callable[[str], type[Recipe]], demos: Path) -> list[Planned]:
    """Read a sweep file, and check the settings of all its runs.

    Parameters
    ----------
    path : Path
        JSON, or YAML by its suffix: an object of

        - ``recipe``: its name;
        - ``config``: a settings file (relative to the sweep's own folder), or ``"demo"``;
        - ``settings``: ``{section: {field: value}}`` over it;
        - ``cases``: ``{name: {"section.field": value}}``, sets of values that belong together;
        - ``grid``: ``{"section.field": [values]}``.

        The runs are all the cases with all the combinations of the grid, the last field fastest.
    recipe : callable
        Finds a recipe by its name.
    demos : Path
        The folder of the demos' settings.

    Raises
    ------
    UserError
        Naming the file, and what of it is wrong.
    """
    value = _read(path)
    try:
        return _plan(value, path, recipe, demos)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _read(path: Path) -> Any:
    if path.suffix.lower() not in (".yaml", ".yml"):
        return read_json(path)
    import yaml

    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=_once_loader(yaml))
        json.dumps(value, allow_nan=False)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: expected YAML: {' '.join(str(error).split())}") from None
    except (ValueError, TypeError) as error:  # UnicodeDecodeError, dates, NaN
        raise UserError(f"{path}: expected plain values: {error}") from None
    return value


def _once_loader(yaml: Any) -> Any:
    """Return a safe loader that refuses a key that stands twice, and reads 1e-4 as a number."""

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            for key in keys:
                if keys.count(key) > 1:
                    raise yaml.YAMLError(f"{key!r} stands twice{node.start_mark}")
            return super().construct_mapping(node, deep=deep)

    number = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    return Loader


def _plan(
    value: Any, path: Path, recipe: Callable[[str], type[Recipe]], demos: Path
) -> list[Planned]:
    if not isinstance(value, dict):
        raise UserError(f"expected an object, got {type(value).__name__}")
    for key in value:
        if key not in _KEYS:
            raise UserError(f"{key}: unknown; expected one of {', '.join(_KEYS)}")
    if not isinstance(value.get("recipe"), str):
        raise UserError(f"recipe: expected the name of a recipe, got {value.get('recipe')!r}")
    kind = recipe(value["recipe"])
    base = _base(value, path, demos)
    cases = _cases(value.get("cases"), kind)
    grid = _grid(value.get("grid"), kind)
    planned = []
    for case, fixed in cases.items():
        for combination in itertools.product(*grid.values()):
            values = dict(zip(grid, combination, strict=True))
            for name in fixed.keys() & values.keys():
                raise UserError(f"cases.{case}.{name}: the grid says it too")
            name = _name(case, values)
            try:
                settings = configs.from_dict(kind.Settings, base, {**fixed, **values})
            except UserError as error:
                raise UserError(f"run {name}: {error}") from None
            planned.append(Planned(name, settings, case, values))
    _check_distinct(planned)
    return planned


def _base(value: Mapping[str, Any], path: Path, demos: Path) -> dict[str, Any]:
    """Return the nested settings that all runs begin with."""
    base: dict[str, Any] = {}
    named = value.get("config")
    if named is not None:
        if not isinstance(named, str):
            raise UserError(f"config: expected a file or demo, got {named!r}")
        source = demos / f"{value['recipe']}.json" if named == "demo" else path.parent / named
        base = read_json(source)
        if not isinstance(base, dict):
            raise UserError(f"config: {source}: expected an object of settings")
    over = value.get("settings") or {}
    if not isinstance(over, dict) or not all(isinstance(part, dict) for part in over.values()):
        raise UserError("settings: expected an object of sections")
    for section, fields in over.items():
        known = base.get(section)
        base[section] = {**(known if isinstance(known, dict) else {}), **fields}
    return base


def _cases(value: Any, kind: type[Recipe]) -> dict[str | None, dict[str, Any]]:
    if value is None:
        return {None: {}}
    if not isinstance(value, dict) or not value:
        raise UserError("cases: expected an object of sets of values, at least one")
    for name, fixed in value.items():
        if not re.fullmatch(r"[\w][\w.+-]{0,59}", str(name)):
            raise UserError(f"cases: expected names of letters, digits and -_.+, got {name!r}")
        if not isinstance(fixed, dict):
            raise UserError(f"cases.{name}: expected an object of values")
        for field in fixed:
            _check_field(field, kind, f"cases.{name}")
    return {str(name): fixed for name, fixed in value.items()}


def _grid(value: Any, kind: type[Recipe]) -> dict[str, list[Any]]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError("grid: expected an object of lists of values")
    for field, values in value.items():
        _check_field(field, kind, "grid")
        if not isinstance(values, list) or not values:
            raise UserError(f"grid.{field}: expected a list of values, at least one")
    return value


def _check_field(name: Any, kind: type[Recipe], where: str) -> None:
    section, _, field = str(name).partition(".")
    sections = kind.Settings.sections()
    if section not in sections or field not in sections[section].__dataclass_fields__:  # type: ignore[attr-defined]
        raise UserError(f"{where}: {name!r} is no setting of {kind.Settings.recipe}")


def _name(case: str | None, values: Mapping[str, Any]) -> str:
    """Return the name of a run's folder: what it varies, in words that any file system takes."""
    parts = [] if case is None else [case]
    for field, value in values.items():
        text = re.sub(r"[^\w.+-]+", "-", "none" if value is None else str(value))
        parts.append(f"{field.partition('.')[2].replace('_', '-')}={text}")
    return ",".join(parts) or "run"


def _check_distinct(planned: list[Planned]) -> None:
    names: dict[str, Planned] = {}
    for run in planned:
        if len(run.name) > _LONGEST:
            raise UserError(f"run {run.name}: its name is too long for a folder; use cases")
        other = names.setdefault(run.name.lower(), run)
        if other is not run:
            raise UserError(f"two runs would have the folder {run.name}; use cases, with names")
    for one, two in itertools.combinations(planned, 2):
        if one.settings == two.settings:
            raise UserError(f"the runs {one.name} and {two.name} have the same settings")
        if effective(one.settings) == effective(two.settings):
            idle = {**unused(one.settings), **unused(two.settings)}
            name = next(n for n in idle if one.settings.get(n) != two.settings.get(n))
            raise UserError(
                f"the runs {one.name} and {two.name} are the same run: they differ in {name} "
                f"alone, which has no effect: {idle[name]}"
            )
