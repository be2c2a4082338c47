"""Hard preference sampling: negatives drawn by an exponential tilt of their scores (HPS)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyfast import _arguments as args
from pyfast.select._random import HARD_PREFERENCE, uniforms


@dataclass(frozen=True)
class HardPreferenceSelection:
    """The drawn negatives of each group.

    Attributes
    ----------
    preferred : int or ndarray of int64, shape (B,)
        As given, or the first response of the highest reward.
    negatives : ndarray of int64, shape (draws,) or (B, draws)
        Positions in the group in the order drawn; with replacement, the same one may come twice.
    probabilities : ndarray of float64, shape (n,), (B, n) or (T,)
        q of every response; 0 for the preferred one.
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
    offsets: ArrayLike | None = None,
) -> HardPreferenceSelection:
    """Draw negatives by how hard they are: ``q_i ~ exp(gamma r_i)`` (HPS, eq. 7-9).

    ``q_i = exp(gamma r_i) / sum_{j in negatives} exp(gamma r_j)``. gamma > 0 favours the highest
    scored negatives, gamma < 0 the lowest; see :func:`hard_preference_gamma` for its schedule.

    Parameters
    ----------
    rewards : array_like, shape (n,), (B, n), or (T,) with `offsets`
        Scores; higher is better. n >= 2.
    gamma : float
        Any finite number; 0 draws uniformly.
    draws : int
        Negatives to draw, at least 1; at most n - 1 without replacement.
    seed : int
        0 to 2**64 - 1. Draw j of group b is number j of stream b of Philox4x32-10.
    preferred : int or array_like of int, shape (B,), optional
        Position of the preferred response; the first of the highest reward by default.
    replace : bool
        With replacement, as the Monte Carlo sum of eq. 8 needs it; or all different, each drawn
        by q among those left.
    offsets : array_like of int, shape (B+1,), optional
        Ragged groups: group b owns responses ``offsets[b]`` to ``offsets[b+1] - 1``.

    Returns
    -------
    HardPreferenceSelection
        ``preferred``, ``negatives``, ``probabilities``.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of its range, shape or type; the message names it and the place.

    Examples
    --------
    >>> from pyfast import select
    >>> drawn = select.hard_preference([0.0, 5.0, 1.0], gamma=40.0)
    >>> drawn.preferred, drawn.negatives.tolist(), drawn.probabilities.round(6).tolist()
    (1, [2], [0.0, 0.0, 1.0])
    """
    raw = args.as_floats(rewards, "rewards")
    layout = args.layout_of(raw, "rewards", 1, offsets)
    scores = args.like_points(raw, "rewards", layout)
    args.check_values(scores, "rewards", layout)
    if layout.sizes.min() < 2:
        where = "" if layout.kind == "one" else f" in group {int(np.argmin(layout.sizes))}"
        raise ValueError(f"rewards: expected at least 2 responses, got 1{where}")
    most = args.MOST if replace else int(layout.sizes.min()) - 1
    draws = args.check_int(draws, "draws", 1, most)
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


def hard_preference_gamma(progress: float, low: float = -5.0, high: float = 5.0) -> float:
    """Return gamma after a fraction of training: five levels from `low` to `high`.

    gamma rises by a quarter of the way at 20, 40, 60 and 80 % (HPS, section 5: -5 to 5, so that
    training starts with easy negatives).

    Parameters
    ----------
    progress : float
        Share of the training done, 0 to 1.
    low, high : float
        gamma of the first and the last fifth.

    Returns
    -------
    float
        gamma for :func:`hard_preference`.

    Raises
    ------
    ValueError, TypeError
        If `progress` is outside [0, 1] or an argument is not a finite number.

    Examples
    --------
    >>> from pyfast import select
    >>> [select.hard_preference_gamma(p) for p in (0.0, 0.19, 0.2, 0.5, 1.0)]
    [-5.0, -5.0, -2.5, 0.0, 5.0]
    """
    done = args.check_finite(progress, "progress")
    if not 0 <= done <= 1:
        raise ValueError(f"progress: expected 0 to 1, got {progress}")
    low, high = args.check_finite(low, "low"), args.check_finite(high, "high")
    level = sum(done >= step for step in (0.2, 0.4, 0.6, 0.8))
    return low + (high - low) * level / 4


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
