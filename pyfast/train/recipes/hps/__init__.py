"""HPS: hard preference sampling."""

from pyfast.train.recipes.hps.recipe import Hps, HpsSettings

__all__ = ["Hps", "HpsSettings"]
