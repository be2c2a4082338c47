"""Selectors: which few of a group's many responses to train on.

Every selector takes one group, a batch of equal groups (a leading axis) or ragged groups (flat
arrays with ``offsets`` of shape (B+1,)), as numpy arrays or CPU torch tensors, and returns a
frozen result object. ``reference`` holds the same methods as slow, readable numpy.
"""

from pyfast.select import reference
from pyfast.select._ampo import GroupSelection, bottom_k, coreset, opt_select
from pyfast.select._kmedoids import KMedoidsResult, kmedoids
from pyfast.select._random import RandomSelection, random

__all__ = [
    "GroupSelection",
    "KMedoidsResult",
    "RandomSelection",
    "bottom_k",
    "coreset",
    "kmedoids",
    "opt_select",
    "random",
    "reference",
]
