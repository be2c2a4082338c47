"""AMPO: the best response against k actively selected negatives (AMPO, Algorithm 1).

The numbers in the comments are the lines of Algorithm 1. Its input, sampled and scored responses,
is made in `Ampo.groups`; the loop takes the gradient step (line 13).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pyfast import select
from pyfast.train import inputs as prompt_inputs
from pyfast.train import metrics, order, rewards
from pyfast.train.answering import AnsweringRecipe
from pyfast.train.config import (
    DataConfig,
    EvaluationConfig,
    OptimisationConfig,
    PolicyConfig,
    RunConfig,
    SamplingConfig,
    ScoringConfig,
    Section,
    Settings,
    SftConfig,
    TextConfig,
    setting,
)
from pyfast.train.data import Group
from pyfast.train.errors import UserError
from pyfast.train.recipe import Scored, TrainingGroup

if TYPE_CHECKING:
    from torch import Tensor

    from pyfast.train.context import Context

SELECTORS = ("opt-select", "coreset", "bottom-k", "random")


@dataclass(frozen=True)
class SelectionConfig(Section):
    """Which negatives stand beside the best response."""

    section: ClassVar[str] = "selection"
    selector: str = setting("opt-select", "how the negatives are chosen", choices=SELECTORS)
    k: int = setting(7, "negatives for each prompt (k)", least=1)
    n_init: int = setting(10, "starts of opt-select's swap search; the best is kept", least=1)
    deduplicate: bool = setting(
        False, "choose among distinct texts alone, so that no negative is a copy of the best"
    )


@dataclass(frozen=True)
class LossConfig(Section):
    """SWEPO (AMPO, equation 4)."""

    section: ClassVar[str] = "loss"
    beta: float = setting(0.1, "weight of the log-ratio to the reference", above=0)
    alpha: float = setting(1.0, "weight of the score's deviation from its group's mean", least=0)
    positives: str = setting(
        "top", "the positive set: the top response, or all above the mean", choices=("top", "mean")
    )


@dataclass(frozen=True)
class AmpoSettings(Settings):
    """Settings of AMPO."""

    recipe: ClassVar[str] = "ampo"
    data: DataConfig = DataConfig()
    text: TextConfig = TextConfig()
    policy: PolicyConfig = PolicyConfig()
    sampling: SamplingConfig = SamplingConfig()
    scoring: ScoringConfig = ScoringConfig()
    selection: SelectionConfig = SelectionConfig()
    loss: LossConfig = LossConfig()
    sft: SftConfig = SftConfig()
    optimisation: OptimisationConfig = OptimisationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    run: RunConfig = RunConfig()

    def __post_init__(self) -> None:
        """Check what no single section can see."""
        k, n = self.selection.k, self.sampling.responses
        if k > n - 1:
            raise UserError(
                f"selection.k: expected at most sampling.responses - 1 = {n - 1} "
                f"(one response is the positive), got {k}"
            )


class Ampo(AnsweringRecipe):
    """The best response against k actively selected negatives, on policy (AMPO).

    For each prompt, sample N responses, score and embed them, keep the best one and k selected
    negatives, and update a LoRA adapter with the SWEPO loss. Held-out prompts are answered before
    and after.
    """

    Settings = AmpoSettings
    examples = (
        "  pyfast train ampo --demo\n"
        "  pyfast train ampo --demo --selector coreset --seed 1 --out runs/coreset-1\n"
        "  pyfast train ampo --prompts prompts.jsonl --heldout heldout.jsonl \\\n"
        "      --model ./my-model --reward my_rewards:helpfulness --steps 200 --out runs/mine\n"
        "  pyfast train ampo --config runs/mine/config.json --seed 1 --out runs/mine-1"
    )

    def __init__(self, settings: AmpoSettings, inputs: prompt_inputs.Inputs, ctx: Context) -> None:
        from pyfast.train.encoder import SentenceEncoder

        super().__init__(settings, inputs, ctx)
        prompt_inputs.check_lengths(inputs, ctx, settings.sampling.max_new_tokens)
        self.encoder = SentenceEncoder(settings.scoring.encoder, ctx.policy.device)

    @staticmethod
    def read(settings: AmpoSettings) -> prompt_inputs.Inputs:
        """Read prompts and find the reward."""
        return prompt_inputs.read_inputs(settings)

    @staticmethod
    def steps(settings: AmpoSettings, inputs: prompt_inputs.Inputs) -> int:
        """Return the steps that are asked for."""
        return settings.optimisation.steps

    @staticmethod
    def label(settings: AmpoSettings) -> str:
        """Return the selector."""
        return settings.selection.selector

    def fingerprints(self) -> dict[str, dict[str, str]]:
        """Return the encoder's."""
        from pyfast.train import fingerprint

        return {"encoder": fingerprint.of(self.encoder.model, self.encoder.tokenizer)}

    def groups(self, step: int) -> list[TrainingGroup]:
        """Sample, score, embed and select for the prompts of a step."""
        count = self.settings.optimisation.groups_per_step
        prompts = self.inputs.prompts
        chosen = order.of_step(len(prompts), count, self.settings.run.seed, step)
        return [self._group(prompts[i], step, slot) for slot, (_, i) in enumerate(chosen)]

    def _group(self, prompt: str, step: int, slot: int) -> TrainingGroup:
        ctx, config = self.ctx, self.settings
        ids = ctx.tokens.prompt(prompt)
        seeds = [ctx.seed("sample", step, slot)]
        (samples,) = ctx.policy.answer([ids], config.sampling.responses, config.sampling, seeds)
        scores = rewards.score(self.inputs.reward, prompt, samples.texts)
        embeddings = self.encoder.encode(samples.texts)
        seed = ctx.seed("select", step, slot)
        chosen = choose(config.selection, scores, embeddings, seed, samples.texts)
        lengths = [len(tokens) for tokens in samples.token_ids]
        measured = metrics.sample_metrics(
            scores, chosen.positive, chosen.negatives, lengths, samples.finished, samples.texts
        )
        if chosen.cost is not None:
            measured["selection/cost"] = chosen.cost
        tied = max(scores) == min(scores) or not chosen.negatives  # equals prefer nothing
        measured["groups/tied"] = float(tied)

        def line(x: Scored | None) -> str:
            """Return the group with what was thought of its selected responses."""
            policy = _spread(x.policy_logps if x else None, chosen.indices, len(scores))
            reference = _spread(x.ref_logps if x else None, chosen.indices, len(scores))
            return Group(
                prompt,
                samples.texts,
                scores,
                embeddings if config.run.save_embeddings else None,
                samples.token_ids,
                policy,
                reference,
                chosen.positive,
                chosen.negatives,
                {"step": step + 1, "selector": config.selection.selector},
            ).to_json()

        return TrainingGroup(
            ids,
            [samples.token_ids[i] for i in chosen.indices],
            [scores[i] for i in chosen.indices],
            prefers=not tied,
            measured=measured,
            line=line,
        )

    def loss(self, x: Scored, step: int, metrics: dict[str, Tensor]) -> Tensor:
        """Contrast the chosen response with its negatives."""
        assert x.scores is not None
        return loss(self.settings.loss, x.policy_logps, x.ref_logps, x.scores, metrics)

    @staticmethod
    def plots(out: Path, **options: Any) -> list[Path]:
        """Draw training curves, held-out scores, and one prompt's responses in the plane."""
        from pyfast.train import plots

        return plots.plot_run(out, **options)


