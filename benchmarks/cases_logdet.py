"""Cases of greedy log-det selection: batches of groups, and one pool of long vectors."""

from collections.abc import Callable
from typing import Any

import numpy as np
import peers
from harness import Case, optional
from numpy.typing import NDArray

from pyfast import select

GAMMA = 0.1
Vectors = NDArray[np.float32]


def vectors(groups: int, n: int, d: int, unit: bool) -> Vectors:
    """Draw pools of random vectors, of length 1 if asked."""
    V = np.random.default_rng(0).standard_normal((groups, n, d), np.float32)
    return V / np.linalg.norm(V, axis=2, keepdims=True) if unit else V


def verify(V: Vectors, k: int, unit: bool, found: Any) -> str:
    """Compare the picks with those of a float64 greedy, and logdet with one computed anew."""
    wide = select.logdet(V[:8].astype(np.float64), k, GAMMA, n_threads=1)
    for b in range(min(8, len(V))):
        picks, group = found.indices[b].tolist(), V[b].astype(np.float64)
        assert picks == wide.indices[b].tolist(), b
        if not unit:  # unit rows tie but for the rounding of their normalisation
            assert picks == peers.logdet_matrix_free(group, k, GAMMA), b
        S = group[picks]
        whole = V.shape[2] * np.log(GAMMA) + np.linalg.slogdet(np.eye(k) + S @ S.T / GAMMA)[1]
        assert abs(found.logdet[b] - whole) <= 1e-9 * abs(whole), b
    return "picks of float64, logdet to 1e-9"


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
        check=lambda ours, _: verify(V, k, unit, ours),
        target=target,
        bytes=4.0 * n * d,  # every vector has to be looked at once; most products can be avoided
        peer_items=min(few, groups),
    )


def size_cases(groups: int, n: int, d: int, k: int, target: float) -> list[Case]:
    """One size beside numpy; for batches, beside H^-1 and submodlib as well."""
    plain, unit = (vectors(groups, n, d, u) for u in (False, True))
    numpy = ("numpy, matrix-free", peers.logdet_matrix_free, 20)
    found = [one(plain, k, False, target, *numpy), one(unit, k, True, target, *numpy)]
    if groups > 1:
        peer = ("Sherman-Morrison", peers.logdet_sherman_morrison, 1)
        found.append(one(plain, k, False, target, *peer))
    if groups > 1 and optional("submodlib"):
        found.append(one(unit, k, True, target, "submodlib", peers.logdet_submodlib, 20))
    return found


def cases() -> list[Case]:
    """All of them whose peer is installed."""
    return [
        *size_cases(1000, 20, 576, 3, 8e-6),
        *size_cases(200, 64, 2048, 8, 60e-6),
        *size_cases(1, 3000, 8192, 50, 80e-3),
    ]
