"""Any size of numbers: the picks of tiny, huge and mixed points are those of exact arithmetic."""

import itertools
import math

import numpy as np
import pytest

from pyfast import select
from pyfast.select import reference as ref

# Exponents of two between which float64 holds the points, their distances and costs.
EXPONENTS = [-1070, -1000, -560, -300, 0, 300, 600, 1000]


def problem(n: int, d: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whole numbers, so that any power of two times them is exact, weights and rewards."""
    rng = np.random.default_rng(n)
    return rng.integers(-50, 51, size=(n, d)).astype(float), rng.random(n), rng.normal(size=n)


def exact_cost(X: np.ndarray, w: np.ndarray, medoids: list[int]) -> float:
    rows = X.tolist()
    return math.fsum(
        float(v) * min(math.dist(x, rows[m]) for m in medoids) for v, x in zip(w, rows, strict=True)
    )


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("n", [12, 129, 200, 1100])
def test_kmedoids_of_points_times_a_power_of_two(n: int, exponent: int) -> None:
    X, w, _ = problem(n)
    plain = select.kmedoids(X, 4, weights=w, n_init=2, n_threads=1)
    scaled = select.kmedoids(np.ldexp(X, exponent), 4, weights=w, n_init=2, n_threads=1)
    assert scaled.medoids.tolist() == plain.medoids.tolist()
    assert scaled.labels.tolist() == plain.labels.tolist()
    assert scaled.cost == pytest.approx(math.ldexp(plain.cost, exponent), rel=1e-13, abs=1e-323)
    assert scaled.cost == pytest.approx(
        exact_cost(np.ldexp(X, exponent), w, scaled.medoids.tolist()), rel=1e-12, abs=n * 1e-323
    )


@pytest.mark.parametrize("exponent", [-1070, -560, 600, 1000])
@pytest.mark.parametrize("options", [{"sample_size": 150}, {"search": "best"}, {"init": "greedy"}])
def test_other_paths_of_points_times_a_power_of_two(options: dict, exponent: int) -> None:
    X, w, _ = problem(700)
    plain = select.kmedoids(X, 3, weights=w, **options)
    scaled = select.kmedoids(np.ldexp(X, exponent), 3, weights=w, **options)
    assert scaled.medoids.tolist() == plain.medoids.tolist()
    assert scaled.cost == pytest.approx(math.ldexp(plain.cost, exponent), rel=1e-13, abs=1e-323)


@pytest.mark.parametrize("exponent", [-149, -100, 60, 118])
@pytest.mark.parametrize("n", [12, 129, 1100])
def test_float32_points_times_a_power_of_two(n: int, exponent: int) -> None:
    X, _, rewards = problem(n)
    small, plain = np.ldexp(X, exponent).astype(np.float32), X.astype(np.float32)
    scaled, expected = select.kmedoids(small, 4), select.kmedoids(plain, 4)
    assert scaled.medoids.tolist() == expected.medoids.tolist()
    assert scaled.cost == pytest.approx(math.ldexp(expected.cost, exponent), rel=1e-12)
    for selector in (select.opt_select, select.coreset):
        assert (
            selector(small, rewards, 5).negatives.tolist()
            == selector(plain, rewards, 5).negatives.tolist()
        )


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("n", [12, 129, 200])
@pytest.mark.parametrize("d", [3, 40])
def test_group_selectors_times_a_power_of_two(n: int, d: int, exponent: int) -> None:
    X, _, rewards = problem(n, d)
    scaled, ties = np.ldexp(X, exponent), np.round(rewards)
    for options in ({}, {"init": "greedy"}, {"cover_top": True, "reward_scale": "none"}):
        plain = select.opt_select(X, rewards, 5, **options)
        other = select.opt_select(scaled, rewards, 5, **options)
        assert other.negatives.tolist() == plain.negatives.tolist()
        assert other.cost == pytest.approx(plain.cost, rel=1e-13)
    assert (
        select.bottom_k(ties, 5, embeddings=scaled).negatives.tolist()
        == select.bottom_k(ties, 5, embeddings=X).negatives.tolist()
    )
    plain = select.coreset(X, rewards, 5)
    if 2 * exponent + math.log2(plain.cost) > 1024:
        with pytest.raises(ValueError, match="a squared distance overflows float64"):
            select.coreset(scaled, rewards, 5)  # for its cost cannot be held
    else:
        assert select.coreset(scaled, rewards, 5).negatives.tolist() == plain.negatives.tolist()


@pytest.mark.parametrize("exponent", [-1000, -560, 600, 1000])
def test_bounds_times_a_power_of_two(exponent: int) -> None:
    pytest.importorskip("scipy")
    for n in (14, 140):
        X, w, rewards = problem(n)
        for how in ({"certify": True}, {"exact": True}):
            plain = select.kmedoids(X, 3, weights=w, **how)
            scaled = select.kmedoids(np.ldexp(X, exponent), 3, weights=w, **how)
            assert scaled.medoids.tolist() == plain.medoids.tolist()
            assert scaled.gap == pytest.approx(plain.gap, abs=1e-9)
            plain = select.opt_select(X, rewards, 3, n_init=1, **how)
            scaled = select.opt_select(np.ldexp(X, exponent), rewards, 3, n_init=1, **how)
            assert scaled.negatives.tolist() == plain.negatives.tolist()
            assert scaled.gap == pytest.approx(plain.gap, abs=1e-9)


MIXED = np.array(
    [[0, 0], [1e-300, 0], [2e-300, 1e-301], [5e-300, 0], [1e300, 0], [1e300, 3e-300], [7.0, 1e-320]]
)


@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_mixed_scales_in_one_set(k: int) -> None:
    n = len(MIXED)
    found = select.kmedoids(MIXED, k, n_init=20)
    best = min(exact_cost(MIXED, np.ones(n), list(s)) for s in itertools.combinations(range(n), k))
    assert found.cost == pytest.approx(best, rel=1e-12)
    assert exact_cost(MIXED, np.ones(n), found.medoids.tolist()) == pytest.approx(best, rel=1e-12)
    # The best response, a point far away, is no negative; the others' distances span 10^600.
    X = np.vstack([MIXED, [[-1e299, 0]]])
    rewards = np.r_[np.zeros(n), 1.0]
    picked = select.opt_select(X, rewards, k)
    assert exact_cost(MIXED, np.ones(n), picked.negatives.tolist()) == pytest.approx(
        best, rel=1e-12
    )


def test_coreset_tells_clusters_at_both_ends_of_the_range_apart() -> None:
    """The squares of these distances go from 1e-600 to 1e600."""
    X = np.array([[1e300], [0], [1e-300], [9e-300], [1e100], [1e100], [0.0]])
    rewards = np.array([1, 5, 4, 3, 2, 1.5, 9.0])
    many = np.vstack([X, np.repeat(X[3:4], 140, axis=0)])
    more = np.r_[rewards, np.full(140, 3.5)]
    for points, scores in ((X, rewards), (many, more)):
        for seed in range(5):
            picked = select.coreset(points, scores, 4, n_init=5, seed=seed)
            assert picked.negatives.tolist() == [0, 2, 3, 5]


def test_weights_at_both_ends_of_the_range() -> None:
    """Costs that float64 holds, of products that it does not."""
    X, w, _ = problem(30)
    plain = select.kmedoids(X, 3, weights=w)
    for points, weights in ((-1000, 900), (1000, -1000), (-900, 1000), (-500, -500), (500, 400)):
        found = select.kmedoids(np.ldexp(X, points), 3, weights=np.ldexp(w, weights))
        assert found.medoids.tolist() == plain.medoids.tolist()
        assert found.cost == pytest.approx(math.ldexp(plain.cost, points + weights), rel=1e-12)
        D = ref.euclidean_distances(np.ldexp(X, points))
        given = select.kmedoids(D, 3, metric="precomputed", weights=np.ldexp(w, weights))
        assert given.medoids.tolist() == plain.medoids.tolist()
    with pytest.raises(ValueError, match="weights times distances overflow float64"):
        select.kmedoids(np.ldexp(X, 900), 3, weights=np.ldexp(w, 900))


def test_the_reference_measures_any_points() -> None:
    rows = MIXED.tolist()
    exact = [[math.dist(a, b) for b in rows] for a in rows]
    assert ref.euclidean_distances(MIXED) == pytest.approx(np.array(exact), rel=1e-14, abs=0)
