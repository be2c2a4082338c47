"""Samples of many points: small far clusters are found, and no given start is made worse."""

import numpy as np
import pytest

from pyfast import select


def planted(kind: str, seed: int, n: int = 12_000, d: int = 4) -> tuple:
    """Points around five centres and a few far away; weights, k, and the planted set's cost."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(5, d)) * 10
    home = rng.integers(0, 5, n)
    X, w = centres[home] + rng.normal(size=(n, d)), np.ones(n)
    places = rng.permutation(n)
    if kind == "one far point":
        far = [places[:1]]
    elif kind == "three far points":
        far = [places[i : i + 1] for i in range(3)]
    elif kind == "a ten-thousandth":
        far = [places[: n // 10_000 + 1]]
    elif kind == "several far clusters":
        far = [places[3 * i : 3 * i + 3] for i in range(4)]
    else:
        far = [places[i : i + 1] for i in range(6)]
        w[:] = 1e-9
        w[places[:6]] = 1e6
    spread = 30 if kind == "few weights" else 3e5
    for points in far:
        X[points] = rng.normal(size=d) * spread + rng.normal(size=(len(points), d))
    taken = np.isin(np.arange(n), np.concatenate(far))
    medoids = [int(points[0]) for points in far]
    for c in range(5):
        own = np.flatnonzero((home == c) & ~taken)
        medoids.append(int(own[((X[own] - X[own].mean(axis=0)) ** 2).sum(axis=1).argmin()]))
    return X, w, len(medoids), cost_of(X, w, medoids)


def cost_of(X: np.ndarray, w: np.ndarray, medoids: list[int]) -> float:
    nearest = np.min([np.sqrt(((X - X[m]) ** 2).sum(axis=1)) for m in medoids], axis=0)
    return float(w @ nearest)


KINDS = [
    "one far point",
    "three far points",
    "a ten-thousandth",
    "several far clusters",
    "few weights",
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_misses_no_far_cluster(kind: str) -> None:
    """The sample has a tenth of the points; a third of the seeds once cost 2 to 3 times as much."""
    for seed in range(6):
        X, w, k, planted_cost = planted(kind, seed)
        data = X.astype(np.float32) if seed % 2 else X
        found = select.kmedoids(data, k, weights=w, seed=seed, sample_size=1200)
        assert cost_of(X, w, found.medoids.tolist()) <= 1.01 * planted_cost
        assert found.cost == pytest.approx(cost_of(X, w, found.medoids.tolist()), rel=1e-5)


def test_a_given_start_is_never_made_worse() -> None:
    """Also an optimal one, beside samples of a few points."""
    for seed in range(6):
        X, w, k, _ = planted(KINDS[seed % 5], seed, n=1500)
        start = select.kmedoids(X, k, weights=w, n_init=1, seed=seed, sample_size=1500)
        for sample_size in (1, 20, 100):
            found = select.kmedoids(
                X, k, weights=w, init=start.medoids, sample_size=sample_size, seed=seed
            )
            assert found.cost <= start.cost * (1 + 1e-12)
            random = np.random.default_rng(seed).choice(1500, k, replace=False)
            found = select.kmedoids(
                X, k, weights=w, init=random, sample_size=sample_size, seed=seed
            )
            assert found.cost <= cost_of(X, w, random.tolist())


def test_every_start_has_its_own_sample() -> None:
    """Of 40 points, one sample's answer is poor; the best of many samples' is not."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(3000, 2))
    full = select.kmedoids(X, 12, n_init=5, sample_size=3000).cost
    one, many = (select.kmedoids(X, 12, sample_size=40, n_init=n).cost for n in (1, 30))
    again = select.kmedoids(X, 12, sample_size=40, n_init=30, n_threads=3).cost
    assert many == again
    assert many <= one
    assert many < 1.02 * full


def test_the_sample_of_heavy_points_leaves_room_for_the_others() -> None:
    """Five points weigh all but nothing, cost nothing as medoids, and the rest decides."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        X, w = rng.normal(size=(2000, 2)), np.full(2000, 1e-12)
        w[:5] = 1.0
        found = select.kmedoids(X, 9, weights=w, sample_size=300, seed=seed)
        full = select.kmedoids(X, 9, weights=w, sample_size=2000, seed=seed)
        assert found.cost <= 1.05 * full.cost
