"""AMPO: the best response against k actively selected negatives (AMPO, Algorithm 1).

The numbers in the comments are the lines of Algorithm 1. Its input, sampled and scored responses,
is made in `Ampo._select`, for the prompts of a step or for all prompts of a round; the loop takes
the gradient step (line 13).
"""

from __future__ import annotations

import importlib.util
import reprlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from pyfast.train.data import inputs as prompt_inputs
from pyfast.train.data import kept_groups, order
from pyfast.train.data.group import Group
from pyfast.train.errors import UserError
from pyfast.train.evaluation.answering import AnsweringRecipe, write_curve
from pyfast.train.policy import served
from pyfast.train.recipe import Scored, TrainingGroup
from pyfast.train.recipes.ampo.selection import choose, scale
from pyfast.train.recipes.ampo.settings import (
    AmpoSettings,
    LossConfig,
)
from pyfast.train.runs import kept
from pyfast.train.scoring import rewards

if TYPE_CHECKING:
    from torch import Tensor

    from pyfast.train.context import Context
    from pyfast.train.data.prompts import Prompt


class Ampo(AnsweringRecipe):
    """The best response against k actively selected negatives, on policy (AMPO).

    For each prompt, sample N responses, score and embed them, keep the best one and k selected
    negatives, and update the policy with the SWEPO loss: for the prompts of each step, or in rounds
    for all prompts, which are then learnt from for some epochs. Held-out prompts are answered
    before and after.
    """

    Settings = AmpoSettings
    examples = (
        "  pyfast train ampo --demo\n"
        "  pyfast train ampo --demo --selector coreset --seed 1 --out runs/coreset-1\n"
        "  pyfast train ampo --prompts prompts.jsonl --heldout heldout.jsonl \\\n"
        "      --model ./my-model --reward my_rewards:helpfulness --steps 200 --out runs/mine\n"
        "  pyfast train ampo --prompts prompts.jsonl --rounds 3 --epochs 2 --reference round\n"
        "  pyfast train ampo --demo --selector worst --implicit-reward simpo --alpha 0 "
        "--beta 2 --margin 1\n"
        "  pyfast train ampo --config runs/mine/config.json --seed 1 --out runs/mine-1"
    )

    def __init__(self, settings: AmpoSettings, inputs: prompt_inputs.Inputs, ctx: Context) -> None:
        from pyfast.train.scoring.encoder import SentenceEncoder

        super().__init__(settings, inputs, ctx)
        prompt_inputs.check_lengths(inputs, ctx, settings.sampling.max_new_tokens)
        self.encoder = SentenceEncoder(settings.scoring.encoder, ctx.policy.device)
        self._pools: dict[int, kept_groups.KeptGroups] = {}
        self._answer: served.Answer = ctx.policy.answer
        if settings.text.max_prompt is not None:
            ctx.remember("cut", lambda: dict(ctx.tokens.cut))

    def evaluate(self, step: int) -> None:
        """Answer the held-out prompts, and keep the curve up to date."""
        super().evaluate(step)
        steps = self.steps(self.settings, self.inputs)
        self.ctx.once(lambda: write_curve(self.ctx.folder, steps))

    @staticmethod
    def read(settings: AmpoSettings) -> prompt_inputs.Inputs:
        """Read prompts and find the reward."""
        if settings.selection.exact and importlib.util.find_spec("scipy") is None:
            raise UserError("selection.exact: needs the package scipy (pip install scipy)")
        if settings.sampling.temperature == 0:
            sys.stderr.write(
                "pyfast: warning: sampling.temperature: at 0 all responses to a prompt are the "
                "same, and there is nothing to learn from\n"
            )
        return prompt_inputs.read_inputs(settings)

    @staticmethod
    def steps(settings: AmpoSettings, inputs: prompt_inputs.Inputs) -> int:
        """Return the steps that are asked for, or those of all epochs and rounds."""
        optim = settings.optimisation
        if optim.steps is not None:
            return optim.steps
        return (settings.rounds.rounds or 1) * optim.steps_of(len(inputs.prompts))

    def schedule(self, step: int) -> tuple[int, int]:
        """Return the steps of a step's round."""
        if self.settings.rounds.rounds is None:
            return super().schedule(step)
        length = self.settings.optimisation.steps_of(len(self.inputs.prompts))
        start = step // length * length
        return start, start + length

    @staticmethod
    def label(settings: AmpoSettings) -> str:
        """Return the selector."""
        return settings.selection.selector

    def fingerprints(self) -> dict[str, dict[str, str]]:
        """Return the encoder's."""
        from pyfast.train.policy import fingerprint

        return {"encoder": fingerprint.of(self.encoder.model, self.encoder.tokenizer)}

    def groups(self, step: int) -> list[TrainingGroup]:
        """Return the groups of a step: sampled and selected now, or those of its round."""
        count, prompts = self.settings.optimisation.groups_per_step, self.inputs.prompts
        if self.settings.rounds.rounds is None:
            chosen = order.of_step(len(prompts), count, self.settings.run.seed, step)
            slots = [(slot, prompts[i]) for slot, (_, i) in enumerate(chosen)]
            groups = self.ctx.each(slots, lambda at: self._select(at[1], step, at[0]))
            return [self._training_group(group, step) for group in groups]
        start, end = self.schedule(step)
        number = start // (end - start)
        pool = self._pool(number)
        seed = self.ctx.seed("round", number)
        chosen = order.of_step(len(prompts), count, seed, step - start)
        return [self._training_group(pool[i], step) for _, i in chosen]

    def _pool(self, number: int) -> kept_groups.KeptGroups:
        """Return a round's groups, one a prompt; they are made once, by the policy as it is."""
        if number not in self._pools:
            prompts = self.inputs.prompts

            def make(i: int) -> Group:
                group = self._select(prompts[i], "round", number, i)
                logps = self._reference(group)
                return replace(group, ref_logps=logps, meta={**group.meta, "round": number + 1})

            path = self.ctx.folder / "kept" / f"round-{number + 1}.jsonl"
            is_needed = partial(kept_groups.lacks, path, len(prompts))
            name = f"round-{number + 1}-served"
            with served.sampler(
                self.ctx, self.settings.sampling, name, prompts[0], is_needed
            ) as self._answer:
                self._pools = {number: kept_groups.make(self.ctx, path, prompts, make)}
        return self._pools[number]

    def _reference(self, group: Group) -> list[float | None]:
        """Return what a round's reference thinks of the selected responses."""
        import torch

        ids, tokens = _learnt(self.ctx, group)
        loaded = self.settings.rounds.reference == "loaded"
        with torch.no_grad():
            logps = self.ctx.policy.logps(ids, tokens, reference=loaded)
        return _spread(logps, group, len(group.responses))

    def _select(self, prompt: Prompt, *place: int | str) -> Group:
        """Sample, score, embed and select for a prompt; `place` tells its random numbers apart."""
        ctx, config = self.ctx, self.settings
        seeds = [ctx.seed("sample", *place)]
        ids, n = [ctx.tokens.prompt(prompt)], config.sampling.responses
        (samples,) = self._answer(ids, n, config.sampling, seeds)
        scores = rewards.score(self.inputs.reward, prompt, samples.texts)
        embeddings = self.encoder.encode(samples.texts)
        seed = ctx.seed("select", *place)
        try:
            chosen = choose(config.selection, scores, embeddings, seed, samples.texts)
        except ValueError as error:  # such as scores that reward_scale none cannot weigh
            shown = reprlib.repr(str(prompt))
            raise UserError(f"selection, prompt {shown}: {error}") from None
        return Group(
            prompt,
            samples.texts,
            scores,
            embeddings if config.run.save_embeddings else None,
            samples.token_ids,
            positive=chosen.positive,
            negatives=chosen.negatives,
            meta={
                "selector": config.selection.selector,
                "finished": samples.finished,
                "selection": chosen.measured,
            },
        )

    def _training_group(self, group: Group, step: int) -> TrainingGroup:
        """Return what to learn from a group at a step, and its line."""
        ids, tokens = _learnt(self.ctx, group)
        scores, negatives = group.scores or [], group.negatives or []
        measured = kept_groups.measure(group)
        tied = max(scores) == min(scores) or not negatives  # equals prefer nothing
        measured["groups/tied"] = float(tied)
        indices = [group.positive or 0, *negatives]
        known = [group.ref_logps[i] for i in indices] if group.ref_logps else None

        def line(x: Scored | None) -> str:
            """Return the group with what was thought of its selected responses."""
            policy = _spread(x.policy_logps if x else None, group, len(scores))
            reference = _spread(x.ref_logps if x else None, group, len(scores))
            meta = {"step": step + 1, "selector": group.meta["selector"]}
            shown = replace(group, policy_logps=policy, ref_logps=reference, meta=meta)
            return shown.to_json()

        scaled = scale(self.settings.selection, scores)
        return TrainingGroup(
            ids,
            tokens,
            [scaled[i] for i in indices],
            ref_logps=_as_tensor(known),
            prefers=not tied,
            measured=measured,
            line=line,
        )

    def loss(self, x: Scored, step: int, metrics: dict[str, Tensor]) -> Tensor:
        """Contrast the chosen response with its negatives."""
        assert x.scores is not None
        config = self.settings.loss
        return loss(config, x.policy_logps, x.ref_logps, x.scores, metrics, x.lengths)

    @classmethod
    def summary(cls, settings: Any, inputs: Any, out: Path) -> dict[str, Any]:
        """Compare the answers before and after, and say how many prompts were cut."""
        found, cut = super().summary(settings, inputs, out), out / "kept" / "cut.json"
        return {**found, "cut": kept.read(cut)} if cut.exists() else found

    @staticmethod
    def plots(out: Path, **options: Any) -> list[Path]:
        """Draw training curves, held-out scores, and one prompt's responses in the plane.

        With `tsne`, numbers of groups, figure 2 alone.
        """
        from pyfast.train.reports import plots

        numbers = options.pop("tsne", None)
        if numbers is None:
            return plots.plot_run(out, **options)
        from pyfast.train.recipes.ampo import plots as maps

        return [maps.plot_selections(out, numbers)]


