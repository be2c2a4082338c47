"""Log-det selections of any scale against rational arithmetic: ids, times, money, near duplicates.

|v|^2 / gamma goes from 1e-40 to 1e300; a float64 sum has lost all of its digits from 1e16 on.
"""

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest

from pyfast import select
from pyfast.select import reference as ref

KINDS = [
    "offset",
    "columns",
    "rows",
    "duplicates",
    "line",
    "plane",
    "one-hot and ids",
    "opposite",
]
SIZES = [1e-20, 1.0, 1e3, 1e6, 1e8, 1e10, 1e12, 1e16, 1e20, 1e30, 1e60, 1e100, 1e149]


def design(rng: np.random.Generator, kind: str, size: float, n: int, d: int) -> np.ndarray:
    """Draw rows of which some are about `size` long, and what tells them apart is not."""
    V = rng.normal(size=(n, d))
    if kind == "offset":
        V[:, 0] += size
    elif kind == "columns":
        V *= size ** rng.uniform(0, 1, size=d)
    elif kind == "rows":
        V *= size ** rng.uniform(0, 1, size=(n, 1))
    elif kind == "duplicates":
        V[n // 2 :] = V[: n - n // 2]
        V *= size
    elif kind == "line":
        V = size * rng.normal(size=(n, 1)) @ rng.normal(size=(1, d)) + V
    elif kind == "plane":
        V = size * (
            rng.normal(size=(n, 2)) @ rng.normal(size=(2, d)) + 10.0 ** rng.uniform(-17, 0) * V
        )
    elif kind == "one-hot and ids":
        V = np.eye(d)[rng.integers(d, size=n)]
        V[:, -1] = np.floor(size * rng.random(n)) if size >= 1 else size
    elif kind == "opposite":
        V[1:] = -V[0] * (1 + rng.integers(1, 9, size=(n - 1, 1)) / 8)
        V = size * V + rng.integers(-3, 4, size=(n, d))
    return V


def assert_exactly(V: np.ndarray, found: select.LogDetResult, gamma: float, scale: float, old=None):
    picks, gains = ref.logdet_exact(V, len(found.indices), gamma, scale, old)
    assert found.indices.tolist() == picks
    np.testing.assert_allclose(found.gains, gains, rtol=1e-11, atol=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_picks_gains_and_logdet_are_those_of_rational_arithmetic(kind: str, size: float) -> None:
    for seed in range(3):
        rng = np.random.default_rng(seed)
        n, d = int(rng.integers(3, 11)), int(rng.integers(2, 6))
        k = int(rng.integers(2, min(n, 6) + 1))
        gamma, scale = 10.0 ** rng.uniform(-3, 1), 10.0 ** rng.uniform(-2, 1)
        V = design(rng, kind, size, n, d)
        found = select.logdet(V, k, gamma, scale=scale)
        assert_exactly(V, found, gamma, scale)
        empty = d * np.log(gamma)
        total = abs(empty) + found.gains.sum()
        assert abs(found.logdet - (empty + found.gains.sum())) <= 1e-14 * total
        if np.abs(V).max() < 1e38:
            narrow = V.astype(np.float32)
            expected = select.logdet(narrow.astype(np.float64), k, gamma, scale=scale)
            assert_exactly(narrow, expected, gamma, scale)
            for threads in (1, 3):
                same = select.logdet(narrow, k, gamma, scale=scale, n_threads=threads)
                assert (same.indices == expected.indices).all()
                assert (same.gains == expected.gains).all()


def test_nearly_parallel_rows() -> None:
    """All four are 1.7e9 long; as pairs they span areas from 1 to 5."""
    V = [[1.7e9, 0.0], [1.7e9, 1.0], [1.7e9, 2.0], [1.7e9, -3.0]]
    greedy = select.logdet(V, 2)  # the first is any of four that tie
    assert greedy.indices.tolist() == [0, 3]
    assert greedy.logdet == pytest.approx(44.72699166007216, rel=1e-14)
    exact = select.logdet(V, 2, exact=True)
    assert sorted(exact.indices.tolist()) == [2, 3]
    assert exact.logdet == pytest.approx(45.734632170535, rel=1e-14)


@pytest.mark.parametrize("size", [1.0, 1e2, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9])
def test_around_the_place_where_doubles_give_up(size: float) -> None:
    """Some problems are settled in doubles, some are not, many change over between two picks."""
    for seed in range(25):
        rng = np.random.default_rng(seed)
        n, d = int(rng.integers(4, 13)), int(rng.integers(2, 6))
        V = size * (rng.normal(size=(n, 2)) @ rng.normal(size=(2, d)))
        V += 10.0 ** rng.uniform(-4, 1) * rng.normal(size=(n, d))
        assert_exactly(V, select.logdet(V, min(n, 7), 0.1), 0.1, 1.0)


@pytest.mark.parametrize("size", [1.0, 1e2, 1e3, 1e4])
def test_more_picks_than_dimensions_where_double_needs_a_second_look(size: float) -> None:
    """A few residuals that double knows too roughly are refined by the d x d matrix."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        V = size * rng.normal(size=(24, 6)) * 10.0 ** -np.arange(6)
        V[13] = V[4]
        for dtype in (np.float32, np.float64):
            rows = V.astype(dtype)
            assert_exactly(rows, select.logdet(rows, 16, 0.1), 0.1, 1.0)


@pytest.mark.parametrize(("size", "gamma"), [(1e-200, 1e-300), (1e-160, 1e-305), (1e200, 1e300)])
def test_squares_that_double_does_not_hold(size: float, gamma: float) -> None:
    for seed in range(4):
        V = size * np.random.default_rng(seed).normal(size=(8, 4))
        found = select.logdet(V, 6, gamma)
        assert_exactly(V, found, gamma, 1.0)
        assert found.gains.min() > 0
        V[::2] *= 1e-30
        assert_exactly(V, select.logdet(V, 4, gamma), gamma, 1.0)
        best = select.logdet(V, 3, gamma, exact=True)
        assert_is_best(V, best, gamma, 1.0)


def test_all_but_a_few_of_many() -> None:
    """Ties of what is left out go to the first subset too."""
    V = design(np.random.default_rng(3), "plane", 1e9, 9, 4)
    V[5] = V[2]
    assert_is_best(V, select.logdet(V, 7, 0.1, exact=True), 0.1, 1.0)
    assert select.logdet(np.ones((9, 2)), 7, exact=True).indices.tolist() == list(range(7))
    assert select.logdet(np.zeros((9, 2)), 8, exact=True).indices.tolist() == list(range(8))
    assert select.logdet(V, 9, exact=True).indices.tolist() == select.logdet(V, 9).indices.tolist()


def assert_is_best(V: np.ndarray, found: select.LogDetResult, gamma: float, scale: float, old=None):
    """Of all subsets, by the sum of the gains in any order; the first of those within 1e-10."""
    k = len(found.indices)
    sums = {
        S: sum(ref.logdet_exact(V[list(S)], k, gamma, scale, old)[1])
        for S in combinations(range(len(V)), k)
    }
    most = max(sums.values())
    first = next(S for S, value in sums.items() if value >= most * (1 - 1e-10))
    assert tuple(sorted(found.indices.tolist())) == first
    assert found.gains.sum() == pytest.approx(sums[first], rel=1e-11)


@pytest.mark.parametrize("size", [1.0, 1e5, 1e9, 1e16, 1e40, 1e120])
@pytest.mark.parametrize("kind", KINDS)
def test_the_best_subset(kind: str, size: float) -> None:
    rng = np.random.default_rng(7)
    n, d, k = 6, 3, 3
    V = design(rng, kind, size, n, d)
    assert_is_best(V, select.logdet(V, k, 0.3, exact=True), 0.3, 1.0)
    assert_is_best(V, select.logdet(V, 5, 0.3, exact=True), 0.3, 1.0)  # by what is left out
    state = select.logdet(V[:2], 2, 0.3).state
    assert_is_best(V[2:], select.logdet(V[2:], 3, 0.3, state=state, exact=True), 0.3, 1.0, V[:2])
    assert_is_best(V[2:], select.logdet(V[2:], 2, 0.3, state=state, exact=True), 0.3, 1.0, V[:2])


@pytest.mark.parametrize("size", [1.0, 1e4, 1e6, 1e8, 1e10, 1e20, 1e60])
@pytest.mark.parametrize("kind", KINDS)
def test_a_state_carries_on_where_it_was(kind: str, size: float) -> None:
    rng = np.random.default_rng(11)
    V = design(rng, kind, size, 9, 4)
    whole = select.logdet(V, 6, 0.2)
    for first in (1, 3):
        part = select.logdet(V, first, 0.2)
        rest = np.delete(np.arange(9), part.indices)
        more = select.logdet(V[rest], 6 - first, 0.2, state=part.state)
        assert [*part.indices, *rest[more.indices]] == whole.indices.tolist()
        assert [*part.gains, *more.gains] == pytest.approx(whole.gains.tolist(), rel=1e-11)
        assert more.logdet == pytest.approx(whole.logdet, rel=1e-13)
    old, new = V[:3], V[3:]
    state = select.logdet(old, 3, 0.2).state
    assert state is not None
    found = select.logdet(new, 4, 0.2, state=state)
    assert_exactly(new, found, 0.2, 1.0, state.vectors)


@pytest.mark.parametrize("size", [1.0, 1e3, 1e6, 1e9, 1e12, 1e15])
def test_pairs_of_rows_that_are_much_longer_than_their_differences(size: float) -> None:
    for seed in range(6):
        rng = np.random.default_rng(seed)
        rows = rng.normal(size=(9, 4)) * [1, 1, size, 1e-3] + size * rng.integers(0, 2, size=4)
        pairs = np.array([(a, b) for a in range(9) for b in range(a)])[rng.permutation(36)[:14]]
        phi = rows[pairs[:, 0]] - rows[pairs[:, 1]]
        picks, gains = ref.logdet_exact(phi, 6, 0.5)
        for found in (
            select.apo(rows, pairs, 6, lam=0.5),
            select.active_dpo(rows, pairs, 6, normalize=None, lam=0.5, n_threads=2),
        ):
            assert found.indices.tolist() == picks
            np.testing.assert_allclose(found.gains, gains, rtol=1e-11, atol=0)
        first = select.apo(rows, pairs, 2, lam=0.5)
        rest = np.delete(np.arange(14), first.indices)
        more = select.apo(rows, pairs[rest], 4, first.state, lam=0.5)
        assert [*first.indices, *rest[more.indices]] == picks


def test_short_rows_are_normalized_and_not_taken_for_zeros() -> None:
    rng = np.random.default_rng(0)
    rows, pairs = rng.normal(size=(8, 5)), np.array([(a, b) for a in range(8) for b in range(a)])
    for normalize in ("response", "pair"):
        expected = select.active_dpo(rows, pairs, 6, None, normalize)
        found = select.active_dpo(rows * 2.0**-700, pairs, 6, None, normalize)
        assert found.indices.tolist() == expected.indices.tolist()
        np.testing.assert_allclose(found.gains, expected.gains, rtol=1e-11)
        with pytest.raises(ValueError, match="expected 0 or at least 1e-280 to normalize"):
            select.active_dpo(rows * 2.0**-1020, pairs, 6, None, normalize)


@pytest.mark.parametrize("size", [1.0, 1e4, 1e9, 1e14, 1e30])
def test_mass_dpo_of_unscaled_features(size: float) -> None:
    """With equal scores v_i is f_i less the mean, which rational numbers hold; c is 1 / (n - 1)."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        f = rng.normal(size=(9, 4))
        if seed % 3 == 0:
            f[:, 1] += size
        elif seed % 3 == 1:
            f *= [1, size, 1e-2, 1]
        else:
            f += size * rng.normal(size=(9, 1)) @ rng.normal(size=(1, 4))
        pool = [[Fraction(x) for x in row] for row in f[1:]]
        mean = [sum(column) / 8 for column in zip(*pool, strict=True)]
        centred = [[x - m for x, m in zip(row, mean, strict=True)] for row in pool]
        picks, gains = fractions_logdet(centred, 5, Fraction(0.1) * 8)
        found = select.mass_dpo(f, np.zeros(9), np.zeros(9), 0, 5)
        assert (found.negatives - 1).tolist() == picks
        np.testing.assert_allclose(found.gains, gains, rtol=1e-11, atol=0)


def fractions_logdet(vectors: list[list[Fraction]], k: int, ridge: Fraction):
    """Greedy from ratios of determinants, for vectors that are no doubles."""

    def determinant(S: list[int]) -> Fraction:
        M = [
            [sum(x * y for x, y in zip(vectors[i], vectors[j], strict=True)) / ridge for j in S]
            for i in S
        ]
        value = Fraction(1)
        for s in range(len(S)):
            pivot = M[s][s] + 1
            value *= pivot
            for i in range(s + 1, len(S)):
                for j in range(s + 1, len(S)):
                    M[i][j] -= M[i][s] * M[s][j] / pivot
        return value

    picks: list[int] = []
    gains, now = [], Fraction(1)
    for _ in range(k):
        rest = [i for i in range(len(vectors)) if i not in picks]
        values = {i: determinant([*picks, i]) / now - 1 for i in rest}
        enough = max(values.values()) * (1 - Fraction(ref.LOGDET_TIE))
        pick = next(i for i in rest if values[i] >= enough)
        now *= values[pick] + 1
        picks.append(pick)
        gains.append(float(np.log1p(float(values[pick]))))
    return picks, gains