def _spread(values: Tensor | None, indices: list[int], n: int) -> list[float | None]:
    """Put the values of selected responses, if there are any, at their places among all n."""
    spread: list[float | None] = [None] * n
    if values is not None:
        for index, value in zip(indices, values.tolist(), strict=True):
            spread[index] = value
    return spread


@dataclass(frozen=True)
class Chosen:
    """What one group trains on.

    Attributes
    ----------
    positive : int
        Index of the chosen response.
    negatives : list of k ints
        Indices of its negatives.
    cost : float or None
        Opt-Select's coverage cost (AMPO, equation 8); None for the other selectors.
    """

    positive: int
    negatives: list[int]
    cost: float | None = None

    @property
    def indices(self) -> list[int]:
        """The positive first, then the negatives: the order the losses want."""
        return [self.positive, *self.negatives]


def choose(
    config: SelectionConfig,
    scores: list[float],
    embeddings: NDArray[np.float32] | None,
    seed: int,
    texts: Sequence[str] | None = None,
) -> Chosen:
    """Choose the positive and the k negatives of one group (AMPO, Algorithm 1, lines 3-7).

    Parameters
    ----------
    config : SelectionConfig
    scores : list of float, length N
    embeddings : float32 array (N, d), optional
        Needed by opt-select and coreset; bottom-k breaks ties with them.
    seed : int
    texts : sequence of str, length N, optional
        The responses. With ``config.deduplicate`` only the first of equal ones is there to be
        chosen.

    Returns
    -------
    Chosen
        All the others as negatives where there are k or fewer.

    Raises
    ------
    ValueError
        If the selector cannot work with these; the message says why.
    """
    if config.deduplicate and texts is not None:
        first = sorted({text: i for i, text in reversed([*enumerate(texts)])}.values())
        rows = None if embeddings is None else embeddings[first]
        among = choose(config, [scores[i] for i in first], rows, seed)
        return Chosen(first[among.positive], [first[i] for i in among.negatives], among.cost)
    rewards = np.asarray(scores, dtype=np.float64)
    if config.selector == "random":
        top = int(rewards.argmax())  # 3-4
        pool = np.delete(np.arange(len(rewards)), top)  # 6: Omega
        if config.k < len(pool):  # else all, as the other selectors do
            pool = pool[select.random(len(pool), config.k, seed=seed).indices]
        return Chosen(top, [int(i) for i in pool])
    if config.selector == "bottom-k":  # Section 4.1, equation 5
        group = select.bottom_k(rewards, k=config.k, embeddings=embeddings)
    elif embeddings is None:
        raise ValueError(f"{config.selector} needs embeddings")
    elif config.selector == "opt-select":  # Section 5, equation 8
        group = select.opt_select(embeddings, rewards, k=config.k, n_init=config.n_init, seed=seed)
    else:  # coreset: Section 4.2, Algorithm 2
        group = select.coreset(embeddings, rewards, k=config.k, seed=seed)
    cost = float(group.cost) if config.selector == "opt-select" else None
    return Chosen(int(group.positive), [int(i) for i in group.negatives], cost)


def loss(
    config: LossConfig,
    policy_logps: Tensor,
    ref_logps: Tensor,
    scores: Tensor,
    metrics: dict[str, Tensor] | None = None,
) -> Tensor:
    """Contrast the positive with its negatives: SWEPO (AMPO, Algorithm 1, lines 8-12).

    Parameters
    ----------
    config : LossConfig
    policy_logps, ref_logps, scores : float tensors (1 + k,)
        The chosen response first. Line 9's mean score is taken over these 1 + k.
    metrics : dict, optional
        Filled by TRL's names, from the scores that the loss is made of.

    Returns
    -------
    float tensor, scalar
    """
    from pyfast import losses  # loads torch, which choosing does without

    return losses.swepo(
        policy_logps,
        ref_logps,
        scores,
        beta=config.beta,
        alpha=config.alpha,
        positives="top" if config.positives == "top" else "mean",
        metrics=metrics,
    )
