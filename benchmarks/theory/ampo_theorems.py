"""AMPO's theorems 1 and 2 and its lemma 1 (ii) do not hold as printed, in numbers.

    python benchmarks/theory/ampo_theorems.py

They say that the negatives S of the lowest coverage cost (equation 11), and they alone, allow the
highest expected reward under p_j = 0 on S and p_i <= L min_{j in S} A_ij elsewhere. But the best
response's probability has no bound (equation 16): with all mass on it every S allows the highest
reward there is. With a bound on it too, p_top <= 0.3, the two are different problems.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

PROBLEMS, N, K, LIPSCHITZ = 12, 8, 3, 0.6

Floats = NDArray[np.float64]


def costs_of(distances: Floats, rewards: Floats, sets: list[tuple[int, ...]]) -> Floats:
    """Return equation 11 of each set of negatives."""
    weights = np.exp(rewards.mean() - rewards)
    return np.array([float(weights @ distances[:, list(s)].min(axis=1)) for s in sets])


def best_reward(
    distances: Floats, rewards: Floats, negatives: tuple[int, ...], most: float
) -> float:
    """Return equation 16's inner maximum, with p of the best response at most `most`."""
    limits = LIPSCHITZ * distances[:, list(negatives)].min(axis=1)  # 0 on the negatives
    limits[rewards.argmax()] = most
    ones = np.ones((1, len(rewards)))
    bounds = [(0.0, min(1.0, limit)) for limit in limits]
    found = linprog(-rewards, A_eq=ones, b_eq=[1.0], bounds=bounds)
    return float(-found.fun) if found.success else -np.inf


def main() -> None:
    """Solve small problems over all sets of negatives."""
    generator = np.random.default_rng(0)
    same = others = differ = solved = 0
    for _ in range(PROBLEMS):
        points, rewards = generator.random((N, 2)), generator.random(N)
        distances = np.linalg.norm(points[:, None] - points, axis=2)
        pool = [i for i in range(N) if i != rewards.argmax()]
        sets = list(combinations(pool, K))
        costs = costs_of(distances, rewards, sets)
        free = np.array([best_reward(distances, rewards, s, 1.0) for s in sets])
        same += bool(np.allclose(free, rewards.max(), atol=1e-9))
        others += int((costs > costs.min() + 1e-9).sum())
        capped = np.array([best_reward(distances, rewards, s, 0.3) for s in sets])
        if np.isfinite(capped).any():
            solved += 1
            differ += bool(capped[costs.argmin()] < capped.max() - 1e-9)
    sets_in_all = PROBLEMS * len(sets)
    print(f"{PROBLEMS} problems of {N} responses, {K} negatives, {sets_in_all} sets in all")
    print(f"theorems 1 and 2: in {same} of {PROBLEMS} every set allows the same, highest reward")
    print(f"lemma 1 (ii): {others} sets allow the highest reward and are not of the lowest cost")
    print(
        f"with p_top <= 0.3: in {differ} of {solved} the set of the lowest cost allows less than "
        "the best set"
    )
    assert same == PROBLEMS
    assert others == sets_in_all - PROBLEMS
    assert differ > 0


if __name__ == "__main__":
    main()
