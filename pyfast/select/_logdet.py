"""Greedy D-optimal selection: the k vectors that together span the largest volume."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyfast import _arguments as args
from pyfast import _native
from pyfast._results import ByValue
from pyfast._threads import resolve_threads

Doubles = NDArray[np.float64]

MOST_SUBSETS = 1_000_000


@dataclass(frozen=True, eq=False)
class LogDetState(ByValue):
    """The vectors chosen so far, ready to be carried on with new candidates.

    Attributes
    ----------
    vectors : ndarray of float64, shape (m, d)
        In the order of choice.
    factor : ndarray of float64, shape (m, m)
        Lower triangular L with ``L L^T = I + (scale / gamma) vectors vectors^T``.
    logdet : float
        ``log det(gamma I + scale vectors^T vectors)``.
    gamma, scale : float
        The ridge and the weight it was built with.
    """

    vectors: Doubles
    factor: Doubles
    logdet: float
    gamma: float
    scale: float = 1.0

    def to_arrays(self) -> dict[str, Doubles]:
        """Return plain numpy arrays that :meth:`from_arrays` reads back."""
        numbers = np.array([self.logdet, self.gamma, self.scale])
        return {"vectors": self.vectors, "factor": self.factor, "numbers": numbers}

    @classmethod
    def from_arrays(cls, arrays: Any) -> "LogDetState":
        """Build a state from a mapping that :meth:`to_arrays` made.

        Raises
        ------
        ValueError
            If an array is missing, of the wrong shape, or not finite.
        """
        try:
            vectors, factor, numbers = (
                np.ascontiguousarray(arrays[name], np.float64)
                for name in ("vectors", "factor", "numbers")
            )
        except KeyError as error:
            raise ValueError(f"state: expected an array named {error}") from None
        if vectors.ndim != 2 or factor.shape != (len(vectors),) * 2 or numbers.shape != (3,):
            raise ValueError(
                "state: expected vectors (m, d), factor (m, m) and numbers (3,), got "
                f"{vectors.shape}, {factor.shape} and {numbers.shape}"
            )
        finite = all(bool(np.isfinite(a).all()) for a in (vectors, factor, numbers))
        if not finite or numbers[1:].min() <= 0 or not (np.diag(factor) > 0).all():
            raise ValueError("state: expected finite numbers and positive pivots")
        return cls(vectors, factor, *(float(number) for number in numbers))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to an .npz file of that exact name, in one step."""
        from pyfast._files import written_whole

        with written_whole(Path(path)) as beside, open(beside, "wb") as file:
            np.savez(file, allow_pickle=False, **self.to_arrays())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "LogDetState":
        """Read a state that :meth:`save` wrote; nothing in the file is executed."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls.from_arrays(arrays)


@dataclass(frozen=True, eq=False)
class LogDetResult(ByValue):
    """What :func:`logdet` chose. Shapes are for one group; a batch stacks them in front.

    Attributes
    ----------
    indices : ndarray of int64, shape (k,) or (B, k)
        Distinct positions within the group, in the order of choice.
    gains : ndarray of float64, shape (k,) or (B, k)
        What each pick added to the log-determinant; never increasing for the greedy order, but
        among ties. They sum up to ``logdet``, less that of what was there before.
    logdet : float or ndarray of float64, shape (B,)
        ``log det(gamma I + scale sum_S v v^T)``, the vectors of `state` included.
    state : LogDetState or None
        All vectors chosen so far, to carry on with; None for a batch.
    """

    indices: NDArray[np.int64]
    gains: Doubles
    logdet: float | Doubles
    state: LogDetState | None


def logdet(
    V: ArrayLike,
    k: int,
    gamma: float = 0.1,
    *,
    scale: float = 1.0,
    state: LogDetState | None = None,
    exact: bool = False,
    offsets: ArrayLike | None = None,
    n_threads: int | None = None,
) -> LogDetResult:
    """Choose k vectors of each group whose information matrix has a large determinant.

    Greedily maximises ``log det H(S)``, ``H(S) = gamma I + scale sum_{i in S} v_i v_i^T``, by
    adding each time the i with the largest ``v_i^T H^{-1} v_i`` (MASS-DPO, eq. 13-14 and
    Algorithm 1): it adds ``log(1 + scale v_i^T H^{-1} v_i)``. The objective is monotone and
    submodular, so what the greedy set adds to ``log det(gamma I)`` is at least 1 - 1/e = 63 % of
    what the best set adds (Nemhauser, Wolsey and Fisher, 1978). MASS-DPO's Lemma 4.3, that it is
    the best set, does not hold in general: ``exact=True`` tells.

    Parameters
    ----------
    V : array_like, shape (n, d), (B, n, d), or (T, d) with `offsets`
        One vector per row, float32 or float64. Only their length counts in the first pick.
    k : int
        Picks, 1 <= k <= size of the smallest group. Always k distinct ones come back, from
        duplicates and zero vectors too.
    gamma : float
        The ridge, above 0.
    scale : float
        Weight of every ``v v^T``, above 0.
    state : LogDetState, optional
        Vectors chosen before, counted in H; `gamma` and `scale` must be as they were. The rows of
        V are new candidates: to go on with the old ones, leave out those already picked. One
        group only.
    exact : bool
        Look at all subsets instead (at most 1,000,000 per group), the first of equals winning.
    offsets : array_like of int, shape (B+1,), optional
        Ragged groups: group b owns rows ``offsets[b]`` to ``offsets[b+1] - 1``.
    n_threads : int, optional
        Threads to use; default :func:`pyfast.get_num_threads`. The result does not depend on it.

    Returns
    -------
    LogDetResult
        ``indices``, ``gains``, ``logdet``, ``state``.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of its range, shape or type; the message names it and the place.

    Notes
    -----
    Columns need no scaling: the picks, ``gains`` and ``logdet`` are those of exact arithmetic on
    the numbers of V, to a fraction of 1e-11 of each gain, whatever ``scale |v|^2 / gamma`` is, as
    long as float64 holds it (longer vectors are refused; of gains below 1e-308 nothing is left to
    compare). Candidates whose ``v^T H^{-1} v`` is within 1e-10 of the largest, relatively, tie, and
    the lowest index wins. Float32 and float64 input of the same values, any number of threads and
    any SIMD level give the same bits.

    No d x d matrix: a partial Cholesky factorisation with a ridge. A candidate is read again only
    when the value it had, an upper bound by submodularity, is above the best value known, and
    then catches up with the picks it has missed. Float32 problems are bounded by float32
    products and their error bounds first, unless they are tiny, which changes no bit of the
    result. So are float64's own sums: where they do not surely tell the best apart, candidates are
    worked out with 192 bits or more, as many as the lengths ask for.

    Memory per group in work: 2 n (m + k + 4) + (m + k) (m + k + d + 640) float64, with m vectors in
    `state`; the result holds (m + k) d more. For k > d, and for k > d / 3 and n >= 8 d, up to 512
    dimensions also 5 d^2 + 2 (m + k) d. Where digits run out, 5 (m + k) more for each
    candidate that is worked out (20 at worst), and (m + k) d. With ``exact=True`` also, of the
    largest group, n (d + 10 n + 10 k + 5 m) float64 (20 instead of 5 at worst).

    Examples
    --------
    >>> from pyfast import select
    >>> result = select.logdet([[3.0, 0.0], [2.9, 0.0], [0.0, 1.0]], k=2)
    >>> result.indices.tolist(), round(result.logdet, 6)
    ([0, 2], 2.303585)
    >>> select.logdet([[1.0, 1.0]], k=1, state=result.state).gains.round(3).tolist()
    [0.703]
    """
    data = args.as_floats(V, "V", booleans=True)
    layout = args.layout_of(data, "V", 2, offsets)
    k = args.check_k(k, layout)
    gamma, scale = args.check_positive(gamma, "gamma"), args.check_positive(scale, "scale")
    threads = resolve_threads(n_threads)
    rows = data.reshape(-1, data.shape[-1])
    check_state(state, rows.shape[1], gamma, scale)
    if state is not None and layout.kind != "one":
        raise ValueError("state: expected one group, got a batch or offsets")
    if exact:
        return _all_subsets(rows, layout, k, gamma, scale, state)
    try:
        if layout.kind == "one":
            answer = _native.logdet_one(
                rows, k, gamma, scale, *state_arrays(state, rows.shape[1]), threads
            )
            return LogDetResult(*answer[:3], extend(state, gamma, scale, *answer[2:]))
        picks, gains, total = _native.logdet_groups(rows, layout.offsets, k, gamma, scale, threads)
    except ValueError:
        # The core sees that a length is not finite; only then is it worth finding out where.
        args.check_values(data, "V", layout)
        raise
    shape = (layout.count, k)
    return LogDetResult(picks.reshape(shape), gains.reshape(shape), total, None)


def check_state(state: LogDetState | None, d: int, gamma: float, scale: float) -> None:
    """Raise if `state` does not fit d columns, gamma and scale."""
    if state is None:
        return
    if not isinstance(state, LogDetState):
        raise TypeError(f"state: expected a LogDetState or None, got {type(state).__name__}")
    if state.vectors.shape[1] != d:
        raise ValueError(f"state: expected vectors of {d} numbers, got {state.vectors.shape[1]}")
    for name, mine, given in (("gamma", state.gamma, gamma), ("scale", state.scale, scale)):
        if mine != given:
            raise ValueError(f"{name}: expected the state's {mine}, got {given}")


def state_arrays(state: LogDetState | None, d: int) -> tuple[Doubles, Doubles, float]:
    """Return what the native core takes: vectors, factor and log-determinant so far."""
    if state is None:
        return np.empty((0, d)), np.empty((0, 0)), 0.0
    return state.vectors, state.factor, state.logdet


def extend(
    state: LogDetState | None,
    gamma: float,
    scale: float,
    total: float,
    vectors: Doubles,
    factor: Doubles,
) -> LogDetState:
    """Return the state after the native core has chosen `vectors`."""
    if state is not None:
        vectors = np.concatenate([state.vectors, vectors])
    return LogDetState(vectors, factor, total, gamma, scale)


def _all_subsets(
    rows: args.Floats,
    layout: args.Layout,
    k: int,
    gamma: float,
    scale: float,
    state: LogDetState | None,
) -> LogDetResult:
    """Find the best subset of each group; the greedy order among its members gives the gains."""
    args.check_values(rows, "V", layout)
    _check_lengths(rows, layout, gamma, scale)
    results, all_indices = [], []
    for b in range(layout.count):
        group = rows[layout.offsets[b] : layout.offsets[b + 1]]
        if (count := math.comb(len(group), k)) > MOST_SUBSETS:
            raise ValueError(
                f"exact: expected at most {MOST_SUBSETS} subsets, got {count} "
                f"({k} of {len(group)} vectors)"
            )
        before = state_arrays(state, rows.shape[1])[0]
        best = _native.logdet_best_subset(group, k, gamma, scale, before)
        result = logdet(group[best], k, gamma, scale=scale, state=state)
        results.append(result)
        all_indices.append(best[result.indices])
    if layout.kind == "one":
        return LogDetResult(all_indices[0], results[0].gains, results[0].logdet, results[0].state)
    return LogDetResult(
        np.stack(all_indices),
        np.stack([result.gains for result in results]),
        np.array([result.logdet for result in results]),
        None,
    )


def _check_lengths(rows: args.Floats, layout: args.Layout, gamma: float, scale: float) -> None:
    """Raise if scale / gamma |v|^2 overflows, as the native core does."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        lengths = scale / gamma * _native.squared_norms(rows, 1)
    for row in np.flatnonzero(~np.isfinite(lengths)):
        v = rows[row].astype(np.float64)
        largest = float(np.abs(v).max()) or 1.0
        size = 2 * math.log2(largest) + math.log2(max(float(((v / largest) ** 2).sum()), 1.0))
        if size + math.log2(scale) - math.log2(gamma) >= 1024:
            raise ValueError(
                f"V: the squared length of {layout.place(int(row))} times scale / gamma "
                "overflows; scale the vectors down"
            )
