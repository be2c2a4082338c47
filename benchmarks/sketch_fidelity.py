"""Errors of inner products by the size of the sketch, and the pairs that are then chosen."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from pyfast import _native, select, sketch

DIMS = [2**i for i in range(10, 19)]
SEEDS = 256
POOLS, POOL_SEEDS = 20, 512


def exact_gram(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and lengths in float64."""
    gram = np.zeros((len(rows), len(rows)))
    for start in range(0, rows.shape[1], 1 << 18):
        some = rows[:, start : start + (1 << 18)].astype(np.float64)
        gram += some @ some.T
    lengths = np.sqrt(np.diag(gram))
    return gram / np.outer(lengths, lengths), lengths


def rows_of(cosines: np.ndarray) -> np.ndarray:
    """Return rows with these very inner products."""
    values, vectors = np.linalg.eigh(cosines)
    return vectors * np.sqrt(np.maximum(values, 0))


class Parts:
    """Whole gradients (R, p) of a collector, cut into its matrices once, to be sketched often."""

    def __init__(self, collector: sketch.LoraGradients, rows: np.ndarray) -> None:
        ends = np.cumsum([part.size for part in collector.parts])
        cuts = np.split(rows, ends[:-1], axis=1)
        self._parts = [np.ascontiguousarray(cut) for cut in cuts]

    def sketch(self, dim: int, seed: int) -> np.ndarray:
        """Sketch all rows as the collector does; float64."""
        out = np.zeros((len(self._parts[0]), dim), np.float32)
        for number in reversed(range(len(self._parts))):
            _native.sketch_add(self._parts[number], out, seed, number, 0, 2)
        return out.astype(np.float64)


def bootstrap(values: np.ndarray, statistic: Any, draws: int = 2000) -> list[float]:
    """95 % interval of a statistic of the mean over the first axis, redrawn with replacement."""
    rng = np.random.default_rng(0)
    found = [
        statistic(values[rng.integers(0, len(values), len(values))].mean(axis=0))
        for _ in range(draws)
    ]
    return [float(at) for at in np.quantile(found, (0.025, 0.975))]


def error_by_dim(parts: Parts, cosines: np.ndarray) -> list[dict[str, Any]]:
    """Error of cosines over all pairs, by what the theory says: over all seeds, and of one."""
    above = np.triu_indices(len(cosines), 1)
    scale = np.sqrt(np.mean(1 + cosines[above] ** 2))
    found = []
    for dim in DIMS:
        theory = float(scale / math.sqrt(dim))
        squares = np.empty(SEEDS)
        for seed in range(SEEDS):
            made = parts.sketch(dim, seed)
            squares[seed] = np.mean((made @ made.T - cosines)[above] ** 2)
        of_one = np.sqrt(squares) / theory
        found.append(
            {
                "dim": dim,
                "theory": theory,
                "error": float(np.sqrt(squares.mean())),
                "ratio": float(np.sqrt(squares.mean()) / theory),
                "ratio_interval": bootstrap(squares, lambda s, t=theory: math.sqrt(s) / t),
                "one_seed_median": float(np.median(of_one)),
                "one_seed_95_percent": float(np.quantile(of_one, 0.95)),
                "one_seed_most": float(of_one.max()),
                "seeds": SEEDS,
            }
        )
        print(found[-1], flush=True)
    return found


