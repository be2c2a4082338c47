"""The random baseline."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyfast import _arguments as args
from pyfast import _native
from pyfast._results import ByValue

# Philox counter words that keep the draws of different uses apart (Purpose in philox.hpp).
HARD_PREFERENCE, APLP = 3, 4


@dataclass(frozen=True, eq=False)
class RandomSelection(ByValue):
    """A uniformly random subset of each group.

    Attributes
    ----------
    indices : ndarray of int64, shape (k,) or (B, k)
        Distinct positions, ascending.
    """

    indices: NDArray[np.int64]


def random(n: int | ArrayLike, k: int, *, seed: int = 0) -> RandomSelection:
    """Choose k of n positions uniformly at random.

    Parameters
    ----------
    n : int or array_like of int, shape (B,)
        Size of the group, or of each group of a batch; below 2**32.
    k : int
        Positions wanted, 1 <= k <= n.
    seed : int
        0 to 2**64 - 1. Group b draws stream b of a counter-based generator (Philox4x32-10), so
        the same seed gives the same picks on every machine.

    Returns
    -------
    RandomSelection
        ``indices``.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of its range or type.

    Examples
    --------
    >>> from pyfast import select
    >>> len(select.random(32, 7, seed=1).indices)
    7
    """
    sizes = args.as_array(n, "n")
    if sizes.dtype.kind not in "iu":
        raise TypeError(f"n: expected an int or integers, got {sizes.dtype}")
    if sizes.ndim > 1 or sizes.size == 0:
        raise ValueError(f"n: expected an int or shape (B,), got shape {sizes.shape}")
    batch = sizes.astype(np.int64).reshape(-1)
    if batch.min() < 1 or batch.max() >= 2**32:
        raise ValueError(f"n: expected 1 to 2**32 - 1, got {int(batch.min())} to {batch.max()}")
    k = args.check_int(k, "k", 1, int(batch.min()))
    indices = _native.random_subsets(batch, k, args.check_seed(seed))
    return RandomSelection(indices[0] if sizes.ndim == 0 else indices)


def uniforms(seed: int, purpose: int, streams: int, draws: int) -> NDArray[np.float64]:
    """Return numbers in [0, 1), shape (streams, draws): draw j of stream b, as in reference.py."""
    low, key = np.uint64(0xFFFFFFFF), [seed & 0xFFFFFFFF, seed >> 32]
    shape = (streams, draws)
    c = [
        np.broadcast_to(np.arange(draws, dtype=np.uint64), shape),
        np.broadcast_to(np.arange(streams, dtype=np.uint64)[:, None], shape),
        np.full(shape, purpose, np.uint64),
        np.zeros(shape, np.uint64),
    ]
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        k0, k1 = (np.uint64(word) for word in key)
        c = [
            (p1 >> np.uint64(32)) ^ c[1] ^ k0,
            p1 & low,
            (p0 >> np.uint64(32)) ^ c[3] ^ k1,
            p0 & low,
        ]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    bits = (c[0] << np.uint64(21)) ^ (c[1] >> np.uint64(11))
    return np.asarray(bits, np.float64) * 2.0**-53
