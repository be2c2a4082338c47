"""Which negatives stand against a chosen response, and their weights (HPS, section 4, appendix E).

Decided from scores alone, before anything goes through the model. With one draw only two responses
are forwarded instead of all, which is the point of the method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pyfast import select
from pyfast.train.config import Section, setting


@dataclass(frozen=True)
class NegativesConfig(Section):
    """Which responses stand against the chosen one."""

    section: ClassVar[str] = "negatives"
    mode: str = setting(
        "hps",
        "hps: drawn by exp(gamma score); bt: the lowest score alone; pl: the whole ranking",
        choices=("hps", "bt", "pl"),
    )
    draws: int = setting(1, "negatives drawn for each group; 0 takes all, by their q", least=0)
    importance: str = setting(
        "auto",
        "weight of a drawn negative: none (1), mean (N / draws), or q (N q / draws: equation 10 "
        "read literally); auto: none for one draw, as the authors' code has it, else mean",
        choices=("auto", "none", "mean", "q"),
    )
    first: int | None = setting(
        None, "take the first so many responses of each group; sets of 5, 20, ... nest", least=2
    )
    chosen: str = setting(
        "score", "the chosen response: of the best score, or the labelled one",
        choices=("score", "label"),
    )  # fmt: skip
    keep_ties: bool = setting(
        False, "whether responses that score as the chosen one does are negatives all the same"
    )
    schedule: str = setting(
        "linear",
        "gamma over training: linear (-5, -3, -1, 1, 3) and levels (-5, -2.5, 0, 2.5, 5) move at "
        "every fifth of the steps; constant is gamma_high all along",
        choices=("linear", "levels", "constant"),
    )
    gamma_low: float = setting(-5.0, "gamma at the start")
    gamma_high: float = setting(5.0, "where gamma goes")
    score_scale: str = setting(
        "none",
        "what gamma multiplies: scores as they are, standardised or scaled to [0, 1] in each group",
        choices=("none", "zscore", "minmax"),
    )
    valid_weight: float = setting(
        1.0,
        "lambda: where a record has several valid responses, the weight of all but the first "
        "(appendix E; pl ranks all and reads no valid)",
        least=0,
    )
    valid_as_negatives: bool = setting(
        False, "appendix E as printed: valid responses have the valid ones after them as negatives"
    )

    def gamma(self, progress: float) -> float:
        """Return gamma after a share of the optimiser steps."""
        return select.hard_preference_gamma(
            progress,
            self.gamma_low,
            self.gamma_high,
            schedule=self.schedule,  # type: ignore[arg-type]
        )


@dataclass(frozen=True, eq=False)
class Plan:
    """What of a group goes through the model, and how it counts.

    Attributes
    ----------
    responses : list of int
        Positions in the group, the chosen one first. In mode pl the whole ranking; else the other
        valid ones after it, then the negatives.
    weights : float32 array (heads, len(responses)) or None
        Row k: how much each response counts against response k, 0 where it does not; None in mode
        pl.
    gamma : float
    """

    responses: list[int]
    weights: NDArray[np.float32] | None
    gamma: float


def scaled(scores: NDArray[np.float64], how: str) -> NDArray[np.float64]:
    """Return a group's scores as gamma multiplies them; all equal: zeros."""
    if how == "none":
        return scores
    if scores.min() == scores.max():
        return np.zeros_like(scores)
    values = scores / np.abs(scores).max()  # in [-1, 1], where nothing overflows
    if how == "minmax":
        return np.asarray((values - values.min()) / (values.max() - values.min()))
    return np.asarray((values - values.mean()) / values.std())


def heads_of(
    config: NegativesConfig, scores: NDArray[np.float64], label: int | None, valid: list[int] | None
) -> list[int]:
    """Return the chosen response, then the other valid ones, the best score first.

    Without a label, the chosen one is the first of the best score, of the valid ones where they
    are known.
    """
    able = list(range(len(scores))) if valid is None else sorted(valid)
    by_score = sorted(able, key=lambda i: -scores[i])  # stable: the first of equals
    chosen = by_score[0] if config.chosen == "score" or label is None else label
    if valid is None or config.mode == "pl":
        return [chosen]
    return [chosen, *(i for i in by_score if i != chosen)]


def negatives_of(
    config: NegativesConfig, scores: NDArray[np.float64], heads: list[int], number: int = 0
) -> list[int]:
    """Return what may stand against a head: not itself, no other valid one, none that ties."""
    head = heads[number]
    out = set(heads[: number + 1] if config.valid_as_negatives else heads)
    pool = [i for i in range(len(scores)) if i not in out]
    return [i for i in pool if config.keep_ties or scores[i] != scores[head]]


def plan(
    config: NegativesConfig,
    scores: NDArray[np.float64],
    heads: list[int],
    gamma: float,
    seed: Callable[[int], int],
    *,
    likelihood: bool,
) -> Plan:
    """Decide what of a group to forward.

    Parameters
    ----------
    config : NegativesConfig
    scores : float64 array (n,)
        At least one of them a negative for the first head (`negatives_of`).
    heads : list of int
        As `heads_of` gives them.
    gamma : float
    seed : callable
        Of a head's number: the seed of its draws.
    likelihood : bool
        Whether the weights are for the likelihood (b of equation 10, with its N), or for the mean
        of pairwise losses.

    Returns
    -------
    Plan
    """
    if config.mode == "pl":  # the whole list, equation 4
        rest = sorted((i for i in range(len(scores)) if i != heads[0]), key=lambda i: -scores[i])
        return Plan([heads[0], *rest], None, gamma)
    rows = np.zeros((len(heads), len(scores)))
    for number, head in enumerate(heads):
        pool = negatives_of(config, scores, heads, number)
        if pool and config.mode == "bt":  # of equals the last, as the losses have it
            rows[number, max(pool, key=lambda i: (-scores[i], i))] = 1
        elif pool:
            q, times = _drawn(config, scores, head, pool, gamma, seed(number))
            rows[number, pool] = _weights(config, q, times, likelihood=likelihood)
    weights = rows.astype(np.float32)
    used = np.flatnonzero(weights.any(axis=0)).tolist()
    responses = [*heads, *(i for i in used if i not in heads)]
    return Plan(responses, weights[:, responses], gamma)


def _drawn(
    config: NegativesConfig,
    scores: NDArray[np.float64],
    head: int,
    pool: list[int],
    gamma: float,
    seed: int,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return q of a head's N negatives (equation 9), and how often each is drawn from it."""
    hardness = scaled(scores, config.score_scale)[[head, *pool]]
    found = select.hard_preference(
        hardness, gamma, max(1, config.draws), seed, preferred=0, keep_ties=True
    )
    return found.probabilities[1:], np.bincount(found.negatives - 1, minlength=len(pool))


def _weights(
    config: NegativesConfig, q: NDArray[np.float64], times: NDArray[np.int64], *, likelihood: bool
) -> NDArray[np.float64]:
    """Return how much each of N negatives counts.

    The likelihood has N E_q[e^s] = sum of N q e^s (equation 8), of which the drawn ones are an
    estimate. A pairwise loss has E_q[l] = sum of q l, which does not grow with N. Equation 10 read
    literally weighs a drawn one by N q(y) once more: in a pairwise loss its pair.
    """
    total, how = len(q), config.importance
    if config.draws == 0:
        return total * q if likelihood else q
    share = times / config.draws
    if how == "auto":
        how = "none" if config.draws == 1 else "mean"
    if how == "q":
        return np.asarray(total * q * share)
    if not likelihood:
        return np.asarray(share)
    return np.asarray(times if how == "none" else total * share, dtype=np.float64)
