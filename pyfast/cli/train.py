"""``pyfast train``: the recipes, their settings as flags."""

from __future__ import annotations

import argparse
import dataclasses
import os
import typing
from pathlib import Path
from typing import Any

from pyfast.cli._common import Help, need
from pyfast.train import config as configs

DEMO_CONFIG = Path(configs.__file__).parent / "demo" / "ampo.json"


def add(commands: Any) -> None:
    """Add the command, with a flag a setting, to the parser."""
    train = commands.add_parser(
        "train",
        formatter_class=Help,
        help="align a language model on its own responses",
        description="Align a language model on responses that it samples itself.",
        epilog="example:\n  pyfast train ampo --demo",
    )
    recipes = train.add_subparsers(required=True, metavar="RECIPE")
    ampo = recipes.add_parser(
        "ampo",
        formatter_class=Help,
        help="best response against k actively selected negatives (AMPO)",
        description=(
            "AMPO: for each prompt, sample N responses, score and embed them, keep the best one\n"
            "and k selected negatives, and update a LoRA adapter with the SWEPO loss. Held-out\n"
            "prompts are answered before and after. The run folder receives the settings,\n"
            "metrics, groups, adapter and pictures. Run the same command again to go on after\n"
            "an interruption; the result is the same as without it."
        ),
        epilog=(
            "examples:\n"
            "  pyfast train ampo --demo\n"
            "  pyfast train ampo --demo --selector coreset --seed 1 --out runs/coreset-1\n"
            "  pyfast train ampo --prompts prompts.jsonl --heldout heldout.jsonl \\\n"
            "      --model ./my-model --reward my_rewards:helpfulness --steps 200 --out runs/mine\n"
            "  pyfast train ampo --config runs/mine/config.json --seed 1 --out runs/mine-1"
        ),
    )
    source = ampo.add_mutually_exclusive_group()
    source.add_argument(
        "--demo",
        action="store_true",
        help="use the shipped demo settings (a 135M model, everyday prompts, VADER sentiment); "
        "flags go over them",
    )
    source.add_argument(
        "--config",
        metavar="FILE",
        help="settings as JSON, such as a run's config.json; flags go over them",
    )
    ampo.add_argument(
        "--out",
        metavar="FOLDER",
        help="run folder (default: runs/ampo-SELECTOR-SEED, or runs/demo-SELECTOR-SEED)",
    )
    for name, kind in configs.SECTIONS.items():
        section = ampo.add_argument_group(name, kind.__doc__)
        hints = typing.get_type_hints(kind)
        for item in dataclasses.fields(kind):  # type: ignore[arg-type]
            _add_setting(section, name, item, hints[item.name])
    ampo.set_defaults(run=run)


def _add_setting(section: Any, name: str, item: dataclasses.Field[Any], hint: Any) -> None:
    """Add the flag of one setting; the flag's help and type are the setting's own."""
    flag = item.name.replace("_", "-")
    if name == "evaluation":
        flag = f"eval-{flag}"
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
    changes = {key: value for key, value in vars(arguments).items() if "." in key}
    path = DEMO_CONFIG if arguments.demo else arguments.config
    if path is None:
        config = configs.from_dict({"recipe": "ampo"}, changes)
    else:
        config = configs.from_file(Path(path), changes)
    kind = "demo" if arguments.demo else config.recipe
    default = Path("runs") / f"{kind}-{config.selection.selector}-{config.run.seed}"
    out = Path(arguments.out) if arguments.out else default

    need("torch", "transformers", "peft", "safetensors", "tqdm", "matplotlib")
    from pyfast.train.inputs import read_inputs

    inputs = read_inputs(config)  # bad input is told at once, before the heavy imports
    finished = (out / "summary.json").exists()
    # OpenMP's threads spin while they wait for each other. On a machine that is busy with other
    # work that slows sampling tenfold, so let them sleep soon; it is read when torch is loaded.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    from pyfast.train import loop, report

    summary = loop.run(config, inputs, out)
    if finished:
        print(f"{out} is a finished run with these settings; nothing was trained again.\n")
    print(report.table(summary))
    print(f"\nmetrics, groups, adapter and pictures: {out}")
    return 0
