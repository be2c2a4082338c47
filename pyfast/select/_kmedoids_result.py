"""What weighted k-medoids found, and the nearest medoid of other points."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyfast import _arguments as args
from pyfast._results import ByValue
from pyfast.select import _metrics


@dataclass(frozen=True, eq=False, init=False)
class KMedoidsResult(ByValue):
    """What :func:`kmedoids` found. Shapes are for one group; a batch stacks them in front.

    Attributes
    ----------
    medoids : ndarray of int64, shape (k,) or (B, k)
        Positions within the group, ascending and distinct.
    labels : ndarray of int64, shape (n,), (B, n) or (T,)
        Position in ``medoids`` of each point's nearest medoid (the lowest of equals); of a medoid
        always its own, also where it lies on another one, so that no cluster is empty.
    cost : float or ndarray of float64, shape (B,)
        ``sum_i w_i min_j d_ij``.
    n_swaps, n_passes : int or ndarray of int64, shape (B,)
        Swaps made and sweeps over the candidates, of the start that won.
    bound, gap : float or ndarray of float64, shape (B,), or None
        With `certify` or `exact`: no set of k points costs less than ``bound``, and ``gap`` is
        ``(cost - bound) / cost``. None otherwise.
    """

    medoids: NDArray[np.int64]
    labels: NDArray[np.int64]
    cost: float | NDArray[np.float64]
    n_swaps: int | NDArray[np.int64]
    n_passes: int | NDArray[np.int64]
    bound: float | NDArray[np.float64] | None = None
    gap: float | NDArray[np.float64] | None = None

    def __init__(
        self,
        medoids: NDArray[np.int64],
        labels: NDArray[np.int64],
        cost: float | NDArray[np.float64],
        n_swaps: int | NDArray[np.int64],
        n_passes: int | NDArray[np.int64],
        bound: float | NDArray[np.float64] | None = None,
        gap: float | NDArray[np.float64] | None = None,
    ) -> None:
        # At once: field by field, as a frozen dataclass does it, takes as long as a small problem.
        self.__dict__.update(
            medoids=medoids, labels=labels, cost=cost, n_swaps=n_swaps, n_passes=n_passes,
            bound=bound, gap=gap,
        )  # fmt: skip

    def predict(self, X: ArrayLike, *, offsets: ArrayLike | None = None) -> NDArray[np.int64]:
        """Return the nearest medoid of other points.

        Parameters
        ----------
        X : array_like, shape (m, d), (B, m, d), or (M, d) with `offsets`
            Points for each group that was clustered, as :func:`kmedoids` takes them. After
            "precomputed" distances (m, n) to the n points of the one group.
        offsets : array_like of int, shape (B+1,), optional
            Ragged groups; they need not be as large as those clustered.

        Returns
        -------
        ndarray of int64, shape (m,), (B, m) or (M,)
            Positions in ``medoids``, the lowest of equals, by distances in float64.

        Raises
        ------
        ValueError, TypeError
            If the points do not fit those that were clustered.
        """
        return Fit(*self.__dict__["_fit"]).predict(X, offsets)


@dataclass(frozen=True)
class Fit:
    """What `KMedoidsResult.predict` needs: rows of the medoids, group by group; or the size."""

    metric: _metrics.Metric
    centres: NDArray[Any] | None
    groups: int
    one: bool
    size: int = 0
    medoids: NDArray[np.int64] | None = None

    def predict(self, X: ArrayLike, offsets: ArrayLike | None) -> NDArray[np.int64]:
        data = args.as_floats(X, "X", booleans=True)
        if self.centres is None:
            return self._of_distances(data, offsets)
        layout = args.layout_of(data, "X", 2, offsets)
        if layout.count != self.groups or (self.one and layout.kind == "batch"):
            raise ValueError(f"X: expected points of {self.groups} groups, got {layout.count}")
        args.check_values(data, "X", layout)
        data = data.reshape(-1, data.shape[-1])
        centres = args.as_floats(self.centres, "X", booleans=True)
        if data.shape[1] != centres.shape[1]:
            raise ValueError(f"X: expected {centres.shape[1]} columns, got {data.shape[1]}")
        of_group = centres.reshape(self.groups, -1, centres.shape[1])
        bounds = layout.offsets
        found = np.concatenate([
            _metrics.nearest(data[bounds[b] : bounds[b + 1]], of_group[b], self.metric)
            for b in range(self.groups)
        ])  # fmt: skip
        return layout.per_point(found)

    def _of_distances(self, data: args.Floats, offsets: ArrayLike | None) -> NDArray[np.int64]:
        if not self.one or offsets is not None:
            raise ValueError("X: with precomputed distances, expected one group to predict for")
        if data.ndim != 2 or data.shape[1] != self.size:
            raise ValueError(
                f"X: expected distances to the {self.size} points, shape (m, {self.size}), "
                f"got {data.shape}"
            )
        args.check_values(data, "X", args.layout_of(data, "X", 2, None), nonnegative=True)
        return np.asarray(data[:, self.medoids].argmin(axis=1), np.int64)
