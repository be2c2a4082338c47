"""MASS-DPO's selection against a transcription of its equations."""

from itertools import combinations

import numpy as np
import pytest

from pyfast import select
from pyfast.select import reference as ref


def group(seed: int, n: int = 20, d: int = 24) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), 30 * rng.normal(size=n) - 90, 30 * rng.normal(size=n) - 90


def paper_design(f, policy, ref_logps, star, chosen, beta, gamma, curvature):
    """H(S) of eq. 11 with eq. 8's p and Z over the pool, built term by term."""
    pool = [i for i in range(len(f)) if i != star]
    b = {i: ref_logps[star] - ref_logps[i] for i in pool}
    margin = {i: policy[i] - policy[star] + b[i] for i in pool}  # phi_i^T theta + b_i
    total = sum(np.exp(beta * margin[i]) for i in pool)
    p = {i: np.exp(beta * margin[i]) / total for i in pool}
    phi = {i: f[i] - f[star] for i in pool}
    mean = sum(p[i] * phi[i] for i in pool)
    sigma_z = 1 / (1 + np.exp(np.log(total)))  # Z = -log total
    c = 1.0 if curvature == "unit" else beta**2 * (1 - sigma_z)
    H = gamma * np.eye(f.shape[1])
    for i in chosen:
        v = np.sqrt(p[i]) * (phi[i] - mean)
        H += c * np.outer(v, v)
    return H


@pytest.mark.parametrize("curvature", ["unit", "fisher"])
def test_each_pick_raises_the_papers_determinant_most(curvature: str) -> None:
    for seed in range(8):
        f, policy, ref_logps = group(seed, n=9, d=5)
        star, beta, gamma = seed % 9, 0.1 + 0.1 * (seed % 3), 0.1
        found = select.mass_dpo(f, policy, ref_logps, star, 4, beta, gamma, curvature)
        chosen: list[int] = []
        determinants = [f.shape[1] * np.log(gamma)]
        for pick in found.negatives.tolist():
            values = {
                i: np.linalg.slogdet(
                    paper_design(f, policy, ref_logps, star, [*chosen, i], beta, gamma, curvature)
                )[1]
                for i in range(9)
                if i != star and i not in chosen
            }
            assert values[pick] >= max(values.values()) - 1e-9
            chosen.append(pick)
            determinants.append(values[pick])
        assert found.logdet == pytest.approx(determinants[-1], rel=1e-9)
        gains = np.diff(determinants)
        assert found.gains == pytest.approx(gains, rel=1e-7, abs=1e-11)
        assert (np.diff(gains) <= 1e-11).all()  # the core never lets its own increase


@pytest.mark.parametrize("curvature", ["unit", "fisher"])
def test_follows_the_reference(curvature: str) -> None:
    for seed in range(30):
        f, policy, ref_logps = group(seed, n=5 + seed)
        args = (f, policy, ref_logps, seed % 5, 1 + seed % 4, 0.1, 0.1, curvature)
        found = select.mass_dpo(*args)
        assert found.negatives.tolist() == ref.mass_dpo(*args)
        assert found.preferred == seed % 5
        assert seed % 5 not in found.negatives


def test_types_batches_and_ragged_groups() -> None:
    f, policy, ref_logps = (
        np.stack(a) for a in zip(*(group(s, n=12) for s in range(5)), strict=True)
    )
    f = f.astype(np.float32)
    preferred = [0, 3, 11, 5, 2]
    batch = select.mass_dpo(f, policy, ref_logps, preferred, n_threads=3)
    assert batch.negatives.shape == (5, 3)
    assert batch.preferred.tolist() == preferred
    for b in range(5):
        one = select.mass_dpo(f[b].astype(float), policy[b], ref_logps[b], preferred[b])
        assert (one.negatives == batch.negatives[b]).all()
        assert one.logdet == batch.logdet[b]
        assert isinstance(one.preferred, int)
    offsets = [0, 12, 20]
    flat = [a.reshape(60, -1).squeeze()[:20] for a in (f, policy, ref_logps)]
    ragged = select.mass_dpo(*flat, preferred=[0, 7], offsets=offsets)
    for b, best in enumerate((0, 7)):
        rows = slice(offsets[b], offsets[b + 1])
        one = select.mass_dpo(*(a[rows] for a in flat), preferred=best)
        assert (one.negatives == ragged.negatives[b]).all()


def test_shift_of_features_and_extreme_scores() -> None:
    f, policy, ref_logps = group(1)
    expected = select.mass_dpo(f, policy, ref_logps).negatives.tolist()
    assert select.mass_dpo(f + 64.0, policy, ref_logps).negatives.tolist() == expected
    for gap in (1e4, -1e4):
        shifted = policy.copy()
        shifted[7] += gap
        for curvature in ("unit", "fisher"):
            found = select.mass_dpo(f, shifted, ref_logps, k=19, curvature=curvature)
            assert sorted(found.negatives.tolist()) == list(range(1, 20))
            assert np.isfinite(found.logdet)


def test_the_preferred_response_counts_only_by_being_left_out() -> None:
    """Its features cancel from every v_i, and with c = 1 so do its log-probs."""
    for seed in range(10):
        f, policy, ref_logps = group(seed, n=12)
        expected = select.mass_dpo(f, policy, ref_logps, 4, 5)
        other, moved = f.copy(), policy.copy()
        other[4] *= -1e6
        moved[4] += 25.0
        for arguments in ((other, policy), (f, moved), (other, moved)):
            found = select.mass_dpo(*arguments, ref_logps, 4, 5)
            assert found.negatives.tolist() == expected.negatives.tolist()
            assert found.gains == pytest.approx(expected.gains, rel=1e-9)
    f, zeros, raised = f[:, :3], np.zeros(12), 50.0 * (np.arange(12) == 4)
    fisher = [
        select.mass_dpo(f, logps, zeros, 4, 5, 1.0, curvature="fisher").logdet
        for logps in (zeros, raised)
    ]
    assert fisher[0] > fisher[1] + 1  # c goes from 11 / 12 to e^-48


def test_greedy_is_not_always_the_best_set_but_near_it() -> None:
    short = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        f, policy, ref_logps = rng.normal(size=(8, 3)), rng.normal(size=8), rng.normal(size=8)
        found = select.mass_dpo(f, policy, ref_logps)
        vectors = ref.mass_dpo_vectors(f, policy, ref_logps, 0, 0.1)[1]
        sets = (vectors[list(chosen)] for chosen in combinations(range(7), 3))
        best = max(ref.logdet_value(chosen, 0.1) for chosen in sets)
        short += found.logdet < best - 1e-9
        empty = 3 * np.log(0.1)
        assert (1 - 1 / np.e) * (best - empty) <= found.logdet - empty <= best - empty + 1e-9
    assert 5 <= short <= 40
