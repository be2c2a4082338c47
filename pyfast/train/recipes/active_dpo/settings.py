"""The settings of ActiveDPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pyfast.train.config import (
    DataConfig,
    EpochsConfig,
    EvaluationConfig,
    RecipeSettings,
    ScoringConfig,
    Section,
    ServedConfig,
    setting,
)
from pyfast.train.errors import UserError
from pyfast.train.recipes.active_dpo import acquisition, oracle

METHODS = tuple(acquisition.CRITERIA)


@dataclass(frozen=True)
class ActiveConfig(Section):
    """Rounds of choosing pairs, having them labelled, and learning from them."""

    section: ClassVar[str] = "active"
    method: str = setting("active-dpo", "how pairs are chosen", choices=METHODS)
    rounds: int = setting(5, "rounds (T); rounds x labels is the budget", least=1)
    labels: int = setting(50, "pairs labelled in each round (B)", least=1)
    prompts_per_round: int | None = setting(
        1000, "prompts drawn for each round's pool; null or more than there are: all", least=1
    )
    train_on: str = setting(
        "round", "learn from this round's labels, or from all so far", choices=("round", "all")
    )
    start: str = setting(
        "previous",
        "each round trains the previous round's policy on, or the initial one anew",
        choices=("previous", "sft"),
    )
    lam: float = setting(1.0, "V before the first pair is lam I (active-dpo, apo)", above=0)
    normalize: str = setting(
        "response",
        "gradients scaled to length 1: each response's, each pair's difference, or none",
        choices=("response", "pair", "none"),
    )
    refresh: bool = setting(
        False, "sketch all labelled responses again each round, instead of carrying V over"
    )
    dim: int = setting(8192, "numbers in a gradient's sketch, a power of two", least=128)
    fidelity: int = setting(
        8, "responses a round whose exact gradients are compared; 0: none", least=0
    )
    sketch_tokens: int = setting(4096, "tokens of a batch that is sketched together", least=1)
    keep_sketches: bool = setting(False, "keep each round's sketches after it")
    keep_adapters: bool = setting(False, "keep the policy after each round, not the last alone")
    shortlist: int | None = setting(
        None, "aplp: pairs that pass by entropy; default: twice the labels", least=1
    )
    per_prompt: str = setting("all", "aplp: pairs that a prompt may give", choices=("all", "one"))

    def __post_init__(self) -> None:
        """Check what the fields' own limits do not say."""
        super().__post_init__()
        if self.dim & (self.dim - 1) or self.dim > 2**20:
            raise UserError(f"active.dim: expected a power of two, 2^7 to 2^20, got {self.dim}")
        if self.shortlist is not None and self.shortlist < self.labels:
            raise UserError(
                f"active.shortlist: expected at least active.labels = {self.labels}, "
                f"got {self.shortlist}"
            )


@dataclass(frozen=True)
class PoolSamplingConfig(ServedConfig):
    """How responses are drawn from the policy."""

    responses: int = setting(3, "responses sampled for each prompt of a pool", least=2)


@dataclass(frozen=True)
class DpoConfig(Section):
    """DPO (ActiveDPO, equation 2)."""

    section: ClassVar[str] = "loss"
    beta: float = setting(0.1, "weight of the log-ratio to the reference", above=0)


@dataclass(frozen=True)
class RoundEpochsConfig(EpochsConfig):
    """AdamW with linear warm-up and cosine decay, anew in each round."""

    epochs: float = setting(4.0, "times that a round learns from each of its labels", above=0)


@dataclass(frozen=True)
class ActiveDpoSettings(RecipeSettings):
    """Settings of ActiveDPO."""

    recipe: ClassVar[str] = "active-dpo"
    order: ClassVar[str] = (
        "data text policy sft sampling scoring oracle active loss optimisation evaluation run"
    )
    data: DataConfig = DataConfig()
    sampling: PoolSamplingConfig = PoolSamplingConfig()
    scoring: ScoringConfig = ScoringConfig()
    oracle: oracle.OracleConfig = oracle.OracleConfig()
    active: ActiveConfig = ActiveConfig()
    loss: DpoConfig = DpoConfig()
    optimisation: RoundEpochsConfig = RoundEpochsConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    def __post_init__(self) -> None:
        """Check what no single section can see."""
        self.sampling.check_server(self.policy.training, self.sft.epochs)
        if self.policy.training == "full" and self.active.method == "active-dpo":
            raise UserError(
                "policy.training: the method active-dpo sketches LoRA gradients; expected lora"
            )
        if self.optimisation.steps is not None:
            raise UserError(
                "optimisation.steps: expected null, got "
                f"{self.optimisation.steps}; the steps are those of active.rounds and "
                "optimisation.epochs"
            )

    def idle(self) -> dict[str, str]:
        """Return what nothing reads: what belongs to another way of choosing, or another oracle."""
        found, method = super().idle(), self.active.method
        if method != "active-dpo":
            names = ["normalize", "refresh", "dim", "fidelity", "sketch_tokens", "keep_sketches"]
            found |= {f"active.{name}": f"active.method {method} sketches none" for name in names}
        if method not in ("active-dpo", "apo"):
            found["active.lam"] = f"active.method {method} has no V"
        if method != "apo":
            found["scoring.encoder"] = f"active.method {method} embeds nothing"
        if method != "aplp":
            why = f"active.method is {method}, not aplp"
            found |= dict.fromkeys(["active.shortlist", "active.per_prompt"], why)
        if self.oracle.oracle != "btl":
            found["oracle.btl_scale"] = "oracle.oracle is not btl"
        return found
