"""The settings of MASS-DPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pyfast.train.config import (
    EpochsConfig,
    RecipeSettings,
    Section,
    setting,
)
from pyfast.train.errors import UserError
from pyfast.train.recipes.mass_dpo.ranking import GroupsConfig, RankingConfig

METHODS = ("mass-dpo", "s-dpo", "dpo-k", "dmpo", "dpo")


@dataclass(frozen=True)
class MassSelection(Section):
    """Which negatives stand beside the right candidate."""

    section: ClassVar[str] = "selection"
    method: str = setting(
        "mass-dpo",
        "the negatives and the loss: mass-dpo (selected) and s-dpo, dpo-k, dmpo (k random ones), "
        "dpo (one random one)",
        choices=METHODS,
    )
    k: int | None = setting(
        None, "negatives of a group (k), all where it has fewer; default: 3, of dpo 1", least=1
    )
    reselect: str = setting(
        "step",
        "when they are chosen anew: at each step; at the start of each epoch, by the policy of "
        "then; or once, at the start (random ones: each epoch, or once)",
        choices=("step", "epoch", "once"),
    )
    gamma: float = setting(0.1, "ridge of the information matrix (mass-dpo)", above=0)
    curvature: str = setting(
        "unit", "weight of a negative's information: 1, or that of equation 11 (mass-dpo)",
        choices=("unit", "fisher"),
    )  # fmt: skip
    features: str = setting(
        "response",
        "mean of the last hidden states over the response's tokens, or the prompt's too (mass-dpo)",
        choices=("response", "all"),
    )
    features_from: str = setting(
        "policy", "whose hidden states (mass-dpo)", choices=("policy", "reference")
    )

    def __post_init__(self) -> None:
        """Fill in k, and refuse what a method does not have."""
        super().__post_init__()
        if self.k is None:
            object.__setattr__(self, "k", 1 if self.method == "dpo" else 3)
        if self.method == "dpo" and self.k != 1:
            raise UserError(f"selection.k: expected 1 with dpo, got {self.k}")


@dataclass(frozen=True)
class MassLoss(Section):
    """The loss that the method has (MASS-DPO, equation 5, of mass-dpo and s-dpo)."""

    section: ClassVar[str] = "loss"
    beta: float = setting(
        0.1, "weight of the log-ratio to the reference, in the loss and the selection", above=0
    )


@dataclass(frozen=True)
class MassDpoSettings(RecipeSettings):
    """Settings of MASS-DPO."""

    recipe: ClassVar[str] = "mass-dpo"
    order: ClassVar[str] = "data text policy selection loss sft optimisation evaluation run"
    data: GroupsConfig = GroupsConfig()
    selection: MassSelection = MassSelection()
    loss: MassLoss = MassLoss()
    optimisation: EpochsConfig = EpochsConfig()
    evaluation: RankingConfig = RankingConfig()

    def lacks_heldout(self) -> bool:
        """Return False: splits of ``data.groups`` may be held out, which its file says."""
        return False

    def idle(self) -> dict[str, str]:
        """Return what nothing reads: what selects, where negatives are random."""
        found, method = super().idle(), self.selection.method
        if method != "mass-dpo":
            names = ["gamma", "curvature", "features", "features_from"]
            why = f"selection.method {method} draws its negatives at random"
            found |= {f"selection.{name}": why for name in names}
        return found
