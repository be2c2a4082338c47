"""Weighted k-medoids."""

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyfast import _arguments as args
from pyfast import _native
from pyfast._threads import resolve_threads
from pyfast.select import _certificate, _metrics
from pyfast.select._kmedoids_result import KMedoidsResult

# Points. A search of all 10,000 takes about as long as one of the sample and its polish, so that
# neither time nor memory jumps.
_SAMPLED_ABOVE = 10_000
_SAMPLE = 7_000
# Groups of so many points are searched on all their distances, whatever sample_size says (kSmall in
# C++).
_NEVER_SAMPLED = 128


def kmedoids(
    X: ArrayLike,
    k: int,
    *,
    weights: ArrayLike | None = None,
    metric: _metrics.Metric = "euclidean",
    init: Literal["random", "greedy"] | ArrayLike = "random",
    n_init: int = 1,
    search: Literal["eager", "best"] = "eager",
    seed: int = 0,
    sample_size: int | None = None,
    certify: bool = False,
    exact: bool = False,
    offsets: ArrayLike | None = None,
    n_threads: int | None = None,
) -> KMedoidsResult:
    """Choose k points of each group that minimise the weighted distance to the nearest of them.

    Minimises ``Cost(S) = sum_i w_i min_{j in S} d_ij`` over sets S of k points (AMPO, eq. 8) by
    swapping until no single swap improves the cost by more than 1e-12 of itself.

    Parameters
    ----------
    X : array_like, shape (n, d), (B, n, d), or (T, d) with `offsets`
        Points, float32 or float64 (integers, booleans and float16 widen); or distances, shape
        (n, n), (B, n, n), or (sum of n_b^2,) with `offsets`, if `metric` is "precomputed":
        finite, >= 0, symmetric (``D[i, j]`` and ``D[j, i]`` close by numpy's `allclose`).
    k : int
        Number of medoids, 1 <= k <= size of the smallest group.
    weights : array_like, shape (n,), (B, n) or (T,), optional
        Finite and >= 0; all ones by default.
    metric : {"euclidean", "precomputed", "cosine", "manhattan"} or callable
        How far points are apart: "euclidean" is measured by the native core. The others are
        n^2 distances in float64: "cosine" ``1 - cos(x, y)``, of rows that are not zero (rows of
        one direction within rounding are 0 apart), "manhattan" ``sum |x - y|``, and a function
        ``(x, y) -> distance`` of two rows, called for each pair both ways. "precomputed": `X`
        holds distances.
    init : {"random", "greedy"} or array_like of int, shape (k,) or (B, k)
        The first start: seeded and random, greedy (BUILD), or these points of each group.
    n_init : int
        Number of starts; those after the first are random. The cheapest result is kept.
    search : {"eager", "best"}
        "eager": FasterPAM, each improving swap at once. "best": the best of all swaps each time,
        the sets that AMPO's Appendix E visits; of equal swaps the first in ascending order of the
        medoid that leaves, then of the point that comes (the paper's code goes through a set).
    seed : int
        0 to 2**64 - 1. Every group draws the same stream, so that a group's result does not
        depend on the batch around it.
    sample_size : int, optional
        Search groups of more points than this on a sample of so many (see Notes), because time and
        memory grow with n^2; n or more forbids it. By default 7,000, or 10 k if that is more, for
        groups of more than 10,000 points; groups of up to 128 are never sampled.
    certify : bool
        Bound the optimum from below, for ``bound`` and ``gap``.
    exact : bool
        Find the optimum: where the bound leaves anything open, solve AMPO's integer program (9)
        by HiGHS (needs scipy: ``pip install "pyfast-align[exact]"``) and prove its answer. For
        groups of up to some hundred points; the solver does not answer to Ctrl-C.
    offsets : array_like of int, shape (B+1,), optional
        Ragged groups: group b owns points ``offsets[b]`` to ``offsets[b+1] - 1``.
    n_threads : int, optional
        Threads to use; default :func:`pyfast.get_num_threads`. The result does not depend on it.

    Returns
    -------
    KMedoidsResult
        ``medoids``, ``labels``, ``cost``, ``n_swaps``, ``n_passes``; ``predict(X)`` finds the
        nearest medoids of other points.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of its range, shape or type; the message names it and the place.
    ImportError
        With `exact`, if there is no scipy.
    RuntimeError
        With `exact`, if the solver gives up.

    Notes
    -----
    Distances are float64 up to 128 points, the same for float32 and float64 input of equal numbers.
    Above, they have the type of `X`, each within (40 + d / 1000) roundings of that type: the picks
    do not depend on threads, instruction set or memory layout, but near ties may go another way for
    float32 than for float64 input. Points may be as large or as small as their type holds, also in
    one set: a distance whose square would overflow or vanish is measured at a scale of its own.
    Products of weights and distances that lie more than 10^280 below the largest may count as 0.

    Memory, beside `X` and for each group being worked on (at most `n_threads` of a batch): 200
    bytes a point; from points, the medoids' rows and their distances, k (n + d) numbers of the type
    of `X`; from 1,000 points on, given distances or not, one byte for each of n^2, and from points
    of up to 4,096 numbers 1,100 d bytes a thread. From fewer points, or with ``k=1``,
    ``init="greedy"`` or ``search="best"``, n^2 distances too; up to 128 points, given distances or
    not, 3 n^2 float64. With a sample of m points: m in place of n, and 2 k n distances, as many
    bytes, k d numbers and 8 m (d + 25) bytes. When that is done,
    `certify` and `exact` take n^2 distances from points (float64 up to 128 points, else of the type
    of `X`), and `exact` then, if the bound is not enough, n (3 n + 3 d) float64 and what its solver
    needs.

    A sampled group: each of m equal parts of the total weight draws one point (those that weigh
    more than a part are all taken), and the search runs on the points drawn, each of the `n_init`
    starts on a sample of its own. Of the sets found and a given ``init``, the one that costs least
    on all points goes on: the 4 points nearest to the middle of each cluster, and points far from
    every medoid that seem worth one, are tried as medoids of all points, in up to 10 rounds (more
    where far clusters turn up), until no swap with them improves the cost. So ``cost``,
    ``labels`` and the swaps of those rounds are exact, and no given start was cheaper, but other
    points have been seen by the sample alone. "random" and "greedy" starts are of the sample.
    (CLARA of Kaufman and Rousseeuw, 1990, with one large weighted sample; compare OneBatchPAM of
    de Mathelin et al., AAAI 2025.)

    Every other result is a local optimum. Of points, or of distances that obey the triangle
    inequality, it costs at most 5 times the optimum (Arya et al., 2001); of given distances that
    do not, there is no such promise: 148 times was seen.

    The bound is a Lagrangian one (Cornuejols, Fisher and Nemhauser, 1977), safe against rounding;
    it takes up to 400 passes over the distances. With ``exact``, ``gap`` is 0 and ``bound`` the
    cost only where that is proven within 1e-9 (1e-6 where distances are float32), by this bound or
    by those that the duals of linear programs prove, whatever a solver's tolerances. Where the
    proof takes too many programs, ``gap`` is what is left, at most the 1e-6 that the solver's
    word is taken for.

    References
    ----------
    Schubert and Rousseeuw, "Fast and eager k-medoids clustering", Information Systems 101, 2021.

    Examples
    --------
    >>> from pyfast import select
    >>> result = select.kmedoids([[0.0], [1.0], [10.0], [12.0]], k=2, weights=[3, 1, 1, 2])
    >>> result.medoids.tolist(), result.labels.tolist(), result.cost
    ([0, 3], [0, 0, 1, 1], 3.0)
    """
    plain = weights is None and sample_size is None and offsets is None and n_threads is None
    masked = isinstance(init, np.ma.MaskedArray)  # which the native core would read as it is
    native = type(metric) is str and metric in _metrics.NATIVE
    if plain and native and type(X) is np.ndarray and not (masked or certify or exact):
        answer = _native.kmedoids_plain(X, k, metric, search, init, n_init, seed)
        if answer is not None:
            result = KMedoidsResult(*answer)
            if metric == "euclidean":  # a tuple: an object takes as long as a small problem
                result.__dict__["_fit"] = (metric, X.take(answer[0], 0), 1, True)
            else:
                result.__dict__["_fit"] = (metric, None, 1, True, len(X), answer[0])
            return result
    _metrics.check_metric(metric)
    data = args.as_floats(X, "X", booleans=metric != "precomputed")
    threads = resolve_threads(n_threads)
    if not native:
        layout = args.layout_of(data, "X", 2, offsets)
        args.check_values(data, "X", layout)
        args.check_k(k, layout)
        result = kmedoids(
            _all_distances(data.reshape(-1, data.shape[-1]), layout, metric),
            k,
            weights=weights,
            metric="precomputed",
            init=init,
            n_init=n_init,
            search=search,
            seed=seed,
            sample_size=sample_size,
            certify=certify,
            exact=exact,
            offsets=layout.offsets if layout.kind == "ragged" else None,
            n_threads=n_threads,
        )
        result.__dict__["_fit"] = _fit(metric, data, layout, result.medoids)
        return result
    if metric == "precomputed":
        layout = _distance_layout(data, offsets)
        data = data.reshape(-1)
    else:
        layout = args.layout_of(data, "X", 2, offsets)
        args.check_values(data, "X", layout)
        data = data.reshape(-1, data.shape[-1])
    k = args.check_k(k, layout)
    if weights is None:
        w = np.ones(int(layout.offsets[-1]))
    else:
        w = args.like_points(weights, "weights", layout)
        args.check_values(w, "weights", layout, nonnegative=True)
    start, given = _check_init(init, k, layout)

    sampling = _sampling(sample_size, metric, k)
    if certify or exact:
        _check_certifiable(layout, metric, sampling[1], exact)

    def solve(start: str, given: NDArray[np.int64], n_init: int, checked: bool) -> Any:
        return _native.kmedoids(
            data,
            layout.offsets,
            w,
            k,
            metric == "precomputed",
            checked,
            args.check_name(search, "search", ("eager", "best")),
            start,
            given,
            n_init,
            args.check_seed(seed),
            *sampling,
            threads,
        )

    n_init = args.check_int(n_init, "n_init", 1)
    found = solve(start, given, n_init, False)
    if found is None:  # perhaps not distances
        _check_distances(data, layout)
        found = solve(start, given, n_init, True)
    medoids, labels, cost, swaps, passes = found
    bound = gap = None
    if certify or exact:
        problem = _certificate.PMedian(
            data,
            layout.offsets,
            w,
            layout.sizes,
            np.full(layout.count, k),
            metric == "precomputed",
            unit=False,
        )
        bound, certified, best = _certificate.certify(problem, medoids, cost, threads, exact)
        gap = _certificate.gaps(bound, certified)
        if (best != medoids).any():
            medoids, labels, cost, *_ = solve("given", best, 1, True)
            bound = cost * (1 - gap)
    result = KMedoidsResult(
        medoids=layout.per_group(medoids.reshape(layout.count, k)),
        labels=layout.per_point(labels),
        cost=layout.per_group(cost),
        n_swaps=layout.per_group(swaps),
        n_passes=layout.per_group(passes),
        bound=None if bound is None else layout.per_group(bound),
        gap=None if gap is None else layout.per_group(gap),
    )
    result.__dict__["_fit"] = _fit(metric, data, layout, result.medoids)
    return result


