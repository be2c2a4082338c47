"""The pool of a round: prompts, the distinct responses that were sampled to them, and all pairs.

And how pairs of it are asked about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyfast.train.config import SamplingConfig
from pyfast.train.evaluation.answering import AT_ONCE
from pyfast.train.policy import served
from pyfast.train.recipes.active_dpo import labels
from pyfast.train.recipes.active_dpo.oracle import Oracle, Question

if TYPE_CHECKING:
    from pyfast.train.context import Context
    from pyfast.train.data.prompts import Prompt


@dataclass(frozen=True)
class Pool:
    """Pairs to choose from.

    Attributes
    ----------
    prompts : list of Prompt
    prompt_ids : list of lists of int
        Their tokens.
    samples : list of lists of lists of int
        Tokens of all responses to each prompt, identical ones too.
    texts : list of str
        The distinct responses, prompt by prompt: the pool's rows.
    tokens : list of lists of int
        Theirs.
    owners : list of int
        Number of each row's prompt.
    pairs : int64 array (P, 2)
        Rows of two responses to the same prompt, no question in it twice.
    """

    prompts: list[Prompt]
    prompt_ids: list[list[int]]
    samples: list[list[list[int]]]
    texts: list[str]
    tokens: list[list[int]]
    owners: list[int]
    pairs: NDArray[np.int64]

    def responses(self) -> list[tuple[list[int], list[int]]]:
        """Return the tokens of prompt and response of each row."""
        prompts = (self.prompt_ids[owner] for owner in self.owners)
        return list(zip(prompts, self.tokens, strict=True))

    def question(self, pair: Sequence[int]) -> Question:
        """Return the question that a pair of rows asks, the first one shown first."""
        a, b = pair
        return Question(self.prompts[self.owners[a]], self.texts[a], self.texts[b])

    def length(self, pairs: NDArray[np.int64]) -> float:
        """Return the mean number of tokens of the responses in some pairs."""
        lengths = np.array([len(row) for row in self.tokens])
        return float(lengths[pairs].mean())


def draw(n: int, count: int | None, seed: int) -> list[int]:
    """Return the numbers of the prompts of a round, so many of n or all, in the file's order."""
    chosen = np.random.default_rng(seed).permutation(n)[:count]
    return sorted(chosen.tolist())


def make_pool(
    ctx: Context,
    prompts: Sequence[Prompt],
    numbers: Sequence[int],
    config: SamplingConfig,
    name: str,
) -> Pool:
    """Sample responses from the policy as it is, or go on where that stopped, and pair them.

    Parameters
    ----------
    ctx : Context
    prompts : sequence of Prompt
        All of them.
    numbers : sequence of int
        Which are drawn.
    config : SamplingConfig
    name : str
        Of the pool; what is sampled is kept under it.

    Returns
    -------
    Pool
    """
    drawn = [prompts[number] for number in numbers]
    ids = [ctx.tokens.prompt(prompt) for prompt in drawn]
    step = max(1, AT_ONCE // config.responses)
    starts = range(0, len(drawn), step)

    kept = [f"{name}/answers-{start}" for start in starts]
    asked = served.sampler(ctx, config, f"{name}-served", drawn[0], lambda: ctx.lacks(kept))

    def sample(batch: int) -> list[dict[str, Any]]:
        some = range(starts[batch], min(starts[batch] + step, len(drawn)))
        seeds = [ctx.seed("sample", name, numbers[i]) for i in some]
        answers = answer([ids[i] for i in some], config.responses, config, seeds)
        return [{"texts": found.texts, "token_ids": found.token_ids} for found in answers]

    with asked as answer:
        batches = ctx.remember_each(kept, sample, f"{name}: sampling")
    return _paired(drawn, ids, [answers for batch in batches for answers in batch])


def _paired(
    prompts: list[Prompt], prompt_ids: list[list[int]], answered: list[dict[str, Any]]
) -> Pool:
    """Drop identical responses, and pair the others."""
    texts: list[str] = []
    tokens: list[list[int]] = []
    owners: list[int] = []
    for number, found in enumerate(answered):
        first = dict(zip(found["texts"][::-1], found["token_ids"][::-1], strict=True))
        for text in dict.fromkeys(found["texts"]):
            texts.append(text)
            tokens.append(first[text])
            owners.append(number)
    edges = np.searchsorted(owners, np.arange(len(prompts) + 1))
    pairs = [
        pair
        for start, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
        for pair in combinations(range(start, end), 2)
    ]
    samples = [found["token_ids"] for found in answered]
    pool = Pool(prompts, prompt_ids, samples, texts, tokens, owners, _as_pairs([]))
    asked: set[str] = set()
    distinct = []
    for pair in pairs:  # a prompt that stands in the file twice asks the same
        key = pool.question(pair).key
        if key not in asked:
            asked.add(key)
            distinct.append(pair)
    return Pool(prompts, prompt_ids, samples, texts, tokens, owners, _as_pairs(distinct))


def _as_pairs(pairs: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def ask(
    pool: Pool, pairs: NDArray[np.int64], oracle: Oracle, path: Path, batch: str, seed: int
) -> list[tuple[list[int] | None, dict[str, Any]]]:
    """Ask about pairs in random order, and each the one or the other way round.

    Parameters
    ----------
    pool : Pool
    pairs : int64 array (k, 2)
    oracle : Oracle
    path : Path
        The file of labels (`labels.ask`).
    batch : str
        The batch's name.
    seed : int

    Returns
    -------
    list of (pair or None, notes), in the order of `pairs`
        The better response first, None for a pair that was skipped; and the oracle's notes.
    """
    generator = np.random.default_rng(seed)
    shown = [pair[::-1] if generator.random() < 0.5 else pair for pair in pairs.tolist()]
    turn = generator.permutation(len(shown)).tolist()
    questions = [pool.question(shown[i]) for i in turn]
    answers = dict(zip(turn, labels.ask(path, oracle, questions, batch), strict=True))
    found: list[tuple[list[int] | None, dict[str, Any]]] = []
    for i, pair in enumerate(shown):
        ordered = {"a": pair, "b": pair[::-1], "skip": None}
        found.append((ordered[answers[i].choice], answers[i].notes))
    return found


def describe(pool: Pool, chosen: NDArray[np.int64]) -> dict[str, float]:
    """Return how the pairs that were labelled (k, 2) differ from the pool's."""
    return {
        "picks/length": pool.length(chosen),
        "picks/prompts": len({pool.owners[row] for row in chosen[:, 0].tolist()}),
        "pool/length": pool.length(pool.pairs),
        "pool/pairs": len(pool.pairs),
    }


def why_too_few(pool: Pool, wanted: int, left: int, skipped: int) -> str:
    """Say why fewer pairs are left than have to be labelled, and what would give more."""
    texts = sum(len(samples) for samples in pool.samples)
    return (
        f"expected at least {wanted} pairs to label, {left} are left: {texts - len(pool.texts)} of "
        f"{texts} responses say the same as another one to their prompt, "
        f"{len(pool.pairs) - left} pairs were asked before, {skipped} skipped; more prompts "
        "(active.prompts_per_round), sampling.responses or a higher sampling.temperature give "
        "more, in another --out"
    )
