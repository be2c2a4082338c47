"""Opt-Select, Coreset, Bottom-k and random."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from pyfast import select
from pyfast.select import reference as ref


def group(seed: int, n: int = 32, d: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng.random(n)


def appendix_e_objective(embeddings: np.ndarray, rewards: np.ndarray):
    """The paper's setting, from its text: pool, unit-scaled distances, weights."""
    scaled = (rewards - rewards.min()) / (rewards.max() - rewards.min())
    top = int(np.argmax(scaled))
    pool = [i for i in range(len(rewards)) if i != top]
    D = cdist(embeddings[pool], embeddings[pool])
    return top, pool, D / D.max(), np.exp(scaled[pool].mean() - scaled[pool])


@pytest.mark.parametrize("seed", range(15))
def test_opt_select_solves_appendix_e(seed: int) -> None:
    X, r = group(seed, n=10 + seed)
    top, pool, D, w = appendix_e_objective(X, r)
    start = ref.random_subset(len(pool), 4, seed)
    trajectory = ref.kmedoids_best(D, w, start)
    got = select.opt_select(X, r, k=4, search="best", n_init=1, seed=seed)
    assert got.positive == top
    assert got.negatives.tolist() == [pool[j] for j in trajectory[-1]]
    assert got.cost == pytest.approx(ref.cost(D, w, trajectory[-1]), rel=1e-12)
    assert ref.opt_select(X, r, start) == (top, got.negatives.tolist())


