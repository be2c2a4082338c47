"""What no set of gradients should be: not finite, zero, or all the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


def check_finite(part_norms: Doubles, names: list[str], numbers: Sequence[int]) -> None:
    """Refuse NaN and infinity, by response and matrix; `numbers` are the responses'."""
    bad = ~np.isfinite(part_norms)
    if bad.any():
        row = int(np.argmax(bad.any(axis=1)))
        part = int(np.flatnonzero(bad[row])[-1])  # the first that the backward pass came to
        raise ValueError(
            f"gradient of response {numbers[row]} is not finite in {names[part]} "
            f"({int(bad[row].sum())} of {len(names)} matrices)"
        )


def check_not_zero(
    part_norms: Doubles, lengths: NDArray[np.int64], names: list[str], numbers: Sequence[int]
) -> None:
    """Refuse a gradient of zeros for a response that has tokens."""
    bad = (part_norms == 0).all(axis=1) & (lengths > 0)
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(
            f"gradient of response {numbers[row]} ({int(lengths[row])} tokens) is zero in all "
            f"{len(names)} matrices, {names[0]} to {names[-1]}"
        )


def check_distinct(sketches: NDArray[np.float32], tokens: Sequence[object]) -> None:
    """Refuse one and the same sketch for more than two responses, if their `tokens` differ."""
    distinct = len({repr(one) for one in tokens})
    if distinct > 2 and all(np.array_equal(row, sketches[0]) for row in sketches[1:]):
        raise ValueError(
            f"the gradients of {distinct} different responses are all the same, to the last bit"
        )