def _fit(
    metric: _metrics.Metric, data: args.Floats, layout: args.Layout, medoids: NDArray[np.int64]
) -> tuple[Any, ...]:
    """Return the arguments of `Fit`."""
    one = layout.kind == "one"
    if metric == "precomputed":
        return metric, None, layout.count, one, int(layout.sizes[0]), medoids
    places = medoids.reshape(layout.count, -1) + layout.offsets[:-1, None]
    centres = data.reshape(-1, data.shape[-1])[places.reshape(-1)]
    return metric, centres, layout.count, one


def _all_distances(
    data: args.Floats, layout: args.Layout, metric: _metrics.Metric
) -> NDArray[np.float64]:
    """Return the distances in each group, as `kmedoids` takes them."""
    found = []
    for group, (start, end) in enumerate(zip(layout.offsets, layout.offsets[1:], strict=False)):
        try:
            found.append(_metrics.distances(data[start:end], None, metric))
        except ValueError as error:
            if layout.kind == "one":
                raise
            raise ValueError(f"{error} of group {group}") from error.__cause__
    if layout.kind == "ragged":
        return np.concatenate([D.reshape(-1) for D in found])
    return found[0] if layout.kind == "one" else np.stack(found)


def _check_certifiable(layout: args.Layout, metric: Any, sampled_above: int, exact: bool) -> None:
    """Refuse what only a sample will be searched of, and a solver that is not there."""
    group = int(np.argmax(layout.sizes))
    sampled_above = max(sampled_above, _NEVER_SAMPLED)
    if metric != "precomputed" and layout.sizes[group] > sampled_above:
        where = "" if layout.kind == "one" else f" in group {group}"
        raise ValueError(
            f"{'exact' if exact else 'certify'}: expected at most {sampled_above} points{where}, "
            f"got {layout.sizes[group]}; sample_size={layout.sizes[group]} searches them all"
        )
    if exact:
        _certificate.check_solver()


