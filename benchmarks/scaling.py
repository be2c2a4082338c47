"""How the selectors grow with n, d, k, N and threads: time, peak memory and what bounds them.

``python benchmarks/scaling.py`` (about three minutes, on Linux) writes ``scaling.json`` and three
plots to ``--out``. Every point runs in a process of its own, so that its peak memory is its own.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from harness import Machine
from threadpoolctl import threadpool_limits

from pyfast import select
from pyfast.select import _kmedoids


@dataclass(frozen=True)
class Size:
    """One problem: `groups` groups of `n` rows of `d` numbers, of which `k` are picked."""

    selector: str
    n: int
    d: int
    k: int
    groups: int = 1
    threads: int = 1


@dataclass(frozen=True)
class Point:
    """What one problem took: seconds and bytes; and what it needs at the very least.

    ``seconds`` are processor time on one thread, which is wall time on an idle machine.
    """

    size: Size
    seconds: float
    wall: float
    peak_bytes: int
    bytes: float
    multiply_adds: float


def opt_select(size: Size, rng: np.random.Generator) -> Callable[[], object]:
    """Opt-Select from embeddings, one random start."""
    X = rng.normal(size=(size.groups, size.n, size.d)).astype(np.float32)
    R = rng.normal(size=(size.groups, size.n))
    return lambda: select.opt_select(X, R, k=size.k, n_init=1, n_threads=size.threads)


def kmedoids(size: Size, rng: np.random.Generator) -> Callable[[], object]:
    """k-medoids from embeddings with as few latent dimensions as real ones have."""
    X = (rng.normal(size=(size.n, 16)) @ rng.normal(size=(16, size.d))).astype(np.float32)
    return lambda: select.kmedoids(X, size.k, n_threads=size.threads)


def given(size: Size, rng: np.random.Generator) -> Callable[[], object]:
    """k-medoids of distances that are there already, between points as above."""
    X = (rng.normal(size=(size.n, 16)) @ rng.normal(size=(16, size.d))).astype(np.float32)
    squares = (X**2).sum(1)
    D = np.sqrt(np.maximum(squares[:, None] + squares - 2 * X @ X.T, 0))
    D = np.minimum(D, D.T)
    np.fill_diagonal(D, 0)
    return lambda: select.kmedoids(D, size.k, metric="precomputed", n_threads=size.threads)


def logdet(size: Size, rng: np.random.Generator) -> Callable[[], object]:
    """D-optimal greedy on rows of unit length."""
    V = rng.normal(size=(size.groups, size.n, size.d)).astype(np.float32)
    V /= np.linalg.norm(V, axis=-1, keepdims=True)
    return lambda: select.logdet(V, size.k, n_threads=size.threads)


SELECTORS = {"opt_select": opt_select, "kmedoids": kmedoids, "given": given, "logdet": logdet}


def least_work(size: Size) -> tuple[float, float]:
    """Bytes and multiply-adds that the method needs: every row once, every pair or pick once.

    Where k-medoids samples, the pairs are those of the sample and of all points with the medoids.
    Distances that are given are read once. Of picks beyond the d-th each takes a factor of its own,
    d^3 / 6, from which the bits of its gain are made.
    """
    if size.selector == "given":
        return 4.0 * size.n**2, 0.0
    if size.selector == "logdet":
        pairs = size.n * min(size.k, size.d) + max(0, size.k - size.d) * size.d**2 / 6
    elif size.selector == "kmedoids" and size.n > _kmedoids._SAMPLED_ABOVE:
        pairs = _kmedoids._SAMPLE**2 / 2 + size.n * size.k
    else:
        pairs = size.n * (size.n - 1) / 2
    return 4.0 * size.groups * size.n * size.d, size.groups * pairs * size.d


def studies() -> dict[str, list[Size]]:
    """Name the curves: one thing grows, the rest stays."""

    def opt(n: int = 32, d: int = 384, k: int = 7, threads: int = 1) -> Size:
        return Size("opt_select", n, d, k, max(1, 200_000_000 // (n * n * d)), threads)

    def det(n: int = 64, d: int = 2048, k: int = 8, threads: int = 1) -> Size:
        return Size("logdet", n, d, k, max(1, 50_000_000 // (n * d)), threads)

    ns = [1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000]
    return {
        "Opt-Select, n": [opt(n=n) for n in (8, 16, 32, 64, 128, 256, 512, 1024, 2048)],
        "Opt-Select, d": [opt(d=d) for d in (16, 64, 256, 1024, 4096)],
        "Opt-Select, k": [opt(n=64, k=k) for k in (2, 4, 8, 16, 32)],
        "Opt-Select, threads": [opt(threads=t) for t in (1, 2)],
        "k-medoids, n": [Size("kmedoids", n, 384, 50) for n in ns],
        "k-medoids, n, 2 threads": [Size("kmedoids", n, 384, 50, threads=2) for n in ns],
        "k-medoids, distances given, n": [Size("given", n, 384, 50) for n in ns[:4]],
        "k-medoids, k": [Size("kmedoids", 5000, 64, k) for k in (5, 20, 100, 400)],
        "log-det, N": [det(n=n) for n in (16, 64, 256, 1024, 4096)],
        "log-det, d": [det(d=d) for d in (64, 512, 4096, 32_768)],
        "log-det, k": [det(n=1024, k=k) for k in (4, 16, 64, 256)],
        "log-det, k beyond d, k": [
            Size("logdet", 20_000, 64, k) for k in (16, 32, 64, 128, 256, 600, 1000)
        ],
        "log-det, threads": [det(n=4096, d=8192, k=50, threads=t) for t in (1, 2)],
    }


def status(name: str) -> int:
    """Read a number of bytes from this process's status: VmRSS, held now; VmHWM, held at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def measure(size: Size, seconds_each: float) -> Point:
    """Measure in this process: the first call counts for memory, the least of several for time."""
    call = SELECTORS[size.selector](size, np.random.default_rng(0))
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = status("VmRSS")
    taken = [clocks(call)]
    peak = status("VmHWM") - before
    taken += [clocks(call) for _ in range(int(min(10, seconds_each / taken[0][0])))]
    wall, cpu = (min(times) for times in zip(*taken, strict=True))
    return Point(size, cpu if size.threads == 1 else wall, wall, peak, *least_work(size))


