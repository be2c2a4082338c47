"""ActiveDPO: DPO on the pairs that the policy is least certain of, labelled in rounds."""

from pyfast.train.recipes.active_dpo.recipe import ActiveDpo
from pyfast.train.recipes.active_dpo.settings import ActiveDpoSettings

__all__ = ["ActiveDpo", "ActiveDpoSettings"]
