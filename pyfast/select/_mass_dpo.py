"""MASS-DPO's choice of k negatives beside a preferred response (Algorithm 1)."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyfast import _arguments as args
from pyfast import _native
from pyfast._results import ByValue
from pyfast._threads import resolve_threads


@dataclass(frozen=True, eq=False)
class MassDPOSelection(ByValue):
    """The negatives of each group. Shapes are for one group; a batch stacks them in front.

    Attributes
    ----------
    preferred : int or ndarray of int64, shape (B,)
        As given.
    negatives : ndarray of int64, shape (k,) or (B, k)
        Distinct positions in the group, without the preferred one, in the order of choice.
    gains : ndarray of float64, shape (k,) or (B, k)
        What each added to the log-determinant; never increasing, but among ties.
    logdet : float or ndarray of float64, shape (B,)
        ``log det H(S)``.
    """

    preferred: int | NDArray[np.int64]
    negatives: NDArray[np.int64]
    gains: NDArray[np.float64]
    logdet: float | NDArray[np.float64]


def mass_dpo(
    features: ArrayLike,
    policy_logps: ArrayLike,
    ref_logps: ArrayLike,
    preferred: int | ArrayLike = 0,
    k: int = 3,
    beta: float = 0.1,
    gamma: float = 0.1,
    curvature: Literal["unit", "fisher"] = "unit",
    *,
    offsets: ArrayLike | None = None,
    n_threads: int | None = None,
) -> MassDPOSelection:
    """Choose the k negatives that inform most about the policy (MASS-DPO, Algorithm 1).

    With the log-ratios ``h_i = policy_logps_i - ref_logps_i`` and * the preferred response, over
    the pool of all others::

        s_i = beta (h_i - h_*)        p = softmax(s)
        phi_i = f_i - f_*             v_i = sqrt(p_i) (phi_i - sum_j p_j phi_j)
        H(S) = gamma I + c sum_{i in S} v_i v_i^T

    and greedily the largest ``v_i^T H^{-1} v_i``, as :func:`logdet` does. s_i is
    ``beta (phi_i^T theta + b_i)`` of eq. 8 for the paper's log-linear policy.

    Parameters
    ----------
    features : array_like, shape (n, d), (B, n, d), or (T, d) with `offsets`
        Of every response, the preferred one included: the mean of the last hidden states, after
        the final norm, over the prompt and response, or at the response's own tokens, the last
        one included (not at the positions that predict them). Unscaled, float32 or float64.
    policy_logps, ref_logps : array_like, shape (n,), (B, n) or (T,)
        Summed log-probabilities of each response.
    preferred : int or array_like of int, shape (B,)
        Position of the preferred response in its group.
    k : int
        Negatives, 1 <= k <= size of the smallest group - 1.
    beta : float
        As in training, above 0.
    gamma : float
        The ridge, above 0.
    curvature : {"unit", "fisher"}
        c = 1, as in Algorithm 1; or ``c = beta^2 (1 - sigmoid(Z))`` of eq. 11 with
        ``Z = -log sum_i exp(s_i)`` over the pool.
    offsets, n_threads
        As for :func:`logdet`.

    Returns
    -------
    MassDPOSelection
        ``preferred``, ``negatives``, ``gains``, ``logdet``.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of its range, shape or type; the message names it and the place.

    Notes
    -----
    Each thread holds one group's v, n d float64, beside what :func:`logdet` takes.

    The paper's Lemma 4.3 (greedy is optimal) does not hold: of 8 random vectors of 3 numbers greedy
    missed the best 3 in 33 of 200 problems (benchmarks/theory/mass_dpo_greedy.py). It has the
    1 - 1/e bound of submodular functions.

    The features and log-probs of the preferred response cancel from every v_i: phi_i less its mean
    is f_i less its mean, and p does not change when all s_i move alike. With c = 1 it counts only
    by being left out of the pool; with "fisher" its log-probs enter c.

    Examples
    --------
    >>> from pyfast import select
    >>> features = [[0.0, 0.0], [1.0, 0.0], [1.1, 0.0], [0.0, 0.8]]
    >>> select.mass_dpo(features, [0.0] * 4, [0.0] * 4, k=2).negatives.tolist()
    [3, 2]
    """
    points = args.as_floats(features, "features", booleans=True)
    layout = args.layout_of(points, "features", 2, offsets)
    policy = args.like_points(policy_logps, "policy_logps", layout)
    args.check_values(policy, "policy_logps", layout)
    ref = args.like_points(ref_logps, "ref_logps", layout)
    args.check_values(ref, "ref_logps", layout)
    best = args.check_positions(preferred, "preferred", layout)
    k = args.check_int(k, "k", 1)
    smallest = int(np.argmin(layout.sizes))
    if k > (pool := int(layout.sizes[smallest]) - 1):
        where = "" if layout.kind == "one" else f" of group {smallest}"
        raise ValueError(f"k: expected at most the {pool} negatives{where}, got {k}")
    fisher = args.check_name(curvature, "curvature", ("unit", "fisher")) == "fisher"
    try:
        picks, gains, total = _native.mass_dpo(
            points.reshape(-1, points.shape[-1]),
            policy,
            ref,
            best,
            layout.offsets,
            k,
            args.check_positive(beta, "beta"),
            args.check_positive(gamma, "gamma"),
            fisher,
            resolve_threads(n_threads),
        )
    except ValueError:
        # The core sees that a length is not finite; only then is it worth finding out where.
        args.check_values(points, "features", layout)
        raise
    return MassDPOSelection(
        preferred=layout.per_group(best),
        negatives=layout.per_group(picks.reshape(layout.count, k)),
        gains=layout.per_group(gains.reshape(layout.count, k)),
        logdet=layout.per_group(total),
    )
