"""Weighted medoids of 240 points, and what more starts and a certificate say of the cost."""

import numpy as np
from _style import PICK, QUIET, axes, plain, save

from pyfast import select

rng = np.random.default_rng(3)
centres = rng.uniform(-6, 6, (12, 2))
points = np.concatenate([rng.normal(c, 0.8, size=(20, 2)) for c in centres])
weights = rng.uniform(0.2, 3, len(points))
found = select.kmedoids(points, 9, weights=weights, n_init=10, certify=True)
figure, (left, right) = axes(8.4, 3.3, 2)
plain(left, "points sized by weight, their medoids")
spokes = np.stack(
    [points, points[found.medoids[found.labels]], np.full_like(points, np.nan)], axis=1
)
left.plot(*spokes.reshape(-1, 2).T, c=QUIET, lw=0.5, zorder=0)
left.scatter(*points.T, s=7 * weights, c=QUIET, rasterized=True)
left.scatter(*points[found.medoids].T, s=90, c=PICK, zorder=3)
costs = sorted(select.kmedoids(points, 9, weights=weights, seed=s).cost for s in range(60))
right.plot(costs, ".", c=PICK, label="one random start, 60 seeds")
right.axhline(found.cost, c=PICK, lw=1, label="n_init=10")
right.axhline(found.bound, c=QUIET, lw=1.2, ls="--", label="certified bound")
right.set(xlabel="seed, sorted by cost", ylabel="cost", title="local optima and the bound")
right.legend()
save(figure, __file__)
