"""Who answers better: win, tie and lose of two models' answers to the same prompts."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pyfast.train.errors import UserError

Judge = Callable[[str, str, str], float]
"""``judge(prompt, first, second)``: how likely the first answer is the better one, 0 to 1."""


def by_score(
    ours: NDArray[np.float64], theirs: NDArray[np.float64], tolerance: float
) -> NDArray[np.float64]:
    """Return who scores more, as `outcomes`; scores that differ by `tolerance` or less tie."""
    ahead = ours - theirs
    return np.where(np.abs(ahead) <= tolerance, 0.5, (ahead > 0).astype(np.float64))


def outcomes(
    prompts: Sequence[str],
    ours: Sequence[str],
    theirs: Sequence[str],
    judge: Judge,
    tolerance: float = 0.0,
) -> NDArray[np.float64]:
    """Judge an answer of each of two models to each prompt, in both orders.

    Parameters
    ----------
    prompts, ours, theirs : sequences of n str
    judge : callable
        Asked twice a prompt, with either answer first, because judges favour a place.
    tolerance : float
        The mean of both judgements makes a tie where it is 1/2 within this.

    Returns
    -------
    float64 array (n,)
        1 where ours is better, 0 where theirs is, 1/2 for a tie.

    Raises
    ------
    UserError
        Naming the prompt, if the judge raises or returns something else than 0 to 1.
    """
    found = np.empty(len(prompts))
    for i, (prompt, a, b) in enumerate(zip(prompts, ours, theirs, strict=True)):
        better = (_asked(judge, prompt, a, b) + 1 - _asked(judge, prompt, b, a)) / 2
        found[i] = 0.5 if abs(better - 0.5) <= tolerance else float(better > 0.5)
    return found


def _asked(judge: Judge, prompt: str, first: str, second: str) -> float:
    where = f"judge, prompt {reprlib.repr(str(prompt))}"
    try:
        value = float(judge(prompt, first, second))
    except UserError:
        raise
    except Exception as error:  # a judge may raise what it likes
        kind = type(error).__name__
        raise UserError(f"{where}: it raised {kind}: {error}") from error
    if not (math.isfinite(value) and 0 <= value <= 1):
        raise UserError(f"{where}: expected a number from 0 to 1, got {value}")
    return value
