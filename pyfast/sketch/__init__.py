"""Gradient sketches: every response's LoRA gradient, projected, in the cost of one backward pass.

Importing this package loads torch. ``reference`` holds the same as slow, readable numpy and torch;
``compat`` serves users of TRAK and LESS.
"""

from pyfast.sketch import compat, reference
from pyfast.sketch._batches import GradientBatch
from pyfast.sketch._collect import collect
from pyfast.sketch._collector import LoraGradients
from pyfast.sketch._fidelity import Drift, FidelityReport, fidelity
from pyfast.sketch._pool import SketchPool, response_pairs
from pyfast.sketch._project import project

__all__ = [
    "Drift",
    "FidelityReport",
    "GradientBatch",
    "LoraGradients",
    "SketchPool",
    "collect",
    "compat",
    "fidelity",
    "project",
    "reference",
    "response_pairs",
]
