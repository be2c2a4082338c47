"""Labels: a medoid's own is its own, others' the first of the nearest ones."""

import numpy as np
import pytest

from pyfast import select
from pyfast.select import reference as ref


def check(D: np.ndarray, found: select.KMedoidsResult, k: int) -> None:
    assert found.labels[found.medoids].tolist() == list(range(k))
    assert set(found.labels.tolist()) == set(range(k))
    assert found.labels.tolist() == ref.labels(D, found.medoids.tolist())


@pytest.mark.parametrize("n", [6, 100, 150, 1100])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_medoids_that_lie_on_one_another(n: int, dtype: type) -> None:
    """Three places for five medoids, on every path that a group can take."""
    places = np.array([[0, 0], [3, 4], [9, 1]], dtype)
    X = places[np.random.default_rng(n).integers(0, 3, n)]
    D = ref.euclidean_distances(X)
    for options in (
        {},
        {"search": "best"},
        {"init": "greedy"},
        {"weights": np.arange(n) % 3 + 0.0},
    ):
        check(D, select.kmedoids(X, 5, **options), 5)
        check(D, select.kmedoids(D.astype(dtype), 5, metric="precomputed", **options), 5)
    check(D, select.kmedoids(X, n if n < 200 else 30), n if n < 200 else 30)
    if n > 128:
        check(D, select.kmedoids(X, 5, sample_size=40), 5)
        check(D, select.kmedoids(X, 5, sample_size=1, init=np.arange(5)), 5)


def test_batches_ragged_groups_and_optima() -> None:
    pytest.importorskip("scipy")
    X = np.repeat(np.arange(4.0), 5)[:, None] % 2
    D = ref.euclidean_distances(X)
    batch = select.kmedoids(np.stack([X, X + 1]), 3)
    ragged = select.kmedoids(np.vstack([X, X]), 3, offsets=[0, 20, 40])
    for b in range(2):
        for labels, medoids in (
            (batch.labels[b], batch.medoids[b]),
            (ragged.labels[20 * b : 20 * b + 20], ragged.medoids[b]),
        ):
            assert labels.tolist() == ref.labels(D, medoids.tolist())
    check(D, select.kmedoids(X, 3, exact=True), 3)


def test_different_points_at_distance_zero() -> None:
    rng = np.random.default_rng(0)
    for n in (12, 140):
        D = rng.integers(0, 2, (n, n)).astype(float)
        D = D + D.T
        np.fill_diagonal(D, 0)
        check(D, select.kmedoids(D, 5, metric="precomputed"), 5)
