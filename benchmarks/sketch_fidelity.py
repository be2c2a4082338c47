"""Errors of inner products by the size of the sketch, and the pairs that are then chosen."""

from pathlib import Path
from typing import Any

import numpy as np
from sketch_model import project_parts

from pyfast import select, sketch

SEEDS = 24


def exact_gram(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and lengths in float64."""
    gram = np.zeros((len(rows), len(rows)))
    for start in range(0, rows.shape[1], 1 << 18):
        some = rows[:, start : start + (1 << 18)].astype(np.float64)
        gram += some @ some.T
    lengths = np.sqrt(np.diag(gram))
    return gram / np.outer(lengths, lengths), lengths


def error_by_dim(collector: sketch.LoraGradients, rows: np.ndarray) -> list[dict[str, float]]:
    """Root mean square error of cosines over all pairs and seeds, beside the theory."""
    cosines, lengths = exact_gram(rows)
    above = np.triu_indices(len(rows), 1)
    found = []
    for dim in [2**i for i in range(7, 21)]:
        squares = []
        for seed in range(SEEDS):
            unit = project_parts(collector, rows, dim, seed) / lengths[:, None]
            squares.append(np.mean((unit @ unit.T - cosines)[above] ** 2))
        theory = float(np.sqrt(np.mean(1 + cosines[above] ** 2) / dim))
        error = float(np.sqrt(np.mean(squares)))
        found.append(
            {
                "dim": dim,
                "error": error,
                "theory": theory,
                "ratio": error / theory,
                "least_of_a_seed": float(np.sqrt(min(squares))),
                "most_of_a_seed": float(np.sqrt(max(squares))),
            }
        )
    return found


def overlap(collector: sketch.LoraGradients, rows: np.ndarray) -> dict[str, Any]:
    """Share of exact gradients' picks that sketches pick too: 20 pools, 8 seeds; dense beside.

    A dense sketch of p = 4.9M signs has, but for terms of 1/p, the law of a Gaussian one: its rows
    are drawn as such, from the exact Gram matrix. `rademacher_check` holds that to real signs.
    """
    cosines, lengths = exact_gram(rows)
    values, vectors = np.linalg.eigh(cosines)
    factor = vectors * np.sqrt(np.maximum(values, 0))  # rows with these very inner products
    rng = np.random.default_rng(0)
    shares: dict[str, list[float]] = {}
    for _ in range(20):
        prompts = np.sort(rng.choice(len(rows) // 3, 8, replace=False))
        members = (3 * prompts[:, None] + np.arange(3)).reshape(-1)
        pairs = sketch.response_pairs(3 * np.arange(9))
        want = set(select.active_dpo(factor[members], pairs, k=5).indices.tolist())
        for dim, seed in [(dim, seed) for dim in (8192, 65536) for seed in range(8)]:
            ours = project_parts(collector, rows[members], dim, seed) / lengths[members][:, None]
            dense = factor[members] @ rng.standard_normal((len(rows), dim)) / np.sqrt(dim)
            for name, made in (("stripes", ours), ("dense", dense)):
                got = set(select.active_dpo(made, pairs, k=5).indices.tolist())
                shares.setdefault(f"overlap_{name}_{dim}", []).append(len(got & want) / 5)
    return {
        **{name: float(np.mean(values)) for name, values in shares.items()},
        **{f"{name}_sd": float(np.std(values) / np.sqrt(20)) for name, values in shares.items()},
        "rademacher_check": rademacher_check(rows, cosines, lengths),
    }


def rademacher_check(rows: np.ndarray, cosines: np.ndarray, lengths: np.ndarray) -> float:
    """Error of 64 columns of real dense signs by what the Gaussian law says; about 1."""
    rng = np.random.default_rng(0)
    made = np.zeros((len(rows), 64))
    for start in range(0, rows.shape[1], 1 << 18):
        some = rows[:, start : start + (1 << 18)]
        signs = rng.integers(0, 2, (some.shape[1], 64), np.int8).astype(np.float32) * 2 - 1
        made += some @ signs
    made /= lengths[:, None] * 8
    above = np.triu_indices(len(rows), 1)
    error = (made @ made.T - cosines)[above]
    return float(np.sqrt(np.mean(error**2) / np.mean((1 + cosines[above] ** 2) / 64)))


def picture(errors: list[dict[str, float]], path: Path) -> None:
    """Draw the errors with the theory beside them."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    dims = [row["dim"] for row in errors]
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    axis.loglog(dims, [row["theory"] for row in errors], "k--", label=r"$\sqrt{(1+\cos^2)/K}$")
    error = np.array([row["error"] for row in errors])
    spread = [
        error - [row["least_of_a_seed"] for row in errors],
        [row["most_of_a_seed"] for row in errors] - error,
    ]
    axis.errorbar(
        dims, error, spread, fmt="o", capsize=3, label=f"XOR stripes: {SEEDS} seeds, least to most"
    )
    axis.set_xscale("log", base=2)
    axis.set_xlabel("numbers in a sketch, K")
    axis.set_ylabel("rms error of cosines")
    axis.set_title("Inner products of LoRA gradients, SmolLM2-135M, r = 16")
    axis.grid(True, which="major", alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)
