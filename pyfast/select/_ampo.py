"""AMPO's choice of k negatives beside the best response of a group (Algorithm 1)."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyfast import _arguments as args
from pyfast import _native
from pyfast._results import ByValue
from pyfast._threads import resolve_threads
from pyfast.select import _certificate


@dataclass(frozen=True, eq=False)
class GroupSelection(ByValue):
    """One positive and k negatives of each group. All indices are positions in their group.

    Attributes
    ----------
    positive : int or ndarray of int64, shape (B,)
        The first response of the highest reward.
    negatives : ndarray of int64, shape (k,), (B, k), or flat for ragged groups
        Distinct, without the positive; the whole pool where k reaches its size.
    cost : float or ndarray of float64, shape (B,)
        What the selector minimised: see each one.
    negative_offsets : ndarray of int64, shape (B+1,), or None
        For ragged groups, where each group's negatives start; None otherwise.
    bound, gap : float or ndarray of float64, shape (B,), or None
        :func:`opt_select` with `certify` or `exact`: no k negatives cost less than ``bound``, and
        ``gap`` is ``(cost - bound) / cost``. None otherwise.
    """

    positive: int | NDArray[np.int64]
    negatives: NDArray[np.int64]
    cost: float | NDArray[np.float64]
    negative_offsets: NDArray[np.int64] | None = None
    bound: float | NDArray[np.float64] | None = None
    gap: float | NDArray[np.float64] | None = None


def opt_select(
    embeddings: ArrayLike,
    rewards: ArrayLike,
    k: int = 7,
    *,
    cover_top: bool = False,
    reward_scale: Literal["minmax", "none"] = "minmax",
    init: Literal["random", "greedy"] = "random",
    n_init: int = 10,
    search: Literal["eager", "best"] = "best",
    seed: int = 0,
    certify: bool = False,
    exact: bool = False,
    offsets: ArrayLike | None = None,
    n_threads: int | None = None,
) -> GroupSelection:
    """Choose the negatives whose neighbourhoods cover the bad responses (AMPO Opt-Select).

    Weighted k-medoids on the pool, the group without its best response:
    ``Cost(S) = sum_i exp(mean(r) - r_i) min_{j in S} d_ij`` (AMPO, eq. 6-8, Algorithm 4), with r
    scaled by `reward_scale`, d the Euclidean distances divided by the largest, and the mean over
    the pool (Appendix E).

    Parameters
    ----------
    embeddings : array_like, shape (n, d), (B, n, d), or (T, d) with `offsets`
        One row per response, float32 or float64.
    rewards : array_like, shape (n,), (B, n) or (T,)
        Scores, any finite scale; higher is better.
    k : int
        Negatives wanted, at least 1; the whole pool of n - 1 if k is larger.
    cover_top : bool
        Sum over all responses and take the mean over all, as Algorithm 4 prints it, instead of
        the pool alone, as Appendix E runs it. The best response is never a negative.
    reward_scale : {"minmax", "none"}
        "minmax", as Appendix E: r goes from 0 to 1 within the whole group, the best response
        included (0.5 if all are equal). "none", as equation 6 and Algorithms 3 and 4 print it: r
        are the scores as they are, so that a weight is ``exp(mean(r) - r_i)`` of those, and the
        lowest of scores that lie far apart decide nearly alone; within 599 of their mean.
    search : {"best", "eager"}
        "best", the paper's own, makes the best swap of all each time and visits the sets of
        Appendix E from the same start (of equal swaps the first in ascending order; the paper's
        code goes through a Python set); "eager" is FasterPAM. In groups of a few dozen, best swaps
        are as fast and end in the optimum more often.
    init, n_init, seed, certify, exact, offsets, n_threads
        As for :func:`kmedoids`. One random start is optimal for most groups, ten for nearly all.

    Returns
    -------
    GroupSelection
        ``negatives`` ascend; ``cost`` is Cost(S), in float64 arithmetic on the embeddings as given.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of its range, shape or type; the message names it and the place.
    ImportError, RuntimeError
        With `exact`, as :func:`kmedoids`.

    Notes
    -----
    Random starts of up to 2,048 points with d >= 32 and 1 < k < n - 1 are searched on float32
    distances of bounded error first; whatever that bound leaves open is decided by float64
    distances, so that the result is a local optimum of those. All others are searched on float64
    distances.

    Memory, beside the embeddings and for each group being worked on (at most `n_threads` of a
    batch): 200 bytes a point and, in float64, n^2 distances, the rows' n d numbers and up to 2 k n
    costs of swaps; where float32 distances come first, n (n + 2 d + 4 k) float32 for them, and the
    float64 only if something is left open. With ``init="greedy"``, or above 2,048 points, what
    :func:`kmedoids` takes for given distances besides. When that is done, `certify` and `exact`
    take a copy of the embeddings, n (n + d) float64 for each group's bound, and `exact` what it
    takes in :func:`kmedoids`.

    The lowest cost is not shown to be the highest expected reward: in AMPO's theorems 1 and 2 the
    best response's probability is unconstrained, so that every set of negatives allows the same
    expected reward, and Lemma 1 (ii), that only sets of the lowest cost do, does not hold.

    Examples
    --------
    >>> from pyfast import select
    >>> embeddings = [[0.0], [0.1], [5.0], [5.1], [9.0]]
    >>> picked = select.opt_select(embeddings, [0.1, 0.2, 0.3, 0.9, 0.5], k=2)
    >>> picked.positive, picked.negatives.tolist()
    (3, [0, 2])
    """
    points, scores, layout = _read(embeddings, rewards, offsets, check_points=False)
    if exact:
        _certificate.check_solver()
    settings = (
        args.check_int(k, "k", 1),
        bool(cover_top),
        args.check_name(reward_scale, "reward_scale", ("minmax", "none")) == "minmax",
        args.check_name(search, "search", ("eager", "best")),
        args.check_name(init, "init", ("random", "greedy")),
        args.check_int(n_init, "n_init", 1),
        args.check_seed(seed),
        resolve_threads(n_threads),
    )
    if not settings[2]:
        _check_unscaled(scores, layout, bool(cover_top))
    try:
        result = _native.opt_select(points, scores, layout.offsets, *settings)
    except ValueError:
        # The native call reads every embedding anyway; only when it fails is it worth another
        # pass over them all to say which one was not finite.
        args.check_values(points, "embeddings", layout)
        raise
    if not (certify or exact):
        return _selection(layout, *result)
    positive, negatives, ends, cost = result
    negatives, cost, bound = _certificate.certify_opt_select(
        points, scores, layout.offsets, settings[1], settings[2], result, settings[-1], exact
    )
    return replace(
        _selection(layout, positive, negatives, ends, cost),
        bound=layout.per_group(bound),
        gap=layout.per_group(_certificate.gaps(bound, cost)),
    )


def coreset(
    embeddings: ArrayLike,
    rewards: ArrayLike,
    k: int = 7,
    *,
    n_init: int = 1,
    max_iter: int = 300,
    seed: int = 0,
    offsets: ArrayLike | None = None,
    n_threads: int | None = None,
) -> GroupSelection:
    """Choose the lowest-scored response of each of k clusters of the pool (AMPO Coreset).

    k-means with a k-means++ start on the group without its best response, then
    ``argmin_{i in C_j} r_i`` for each cluster (AMPO, Algorithm 2). A cluster that empties takes
    the point farthest from its centre, so that exactly k negatives come back.

    Parameters
    ----------
    embeddings : array_like, shape (n, d), (B, n, d), or (T, d) with `offsets`
        One row per response, float32 or float64; the clustering runs in float64.
    rewards : array_like, shape (n,), (B, n) or (T,)
        Scores, any finite scale; higher is better.
    k : int
        Negatives wanted, at least 1; the whole pool of n - 1 if k is larger.
    n_init : int
        Number of k-means++ starts; the lowest inertia is kept.
    max_iter : int
        Most Lloyd iterations of one start.
    seed, offsets, n_threads
        As for :func:`kmedoids`.

    Returns
    -------
    GroupSelection
        ``negatives`` ascend; ``cost`` is the inertia, the sum of squared distances to the
        clusters' means (0 where the whole pool was taken, or where float64 cannot hold so small a
        number; one that is too large for it is refused).

    Raises
    ------
    ValueError, TypeError
        If an argument is out of its range, shape or type; the message names it and the place.

    Examples
    --------
    >>> from pyfast import select
    >>> embeddings = [[0.0], [0.1], [5.0], [5.1], [9.0]]
    >>> picked = select.coreset(embeddings, [0.1, 0.2, 0.3, 0.4, 0.5], k=2)
    >>> picked.positive, picked.negatives.tolist()
    (4, [0, 2])
    """
    points, scores, layout = _read(embeddings, rewards, offsets, check_points=False)
    settings = (
        args.check_int(k, "k", 1),
        args.check_int(n_init, "n_init", 1),
        args.check_int(max_iter, "max_iter", 1),
        args.check_seed(seed),
        resolve_threads(n_threads),
    )
    try:
        result = _native.coreset(points, scores, layout.offsets, *settings)
    except ValueError:
        args.check_values(points, "embeddings", layout)  # as in opt_select
        raise
    return _selection(layout, *result)


def bottom_k(
    rewards: ArrayLike,
    k: int = 7,
    *,
    embeddings: ArrayLike | None = None,
    offsets: ArrayLike | None = None,
    n_threads: int | None = None,
) -> GroupSelection:
    """Choose the k lowest-scored responses beside the best one (AMPO, eq. 5).

    Among equal scores, the response whose largest cosine similarity to those already chosen is
    smallest comes first (if `embeddings` are given), then the lowest index. The cosine with a
    zero vector is 0; cosines within 1e-12 are equal.

    Parameters
    ----------
    rewards : array_like, shape (n,), (B, n), or (T,) with `offsets`
        Scores; higher is better.
    k : int
        Negatives wanted, at least 1; the whole pool of n - 1 if k is larger.
    embeddings : array_like, shape (n, d), (B, n, d) or (T, d), optional
        One row per response, to break ties.
    offsets, n_threads
        As for :func:`kmedoids`.

    Returns
    -------
    GroupSelection
        ``negatives`` in the order of choice, lowest first; ``cost`` is the sum of their rewards.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of its range, shape or type; the message names it and the place.

    Examples
    --------
    >>> from pyfast import select
    >>> select.bottom_k([0.5, 0.1, 0.9, 0.3], k=2).negatives.tolist()
    [1, 3]
    """
    if embeddings is not None:
        points, scores, layout = _read(embeddings, rewards, offsets)
    else:
        raw = args.as_floats(rewards, "rewards")
        layout = args.layout_of(raw, "rewards", 1, offsets)
        points, scores = None, args.like_points(raw, "rewards", layout)
        args.check_values(scores, "rewards", layout)
    result = _native.bottom_k(
        points, scores, layout.offsets, args.check_int(k, "k", 1), resolve_threads(n_threads)
    )
    return _selection(layout, *result)


def _read(
    embeddings: ArrayLike, rewards: ArrayLike, offsets: ArrayLike | None, check_points: bool = True
) -> tuple[args.Floats, NDArray[np.float64], args.Layout]:
    """Check a group's embeddings (flattened to (T, d)) and rewards (flattened to (T,))."""
    points = args.as_floats(embeddings, "embeddings", booleans=True)
    layout = args.layout_of(points, "embeddings", 2, offsets)
    if check_points:
        args.check_values(points, "embeddings", layout)
    scores = args.like_points(rewards, "rewards", layout)
    args.check_values(scores, "rewards", layout)
    return points.reshape(-1, points.shape[-1]), scores, layout


