"""What people use today, called at its best: each peer returns what the case's check compares."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64] | NDArray[np.float32]


def unit_distances(X: Floats) -> Floats:
    """Euclidean distances by one matrix product, divided by the largest."""
    squares = np.einsum("nd,nd->n", X, X)
    D = squares[:, None] + squares - 2 * (X @ X.T)
    np.maximum(D, 0, out=D)
    np.sqrt(D, out=D)
    np.fill_diagonal(D, 0)
    return D / D.max()


def exact_cost(X: Floats, medoids: NDArray[np.int64]) -> float:
    """Sum of the distances to the nearest medoid, in float64, a few rows at a time."""
    centres = X[np.asarray(medoids, np.int64)].astype(np.float64)
    total = 0.0
    for start in range(0, len(X), 5000):
        rows = X[start : start + 5000].astype(np.float64)
        squares = (rows**2).sum(axis=1)[:, None] + (centres**2).sum(axis=1) - 2 * rows @ centres.T
        total += float(np.sqrt(np.maximum(squares.min(axis=1), 0)).sum())
    return total


def pool_and_weights(X: Floats, r: Floats) -> tuple[NDArray[np.int64], Floats, Floats]:
    """AMPO, Appendix E: the group without its best response, its distances and weights."""
    scaled = (r - r.min()) / (r.max() - r.min())
    pool = np.delete(np.arange(len(r)), np.argmax(scaled))
    return pool, unit_distances(X[pool]), np.exp(scaled[pool].mean() - scaled[pool])


def random_start(n: int, k: int, seed: int) -> NDArray[np.uint64]:
    """Draw k of n positions, in the type that kmedoids takes; a case does so before it times."""
    return np.random.default_rng(seed).choice(n, k, replace=False).astype(np.uint64)


def opt_select_fasterpam(
    X: Floats, r: Floats, start: NDArray[np.uint64]
) -> tuple[float, list[int]]:
    """Numpy distances, then the Rust k-medoids; weights multiply the rows."""
    import kmedoids

    pool, D, w = pool_and_weights(X, r)
    # It reads D[point, candidate].
    found = kmedoids.fasterpam((D * w[:, None]).astype(np.float32), start, n_cpu=1)
    return float(found.loss), sorted(int(pool[j]) for j in found.medoids)


def opt_select_appendix_e(
    X: Floats, r: Floats, start: NDArray[np.uint64]
) -> tuple[float, list[int]]:
    """Search as the paper does, written anew: every swap priced by summing the whole cost."""
    pool, D, w = pool_and_weights(X.astype(np.float64), r)
    n = len(pool)

    def cost(chosen: set[int]) -> float:
        return sum(w[i] * min(D[i, j] for j in chosen) for i in range(n))

    chosen = set(start.tolist())
    now = cost(chosen)
    while True:
        best, best_gain = None, 1e-12
        for out in list(chosen):
            for new in set(range(n)) - chosen:
                gain = now - cost((chosen - {out}) | {new})
                if gain > best_gain:
                    best, best_gain = (out, new), gain
        if best is None:
            return now, sorted(int(pool[j]) for j in chosen)
        chosen = (chosen - {best[0]}) | {best[1]}
        now -= best_gain


def opt_select_optimum(X: Floats, r: Floats, k: int) -> float:
    """AMPO (9) as a p-median integer program, solved exactly by HiGHS through scipy."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_matrix, eye, hstack, kron

    _, D, w = pool_and_weights(X.astype(np.float64), r)
    n = len(D)
    # Columns: open_j, then assign_ij point by point.
    assign = kron(eye(n), np.ones((1, n)))  # each point once
    linked = hstack([-kron(np.ones((n, 1)), eye(n)), eye(n * n)])  # to an open one
    constraints = [
        LinearConstraint(hstack([coo_matrix((n, n)), assign]), 1, 1),
        LinearConstraint(linked, -np.inf, 0),
        LinearConstraint(np.r_[np.ones(n), np.zeros(n * n)], k, k),
    ]
    solved = milp(
        np.r_[np.zeros(n), (w[:, None] * D).ravel()],
        integrality=np.r_[np.ones(n), np.zeros(n * n)],
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": 0},
    )
    return float(solved.fun)


def coreset_sklearn(X: Floats, r: Floats, k: int, seed: int) -> float:
    """Inertia of scikit-learn's k-means on the pool."""
    from sklearn.cluster import KMeans

    pool = np.delete(X, np.argmax(r), axis=0)
    return float(KMeans(k, n_init=1, random_state=seed).fit(pool).inertia_)


def logdet_matrix_free(V: Floats, k: int, gamma: float, tie: float = 0) -> list[int]:
    """Partial Cholesky in numpy: one product of the whole V with the last pick each time.

    Candidates within `tie` of the largest, relatively, tie, and the first of them is picked.
    """
    square = np.einsum("ij,ij->i", V, V, dtype=np.float64) / gamma
    U = np.empty((k, len(V)))
    picks: list[int] = []
    for t in range(k):
        best = square.copy()
        best[picks] = -1
        i = int(np.argmax(best >= best.max() * (1 - tie) if tie else best))
        column = (V @ V[i]).astype(np.float64) / gamma
        U[t] = (column - U[:t].T @ U[:t, i]) / np.sqrt(1 + square[i])
        square -= U[t] ** 2
        picks.append(i)
    return picks


def logdet_sherman_morrison(V: Floats, k: int, gamma: float) -> list[int]:
    """H^-1 as a d x d matrix, as in MASS-DPO's text."""
    V = V.astype(np.float64)
    inverse = np.eye(V.shape[1]) / gamma
    picks: list[int] = []
    for _ in range(k):
        values = np.einsum("ij,ij->i", V @ inverse, V)
        values[picks] = -1
        i = int(np.argmax(values))
        Hv = inverse @ V[i]
        inverse -= np.outer(Hv, Hv) / (1 + values[i])
        picks.append(i)
    return picks


def logdet_information(V: Floats, k: int, gamma: float) -> list[int]:
    """H^-1 as a d x d matrix, and every residual brought up to date by one product a pick."""
    V = V.astype(np.float64)
    inverse = np.eye(V.shape[1]) / gamma
    residuals = np.einsum("ij,ij->i", V, V) / gamma
    picks: list[int] = []
    for _ in range(k):
        i = int(np.argmax(residuals))
        Hv = inverse @ V[i]
        scale = 1 + V[i] @ Hv
        residuals -= (V @ Hv) ** 2 / scale
        residuals[i] = -np.inf
        inverse -= np.outer(Hv, Hv) / scale
        picks.append(i)
    return picks


def logdet_submodlib(V: Floats, k: int, gamma: float) -> list[int]:
    """Submodlib's lazy greedy on the Gram matrix."""
    from submodlib import LogDeterminantFunction

    function = LogDeterminantFunction(len(V), "dense", gamma, sijs=V @ V.T)
    found = function.maximize(
        k, "LazyGreedy", stopIfZeroGain=False, stopIfNegativeGain=False, show_progress=False
    )
    return [int(i) for i, _ in found]
