"""D-optimal picks: long vectors in directions that are not covered yet."""

import numpy as np
from _style import PICK, QUIET, TEXT, axes, plain, save

from pyfast import select

rng = np.random.default_rng(3)
vectors = rng.normal(size=(40, 2)) * [2.2, 0.9]
picked = select.logdet(vectors, 4, gamma=0.1)
figure, (left, right) = axes(8.4, 3.3, 2)
plain(left, "the first four picks of 40")
left.scatter(*vectors.T, c=QUIET, s=16)
for number, row in enumerate(picked.indices):
    arrow = {"arrowstyle": "->", "color": PICK, "lw": 1.6}
    left.annotate("", vectors[row], (0, 0), arrowprops=arrow)
    left.annotate(str(number + 1), 1.07 * vectors[row], color=TEXT, ha="center", va="center")
wide = rng.normal(size=(200, 32)) / np.sqrt(np.arange(1, 33))
greedy = select.logdet(wide, 40, gamma=0.1)
right.plot(np.cumsum(greedy.gains), c=PICK, label="greedy")
for seed in range(8):
    rows = select.random(200, 40, seed=seed).indices
    right.plot(
        [
            np.linalg.slogdet(np.eye(32) + 10 * wide[rows[: m + 1]].T @ wide[rows[: m + 1]])[1]
            for m in range(40)
        ],
        c=QUIET,
        lw=0.8,
        label="random, 8 seeds" if seed == 0 else None,
    )
right.set(xlabel="picks", ylabel="gain in log det", title="200 vectors of 32 numbers")
right.legend()
save(figure, __file__)