def _check_unscaled(scores: NDArray[np.float64], layout: args.Layout, cover_top: bool) -> None:
    """Refuse scores whose exp(mean(r) - r) would leave the range of float64 (kMost in C++)."""
    for start, size in zip(layout.offsets[:-1], layout.sizes, strict=True):
        group = scores[start : start + size]
        pool = group if cover_top else np.delete(group, int(np.argmax(group)))
        exponents = np.abs((pool / max(len(pool), 1)).sum() - pool)
        if (~(exponents <= 599)).any():
            row = int(np.flatnonzero(~(exponents <= 599))[0])
            row += int(not cover_top and row >= int(np.argmax(group)))
            raise ValueError(
                "reward_scale: 'none' expects rewards within 599 of their mean, or exp(mean - r) "
                f"leaves float64; got {group[row]} at {layout.place(int(start) + row)}"
            )


def _selection(
    layout: args.Layout,
    positive: NDArray[np.int64],
    negatives: NDArray[np.int64],
    ends: NDArray[np.int64],
    cost: NDArray[np.float64],
) -> GroupSelection:
    """Shape the native core's flat answer as the groups were given."""
    return GroupSelection(
        positive=layout.per_group(positive),
        negatives=layout.per_point(negatives),
        cost=layout.per_group(cost),
        negative_offsets=ends if layout.kind == "ragged" else None,
    )
