"""Coreset: clusters of the pool, and the lowest-scored response of each."""

import numpy as np
from _group import group
from _style import GOOD, PICK, QUIET, axes, plain, save

from pyfast import select

embeddings, rewards = group()
picked = select.coreset(embeddings, rewards, 5, n_init=5)
pool = np.delete(np.arange(len(rewards)), picked.positive)
# Each cluster is known by its negative here: the nearest one.
far = np.linalg.norm(embeddings[pool, None] - embeddings[picked.negatives][None], axis=2)
figure, (left, right) = axes(8.4, 3.3, 2)
plain(left, "the lowest of each cluster (rings)")
left.scatter(*embeddings[pool].T, c=QUIET, s=24)
left.scatter(*embeddings[picked.negatives].T, s=130, facecolors="none", edgecolors=PICK, lw=1.8)
left.scatter(*embeddings[picked.positive], s=150, marker="*", c=GOOD)
for number, member in enumerate(picked.negatives):
    near = pool[far.argmin(1) == number]
    right.plot(np.full(len(near), number), rewards[near], "o", c=QUIET, ms=4)
    right.plot(number, rewards[member], "o", c=PICK, ms=11, mfc="none", mew=1.8)
right.set(xlabel="responses nearest to each negative", ylabel="reward", xticks=range(5))
right.set_title("one negative a region, good regions too")
save(figure, __file__)
