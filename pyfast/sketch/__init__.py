"""Gradient sketches: every response's LoRA gradient, projected, in the cost of one backward pass.

Importing this package loads torch. ``reference`` holds the same as slow, readable numpy and torch.
"""

from pyfast.sketch import reference
from pyfast.sketch._collector import GradientBatch, LoraGradients
from pyfast.sketch._pool import SketchPool, collect, response_pairs
from pyfast.sketch._project import project

__all__ = [
    "GradientBatch",
    "LoraGradients",
    "SketchPool",
    "collect",
    "project",
    "reference",
    "response_pairs",
]
