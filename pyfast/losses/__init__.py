"""Losses for preference optimisation over groups of responses, ragged or not.

Importing this package loads torch.
"""

from pyfast.losses.preference import dpo, plackett_luce_top1, swepo

__all__ = ["dpo", "plackett_luce_top1", "swepo"]