def overlap(parts: Parts, cosines: np.ndarray) -> dict[str, Any]:
    """Share of exact gradients' picks that sketches pick too, and that dense Rademacher's do.

    20 pools, many seeds; the difference is paired pool by pool and seed by seed. A seed serves all
    pools, whose errors then go together, so the interval that redraws seeds is the one to judge
    by; the other takes the seeds as given. A dense sketch of p = 4.9M signs has, but for terms of
    1/p, the law of a Gaussian one: its rows are drawn as such, from the exact Gram matrix.
    `rademacher_check` holds that to real signs.
    """
    factor = rows_of(cosines)
    rng = np.random.default_rng(0)
    pools = [
        (3 * np.sort(rng.choice(len(cosines) // 3, 8, replace=False))[:, None] + np.arange(3))
        for _ in range(POOLS)
    ]
    pairs = sketch.response_pairs(3 * np.arange(9))

    def picks(rows: np.ndarray) -> set[int]:
        return set(select.active_dpo(rows, pairs, k=5).indices.tolist())

    want = [picks(factor[pool.reshape(-1)]) for pool in pools]
    found: dict[str, Any] = {}
    for dim in (8192, 65536):
        share = np.empty((2, POOLS, POOL_SEEDS))
        for seed in range(POOL_SEEDS):
            ours = parts.sketch(dim, seed)
            dense = factor @ rng.standard_normal((len(cosines), dim)) / math.sqrt(dim)
            for kind, made in enumerate((ours, dense)):
                for number, pool in enumerate(pools):
                    got = picks(made[pool.reshape(-1)])
                    share[kind, number, seed] = len(got & want[number]) / 5
        difference = share[0] - share[1]
        found[str(dim)] = {
            "stripes": float(share[0].mean()),
            "dense": float(share[1].mean()),
            "difference": float(difference.mean()),
            "interval_over_pools": bootstrap(difference.mean(axis=1), float),
            "interval_over_seeds": bootstrap(difference.mean(axis=0), float),
        }
        shown = {
            k: " to ".join(f"{at:+.3f}" for at in np.ravel(v)) for k, v in found[str(dim)].items()
        }
        print(
            "K = {}: stripes {stripes}, dense {dense}, difference {difference}; 95 % over seeds "
            "{interval_over_seeds} (decides: a seed serves all pools, whose errors go together), "
            "over pools {interval_over_pools} (the seeds as given)".format(dim, **shown),
            flush=True,
        )
    return found


def rademacher_check(rows: np.ndarray, cosines: np.ndarray) -> dict[str, Any]:
    """Error of 64 columns of real dense signs by what the theory says; about 1.

    It must lie within 99.9 % of what Gaussian columns give, 4000 times 64 of them.
    """
    above = np.triu_indices(len(rows), 1)
    expected = np.mean((1 + cosines[above] ** 2) / 64)

    def ratio(made: np.ndarray) -> float:
        error = (made @ made.T - cosines)[above]
        return float(np.sqrt(np.mean(error**2) / expected))

    rng = np.random.default_rng(0)
    made = np.zeros((len(rows), 64))
    for start in range(0, rows.shape[1], 1 << 18):
        some = rows[:, start : start + (1 << 18)]
        signs = rng.integers(0, 2, (some.shape[1], 64), np.int8).astype(np.float32) * 2 - 1
        made += some @ signs
    found = ratio(made / 8)
    factor = rows_of(cosines)
    drawn = [ratio(factor @ rng.standard_normal((len(rows), 64)) / 8) for _ in range(4000)]
    low, high = (float(at) for at in np.quantile(drawn, (0.0005, 0.9995)))
    assert low <= found <= high, (low, found, high)
    return {"ratio": found, "gaussian_99.9_percent": [low, high]}


def picture(errors: list[dict[str, Any]], path: Path) -> None:
    """Draw the errors with the theory beside them, and below them their ratio."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    def column(name: str) -> np.ndarray:
        return np.array([row[name] for row in errors])

    dims, theory = column("dim"), column("theory")
    figure, (top, low) = plt.subplots(
        2, 1, figsize=(6, 6), sharex=True, height_ratios=(2, 1), layout="constrained"
    )
    top.loglog(dims, theory, "k--", label=r"theory, $\sqrt{(1+\cos^2)/K}$")
    top.loglog(
        dims, column("error"), "o", label=f"XOR stripes, rms over {errors[0]['seeds']} seeds"
    )
    top.set_ylabel("rms error of cosines")
    top.set_title("Inner products of LoRA gradients, SmolLM2-135M, r = 16")
    low.axhline(1, color="k", linestyle="--")
    interval = np.abs(column("ratio_interval").T - column("ratio"))
    low.errorbar(dims, column("ratio"), interval, fmt="o", capsize=3, label="all seeds, 95 %")
    low.plot(dims, column("one_seed_median"), "_", markersize=14, label="one seed, median")
    low.plot(dims, column("one_seed_95_percent"), "^", label="one seed, 95 % point")
    low.set_xscale("log", base=2)
    low.set_xlabel("numbers in a sketch, K")
    low.set_ylabel("error / theory")
    for axis in (top, low):
        axis.grid(True, which="major", alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)
