"""Which pairs of responses to have labelled next, by entropy and margin alone: APLP."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyfast import _arguments as args
from pyfast._results import ByValue
from pyfast.select._random import APLP, uniforms


@dataclass(frozen=True, eq=False)
class APLPSelection(ByValue):
    """The pairs to label by :func:`aplp`.

    Attributes
    ----------
    indices : ndarray of int64, shape (k,)
        Positions of the pairs, distinct, the largest margin first.
    """

    indices: NDArray[np.int64]


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
