"""Selectors: which few of a group's many responses to train on.

Every selector of responses takes one group, a batch of equal groups (a leading axis) or ragged
groups (flat arrays with ``offsets`` of shape (B+1,)); those of pairs and prompts (``active_dpo``,
``apo``, ``aplp``) choose from one pool. All take numpy arrays or CPU torch tensors and return a
frozen result object. ``reference`` holds the same methods as slow, readable numpy.
"""

from pyfast.select import reference
from pyfast.select._active_dpo import PairSelection, active_dpo, apo
from pyfast.select._ampo import GroupSelection, bottom_k, coreset, opt_select
from pyfast.select._aplp import APLPSelection, aplp
from pyfast.select._hard_preference import (
    HardPreferenceSelection,
    hard_preference,
    hard_preference_gamma,
)
from pyfast.select._kmedoids import kmedoids
from pyfast.select._kmedoids_result import KMedoidsResult
from pyfast.select._logdet import LogDetResult, LogDetState, logdet
from pyfast.select._mass_dpo import MassDPOSelection, mass_dpo
from pyfast.select._random import RandomSelection, random

__all__ = [
    "APLPSelection",
    "GroupSelection",
    "HardPreferenceSelection",
    "KMedoidsResult",
    "LogDetResult",
    "LogDetState",
    "MassDPOSelection",
    "PairSelection",
    "RandomSelection",
    "active_dpo",
    "aplp",
    "apo",
    "bottom_k",
    "coreset",
    "hard_preference",
    "hard_preference_gamma",
    "kmedoids",
    "logdet",
    "mass_dpo",
    "opt_select",
    "random",
    "reference",
]