def high_dimensional(seed: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """A group in enough dimensions for float distances to run ahead, and hard cases for them."""
    rng = np.random.default_rng(seed)
    n, d = 12 + seed % 40, (33, 64, 200, 1100)[seed % 4]
    X = rng.normal(size=(n, d))
    if kind == "latent":
        X = rng.normal(size=(n, 2)) @ rng.normal(size=(2, d))
    elif kind == "far from the origin":
        X = X * 1e-3 + 1e3
    elif kind == "duplicates":
        X = X[rng.integers(0, 5, n)]
    elif kind == "close pairs":
        X[n // 2 :] = X[: n - n // 2] + 1e-4 * rng.normal(size=(n - n // 2, d))
    elif kind == "simplex":
        X = np.eye(max(n, d))[:n, :d] if n <= d else X
    elif kind == "huge":
        X = X * 1e60
    return X, rng.random(n)


@pytest.mark.parametrize(
    "kind",
    [
        "plain",
        "latent",
        "far from the origin",
        "duplicates",
        "close pairs",
        "simplex",
        "huge",
    ],
)
@pytest.mark.parametrize("search", ["eager", "best"])
def test_float_distances_ahead_of_exact_ones_leave_no_trace(kind: str, search: str) -> None:
    for seed in range(16):
        X, r = high_dimensional(seed, kind)
        if kind != "huge":
            narrow = X.astype(np.float32)
            exact = narrow.astype(np.float64)
            same = select.opt_select(narrow, r, k=5, n_init=3, seed=seed, search=search)
            wide = select.opt_select(exact, r, k=5, n_init=3, seed=seed, search=search)
            assert (same.negatives == wide.negatives).all()
            assert same.cost == wide.cost
            check_local_optimum(exact, r, same)
        got = select.opt_select(X, r, k=5, n_init=3, seed=seed, search=search)
        check_local_optimum(X, r, got)
        if search == "best" and kind in ("plain", "latent"):
            _, pool, D, w = appendix_e_objective(X, r)
            one = select.opt_select(X, r, k=5, n_init=1, seed=seed, search=search)
            visited = ref.kmedoids_best(D, w, ref.random_subset(len(pool), 5, seed))
            assert one.negatives.tolist() == [pool[j] for j in visited[-1]]


def few_dimensions(seed: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """A group in too few dimensions for float distances to run ahead."""
    rng = np.random.default_rng(seed)
    n, d = 12 + seed % 30, (2, 5, 20)[seed % 3]
    X = rng.normal(size=(n, d))
    if kind in ("grid", "nearly a grid"):  # swaps that cost the same, and that nearly do
        X = rng.integers(0, 4, (n, d)).astype(float)
        r = rng.integers(0, 3, n).astype(float)
        if kind == "nearly a grid":
            X += 1e-6 * rng.normal(size=(n, d))
            r += 1e-7 * rng.normal(size=n)
        return X, r
    if kind == "duplicates":
        X = X[rng.integers(0, 5, n)]
    elif kind == "far from the origin":
        X = X * 1e-3 + 1e3
    elif kind == "tiny":
        X = X * 1e-29
    elif kind == "some tiny":
        X[n // 2 :] *= 1e-20
    return X, rng.random(n)


@pytest.mark.parametrize(
    "kind",
    ["plain", "grid", "nearly a grid", "duplicates", "far from the origin", "tiny", "some tiny"],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_best_swaps_with_float_distances_ahead_are_those_of_exact_ones(
    kind: str, dtype: type
) -> None:
    """Zeros behind the rows change no exact distance, but let float distances run ahead."""
    for seed in range(24):
        X, r = few_dimensions(seed, kind)
        X = X.astype(dtype)
        wide = np.hstack([X, np.zeros((len(X), 40), dtype)])
        for cover_top in (False, True):
            settings = {"k": 5, "n_init": 8, "seed": seed, "cover_top": cover_top}
            exact = select.opt_select(X, r, search="best", **settings)
            ahead = select.opt_select(wide, r, search="best", **settings)
            assert ahead.cost == pytest.approx(exact.cost, rel=1e-12)
            if kind != "duplicates":  # where equal sets have several names
                assert ahead.negatives.tolist() == exact.negatives.tolist()
            one = {**settings, "n_init": 1}
            exact = select.opt_select(X, r, search="best", **one)
            ahead = select.opt_select(wide, r, search="best", **one)
            assert ahead.negatives.tolist() == exact.negatives.tolist()


def large(seed: int, kind: str, n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """A group of more responses than the exact search of small ones is made for."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    if kind == "latent":
        X = rng.normal(size=(n, 2)) @ rng.normal(size=(2, d))
    elif kind == "duplicates":
        X = X[rng.integers(0, n // 3, n)]
    elif kind == "far from the origin":
        X = X * 1e-3 + 1e3
    elif kind == "corners":  # swaps that cost the same
        X = rng.integers(0, 2, (n, d)).astype(float)
        return X, rng.integers(0, 3, n).astype(float)
    return X, rng.random(n)


@pytest.mark.parametrize(
    "kind", ["plain", "latent", "duplicates", "far from the origin", "corners"]
)
@pytest.mark.parametrize(("n", "d"), [(130, 40), (192, 100), (258, 33), (514, 384)])
def test_large_groups_are_those_of_the_search_for_given_distances(
    kind: str, n: int, d: int
) -> None:
    for seed in range(3):
        X, r = large(seed, kind, n, d)
        top, pool, D, w = appendix_e_objective(X, r)
        problem = {"X": D, "k": 6, "weights": w, "metric": "precomputed", "search": "best"}
        start = np.array(ref.random_subset(len(pool), 6, seed))
        want = select.kmedoids(**problem, init=start)
        got = select.opt_select(X, r, k=6, n_init=1, seed=seed, search="best")
        assert got.positive == top
        assert got.negatives.tolist() == [pool[j] for j in want.medoids]
        assert got.cost == pytest.approx(want.cost, rel=1e-9)
        # Eager swaps may go another way where two nearly tie, but to a local optimum.
        eager = select.opt_select(X, r, k=6, n_init=2, seed=seed, search="eager")
        chosen = np.array([pool.index(i) for i in eager.negatives])
        again = select.kmedoids(**problem, init=chosen)
        assert again.n_swaps == 0 or again.cost == pytest.approx(eager.cost, rel=1e-9)
        assert eager.cost == pytest.approx(ref.cost(D, w, chosen.tolist()), rel=1e-9)


@pytest.mark.parametrize("search", ["eager", "best"])
def test_large_groups_are_the_same_for_every_thread_count_layout_and_type(search: str) -> None:
    X, r = large(0, "latent", 700, 384)
    X = X.astype(np.float32)
    one = select.opt_select(X, r, k=7, n_init=2, search=search, n_threads=1)
    for same in (X, X.astype(np.float64), np.asfortranarray(X), np.repeat(X, 2, axis=0)[::2]):
        for threads in (1, 2, 3):
            got = select.opt_select(same, r, k=7, n_init=2, search=search, n_threads=threads)
            assert got.negatives.tolist() == one.negatives.tolist()
            assert got.cost == one.cost


@pytest.mark.parametrize("level", ["baseline", "avx2", "avx512"])
def test_same_picks_at_every_simd_level(run_python, monkeypatch, level: str) -> None:
    code = """
import numpy as np
from pyfast import select
rng = np.random.default_rng(0)
for n, d in ((9, 3), (13, 40), (32, 384), (33, 100), (60, 1100), (150, 70)):
    plain, latent = rng.normal(size=(n, d)), rng.normal(size=(n, 2)) @ rng.normal(size=(2, d))
    ties = plain[rng.integers(0, 9, n)] + 1e-6 * rng.normal(size=(n, d))
    r = rng.integers(0, 5, n).astype(float)
    for X in (plain, latent, ties, plain + 1e3, plain.astype(np.float32)):
        for search in ("best", "eager"):
            s = select.opt_select(X, r, 5, search=search)
            print(s.negatives.tolist(), s.cost.hex())
        s = select.coreset(X, r, 5, n_init=2)
        print(s.negatives.tolist(), s.cost.hex())
"""
    expected = run_python(code)
    monkeypatch.setenv("PYFAST_SIMD", level)
    try:
        found = run_python(code)
    except AssertionError as error:
        if "PYFAST_SIMD: expected a level of this machine" not in str(error):
            raise
        pytest.skip(f"no {level} here")
    assert found == expected


def check_local_optimum(X: np.ndarray, r: np.ndarray, got: select.GroupSelection) -> None:
    top, pool, D, w = appendix_e_objective(X, r)
    # cdist takes differences too, so it is exact enough to judge.
    chosen = [pool.index(i) for i in got.negatives]
    assert got.positive == top
    assert got.cost == pytest.approx(ref.cost(D, w, chosen), rel=1e-9)
    for out in chosen:
        for new in set(range(len(pool))) - set(chosen):
            swapped = [new if j == out else j for j in chosen]
            assert ref.cost(D, w, swapped) >= got.cost * (1 - 1e-9)


def test_ten_starts_nearly_always_find_the_optimum_of_hard_groups() -> None:
    optimal = 0
    for seed in range(20):
        X, r = group(seed, n=14, d=2)
        _, _, D, w = appendix_e_objective(X, r)
        got = select.opt_select(X, r, k=4)
        optimal += got.cost <= ref.kmedoids_optimum(D, w, 4) * (1 + 1e-12)
    assert optimal >= 19


def test_cover_top_sums_over_all_responses() -> None:
    X, r = group(3, n=12)
    got = select.opt_select(X, r, k=3, cover_top=True, n_init=50)
    scaled = (r - r.min()) / (r.max() - r.min())
    D = cdist(X, X)
    D /= D.max()
    w = np.exp(scaled.mean() - scaled)
    top = int(np.argmax(r))
    pool = [i for i in range(12) if i != top]
    from itertools import combinations

    costs = {s: ref.cost(D, w, list(s)) for s in combinations(pool, 3)}
    assert tuple(got.negatives.tolist()) == min(costs, key=costs.__getitem__)
    assert got.cost == pytest.approx(min(costs.values()), rel=1e-12)


def test_coreset_follows_the_reference() -> None:
    for seed in range(15):
        X, r = group(seed, n=20 + seed)
        got = select.coreset(X, r, k=5, seed=seed)
        positive, negatives = ref.coreset(X, r, 5, seed)
        assert (got.positive, got.negatives.tolist()) == (positive, negatives)


@pytest.mark.parametrize("kind", ["plain", "latent", "duplicates", "far from the origin"])
def test_coreset_on_squared_distances_is_coreset_on_coordinates(kind: str) -> None:
    """Small groups never touch a centre; the inertia must still be that of the means."""
    for seed in range(12):
        X, r = high_dimensional(seed, kind)
        X = X.astype(np.float32).astype(np.float64)
        got = select.coreset(X, r, k=4, seed=seed)
        same = select.coreset(X.astype(np.float32), r, k=4, seed=seed)
        assert (same.negatives == got.negatives).all()
        assert same.cost == got.cost
        if kind != "duplicates":  # where points tie between centres
            assert (got.positive, got.negatives.tolist()) == ref.coreset(X, r, 4, seed)
        pool = np.delete(X, got.positive, axis=0)
        labels = np.array(ref.kmeans(pool, 4, seed))
        inertia = sum(
            ((pool[labels == c] - pool[labels == c].mean(axis=0)) ** 2).sum() for c in range(4)
        )
        assert got.cost == pytest.approx(inertia, rel=1e-9, abs=1e-9)


def test_kmeans_inertia_is_no_worse_than_scikit_learn_on_average() -> None:
    from sklearn.cluster import KMeans

    ours, theirs = [], []
    for seed in range(40):
        X, r = group(seed, n=32, d=8)
        pool = np.delete(X, np.argmax(r), axis=0)
        ours.append(select.coreset(X, r, k=7, seed=seed).cost)
        theirs.append(KMeans(7, n_init=1, random_state=seed).fit(pool).inertia_)
    # Paired over 40 groups; the margin is two standard errors of the difference.
    difference = np.array(ours) - np.array(theirs)
    assert difference.mean() <= 2 * difference.std() / np.sqrt(len(difference))


@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(
            st.lists(st.integers(0, 2), min_size=n, max_size=n),
            st.lists(st.integers(-2, 2), min_size=2 * n, max_size=2 * n),
            st.integers(1, 14),
        )
    )
)
@settings(max_examples=300, deadline=None)
def test_contract_of_all_three_on_ties_and_duplicates(case) -> None:
    rewards, coordinates, k = case
    r, X = np.array(rewards, float), np.reshape(coordinates, (-1, 2)).astype(float)
    n = len(r)
    for got in (
        select.opt_select(X, r, k=k),
        select.coreset(X, r, k=k),
        select.bottom_k(r, k=k, embeddings=X),
        select.bottom_k(r, k=k),
    ):
        chosen = got.negatives.tolist()
        assert got.positive == int(np.argmax(r))
        assert len(chosen) == len(set(chosen)) == min(k, n - 1)
        assert got.positive not in chosen
        assert all(0 <= i < n for i in chosen)


def test_bottom_k_follows_the_reference_on_ties() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        n = int(rng.integers(2, 25))
        r = rng.integers(0, 3, n).astype(float)
        X = rng.normal(size=(n, 3))
        X[rng.random(n) < 0.2] = 0
        for embeddings in (None, X):
            got = select.bottom_k(r, k=6, embeddings=embeddings)
            assert (got.positive, got.negatives.tolist()) == ref.bottom_k(r, 6, embeddings)


def test_bottom_k_takes_parallel_rows_by_index_and_rows_of_any_length() -> None:
    equal = np.array([1.0, 0, 0, 0, 0, 0])
    for seed in range(100):
        v, other = np.random.default_rng(seed).normal(size=(2, 16))
        rows = np.stack([other, v, 3 * v, 7 * v, 11 * v, -v])
        assert select.bottom_k(equal, k=4, embeddings=rows).negatives.tolist() == [1, 5, 2, 3]
        assert ref.bottom_k(equal, 4, rows) == (0, [1, 5, 2, 3])
    rows = np.array([[0.0, 1], [1, 0], [1, 1], [0, 1]])
    for scale in (1e-310, 1e-170, 1.0, 1e200):
        got = select.bottom_k(equal[:4], k=2, embeddings=scale * rows)
        assert got.negatives.tolist() == [1, 3] == ref.bottom_k(equal[:4], 2, scale * rows)[1]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_no_distance_meets_are_checked_too(bad: float) -> None:
    with pytest.raises(ValueError, match=r"embeddings: expected a finite number, got .* at row 1$"):
        select.opt_select([[1.0], [bad]], [1.0, 0.0], k=1)
    with pytest.raises(ValueError, match=r"embeddings: .* at group 1, row 1$"):
        select.opt_select(np.array([[[1.0], [2]], [[1], [bad]]]), [[1.0, 0], [1, 0]], k=1)
    features, logps = np.array([[0.0, 0], [1, 0], [1.1, 0], [0, 0.8]]), np.zeros(4)
    features[2, 1] = bad
    with pytest.raises(ValueError, match=r"features: .* at row 2, column 1$"):
        select.mass_dpo(features, logps, logps, preferred=2, k=2)


@pytest.mark.parametrize("name", ["opt_select", "coreset", "bottom_k"])
def test_batch_and_ragged_equal_single_calls(name: str) -> None:
    rng = np.random.default_rng(4)
    X, r = rng.normal(size=(5, 13, 4)), rng.random((5, 13))

    def call(X, r, **more):
        if name == "bottom_k":
            return select.bottom_k(r, k=4, embeddings=X, **more)
        return getattr(select, name)(X, r, k=4, **more)

    batch = call(X, r)
    assert batch.negatives.shape == (5, 4)
    assert batch.negative_offsets is None
    sizes = [13, 2, 1, 6]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    flat_X, flat_r = X.reshape(-1, 4)[: sum(sizes)], r.reshape(-1)[: sum(sizes)]
    for threads in (1, 3):
        ragged = call(flat_X, flat_r, offsets=offsets, n_threads=threads)
        assert np.diff(ragged.negative_offsets).tolist() == [4, 1, 0, 4]
        for b in range(4):
            rows = slice(offsets[b], offsets[b + 1])
            one = call(flat_X[rows], flat_r[rows])
            mine = slice(ragged.negative_offsets[b], ragged.negative_offsets[b + 1])
            assert ragged.positive[b] == one.positive
            assert (ragged.negatives[mine] == one.negatives).all()
            assert ragged.cost[b] == one.cost
    for b in range(5):
        one = call(X[b], r[b])
        assert batch.positive[b] == one.positive
        assert (batch.negatives[b] == one.negatives).all()


def test_equal_and_extreme_rewards() -> None:
    X, _ = group(0, n=8)
    for r in (np.full(8, 3.0), np.array([1e308, -1e308, 0, 0, 1, 2, 3, 4])):
        for got in (select.opt_select(X, r, k=3), select.coreset(X, r, k=3)):
            assert got.positive == 0
            assert len(set(got.negatives.tolist())) == 3
            assert np.isfinite(got.cost)


def test_random_is_the_documented_draw() -> None:
    for seed in (0, 5, 2**64 - 1):
        assert select.random(20, 6, seed=seed).indices.tolist() == sorted(
            ref.random_subset(20, 6, seed)
        )
    batch = select.random([20, 7, 6], 6, seed=5).indices
    for b, n in enumerate([20, 7, 6]):
        assert batch[b].tolist() == sorted(ref.random_subset(n, 6, 5, stream=b))


def test_random_of_very_many_takes_no_list_of_them() -> None:
    n = 2**32 - 1
    assert select.random(n, 5, seed=3).indices.tolist() == _sparse_subset(n, 5, 3)
    for n in (65_536, 65_537, 70_000):
        expected = sorted(ref.random_subset(n, 9, 1))
        assert select.random(n, 9, seed=1).indices.tolist() == expected == _sparse_subset(n, 9, 1)


def _sparse_subset(n: int, k: int, seed: int) -> list[int]:
    random, moved, drawn = ref.Random(seed, ref.SUBSET, 0), {}, []
    for i in range(k):
        j = i + random.below(n - i)
        drawn.append(moved.get(j, j))
        moved[j] = moved.get(i, i)
    return sorted(drawn)


def test_random_is_uniform() -> None:
    picks = select.random(np.full(20_000, 10), 3, seed=1).indices
    counts = np.bincount(picks.ravel(), minlength=10)
    expected = 20_000 * 3 / 10
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected * 0.7)


def test_philox_reference_and_native_agree_with_the_published_answer() -> None:
    from pyfast import _native

    key, counter = (0xA4093822, 0x299F31D0), (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    published = (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)
    assert ref.philox(counter, key) == published
    assert _native.philox(counter, key) == published


def printed_cost(X: np.ndarray, r: np.ndarray, chosen: tuple[int, ...], cover_top: bool) -> float:
    """Equation 8 with the weights of equation 6 as printed, of scores as they are."""
    top = int(np.argmax(r))
    points = [i for i in range(len(r)) if cover_top or i != top]
    mean = math.fsum(r[points]) / len(points)
    far = max(math.dist(X[i], X[j]) for i in points for j in points)
    near = {i: min(math.dist(X[i], X[j]) for j in chosen) / far for i in points}
    return math.fsum(math.exp(mean - r[i]) * near[i] for i in points)


@pytest.mark.parametrize("cover_top", [False, True])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 190.0])
def test_opt_select_of_unscaled_rewards_is_as_printed(scale: float, cover_top: bool) -> None:
    for seed in range(6):
        X, r = group(seed, n=9, d=2 if seed % 2 else 40)
        r = scale * (3 * r - 1) + (1e4 if seed % 3 == 0 else 0)
        options = {"cover_top": cover_top, "reward_scale": "none"}
        top = int(np.argmax(r))
        pool = [i for i in range(len(r)) if i != top]
        for search in ("best", "eager"):
            got = select.opt_select(X, r, 3, n_init=1, seed=seed, search=search, **options)
            start = ref.random_subset(len(pool), 3, seed)
            assert (got.positive, got.negatives.tolist()) == ref.opt_select(
                X, r, start, search, **options
            )
            truth = printed_cost(X, r, tuple(got.negatives), cover_top)
            assert got.cost == pytest.approx(truth, rel=1e-10)
        best = min(printed_cost(X, r, s, cover_top) for s in combinations(pool, 3))
        exact = select.opt_select(X, r, 3, exact=True, **options)
        assert exact.cost == pytest.approx(best, rel=1e-8)
        assert exact.cost == pytest.approx(printed_cost(X, r, tuple(exact.negatives), cover_top))
        bounded = select.opt_select(X, r, 3, certify=True, **options)
        assert bounded.bound <= best * (1 + 1e-10)


@pytest.mark.parametrize("cover_top", [False, True])
def test_opt_select_of_unscaled_rewards_in_batches(cover_top: bool) -> None:
    options = {"cover_top": cover_top, "reward_scale": "none", "certify": True}
    groups = [group(s, n=8) for s in range(5)]
    groups = [(X, 4.0 * s + 10.0 ** (s - 2) * r) for s, (X, r) in enumerate(groups)]
    X, r = (np.stack(part) for part in zip(*groups, strict=True))
    batch = select.opt_select(X, r, 3, **options)
    ragged = [(X[: 4 + s], r[: 4 + s]) for s, (X, r) in enumerate(groups[:4])]
    offsets = np.cumsum([0] + [len(r) for _, r in ragged])
    flat = select.opt_select(
        np.concatenate([X for X, _ in ragged]),
        np.concatenate([r for _, r in ragged]),
        3,
        offsets=offsets,
        **options,
    )
    for b in range(5):
        alone = select.opt_select(X[b], r[b], 3, **options)
        assert batch.negatives[b].tolist() == alone.negatives.tolist()
        assert (batch.cost[b], batch.bound[b]) == (alone.cost, alone.bound)
    for b, (points, scores) in enumerate(ragged):
        alone = select.opt_select(points, scores, 3, **options)
        own = flat.negatives[flat.negative_offsets[b] : flat.negative_offsets[b + 1]]
        assert own.tolist() == alone.negatives.tolist()
        assert (flat.cost[b], flat.bound[b]) == (alone.cost, alone.bound)


def test_opt_select_refuses_unscaled_rewards_whose_weights_leave_float64() -> None:
    X = np.arange(8.0).reshape(2, 4, 1)
    none = {"k": 1, "reward_scale": "none"}
    r = np.array([[0.0, 1, 2, 3], [9.0, 0, 1, 1796]])
    assert select.opt_select(X, r, **none).positive.tolist() == [3, 3]  # not in the pool's mean
    with pytest.raises(ValueError, match=r"reward_scale: .* got 1796.0 at group 1, row 3"):
        select.opt_select(X, r, cover_top=True, **none)
    with pytest.raises(ValueError, match=r"got 1796.0 at group 1, row 3"):
        select.opt_select(X.reshape(8, 1), r.ravel(), offsets=[0, 4, 8], cover_top=True, **none)
    with pytest.raises(ValueError, match=r"within 599 .* got 1796.0 at row 2"):
        select.opt_select(X[0], [1800.0, 0, 1796, 0], **none)  # the place counts the best one
    for far in (1e308, -1e308):
        with pytest.raises(ValueError, match="within 599"):
            select.opt_select(X[0], [1.1e308, far, -far, 0], **none)
    select.opt_select(X[0], [1e4, 599.0, -599.0, 0], **none)
    with pytest.raises(ValueError, match="reward_scale: expected one of 'minmax', 'none'"):
        select.opt_select(X[0], r[0], reward_scale="zscore")
