"""Which pairs of responses to have labelled next: ActiveDPO and its baselines APO and APLP."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyfast import _arguments as args
from pyfast import _native
from pyfast._results import ByValue
from pyfast._threads import resolve_threads
from pyfast.select._logdet import LogDetState, check_state, extend, state_arrays
from pyfast.select._random import APLP, uniforms

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


@dataclass(frozen=True, eq=False)
class APLPSelection(ByValue):
    """The pairs to label by :func:`aplp`.

    Attributes
    ----------
    indices : ndarray of int64, shape (k,)
        Positions of the pairs, distinct, the largest margin first.
    """

    indices: NDArray[np.int64]


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


def aplp(
    entropies: ArrayLike,
    rewards: ArrayLike,
    k: int = 50,
    *,
    prompts: ArrayLike | None = None,
    shortlist: int | None = None,
    per_prompt: Literal["all", "one"] = "all",
    seed: int = 0,
) -> APLPSelection:
    """Choose surely ranked pairs of uncertain prompts (APLP, Muldrew et al., 2024).

    First the prompts of the highest predictive entropy, with all their pairs: as many prompts as
    make `shortlist`. Of their pairs, the k with the largest ``|r(y_a) - r(y_b)|``, r the implicit
    reward ``beta (log pi - log pi_ref)``. No prompt is cut, and what ties is in random order.

    Parameters
    ----------
    entropies : array_like, shape (P,)
        Predictive entropy of each pair's prompt.
    rewards : array_like, shape (P, 2)
        Implicit rewards of the two responses of each pair.
    k : int
        Pairs wanted, 1 <= k <= P.
    prompts : array_like of int, shape (P,), optional
        Which prompt each pair belongs to, any number for each. By default pairs of equal entropy
        are of one prompt.
    shortlist : int, optional
        What has to pass the first stage: pairs, or prompts with ``per_prompt="one"``; from k to
        all of them. k ranks by entropy alone but for the last prompt, all by margin alone. 2 k by
        default, or all if that is fewer.
    per_prompt : {"all", "one"}
        Whether a prompt may give all its pairs, or only the one of the largest margin: then
        `prompts` has to be given, and to name k at least.
    seed : int
        0 to 2**64 - 1, for the order of what ties.

    Returns
    -------
    APLPSelection
        ``indices``.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of its range, shape or type, or a prompt has two entropies; the
        message names it and the place.

    Examples
    --------
    Three pairs of one prompt, and one of another:

    >>> from pyfast import select
    >>> entropies, prompts = [0.9, 0.9, 0.9, 0.1], [7, 7, 7, 3]
    >>> rewards = [[0.0, 1.0], [0.0, 3.0], [1.0, 3.0], [0.0, 9.0]]
    >>> select.aplp(entropies, rewards, k=1, prompts=prompts).indices.tolist()
    [1]
    >>> select.aplp(entropies, rewards, 2, prompts=prompts, per_prompt="one").indices.tolist()
    [3, 1]
    """
    entropy = args.as_floats(entropies, "entropies")
    if entropy.ndim != 1 or len(entropy) == 0:
        raise ValueError(f"entropies: expected shape (P,) with P >= 1, got {entropy.shape}")
    layout = args.layout_of(entropy, "entropies", 1, None)
    args.check_values(entropy, "entropies", layout)
    scores = args.as_floats(rewards, "rewards")
    if scores.shape != (len(entropy), 2):
        raise ValueError(f"rewards: expected shape ({len(entropy)}, 2), got {scores.shape}")
    args.check_values(scores, "rewards", layout)
    one = args.check_name(per_prompt, "per_prompt", ("all", "one")) == "one"
    if one and prompts is None:
        raise ValueError("prompts: expected the prompt of each pair beside per_prompt='one'")
    prompt = _check_prompts(prompts, entropy)
    sizes = np.ones(prompt.max() + 1, np.int64) if one else np.bincount(prompt)
    most = int(sizes.sum())
    k = args.check_int(k, "k", 1, most)
    least = min(2 * k, most) if shortlist is None else shortlist
    least = args.check_int(least, "shortlist", k, most)

    by_pair, by_prompt = uniforms(args.check_seed(seed), APLP, 2, len(entropy))
    of_prompt = np.empty(len(sizes))
    of_prompt[prompt] = entropy
    ranking = np.lexsort([by_prompt[: len(sizes)], -of_prompt])
    kept = ranking[: int(np.searchsorted(np.cumsum(sizes[ranking]), least)) + 1]

    halves = scores.astype(np.float64) / 2  # so that no finite rewards overflow
    surest = np.lexsort([by_pair, -np.abs(halves[:, 0] - halves[:, 1])])
    surest = surest[np.isin(prompt[surest], kept)]
    if one:
        surest = surest[np.sort(np.unique(prompt[surest], return_index=True)[1])]
    return APLPSelection(surest[:k])


def _check_prompts(prompts: ArrayLike | None, entropies: args.Floats) -> args.Indices:
    """Return the prompt of each pair, numbered from 0 in the order in which they come first."""
    if prompts is None:
        labels: NDArray[Any] = entropies
    else:
        labels = args.as_array(prompts, "prompts")
        if labels.dtype.kind not in "iu":
            raise TypeError(f"prompts: expected integers, got {labels.dtype}")
        if labels.shape != entropies.shape:
            raise ValueError(f"prompts: expected shape {entropies.shape}, got {labels.shape}")
    _, first, prompt = np.unique(labels, return_index=True, return_inverse=True)
    other = entropies != entropies[first[prompt]]
    if other.any():
        at = int(np.argmax(other))
        raise ValueError(
            f"entropies: expected one for all pairs of prompt {labels[at]}, "
            f"got {entropies[first[prompt[at]]]} at {first[prompt[at]]} and {entropies[at]} at {at}"
        )
    return np.argsort(np.argsort(first))[prompt]


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
