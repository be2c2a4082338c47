"""Hard preference sampling: negatives drawn by an exponential tilt of their scores (HPS)."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyfast import _arguments as args
from pyfast._results import ByValue
from pyfast.select._random import HARD_PREFERENCE, uniforms


@dataclass(frozen=True, eq=False)
class HardPreferenceSelection(ByValue):
    """The drawn negatives of each group.

    Attributes
    ----------
    preferred : int or ndarray of int64, shape (B,)
        As given, or the first response of the highest reward.
    negatives : ndarray of int64, shape (draws,) or (B, draws)
        Positions in the group in the order drawn; with replacement, the same one may come twice.
    probabilities : ndarray of float64, shape (n,), (B, n) or (T,)
        q of every response; 0 for those that are no negatives.
    """

    preferred: int | NDArray[np.int64]
    negatives: NDArray[np.int64]
    probabilities: NDArray[np.float64]


def hard_preference(
    rewards: ArrayLike,
    gamma: float,
    draws: int = 1,
    seed: int = 0,
    *,
    preferred: int | ArrayLike | None = None,
    replace: bool = True,
    keep_ties: bool = False,
    offsets: ArrayLike | None = None,
) -> HardPreferenceSelection:
    """Draw negatives by how hard they are: ``q_i ~ exp(gamma r_i)`` (HPS, eq. 7-9).

    ``q_i = exp(gamma r_i) / sum_{j in negatives} exp(gamma r_j)``. gamma > 0 favours the highest
    scored negatives, gamma < 0 the lowest; see :func:`hard_preference_gamma` for its schedule.
    Responses with the score of the preferred one are as good as it, and no negatives.

    Parameters
    ----------
    rewards : array_like, shape (n,), (B, n), or (T,) with `offsets`
        Scores; higher is better. n >= 2, and one negative at least in every group.
    gamma : float
        Any finite number; 0 draws uniformly.
    draws : int
        Negatives to draw, at least 1; at most those of the smallest group without replacement.
    seed : int
        0 to 2**64 - 1. Draw j of group b is number j of stream b of Philox4x32-10.
    preferred : int or array_like of int, shape (B,), optional
        Position of the preferred response; the first of the highest reward by default.
    replace : bool
        With replacement, as the Monte Carlo sum of eq. 8 needs it; or all different, each drawn
        by q among those left.
    keep_ties : bool
        Whether responses that score as the preferred one does are negatives all the same.
    offsets : array_like of int, shape (B+1,), optional
        Ragged groups: group b owns responses ``offsets[b]`` to ``offsets[b+1] - 1``.

    Returns
    -------
    HardPreferenceSelection
        ``preferred``, ``negatives``, ``probabilities``.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of its range, shape or type, or a group has no negative; the message
        names it and the place.

    Notes
    -----
    The paper does not speak of ties; its authors' code takes out all responses of the highest
    score. As gamma grows, q goes to the negative of the highest *given* score, not of the highest
    implicit reward: the paper's theorem 2, that the loss tends to its supremum over distributions,
    holds only where both are the same response.

    Examples
    --------
    >>> from pyfast import select
    >>> drawn = select.hard_preference([0.0, 5.0, 1.0, 5.0], gamma=40.0)
    >>> drawn.preferred, drawn.negatives.tolist(), drawn.probabilities.round(6).tolist()
    (1, [2], [0.0, 0.0, 1.0, 0.0])
    """
    raw = args.as_floats(rewards, "rewards")
    layout = args.layout_of(raw, "rewards", 1, offsets)
    scores = args.like_points(raw, "rewards", layout)
    args.check_values(scores, "rewards", layout)
    if layout.sizes.min() < 2:
        where = "" if layout.kind == "one" else f" in group {int(np.argmin(layout.sizes))}"
        raise ValueError(f"rewards: expected at least 2 responses, got 1{where}")
    draws = args.check_int(draws, "draws", 1)
    with np.errstate(over="ignore"):
        logits = args.check_finite(gamma, "gamma") * scores
    if not np.isfinite(logits).all():
        raise ValueError("gamma: gamma times rewards overflows; scale the rewards down")

    starts = layout.offsets[:-1]
    if preferred is None:
        groups = [scores[a : a + n] for a, n in zip(starts, layout.sizes, strict=True)]
        best = np.array([int(np.argmax(group)) for group in groups])
    else:
        best = args.check_positions(preferred, "preferred", layout)
    logits[starts + best] = -np.inf
    if not keep_ties:
        logits[scores == np.repeat(scores[starts + best], layout.sizes)] = -np.inf
    _check_negatives(logits, layout, draws, replace=replace)

    u = uniforms(args.check_seed(seed), HARD_PREFERENCE, layout.count, draws)
    q = np.empty_like(logits)
    negatives = np.empty((layout.count, draws), np.int64)
    for b, (first, size) in enumerate(zip(starts, layout.sizes, strict=True)):
        group = logits[first : first + size]
        weights = _tilt(group)
        q[first : first + size] = weights / weights.sum()
        negatives[b] = _draw(group, u[b], bool(replace))
    return HardPreferenceSelection(
        preferred=layout.per_group(best),
        negatives=layout.per_group(negatives),
        probabilities=layout.per_point(q),
    )


def hard_preference_gamma(
    progress: float,
    low: float = -5.0,
    high: float = 5.0,
    *,
    schedule: Literal["linear", "levels", "constant"] = "linear",
) -> float:
    """Return gamma after a share p of training, with updates at every 20 % (HPS, section 6).

    Parameters
    ----------
    progress : float
        p, 0 to 1: optimiser steps done by optimiser steps in all.
    low, high : float
        Where gamma starts, and where it goes.
    schedule : {"linear", "levels", "constant"}
        "linear": ``low + (high - low) floor(5 p) / 5``, that is -5, -3, -1, 1 and 3, and `high`
        when all is done, as the authors' code has it. "levels": five levels of which the last is
        `high`, that is -5, -2.5, 0, 2.5 and 5. "constant": `high` all along.

    Returns
    -------
    float
        gamma for :func:`hard_preference`.

    Raises
    ------
    ValueError, TypeError
        If `progress` is outside [0, 1], `schedule` is unknown, or a number is not finite.

    Notes
    -----
    The paper asks for gamma > 1 beside equation 9 and starts its schedule at -5: below 0 the
    easiest negatives are favoured, so training begins with those.

    Examples
    --------
    >>> from pyfast import select
    >>> [select.hard_preference_gamma(p) for p in (0.0, 0.19, 0.2, 0.5, 0.99)]
    [-5.0, -5.0, -3.0, -1.0, 3.0]
    """
    done = args.check_finite(progress, "progress")
    if not 0 <= done <= 1:
        raise ValueError(f"progress: expected 0 to 1, got {progress}")
    low, high = args.check_finite(low, "low"), args.check_finite(high, "high")
    args.check_name(schedule, "schedule", ("linear", "levels", "constant"))
    fifths = math.floor(5 * done)
    if schedule == "linear":
        return low + (high - low) * fifths / 5
    return high if schedule == "constant" else low + (high - low) * min(fifths, 4) / 4


def _check_negatives(
    logits: NDArray[np.float64], layout: args.Layout, draws: int, *, replace: bool
) -> None:
    """Require a negative in every group, or `draws` of them without replacement."""
    left = np.add.reduceat(logits > -np.inf, layout.offsets[:-1], dtype=np.int64)
    group = int(np.argmin(left))
    if left[group] == 0:
        where = "" if layout.kind == "one" else f" of group {group}"
        raise ValueError(
            f"rewards: expected a negative, got none{where}: all score as the preferred one "
            "(leave the group out, or pass keep_ties=True)"
        )
    if not replace:
        args.check_int(draws, "draws", 1, int(left[group]))


def _tilt(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """exp(logits) divided by its largest; the sum is the caller's to divide by."""
    with np.errstate(over="ignore"):  # a difference of -inf is a weight of 0
        return np.asarray(np.exp(logits - logits.max()))


def _draw(logits: NDArray[np.float64], u: NDArray[np.float64], replace: bool) -> list[int]:
    """Invert the distribution function of softmax(logits) at each u, with those left open."""
    left = logits.copy()
    drawn = []
    for number in u:
        weights = _tilt(left)
        passed = np.flatnonzero((np.cumsum(weights) > number * weights.sum()) & (weights > 0))
        pick = int(passed[0] if len(passed) else np.flatnonzero(weights)[-1])
        drawn.append(pick)
        if not replace:
            left[pick] = -np.inf
    return drawn