def _sampling(sample_size: int | None, metric: Any, k: int) -> tuple[int, int]:
    """Return the size of samples, and of the largest group that needs none."""
    if sample_size is None:
        size = max(_SAMPLE, 10 * k)
        return size, max(_SAMPLED_ABOVE, size)
    if metric == "precomputed":
        raise ValueError(
            "sample_size: expected None with precomputed distances, which are all used"
        )
    size = args.check_int(sample_size, "sample_size", 1, 2**31)
    return size, size


def _distance_layout(data: args.Floats, offsets: ArrayLike | None) -> args.Layout:
    """Read the groups of precomputed distances."""
    if offsets is None:
        layout = args.layout_of(data, "X", 2, None)
        if data.shape[-1] != data.shape[-2]:
            raise ValueError(f"X: expected square distances, got shape {data.shape}")
    else:
        if data.ndim != 1:
            raise ValueError(
                "X: with offsets, expected the groups' distances end to end in one axis, "
                f"got shape {data.shape}"
            )
        layout = args.Layout("ragged", args.check_offsets(offsets, None))
        if (total := sum(n * n for n in layout.sizes.tolist())) != data.size:
            raise ValueError(f"X: expected sum of n_b^2 = {total} distances, got {data.size}")
    return layout


def _check_distances(data: args.Floats, layout: args.Layout) -> None:
    """Raise a ValueError that names the first value, or else pair, that no distances have."""
    for name, flat, expected in (
        ("value", _native.first_invalid(data, True), "a finite distance >= 0"),
        ("pair", _native.first_asymmetric(data.reshape(-1), layout.offsets), "D[i, j] = D[j, i]"),
    ):
        if flat >= 0:
            raise ValueError(
                f"X: expected {expected}, got {name} {data.reshape(-1)[flat]} "
                f"at {_pair(layout, flat)}"
            )


