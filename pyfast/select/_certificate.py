"""Certificates for k-medoids solutions: lower bounds, and optima by integer program."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyfast import _arguments as args
from pyfast import _native

Doubles = NDArray[np.float64]

# The integer program is solved on costs scaled to this optimum, so that the solver's absolute
# tolerance of 1e-6 is one of 1e-9 of the cost.
_SCALED_COST = 1000.0
_PROVEN = 1e-12  # relative gap


@dataclass(frozen=True)
class PMedian:
    """Groups of points of which ``counts[b]`` of the first ``candidates[b]`` are to be chosen.

    ``data`` holds points (T, d), or distances laid end to end if ``precomputed``; with ``unit``,
    costs are of distances divided by the group's largest.
    """

    data: args.Floats
    offsets: args.Indices
    weights: Doubles
    candidates: args.Indices
    counts: args.Indices
    precomputed: bool
    unit: bool

    def rows(self, group: int) -> slice:
        return slice(int(self.offsets[group]), int(self.offsets[group + 1]))

    def costs(self, group: int) -> Doubles:
        """Return w_i d_ij for all points i and candidates j of one group."""
        rows = self.rows(group)
        n = rows.stop - rows.start
        if self.precomputed:
            start = int((np.diff(self.offsets)[:group] ** 2).sum())
            D = self.data[start : start + n * n].reshape(n, n).T.astype(np.float64)
        else:
            X = self.data[rows].astype(np.float64)
            D = np.stack([np.sqrt(((X - x) ** 2).sum(axis=1)) for x in X], axis=1)
        if self.unit and D.max() > 0:
            D = D / D.max()
        return np.asarray(D[:, : self.candidates[group]] * self.weights[rows, None])


def check_solver() -> Any:
    """Return scipy.optimize, or raise an ImportError that says how to get it."""
    try:
        import scipy.optimize
    except ImportError as error:
        raise ImportError(
            'exact=True needs scipy: pip install "pyfast-align[exact]" (or scipy itself)'
        ) from error
    return scipy.optimize


def certify(
    problem: PMedian,
    medoids: args.Indices,
    costs: Doubles,
    threads: int,
    exact: bool,
) -> tuple[Doubles, args.Indices]:
    """Return lower bounds (B,) and the medoids, of which `exact` makes optimal ones.

    `medoids` holds ``counts[b]`` positions of each group, end to end. A group of which `exact`
    found a cheaper set has that set's cost as its bound.
    """
    bounds, is_open = _native.kmedoids_bounds(
        problem.data,
        problem.offsets,
        problem.weights,
        problem.candidates,
        problem.counts,
        medoids,
        costs,
        problem.precomputed,
        problem.unit,
        threads,
    )
    if not exact:
        return bounds, medoids
    medoids = medoids.copy()
    ends = np.cumsum(problem.counts)
    for group in np.flatnonzero(bounds < costs * (1 - _PROVEN)).tolist():
        own = slice(int(ends[group] - problem.counts[group]), int(ends[group]))
        left = np.flatnonzero(is_open[problem.rows(group)])
        bounds[group], medoids[own] = _cheapest(
            problem.costs(group), left, medoids[own], float(costs[group])
        )
    # Those are the optima; what is left of a gap is rounding.
    proven = bounds >= costs * (1 - _PROVEN)
    bounds[proven] = costs[proven]
    return bounds, medoids


def gaps(bounds: Doubles, costs: Doubles) -> Doubles:
    """Return ``(cost - bound) / cost``, 0 where the cost is 0."""
    return np.divide(costs - bounds, costs, out=np.zeros_like(costs), where=costs > 0)


def _cheapest(
    costs: Doubles, left: args.Indices, known: args.Indices, known_cost: float
) -> tuple[float, args.Indices]:
    """Return the cost and the medoids of the cheapest of `known` and the sets of `left`."""
    k = len(known)
    if len(left) < k:
        return known_cost, known
    found = left if len(left) == k else left[_solve(costs[:, left], k, known_cost)]
    cost = float(costs[:, found].min(axis=1).sum())
    return (cost, found) if cost < known_cost * (1 - _PROVEN) else (known_cost, known)


def _solve(costs: Doubles, k: int, known_cost: float) -> args.Indices:
    """Solve AMPO (9), the p-median problem, by HiGHS; a point is served by an open candidate.

    Of m candidates k are open, so that one of any m - k + 1 is: each point's dearest k - 1 need no
    variable.
    """
    from scipy.sparse import coo_array, hstack, vstack

    optimize = check_solver()
    n, m = costs.shape
    nearest = np.argsort(costs, axis=1, kind="stable")[:, : m - k + 1]
    serves = nearest.size
    point, variable = np.repeat(np.arange(n), m - k + 1), np.arange(serves)
    ones = np.ones(serves)
    # Columns: open_j, then served_ij.
    once = hstack([coo_array((n, m)), coo_array((ones, (point, variable)), (n, serves))])
    by_open = hstack(
        [
            coo_array((-ones, (variable, nearest.ravel())), (serves, m)),
            coo_array((ones, (variable, variable)), (serves, serves)),
        ]
    )
    count = coo_array(np.r_[np.ones(m), np.zeros(serves)][None, :])
    solved = optimize.milp(
        np.r_[np.zeros(m), np.take_along_axis(costs, nearest, axis=1).ravel()]
        * (_SCALED_COST / known_cost),
        integrality=np.r_[np.ones(m), np.zeros(serves)],
        bounds=optimize.Bounds(0, 1),
        constraints=optimize.LinearConstraint(
            vstack([once, by_open, count], format="csc"),
            np.r_[np.ones(n), np.full(serves, -np.inf), k],
            np.r_[np.ones(n), np.zeros(serves), k],
        ),
        options={"mip_rel_gap": 0},
    )
    if solved.x is None or solved.status != 0:
        raise RuntimeError(f"exact=True: the solver gave up ({solved.message})")
    return np.sort(np.argsort(-solved.x[:m], kind="stable")[:k])


def certify_opt_select(
    points: args.Floats,
    rewards: Doubles,
    offsets: args.Indices,
    cover_top: bool,
    picked: tuple[args.Indices, args.Indices, args.Indices, Doubles],
    threads: int,
    exact: bool,
) -> tuple[args.Indices, Doubles, Doubles]:
    """Return Opt-Select's negatives and costs, the optimal ones if `exact`, and lower bounds.

    `picked` holds the positives, the negatives of all groups end to end, where each group's start,
    and the costs.
    """
    positives, negatives, ends, costs = picked
    sizes, counts = np.diff(offsets), np.diff(ends)
    group = np.repeat(np.arange(len(sizes)), sizes)
    is_positive = np.zeros(len(rewards), bool)
    is_positive[offsets[:-1] + positives] = True
    # The pool of each group, then its positive where that is a point, too. A response that is alone
    # has no pool, and costs nothing.
    order = np.lexsort((is_positive, group))
    order = order[(sizes > 1)[group[order]] & (cover_top | ~is_positive[order])]
    asked = np.flatnonzero(sizes > 1)
    starts = np.concatenate([[0], np.cumsum(sizes[asked] - (not cover_top))])
    bounds, costs = costs.copy(), costs.copy()
    if len(asked) == 0:
        return negatives, costs, bounds
    problem = PMedian(
        points[order],
        starts,
        _reward_weights(rewards, offsets, order, starts),
        sizes[asked] - 1,
        counts[asked],
        precomputed=False,
        unit=True,
    )
    own = np.repeat(positives, counts)
    bounds[asked], best = certify(
        problem, negatives - (negatives > own), costs[asked], threads, exact
    )
    if exact:
        costs[asked] = bounds[asked]
    return best + (best >= own), costs, bounds


def _reward_weights(
    rewards: Doubles, offsets: args.Indices, order: args.Indices, starts: args.Indices
) -> Doubles:
    """exp(mean(r) - r_i) for `order`, r scaled to [0, 1] over its group (AMPO, eq. 6)."""
    low = np.minimum.reduceat(rewards, offsets[:-1]) / 2
    spread = np.maximum.reduceat(rewards, offsets[:-1]) / 2 - low
    group = np.repeat(np.arange(len(low)), np.diff(offsets))[order]
    flat = spread[group] <= 0
    scaled = np.where(
        flat, 0.5, (rewards[order] / 2 - low[group]) / np.where(flat, 1, spread[group])
    )
    sizes = np.diff(starts)
    means = np.add.reduceat(scaled, starts[:-1]) / sizes
    return np.asarray(np.exp(np.repeat(means, sizes) - scaled))
