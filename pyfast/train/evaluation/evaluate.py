"""Held-out evaluation: the same prompts answered by the policy before and after training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pyfast.train.context import Context
from pyfast.train.data.group import Group, read_groups, write_groups
from pyfast.train.errors import UserError
from pyfast.train.evaluation.answering import AT_ONCE
from pyfast.train.evaluation.metrics import bootstrap_interval
from pyfast.train.runs import kept
from pyfast.train.scoring import rewards
from pyfast.train.seeds import derive


def answer(
    ctx: Context, prompts: Sequence[str], reward: rewards.Reward, config: Any, path: Path
) -> None:
    """Answer and score the held-out prompts, and write them as a groups file.

    The random numbers depend on the run's seed and the prompt's position alone, so both evaluations
    of a run draw with the same ones: their difference is the training's doing.

    Parameters
    ----------
    ctx : Context
    prompts : sequence of str
    reward : callable
    config : Settings
        With the sections sampling, evaluation and run.
    path : Path
        Written whole or not at all.
    """
    # As many responses at once as training samples for one prompt, so memory is no more than there.
    # Few, as in pools of pairs, are too few for speed.
    sampling = config.sampling
    if config.evaluation.temperature is not None:
        sampling = dataclasses.replace(sampling, temperature=config.evaluation.temperature)
    at_once = max(1, max(config.sampling.responses, AT_ONCE) // config.evaluation.responses)
    bar = tqdm(total=len(prompts), desc=path.stem, unit="prompt")

    def answered(start: int) -> list[Group]:
        batch = prompts[start : start + at_once]
        ids = [ctx.tokens.prompt(prompt) for prompt in batch]
        seeds = [derive(config.run.seed, "evaluate", start + i) for i in range(len(batch))]
        answers = ctx.policy.answer(ids, config.evaluation.responses, sampling, seeds)
        groups = []
        for prompt, samples in zip(batch, answers, strict=True):
            scores = rewards.score(reward, prompt, samples.texts)
            groups.append(Group(prompt, samples.texts, scores, meta={"finished": samples.finished}))
        bar.update(len(batch))
        return groups

    batches = ctx.each(range(0, len(prompts), at_once), answered)
    bar.close()

    def write() -> None:
        path.parent.mkdir(exist_ok=True)
        with kept.sealed(path) as beside:
            write_groups(beside, chain.from_iterable(batches))

    ctx.once(write)


def compare(before: Path, after: Path, config: Any) -> dict[str, Any]:
    """Compare two evaluations of the same prompts.

    The statistic is the mean over prompts of each prompt's mean score; the difference is paired by
    prompt. Intervals are percentile bootstraps over the prompts (`bootstrap_interval`), so they
    speak of new prompts of the same kind, for this one trained adapter.

    Parameters
    ----------
    before, after : Path
        What `answer` wrote.
    config : Settings
        With the sections sampling, evaluation and run.

    Returns
    -------
    dict
        ``before``, ``after``, ``difference``: each ``{"mean", "low", "high"}``; and
        ``"prompts"``, ``"prompts_improved"``, ``"responses_per_prompt"``, ``"confidence"``.

    Raises
    ------
    UserError
        If a file is damaged, or they answer different prompts.
    """
    (prompts, first), (again, second) = _prompt_means(before), _prompt_means(after)
    if prompts != again:
        raise UserError(f"{after}: expected answers to the prompts of {before.name}, in its order")

    def interval(values: NDArray[np.float64]) -> dict[str, float]:
        low, high = bootstrap_interval(
            values,
            confidence=config.evaluation.confidence,
            resamples=config.evaluation.bootstrap,
            seed=derive(config.run.seed, "bootstrap"),
        )
        return {"mean": float(values.mean()), "low": low, "high": high}

    return {
        "before": interval(first),
        "after": interval(second),
        "difference": interval(second - first),
        "prompts": len(first),
        "prompts_improved": int((second > first).sum()),
        "responses_per_prompt": config.evaluation.responses,
        "confidence": config.evaluation.confidence,
    }


def mean_score(path: Path) -> float:
    """Return the mean over prompts of each prompt's mean score, of what `answer` wrote."""
    return float(_prompt_means(path)[1].mean())


def _prompt_means(path: Path) -> tuple[list[str], NDArray[np.float64]]:
    """Return the prompts of a groups file, and the mean score of each."""
    groups = read_groups(path)
    for number, group in enumerate(groups, start=1):
        if group.scores is None:
            raise UserError(f"{path}: group {number}: scores are missing")
    return [group.prompt for group in groups], np.array([np.mean(g.scores or []) for g in groups])
