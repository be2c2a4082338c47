"""Fuzz the extension: calls that are nearly right, with a few arguments spoilt.

Each input is a valid call of one function with up to three arguments replaced by nonsense (wrong
dtypes, ranks, layouts, lengths, NaN, huge integers, wrong objects). A clear exception is fine, a
result is fine; a crash, another exception or a hang is not. Run it under sanitizers:

    python tests/fuzz/binding.py --inputs 1000000
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from pyfast import _core

ALLOWED = (TypeError, ValueError, OverflowError, MemoryError)
Make = Callable[[np.random.Generator], dict[str, Any]]


def ragged(rng: np.random.Generator) -> np.ndarray:
    sizes = rng.integers(1, 7, rng.integers(1, 4))
    return np.concatenate([[0], np.cumsum(sizes)])


def points(rng: np.random.Generator, rows: int) -> np.ndarray:
    x = rng.normal(size=(rows, rng.integers(1, 20))) * 10.0 ** rng.integers(-40, 30)
    if rng.random() < 0.2:
        x[rng.random(rows) < 0.5] = x[0]
    with np.errstate(over="ignore"):
        return x.astype(rng.choice([np.float32, np.float64]))


def kmedoids(rng: np.random.Generator) -> dict[str, Any]:
    offsets = ragged(rng) if rng.random() < 0.9 else np.array([0, 140])  # enough for a sample
    precomputed = bool(rng.random() < 0.5)
    k = int(rng.integers(1, np.diff(offsets).min() + 1))
    blocks = [rng.random((n, n)) for n in np.diff(offsets)]
    data = np.concatenate([(b + b.T).ravel() for b in blocks])
    given = [rng.permutation(n)[:k] for n in np.diff(offsets)]
    return {
        "data": data if precomputed else points(rng, offsets[-1]),
        "offsets": offsets,
        "weights": rng.exponential(size=offsets[-1]),
        "k": k,
        "precomputed": precomputed,
        "checked": bool(rng.random() < 0.5),
        "search": str(rng.choice(["best", "eager"])),
        "init": str(rng.choice(["random", "greedy", "given"])),
        "given": np.concatenate(given),
        "n_init": int(rng.integers(1, 4)),
        "seed": int(rng.integers(0, 2**63)),
        "sample_size": int(rng.integers(1, 40)),
        "sampled_above": int(rng.integers(40, 80)),
        "threads": int(rng.integers(1, 3)),
    }


def kmedoids_bounds(rng: np.random.Generator) -> dict[str, Any]:
    offsets = ragged(rng)
    sizes = np.diff(offsets)
    counts = rng.integers(1, sizes + 1)
    return {
        "data": points(rng, offsets[-1]),
        "offsets": offsets,
        "weights": rng.exponential(size=offsets[-1]),
        "candidates": sizes,
        "counts": counts,
        "medoids": np.concatenate(
            [rng.permutation(n)[:k] for n, k in zip(sizes, counts, strict=False)]
        ),
        "costs": rng.exponential(size=len(sizes)),
        "precomputed": False,
        "unit": bool(rng.random() < 0.5),
        "threads": int(rng.integers(1, 3)),
    }


def opt_select(rng: np.random.Generator) -> dict[str, Any]:
    offsets = ragged(rng)
    return {
        "embeddings": points(rng, offsets[-1]),
        "rewards": rng.integers(0, 4, offsets[-1]).astype(float),
        "offsets": offsets,
        "k": int(rng.integers(1, 9)),
        "cover_top": bool(rng.random() < 0.5),
        "scale_rewards": bool(rng.random() < 0.5),
        "search": str(rng.choice(["best", "eager"])),
        "init": str(rng.choice(["random", "greedy"])),
        "n_init": int(rng.integers(1, 4)),
        "seed": int(rng.integers(0, 2**63)),
        "threads": int(rng.integers(1, 3)),
    }


def coreset(rng: np.random.Generator) -> dict[str, Any]:
    call = opt_select(rng)
    for name in ("cover_top", "search", "init"):
        del call[name]
    return call | {"max_iter": int(rng.integers(1, 9))}


def bottom_k(rng: np.random.Generator) -> dict[str, Any]:
    call = {n: v for n, v in coreset(rng).items() if n not in ("n_init", "max_iter", "seed")}
    return call if rng.random() < 0.7 else call | {"embeddings": None}


def logdet_one(rng: np.random.Generator) -> dict[str, Any]:
    data = points(rng, int(rng.integers(1, 9)))
    k, chosen = int(rng.integers(1, len(data) + 1)), int(rng.integers(0, 3))
    w = rng.normal(size=(chosen, data.shape[1]))
    return {
        "data": data,
        "k": k,
        "gamma": float(rng.choice([0.1, 1.0, 1e-300])),
        "scale": 1.0,
        "vectors": w,
        "factor": np.linalg.cholesky(np.eye(chosen) + w @ w.T),
        "logdet": 0.5,
        "threads": int(rng.integers(1, 3)),
    }


def logdet_pairs(rng: np.random.Generator) -> dict[str, Any]:
    call = logdet_one(rng)
    rows = len(call["data"])
    pairs = rng.integers(0, rows, (int(rng.integers(1, 9)), 2))
    del call["scale"]
    return {
        "sketches": call.pop("data"),
        "pairs": pairs,
        "row_scales": rng.random(rows),
        "pair_scales": rng.random(len(pairs)),
        "row_lengths": rng.random(rows),
        **call,
        "k": int(rng.integers(1, len(pairs) + 1)),
    }


def logdet_best_subset(rng: np.random.Generator) -> dict[str, Any]:
    call = logdet_one(rng)
    return {name: call[name] for name in ("data", "k", "gamma", "scale", "vectors")}


def logdet_groups(rng: np.random.Generator) -> dict[str, Any]:
    offsets = ragged(rng)
    return {
        "data": points(rng, offsets[-1]),
        "offsets": offsets,
        "k": int(rng.integers(1, np.diff(offsets).min() + 1)),
        "gamma": 0.1,
        "scale": float(rng.choice([1.0, 1e200])),
        "threads": int(rng.integers(1, 3)),
    }


def mass_dpo(rng: np.random.Generator) -> dict[str, Any]:
    offsets = ragged(rng) * 2
    return {
        "features": points(rng, offsets[-1]),
        "policy_logps": -rng.exponential(size=offsets[-1]),
        "ref_logps": -rng.exponential(size=offsets[-1]),
        "preferred": rng.integers(0, 2, len(offsets) - 1),
        "offsets": offsets,
        "k": 1,
        "beta": 0.1,
        "gamma": 0.1,
        "fisher": bool(rng.random() < 0.5),
        "threads": int(rng.integers(1, 3)),
    }


def kmedoids_plain(rng: np.random.Generator) -> dict[str, Any]:
    X = points(rng, int(rng.integers(1, 9)))
    return {
        "X": X,
        "k": int(rng.integers(1, len(X) + 2)),
        "metric": "euclidean",
        "search": str(rng.choice(["best", "eager"])),
        "init": str(rng.choice(["random", "greedy"])),
        "n_init": int(rng.integers(1, 4)),
        "seed": int(rng.integers(0, 2**63)),
    }


def sketch_add(rng: np.random.Generator) -> dict[str, Any]:
    rows, dim = int(rng.integers(0, 4)), int(2 ** rng.integers(7, 12))
    return {
        "data": rng.normal(size=(rows, rng.integers(0, 3000))).astype(np.float32),
        "out": np.zeros((rows, dim), np.float32),
        "seed": int(rng.integers(0, 2**63)),
        "module": int(rng.integers(0, 2**32)),
        "first_stripe": 64 * int(rng.integers(0, 2**20)),
        "threads": int(rng.integers(1, 3)),
    }


def products(rng: np.random.Generator) -> dict[str, Any]:
    rows, tokens = int(rng.integers(0, 4)), int(rng.integers(0, 9))
    size, rank = int(rng.integers(0, 60)), int(rng.integers(0, 40))
    return {
        "wide": rng.normal(size=(rows, tokens, size)).astype(np.float32),
        "narrow": rng.normal(size=(rows, tokens, rank)).astype(np.float32),
        "out": np.zeros((rows, size, rank), np.float32),
        "threads": int(rng.integers(1, 3)),
    }


def sketch_add_products(rng: np.random.Generator) -> dict[str, Any]:
    call = products(rng)
    return call | {
        "out": np.zeros((len(call["out"]), int(2 ** rng.integers(7, 12))), np.float32),
        "seed": int(rng.integers(0, 2**63)),
        "module": int(rng.integers(0, 2**32)),
    }


def json_vectors(rng: np.random.Generator) -> dict[str, Any]:
    text = bytearray(b'{"a": "p", "x": [[1.5, -2e-3], [0.25, 3]]}\n{"x": [[1, 2]], "b": null}')
    for at in rng.integers(len(text), size=int(rng.integers(4))):
        text[at] = rng.integers(256)
    end = int(rng.integers(len(text) + 1)) if rng.random() < 0.3 else len(text)
    return {"lines": bytes(text[:end]), "name": "x"}


CALLS: dict[str, Make] = {
    "kmedoids": kmedoids,
    "kmedoids_bounds": kmedoids_bounds,
    "opt_select": opt_select,
    "coreset": coreset,
    "bottom_k": bottom_k,
    "kmedoids_plain": kmedoids_plain,
    "logdet_one": logdet_one,
    "logdet_pairs": logdet_pairs,
    "logdet_best_subset": logdet_best_subset,
    "logdet_groups": logdet_groups,
    "mass_dpo": mass_dpo,
    "products": products,
    "sketch_add": sketch_add,
    "sketch_add_products": sketch_add_products,
    "json_vectors": json_vectors,
    "squared_norms": lambda rng: {"data": points(rng, 5), "threads": 2},
    "first_invalid": lambda rng: {"array": points(rng, 3), "nonnegative": True},
    "first_asymmetric": lambda rng: {"distances": rng.random(25), "offsets": np.array([0, 3, 7])},
    "random_subsets": lambda rng: {
        "sizes": rng.integers(2, 30, 3),
        "k": int(rng.integers(1, 3)),
        "seed": 3,
    },
    "philox": lambda rng: {"counter": [1, 2, 3, 4], "key": [5, 6]},
    "build_info": lambda rng: {},
    "openmp_threads": lambda rng: {},
}

NONSENSE: list[Any] = [None, "", "bést\0", -1, 0, 2**31, 2**63, 2**64, -(2**63), 1.5, np.nan]
NONSENSE += [True, [], [[]], {}, object(), b"x", np.array(3), np.array(["a"]), np.array([None])]
# A legal amount of work is no crash: these may only take small values.
BOUNDED = ("n_init", "max_iter")


def spoil(value: Any, rng: np.random.Generator) -> Any:
    """Return something that is not quite `value`."""
    if not isinstance(value, np.ndarray) or value.dtype == object or rng.random() < 0.2:
        return NONSENSE[rng.integers(len(NONSENSE))]
    how = rng.integers(8)
    if how == 0:
        with np.errstate(all="ignore"):
            return value.astype(rng.choice(["f2", "f4", "f8", "i4", "i8", "u8", "c16", "?", ">f8"]))
    if how == 1:
        return value[..., :-1] if value.ndim else value
    if how == 2:
        return np.asfortranarray(np.stack([value, value], axis=-1)[..., 0])
    if how == 3:
        return value.reshape((-1, 1, *value.shape[1:])) if value.size else value
    if how == 4:
        return value[:0]
    if how == 5:
        return np.concatenate([value, value])
    changed = np.array(value)
    if changed.size and changed.dtype.kind in "fi":
        bad = [np.nan, np.inf, -np.inf, -1.0, 1e300, 5e-324] if changed.dtype.kind == "f" else []
        bad = bad or [-1, 0, 2**62, -(2**62), 10**6]
        with np.errstate(over="ignore"):
            changed.flat[rng.integers(changed.size)] = bad[rng.integers(len(bad))]
    return changed


def attempt(rng: np.random.Generator, tally: Counter[str]) -> None:
    names = list(CALLS)
    name = names[rng.integers(len(names))]
    call = CALLS[name](rng)
    for key in rng.permutation(list(call))[: rng.integers(0, 4)]:
        changed = spoil(call[key], rng)
        if not (key in BOUNDED and isinstance(changed, int) and changed > 9):
            call[key] = changed
    try:
        getattr(_core, name)(**call)
        tally[f"{name}: result"] += 1
    except ALLOWED as error:
        tally[f"{name}: {type(error).__name__}"] += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=20_000, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    tally: Counter[str] = Counter()
    missing = {n for n in dir(_core) if not n.startswith("_")} - set(CALLS)
    assert not missing, f"no fuzz target for {missing}"
    started = time.monotonic()
    for _ in range(options.inputs):
        attempt(rng, tally)
    for line, count in sorted(tally.items()):
        print(f"{count:>9}  {line}")
    print(f"{options.inputs} inputs without a crash in {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
