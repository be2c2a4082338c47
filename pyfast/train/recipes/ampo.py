"""AMPO: the best response against k actively selected negatives (AMPO, Algorithm 1).

The numbers in the comments are the lines of Algorithm 1. The loop around it samples and scores
the responses (the algorithm's input) and takes the gradient step (line 13).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyfast import select
from pyfast.train.config import LossConfig, SelectionConfig

if TYPE_CHECKING:
    from torch import Tensor


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
