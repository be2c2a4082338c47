"""Selectors, losses and gradient sketches for preference optimisation of language models.

``pyfast.select`` needs numpy alone; ``pyfast.losses`` and ``pyfast.sketch`` load torch when first
used.
"""

from importlib import import_module
from importlib.metadata import version as _version
from types import ModuleType

from pyfast._threads import get_num_threads, set_num_threads

__version__ = _version("pyfast-align")
__all__ = ["__version__", "get_num_threads", "losses", "select", "set_num_threads", "sketch"]


def __getattr__(name: str) -> ModuleType:
    if name in {"losses", "select", "sketch"}:
        return import_module(f"pyfast.{name}")
    raise AttributeError(f"module 'pyfast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
