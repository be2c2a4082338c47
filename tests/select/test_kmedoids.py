"""k-medoids against brute force, AMPO's Appendix E, and an independent implementation."""

import itertools

import kmedoids as independent
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfast import select
from pyfast.select import reference as ref

SEARCHES = ["best", "eager"]


def problem(seed: int, n: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Points in the plane with the weights and the ties that `kind` names."""
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
    return X, w


KINDS = ["plain", "ties", "duplicates", "zero weights", "huge weights"]


def assert_local_optimum(D: np.ndarray, w: np.ndarray, medoids: np.ndarray) -> None:
    now = ref.cost(D, w, list(medoids))
    for out in medoids:
        for new in set(range(len(D))) - set(medoids.tolist()):
            swapped = [new if m == out else int(m) for m in medoids]
            assert ref.cost(D, w, swapped) >= now - 1e-11 * now


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("search", SEARCHES)
def test_small_problems_against_all_subsets(kind: str, search: str) -> None:
    for seed in range(12):
        n, k = 4 + seed % 6, 1 + seed % 4
        X, w = problem(seed, n, kind)
        D = ref.euclidean_distances(X)
        optimum = ref.kmedoids_optimum(D, w, k)
        one = select.kmedoids(X, k, weights=w, search=search, seed=seed)
        many = select.kmedoids(X, k, weights=w, search=search, seed=seed, n_init=60)
        assert len(set(one.medoids.tolist())) == k
        assert_local_optimum(D, w, one.medoids)
        assert one.cost == pytest.approx(ref.cost(D, w, list(one.medoids)), rel=1e-12, abs=1e-300)
        assert optimum * (1 - 1e-12) <= one.cost <= 5 * optimum + 1e-300
        # 60 starts of at most C(9, 4) = 126 subsets: the optimum's basin is always hit here.
        assert many.cost == pytest.approx(optimum, rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("kind", ["plain", "duplicates", "zero weights", "huge weights"])
def test_best_visits_the_sets_of_appendix_e(kind: str) -> None:
    for seed in range(40):
        n, k = 5 + seed % 20, 1 + seed % 5
        X, w = problem(seed, n, kind)
        start = ref.random_subset(n, k, seed)
        visited = ref.kmedoids_best(ref.euclidean_distances(X), w, start)
        found = select.kmedoids(X, k, weights=w, init=start, search="best")
        assert found.medoids.tolist() == visited[-1]
        assert found.n_swaps == len(visited) - 1
        # Every set on the way, not the last alone: starting from the i-th leaves i swaps fewer.
        for i, middle in enumerate(visited):
            again = select.kmedoids(X, k, weights=w, init=middle, search="best")
            assert again.medoids.tolist() == visited[-1]
            assert again.n_swaps == len(visited) - 1 - i


def test_best_breaks_exact_ties_in_appendix_e_order() -> None:
    """Whole distances and weights make every sum exact, so that equal swaps are really equal."""
    rng = np.random.default_rng(0)
    ties = 0
    for seed in range(150):
        n, k = 4 + seed % 9, 2 + seed % 3
        D = rng.integers(0, 4, size=(n, n)).astype(float)
        D = np.triu(D, 1) + np.triu(D, 1).T
        w = rng.integers(0, 3, n).astype(float)
        start = ref.random_subset(n, k, seed)
        visited = ref.kmedoids_best(D, w, start)
        found = select.kmedoids(D, k, metric="precomputed", weights=w, init=start, search="best")
        assert found.medoids.tolist() == visited[-1]
        assert found.n_swaps == len(visited) - 1
        now = ref.cost(D, w, start)
        gains = [
            now - ref.cost(D, w, [j for j in start if j != out] + [new])
            for out in start
            for new in range(n)
            if new not in start
        ]
        ties += len(gains) > 0 and gains.count(max(gains)) > 1
    assert ties > 30


@pytest.mark.parametrize("kind", KINDS)
def test_eager_follows_the_reference(kind: str) -> None:
    for seed in range(20):
        n, k = 6 + seed % 20, 2 + seed % 5
        X, w = problem(seed, n, "plain" if kind == "ties" else kind)
        D = ref.euclidean_distances(X)
        if kind == "ties":
            D, w = np.round(D * 2), np.ones(n)
        start = ref.random_subset(n, k, seed)
        found = select.kmedoids(D, k, metric="precomputed", weights=w, init=start)
        assert found.medoids.tolist() == ref.kmedoids_eager(D, w, start)


def test_cost_never_above_an_independent_fasterpam_from_the_same_start() -> None:
    for seed in range(60):
        rng = np.random.default_rng(seed)
        n, k = int(rng.integers(10, 120)), int(rng.integers(2, 9))
        X, w = rng.normal(size=(n, 3)), rng.exponential(size=n)
        D = ref.euclidean_distances(X)
        start = ref.random_subset(n, k, seed)
        # That package reads D[point, candidate]: weights belong to the rows.
        theirs = independent.fasterpam(D * w[:, None], np.array(start, dtype=np.uint64), n_cpu=1)
        ours = select.kmedoids(D, k, metric="precomputed", weights=w, init=start)
        assert ours.cost <= theirs.loss * (1 + 1e-12)


def test_greedy_start_is_build() -> None:
    X, w = problem(3, 20, "plain")
    D = ref.euclidean_distances(X)
    start = ref.greedy_start(D, w, 5)
    a = select.kmedoids(X, 5, weights=w, init="greedy", search="best")
    assert a.medoids.tolist() == ref.kmedoids_best(D, w, start)[-1]
    more = select.kmedoids(X, 5, weights=w, init="greedy", n_init=20)
    assert more.cost <= a.cost


def test_random_start_is_the_documented_subset() -> None:
    X, w = problem(4, 25, "plain")
    D = ref.euclidean_distances(X)
    for seed in (0, 1, 2**64 - 1):
        found = select.kmedoids(X, 4, weights=w, seed=seed, search="best")
        visited = ref.kmedoids_best(D, w, ref.random_subset(25, 4, seed))
        assert found.medoids.tolist() == visited[-1]


def test_labels_name_the_nearest_medoid() -> None:
    X, w = problem(5, 30, "duplicates")
    found = select.kmedoids(X, 4, weights=w)
    D = ref.euclidean_distances(X)[:, found.medoids]
    assert found.labels.tolist() == D.argmin(axis=1).tolist()


@given(
    st.integers(1, 9).flatmap(
        lambda n: st.tuples(
            st.lists(st.integers(-3, 3), min_size=2 * n, max_size=2 * n),
            st.lists(st.integers(0, 3), min_size=n, max_size=n),
            st.integers(1, n),
            st.sampled_from(SEARCHES),
            st.integers(0, 2**64 - 1),
        )
    )
)
@settings(max_examples=300, deadline=None)
def test_any_small_grid(case: tuple[list[int], list[int], int, str, int]) -> None:
    coordinates, weights, k, search, seed = case
    X, w = np.reshape(coordinates, (-1, 2)).astype(float), np.array(weights, float)
    D = ref.euclidean_distances(X)
    found = select.kmedoids(X, k, weights=w, search=search, seed=seed)
    assert len(set(found.medoids.tolist())) == k
    assert found.medoids.tolist() == sorted(found.medoids.tolist())
    assert_local_optimum(D, w, found.medoids)
    assert found.cost == pytest.approx(ref.cost(D, w, list(found.medoids)), rel=1e-12, abs=1e-300)
    if k == len(X):
        assert found.cost == 0


@pytest.mark.parametrize("search", SEARCHES)
def test_same_answer_for_every_layout_type_and_thread_count(search: str) -> None:
    rng = np.random.default_rng(1)
    X = rng.integers(-50, 50, size=(6, 17, 5)).astype(np.float64)  # float32 holds them exactly
    w = rng.integers(1, 9, size=(6, 17)).astype(np.float64)
    expected = select.kmedoids(X, 4, weights=w, search=search, n_init=3, n_threads=1)
    read_only = X.copy()
    read_only.flags.writeable = False
    every_other = np.repeat(X, 2, axis=1)[:, ::2]
    for data in (
        X,
        np.asfortranarray(X),
        every_other,
        read_only,
        X.astype(">f8"),
        X.astype(np.int32),
        X.tolist(),
    ):
        for threads in (1, 2, 5):
            got = select.kmedoids(data, 4, weights=w, search=search, n_init=3, n_threads=threads)
            assert (got.medoids == expected.medoids).all()
            assert (got.labels == expected.labels).all()
            assert (got.cost == expected.cost).all()
    for b in range(6):
        one = select.kmedoids(X[b], 4, weights=w[b], search=search, n_init=3)
        assert (one.medoids == expected.medoids[b]).all()
        assert one.cost == expected.cost[b]
        assert (one.labels == expected.labels[b]).all()
    narrow = select.kmedoids(X.astype(np.float32), 4, weights=w, search=search, n_init=3)
    assert (narrow.medoids == expected.medoids).all()


@pytest.mark.parametrize("metric", ["euclidean", "precomputed"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_short_way_for_plain_calls_is_the_long_one(metric: str, dtype: type) -> None:
    for seed in range(20):
        X, _ = problem(seed, 3 + seed * 6, "plain")
        data = (X if metric == "euclidean" else ref.euclidean_distances(X)).astype(dtype)
        if metric == "precomputed":
            data = np.triu(data) + np.triu(data).T
        k = 1 + seed % 3
        for init in ("random", "greedy", np.arange(k)):
            for search in SEARCHES:
                short = select.kmedoids(data, k, metric=metric, init=init, search=search, n_init=2)
                long = select.kmedoids(
                    data, k, metric=metric, init=init, search=search, n_init=2, n_threads=1
                )
                assert (short.medoids == long.medoids).all()
                assert (short.labels == long.labels).all()
                assert (short.cost, short.n_swaps, short.n_passes) == (
                    long.cost,
                    long.n_swaps,
                    long.n_passes,
                )
                assert [type(v) for v in vars(short).values()] == [
                    type(v) for v in vars(long).values()
                ]


@pytest.mark.parametrize("kind", KINDS)
def test_eager_follows_the_reference_on_more_points_than_fit_the_small_search(kind: str) -> None:
    X, w = problem(5, 140, "plain" if kind == "ties" else kind)
    D = ref.euclidean_distances(X)
    if kind == "ties":
        D, w = np.round(D * 2), np.ones(140)
    start = ref.random_subset(140, 4, 5)
    found = select.kmedoids(D, 4, metric="precomputed", weights=w, init=start)
    assert found.medoids.tolist() == ref.kmedoids_eager(D, w, start)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_threads_look_ahead_without_changing_the_swaps(dtype: type) -> None:
    rng = np.random.default_rng(0)
    X, w = rng.normal(size=(2500, 3)), rng.exponential(size=2500)
    D = np.sqrt(((X[:, None] - X) ** 2).sum(axis=2)).astype(dtype)
    runs = [
        select.kmedoids(D, 6, metric="precomputed", weights=w, n_threads=threads)
        for threads in (1, 2, 5)
    ]
    theirs = independent.fasterpam(
        D * w[:, None].astype(dtype),
        np.array(ref.random_subset(2500, 6, 0), dtype=np.uint64),
        n_cpu=1,
    )
    assert runs[0].cost <= theirs.loss * (1 + 1e-6)
    for run in runs[1:]:
        assert (run.medoids == runs[0].medoids).all()
        assert (run.cost, run.n_swaps, run.n_passes) == (
            runs[0].cost,
            runs[0].n_swaps,
            runs[0].n_passes,
        )


@pytest.mark.parametrize("search", SEARCHES)
def test_more_points_than_fit_the_small_search(search: str) -> None:
    for seed, n in enumerate((127, 128, 129, 150)):
        X, w = problem(seed, n, "plain")
        found = select.kmedoids(X, 4, weights=w, search=search, seed=seed)
        D = ref.euclidean_distances(X)
        assert_local_optimum(D, w, found.medoids)
        assert found.cost == pytest.approx(ref.cost(D, w, list(found.medoids)), rel=1e-12)


def test_ragged_groups_equal_single_calls() -> None:
    rng = np.random.default_rng(2)
    sizes = [3, 30, 4, 11]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    X, w = rng.normal(size=(sum(sizes), 4)), rng.random(sum(sizes))
    got = select.kmedoids(X, 3, weights=w, offsets=offsets)
    blocks = [ref.euclidean_distances(X[a:b]) for a, b in itertools.pairwise(offsets)]
    flat = np.concatenate([block.reshape(-1) for block in blocks])
    given = select.kmedoids(flat, 3, weights=w, offsets=offsets, metric="precomputed")
    assert got.medoids.shape == (4, 3)
    assert got.labels.shape == (sum(sizes),)
    for b in range(4):
        rows = slice(offsets[b], offsets[b + 1])
        one = select.kmedoids(X[rows], 3, weights=w[rows])
        assert (got.medoids[b] == one.medoids).all()
        assert (got.labels[rows] == one.labels).all()
        assert (given.medoids[b] == one.medoids).all()


def test_torch_tensors_are_taken_as_they_are() -> None:
    torch = pytest.importorskip("torch")
    X = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    expected = select.kmedoids(X, 3)
    for tensor in (torch.from_numpy(X), torch.from_numpy(X.T.copy()).T, torch.from_numpy(X).half()):
        got = select.kmedoids(tensor, 3)
        assert isinstance(got.medoids, np.ndarray)
        if tensor.dtype == torch.float32:
            assert (got.medoids == expected.medoids).all()


def test_result_is_frozen() -> None:
    result = select.kmedoids([[0.0], [1.0]], 1)
    with pytest.raises(AttributeError):
        result.cost = 0.0  # type: ignore[misc]
    assert isinstance(result.cost, float)
    assert isinstance(result.n_swaps, int)