def _pair(layout: args.Layout, flat: int) -> str:
    """Name the place of one distance."""
    starts = np.concatenate([[0], np.cumsum(layout.sizes**2)])
    group = int(np.searchsorted(starts, flat, side="right")) - 1
    i, j = divmod(flat - int(starts[group]), int(layout.sizes[group]))
    return f"[{i}, {j}]" if layout.kind == "one" else f"group {group}, [{i}, {j}]"


def _check_init(
    init: str | ArrayLike, k: int, layout: args.Layout
) -> tuple[str, NDArray[np.int64]]:
    """Return the kind of start and, for given ones, B * k indices."""
    if isinstance(init, str):
        return args.check_name(init, "init", ("random", "greedy")), np.empty(0, np.int64)
    given = args.as_array(init, "init")
    if given.dtype.kind not in "iu":
        raise TypeError(f"init: expected 'random', 'greedy' or integers, got {given.dtype}")
    shape = (k,) if layout.kind == "one" else (layout.count, k)
    if given.shape != shape:
        raise ValueError(f"init: expected shape {shape}, got {given.shape}")
    given = np.ascontiguousarray(given, np.int64).reshape(layout.count, k)
    for group, row in enumerate(given):
        size = int(layout.sizes[group])
        if row.min() < 0 or row.max() >= size or len(np.unique(row)) < k:
            raise ValueError(
                f"init: expected {k} distinct positions below {size}, "
                f"got {row.tolist()} for group {group}"
            )
    return "given", given.reshape(-1)
