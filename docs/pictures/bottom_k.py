"""Bottom-k: the lowest rewards; of equal ones the response least like those already chosen."""

import numpy as np
from _style import GOOD, PICK, QUIET, axes, save

from pyfast import select

rng = np.random.default_rng(2)
rewards = np.round(rng.beta(2, 2, 24), 1)  # a scorer of ten levels: ties
embeddings = rng.normal(size=(24, 8))
picked = select.bottom_k(rewards, 5, embeddings=embeddings)
order = np.argsort(rewards, kind="stable")
colours = np.full(24, QUIET, dtype=object)
colours[picked.negatives] = PICK
colours[picked.positive] = GOOD
figure, (ax,) = axes(8.4, 2.7)
ax.bar(range(24), rewards[order] + 0.01, color=colours[order], width=0.7)
ax.set(xlabel="responses by reward", ylabel="reward", xticks=[])
ax.set_title("blue: the five negatives; green: the chosen response; equal bars are ties")
save(figure, __file__)
