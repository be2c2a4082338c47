"""What of HPS's theory does not hold as printed, in numbers.

    python benchmarks/theory/hps_theorem_2.py

Theorem 2 says that the loss tends, as gamma grows, to its supremum over all distributions of the
negatives. q goes to the negative of the highest estimated reward; the supremum is at the one of the
highest implicit reward. Equation 10 loses the N of equation 8. The schedule of gamma, from -5 to 5,
is above 1 in its last fifth alone, and begins with the easiest negatives.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from pyfast import losses, select

ESTIMATED = torch.tensor([2.0, 1.0, 0.5, 0.0], dtype=torch.float64)  # the chosen response first
IMPLICIT = torch.tensor([1.0, -1.0, 0.0, 2.0], dtype=torch.float64)  # beta log(pi / pi_ref)


def loss_at(gamma: float, *, normalize: str = "mean") -> float:
    """Return the loss of the group, by equation 8, or as equation 10 is printed ("sum")."""
    zeros = torch.zeros(4, dtype=torch.float64)
    value = losses.hps(
        IMPLICIT,
        zeros,
        ESTIMATED,
        gamma=gamma,
        beta=1.0,
        normalize=normalize,  # type: ignore[arg-type]
    )
    return float(value)


def with_all_weight_on(i: int) -> float:
    """Return the loss where all weight N is on one negative."""
    return math.log1p(3 * math.exp(float(IMPLICIT[i] - IMPLICIT[0])))


def main() -> None:
    """Print the three."""
    print("theorem 2: the loss as gamma grows")
    for gamma in (0.0, 1.0, 5.0, 20.0, 100.0):
        print(f"  gamma {gamma:5g}: {loss_at(gamma):.4f}")
    print(f"  all weight on the highest estimated reward: {with_all_weight_on(1):.4f}, its limit")
    supremum = max(with_all_weight_on(i) for i in (1, 2, 3))
    print(f"  supremum, on the highest implicit reward:   {supremum:.4f}")
    assert math.isclose(loss_at(100.0), with_all_weight_on(1), rel_tol=1e-6)
    assert loss_at(100.0) < 0.5 * supremum

    plain = losses.plackett_luce_top1(IMPLICIT, torch.zeros(4, dtype=torch.float64), beta=1.0)
    print("equation 10 and the N, at gamma 0, where equation 6 is meant")
    print(f"  equation 6: {float(plain):.4f}, with N q: {loss_at(0.0):.4f}, ", end="")
    print(f"as printed, with q: {loss_at(0.0, normalize='sum'):.4f}")
    assert math.isclose(loss_at(0.0), float(plain), rel_tol=1e-9)
    assert loss_at(0.0, normalize="sum") < float(plain) - 0.1

    print("the schedule: mean score of a drawn negative of 100, scores uniform in [0, 1]")
    scores = np.random.default_rng(0).random(101)
    for progress in (0.0, 0.2, 0.4, 0.6, 0.8):
        gamma = select.hard_preference_gamma(progress)
        assert (gamma > 1) == (progress == 0.8)
        q = select.hard_preference(scores, gamma).probabilities
        print(f"  after {progress:.0%}: gamma {gamma:+g}, mean score {float(q @ scores):.3f}")


if __name__ == "__main__":
    main()
