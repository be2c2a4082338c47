"""AMPO's choice of the responses to learn from: the best one and k negatives (Algorithm 1).

The numbers in the comments are the lines of Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pyfast import select
from pyfast.train.config import Section, setting

SELECTORS = ("opt-select", "coreset", "bottom-k", "random", "worst")


@dataclass(frozen=True)
class SelectionConfig(Section):
    """Which negatives stand beside the best response."""

    section: ClassVar[str] = "selection"
    selector: str = setting(
        "opt-select",
        "how the negatives are chosen; worst: the worst response alone, as best-against-worst has "
        "it (with --implicit-reward simpo --alpha 0 that is SimPO)",
        choices=SELECTORS,
    )
    k: int = setting(7, "negatives for each prompt (k)", least=1)
    n_init: int = setting(10, "starts of opt-select's swap search; the best is kept", least=1)
    deduplicate: bool = setting(
        False, "choose among distinct texts alone, so that no negative is a copy of the best"
    )
    search: str = setting(
        "best", "opt-select's swaps: the best of all, or FasterPAM's", choices=("best", "eager")
    )
    cover_top: bool = setting(
        False, "opt-select covers the best response too, as Algorithm 4 prints it"
    )
    certify: bool = setting(False, "bound opt-select's optimum: the metric selection/gap")
    exact: bool = setting(False, "find opt-select's optimum (equation 9; needs scipy)")
    reward_scale: str = setting(
        "split",
        "scores of a group: from 0 to 1 (minmax) or as they are (none), for opt-select and the "
        "loss alike; or split: from 0 to 1 for opt-select, as they are for the loss",
        choices=("split", "minmax", "none"),
    )

    @property
    def negatives(self) -> int:
        """The negatives that are wanted."""
        return 1 if self.selector == "worst" else self.k


@dataclass(frozen=True)
class Chosen:
    """What one group trains on.

    Attributes
    ----------
    positive : int
        Index of the chosen response.
    negatives : list of k ints
        Indices of its negatives.
    measured : dict
        ``selection/cost``, Opt-Select's coverage cost (AMPO, equation 8), and ``selection/gap``,
        the fraction by which it may miss the optimum, where that is asked for.
    """

    positive: int
    negatives: list[int]
    measured: dict[str, float] = field(default_factory=dict)

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
        return Chosen(first[among.positive], [first[i] for i in among.negatives], among.measured)
    rewards = np.asarray(scores, dtype=np.float64)
    if config.selector == "random":
        top = int(rewards.argmax())  # 3-4
        pool = np.delete(np.arange(len(rewards)), top)  # 6: Omega
        if config.k < len(pool):  # else all, as the other selectors do
            pool = pool[select.random(len(pool), config.k, seed=seed).indices]
        return Chosen(top, [int(i) for i in pool])
    measured = {}
    if config.selector in ("bottom-k", "worst"):  # Section 4.1, equation 5; table 1
        group = select.bottom_k(rewards, k=config.negatives, embeddings=embeddings)
    elif embeddings is None:
        raise ValueError(f"{config.selector} needs embeddings")
    elif config.selector == "opt-select":  # Section 5, equation 8
        group = select.opt_select(
            embeddings,
            rewards,
            k=config.k,
            n_init=config.n_init,
            seed=seed,
            search="eager" if config.search == "eager" else "best",
            cover_top=config.cover_top,
            reward_scale="none" if config.reward_scale == "none" else "minmax",
            certify=config.certify,
            exact=config.exact,
        )
        measured = {"selection/cost": float(group.cost)}
        if group.gap is not None:
            measured["selection/gap"] = float(group.gap)
    else:  # coreset: Section 4.2, Algorithm 2
        group = select.coreset(embeddings, rewards, k=config.k, seed=seed)
    return Chosen(int(group.positive), [int(i) for i in group.negatives], measured)


def scale(config: SelectionConfig, scores: Sequence[float]) -> list[float]:
    """Return a group's scores as the loss takes them (`SelectionConfig.reward_scale`)."""
    low, high = min(scores), max(scores)
    if config.reward_scale != "minmax":
        return list(scores)
    return [(r - low) / (high - low) if high > low else 0.5 for r in scores]
