"""Certificates for k-medoids solutions: lower bounds, and optima by integer program."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyfast import _arguments as args
from pyfast import _native
from pyfast.select._p_median import lower_bound, program

Doubles = NDArray[np.float64]

# The integer program is solved on costs scaled to this optimum, so that the solver's absolute
# tolerance of 1e-6 is one of 1e-9 of the cost.
_SCALED_COST = 1000.0
_PROVEN = 1e-12  # relative gap
_WITHIN = 1e-9  # of the optimum, where `exact` has proven it
_TRUSTED = 1e-6  # of what the solver calls optimal: its tolerances, of all points together
_FAR_BELOW, _MOST_SOLVED = 1e-3, 40


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

    def costs(self, group: int) -> tuple[Doubles, int]:
        """Return w_i d_ij of one group times a power of two, all i and candidates j; and its log.

        The largest distance and the largest weight are brought near 1.
        """
        rows = self.rows(group)
        n = rows.stop - rows.start
        if self.precomputed:
            start = int((np.diff(self.offsets)[:group] ** 2).sum())
            D = self.data[start : start + n * n].reshape(n, n).T.astype(np.float64)
            D, exponent = _near_one(D)
        else:
            X, exponent = _near_one(self.data[rows].astype(np.float64))
            D = np.stack([_distances(X, x) for x in X], axis=1)
        if self.unit and D.max() > 0:
            D, exponent = D / D.max(), 0
        weights, more = _near_one(self.weights[rows])
        return np.asarray(D[:, : self.candidates[group]] * weights[:, None]), exponent + more


def _near_one(values: Doubles) -> tuple[Doubles, int]:
    """Return values / 2^e and e, such that the largest size is between 1/2 and 1."""
    largest = float(np.abs(values).max())
    exponent = int(np.frexp(largest)[1])
    return np.asarray(np.ldexp(values, -exponent)), exponent


def _distances(X: Doubles, x: Doubles) -> Doubles:
    """Distances of all rows to one, also where a square would vanish."""
    squares = ((X - x) ** 2).sum(axis=1)
    vanishing = squares < 1e-290
    distances = np.sqrt(squares)
    if vanishing.any():
        distances[vanishing] = np.hypot.reduce(X[vanishing] - x, axis=1)
    return np.asarray(distances)


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
) -> tuple[Doubles, Doubles, args.Indices]:
    """Return lower bounds (B,), costs (B,) and medoids, of which `exact` makes optimal ones.

    `medoids` holds ``counts[b]`` positions of each group, end to end. The bound of a set that is
    proven to be optimal is its cost.
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
        return bounds, costs, medoids
    medoids, costs = medoids.copy(), costs.copy()
    ends = np.cumsum(problem.counts)
    for group in np.flatnonzero(bounds < costs * (1 - _PROVEN)).tolist():
        own = slice(int(ends[group] - problem.counts[group]), int(ends[group]))
        left = np.flatnonzero(is_open[problem.rows(group)])
        scaled, exponent = problem.costs(group)
        share, best = _cheapest(scaled, left, medoids[own])
        if (best != medoids[own]).any():
            medoids[own], costs[group] = best, np.ldexp(_cost(scaled, best), exponent)
        bounds[group] = max(bounds[group], costs[group] * share)
    # Those are the optima; what is left of a gap is rounding.
    proven = bounds >= costs * (1 - _PROVEN)
    bounds[proven] = costs[proven]
    return np.minimum(bounds, costs), costs, medoids


def gaps(bounds: Doubles, costs: Doubles) -> Doubles:
    """Return ``(cost - bound) / cost``, 0 where the cost is 0."""
    return np.divide(costs - bounds, costs, out=np.zeros_like(costs), where=costs > 0)


def _cost(costs: Doubles, medoids: args.Indices) -> float:
    """Return the sum over points of the least cost, rounded once."""
    return math.fsum(costs[:, medoids].min(axis=1).tolist())


def _cheapest(
    costs: Doubles, left: args.Indices, known: args.Indices
) -> tuple[float, args.Indices]:
    """Return the cheapest of `known` and the sets of `left`, and what share of it any set costs.

    The share is 1 if the set is proven to be optimal within 1e-9; if the solver says so and the
    proof was given up, it is ``1 - _TRUSTED``.
    """
    k, best, cost = len(known), known, _cost(costs, known)
    if len(left) < k or cost == 0:
        return 1.0, best
    found = left
    for _ in range(_MOST_SOLVED):
        if len(left) > k:
            found = left[_solve(_in_units(costs[:, left], cost), k, 1.0)]
        last, new = cost, _cost(costs, found)
        if new < cost * (1 - _PROVEN):
            best, cost = found, new
        if len(left) == k or cost == 0:
            return 1.0, best
        # The solver's tolerance is one of the last cost: to tell sets far below it, ask again.
        if cost > _FAR_BELOW * last:
            break
    share, met = lower_bound(_in_units(costs[:, left], cost), k)
    if met is not None:
        better = _cost(costs, left[met])
        if better < cost:
            best, share = left[met], share * cost / better
    return (1.0, best) if share >= 1 - _WITHIN else (max(share, 1 - _TRUSTED), best)


def _in_units(costs: Doubles, unit: float) -> Doubles:
    """Return costs / unit, up to 2: no set that costs less than the unit has a larger one."""
    with np.errstate(over="ignore"):
        return np.asarray(np.minimum(costs / unit, 2.0))


def _solve(costs: Doubles, k: int, known_cost: float) -> args.Indices:
    """Solve AMPO (9), the p-median problem, by HiGHS; a point is served by an open candidate."""
    optimize = check_solver()
    m = costs.shape[1]
    scaled, once, by_open, count = program(costs * (_SCALED_COST / known_cost), k)
    serves = by_open.shape[0]
    solved = optimize.milp(
        scaled,
        integrality=np.r_[np.ones(m), np.zeros(serves)],
        bounds=optimize.Bounds(0, 1),
        constraints=[
            optimize.LinearConstraint(once, 1, 1),
            optimize.LinearConstraint(by_open, -np.inf, 0),
            optimize.LinearConstraint(count, k, k),
        ],
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
    scale_rewards: bool,
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
        _reward_weights(rewards, offsets, order, starts, scale_rewards),
        sizes[asked] - 1,
        counts[asked],
        precomputed=False,
        unit=True,
    )
    own = np.repeat(positives, counts)
    bounds[asked], costs[asked], best = certify(
        problem, negatives - (negatives > own), costs[asked], threads, exact
    )
    return best + (best >= own), costs, bounds


def _reward_weights(
    rewards: Doubles,
    offsets: args.Indices,
    order: args.Indices,
    starts: args.Indices,
    scale_rewards: bool,
) -> Doubles:
    """exp(mean(r) - r_i) for `order`, r perhaps scaled to [0, 1] over its group (AMPO, eq. 6)."""
    low = np.minimum.reduceat(rewards, offsets[:-1]) / 2
    spread = np.maximum.reduceat(rewards, offsets[:-1]) / 2 - low
    group = np.repeat(np.arange(len(low)), np.diff(offsets))[order]
    flat = spread[group] <= 0
    scaled = np.where(
        flat, 0.5, (rewards[order] / 2 - low[group]) / np.where(flat, 1, spread[group])
    )
    if not scale_rewards:
        scaled = rewards[order]
    sizes = np.diff(starts)
    means = np.add.reduceat(scaled, starts[:-1]) / sizes
    return np.asarray(np.exp(np.repeat(means, sizes) - scaled))
