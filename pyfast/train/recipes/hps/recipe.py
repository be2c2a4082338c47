"""HPS: hard preference sampling (HPS, equations 4-10, appendix E).

The chosen response y_1 stands against negatives that are drawn by how hard they are,
q_i ~ exp(gamma r_i), *before* any forward pass: with one draw, one negative goes through the model
instead of all. Beside it stand the paper's baselines: ``bt``, the best response against the worst,
and ``pl``, the whole ranking; each with five losses (table 2).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyfast.train.data import order
from pyfast.train.data.prompts import Prompt
from pyfast.train.errors import UserError
from pyfast.train.evaluation.answering import AnsweringRecipe, answers_file
from pyfast.train.recipe import Scored, TrainingGroup
from pyfast.train.recipes.hps import hard_negatives, heldout_pairs
from pyfast.train.recipes.hps import inputs as hps_inputs
from pyfast.train.recipes.hps.hard_negatives import Plan
from pyfast.train.recipes.hps.inputs import Example, Inputs
from pyfast.train.recipes.hps.settings import (
    HpsLossConfig,
    HpsSettings,
)

if TYPE_CHECKING:
    from torch import Tensor

    from pyfast.train.context import Context


def loss(
    config: HpsLossConfig,
    policy_logps: Tensor,
    ref_logps: Tensor,
    plan: Plan,
    metrics: dict[str, Tensor] | None = None,
    *,
    valid_weight: float = 1.0,
) -> Tensor:
    """Contrast the chosen response, and other valid ones, with what was planned.

    Parameters
    ----------
    config : HpsLossConfig
    policy_logps, ref_logps : float tensors (n,)
        Of the plan's responses, in its order.
    plan : Plan
    metrics : dict, optional
        Filled by TRL's names, of the chosen response and its negatives.
    valid_weight : float
        lambda.

    Returns
    -------
    float tensor, scalar
        L_1 + lambda (L_2 + ...) (appendix E); with one valid response, L_1.
    """
    from pyfast import losses  # loads torch, which drawing does without

    base, beta = config.base, config.beta
    if plan.weights is None:  # the whole ranking, equations 4 and 5
        if base == "dpo":
            return losses.plackett_luce(policy_logps, ref_logps, beta=beta, metrics=metrics)
        ranked = getattr(losses, base)
        return ranked(policy_logps, ref_logps, weighting="pl", beta=beta, metrics=metrics)  # type: ignore[no-any-return]
    total = policy_logps.new_zeros(())
    for head, row in enumerate(plan.weights):
        own = [head, *np.flatnonzero(row).tolist()]
        if len(own) == 1:  # a valid response that nothing stands against
            continue
        policy, ref = policy_logps[own], ref_logps[own]
        weights = policy_logps.new_tensor(np.append(1.0, row[own[1:]]))
        measured = metrics if head == 0 else None
        if base == "dpo":  # equations 8 and 10
            one = losses.plackett_luce_top1(
                policy, ref, beta=beta, weights=weights, metrics=measured
            )
        else:  # sum of w l: weights that are softmax(log w), times their sum
            one = weights[1:].sum() * getattr(losses, base)(
                policy, ref, weights.log(), weighting="hps", gamma=1.0, keep_ties=True,
                beta=beta, metrics=measured,
            )  # fmt: skip
        total = total + one * (1.0 if head == 0 else valid_weight)
    return total


class Hps(AnsweringRecipe):
    """The chosen response against negatives drawn by how hard they are (HPS).

    Learn from groups of scored responses in a file: for each, draw a negative (or several) by
    exp(gamma score), before anything is forwarded, and update a LoRA adapter with a pairwise loss.
    Held-out prompts are answered, and held-out pairs measured, before and after.
    """

    Settings = HpsSettings
    examples = (
        "  pyfast train hps --demo\n"
        "  pyfast train hps --groups scored.jsonl --heldout pairs.jsonl --out runs/hps\n"
        "  pyfast train hps --groups scored.jsonl --mode bt --base exo --out runs/exo-bt\n"
        "  pyfast train hps --groups scored.jsonl --draws 0 --first 20 --out runs/all-of-20"
    )

    def __init__(self, settings: HpsSettings, inputs: Inputs, ctx: Context) -> None:
        super().__init__(settings, inputs, ctx)
        heldout_pairs.check_lengths(ctx, inputs.pairs, settings.sampling.max_new_tokens)
        for example in inputs.examples:
            prompt, responses = ctx.tokens.encode(example.record)
            most = len(prompt) + max(map(len, responses))
            if ctx.positions is not None and most > ctx.positions:
                raise UserError(
                    f"{example.record.place}: prompt and response have {most} tokens, the model "
                    f"{ctx.positions} positions (text.max_prompt and text.max_response cut)"
                )
        ctx.remember("cut", lambda: dict(ctx.tokens.cut))

    @staticmethod
    def read(settings: HpsSettings) -> Inputs:
        """Read groups and held-out pairs, and find the scorer."""
        return hps_inputs.read(settings)

    @staticmethod
    def steps(settings: HpsSettings, inputs: Inputs) -> int:
        """Return the steps of all epochs."""
        return settings.optimisation.steps_of(len(inputs.examples))

    @staticmethod
    def label(settings: HpsSettings) -> str:
        """Return how negatives are chosen, and for which loss."""
        return f"{settings.negatives.mode}-{settings.loss.base}"

    @staticmethod
    def chosen(settings: HpsSettings, inputs: Inputs) -> list[tuple[Prompt, str, str]]:
        """Return the chosen responses."""
        return [
            (
                example.record.prompt,
                example.record.responses[example.heads[0]],
                example.record.place,
            )
            for example in inputs.examples
        ]

    def groups(self, step: int) -> list[TrainingGroup]:
        """Draw the negatives of a step's groups, before anything is forwarded."""
        count, seed = self.settings.optimisation.groups_per_step, self.settings.run.seed
        gamma = self.settings.negatives.gamma(step / self.steps(self.settings, self.inputs))
        return [
            self._group(self.inputs.examples[index], epoch, gamma)
            for epoch, index in order.of_step(len(self.inputs.examples), count, seed, step)
        ]

    def _group(self, example: Example, epoch: int, gamma: float) -> TrainingGroup:
        found = hard_negatives.plan(
            self.settings.negatives,
            example.scores,
            example.heads,
            gamma,
            lambda head: self.ctx.seed("draw", epoch, example.number, head),
            likelihood=self.settings.loss.base == "dpo",
        )
        texts = [example.record.responses[i] for i in found.responses]
        prompt, responses = self.ctx.tokens.encode(replace(example.record, responses=texts))
        scores = example.scores[found.responses].tolist()
        chosen = 1 if found.weights is None else len(found.weights)
        measured = {
            "negatives/gamma": found.gamma,
            "scores/chosen": scores[0],
            "scores/rejected": float(np.mean(scores[chosen:])),
            "tokens/forwarded": float(len(prompt) + sum(map(len, responses))),
            "responses/forwarded": float(len(responses)),
        }
        return TrainingGroup(prompt, responses, scores, measured=measured, plan=found)

    def loss(self, x: Scored, step: int, metrics: dict[str, Tensor]) -> Tensor:
        """Contrast the chosen response with what was drawn (equations 4, 8 and 10)."""
        weight = self.settings.negatives.valid_weight
        logps = x.policy_logps, x.ref_logps
        return loss(self.settings.loss, *logps, x.plan, metrics, valid_weight=weight)

    def evaluate(self, step: int) -> None:
        """Answer the held-out prompts and measure the held-out pairs, once for each step."""
        super().evaluate(step)
        folder = self.ctx.folder / "evaluation"
        path = folder / f"pairs-step-{step}.jsonl"
        if self.inputs.pairs and not self.ctx.once(path.exists):
            beta = self.settings.loss.beta
            heldout_pairs.measure(self.ctx, self.inputs.pairs, self.settings, path, beta=beta)
        if self.inputs.pairs:
            steps = self.steps(self.settings, self.inputs)
            count, run = len(self.inputs.pairs), self.ctx.folder

            def write() -> None:
                heldout_pairs.write_curve(folder, count, lambda at: answers_file(run, at, steps))

            self.ctx.once(write)

    @classmethod
    def summary(cls, settings: HpsSettings, inputs: Inputs, out: Path) -> dict[str, Any]:
        """Gather what the paper's tables have; every number is in ``metrics``."""
        from pyfast.train.recipes.hps import summary as summaries

        found = super().summary(settings, inputs, out)
        return summaries.complete(found, settings, inputs, out)

    @staticmethod
    def plots(out: Path, **options: Any) -> list[Path]:
        """Draw training curves, held-out scores and the held-out pairs' margins."""
        from pyfast.train.recipes.hps import plots

        return plots.plot_run(out)

    @staticmethod
    def table(summary: dict[str, Any]) -> str:
        """Return the table of what was measured on held-out prompts."""
        from pyfast.train.recipes.hps import summary as summaries

        return summaries.table(summary)
