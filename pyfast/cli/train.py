"""``pyfast train``: the recipes, their settings as flags."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import json
import os
import typing
from pathlib import Path
from typing import Any

from pyfast.cli._common import Help, need
from pyfast.train import config as configs
from pyfast.train import unused
from pyfast.train.errors import UserError
from pyfast.train.processes import of_environment

if typing.TYPE_CHECKING:
    from pyfast.train.recipe import Recipe

RECIPES = {
    "ampo": "pyfast.train.recipes.ampo:Ampo",
    "mass-dpo": "pyfast.train.recipes.mass_dpo:MassDpo",
    "hps": "pyfast.train.recipes.hps:Hps",
    "active-dpo": "pyfast.train.recipes.active_dpo:ActiveDpo",
}
"""The recipes by name: module and class."""

PREFIXES = {"evaluation": "eval", "sft": "sft"}
"""What the flags of a section begin with, where it shares names with others."""

DEMOS = Path(configs.__file__).parent / "demo"
DEMO_CONFIG = DEMOS / "ampo.json"


def recipe(name: str) -> type[Recipe]:
    """Return a recipe by its name."""
    if name not in RECIPES:
        raise UserError(f"recipe: expected one of {', '.join(RECIPES)}; got {name!r}")
    module, _, attribute = RECIPES[name].partition(":")
    found: type[Recipe] = getattr(importlib.import_module(module), attribute)
    return found


def recipe_of(run: Path) -> type[Recipe]:
    """Return the recipe of a run folder."""
    from pyfast.train.files import read_json

    path = run / "config.json"
    if not path.exists():
        raise UserError(f"{run}: no config.json here; expected a run folder with a step done")
    values = read_json(path)
    name = values.get("recipe") if isinstance(values, dict) else None
    if not isinstance(name, str) or name not in RECIPES:
        raise UserError(f"{path}: recipe: expected one of {', '.join(RECIPES)}; got {name!r}")
    return recipe(name)


def add(commands: Any) -> None:
    """Add the command, with a flag a setting, to the parser."""
    train = commands.add_parser(
        "train",
        formatter_class=Help,
        help="align a language model on preferences",
        description="Align a language model on preferences by one of the papers' recipes.",
        epilog="example:\n  pyfast train ampo --demo",
    )
    recipes = train.add_subparsers(required=True, metavar="RECIPE")
    for name in RECIPES:
        _add_recipe(recipes, name, recipe(name))


def _add_recipe(recipes: Any, name: str, kind: type[Recipe]) -> None:
    title, _, description = (inspect.getdoc(kind) or "").partition("\n\n")
    parser = recipes.add_parser(
        name,
        formatter_class=Help,
        help=title.rstrip("."),
        description=(
            f"{title}\n\n{description}\n\n"
            "The run folder receives the settings, metrics, adapter and pictures. Run the same\n"
            "command again to go on after an interruption; the result is the same as without it."
        ),
        epilog=f"examples:\n{kind.examples}",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--demo",
        action="store_true",
        help="use the shipped demo settings; flags go over them",
    )
    source.add_argument(
        "--config",
        metavar="FILE",
        help="settings as JSON, such as a run's config.json; flags go over them",
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help=f"run folder (default: runs/{name}-LABEL-SEED, or runs/demo-LABEL-SEED)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the run's summary as JSON instead of the table"
    )
    for section_name, section_kind in kind.Settings.sections().items():
        section = parser.add_argument_group(section_name, section_kind.__doc__)
        hints = typing.get_type_hints(section_kind)
        for item in dataclasses.fields(section_kind):  # type: ignore[arg-type]
            _add_setting(section, section_name, item, hints[item.name])
    parser.set_defaults(run=run, recipe=name)


def _add_setting(section: Any, name: str, item: dataclasses.Field[Any], hint: Any) -> None:
    """Add the flag of one setting; the flag's help and type are the setting's own."""
    flag = item.name.replace("_", "-")
    if name in PREFIXES:
        flag = f"{PREFIXES[name]}-{flag}"
    kinds = [kind for kind in (int, float, str, bool) if kind in (hint, *typing.get_args(hint))]
    shown = "none" if item.default is None else str(item.default)
    options: dict[str, Any] = {
        "dest": f"{name}.{item.name}",
        "default": argparse.SUPPRESS,
        "help": f"{item.metadata['help']} (default: {shown})".replace("%", "%%"),
    }
    if kinds[0] is bool:
        section.add_argument(f"--{flag}", action=argparse.BooleanOptionalAction, **options)
        return
    if item.metadata["choices"] is not None:
        options["choices"] = item.metadata["choices"]
    else:
        options["metavar"] = {int: "N", float: "X", str: "TEXT"}[kinds[0]]
    section.add_argument(f"--{flag}", type=kinds[0], **options)


def run(arguments: argparse.Namespace) -> int:
    """Train, or go on; print the comparison."""
    kind = recipe(arguments.recipe)
    changes = {key: value for key, value in vars(arguments).items() if "." in key}
    path = DEMOS / f"{arguments.recipe}.json" if arguments.demo else arguments.config
    settings: Any
    if path is None:
        settings = configs.from_dict(kind.Settings, {}, changes)
    else:
        settings = configs.from_file(kind.Settings, Path(path), changes)
    if arguments.out:
        out = Path(arguments.out)
    else:
        name = "demo" if arguments.demo else settings.recipe
        out = Path("runs") / f"{name}-{kind.label(settings)}-{settings.run.seed}"

    # a run that is there goes on as it was begun, whatever else its command says
    unused.tell(settings, () if (out / "config.json").exists() else changes)
    need("torch", "transformers", "peft", "safetensors", "tqdm", "matplotlib")
    inputs = kind.read(settings)  # bad input is told at once, before the heavy imports
    finished = (out / "summary.json").exists()
    # OpenMP's threads spin while they wait for each other. On a machine that is busy with other
    # work that slows sampling tenfold, so let them sleep soon; it is read when torch is loaded.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    rank, _ = of_environment()
    if rank > 0:
        os.environ.setdefault("TQDM_DISABLE", "1")  # one process shows how far the run is
    from pyfast.train import loop

    summary = loop.run(kind, settings, inputs, out)
    if rank > 0:
        return 0
    if arguments.json:
        print(json.dumps(summary, ensure_ascii=False, indent=2))
        return 0
    if finished:
        print(f"{out} is a finished run with these settings; nothing was trained again.\n")
    print(kind.table(summary))
    print(f"\nmetrics, groups, adapter and pictures: {out}")
    return 0
