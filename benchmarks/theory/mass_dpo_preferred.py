"""In MASS-DPO's Algorithm 1 with c = 1 the preferred response cancels from every v_i.

    python benchmarks/theory/mass_dpo_preferred.py

phi_i less its mean is f_i less its mean, and the softmax over the pool does not see that all s_i
move alike. So neither the features nor the log-probs of y* change the selection: it counts by being
left out of the pool. With c of equation 11 (fisher) its log-probs enter.
"""

from __future__ import annotations

import numpy as np

from pyfast import select

GROUPS, N, DIM, K = 200, 12, 4, 4


def main() -> None:
    """Choose twice, with another preferred response the second time."""
    generator = np.random.default_rng(0)
    same = {"unit": 0, "fisher": 0}
    for _ in range(GROUPS):
        features = generator.normal(size=(N, DIM))
        policy, ref = generator.normal(scale=3.0, size=(2, N)) - 20
        other_features, other_policy = features.copy(), policy.copy()
        other_features[0] = generator.normal(scale=10.0, size=DIM)
        other_policy[0] += generator.normal(scale=100.0)
        for curvature in ("unit", "fisher"):
            how = {"k": K, "beta": 0.5, "curvature": curvature}
            one = select.mass_dpo(features, policy, ref, **how)  # type: ignore[arg-type]
            other = select.mass_dpo(other_features, other_policy, ref, **how)  # type: ignore[arg-type]
            same[curvature] += one.negatives.tolist() == other.negatives.tolist()
    print(f"{GROUPS} groups of {N} responses, {K} negatives, each with another y* the second time")
    for curvature, count in same.items():
        print(f"c = {'1' if curvature == 'unit' else 'equation 11'}: {count} selections the same")
    assert same["unit"] == GROUPS
    assert same["fisher"] < GROUPS


if __name__ == "__main__":
    main()
