"""APLP: whole prompts by entropy, then pairs by margin; APO: differences of embeddings."""

import numpy as np
from _style import PICK, QUIET, axes, plain, save

from pyfast import select

rng = np.random.default_rng(0)
entropies = np.repeat(rng.gamma(6, 8, 40), 3)
rewards = rng.normal(size=(120, 2))
prompts = np.repeat(np.arange(40), 3)
picked = select.aplp(entropies, rewards, k=12, prompts=prompts, shortlist=36).indices
margin = np.abs(rewards[:, 0] - rewards[:, 1])
figure, (left, right) = axes(8.4, 3.2, 2)
left.plot(entropies, margin, ".", c=QUIET, ms=5)
left.plot(entropies[picked], margin[picked], "o", c=PICK, ms=8, mfc="none", mew=1.6)
cut = np.sort(np.unique(entropies))[-12]
left.axvline(cut, c=QUIET, lw=0.9, ls="--")
left.set(
    xlabel="predictive entropy of the prompt", ylabel="reward margin of the pair", title="APLP"
)
points = rng.normal(size=(60, 2)) * [1.6, 0.8]
pairs = [(3 * p + a, 3 * p + b) for p in range(20) for a, b in ((0, 1), (0, 2), (1, 2))]
chosen = {tuple(pairs[i]) for i in select.apo(points, pairs, k=8).indices}
plain(right, "APO: pairs far apart, in new directions")
for a, b in pairs:
    mine = (a, b) in chosen
    right.plot(*points[[a, b]].T, c=PICK if mine else QUIET, lw=1.8 if mine else 0.4)
right.plot(*points.T, ".", c=QUIET, ms=5)
save(figure, __file__)
