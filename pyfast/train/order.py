"""In which order a data set is learnt from."""

from __future__ import annotations

import numpy as np

from pyfast.train.seeds import derive


def of_step(n: int, per_step: int, seed: int, step: int) -> list[tuple[int, int]]:
    """Return (epoch, index) of the groups of one step, from 0.

    Each epoch goes through all n in an order of its own, and no remainder is dropped: a step may
    hold the end of one epoch and the start of the next.
    """
    chosen = []
    for position in range(step * per_step, (step + 1) * per_step):
        epoch, place = divmod(position, n)
        generator = np.random.default_rng(derive(seed, "order", epoch))
        chosen.append((epoch, int(generator.permutation(n)[place])))
    return chosen
