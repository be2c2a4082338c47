"""k-medoids by other distances, and the nearest medoids of other points."""

import itertools
import math

import mpmath
import numpy as np
import pytest

from pyfast import select
from pyfast.select import _metrics, reference


def slow(metric, x, y):
    """One distance in 60 digits."""
    with mpmath.workdps(60):
        x, y = [mpmath.mpf(float(a)) for a in x], [mpmath.mpf(float(b)) for b in y]
        if metric == "manhattan":
            return mpmath.fsum(abs(a - b) for a, b in zip(x, y, strict=True))
        dot = mpmath.fsum(a * b for a, b in zip(x, y, strict=True))
        norms = [mpmath.sqrt(mpmath.fsum(a * a for a in v)) for v in (x, y)]
        return max(0, 1 - dot / (norms[0] * norms[1]))


def points(kind, n=14, d=5):
    draw = np.random.default_rng(0)
    X = draw.normal(size=(n, d))
    if kind == "near":  # directions 1e-7 apart, of all lengths
        X = (X[0] + 1e-7 * X) * np.exp(draw.normal(size=(n, 1)) * 5)
    elif kind == "large":
        X *= 1e200
    elif kind == "small":
        X *= 1e-200
    elif kind == "mixed":
        X *= 10.0 ** draw.integers(-250, 250, (n, 1))
    elif kind == "float32":
        X = X.astype(np.float32)
    elif kind == "whole":
        X = draw.integers(1, 4, (n, d))
    return X


@pytest.mark.parametrize("kind", ["plain", "near", "large", "small", "mixed", "float32", "whole"])
@pytest.mark.parametrize("metric", ["cosine", "manhattan"])
def test_distances_keep_their_digits(metric, kind):
    X = points(kind)
    D = _metrics.distances(X, None, metric)
    assert (D == D.T).all()
    assert (np.diag(D) == 0).all()
    for i, j in itertools.combinations(range(len(X)), 2):
        true = slow(metric, X[i], X[j])
        slack = 2e-15 * true
        if metric == "cosine":  # directions are rounded; of far ones 1 - cos is
            slack += 1e-15 * mpmath.sqrt(true) + (4e-16 if true > _metrics._NEAR / 2 else 0)
        assert abs(D[i, j] - true) <= slack + 1e-30, (i, j)
    other = _metrics.distances(X[:3], X, metric)
    np.testing.assert_allclose(other, D[:3], rtol=1e-14, atol=1e-30)


@pytest.mark.parametrize("metric", ["cosine", "manhattan", "function"])
def test_the_set_is_the_best_of_all(metric):
    draw = np.random.default_rng(1)
    for n, k in ((9, 2), (12, 3)):
        X, weights = draw.normal(size=(n, 4)), draw.random(n)
        name = "manhattan" if metric == "function" else metric

        def function(x, y):
            return float(np.abs(x - y).sum())

        given = function if metric == "function" else metric
        found = select.kmedoids(X, k, weights=weights, metric=given, n_init=20)
        D = np.array([[float(slow(name, x, y)) for y in X] for x in X])
        assert found.cost == pytest.approx(reference.kmedoids_optimum(D, weights, k), rel=1e-12)
        same = select.kmedoids(D, k, weights=weights, metric="precomputed", n_init=20)
        assert found.medoids.tolist() == same.medoids.tolist()
        sure = select.kmedoids(X, k, weights=weights, metric=given, exact=True)
        assert sure.gap == 0


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "manhattan", "function"])
@pytest.mark.parametrize("kind", ["one", "batch", "ragged"])
def test_groups_and_predictions(metric, kind):
    draw = np.random.default_rng(2)
    if metric == "function":
        metric = math.dist
    sizes = [8, 8, 8] if kind == "batch" else [8, 5, 11]
    groups = [draw.normal(size=(n, 3)) for n in sizes]
    fresh = [draw.normal(size=(n + 2, 3)) for n in sizes]
    if kind == "one":
        X, others, more, other_more = groups[0], fresh[0], {}, {}
    elif kind == "batch":
        X, others, more, other_more = np.stack(groups), np.stack(fresh), {}, {}
    else:
        X, others = np.concatenate(groups), np.concatenate(fresh)
        more = {"offsets": np.cumsum([0, *sizes])}
        other_more = {"offsets": np.cumsum([0, *(n + 2 for n in sizes)])}
    found = select.kmedoids(X, 3, metric=metric, n_init=3, seed=1, **more)
    predicted = found.predict(others, **other_more)
    medoids = np.atleast_2d(found.medoids)
    start = 0
    for b, group in enumerate(groups[: len(medoids)]):
        alone = select.kmedoids(group, 3, metric=metric, n_init=3, seed=1)
        assert alone.medoids.tolist() == medoids[b].tolist()
        D = _metrics.distances(fresh[b], group[medoids[b]], metric)
        part = predicted.reshape(-1)[start : start + len(fresh[b])]
        assert part.tolist() == D.argmin(axis=1).tolist()
        assert alone.predict(group).tolist() == alone.labels.tolist()
        start += len(fresh[b])
    assert predicted.dtype == np.int64
    X *= -1  # what was clustered is not looked at again
    assert (found.predict(others, **other_more) == predicted).all()


