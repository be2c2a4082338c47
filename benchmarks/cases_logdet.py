"""Cases of greedy log-det selection: batches of groups, and one pool of long vectors."""

from collections.abc import Callable
from typing import Any

import numpy as np
import peers
from harness import Case, optional
from numpy.typing import NDArray

from pyfast import select

GAMMA = 0.1
TIE = 1e-10  # within it of the largest, candidates tie: see select.logdet
Vectors = NDArray[np.float32]


def vectors(groups: int, n: int, d: int, unit: bool) -> Vectors:
    """Draw pools of random vectors, of length 1 if asked."""
    V = np.random.default_rng(0).standard_normal((groups, n, d), np.float32)
    return V / np.linalg.norm(V, axis=2, keepdims=True) if unit else V


def verify(V: Vectors, k: int, found: Any, theirs: list[list[int]]) -> str:
    """Compare the picks with those of a float64 greedy, and logdet with one computed anew."""
    wide = V.astype(np.float64)
    assert np.array_equal(found.indices, select.logdet(wide, k, GAMMA, n_threads=1).indices)
    for b, group in enumerate(wide):
        picks = found.indices[b].tolist()
        assert picks == peers.logdet_matrix_free(group, k, GAMMA, TIE), b
        whole = V.shape[2] * np.log(GAMMA) + gain(group, picks)
        assert abs(found.logdet[b] - whole) <= 1e-9 * abs(whole), b
    same = agreement(V, found, theirs)
    return f"picks of float64, logdet to 1e-9; peer's picks in {same} of {len(theirs)}"


def gain(group: NDArray[Any], picks: list[int]) -> float:
    """Return what some rows add to the log-determinant, in float64."""
    S = group[picks].astype(np.float64)
    return float(np.linalg.slogdet(np.eye(len(S)) + S @ S.T / GAMMA)[1])


def agreement(V: Vectors, found: Any, theirs: list[list[int]]) -> int:
    """Count the groups where a peer picked the same; elsewhere its float32 has rounded a tie.

    Unit rows tie but for the rounding of their normalisation, so a peer may begin with another
    one. That is no better than ours, nor worse by more than rounding; later picks depend on it.
    """
    same = 0
    for b, picks in enumerate(theirs):
        ours = found.indices[b].tolist()
        assert len(set(picks)) == len(ours), b
        if picks == ours:
            same += 1
            continue
        until = 1 + next(t for t in range(len(ours)) if ours[t] != picks[t])
        best, other = gain(V[b], ours[:until]), gain(V[b], picks[:until])
        assert -1e-9 * best <= best - other <= 1e-6 * best, (b, best, other)
        best, other = gain(V[b], ours), gain(V[b], picks)
        assert abs(best - other) <= 1e-3 * best, (b, best, other)
    return same


def one(
    V: Vectors,
    k: int,
    unit: bool,
    target: float,
    peer: str,
    call: Callable[[Vectors, int, float], object],
    few: int,
) -> Case:
    """All groups of V, beside a peer that takes the first `few`."""
    groups, n, d = V.shape
    return Case(
        f"log-det N={n} d={d} n={k}" + ", unit rows" * unit,
        unit="group" if groups > 1 else "problem",
        items=groups,
        ours=lambda: select.logdet(V, k, GAMMA, n_threads=1),
        theirs=lambda: [call(group, k, GAMMA) for group in V[:few]],
        peer=peer,
        check=lambda ours, theirs: verify(V, k, ours, theirs),
        target=target,
        bytes=4.0 * n * d,  # every vector has to be looked at once; most products can be avoided
        multiply_adds=n * d + k * k * d / 2,  # its length, and the products of the chosen ones
        peer_items=min(few, groups),
    )


def size_cases(
    groups: int, n: int, d: int, k: int, target: float, unit_target: float
) -> list[Case]:
    """One size beside numpy; for batches, beside H^-1 and submodlib as well."""
    plain, unit = (vectors(groups, n, d, u) for u in (False, True))
    numpy = ("numpy, matrix-free", peers.logdet_matrix_free, 20)
    found = [one(plain, k, False, target, *numpy), one(unit, k, True, unit_target, *numpy)]
    if groups > 1:
        peer = ("Sherman-Morrison", peers.logdet_sherman_morrison, 1)
        found.append(one(plain, k, False, target, *peer))
    if groups > 1 and optional("submodlib"):
        found.append(one(unit, k, True, unit_target, "submodlib", peers.logdet_submodlib, 20))
    return found


def many_picks_case(dtype: type, n: int, d: int, k: int, ratio: float, repeats: int) -> Case:
    """More picks than dimensions, beside the d x d inverse that numpy keeps up to date."""
    V = np.random.default_rng(0).standard_normal((n, d)).astype(np.float32).astype(dtype)

    def check(ours: Any, theirs: list[int]) -> str:
        assert ours.indices.tolist() == theirs
        whole = np.linalg.slogdet(GAMMA * np.eye(d) + V[theirs].T.astype(float) @ V[theirs])[1]
        assert abs(ours.logdet - whole) <= 1e-9 * abs(whole)
        return "picks of float64, logdet to 1e-9"

    return Case(
        f"log-det N={n} d={d} n={k}, {dtype.__name__}",
        unit="problem",
        items=1,
        ours=lambda: select.logdet(V, k, GAMMA, n_threads=1),
        theirs=lambda: peers.logdet_information(V, k, GAMMA),
        peer="numpy, d x d",
        check=check,
        target_ratio=ratio,
        bytes=float(V.nbytes),
        multiply_adds=n * d * d / 2,  # one look at each candidate
        repeats=repeats,
    )


def cases() -> list[Case]:
    """All of them whose peer is installed."""
    return [
        *[many_picks_case(t, 20_000, 64, 600, 2, 3) for t in (np.float32, np.float64)],
        *[many_picks_case(t, 100_000, 64, 1000, 3, 1) for t in (np.float32, np.float64)],
        *[many_picks_case(t, 5_000, 256, 400, 2, 3) for t in (np.float32, np.float64)],
        *size_cases(1000, 20, 576, 3, 8e-6, 8e-6),
        *size_cases(200, 64, 2048, 8, 60e-6, 60e-6),
        *size_cases(1, 3000, 8192, 50, 80e-3, 25e-3),
    ]
