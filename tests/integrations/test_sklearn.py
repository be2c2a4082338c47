import math

import numpy as np
import pytest
from sklearn.datasets import make_blobs
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from pyfast import select
from pyfast.integrations.sklearn import DOptimalSelector, KMedoids


@parametrize_with_checks(
    [
        KMedoids(),
        KMedoids(method="fasterpam", init="random", n_init=3, random_state=0),
        KMedoids(metric="manhattan", init="heuristic"),
        DOptimalSelector(),
    ]
)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def blobs():
    X, y = make_blobs(90, 3, centers=4, random_state=0)
    return X, y


def test_attributes_of_sklearn_extra_and_kmedoids(blobs):
    X, _ = blobs
    model = KMedoids(4, init="random", n_init=5, random_state=1).fit(X)
    D = np.sqrt(((X[:, None] - X[None]) ** 2).sum(-1))
    to_medoids = D[:, model.medoid_indices_]
    assert (model.cluster_centers_ == X[model.medoid_indices_]).all()
    assert (model.labels_ == to_medoids.argmin(1)).all()
    assert model.labels_[model.medoid_indices_].tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(model.inertia_, to_medoids.min(1).sum(), rtol=1e-12)
    np.testing.assert_allclose(model.transform(X), to_medoids, atol=1e-6)
    assert (model.predict(X) == model.labels_).all()
    assert model.get_feature_names_out().tolist() == [f"kmedoids{i}" for i in range(4)]
    # the very clusters, whatever the kind of distances
    other = KMedoids(4, metric="precomputed", init="random", n_init=5, random_state=1).fit(D)
    np.testing.assert_allclose(other.inertia_, model.inertia_, rtol=1e-9)
    assert other.cluster_centers_ is None
    assert (other.predict(D[:7]) == other.labels_[:7]).all()


@pytest.mark.parametrize("metric", ["cosine", "manhattan", lambda a, b: abs(a - b).max()])
def test_other_metrics_reach_what_their_distances_reach(blobs, metric):
    from sklearn.metrics import pairwise_distances

    X, _ = blobs
    D = pairwise_distances(X, metric=metric)
    model = KMedoids(4, metric=metric).fit(X)
    np.testing.assert_allclose(model.inertia_, D[:, model.medoid_indices_].min(1).sum(), rtol=1e-9)
    best = select.kmedoids((D + D.T) / 2, 4, metric="precomputed", init="greedy", search="best")
    assert model.inertia_ <= best.cost * (1 + 1e-9)


@pytest.mark.parametrize("method", ["pam", "fasterpam"])
def test_weights_are_copies(blobs, method):
    X, _ = blobs
    weights = np.random.default_rng(0).integers(0, 4, len(X))
    weighted = KMedoids(4, method=method).fit(X, sample_weight=weights)
    copied = KMedoids(4, method=method).fit(np.repeat(X, weights, axis=0))
    np.testing.assert_allclose(weighted.inertia_, copied.inertia_, rtol=1e-9)
    assert weights[weighted.medoid_indices_].all()  # who counts as absent is no medoid
    assert (weighted.labels_ == weighted.predict(X)).all()


@pytest.mark.parametrize("init", ["build", "random", "heuristic", "first", [5, 0, 17, 40], "rows"])
def test_starts(blobs, init):
    X, _ = blobs
    init = X[[5, 0, 17, 40]] if isinstance(init, str) and init == "rows" else init
    model = KMedoids(4, init=init, random_state=0).fit(X)
    D = np.sqrt(((X[:, None] - X[None]) ** 2).sum(-1))
    for out in range(4):  # no swap improves it
        kept = np.delete(model.medoid_indices_, out)
        costs = np.minimum(D[:, kept].min(1)[:, None], D).sum(0)
        assert costs.min() >= model.inertia_ * (1 - 1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_clusters": 0}, "n_clusters: expected at least 1"),
        ({"n_clusters": 91}, "n_samples=90 should be >= n_clusters=91"),
        ({"method": "alternate"}, "method: expected one of fasterpam, pam, fastpam1"),
        ({"init": "k-means++"}, "init: expected one of"),
        ({"init": [0, 1]}, "init: expected shape"),
        ({"init": [0, 1, 2, 900]}, "init: no sample 900"),
        ({"init": np.zeros((4, 3))}, "init: row 0 is none of the samples"),
        ({"metric": "precomputed"}, "square distances"),
        ({"max_iter": 0}, "max_iter: expected at least 1"),
    ],
)
def test_bad_parameters(blobs, changes, message):
    with pytest.raises(ValueError, match=message):
        KMedoids(**{"n_clusters": 4, **changes}).fit(blobs[0])


