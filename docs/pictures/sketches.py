"""Inner products of sketches beside the exact ones, for growing K."""

import numpy as np
from _style import PICK, QUIET, axes, save

from pyfast import sketch

rng = np.random.default_rng(0)
# 24 vectors of half a million numbers with some cosines between -1 and 1.
base = rng.normal(size=(8, 500_000)).astype(np.float32)
vectors = rng.normal(size=(24, 8)).astype(np.float32) @ base
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
exact = (vectors @ vectors.T)[np.triu_indices(24, 1)]
figure, panels = axes(9.2, 3.1, 3, sharey=True)
for ax, dim in zip(panels, (512, 8192, 65536), strict=True):
    rows = sketch.project(vectors, dim=dim, seed=1)
    about = (rows @ rows.T)[np.triu_indices(24, 1)]
    ax.plot([-1, 1], [-1, 1], c=QUIET, lw=0.8)
    ax.plot(exact, about, ".", c=PICK, ms=3)
    error = np.sqrt(np.mean((exact - about) ** 2))
    ax.set(xlabel="exact cosine", title=f"K = {dim:,}: error {error:.4f}")
panels[0].set_ylabel("from the sketches")
save(figure, __file__)
