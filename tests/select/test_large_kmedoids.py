"""k-medoids of many points: bounds in bytes, blocked distances, samples with an exact polish."""

import numpy as np
import peak_memory
import pytest

from pyfast import select
from pyfast.select import reference as ref

KINDS = ["plain", "ties", "duplicates", "outliers", "zero weights", "huge weights"]


def problem(seed: int, n: int, kind: str, d: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X, w = rng.normal(size=(n, d)), rng.exponential(size=n)
    if kind == "ties":
        X, w = rng.integers(0, 4, size=(n, d)).astype(float), np.ones(n)
    elif kind == "duplicates":
        X[n // 3 :] = X[rng.integers(0, 5, n - n // 3)]
    elif kind == "outliers":
        X[:: n // 7] *= 1e6
    elif kind == "zero weights":
        w[rng.random(n) < 0.5] = 0
    elif kind == "huge weights":
        w = 10.0 ** rng.integers(-12, 13, n)
    return X, w


def distances(X: np.ndarray) -> np.ndarray:
    D = np.sqrt(((X[:, None] - X) ** 2).sum(axis=2))
    return np.maximum(D, D.T)


def has_improving_swap(D: np.ndarray, w: np.ndarray, medoids: np.ndarray, slack: float) -> bool:
    """All swaps with all candidates, one candidate at a time."""
    near = np.sort(D[:, medoids], axis=1)
    slot = D[:, medoids].argmin(axis=1)
    cost = w @ near[:, 0]
    for j in set(range(len(D))) - set(medoids.tolist()):
        kept = np.minimum(near[:, 0], D[:, j]) * w
        lost = np.minimum(near[:, 1], D[:, j]) * w - kept
        if kept.sum() + np.bincount(slot, lost, len(medoids)).min() < cost * (1 - slack):
            return True
    return False


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [4, 40])
def test_bounds_in_bytes_change_no_swap(kind: str, k: int, dtype: type) -> None:
    """1,100 points are enough for bounds; the reference has none."""
    n = 1100
    X, w = problem(1, n, kind)
    D = distances(np.round(X, 1) if kind == "ties" else X).astype(dtype)
    start = ref.random_subset(n, k, 1)
    found = select.kmedoids(D, k, metric="precomputed", weights=w, init=start)
    exact = D.astype(np.float64)
    if k == 4 and kind not in ("ties", "duplicates"):  # slow; equal swaps rounding decides
        assert found.medoids.tolist() == ref.kmedoids_eager(exact, w, start)
    assert not has_improving_swap(exact, w, found.medoids, 1e-11)
    assert found.cost == pytest.approx(ref.cost(exact, w, list(found.medoids)), rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_starts_share_their_bounds(dtype: type) -> None:
    """From poor starts and good ones, in which distances have other sizes."""
    X, w = problem(2, 1200, "outliers")
    D = distances(X).astype(dtype)
    best = select.kmedoids(D, 5, metric="precomputed", weights=w, init="greedy", n_init=4, seed=3)
    costs = [
        select.kmedoids(D, 5, metric="precomputed", weights=w, init=start).cost
        for start in [
            ref.greedy_start(D[:, :].astype(float), w, 5),
            *(ref.random_subset(1200, 5, 3, run) for run in (1, 2, 3)),
        ]
    ]
    assert best.cost == min(costs)
    threads = select.kmedoids(
        D, 5, metric="precomputed", weights=w, init="greedy", n_init=4, seed=3, n_threads=3
    )
    assert threads.medoids.tolist() == best.medoids.tolist()


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 128, 129, 200])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_bad_distance_is_found(n: int, dtype: type) -> None:
    rng = np.random.default_rng(n)
    D = rng.random((n, n)).astype(dtype)
    D = D + D.T
    D[0, 0] = 0
    select.kmedoids(D, 1, metric="precomputed", n_threads=1)
    near = D * (1 + 9e-6 * np.triu(np.ones((n, n)), 1)).astype(dtype)
    select.kmedoids(near, 1, metric="precomputed", n_threads=1)  # numpy.allclose says symmetric
    for _ in range(12):
        i, j = rng.integers(0, n, 2)
        for value in (np.nan, np.inf, -np.inf, -1e-30):
            bad = D.copy()
            bad[i, j] = value
            with pytest.raises(ValueError, match=r"X: expected a finite distance >= 0, got value"):
                select.kmedoids(bad, 1, metric="precomputed", n_threads=2)
        if i != j:
            bad = D.copy()
            bad[i, j] *= 1.0001
            with pytest.raises(ValueError, match=rf"at \[{min(i, j)}, {max(i, j)}\]"):
                select.kmedoids(bad, 1, metric="precomputed", n_threads=1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_distances_of_many_points(dtype: type) -> None:
    """The cost says what the distances were: of 300 points, which is more than two tiles."""
    X, w = problem(4, 300, "plain", d=50)
    X = (X + 100).astype(dtype)
    X[17] = X[250]  # no cancellation where a product of matrices would have some
    X[18] = X[251] * (1 + np.finfo(dtype).eps)
    found = select.kmedoids(X, 40, weights=w, n_init=3)
    D = ref.euclidean_distances(X)
    tolerance = 1e-6 if dtype == np.float32 else 1e-13
    assert found.cost == pytest.approx(ref.cost(D, w, list(found.medoids)), rel=tolerance)
    assert not has_improving_swap(D, w, found.medoids, 10 * tolerance)
    for threads in (2, 5):
        again = select.kmedoids(X, 40, weights=w, n_init=3, n_threads=threads)
        assert again.medoids.tolist() == found.medoids.tolist()
        assert again.cost == found.cost


CHILD = """
import numpy as np
from pyfast import select
rng = np.random.default_rng(0)
X, w = rng.normal(size=(1500, 20)), rng.exponential(size=1500)
for data in (X, X.astype(np.float32)):
    for options in ({}, {"sample_size": 300}, {"metric": "precomputed"}):
        if options.get("metric"):
            D = np.sqrt(((data[:, None, :4] - data[:, :4]) ** 2).sum(axis=2))
            data = np.maximum(D, D.T)
        found = select.kmedoids(data, 6, weights=w, **options)
        print(found.medoids.tolist(), found.cost.hex(), found.n_swaps)
print(select.kmedoids(X[:140], 4, certify=True).bound.hex())
"""


def test_every_simd_level_gives_the_same_answers(
    run_python, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {}
    for level in ("baseline", "avx2", "avx512"):
        monkeypatch.setenv("PYFAST_SIMD", level)
        code = CHILD
        try:
            answers[level] = run_python(code)
        except AssertionError as error:
            if "PYFAST_SIMD: expected a level of this machine" not in str(error):
                raise
    assert "baseline" in answers
    assert len(set(answers.values())) == 1


def test_equal_numbers_in_either_type_and_any_layout() -> None:
    """Whole numbers and few columns, so that float32 holds every square exactly."""
    X = np.random.default_rng(6).integers(0, 9, size=(400, 2)).astype(np.float64)
    expected = select.kmedoids(X, 7)
    for values in (X, X.astype(np.float32)):
        every_other = np.repeat(values, 2, axis=0)[::2]
        for data in (values, np.asfortranarray(values), every_other, values.astype(np.int32)):
            assert select.kmedoids(data, 7).medoids.tolist() == expected.medoids.tolist()
    assert select.kmedoids(X.tolist(), 7).medoids.tolist() == expected.medoids.tolist()


@pytest.mark.parametrize("kind", [*KINDS, "all weights zero", "one heavy point"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sampled_groups(kind: str, dtype: type) -> None:
    for seed in range(3):
        n, k = 700, (1, 5, 20)[seed]
        X, w = problem(seed, n, kind)
        if kind == "all weights zero":
            w = np.zeros(n)
        elif kind == "one heavy point":
            w[3] = 1e15
        X = X.astype(dtype)
        found = select.kmedoids(X, k, weights=w, sample_size=150, seed=seed, n_threads=1)
        assert len(set(found.medoids.tolist())) == k
        assert found.medoids.tolist() == sorted(found.medoids.tolist())
        D = np.sqrt(((X[:, None].astype(float) - X[found.medoids].astype(float)) ** 2).sum(axis=2))
        nearest = D[np.arange(n), found.labels]
        assert nearest == pytest.approx(D.min(axis=1), rel=1e-5)
        assert found.cost == pytest.approx(float(w @ nearest), rel=1e-6, abs=1e-300)
        for threads in (2, 5):
            again = select.kmedoids(X, k, weights=w, sample_size=150, seed=seed, n_threads=threads)
            assert again.medoids.tolist() == found.medoids.tolist()
            assert (again.cost, again.n_swaps) == (found.cost, found.n_swaps)
        assert (again.labels == found.labels).all()


def test_a_sample_comes_close_to_searching_all() -> None:
    ratios = []
    for seed in range(8):
        X, w = problem(seed, 2000, "plain")
        full = select.kmedoids(X, 10, weights=w, seed=seed)
        sampled = select.kmedoids(X, 10, weights=w, seed=seed, sample_size=400)
        assert select.kmedoids(X, 10, weights=w, seed=seed, sample_size=2000).cost == full.cost
        ratios.append(sampled.cost / full.cost)
    assert np.mean(ratios) < 1.01
    assert max(ratios) < 1.04


def test_sampled_groups_do_not_depend_on_their_batch() -> None:
    X, w = problem(7, 1500, "plain")
    offsets = [0, 100, 700, 1500]
    got = select.kmedoids(X, 3, weights=w, offsets=offsets, sample_size=200, n_threads=2)
    starts = np.array([[1, 2, 3], [599, 0, 7], [5, 6, 799]])
    given = select.kmedoids(X, 3, weights=w, offsets=offsets, sample_size=200, init=starts)
    for b in range(3):
        rows = slice(offsets[b], offsets[b + 1])
        one = select.kmedoids(X[rows], 3, weights=w[rows], sample_size=200)
        assert one.medoids.tolist() == got.medoids[b].tolist()
        assert one.labels.tolist() == got.labels[rows].tolist()
        one = select.kmedoids(X[rows], 3, weights=w[rows], sample_size=200, init=starts[b])
        assert one.medoids.tolist() == given.medoids[b].tolist()


def test_fewer_columns_than_medoids_still_give_k() -> None:
    X, w = problem(8, 300, "plain")
    found = select.kmedoids(X, 40, weights=w, sample_size=1)
    assert len(set(found.medoids.tolist())) == 40


def test_columns_are_checked() -> None:
    X = np.zeros((5, 2))
    for bad, error in ((0, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="sample_size: expected"):
            select.kmedoids(X, 2, sample_size=bad)
    with pytest.raises(ValueError, match="sample_size: expected None with precomputed distances"):
        select.kmedoids(np.zeros((5, 5)), 2, sample_size=3, metric="precomputed")


def test_an_overflow_names_points_of_the_group() -> None:
    X = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)
    X[290], X[291] = (3e38, 0), (-3e38, 0)
    weights = np.ones(300)
    weights[[290, 291]] = 1e9  # so that the sample has them
    with pytest.raises(ValueError, match="distance between points 290 and 291 overflows"):
        select.kmedoids(X, 2, weights=weights, sample_size=150)


MEMORY = """
import peak_memory
import numpy as np
from pyfast import select
n, d, k, m = {n}, {d}, {k}, {sample_size}
X = np.random.default_rng(0).random((n, d), np.float32)  # at once, or memory would have peaked
select.kmedoids(X[:1100, :8], 10)
before = peak_memory.reset()
select.kmedoids(X, k, sample_size=m, n_threads=1, init={init!r}, n_init=2, certify={certify})
print(peak_memory.peak() - before)
"""


@pytest.mark.parametrize(
    ("n", "d", "k", "sample_size", "init", "certify"),
    [
        (6000, 8, 10, 6000, "random", False),
        (3000, 8, 10, 3000, "random", True),
        (1100, 8000, 1000, 1100, "random", False),
        (4000, 8, 10, 4000, "greedy", False),
        (10_001, 4, 10, None, "random", False),
        (120_000, 16, 10, 3000, "random", False),
    ],
)
@peak_memory.MEASURED
def test_memory_stays_below_what_the_docstring_says(
    run_python, n: int, d: int, k: int, sample_size: int | None, init: str, certify: bool
) -> None:
    settings = {"n": n, "d": d, "k": k, "sample_size": sample_size, "init": init}
    used = int(run_python(MEMORY.format(certify=certify, **settings)))
    m = sample_size or 7000  # by default
    stated = m**2 + 4 * k * (m + d) + 200 * n
    if init == "greedy" or certify:
        stated += 4 * m**2
    if n > m:
        stated += (4 + 1) * 2 * k * n + 4 * k * d + 8 * m * (d + 25)
    assert used <= stated + 8e6  # the allocator's own


OPT_SELECT_MEMORY = """
import peak_memory
import numpy as np
from pyfast import select
rng = np.random.default_rng(0)
X, r = rng.random(({n}, {d}), np.{dtype}), rng.normal(size={n})
select.opt_select(X[:50], r[:50], k=5, certify=True)
before = peak_memory.reset()
select.opt_select(
    X, r, k={k}, init={init!r}, n_init=1, search="eager", certify={certify}, n_threads=1
)
print(peak_memory.peak() - before)
"""


@pytest.mark.parametrize(
    ("n", "d", "k", "dtype", "init", "certify"),
    [
        (1500, 64, 300, "float64", "random", False),  # on float32 distances first
        (1500, 8, 300, "float32", "random", False),
        (2500, 1000, 5, "float32", "random", False),
        (2500, 64, 5, "float32", "greedy", False),
        (1500, 640, 3, "float32", "random", True),
    ],
)
@peak_memory.MEASURED
def test_memory_of_opt_select_stays_below_what_the_docstring_says(
    run_python, n: int, d: int, k: int, dtype: str, init: str, certify: bool
) -> None:
    settings = {"n": n, "d": d, "k": k, "dtype": dtype, "init": init}
    used = int(run_python(OPT_SELECT_MEMORY.format(certify=certify, **settings)))
    stated = 200 * n + 8 * n * (n + d + 2 * k)
    if init == "random" and n <= 2048 and d >= 32:
        stated += 4 * n * (n + d + 4 * k)
    if init == "greedy" or n > 2048:
        stated += n**2 + 200 * n
    if certify:
        stated += np.dtype(dtype).itemsize * n * d
    assert used <= stated + 4e6  # the allocator's own
