"""AMPO's settings."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from pyfast.train.config import (
    DataConfig,
    EvaluationConfig,
    OptimisationConfig,
    RecipeSettings,
    ScoringConfig,
    Section,
    ServedConfig,
    setting,
)
from pyfast.train.errors import UserError
from pyfast.train.recipes.ampo.selection import SelectionConfig

STEPS = 100
"""Optimiser steps where neither steps nor epochs are asked for."""


@dataclass(frozen=True)
class LossConfig(Section):
    """SWEPO (AMPO, equation 4) on implicit rewards.

    The paper's experiments have length-normalised ones, beta 5 to 10 and margin 2 to 4.
    """

    section: ClassVar[str] = "loss"
    beta: float = setting(0.1, "weight of the implicit rewards", above=0)
    alpha: float = setting(1.0, "weight of the score's deviation from its group's mean", least=0)
    positives: str = setting(
        "top", "the positive set: the top response, or all above the mean", choices=("top", "mean")
    )
    implicit_reward: str = setting(
        "dpo",
        "what the policy thinks of a response: its log-ratio to the reference, that a token, or "
        "its log-prob a token (simpo, without a reference)",
        choices=("dpo", "length_normalized", "simpo"),
    )
    margin: float = setting(0.0, "by how much the chosen response has to win (gamma of SimPO)")


@dataclass(frozen=True)
class RoundsConfig(Section):
    """Rounds: sample and select for all prompts, learn from that, and again."""

    section: ClassVar[str] = "rounds"
    rounds: int | None = setting(
        None, "rounds; default: none, each step samples for its own prompts", least=1
    )
    reference: str = setting(
        "loaded",
        "the reference of a round: the model as loaded, or the policy that the round begins with",
        choices=("loaded", "round"),
    )


@dataclass(frozen=True)
class AmpoOptimisation(OptimisationConfig):
    """AdamW with linear warm-up and cosine decay, in rounds anew in each of them."""

    steps: int | None = setting(  # type: ignore[assignment]
        None, f"optimiser steps; default: {STEPS}, or those of all epochs or rounds", least=1
    )
    epochs: float | None = setting(
        None, "times that every prompt is learnt from, in rounds in each; there 1 is the default",
        above=0,
    )  # fmt: skip

    def steps_of(self, prompts: int) -> int:
        """Return the optimiser steps of all epochs."""
        return math.ceil((self.epochs or 1.0) * prompts / self.groups_per_step)


@dataclass(frozen=True)
class AmpoSettings(RecipeSettings):
    """Settings of AMPO."""

    recipe: ClassVar[str] = "ampo"
    embeds: ClassVar[bool] = True
    order: ClassVar[str] = (
        "data text policy sampling scoring selection loss sft rounds optimisation evaluation run"
    )
    data: DataConfig = DataConfig()
    sampling: ServedConfig = ServedConfig()
    scoring: ScoringConfig = ScoringConfig()
    selection: SelectionConfig = SelectionConfig()
    loss: LossConfig = LossConfig()
    rounds: RoundsConfig = RoundsConfig()
    optimisation: AmpoOptimisation = AmpoOptimisation()
    evaluation: EvaluationConfig = EvaluationConfig()

    def __post_init__(self) -> None:
        """Check what no single section can see."""
        selection, optim, n = self.selection, self.optimisation, self.sampling.responses
        if selection.negatives > n - 1:
            raise UserError(
                f"selection.k: expected at most sampling.responses - 1 = {n - 1} "
                f"(one response is the positive), got {selection.k}"
            )
        for name in ("exact", "certify", "cover_top"):
            if getattr(selection, name) and selection.selector != "opt-select":
                raise UserError(f"selection.{name}: expected the selector opt-select beside it")
        self.sampling.check_server(self.policy.training, self.sft.epochs)
        if self.sampling.server is not None and self.rounds.rounds is None:
            raise UserError(
                "sampling.server: expected rounds.rounds beside it; without rounds each step would "
                "need another adapter there"
            )
        if self.rounds.rounds is None and self.rounds.reference == "round":
            raise UserError(
                "rounds.reference: expected loaded without rounds, got 'round': a policy that "
                "samples anew at each step would be its own reference"
            )
        if optim.steps is not None and (self.rounds.rounds or optim.epochs) is not None:
            name = "rounds.rounds" if self.rounds.rounds else "optimisation.epochs"
            raise UserError(
                f"optimisation.steps: expected null beside {name}, which gives the steps; "
                f"got {optim.steps}"
            )
        if (optim.steps, optim.epochs, self.rounds.rounds) == (None, None, None):
            object.__setattr__(self, "optimisation", replace(optim, steps=STEPS))

    def idle(self) -> dict[str, str]:
        """Return what nothing reads: what belongs to another selector or reward."""
        selection, found = self.selection, super().idle()
        why = "" if selection.selector == "opt-select" else f"the selector is {selection.selector}"
        if selection.exact:
            why = "selection.exact searches all sets"
        if why:
            found |= dict.fromkeys(["selection.n_init", "selection.search"], why)
        if selection.selector == "worst":
            found["selection.k"] = "the selector worst takes one negative"
        if self.loss.implicit_reward == "simpo":
            found["rounds.reference"] = "loss.implicit_reward simpo has no reference"
        return found
