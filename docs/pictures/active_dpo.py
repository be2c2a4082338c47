"""ActiveDPO: what is left uncertain after each label, beside random choices."""

import numpy as np
from _style import PICK, QUIET, axes, save

from pyfast import select

rng = np.random.default_rng(0)
# 100 prompts with 3 responses; gradients share a few directions, as a policy's do.
directions = rng.normal(size=(24, 256))
sketches = rng.normal(size=(300, 24)) / np.arange(1, 25) @ directions
pairs = [(3 * p + a, 3 * p + b) for p in range(100) for a, b in ((0, 1), (0, 2), (1, 2))]
unit = sketches / np.linalg.norm(sketches, axis=1, keepdims=True)
phi = np.stack([unit[a] - unit[b] for a, b in pairs])


def uncertainty(rows: np.ndarray) -> list[float]:
    """Return the largest phi^T V^-1 phi of the pool after 0, 1, ... labels."""
    V, left = np.eye(256), []
    for row in rows:
        left.append(np.max(np.einsum("nd,nd->n", phi, np.linalg.solve(V, phi.T).T)))
        V += np.outer(phi[row], phi[row])
    return left


figure, (left, right) = axes(8.4, 3.1, 2)
picked = select.active_dpo(sketches, pairs, k=40)
left.plot(uncertainty(picked.indices), c=PICK, label="active_dpo")
for seed in range(4):
    rows = select.random(len(pairs), 40, seed=seed).indices
    left.plot(uncertainty(rows), c=QUIET, lw=0.9, label="random, 4 seeds" if seed == 0 else None)
left.set(
    xlabel="labels",
    ylabel="largest uncertainty left",
    ylim=(0, None),
    title="the pool of 300 pairs",
)
left.legend()
before = np.einsum("nd,nd->n", phi, phi)
V = np.eye(256) + phi[picked.indices].T @ phi[picked.indices]
after = np.einsum("nd,nd->n", phi, np.linalg.solve(V, phi.T).T)
right.plot(before, after, ".", c=QUIET, ms=4)
right.plot(before[picked.indices], after[picked.indices], ".", c=PICK, ms=7, label="labelled")
right.set(xlabel="uncertainty before", ylabel="after 40 labels", title="each pair")
right.legend()
save(figure, __file__)
