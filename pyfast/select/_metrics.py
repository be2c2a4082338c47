"""Distances that the native core does not measure: cosine, manhattan and functions, in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyfast.select import reference

NATIVE = ("euclidean", "precomputed")
NAMES = (*NATIVE, "cosine", "manhattan")
Metric = str | Callable[[NDArray[Any], NDArray[Any]], float]

_NEAR = 1e-4
"""Cosine distances below this are measured anew by differences: 1 - cos has lost their digits."""
_SAME = 4 * float(np.finfo(np.float64).eps) ** 2
"""Of rows whose directions are equal within rounding."""
_ROWS = 1 << 20
"""Numbers of a block of rows."""


def check_metric(metric: Any) -> Metric:
    """Return a metric if there is such a one."""
    if callable(metric) or (isinstance(metric, str) and metric in NAMES):
        return metric  # type: ignore[no-any-return]
    names = ", ".join(repr(name) for name in NAMES)
    raise ValueError(f"metric: expected one of {names}, or a function, got {metric!r}")


def distances(X: NDArray[Any], Y: NDArray[Any] | None, metric: Metric) -> NDArray[np.float64]:
    """Return the distances (n, m) of rows of points, all finite, Y = X by default.

    Raises
    ------
    ValueError
        If a row has no direction, or a distance is none: negative, not finite, other both ways.
    """
    if metric == "euclidean":
        return reference.euclidean_distances(X, Y)
    if metric == "cosine":
        return _cosine(X, Y)
    if metric == "manhattan":
        return _manhattan(X, Y)
    assert callable(metric)
    return _called(X, Y, metric)


def _directions(X: NDArray[Any]) -> NDArray[np.float64]:
    """Return rows of length 1."""
    rows = np.asarray(X, np.float64)
    largest = np.abs(rows).max(axis=1)
    if not largest.all():
        raise ValueError(
            f"X: expected no row of zeros, which have no cosine, got row {int(largest.argmin())}"
        )
    rows = np.ldexp(rows, -np.frexp(largest)[1][:, None])  # no square overflows or vanishes
    return np.asarray(rows / np.sqrt((rows * rows).sum(axis=1))[:, None])


def _cosine(X: NDArray[Any], Y: NDArray[Any] | None) -> NDArray[np.float64]:
    """1 - cos; of nearby directions |u - v|^2 / 2, which is the same and keeps its digits."""
    U = _directions(X)
    V = U if Y is None else _directions(Y)
    D = 1.0 - U @ V.T
    for i in np.flatnonzero((D < _NEAR).any(axis=1)):
        near = np.flatnonzero(D[i] < _NEAR)
        differences = V[near] - U[i]
        D[i, near] = (differences * differences).sum(axis=1) / 2
    D[D <= _SAME] = 0.0
    symmetric: NDArray[np.float64] = np.minimum(D, D.T) if Y is None else D
    return symmetric


def _manhattan(X: NDArray[Any], Y: NDArray[Any] | None) -> NDArray[np.float64]:
    X = np.asarray(X, np.float64)
    Y = X if Y is None else np.asarray(Y, np.float64)
    D = np.empty((len(X), len(Y)))
    with np.errstate(over="ignore"):
        for i, x in enumerate(X):
            D[i] = np.abs(Y - x).sum(axis=1)
    if not np.isfinite(D).all():
        i, j = np.argwhere(~np.isfinite(D))[0].tolist()
        raise ValueError(f"X: the distance of rows {i} and {j} is more than float64 holds")
    return D


def _called(X: NDArray[Any], Y: NDArray[Any] | None, metric: Any) -> NDArray[np.float64]:
    """Call a function for every pair, both ways: what is no distance is told."""
    one, other = (rows.view() for rows in (X, X if Y is None else Y))
    one.flags.writeable = other.flags.writeable = False
    D = np.empty((len(one), len(other)))
    for i, x in enumerate(one):
        for j, y in enumerate(other):
            try:
                value = float(metric(x, y))
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"metric: expected a number for rows {i} and {j} ({error})"
                ) from error
            if not 0 <= value < np.inf:
                raise ValueError(
                    f"metric: expected a finite distance >= 0, got {value} for rows {i} and {j}"
                )
            D[i, j] = value
    if Y is None and not np.allclose(D, D.T):
        i, j = np.argwhere(~np.isclose(D, D.T))[0].tolist()
        raise ValueError(
            f"metric: expected the same distance both ways, got {D[i, j]} from row {i} to {j}, "
            f"and {D[j, i]} back"
        )
    return D


def nearest(X: NDArray[Any], centres: NDArray[Any], metric: Metric) -> NDArray[np.int64]:
    """Return the nearest of k centres of each of m points, the lowest of equals."""
    found = np.empty(len(X), np.int64)
    step = max(1, _ROWS // max(X.shape[1], len(centres)))
    for start in range(0, len(X), step):
        D = distances(centres, X[start : start + step], metric)
        found[start : start + step] = D.argmin(axis=0)
    return found
