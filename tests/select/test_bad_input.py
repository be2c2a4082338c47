"""Every bad input has its own message: the argument, the place, what was expected."""

import numpy as np
import pytest

from pyfast import select

X = np.arange(12.0).reshape(6, 2)
R = np.arange(6.0)
D = np.abs(np.subtract.outer(R, R))


def with_value(array: np.ndarray, at: tuple[int, ...], value: float) -> np.ndarray:
    changed = array.copy()
    changed[at] = value
    return changed


CASES = {
    "k zero": (lambda: select.kmedoids(X, 0), ValueError, "k: expected at least 1, got 0"),
    "k past 64 bits": (
        lambda: select.opt_select(X, R, k=2**63),
        ValueError,
        f"k: expected 1 to {2**62}, got {2**63}",
    ),
    "k large": (
        lambda: select.kmedoids(X, 7),
        ValueError,
        "k: expected at most the 6 points, got 7",
    ),
    "k large in a group": (
        lambda: select.kmedoids(X, 3, offsets=[0, 4, 6]),
        ValueError,
        "k: expected at most the 2 points in group 1, got 3",
    ),
    "k float": (lambda: select.kmedoids(X, 2.0), TypeError, "k: expected an int, got float"),
    "k bool": (lambda: select.kmedoids(X, True), TypeError, "k: expected an int, got bool"),
    "opt_select k": (lambda: select.opt_select(X, R, k=0), ValueError, "k: expected at least 1"),
    "coreset k": (lambda: select.coreset(X, R, k=-1), ValueError, "k: expected at least 1"),
    "bottom_k k": (lambda: select.bottom_k(R, k=0), ValueError, "k: expected at least 1"),
    "random k": (lambda: select.random(3, 4), ValueError, "k: expected 1 to 3, got 4"),
    "NaN point": (
        lambda: select.kmedoids(with_value(X, (3, 1), np.nan), 2),
        ValueError,
        "X: expected a finite number, got nan at row 3, column 1",
    ),
    "inf point in a batch": (
        lambda: select.kmedoids(np.stack([X, with_value(X, (3, 1), np.inf)]), 2),
        ValueError,
        "X: expected a finite number, got inf at group 1, row 3, column 1",
    ),
    "NaN embedding in a ragged group": (
        lambda: select.opt_select(with_value(X, (5, 0), np.nan), R, offsets=[0, 4, 6]),
        ValueError,
        "embeddings: expected a finite number, got nan at group 1, row 1, column 0",
    ),
    "NaN embedding in many dimensions": (
        lambda: select.opt_select(
            with_value(np.ones((9, 40)), (7, 3), np.nan), np.arange(9.0), k=3
        ),
        ValueError,
        "embeddings: expected a finite number, got nan at row 7, column 3",
    ),
    "infinite embedding of the best response": (
        lambda: select.opt_select(
            with_value(np.ones((2, 9, 40)), (1, 8, 3), np.inf),
            np.ones((2, 1)) * np.arange(9.0),
            k=3,
        ),
        ValueError,
        "embeddings: expected a finite number, got inf at group 1, row 8, column 3",
    ),
    "NaN reward": (
        lambda: select.bottom_k(with_value(R, (2,), np.nan)),
        ValueError,
        "rewards: expected a finite number, got nan at row 2",
    ),
    "inf reward": (
        lambda: select.coreset(X, with_value(R, (2,), -np.inf)),
        ValueError,
        "rewards: expected a finite number, got -inf at row 2",
    ),
    "negative weight": (
        lambda: select.kmedoids(X, 2, weights=with_value(R, (4,), -0.5)),
        ValueError,
        "weights: expected a finite number >= 0, got -0.5 at row 4",
    ),
    "infinite weight": (
        lambda: select.kmedoids(X, 2, weights=with_value(R, (4,), np.inf)),
        ValueError,
        "weights: expected a finite number >= 0, got inf at row 4",
    ),
    "negative distance": (
        lambda: select.kmedoids(with_value(D, (1, 2), -1.0), 2, metric="precomputed"),
        ValueError,
        "X: expected a finite distance >= 0, got value -1.0 at [1, 2]",
    ),
    "NaN distance": (
        lambda: select.kmedoids(
            np.stack([D, with_value(D, (1, 2), np.nan)]), 2, metric="precomputed"
        ),
        ValueError,
        "got value nan at group 1, [1, 2]",
    ),
    "asymmetric distances": (
        lambda: select.kmedoids(with_value(D, (1, 4), 99.0), 2, metric="precomputed"),
        ValueError,
        "X: expected D[i, j] = D[j, i], got pair 99.0 at [1, 4]",
    ),
    "distances not square": (
        lambda: select.kmedoids(D[:4], 2, metric="precomputed"),
        ValueError,
        "X: expected square distances, got shape (4, 6)",
    ),
    "ragged distances of the wrong length": (
        lambda: select.kmedoids(D.ravel(), 2, metric="precomputed", offsets=[0, 2, 5]),
        ValueError,
        "X: expected sum of n_b^2 = 13 distances, got 36",
    ),
    "ragged distances in two axes": (
        lambda: select.kmedoids(D, 2, metric="precomputed", offsets=[0, 2, 5]),
        ValueError,
        "X: with offsets, expected the groups' distances end to end in one axis",
    ),
    "no points": (
        lambda: select.kmedoids(np.empty((0, 3)), 1),
        ValueError,
        "X: expected no empty group or axis, got shape (0, 3)",
    ),
    "no columns": (
        lambda: select.opt_select(np.empty((3, 0)), np.zeros(3)),
        ValueError,
        "embeddings: expected no empty group or axis, got shape (3, 0)",
    ),
    "no columns in ragged groups": (
        lambda: select.kmedoids(np.empty((6, 0)), 2, offsets=[0, 3, 6]),
        ValueError,
        "X: expected no empty group or axis, got shape (6, 0)",
    ),
    "no columns in opt_select's ragged groups": (
        lambda: select.opt_select(np.empty((6, 0)), R, offsets=[0, 3, 6]),
        ValueError,
        "embeddings: expected no empty group or axis, got shape (6, 0)",
    ),
    "no columns in coreset's ragged groups": (
        lambda: select.coreset(np.empty((6, 0)), R, offsets=[0, 3, 6]),
        ValueError,
        "embeddings: expected no empty group or axis, got shape (6, 0)",
    ),
    "empty ragged group": (
        lambda: select.opt_select(X, R, offsets=[0, 3, 3, 6]),
        ValueError,
        "offsets: group 1 is empty or runs backwards (3 to 3)",
    ),
    "offsets that do not end at T": (
        lambda: select.bottom_k(R, offsets=[0, 3]),
        ValueError,
        "offsets: expected to rise from 0 to 6, got 0 to 3",
    ),
    "offsets of floats": (
        lambda: select.bottom_k(R, offsets=[0.0, 6.0]),
        TypeError,
        "offsets: expected integers, got float64",
    ),
    "distances with an offset of NaN": (
        lambda: select.kmedoids(D.ravel(), 1, metric="precomputed", offsets=[0, np.nan]),
        TypeError,
        "offsets: expected integers, got float64",
    ),
    "distances with an infinite offset": (
        lambda: select.kmedoids(D.ravel(), 1, metric="precomputed", offsets=[0, np.inf]),
        TypeError,
        "offsets: expected integers, got float64",
    ),
    "distances with an offset of text": (
        lambda: select.kmedoids(D.ravel(), 1, metric="precomputed", offsets=[0, "b"]),
        TypeError,
        "offsets: expected integers, got <U",
    ),
    "distances with an offset of None": (
        lambda: select.kmedoids(D.ravel(), 1, metric="precomputed", offsets=[0, None]),
        TypeError,
        "offsets: expected integers, got object",
    ),
    "distances of a group whose square is past 64 bits": (
        lambda: select.kmedoids(D.ravel(), 1, metric="precomputed", offsets=[0, 2**32, 2**32 + 6]),
        ValueError,
        f"X: expected sum of n_b^2 = {2**64 + 36} distances, got 36",
    ),
    "offsets of one number": (
        lambda: select.bottom_k(R, offsets=[0]),
        ValueError,
        "offsets: expected shape (B+1,) with B >= 1, got (1,)",
    ),
    "short rewards": (
        lambda: select.opt_select(X, R[:5]),
        ValueError,
        "rewards: expected shape (6,), one value per point, got (5,)",
    ),
    "rewards of a batch flattened": (
        lambda: select.coreset(np.stack([X, X]), np.concatenate([R, R])),
        ValueError,
        "rewards: expected shape (2, 6), one value per point, got (12,)",
    ),
    "short weights": (
        lambda: select.kmedoids(X, 2, weights=R[:5]),
        ValueError,
        "weights: expected shape (6,), one value per point, got (5,)",
    ),
    "wrong rank": (
        lambda: select.kmedoids(R, 2),
        ValueError,
        "X: expected shape (n, d) for one group or (B, n, d) for a batch, got (6,)",
    ),
    "rank three with offsets": (
        lambda: select.kmedoids(X[None], 2, offsets=[0, 6]),
        ValueError,
        "X: with offsets, expected the groups end to end in shape (T, d), got (1, 6, 2)",
    ),
    "rewards of rank three": (
        lambda: select.bottom_k(R.reshape(1, 2, 3)),
        ValueError,
        "rewards: expected shape (n,) for one group or (B, n) for a batch, got (1, 2, 3)",
    ),
    "strings": (
        lambda: select.kmedoids([["a", "b"]], 1),
        TypeError,
        "X: expected real numbers, float32 or float64, got <U1",
    ),
    "complex numbers": (
        lambda: select.kmedoids(X.astype(complex), 1),
        TypeError,
        "X: expected real numbers, float32 or float64, got complex128",
    ),
    "booleans": (
        lambda: select.bottom_k(R > 2),
        TypeError,
        "rewards: expected real numbers, float32 or float64, got bool",
    ),
    "long doubles": (
        lambda: select.bottom_k(R.astype(np.longdouble)),
        TypeError,
        "rewards: expected real numbers, float32 or float64, got float128",
    ),
    "numbers as objects": (
        lambda: select.kmedoids(X.astype(object), 1),
        TypeError,
        "X: expected real numbers, float32 or float64, got object; try np.asarray(X, float)",
    ),
    "a column of vectors, as pandas holds one": (
        lambda: select.kmedoids(np.array([*X, None], object)[:-1], 1),
        TypeError,
        "X: expected real numbers, float32 or float64, got object; np.stack(X) makes one array of "
        "vectors",
    ),
    "no numbers": (
        lambda: select.kmedoids({1.0}, 1),
        TypeError,
        "X: expected real numbers, float32 or float64, got object",
    ),
    "integers that float64 does not hold": (
        lambda: select.bottom_k(np.array([2**53, 2**53 + 1]), k=1),
        ValueError,
        f"rewards: expected numbers that float64 holds exactly, got {2**53 + 1} at [1]",
    ),
    "the largest unsigned integer": (
        lambda: select.kmedoids(np.array([[0, 1], [2**64 - 1, 2**63]], np.uint64), 1),
        ValueError,
        f"X: expected numbers that float64 holds exactly, got {2**64 - 1} at [1, 0]",
    ),
    "masked rewards": (
        lambda: select.bottom_k(np.ma.masked_array(R, R > 4)),
        ValueError,
        "rewards: expected no masked values; leave them out or fill them in",
    ),
    "a list of masked rows": (
        lambda: select.kmedoids([np.ma.masked_array(row, row > 10) for row in X], 2),
        ValueError,
        "X: expected no masked values",
    ),
    "masked init": (
        lambda: select.kmedoids(X, 2, init=np.ma.masked_array([0, 1], [False, True])),
        ValueError,
        "init: expected no masked values",
    ),
    "lists of different lengths": (
        lambda: select.opt_select([[[0.0]], [[1.0], [2.0]]], [[0.0], [1.0, 2.0]]),
        ValueError,
        "embeddings: expected one rectangular array; pass ragged groups end to end, with offsets",
    ),
    "unknown metric": (
        lambda: select.kmedoids(X, 2, metric="chebyshev"),
        ValueError,
        "metric: expected one of 'euclidean', 'precomputed', 'cosine', 'manhattan', or a function, "
        "got 'chebyshev'",
    ),
    "unknown search": (
        lambda: select.kmedoids(X, 2, search="pam"),
        ValueError,
        "search: expected one of 'eager', 'best', got 'pam'",
    ),
    "unknown init": (
        lambda: select.kmedoids(X, 2, init="build"),
        ValueError,
        "init: expected one of 'random', 'greedy', got 'build'",
    ),
    "init out of range": (
        lambda: select.kmedoids(X, 2, init=[0, 6]),
        ValueError,
        "init: expected 2 distinct positions below 6, got [0, 6] for group 0",
    ),
    "init twice the same": (
        lambda: select.kmedoids(np.stack([X, X]), 2, init=[[0, 1], [3, 3]]),
        ValueError,
        "init: expected 2 distinct positions below 6, got [3, 3] for group 1",
    ),
    "init of the wrong shape": (
        lambda: select.kmedoids(X, 2, init=[0, 1, 2]),
        ValueError,
        "init: expected shape (2,), got (3,)",
    ),
    "init of floats": (
        lambda: select.kmedoids(X, 2, init=[0.0, 1.0]),
        TypeError,
        "init: expected 'random', 'greedy' or integers, got float64",
    ),
    "n_init zero": (
        lambda: select.kmedoids(X, 2, n_init=0),
        ValueError,
        "n_init: expected at least 1, got 0",
    ),
    "n_init past 64 bits": (
        lambda: select.kmedoids(X, 2, n_init=2**63),
        ValueError,
        f"n_init: expected 1 to {2**62}, got {2**63}",
    ),
    "max_iter past 64 bits": (
        lambda: select.coreset(X, R, max_iter=2**63),
        ValueError,
        f"max_iter: expected 1 to {2**62}, got {2**63}",
    ),
    "max_iter zero": (
        lambda: select.coreset(X, R, max_iter=0),
        ValueError,
        "max_iter: expected at least 1, got 0",
    ),
    "negative seed": (
        lambda: select.kmedoids(X, 2, seed=-1),
        ValueError,
        f"seed: expected 0 to {2**64 - 1}, got -1",
    ),
    "seed past 64 bits": (
        lambda: select.random(5, 2, seed=2**64),
        ValueError,
        f"seed: expected 0 to {2**64 - 1}, got {2**64}",
    ),
    "no threads": (
        lambda: select.kmedoids(X, 2, n_threads=0),
        ValueError,
        "n_threads: expected 1 to 1024, got 0",
    ),
    "no threads, by numpy": (
        lambda: select.kmedoids(X, 2, n_threads=np.int64(0)),
        ValueError,
        "n_threads: expected 1 to 1024, got 0",
    ),
    "threads as numpy's bool": (
        lambda: select.kmedoids(X, 2, n_threads=np.bool_(True)),
        TypeError,
        "n_threads: expected an int or None, got bool",
    ),
    "threads as text": (
        lambda: select.kmedoids(X, 2, n_threads="2"),
        TypeError,
        "n_threads: expected an int or None, got str",
    ),
    "n of zero": (lambda: select.random(0, 1), ValueError, "n: expected 1 to 2**32 - 1"),
    "n of floats": (
        lambda: select.random(3.0, 1),
        TypeError,
        "n: expected an int or integers, got float64",
    ),
    "n of rank two": (
        lambda: select.random([[3]], 1),
        ValueError,
        "n: expected an int or shape (B,), got shape (1, 1)",
    ),
    "distances overflow": (
        lambda: select.kmedoids([[1.7e308], [-1.7e308], [0.0]], 2),
        ValueError,
        "the distance between points 0 and 1 overflows; scale the points down",
    ),
    "weights overflow": (
        lambda: select.kmedoids(X * 1e100, 2, weights=np.full(6, 1e250)),
        ValueError,
        "weights times distances overflow float64; scale the weights down",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_message(name: str) -> None:
    call, error, words = CASES[name]
    with pytest.raises(error) as raised:
        call()
    assert words in str(raised.value)


def test_tensors_that_numpy_cannot_view() -> None:
    torch = pytest.importorskip("torch")
    for tensor in (
        torch.zeros(3, 2, requires_grad=True),
        torch.zeros(3, 2, dtype=torch.bfloat16),
        torch.zeros(3, 2, device="meta"),
    ):
        with pytest.raises(TypeError, match=r"X: expected a CPU tensor .* X\.detach\(\)"):
            select.kmedoids(tensor, 2)


def test_a_list_of_tensors_that_numpy_cannot_view() -> None:
    torch = pytest.importorskip("torch")
    rows = [torch.zeros(2, requires_grad=True), torch.ones(2)]
    with pytest.raises(TypeError, match=r"X: expected numbers that numpy can read \(.*grad"):
        select.kmedoids(rows, 2)
    assert select.kmedoids([row.detach() for row in rows], 2).cost == 0


def test_what_changes_no_value_is_taken() -> None:
    """Numpy's integers as counts, large integers that float64 holds, masks that hide nothing."""
    expected = select.kmedoids(X, 2, weights=R)
    for threads in (np.int64(1), np.uint8(2)):
        found = select.kmedoids(X, np.int32(2), weights=R, n_threads=threads)
        assert found.medoids.tolist() == expected.medoids.tolist()
        for selector in (select.opt_select, select.coreset):
            picked = selector(X, R, k=2, n_threads=threads)
            assert picked.negatives.tolist() == selector(X, R, k=2).negatives.tolist()
    assert select.kmedoids(X, 2, weights=np.ma.masked_array(R)).cost == expected.cost
    large = [2**53 + 2, 2**60, -(2**63), 2**53]
    assert select.bottom_k(large, k=3).negatives.tolist() == [2, 3, 0]
    assert select.bottom_k(np.array([2**63, 0], np.uint64), k=1).positive == 0


def test_the_extension_itself_refuses_wrong_arrays() -> None:
    from pyfast._core import (
        first_asymmetric,
        first_invalid,
        kmedoids,
        kmedoids_bounds,
        opt_select,
        random_subsets,
    )

    offsets, w = np.array([0, 6]), np.ones(6)
    none = np.empty(0, np.int64)

    def call(data=X, offsets=offsets, w=w, k=2, given=none, init="random", sample_size=5, above=9):
        return kmedoids(
            data, offsets, w, k, False, False, "eager", init, given, 1, 0, sample_size, above, 1
        )

    assert call()[0].shape == (2,)
    for bad, words in [
        (
            {"data": np.asfortranarray(X)},
            "X: expected a C-contiguous 2-dimensional array of float64",
        ),
        ({"data": X.astype(np.int64)}, "X: expected a C-contiguous"),
        ({"data": X[:5]}, "X: expected one row per weight"),
        ({"data": R}, "X: expected a C-contiguous 2-dimensional array"),
        ({"w": w.astype(np.float32)}, "weights: expected a C-contiguous 1-dimensional array"),
        ({"offsets": offsets.astype(np.int32)}, "offsets: expected a C-contiguous"),
        ({"offsets": np.array([0, 5])}, "offsets: expected (groups + 1,) from 0 to 6"),
        ({"offsets": np.array([0, 7, 6])}, "offsets: expected no empty group"),
        ({"k": 0}, "k: expected 1 to 6"),
        ({"k": 7}, "k: expected 1 to 6"),
        ({"init": "given"}, "init: expected groups * k indices"),
        ({"sample_size": 0}, "sample_size: expected 1 to"),
        ({"above": 4}, "sampled_above: expected 5 to"),
    ]:
        with pytest.raises(TypeError) as raised:
            call(**bad)
        assert words in str(raised.value)
    all_six, two, ends = np.array([6]), np.array([2]), np.array([0, 5])

    def bound(w=w, candidates=all_six, counts=two, medoids=ends, costs=w[:1]):
        return kmedoids_bounds(X, offsets, w, candidates, counts, medoids, costs, False, False, 1)

    assert bound()[1].shape == (6,)
    for bad, words in [
        ({"w": w[:5]}, "offsets: expected (groups + 1,) from 0 to 5"),
        ({"w": w * np.nan}, "weights: expected finite numbers"),
        ({"costs": w[:1] * np.inf}, "costs: expected finite numbers"),
        ({"costs": w}, "candidates, counts, costs: expected one for each group"),
        ({"candidates": np.array([7])}, "candidates: expected 1 to 6"),
        ({"candidates": np.array([1])}, "counts: expected 1 to 1"),
        ({"medoids": np.array([0, 6])}, "medoids: expected 0 to 5"),
        ({"medoids": np.array([0])}, "medoids: expected sum of counts"),
        ({"medoids": np.array([0, 1, 2])}, "medoids: expected sum of counts"),
    ]:
        with pytest.raises(TypeError) as raised:
            bound(**bad)
        assert words in str(raised.value)
    with pytest.raises(TypeError, match=r"distances: expected sum of n_b\^2 of them"):
        first_asymmetric(R, offsets)
    with pytest.raises(TypeError, match=r"D: expected sum of n_b\^2 distances"):
        kmedoids(R, offsets, w, 2, True, True, "eager", "random", none, 1, 0, 5, 9, 1)
    with pytest.raises(TypeError, match="embeddings: expected one row per reward"):
        opt_select(X[:5], R, offsets, 2, False, True, "eager", "random", 1, 0, 1)
    with pytest.raises(TypeError, match="k: expected 1 to 3"):
        random_subsets(np.array([3]), 4, 0)
    with pytest.raises(TypeError, match="array: expected a C-contiguous"):
        first_invalid(X.T, False)
