"""AMPO: the best response against k actively selected negatives."""

from pyfast.train.recipes.ampo.recipe import Ampo
from pyfast.train.recipes.ampo.settings import AmpoSettings

__all__ = ["Ampo", "AmpoSettings"]
