"""Native core of pyfast. Call it through pyfast.select, which checks meaning."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float32] | NDArray[np.float64]
_Doubles = NDArray[np.float64]
_Indices = NDArray[np.int64]

def bottom_k(
    embeddings: _Floats | None, rewards: _Doubles, offsets: _Indices, k: int, threads: int
) -> tuple[_Indices, _Indices, _Indices, _Doubles]: ...
def build_info() -> dict[str, Any]: ...
def coreset(
    embeddings: _Floats,
    rewards: _Doubles,
    offsets: _Indices,
    k: int,
    n_init: int,
    max_iter: int,
    seed: int,
    threads: int,
) -> tuple[_Indices, _Indices, _Indices, _Doubles]: ...
def first_asymmetric(distances: _Floats, offsets: _Indices) -> int: ...
def first_invalid(array: _Floats, nonnegative: bool) -> int: ...
def json_vectors(lines: bytes, name: str) -> tuple[NDArray[np.float32], _Indices, bytes] | None: ...
def kmedoids(
    data: _Floats,
    offsets: _Indices,
    weights: _Doubles,
    k: int,
    precomputed: bool,
    checked: bool,
    search: str,
    init: str,
    given: _Indices,
    n_init: int,
    seed: int,
    sample_size: int,
    sampled_above: int,
    threads: int,
) -> tuple[_Indices, _Indices, _Doubles, _Indices, _Indices] | None: ...
def kmedoids_bounds(
    data: _Floats,
    offsets: _Indices,
    weights: _Doubles,
    candidates: _Indices,
    counts: _Indices,
    medoids: _Indices,
    costs: _Doubles,
    precomputed: bool,
    unit: bool,
    threads: int,
) -> tuple[_Doubles, NDArray[np.bool_]]: ...
def kmedoids_plain(
    X: NDArray[Any], k: Any, metric: Any, search: Any, init: Any, n_init: Any, seed: Any
) -> tuple[_Indices, _Indices, float, int, int] | None: ...
def logdet_groups(
    data: _Floats, offsets: _Indices, k: int, gamma: float, scale: float, threads: int
) -> tuple[_Indices, _Doubles, _Doubles]: ...
def logdet_one(
    data: _Floats,
    k: int,
    gamma: float,
    scale: float,
    vectors: _Doubles,
    factor: _Doubles,
    logdet: float,
    threads: int,
) -> tuple[_Indices, _Doubles, float, _Doubles, _Doubles]: ...
def logdet_pairs(
    sketches: _Floats,
    pairs: _Indices,
    row_scales: _Doubles,
    pair_scales: _Doubles,
    k: int,
    gamma: float,
    vectors: _Doubles,
    factor: _Doubles,
    logdet: float,
    threads: int,
    row_lengths: _Doubles | None = None,
) -> tuple[_Indices, _Doubles, float, _Doubles, _Doubles]: ...
def logdet_best_subset(
    data: _Floats, k: int, gamma: float, scale: float, vectors: _Doubles
) -> _Indices: ...
def mass_dpo(
    features: _Floats,
    policy_logps: _Doubles,
    ref_logps: _Doubles,
    preferred: _Indices,
    offsets: _Indices,
    k: int,
    beta: float,
    gamma: float,
    fisher: bool,
    threads: int,
) -> tuple[_Indices, _Doubles, _Doubles]: ...
def openmp_threads() -> int: ...
def opt_select(
    embeddings: _Floats,
    rewards: _Doubles,
    offsets: _Indices,
    k: int,
    cover_top: bool,
    scale_rewards: bool,
    search: str,
    init: str,
    n_init: int,
    seed: int,
    threads: int,
) -> tuple[_Indices, _Indices, _Indices, _Doubles]: ...
def philox(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]: ...
def products(
    wide: NDArray[np.float32], narrow: NDArray[np.float32], out: NDArray[np.float32], threads: int
) -> None: ...
def random_subsets(sizes: _Indices, k: int, seed: int) -> _Indices: ...
def sketch_add(
    data: NDArray[np.float32],
    out: NDArray[np.float32],
    seed: int,
    module: int,
    first_stripe: int,
    threads: int,
) -> None: ...
def sketch_add_products(
    wide: NDArray[np.float32],
    narrow: NDArray[np.float32],
    out: NDArray[np.float32],
    seed: int,
    module: int,
    threads: int,
) -> _Doubles: ...
def squared_norms(data: _Floats, threads: int) -> _Doubles: ...
