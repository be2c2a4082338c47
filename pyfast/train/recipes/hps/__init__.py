"""HPS: hard preference sampling."""

from pyfast.train.recipes.hps.recipe import Hps
from pyfast.train.recipes.hps.settings import HpsSettings

__all__ = ["Hps", "HpsSettings"]