def test_in_a_pipeline_and_a_grid_search(blobs):
    X, y = blobs
    pipeline = make_pipeline(StandardScaler(), KMedoids(random_state=0))
    search = GridSearchCV(
        pipeline, {"kmedoids__n_clusters": [2, 4]}, scoring="adjusted_rand_score", cv=3
    ).fit(X, y)
    assert search.best_params_ == {"kmedoids__n_clusters": 4}


def test_d_optimal_choice_is_logdets(blobs):
    X, _ = blobs
    expected = select.logdet(X, 6, 0.5)
    model = DOptimalSelector(6, gamma=0.5).fit(X)
    assert (model.ranking_ == expected.indices).all()
    assert model.logdet_ == expected.logdet
    H = 0.5 * np.eye(3) + X[model.ranking_].T @ X[model.ranking_]
    gains = np.log1p(np.einsum("ni,ij,nj->n", X, np.linalg.inv(H), X))
    np.testing.assert_allclose(model.score_samples(X), gains, rtol=1e-9)
    np.testing.assert_allclose(model.logdet_, np.linalg.slogdet(H)[1], rtol=1e-12)
    # more from new samples, beside those
    again = model.partial_fit(X[::-1])
    H += X[::-1][again.ranking_].T @ X[::-1][again.ranking_]
    np.testing.assert_allclose(again.logdet_, np.linalg.slogdet(H)[1], rtol=1e-12)
    assert len(DOptimalSelector(500).fit(X).ranking_) == len(X)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("metric", ["euclidean", "l2"])
@pytest.mark.parametrize(
    ("scale", "shift"),
    [(1.0, 0.0), (1.0, 1e9), (1e-3, 1.7e9), (1e300, 0.0), (1e-300, 0.0), (1e-30, 0), (1e30, 0)],
)
def test_labels_and_distances_of_any_scale_and_place(blobs, scale, shift, metric, dtype):
    with np.errstate(over="ignore"):
        X = (blobs[0] * scale + shift).astype(dtype)
    if not np.isfinite(X).all() or len(np.unique(X, axis=0)) < len(X):
        X = (blobs[0] * 1e-18 if scale < 1 else blobs[0] * 1e18).astype(dtype)
    model = KMedoids(4, metric=metric, init="heuristic").fit(X)
    truth = np.array([[math.dist(x, c) for c in model.cluster_centers_] for x in X])
    seen = model.transform(X)
    assert seen.dtype == dtype
    np.testing.assert_allclose(seen, truth, rtol=1e-6 if dtype == np.float32 else 1e-13, atol=0)
    assert model.labels_.tolist() == truth.argmin(1).tolist()
    assert model.predict(X).tolist() == model.labels_.tolist()
    np.testing.assert_allclose(model.inertia_, truth.min(1).sum(), rtol=1e-5)
    X[-1] = X[0]  # a weight of 0 gets its label the same way
    weights = np.ones(len(X))
    weights[::7] = 0
    model = KMedoids(4, metric=metric).fit(X, sample_weight=weights)
    truth = np.array([[math.dist(x, c) for c in model.cluster_centers_] for x in X])
    assert model.labels_.tolist() == truth.argmin(1).tolist()


@pytest.mark.parametrize("metric", ["cosine", "manhattan", "l1", "cityblock"])
def test_metrics_of_the_core_are_passed_on(metric):
    """Rows next to each other far away: pairwise_distances' cosine has lost all digits there."""
    draw = np.random.default_rng(0)
    X = draw.normal(size=(40, 6))
    if metric == "cosine":
        centres = draw.normal(size=(1, 6)) + 3e-9 * np.repeat(np.eye(4, 6), 10, axis=0)
        X = centres + 1e-11 * X
    model = KMedoids(n_clusters=4, metric=metric, n_init=5, random_state=0).fit(X)
    own = "cosine" if metric == "cosine" else "manhattan"
    result = select.kmedoids(X, 4, metric=own, search="best", init="greedy", n_init=5)
    assert model.inertia_ == pytest.approx(result.cost, rel=1e-6)
    assert sorted(model.medoid_indices_) == result.medoids.tolist()
    assert (model.predict(X) == model.labels_).all()
    if metric == "cosine":
        assert [len(set(model.labels_[i : i + 10])) for i in (0, 10, 20, 30)] == [1] * 4
        assert len(set(model.labels_)) == 4
    distances = model.transform(X)
    assert (distances.argmin(axis=1) == model.labels_).all()
    assert distances.min(axis=1).sum() == pytest.approx(model.inertia_)