def test_predictions_from_distances_and_far_points():
    X = np.array([[0.0], [1.0], [10.0], [12.0]])
    D = np.abs(X - X.T)
    found = select.kmedoids(D, 2, metric="precomputed", init="greedy")
    assert found.predict(D).tolist() == found.labels.tolist()
    for other in (D[:, :3], D[None], D[0]):
        with pytest.raises(ValueError, match="X: expected distances to the 4 points"):
            found.predict(other)
    with pytest.raises(ValueError, match="X: expected a finite number >= 0"):
        found.predict(-D)
    far = select.kmedoids(X + 1e9, 2, init="greedy")  # |x|^2 - 2 x c + |c|^2 would fail here
    assert far.predict(X + 1e9 + 0.4).tolist() == far.labels.tolist()
    huge = select.kmedoids(X * 1e300, 2, init="greedy")
    assert huge.predict(X * 1e300).tolist() == huge.labels.tolist()


def test_what_does_not_fit_is_told():
    X = points("plain")
    found = select.kmedoids(X, 2)
    with pytest.raises(ValueError, match="X: expected 5 columns, got 4"):
        found.predict(X[:, :4])
    with pytest.raises(ValueError, match="X: expected a finite number, got nan at row 1, column 2"):
        found.predict(np.where(np.arange(70).reshape(14, 5) == 7, np.nan, X))
    with pytest.raises(ValueError, match="X: expected points of 1 groups, got 2"):
        found.predict(np.stack([X, X]))
    zero = X.copy()
    zero[3] = 0
    with pytest.raises(ValueError, match=r"X: expected no row of zeros, .* got row 3$"):
        select.kmedoids(zero, 2, metric="cosine")
    with pytest.raises(ValueError, match="got row 3 of group 1"):
        select.kmedoids(np.stack([X, zero]), 2, metric="cosine")
    with pytest.raises(ValueError, match="distance of rows 0 and 1 is more than float64 holds"):
        select.kmedoids(np.array([[1e308], [-1e308], [0.0]]), 2, metric="manhattan")
    for function, message in (
        (lambda x, y: -1.0, "a finite distance >= 0, got -1.0 for rows 0 and 0"),
        (lambda x, y: float("nan"), "a finite distance >= 0, got nan"),
        (lambda x, y: "far", "expected a number for rows 0 and 0"),
        (lambda x, y: x - y, "expected a number for rows 0 and 0"),
        (lambda x, y: abs(x[0] - y[0]) * (1 + (x[0] > y[0])), "the same distance both ways"),
    ):
        with pytest.raises(ValueError, match=message):
            select.kmedoids(X, 2, metric=function)

    def spoils(x, y):
        x[0] = 5
        return 0.0

    with pytest.raises(ValueError, match="read-only"):
        select.kmedoids(X, 2, metric=spoils)
    with pytest.raises(ValueError, match="sample_size: expected None"):
        select.kmedoids(X, 2, metric="cosine", sample_size=3)
    with pytest.raises(ValueError, match="k: expected at most the 14 points"):
        select.kmedoids(X, 15, metric="cosine")


def test_results_with_predictions_are_equal_by_value_and_pickled():
    import copy
    import pickle

    X = points("plain")
    found = select.kmedoids(X, 2)
    assert found == select.kmedoids(X, 2)
    for other in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found)):
        assert other == found
        assert other.predict(X).tolist() == found.labels.tolist()
    assert "_fit" not in repr(found)
