"""Gradient sketches: every response's LoRA gradient, projected, in the cost of one backward pass.

Importing this package loads torch. ``reference`` holds the projection as slow, readable numpy.
"""

from pyfast.sketch import reference
from pyfast.sketch._project import project

__all__ = ["project", "reference"]