def _learnt(ctx: Context, group: Group) -> tuple[list[int], list[list[int]]]:
    """Return the tokens of a group's prompt, and of the responses that are learnt from."""
    assert group.token_ids is not None
    assert group.positive is not None
    indices = [group.positive, *(group.negatives or [])]
    return ctx.tokens.prompt(group.prompt), [group.token_ids[i] for i in indices]


def _spread(values: Tensor | None, group: Group, n: int) -> list[float | None]:
    """Put the values of selected responses, if there are any, at their places among all n."""
    spread: list[float | None] = [None] * n
    if values is not None:
        indices = [group.positive, *(group.negatives or [])]
        for index, value in zip(indices, values.tolist(), strict=True):
            spread[index or 0] = value
    return spread


def _as_tensor(values: Sequence[float | None] | None) -> Tensor | None:
    if values is None:
        return None
    import torch

    return torch.tensor(values, dtype=torch.float32)


def loss(
    config: LossConfig,
    policy_logps: Tensor,
    ref_logps: Tensor,
    scores: Tensor,
    metrics: dict[str, Tensor] | None = None,
    lengths: Tensor | None = None,
) -> Tensor:
    """Contrast the positive with its negatives: SWEPO (AMPO, Algorithm 1, lines 8-12).

    Parameters
    ----------
    config : LossConfig
    policy_logps, ref_logps, scores : float tensors (1 + k,)
        The chosen response first. Line 9's mean score is taken over these 1 + k.
    metrics : dict, optional
        Filled by TRL's names, from the scores that the loss is made of.
    lengths : int tensor (1 + k,), optional
        Tokens of the responses, which the implicit rewards but dpo need.

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
        margin=config.margin,
        reward=cast("Literal['dpo', 'length_normalized', 'simpo']", config.implicit_reward),
        lengths=None if config.implicit_reward == "dpo" else lengths,
        metrics=metrics,
    )
