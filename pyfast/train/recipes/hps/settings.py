"""The settings of HPS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pyfast.train.config import (
    EpochsConfig,
    EvaluationConfig,
    RecipeSettings,
    SamplingConfig,
    Section,
    setting,
)
from pyfast.train.errors import UserError
from pyfast.train.recipes.hps.hard_negatives import NegativesConfig

BASES = ("dpo", "exo", "ipo", "sppo", "nca")


@dataclass(frozen=True)
class HpsLossConfig(Section):
    """The loss that the negatives go into (HPS, table 2)."""

    section: ClassVar[str] = "loss"
    base: str = setting("dpo", "loss: the likelihood of DPO, or a pairwise one", choices=BASES)
    beta: float = setting(0.1, "weight of the log-ratio to the reference", above=0)


@dataclass(frozen=True)
class HpsData(Section):
    """What is learnt from, and what is asked before and after."""

    section: ClassVar[str] = "data"
    groups: str | None = setting(
        None,
        'training groups: JSON Lines or Parquet of {"prompt", "responses", "scores"[, "positive", '
        '"valid"]}, the data set\'s own responses first',
    )
    heldout: str | None = setting(
        None,
        "held-out prompts, or groups whose label (or scores) say a chosen and a rejected response; "
        "answered and measured before and after, never trained on",
    )


@dataclass(frozen=True)
class HpsSampling(SamplingConfig):
    """How held-out prompts are answered."""

    responses: int = setting(16, "answers sampled at once, to several prompts", least=1)


@dataclass(frozen=True)
class HpsEvaluation(EvaluationConfig):
    """The held-out comparison of the model before and after."""

    responses: int = setting(
        5, "answers to each held-out prompt: their mean, and the best", least=1
    )
    temperature: float | None = setting(0.9, "softmax temperature of the answers", least=0)


@dataclass(frozen=True)
class HpsScoring(Section):
    """Who says which responses are good."""

    section: ClassVar[str] = "scoring"
    reward: str | None = setting(
        None,
        "what made the training scores: a scorer as in evaluation.reward, or any name; it scores "
        "the answers, with a warning, where evaluation.reward names no other",
    )
    judge: str | None = setting(
        None,
        "who wins: package.module:function (prompt, first, second) -> how likely the first is "
        "better, 0 to 1, asked in both orders; default: the higher score",
    )
    tolerance: float = setting(
        0.01, "scores, or a judge's mean and 1/2, that differ by no more are a tie", least=0
    )
    against: str | None = setting(
        None,
        "run folders to compare the answers with, with commas between; the model before is one "
        "always",
    )


@dataclass(frozen=True)
class HpsSettings(RecipeSettings):
    """Settings of HPS."""

    recipe: ClassVar[str] = "hps"
    order: ClassVar[str] = (
        "data text policy negatives loss sft optimisation sampling scoring evaluation run"
    )
    data: HpsData = HpsData()
    negatives: NegativesConfig = NegativesConfig()
    loss: HpsLossConfig = HpsLossConfig()
    optimisation: EpochsConfig = EpochsConfig()
    sampling: HpsSampling = HpsSampling()
    scoring: HpsScoring = HpsScoring()
    evaluation: HpsEvaluation = HpsEvaluation()

    def __post_init__(self) -> None:
        """Check what no single section can see."""
        negatives = self.negatives
        if negatives.schedule != "constant" and negatives.gamma_low > negatives.gamma_high:
            raise UserError(
                "negatives.gamma_low: expected at most negatives.gamma_high = "
                f"{negatives.gamma_high}, got {negatives.gamma_low}"
            )
        if negatives.draws == 0 and negatives.importance != "auto":
            raise UserError(
                "negatives.importance: expected auto with negatives.draws = 0, which draws "
                f"nothing: all count by their q; got {negatives.importance}"
            )
        if self.scoring.judge is not None and self.scoring.tolerance >= 0.5:
            raise UserError(
                "scoring.tolerance: expected less than 0.5, with which a judge's every word is a "
                f"tie; got {self.scoring.tolerance}"
            )

    def idle(self) -> dict[str, str]:
        """Return what nothing reads: what draws, where nothing is drawn."""
        negatives, found = self.negatives, super().idle()
        if self.evaluation.temperature is not None:
            found["sampling.temperature"] = "answers are sampled at evaluation.temperature"
        if negatives.schedule == "constant":
            found["negatives.gamma_low"] = "negatives.schedule is constant, at gamma_high"
        if self.loss.base != "dpo" and negatives.importance in ("none", "mean"):
            found["negatives.importance"] = (
                f"a pairwise loss ({self.loss.base}) is averaged over the draws; only q weighs it"
            )
        if negatives.mode == "pl":
            names = ["negatives.valid_weight", "negatives.valid_as_negatives"]
            found |= dict.fromkeys(names, "negatives.mode pl ranks all, and reads no valid")
        if negatives.mode != "hps":
            names = ["draws", "importance", "schedule", "gamma_low", "gamma_high", "score_scale"]
            why = f"negatives.mode {negatives.mode} draws nothing"
            found |= {f"negatives.{name}": why for name in names}
        return found
