"""A local optimum under swaps is within 5 times the optimum for metrics, and for them alone.

    python benchmarks/theory/swap_search_bound.py

AMPO's theorem 3 is Arya et al.'s bound (2001), which needs the triangle inequality. For distances
that break it no factor holds: here two medoids that no single swap improves, beside two that are as
much better as one likes.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from pyfast import select

METRICS, N, K = 300, 9, 3


def best_cost(distances: NDArray[np.float64], k: int) -> float:
    """Return the lowest cost of all sets."""
    sets = combinations(range(len(distances)), k)
    return min(float(distances[:, list(s)].min(axis=1).sum()) for s in sets)


def trap(small: float) -> NDArray[np.float64]:
    """Return distances of 8 points: {0, 1} is a trap, {2, 3} costs nearly nothing.

    0 serves the points 4 and 5, and 1 the points 6 and 7, at 1; 2 serves 4 and 6, and 3 the other
    two, at `small`. With one of each, some point is far from both.
    """
    distances = np.full((8, 8), 10.0)
    np.fill_diagonal(distances, 0.0)
    near = [(0, 4), (0, 5), (1, 6), (1, 7)]
    nearer = [(2, 4), (2, 6), (3, 5), (3, 7), (0, 2), (1, 3)]
    for pairs, distance in ((near, 1.0), (nearer, small)):
        for i, j in pairs:
            distances[i, j] = distances[j, i] = distance
    return distances


def main() -> None:
    """Search from the trap, and in random metrics."""
    print("eight points whose distances break the triangle inequality, two medoids")
    for small in (1e-1, 1e-2, 1e-4, 1e-6):
        distances = trap(small)
        found = select.kmedoids(distances, 2, metric="precomputed", init=[0, 1], search="best")
        ratio = found.cost / best_cost(distances, 2)
        print(
            f"  {small:7g}: swaps end at {found.medoids.tolist()}, {ratio:,.1f} times the optimum"
        )
        assert found.medoids.tolist() == [0, 1]
    assert ratio > 1e5

    generator = np.random.default_rng(0)
    worst = 1.0
    for seed in range(METRICS):
        points = generator.random((N, 2))
        distances = np.linalg.norm(points[:, None] - points, axis=2)
        found = select.kmedoids(distances, K, metric="precomputed", seed=seed, search="best")
        worst = max(worst, found.cost / best_cost(distances, K))
    print(
        f"{METRICS} metrics of {N} points, {K} medoids, one random start: at most {worst:.3f} times"
    )
    assert worst <= 5


if __name__ == "__main__":
    main()
