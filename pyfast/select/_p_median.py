"""The p-median problem, AMPO (9), as a linear program, and bounds that its duals prove.

What a solver calls optimal holds within its tolerances. A bound here does not rest on them: with
any prices u_i for serving a point, every set of k candidates costs at least
``sum_i u_i + the sum of the k least sum_i min(0, c_ij - u_i)`` (see certificate.hpp), summed
without rounding. The duals of the relaxation are the best prices; where it is not whole, branches
with a candidate and without it are bounded apart.
"""

import heapq
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

_ENOUGH = 1 - 1e-10  # of the cost that has to be reached: a proof
_MOST_PROGRAMS = 60


def program(costs: Doubles, k: int) -> tuple[Doubles, Any, Any, Any]:
    """Return prices, and the rows: each point once, served by the open alone, k open ones.

    Columns: open_j, then served_ij. Of m candidates k are open, so that one of any m - k + 1 is:
    each point's dearest k - 1 need no variable.
    """
    from scipy.sparse import coo_array, csc_array, hstack

    n, m = costs.shape
    nearest = np.argsort(costs, axis=1, kind="stable")[:, : m - k + 1]
    serves = nearest.size
    point, variable = np.repeat(np.arange(n), m - k + 1), np.arange(serves)
    ones = np.ones(serves)
    once = hstack([coo_array((n, m)), coo_array((ones, (point, variable)), (n, serves))])
    by_open = hstack(
        [
            coo_array((-ones, (variable, nearest.ravel())), (serves, m)),
            coo_array((ones, (variable, variable)), (serves, serves)),
        ]
    )
    count = coo_array(np.r_[np.ones(m), np.zeros(serves)][None, :])
    prices = np.r_[np.zeros(m), np.take_along_axis(costs, nearest, axis=1).ravel()]
    return prices, csc_array(once), csc_array(by_open), csc_array(count)


def lower_bound(costs: Doubles, k: int) -> tuple[float, NDArray[np.int64] | None]:
    """Return what every set of k columns costs at least, and a set that costs less than 1, if met.

    The sum of the least of each row is to be compared with 1: no branch is followed further than
    that.
    """
    m = costs.shape[1]
    best, found = 1.0, None
    everything = (frozenset[int](), frozenset(range(m)))
    heap: list[tuple[float, int, tuple[frozenset[int], frozenset[int]]]] = [(0.0, 0, everything)]
    for made in range(1, _MOST_PROGRAMS + 1):
        if not heap or heap[0][0] >= best * _ENOUGH:
            break
        known, _, (forced, allowed) = heapq.heappop(heap)
        columns = np.array(sorted(allowed))
        is_forced = np.array([int(j) in forced for j in columns])
        bound, opened = _relaxed(costs[:, columns], k, is_forced)
        if opened is None:  # the solver had no answer
            heapq.heappush(heap, (known, made, (forced, allowed)))
            break
        rounded = columns[np.sort(np.argsort(-opened, kind="stable")[:k])]
        cost = math.fsum(costs[:, rounded].min(axis=1).tolist())
        if cost < best:
            best, found = cost, rounded
        bound = max(bound, known)
        if bound >= best * _ENOUGH:
            continue
        # The most undecided one; if none is, the bound is short of a whole solution by rounding.
        undecided = np.where(is_forced, 2.0, np.abs(opened - 0.5))
        branch = int(columns[int(np.argmin(undecided))])
        with_it, without = (forced | {branch}, allowed), (forced, allowed - {branch})
        for number, (f, a) in enumerate((with_it, without)):
            leaf = f if len(f) == k else a if len(a) == k else None
            if leaf is None:
                heapq.heappush(heap, (bound, 2 * made + number, (f, a)))
                continue
            only = np.array(sorted(leaf))
            cost = math.fsum(costs[:, only].min(axis=1).tolist())
            if cost < best:
                best, found = cost, only
    proven = best * _ENOUGH
    bound = min([best, *(b for b, *_ in heap)]) if heap else best
    return (1.0 if bound >= proven else bound / best) * min(best, 1.0), found


def _relaxed(costs: Doubles, k: int, forced: NDArray[np.bool_]) -> tuple[float, Doubles | None]:
    """Return a bound that holds whatever the solver does, and how far it opens each candidate."""
    import scipy.optimize as optimize
    from scipy.sparse import vstack

    m = costs.shape[1]
    prices, once, by_open, count = program(costs, k)
    serves = by_open.shape[0]
    low = np.r_[forced.astype(float), np.zeros(serves)]
    solved = optimize.linprog(
        prices,
        A_ub=by_open,
        b_ub=np.zeros(serves),
        A_eq=vstack([once, count], format="csc"),
        b_eq=np.r_[np.ones(len(costs)), k],
        bounds=np.stack([low, np.ones(len(low))], axis=1),
        method="highs",
    )
    if solved.x is None or solved.status != 0:
        return 0.0, None
    u = np.clip(solved.eqlin.marginals[:-1], 0.0, 2.0)
    gains = np.minimum(costs - u[:, None], 0.0)
    rho = np.array([math.fsum(column.tolist()) for column in gains.T])
    chosen = math.fsum([*rho[forced], *np.sort(rho[~forced])[: k - int(forced.sum())]])
    total = math.fsum(u.tolist())
    return total + chosen - 1e-15 * (total - chosen), np.asarray(solved.x[:m])
