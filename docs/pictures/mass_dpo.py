"""MASS-DPO: the policy's own probabilities decide how much a direction counts."""

import numpy as np
from _style import GOOD, PICK, QUIET, axes, plain, save

from pyfast import select

rng = np.random.default_rng(1)
features = rng.normal(size=(20, 2))
ratios = 12 * rng.normal(size=20)
figure, panels = axes(8.4, 3.4, 2)
for ax, beta in zip(panels, (0.02, 0.3), strict=True):
    picked = select.mass_dpo(features, ratios, np.zeros(20), preferred=0, k=3, beta=beta)
    pool = np.arange(1, 20)
    p = np.exp(beta * ratios[pool] - np.max(beta * ratios[pool]))
    plain(ax, f"beta = {beta}: areas are p over the pool")
    ax.scatter(*features[pool].T, s=900 * p / p.sum() + 4, c=QUIET)
    ax.scatter(*features[picked.negatives].T, s=190, facecolors="none", edgecolors=PICK, lw=1.8)
    ax.scatter(*features[0], s=140, marker="*", c=GOOD)
save(figure, __file__)
