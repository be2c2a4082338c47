"""MASS-DPO's lemma 4.3, that greedy selection is optimal, does not hold in general.

    python benchmarks/theory/mass_dpo_greedy.py

log det(gamma I + sum v v^T) is monotone and submodular, which gives greedy 1 - 1/e of the most that
can be gained (Nemhauser, Wolsey & Fisher 1978), and no more.
"""

from __future__ import annotations

import math

import numpy as np

from pyfast import select

PROBLEMS, N, DIM, K, GAMMA = 200, 8, 3, 3, 0.1


def main() -> None:
    """Compare greedy with the best of all subsets."""
    generator = np.random.default_rng(0)
    short, worst = 0, 1.0
    for _ in range(PROBLEMS):
        vectors = generator.normal(size=(N, DIM))
        start = DIM * math.log(GAMMA)  # of the empty set
        greedy = select.logdet(vectors, K, gamma=GAMMA).logdet - start
        best = select.logdet(vectors, K, gamma=GAMMA, exact=True).logdet - start
        assert greedy <= best + 1e-9
        short += greedy < best - 1e-9
        worst = min(worst, greedy / best)
    print(f"{PROBLEMS} problems of {N} vectors in {DIM} dimensions, {K} of them chosen")
    print(f"greedy falls short of the best set in {short} of {PROBLEMS}")
    print(f"it gains at least {worst:.1%} of what the best set gains (bound: {1 - 1 / math.e:.1%})")
    assert short > 0
    assert worst >= 1 - 1 / math.e


if __name__ == "__main__":
    main()
