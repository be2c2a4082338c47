"""scikit-learn estimators over `pyfast.select`: k-medoids, and D-optimal choice of samples.

They keep scikit-learn's conventions whole (its ``check_estimator`` passes), so they go into
pipelines, grid searches and clones. `KMedoids` reads the parameters of ``sklearn_extra`` and of
``kmedoids`` and has the attributes of both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    ClusterMixin,
    TransformerMixin,
)
from sklearn.metrics import pairwise_distances
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from pyfast import select
from pyfast.select import _metrics, reference

_METRICS = {
    "euclidean": "euclidean",
    "l2": "euclidean",
    "cosine": "cosine",
    "manhattan": "manhattan",
    "l1": "manhattan",
    "cityblock": "manhattan",
}
_SEARCHES = {"fasterpam": "eager", "pam": "best", "fastpam1": "best"}
_STARTS = {"random": "random", "build": "greedy", "greedy": "greedy"}


class KMedoids(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """k-medoids clustering: k of the samples, such that all are near one of them.

    Minimises ``sum_i w_i d(x_i, nearest medoid)`` by swaps, with `pyfast.select.kmedoids`.

    Parameters
    ----------
    n_clusters : int
        k.
    metric : str or callable
        "euclidean" is measured by the native core, and needs no n x n matrix for many samples;
        "precomputed" takes distances (n, n); "cosine" and "manhattan" are those of
        `pyfast.select.kmedoids`, which keep the digits of small distances (rows of zeros have no
        cosine); anything else is what `sklearn.metrics.pairwise_distances` takes, which makes
        n x n distances.
    metric_params : dict, optional
        More arguments of the metric.
    method : {"pam", "fasterpam", "fastpam1"}
        How swaps are searched: the best of all each time (its results do not depend on the order of
        the samples, but for ties), or each that improves at once (FasterPAM; faster for many
        samples). "fastpam1" is another name of "pam". ``sklearn_extra``'s "alternate" ends in worse
        optima and is not offered.
    init : {"build", "random", "heuristic", "first"} or array_like
        The first start: greedy (PAM's BUILD), random, the samples of the smallest sums of
        distances, the first samples, positions (k,) of samples, or samples (k, n_features).
    n_init : int
        Starts; those after the first are random. The cheapest result is kept.
    max_iter : int
        Taken for the sake of other libraries' calls, at least 1: a search ends in a local optimum.
    random_state : int, RandomState instance or None
        Seeds random starts.

    Attributes
    ----------
    medoid_indices_ : int64 array, shape (k,)
        Which samples the medoids are, cluster by cluster.
    cluster_centers_ : array, shape (k, n_features), or None
        The medoids; None for precomputed distances.
    labels_ : int64 array, shape (n_samples,)
        Cluster of each sample.
    inertia_ : float
        Weighted sum of the samples' distances to their medoids.
    n_iter_ : int
        Sweeps over the candidates.
    n_swaps_ : int
        Swaps made.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    See Also
    --------
    pyfast.select.kmedoids : The same of arrays, with bounds on the optimum and batches of groups.

    Examples
    --------
    >>> from pyfast.integrations.sklearn import KMedoids
    >>> model = KMedoids(n_clusters=2).fit([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])
    >>> model.medoid_indices_.tolist(), model.predict([[1.4], [10.6]]).tolist()
    ([1, 4], [0, 1])
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        metric: Any = "euclidean",
        metric_params: dict[str, Any] | None = None,
        method: str = "pam",
        init: Any = "build",
        n_init: int = 1,
        max_iter: int = 300,
        random_state: Any = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.metric = metric
        self.metric_params = metric_params
        self.method = method
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> KMedoids:
        """Cluster samples.

        Parameters
        ----------
        X : array_like, shape (n_samples, n_features), or (n_samples, n_samples) if precomputed
            float32 or float64; other numbers become float64.
        y : ignored
            Here for scikit-learn's sake.
        sample_weight : array_like, shape (n_samples,), optional
            Finite and >= 0; samples of weight 0 count as absent.

        Returns
        -------
        KMedoids
            Itself.
        """
        X = validate_data(self, X, dtype=(np.float64, np.float32), order="C")
        search = self._choice("method", _SEARCHES)
        k = _count(self.n_clusters, "n_clusters")
        _count(self.max_iter, "max_iter")
        weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        if not weights.any():
            raise ValueError("sample_weight: expected a positive weight, got only zeros")
        kept = np.flatnonzero(weights)
        if k > len(kept):
            raise ValueError(
                f"n_samples={len(kept)} should be >= n_clusters={k} "
                "(samples of weight 0 do not count)"
            )
        # One order of the samples whatever the one they came in, so that ties fall the same way.
        order = kept[np.lexsort(X[kept].T[::-1])] if self.metric != "precomputed" else kept
        native, data = self._distances(X, order)
        result = select.kmedoids(
            data,
            k,
            weights=weights[order],
            metric=native,
            init=self._start(X, order, data, native, weights[order], k),
            n_init=self.n_init,
            search=search,
            seed=int(check_random_state(self.random_state).randint(2**31 - 1)),
        )
        self.medoid_indices_ = order[result.medoids]
        self.cluster_centers_ = None if self.metric == "precomputed" else X[self.medoid_indices_]
        labels = np.empty(len(X), np.int64)
        labels[order] = result.labels
        if len(kept) < len(X):
            absent = np.setdiff1d(np.arange(len(X)), kept)
            labels[absent] = self._nearest(X[absent])
        self.labels_ = labels
        self.inertia_ = float(result.cost)
        self.n_iter_ = max(1, int(result.n_passes))
        self.n_swaps_ = int(result.n_swaps)
        return self

    def predict(self, X: Any) -> NDArray[np.int64]:
        """Return the cluster of the nearest medoid of each sample.

        Parameters
        ----------
        X : array_like, shape (n, n_features), or (n, n_samples) if precomputed
            Samples, or their distances to those of `fit`.

        Returns
        -------
        int64 array, shape (n,)
            The number of each one's nearest medoid.
        """
        return self._nearest(self._checked(X))

    def transform(self, X: Any) -> NDArray[Any]:
        """Return the distances (n, k) from each sample to the medoids."""
        X = self._checked(X)
        return np.asarray(self._to_medoids(X), X.dtype)

    @property
    def _n_features_out(self) -> int:
        return len(self.medoid_indices_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = self.metric == "precomputed"
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _checked(self, X: Any) -> NDArray[Any]:
        check_is_fitted(self)
        return validate_data(self, X, dtype=(np.float64, np.float32), reset=False)  # type: ignore[no-any-return]

    def _to_medoids(self, X: NDArray[Any]) -> NDArray[Any]:
        if self.metric == "precomputed":
            return X[:, self.medoid_indices_]
        own = self._own_metric()
        if own == "euclidean":
            return _euclidean(X, self.cluster_centers_)
        if own is not None:
            return _metrics.distances(X, np.asarray(self.cluster_centers_), own)
        return np.asarray(
            pairwise_distances(
                X, self.cluster_centers_, metric=self.metric, **(self.metric_params or {})
            )
        )

    def _nearest(self, X: NDArray[Any]) -> NDArray[np.int64]:
        return np.asarray(self._to_medoids(X).argmin(axis=1), np.int64)

    def _own_metric(self) -> str | None:
        """Return the metric as `select.kmedoids` calls it, if it has it."""
        if not isinstance(self.metric, str) or self.metric_params:
            return None
        return _METRICS.get(self.metric)

    def _choice(self, name: str, known: dict[str, str]) -> Any:
        value = getattr(self, name)
        if not isinstance(value, str) or value not in known:
            raise ValueError(f"{name}: expected one of {', '.join(known)}; got {value!r}")
        return known[value]

    def _distances(self, X: NDArray[Any], order: NDArray[np.int64]) -> tuple[Any, NDArray[Any]]:
        """Return what `select.kmedoids` is given: its metric, and points or distances."""
        if self.metric == "precomputed":
            if X.shape[0] != X.shape[1]:
                raise ValueError(f"X: expected square distances, got shape {X.shape}")
            return "precomputed", X[np.ix_(order, order)]
        own = self._own_metric()
        if own is not None:
            return own, X[order]
        distances = pairwise_distances(X[order], metric=self.metric, **(self.metric_params or {}))
        np.fill_diagonal(distances, 0)  # cosines of a row with itself are not always 1
        return "precomputed", np.maximum(distances, 0)

    def _start(
        self,
        X: NDArray[Any],
        order: NDArray[np.int64],
        data: NDArray[Any],
        native: str,
        weights: NDArray[np.float64],
        k: int,
    ) -> Any:
        """Return `init` as `select.kmedoids` takes it, in places of `order`."""
        if isinstance(self.init, str):
            if self.init == "first":
                return _places(np.sort(order)[:k], order)
            if self.init == "heuristic":
                distances = data
                if native == "euclidean":
                    distances = _euclidean(data, data)
                elif native != "precomputed":
                    distances = _metrics.distances(data, None, native)
                return np.argsort(distances @ weights, kind="stable")[:k]
            known = {**_STARTS, "heuristic": "", "first": ""}
            return self._choice("init", known)
        given = np.asarray(self.init)
        if given.ndim == 1 and given.dtype.kind in "iu":
            return _places(given, order)
        if given.shape != (k, X.shape[1]) or self.metric == "precomputed":
            raise ValueError(
                f"init: expected a name, {k} positions of samples or {k} samples, "
                f"got shape {given.shape}"
            )
        equal = [np.flatnonzero((X[order] == row).all(axis=1)) for row in given]
        missing = [number for number, found in enumerate(equal) if len(found) == 0]
        if missing:
            raise ValueError(f"init: row {missing[0]} is none of the samples of X")
        return np.array([found[0] for found in equal])


def _euclidean(X: NDArray[Any], centres: Any) -> NDArray[np.float64]:
    """Return the distances (n, k) in float64, measured as the native core does: by differences.

    scikit-learn's ``|x|^2 - 2 x c + |c|^2`` cancels far from the origin, and overflows.
    """
    X, centres = np.asarray(X, np.float64), np.asarray(centres, np.float64)
    distances = np.asarray(cdist(X, centres))
    doubtful = ~((distances > 1e-140) & (distances < 1e150))  # squares may vanish or overflow
    for j in np.flatnonzero(doubtful.any(axis=0)):
        rows = np.flatnonzero(doubtful[:, j])
        distances[rows, j] = reference.euclidean_distances(centres[j : j + 1], X[rows])[0]
    return distances


class DOptimalSelector(BaseEstimator):
    """Greedy D-optimal choice of samples: those whose information matrix has the largest volume.

    Adds, one after the other, the sample of the largest ``v^T H^-1 v``, where
    ``H = gamma I + sum v v^T`` over those chosen (`pyfast.select.logdet`).

    Parameters
    ----------
    n_samples : int
        How many to choose; all, where there are fewer.
    gamma : float
        The ridge, above 0, in units of squared features: scale features first.

    Attributes
    ----------
    ranking_ : int64 array, shape (n_samples,)
        Positions of the samples, in the order of choice.
    gains_ : float64 array, shape (n_samples,)
        What each added to the log-determinant.
    logdet_ : float
        ``log det H`` of all chosen so far.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    See Also
    --------
    pyfast.select.logdet : The same of arrays, with batches of groups and exact search.

    Examples
    --------
    >>> from pyfast.integrations.sklearn import DOptimalSelector
    >>> X = [[1.0, 0.0], [0.9, 0.1], [0.0, 0.8]]
    >>> DOptimalSelector(n_samples=2).fit(X).ranking_.tolist()
    [0, 2]
    """

    def __init__(self, n_samples: int = 10, *, gamma: float = 0.1) -> None:
        self.n_samples = n_samples
        self.gamma = gamma

    def fit(self, X: Any, y: Any = None) -> DOptimalSelector:
        """Choose among the rows of X (n, n_features)."""
        self.__dict__.pop("_state", None)
        return self._choose(X, reset=True)

    def partial_fit(self, X: Any, y: Any = None) -> DOptimalSelector:
        """Choose among the rows of X what adds most to all that was chosen before.

        ``ranking_`` and ``gains_`` are of this call.
        """
        return self._choose(X, reset=not hasattr(self, "_state"))

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """Return what each row would add to the log-determinant, ``log(1 + v^T H^-1 v)``, (n,)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        state = self._state
        assert state is not None
        # H^-1 by its square root: QR of the chosen rows over sqrt(gamma) I, safe at any scale.
        rows = np.vstack([state.vectors, np.sqrt(state.gamma) * np.eye(state.vectors.shape[1])])
        solved = np.linalg.solve(np.linalg.qr(rows)[1].T, X.T.astype(np.float64))
        gains: NDArray[np.float64] = np.log1p((solved * solved).sum(axis=0))
        return gains

    def _choose(self, X: Any, *, reset: bool) -> DOptimalSelector:
        X = validate_data(self, X, dtype=(np.float64, np.float32), order="C", reset=reset)
        wanted = _count(self.n_samples, "n_samples")
        state = getattr(self, "_state", None)
        result = select.logdet(X, min(wanted, len(X)), self.gamma, state=state)
        self._state = result.state
        self.ranking_ = result.indices
        self.gains_ = result.gains
        self.logdet_ = float(result.logdet)
        return self


def _count(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")
    return int(value)


def _places(wanted: NDArray[Any], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where in `order` the samples of these positions are."""
    where = {int(sample): place for place, sample in enumerate(order)}
    missing = [int(sample) for sample in wanted if int(sample) not in where]
    if missing:
        raise ValueError(f"init: no sample {missing[0]} with a weight above 0 in X")
    return np.array([where[int(sample)] for sample in wanted])
