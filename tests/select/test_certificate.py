"""Lower bounds and optima of k-medoids, against brute force over all subsets and another solver."""

import sys
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfast import select
from pyfast.select import _certificate
from pyfast.select import reference as ref
from pyfast.select._p_median import lower_bound

KINDS = ["plain", "ties", "duplicates", "zero weights", "huge weights", "all weights zero"]


def problem(seed: int, n: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X, w = rng.normal(size=(n, 2)), rng.random(n)
    if kind == "ties":
        X, w = rng.integers(0, 3, size=(n, 2)).astype(float), np.ones(n)
    elif kind == "duplicates":
        X[n // 2 :] = X[0]
    elif kind == "zero weights":
        w[rng.random(n) < 0.5] = 0
    elif kind == "huge weights":
        w = 10.0 ** rng.integers(-12, 13, n)
    elif kind == "all weights zero":
        w = np.zeros(n)
    return X, w


def optimum_of_pool(X: np.ndarray, r: np.ndarray, k: int, cover_top: bool) -> float:
    """AMPO Algorithm 3: all sets of k negatives."""
    positive = int(np.argmax(r))
    pool = [i for i in range(len(r)) if i != positive]
    points = [*pool, positive] if cover_top else pool
    D = ref.euclidean_distances(X[points])
    D, w = D / (D.max() or 1.0), ref.reward_weights(r, points)
    return min(ref.cost(D, w, list(s)) for s in combinations(range(len(pool)), min(k, len(pool))))


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_and_optima_against_all_subsets(kind: str) -> None:
    for seed in range(16):
        n, k = 3 + seed % 9, 1 + seed % 4
        k = min(k, n)
        X, w = problem(seed, n, kind)
        optimum = ref.kmedoids_optimum(ref.euclidean_distances(X), w, k)
        bounded = select.kmedoids(X, k, weights=w, seed=seed, certify=True)
        assert bounded.bound <= min(optimum, bounded.cost) * (1 + 1e-13)
        assert bounded.gap == pytest.approx(
            (bounded.cost - bounded.bound) / bounded.cost if bounded.cost else 0, abs=1e-300
        )
        exact = select.kmedoids(X, k, weights=w, seed=seed, exact=True)
        assert exact.cost == pytest.approx(optimum, rel=1e-9, abs=1e-300)
        assert (exact.bound, exact.gap) == (exact.cost, 0)
        D = ref.euclidean_distances(X)
        assert exact.cost == pytest.approx(ref.cost(D, w, list(exact.medoids)), rel=1e-12)
        assert exact.labels.tolist() == ref.labels(D, exact.medoids.tolist())


def test_bounds_are_tight_where_the_plane_is_hard() -> None:
    """Not 0 everywhere: most of these are proven optimal by the bound alone."""
    proven = 0
    for seed in range(30):
        X, w = problem(seed, 24, "plain")
        found = select.kmedoids(X, 5, weights=w, seed=seed, n_init=10, certify=True)
        assert found.gap < 0.05
        proven += found.gap < 1e-9
    assert proven >= 20


@pytest.mark.parametrize("cover_top", [False, True])
def test_opt_select_against_all_subsets(cover_top: bool) -> None:
    rng = np.random.default_rng(0)
    for seed in range(20):
        n, k = 2 + seed % 9, 1 + seed % 4
        X, r = rng.normal(size=(n, 2)), rng.normal(size=n)
        if seed % 5 == 4:
            r[:] = 1.0
        if seed % 7 == 6:
            X[1:] = X[0]
        optimum = optimum_of_pool(X, r, k, cover_top)
        options = {"k": k, "cover_top": cover_top, "n_init": 1, "seed": seed}
        plain = select.opt_select(X, r, **options)
        assert plain.bound is None
        assert plain.gap is None
        bounded = select.opt_select(X, r, certify=True, **options)
        assert bounded.negatives.tolist() == plain.negatives.tolist()
        assert bounded.bound <= optimum * (1 + 1e-13)
        exact = select.opt_select(X, r, exact=True, **options)
        assert exact.cost == pytest.approx(optimum, rel=1e-9, abs=1e-12)
        assert exact.gap == 0
        assert exact.positive == plain.positive
        pool = [i for i in range(n) if i != exact.positive]
        assert set(exact.negatives.tolist()) <= set(pool)
        assert len(set(exact.negatives.tolist())) == min(k, n - 1)


def test_exact_improves_on_a_local_optimum_and_equals_another_solver() -> None:
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    import peers

    rng = np.random.default_rng(1)
    improved = 0
    for _ in range(12):
        X, r = rng.normal(size=(32, 2)) @ rng.normal(size=(2, 8)), rng.normal(size=32)
        optimum = peers.opt_select_optimum(X, r, 7)
        local = select.opt_select(X, r, k=7, n_init=1, certify=True)
        exact = select.opt_select(X, r, k=7, n_init=1, exact=True)
        assert local.bound <= optimum * (1 + 1e-12)
        assert exact.cost == pytest.approx(optimum, rel=1e-9)
        improved += exact.cost < local.cost * (1 - 1e-9)
    assert improved >= 1


def test_the_integer_program_alone_finds_the_cheapest_set() -> None:
    """Asked for all candidates, as it would be if the bound closed none."""
    rng = np.random.default_rng(2)
    for seed in range(10):
        n, m, k = 9, 4 + seed % 5, 1 + seed % 4
        costs = rng.integers(0, 5, size=(n, m)) * 10.0 ** rng.integers(-3, 4, size=(n, 1))
        costs[:, seed % m] += 0.5
        found = _certificate._solve(costs, k, float(costs[:, :k].min(axis=1).sum()))
        cheapest = min(costs[:, list(s)].min(axis=1).sum() for s in combinations(range(m), k))
        assert len(set(found.tolist())) == k
        assert costs[:, found].min(axis=1).sum() == pytest.approx(cheapest, rel=1e-9)


def test_batches_and_ragged_groups_equal_single_calls() -> None:
    rng = np.random.default_rng(3)
    X, r = rng.normal(size=(5, 12, 2)), rng.normal(size=(5, 12))
    for how in ({"certify": True}, {"exact": True}):
        many = select.opt_select(X, r, k=3, n_init=1, n_threads=2, **how)
        assert many.bound.shape == many.gap.shape == (5,)
        both = select.kmedoids(X, 3, n_threads=2, **how)
        for b in range(5):
            one = select.opt_select(X[b], r[b], k=3, n_init=1, **how)
            assert many.negatives[b].tolist() == one.negatives.tolist()
            assert (many.cost[b], many.bound[b]) == (one.cost, one.bound)
            single = select.kmedoids(X[b], 3, **how)
            assert both.medoids[b].tolist() == single.medoids.tolist()
            assert (both.cost[b], both.bound[b]) == (single.cost, single.bound)
    flat, rewards, offsets = X.reshape(-1, 2), r.reshape(-1), np.array([0, 1, 13, 60])
    ragged = select.opt_select(flat, rewards, k=3, offsets=offsets, exact=True)
    assert ragged.negative_offsets.tolist() == [0, 0, 3, 6]
    assert ragged.bound.shape == (3,)
    one = select.opt_select(flat[1:13], rewards[1:13], k=3, exact=True)
    assert ragged.negatives[:3].tolist() == one.negatives.tolist()
    alone = select.opt_select(flat[:1], rewards[:1], k=3, exact=True)
    assert (alone.cost, alone.bound, alone.gap) == (0, 0, 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_precomputed_and_larger_groups_are_bounded_alike(dtype: type) -> None:
    rng = np.random.default_rng(5)
    X = (rng.normal(size=(140, 2)) + 2 * rng.integers(0, 3, size=(140, 1))).astype(dtype)
    points = select.kmedoids(X, 4, certify=True, n_threads=1)
    threads = select.kmedoids(X, 4, certify=True, n_threads=3)
    assert points.bound == threads.bound
    D = ref.euclidean_distances(X)
    given = select.kmedoids(D, 4, metric="precomputed", certify=True, init=points.medoids)
    assert given.bound == pytest.approx(points.bound, rel=1e-3)
    assert 0 <= points.gap < 0.1
    optimum = select.kmedoids(X, 4, exact=True)
    assert points.bound <= optimum.cost * (1 + 1e-6)
    assert optimum.cost <= points.cost * (1 + 1e-6)


@given(
    st.integers(2, 8).flatmap(
        lambda n: st.tuples(
            st.lists(st.integers(-3, 3), min_size=2 * n, max_size=2 * n),
            st.lists(st.sampled_from([0.0, 1.0, 2.0, 1e9]), min_size=n, max_size=n),
            st.integers(1, n),
        )
    )
)
@settings(max_examples=200, deadline=None)
def test_no_bound_is_above_the_optimum(case: tuple[list[int], list[float], int]) -> None:
    coordinates, weights, k = case
    X, w = np.reshape(coordinates, (-1, 2)).astype(float), np.array(weights)
    optimum = ref.kmedoids_optimum(ref.euclidean_distances(X), w, k)
    found = select.kmedoids(X, k, weights=w, certify=True)
    assert 0 <= found.bound <= optimum * (1 + 1e-13)
    assert 0 <= found.gap <= 1


def test_groups_that_are_never_sampled_are_certified() -> None:
    """Up to 128 points, whatever the size of samples."""
    X = np.random.default_rng(0).normal(size=(129, 2))
    for n in (100, 128):
        sampled = select.kmedoids(X[:n], 3, sample_size=50, certify=True)
        plain = select.kmedoids(X[:n], 3, certify=True)
        assert sampled.medoids.tolist() == plain.medoids.tolist()
        assert (sampled.cost, sampled.bound, sampled.gap) == (plain.cost, plain.bound, plain.gap)
    with pytest.raises(ValueError, match="certify: expected at most 128 points, got 129"):
        select.kmedoids(X, 3, sample_size=50, certify=True)


def test_a_solver_that_gives_up_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    given_up = optimize.OptimizeResult(x=None, status=1, message="time limit")
    monkeypatch.setattr(optimize, "milp", lambda *args, **options: given_up)
    monkeypatch.setattr(_certificate, "_PROVEN", -1.0)  # so that every bound leaves something open
    X = np.random.default_rng(1).normal(size=(32, 2))
    with pytest.raises(RuntimeError, match="the solver gave up"):
        select.kmedoids(X, 7, exact=True)


def test_what_cannot_be_certified_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    X = np.random.default_rng(0).normal(size=(200, 2))
    with pytest.raises(
        ValueError, match=r"certify: expected at most 150 points, got 200; sample_size"
    ):
        select.kmedoids(X, 2, sample_size=150, certify=True)
    with pytest.raises(ValueError, match=r"exact: expected at most 150 points in group 1, got 160"):
        select.kmedoids(X, 2, sample_size=150, exact=True, offsets=[0, 40, 200])
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    for call in (
        lambda: select.kmedoids(X, 2, exact=True),
        lambda: select.opt_select(X, X[:, 0], 2, exact=True),
    ):
        with pytest.raises(ImportError, match=r"exact=True needs scipy: pip install .*\[exact\]"):
            call()
    select.kmedoids(X, 2, certify=True)  # needs no solver


def test_the_bound_of_large_float32_groups_is_of_exact_distances() -> None:
    for seed in range(60):  # in about 9, float32 distances give a bound above the cost of a set
        rng = np.random.default_rng(seed)
        X = (rng.normal(size=(132, 2)) @ rng.normal(size=(2, 40))).astype(np.float32)
        rewards = rng.random(132)
        found = select.opt_select(X, rewards, k=4, n_init=1, search="eager", certify=True)
        better = select.opt_select(X, rewards, k=4, n_init=60)
        assert found.bound <= better.cost * (1 + 1e-13)


def spread_problem(seed: int) -> tuple[np.ndarray, np.ndarray, int, dict]:
    """Weights, points or distances over many decades."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 10))
    k = int(rng.integers(1, min(4, n - 1) + 1))
    X, w, options = rng.normal(size=(n, 2)), np.ones(n), {}
    kind = seed % 6
    if kind in (0, 2):
        w = 10.0 ** rng.integers(-30, 31, n)
    if kind in (1, 2):
        X = X * 10.0 ** rng.integers(-30, 31, (n, 1))
    if kind == 3:
        X, w = np.round(X), 10.0 ** rng.integers(-12, 13, n)
    if kind == 4:
        X, w = X * 1e-300, 10.0 ** rng.integers(-5, 6, n)
    if kind == 5:
        X = 10.0 ** rng.uniform(-30, 30, (n, n))
        X = np.minimum(X, X.T)
        np.fill_diagonal(X, 0)
        options = {"metric": "precomputed"}
    return X, w, k, options


@pytest.mark.parametrize("how", ["certify", "exact"])
def test_no_gap_of_zero_is_claimed_that_brute_force_disproves(how: str) -> None:
    pytest.importorskip("scipy")
    for seed in range(72):
        X, w, k, options = spread_problem(seed)
        D = X if options else ref.euclidean_distances(X)
        n = len(D)
        products = [[Fraction(w[i]) * Fraction(D[i, j]) for j in range(n)] for i in range(n)]

        def cost(medoids: tuple, rows: list = products) -> Fraction:
            return sum(min(row[j] for j in medoids) for row in rows)

        optimum = min(cost(s) for s in combinations(range(n), k))
        found = select.kmedoids(X, k, weights=w, seed=seed, **{how: True}, **options)
        true = cost(tuple(found.medoids.tolist()))
        assert abs(Fraction(found.cost) - true) <= true * Fraction(1e-11)
        assert Fraction(found.bound) <= optimum * Fraction(1 + 1e-9)
        if found.gap < 1e-9:
            assert true <= optimum * Fraction(1 + 2e-9)
        if how == "exact":
            assert found.gap == 0


def test_bounds_by_duals_hold_whatever_the_solver_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Duals that are a little or entirely wrong lower the bound; they never lift it."""
    optimize = pytest.importorskip("scipy.optimize")
    solve = optimize.linprog
    rng = np.random.default_rng(0)
    for seed in range(12):
        costs = rng.random((9, 7))
        cheapest = min(costs[:, list(s)].min(axis=1).sum() for s in combinations(range(7), 3))
        unit = costs / (cheapest * (1.2 if seed % 3 == 0 else 1))

        def off(*args: Any, noise: float = 10.0 ** -(seed % 6), **options: Any) -> Any:
            solved = solve(*args, **options)
            solved.eqlin.marginals += noise * rng.normal(size=len(solved.eqlin.marginals))
            return solved

        monkeypatch.setattr(optimize, "linprog", off)
        bound, found = lower_bound(unit, 3)
        least = cheapest / (cheapest * (1.2 if seed % 3 == 0 else 1))
        assert bound <= least * (1 + 1e-9)
        if seed % 3 == 0:
            assert found is not None
            assert unit[:, found].min(axis=1).sum() == pytest.approx(least)
