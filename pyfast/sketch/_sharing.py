"""Which rows of a batch share a pass, where not all may."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray


def share_out(
    lengths: NDArray[np.int64], budget: int, way: str, regime: Callable[[int], int] | None
) -> list[list[int]]:
    """Share the rows of a batch out to passes that keep apart what may not be together.

    Parameters
    ----------
    lengths : int64 array
        Tokens of each row; none for a response without tokens, which is in no pass.
    budget : int
        Padded tokens of a pass, at most, unless it has one row.
    way : {"together", "equal", "alone"}
        Whether rows of any lengths, of equal lengths or no two rows share a pass.
    regime : callable, optional
        Of a length: what rows of a pass must have in common, whatever the way.
    """
    passes: list[list[int]] = []
    kinds: list[int | None] = []
    for number in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[number])
        if length == 0:
            continue
        kind = {"together": regime(length) if regime else 0, "equal": length, "alone": None}[way]
        full = not passes or (len(passes[-1]) + 1) * int(lengths[passes[-1][0]]) > budget
        if full or kind is None or kind != kinds[-1]:
            passes.append([])
            kinds.append(kind)
        passes[-1].append(number)
    return passes
