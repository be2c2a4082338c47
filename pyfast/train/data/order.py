"""In which order a data set is learnt from."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from pyfast.train.seeds import derive


def of_step(n: int, per_step: int, seed: int, step: int) -> list[tuple[int, int]]:
    """Return (epoch, index) of the groups of one step, from 0.

    Each epoch goes through all n in an order of its own, and no remainder is dropped: a step may
    hold the end of one epoch and the start of the next.
    """
    chosen = []
    for position in range(step * per_step, (step + 1) * per_step):
        epoch, place = divmod(position, n)
        chosen.append((epoch, int(_of_epoch(n, seed, epoch)[place])))
    return chosen


@functools.lru_cache(maxsize=2)
def _of_epoch(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng(derive(seed, "order", epoch)).permutation(n)
