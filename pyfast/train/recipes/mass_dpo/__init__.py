"""MASS-DPO: the right candidate against the k negatives that inform most about the policy."""

from pyfast.train.recipes.mass_dpo.recipe import MassDpo
from pyfast.train.recipes.mass_dpo.settings import MassDpoSettings

__all__ = ["MassDpo", "MassDpoSettings"]
