"""Selectors, losses and gradient sketches for preference optimisation of language models.

``pyfast.select`` needs numpy alone; ``pyfast.losses`` and ``pyfast.sketch`` load torch when first
used.
"""

from importlib import import_module
from typing import Any

from pyfast._threads import get_num_threads, set_num_threads

__all__ = ["__version__", "get_num_threads", "losses", "select", "set_num_threads", "sketch"]


__version__: str


def __getattr__(name: str) -> Any:
    if name == "__version__":  # looked up when it is asked for: it takes as long as our own code
        from importlib.metadata import version

        return version("pyfast-align")
    if name in {"losses", "select", "sketch"}:
        return import_module(f"pyfast.{name}")
    raise AttributeError(f"module 'pyfast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
