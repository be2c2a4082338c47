"""Which pairs of responses to have labelled next: ActiveDPO and its baseline APO."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyfast import _arguments as args
from pyfast import _native
from pyfast._results import ByValue
from pyfast._threads import resolve_threads
from pyfast.select._logdet import LogDetState, check_state, extend, state_arrays

Doubles = NDArray[np.float64]

# In the differences of rows whose lengths are taken together, by at most.
NUMBERS_AT_ONCE = 65_536
# Shorter rows have squares that double does not hold, and still shorter ones no inverse length.
SHORT, SHORTEST = 1e-140, 1e-280


@dataclass(frozen=True, eq=False)
class PairSelection(ByValue):
    """The pairs to label.

    Attributes
    ----------
    indices : ndarray of int64, shape (k,)
        Positions in `pairs`, distinct, in the order of choice.
    gains : ndarray of float64, shape (k,)
        What each added to ``log det V``; never increasing, but among ties.
    logdet : float
        ``log det V`` after them, those of `state` included.
    state : LogDetState
        V, to carry on with in the next round.
    """

    indices: NDArray[np.int64]
    gains: Doubles
    logdet: float
    state: LogDetState


def active_dpo(
    sketches: ArrayLike,
    pairs: ArrayLike,
    k: int = 50,
    state: LogDetState | None = None,
    normalize: Literal["response", "pair"] | None = "response",
    lam: float = 1.0,
    refresh: ArrayLike | None = None,
    *,
    n_threads: int | None = None,
) -> PairSelection:
    """Choose the k pairs about whose preference the policy is least certain (ActiveDPO).

    With g(y) the sketch of ``grad log pi(y|x)``, ``phi = g(y_a) - g(y_b)`` and
    ``V = lam I + sum phi phi^T`` over the pairs chosen so far, adds k times the pair with the
    largest ``phi^T V^{-1} phi`` (ActiveDPO, eq. 3 and 4): as :func:`logdet` with gamma = lam.

    Parameters
    ----------
    sketches : array_like, shape (M, d)
        One row per response, float32 or float64; a memory map is read where it lies.
    pairs : array_like of int, shape (P, 2)
        The two responses of each pair, as rows of `sketches`. A response may be in many.
    k : int
        Pairs wanted, 1 <= k <= P.
    state : LogDetState, optional
        V from the rounds before. This round's pairs are new: leave out those already labelled.
    normalize : {"response", "pair"} or None
        Scale each g(y) to length 1 (the paper removes the length of the response that way); or
        each phi; or nothing. Zero vectors stay zero.
    lam : float
        V before the first pair is lam I; above 0.
    refresh : array_like of int, shape (L, 2), optional
        The pairs labelled so far, as rows of `sketches` made under the current policy: V is then
        built from them anew, as Proposition 1 defines it, instead of carried over in `state`.
    n_threads : int, optional
        Threads to use; default :func:`pyfast.get_num_threads`. The result does not depend on it.

    Returns
    -------
    PairSelection
        ``indices``, ``gains``, ``logdet``, ``state``.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of its range, shape or type; the message names it and the place.

    Notes
    -----
    The gradient of the implicit reward is beta g. Where rows or pairs are scaled to length 1, beta
    drops out; with ``normalize=None``, multiplying the sketches by beta is dividing lam by beta^2,
    and changes the picks: state lam together with the scale of what it is added to.

    phi, rounded to float64 number by number, is never written down, but for the k chosen ones and
    where :func:`logdet` needs more digits. Memory: P (m + k + 6) + k d +
    (m + k)^2 + M float64, with m pairs in `state`, and 5 max(d, 65,536) with ``normalize="pair"``;
    the result holds (m + k) d more.

    Examples
    --------
    >>> from pyfast import select
    >>> sketches = [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.1, 1.0]]
    >>> select.active_dpo(sketches, [[2, 3], [0, 1], [0, 2]], k=2).indices.tolist()
    [1, 2]
    """
    rows = args.as_floats(sketches, "sketches")
    lam = args.check_positive(lam, "lam")
    if normalize is not None:
        args.check_name(normalize, "normalize", ("response", "pair"))
    if state is not None and refresh is not None:
        raise ValueError("refresh: expected no state beside it; it builds V anew")
    old = None if refresh is None else _check_pairs(refresh, "refresh", rows)
    return _choose(
        rows,
        "sketches",
        _check_pairs(pairs, "pairs", rows),
        k,
        state,
        normalize,
        lam,
        old,
        n_threads,
    )


def apo(
    embeddings: ArrayLike,
    pairs: ArrayLike,
    k: int = 50,
    state: LogDetState | None = None,
    lam: float = 1.0,
    *,
    n_threads: int | None = None,
) -> PairSelection:
    """Choose pairs by ActiveDPO's criterion on response embeddings (APO, Das et al., 2024).

    ``phi = e(y_a) - e(y_b)`` with embeddings that do not follow the policy, as they are; then
    :func:`active_dpo` without normalisation, so that lam depends on their scale.

    Parameters
    ----------
    embeddings : array_like, shape (M, d)
        One row per response, float32 or float64.
    pairs, k, state, lam, n_threads
        As for :func:`active_dpo`.

    Returns
    -------
    PairSelection
        ``indices``, ``gains``, ``logdet``, ``state``.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of its range, shape or type; the message names it and the place.

    Examples
    --------
    >>> from pyfast import select
    >>> select.apo([[0.0], [1.0], [3.0]], [[0, 1], [0, 2]], k=1).indices.tolist()
    [1]
    """
    rows = args.as_floats(embeddings, "embeddings", booleans=True)
    lam = args.check_positive(lam, "lam")
    checked = _check_pairs(pairs, "pairs", rows, "embeddings")
    return _choose(rows, "embeddings", checked, k, state, None, lam, None, n_threads)


def _choose(
    rows: args.Floats,
    name: str,
    pairs: args.Indices,
    k: int,
    state: LogDetState | None,
    normalize: str | None,
    lam: float,
    refresh: args.Indices | None,
    n_threads: int | None,
) -> PairSelection:
    """Scale the rows or pairs, rebuild V if asked to, and let the native core choose."""
    k = args.check_int(k, "k", 1, len(pairs))
    threads = resolve_threads(n_threads)
    check_state(state, rows.shape[1], lam, 1.0)
    lengths = np.sqrt(_native.squared_norms(rows, threads))
    used = pairs if refresh is None else np.concatenate([pairs, refresh])
    for row in used[~np.isfinite(lengths[used])][:1].tolist():  # a row in no pair may be NaN
        for column in np.flatnonzero(~np.isfinite(rows[row]))[:1].tolist():
            raise ValueError(
                f"{name}: expected a finite number, got {rows[row, column]} at row {row}, "
                f"column {column}"
            )
        raise ValueError(f"{name}: the squared length of row {row} overflows; scale the rows down")
    short = np.flatnonzero(lengths < SHORT)  # whose squares are flushed to zero
    lengths[short] = _lengths(rows[short].astype(np.float64))
    of_rows = np.ones(len(rows))
    if normalize == "response":
        of_rows = _inverse(lengths, f"{name}: row")

    def run(
        chosen_from: args.Indices, count: int, before: LogDetState | None
    ) -> tuple[args.Indices, Doubles, LogDetState]:
        of_pairs = (
            _inverse(_pair_lengths(rows, chosen_from), "pairs: phi of pair")
            if normalize == "pair"
            else np.ones(len(chosen_from))
        )
        old = state_arrays(before, rows.shape[1])
        picks, gains, total, vectors, factor = _native.logdet_pairs(
            rows, chosen_from, of_rows, of_pairs, count, lam, *old, threads, lengths
        )
        return picks, gains, extend(before, lam, 1.0, total, vectors, factor)

    if refresh is not None:
        # The order in which the old pairs join does not matter to V.
        state = run(refresh, len(refresh), None)[2]
    picks, gains, after = run(pairs, k, state)
    return PairSelection(picks, gains, after.logdet, after)


def _inverse(lengths: Doubles, what: str) -> Doubles:
    """1 / length, and 0 for a zero vector."""
    bad = (lengths > 0) & (lengths < SHORTEST)
    if bad.any():
        at = int(np.argmax(bad))
        raise ValueError(
            f"{what} {at} has length {lengths[at]}: expected 0 or at least {SHORTEST} to normalize"
        )
    return np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)


def _lengths(rows: Doubles) -> Doubles:
    """Return the length of each row, of one whose squares double does not hold too."""
    with np.errstate(over="ignore", under="ignore"):
        lengths = np.linalg.norm(rows, axis=1)
        odd = np.flatnonzero((lengths < SHORT) | ~np.isfinite(lengths))
        largest = np.abs(rows[odd]).max(axis=1)
        largest[largest == 0] = 1.0
        lengths[odd] = largest * np.linalg.norm(rows[odd] / largest[:, None], axis=1)
    return np.asarray(lengths)


def _pair_lengths(rows: args.Floats, pairs: args.Indices) -> Doubles:
    """Return the length of each difference of two rows, a few at a time."""
    step = max(1, NUMBERS_AT_ONCE // rows.shape[1])
    parts = [pairs[i : i + step] for i in range(0, len(pairs), step)]
    return np.concatenate(
        [_lengths(rows[part[:, 0]].astype(np.float64) - rows[part[:, 1]]) for part in parts]
    )


def _check_pairs(
    pairs: ArrayLike, name: str, rows: args.Floats, of: str = "sketches"
) -> args.Indices:
    """Return pairs of different rows as int64 of shape (P, 2)."""
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"{of}: expected shape (M, d), got {rows.shape}")
    array = args.as_array(pairs, name)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {array.dtype}")
    if array.ndim != 2 or array.shape[1] != 2 or len(array) == 0:
        raise ValueError(f"{name}: expected shape (P, 2), got {array.shape}")
    array = np.ascontiguousarray(array, np.int64)
    bad = (array < 0).any(axis=1) | (array >= len(rows)).any(axis=1) | (array[:, 0] == array[:, 1])
    if bad.any():
        at = int(np.argmax(bad))
        raise ValueError(
            f"{name}: expected two different rows of {of} (0 to {len(rows) - 1}), "
            f"got {array[at].tolist()} at pair {at}"
        )
    return array
