"""Random numbers without state.

A run that is killed and resumed must draw the same numbers as one that was not. So nothing here
carries a generator from one step to the next: each use derives its own seed from the run's seed,
the step and the purpose, and there is no generator state to save.
"""

from __future__ import annotations

import hashlib


def derive(seed: int, *purpose: int | str) -> int:
    """Derive the seed of one use of randomness from the run's seed.

    Parameters
    ----------
    seed : int
        The run's seed.
    *purpose : int or str
        What the numbers are for, for example ``"sample", step, position``.

    Returns
    -------
    int
        In [0, 2**63): what ``torch.Generator.manual_seed`` and numpy both take. Different purposes
        give unrelated seeds; the same purpose always gives the same one, on every machine.
    """
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
