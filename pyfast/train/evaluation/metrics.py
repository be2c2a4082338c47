"""What is measured of sampled responses, and intervals for held-out scores.

What the policy thinks of a group (``rewards/*``, ``logps/*``) the losses measure themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_AT_ONCE = 1 << 20  # numbers drawn


def sample_metrics(
    scores: Sequence[float],
    positive: int,
    negatives: Sequence[int],
    lengths: Sequence[int],
    finished: Sequence[bool],
    texts: Sequence[str],
) -> dict[str, float]:
    """Describe all N sampled responses of one group.

    Returns
    -------
    dict of str to float
        ``scores/*``: over all N (mean, standard deviation), of the chosen response, and the mean
        of the selected negatives. ``responses/length`` is the mean number of tokens,
        ``responses/finished`` the fraction with an end token, ``responses/unique`` the fraction
        of distinct texts; ``groups/copies_of_best`` counts the negatives with the chosen one's
        text. Without negatives ``scores/rejected`` is left out.
    """
    values = np.asarray(scores, dtype=np.float64)
    found = {
        "scores/mean": float(values.mean()),
        "scores/std": float(values.std()),
        "scores/chosen": float(values[positive]),
        "responses/length": float(np.mean(lengths)),
        "responses/finished": float(np.mean(finished)),
        "responses/unique": len(set(texts)) / len(texts),
        "groups/copies_of_best": float(sum(texts[i] == texts[positive] for i in negatives)),
    }
    if negatives:
        found["scores/rejected"] = float(values[list(negatives)].mean())
    return found


def mean_of(records: Sequence[dict[str, float]]) -> dict[str, float]:
    """Average records by key, each key over the records that have it."""
    keys = dict.fromkeys(key for record in records for key in record)
    return {key: float(np.mean([r[key] for r in records if key in r])) for key in keys}


def bootstrap_interval(
    values: NDArray[np.float64], *, confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a mean (Efron 1979).

    Parameters
    ----------
    values : float64 array (n,)
        One value a held-out prompt: the prompts are what is resampled, with replacement, because
        the responses to one prompt are not independent of each other.
    confidence : float
        Such as 0.95.
    resamples : int
    seed : int

    Returns
    -------
    (float, float)
        The (1 - confidence)/2 and (1 + confidence)/2 quantiles of the resampled means.
    """
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, _AT_ONCE // len(values))
    for start in range(0, resamples, rows):  # one stream of numbers, however it is cut
        part = means[start : start + rows]
        picks = generator.integers(len(values), size=(len(part), len(values)))
        part[:] = values[picks].mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
