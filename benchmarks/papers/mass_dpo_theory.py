"""What MASS-DPO claims and what holds: greedy against the best set, and what cancels from v_i.

python benchmarks/papers/mass_dpo_theory.py [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from pyfast import select
from pyfast.select import reference

PROBLEMS, RESPONSES, WIDTH, K = 200, 8, 3, 3


def greedy_against_best() -> dict[str, Any]:
    """Count how often Algorithm 1 falls short of the best set, which Lemma 4.3 excludes."""
    short, worst = 0, 1.0
    for problem in range(PROBLEMS):
        features, policy, ref = _group(problem)
        _, v, _ = reference.mass_dpo_vectors(features, policy, ref, 0, 0.1)
        empty = WIDTH * np.log(0.1)  # log det of gamma I
        greedy = float(select.mass_dpo(features, policy, ref, k=K).logdet)
        best = float(select.logdet(v, K, 0.1, exact=True).logdet)
        if greedy < best - 1e-9 * abs(best):
            short += 1
            worst = min(worst, (greedy - empty) / (best - empty))
    return {
        "claim": "Lemma 4.3: the greedy set is the best one",
        "problems": PROBLEMS,
        "greedy_fell_short": short,
        "least_part_of_the_best_gain": worst,
        "bound_of_submodular_functions": 1 - 1 / np.e,
        "holds": short == 0,
    }


def what_cancels() -> dict[str, Any]:
    """Move the preferred response's features and log-probs, and see what changes."""
    moved = {"unit": 0, "fisher": 0}
    largest = 0.0
    for problem in range(PROBLEMS):
        features, policy, ref = _group(problem)
        other_features, other_policy = features.copy(), policy.copy()
        other_features[0] += 5.0
        other_policy[0] -= 7.0
        _, one, _ = reference.mass_dpo_vectors(features, policy, ref, 0, 0.1)
        _, two, _ = reference.mass_dpo_vectors(other_features, other_policy, ref, 0, 0.1)
        largest = max(largest, float(np.abs(one - two).max()))
        for curvature in moved:
            before, after = (
                select.mass_dpo(f, p, ref, k=K, beta=1.0, curvature=curvature)
                for f, p in ((features, policy), (other_features, other_policy))
            )
            moved[curvature] += before.logdet != after.logdet and not np.isclose(
                before.logdet, after.logdet, rtol=1e-9
            )
    return {
        "claim": "phi_i and s_i are differences to the preferred response",
        "problems": PROBLEMS,
        "largest_change_of_any_v": largest,
        "log_det_changed_with_c_1": int(moved["unit"]),
        "log_det_changed_with_equation_11": int(moved["fisher"]),
    }


def _group(problem: int) -> tuple[Any, Any, Any]:
    generator = np.random.default_rng(problem)
    features = generator.normal(size=(RESPONSES, WIDTH))
    policy, ref = generator.normal(-20.0, 4.0, size=(2, RESPONSES))
    return features, policy, ref


def main() -> None:
    """Print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", type=Path)
    arguments = parser.parse_args()
    found = [greedy_against_best(), what_cancels()]
    for one in found:
        print(json.dumps(one, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