def clocks(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds of wall and of processor time that a call takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure_apart(size: Size, seconds_each: float) -> Point:
    """Measure in a new process."""
    command = [sys.executable, __file__, "--one", json.dumps(asdict(size))]
    command += ["--seconds", str(seconds_each)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    return Point(**{**found, "size": size})


def limit(point: Point, machine: Machine) -> float:
    """Seconds that reading and multiplying take at least, on the threads that were used."""
    compute = point.multiply_adds / (machine.flops * point.size.threads)
    return max(point.bytes / machine.bandwidth, compute)


def short(number: int) -> str:
    """Write 20000 as 20k."""
    return f"{number // 1000}k" if number >= 1000 and number % 1000 == 0 else str(number)


def plot_speedup(axis: Any, found: dict[str, list[Point]]) -> None:
    """Draw how many times faster two threads are, for every problem that was given to one too."""
    points = {point.size: point for name in found for point in found[name]}
    gains = {}
    for size, one in points.items():
        two = points.get(replace(size, threads=2))
        if size.threads == 1 and two is not None:
            gains[f"{size.selector}, n={short(size.n)}"] = one.wall / two.wall
    axis.barh(list(gains), list(gains.values()), color="C0")
    axis.axvline(1, color="0.6", linestyle="--")
    axis.invert_yaxis()
    axis.set(title="2 threads", xlabel="times faster than 1 thread")


def plot_growth(found: dict[str, list[Point]], machine: Machine, out: Path) -> None:
    """Draw time (with the limit beside it) and peak memory of every curve."""
    import matplotlib.pyplot as plt

    curves = {name: points for name, points in found.items() if "threads" not in name}
    for what in ("time", "memory"):
        figure, axes = plt.subplots(4, 3, figsize=(14, 14.5), constrained_layout=True)
        for axis, (name, points) in zip(axes.flat, curves.items(), strict=False):
            grown = {"n": "n", "N": "n", "d": "d", "k": "k"}[name.rsplit(", ", 1)[1]]
            x = [getattr(p.size, grown) for p in points]
            if what == "time":
                y = [p.seconds / p.size.groups for p in points]
                low = [limit(p, machine) / p.size.groups for p in points]
                axis.plot(x, low, "--", color="0.6", label="limit: least bytes and products")
                twin = found.get(f"{name}, 2 threads")
                if twin:
                    axis.plot(x, [p.seconds for p in twin], "o-", label="2 threads")
                axis.set_ylabel("seconds a group")
            else:
                y = [max(p.peak_bytes, 1e5) / 1e6 for p in points]
                low = [p.bytes / 1e6 for p in points]
                axis.plot(x, low, "--", color="0.6", label="the input")
                axis.set_ylabel("MB beside the input")
            axis.plot(x, y, "o-", color="C3", label="1 thread")
            first = points[0].size
            fixed = [f"{a}={getattr(first, a)}" for a in ("n", "d", "k") if a != grown]
            axis.set(xscale="log", yscale="log", xlabel=name.rsplit(", ", 1)[1])
            axis.set_xticks(x, [short(value) for value in x])
            axis.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
            axis.set_title(f"{name.rsplit(', ', 1)[0]}: {', '.join(fixed)}")
            axis.grid(True, which="major", alpha=0.3)
        axes.flat[3].legend(loc="lower right")  # the one with all of them, and with room
        rest = list(axes.flat[len(curves) :])
        if what == "time":
            plot_speedup(rest.pop(0), found)
        for axis in rest:
            axis.axis("off")
        figure.savefig(out / f"scaling-{what}.png", dpi=60)
        plt.close(figure)


def plot_roofline(found: dict[str, list[Point]], machine: Machine, out: Path) -> None:
    """Draw multiply-adds a second against multiply-adds a byte, under the machine's two roofs."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 5.5), constrained_layout=True)
    for selector in SELECTORS:
        points = [p for ps in found.values() for p in ps]
        own = [p for p in points if p.size.selector == selector and p.size.threads == 1]
        own = [p for p in own if p.multiply_adds]  # distances that are given are only read
        if not own:
            continue
        x = [p.multiply_adds / p.bytes for p in own]
        axis.plot(x, [p.multiply_adds / p.seconds / 1e9 for p in own], "o", label=selector)
    intensity = np.geomspace(0.2, 2e4, 100)
    roof = np.minimum(intensity * machine.bandwidth, machine.flops) / 1e9
    axis.plot(intensity, roof, "k-", label="one core: read rate, then BLAS rate")
    axis.set(xscale="log", yscale="log")
    axis.set(xlabel="least multiply-adds a byte of input", ylabel="G multiply-adds a second")
    axis.grid(True, which="major", alpha=0.3)
    axis.legend()
    figure.savefig(out / "roofline.png", dpi=80)
    plt.close(figure)


def main() -> None:
    """Run the study, or one point of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--seconds", type=float, default=2, help="to repeat each point for")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(asdict(measure(Size(**json.loads(options.one)), options.seconds))))
        return
    with threadpool_limits(1):
        machine = Machine.measure()
    found: dict[str, list[Point]] = {}
    for name, sizes in studies().items():
        found[name] = []
        for size in sizes:
            point = measure_apart(size, options.seconds)
            found[name].append(point)
            print(
                f"{name:24} n={size.n:<7} d={size.d:<6} k={size.k:<4} threads={size.threads} "
                f"{point.seconds / size.groups * 1e6:14,.1f} us a group, "
                f"{point.seconds / limit(point, machine):6.1f} x limit, "
                f"{point.peak_bytes / 1e6:8.1f} MB",
                flush=True,
            )
    options.out.mkdir(parents=True, exist_ok=True)
    data = {
        "machine": asdict(machine),
        "studies": {n: [asdict(p) for p in ps] for n, ps in found.items()},
    }
    (options.out / "scaling.json").write_text(json.dumps(data, indent=1) + "\n")
    plot_growth(found, machine, options.out)
    plot_roofline(found, machine, options.out)


if __name__ == "__main__":
    main()
