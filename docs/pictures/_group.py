"""One made-up group of responses in a plane: five ways to answer, of which some are bad."""

import numpy as np


def group(seed: int = 4, n: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings (n, 2) and rewards (n,) in [0, 1]."""
    rng = np.random.default_rng(seed)
    centres = np.array([[0, 0], [3.2, 0.6], [1.4, 2.9], [-2.3, 2.2], [-1.7, -2.0]])
    quality = np.array([0.18, 0.35, 0.55, 0.85, 0.42])
    share = rng.choice(5, size=n, p=[0.36, 0.2, 0.16, 0.14, 0.14])
    points = centres[share] + 0.55 * rng.normal(size=(n, 2))
    return points, np.clip(quality[share] + 0.1 * rng.normal(size=n), 0, 1)
