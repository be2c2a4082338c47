"""How long native calls take to answer Ctrl-C: the worst delay at several moments.

``python benchmarks/interrupts.py`` (about ten minutes and 8 GB, on Linux or macOS) prints a table
and writes ``interrupts.json`` to ``--out``; ``--only WORD`` takes the calls whose names hold it.
Every native entry point that can take long is here, with many small groups and with rows as wide as
they get; `build_info` and `philox` cannot, and ``logdet(exact=True)`` loops in Python. Each call
runs for seconds in a process of its own; another process sends SIGINT, so that a call that kept the
interpreter's lock could not delay the signal.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from pyfast import select, sketch
from pyfast.sketch._products import add_products, products

TARGET = 0.2  # seconds
MOMENTS = (0.02, 0.1, 0.25, 0.5, 0.8, 1.2, 1.7)  # seconds after the call
THREADS = (1, 2)

RNG = np.random.default_rng(0)
Call = Callable[[int], object]


def normal(*shape: int) -> np.ndarray:
    """Return float32 numbers."""
    return RNG.standard_normal(shape, np.float32)


def kmedoids_given() -> Call:
    """Many swaps over given distances."""
    D = np.abs(normal(9000, 9000))
    D += D.T
    return lambda t: select.kmedoids(D, 800, metric="precomputed", n_init=20, n_threads=t)


def kmedoids_best() -> Call:
    """Make the best of all swaps each time."""
    D = np.abs(normal(4000, 4000))
    D += D.T
    return lambda t: select.kmedoids(D, 200, metric="precomputed", search="best", n_threads=t)


def kmedoids_greedy() -> Call:
    """BUILD."""
    X = normal(6000, 64)
    return lambda t: select.kmedoids(X, 500, init="greedy", n_threads=t)


def kmedoids_points() -> Call:
    """Coded distances, then swaps."""
    X = normal(10_000, 1024)
    return lambda t: select.kmedoids(X, 300, n_init=10, n_threads=t)


def kmedoids_sampled() -> Call:
    """Search a sample, and polish."""
    X = normal(200_000, 256)
    return lambda t: select.kmedoids(X, 200, n_threads=t)


def kmedoids_batch() -> Call:
    """Ragged groups of two sizes."""
    X = normal(200, 1200, 64)
    return lambda t: select.kmedoids(X, 30, n_init=4, n_threads=t)


def kmedoids_wide() -> Call:
    """Coded distances of rows of 30,000 numbers."""
    X = normal(1100, 30_000)
    return lambda t: [select.kmedoids(X, 5, n_threads=t) for _ in range(9)]


def kmedoids_wide_points() -> Call:
    """More points, of 4096 numbers."""
    X = normal(4000, 4096)
    return lambda t: [select.kmedoids(X, 50, n_threads=t) for _ in range(9)]


def kmedoids_widest() -> Call:
    """Few points of four million numbers."""
    X = normal(128, 4_000_000)
    return lambda t: [select.kmedoids(X, 2, n_threads=t) for _ in range(9)]


def kmedoids_plain() -> Call:
    """Search the same points by the shortest way in, which has one thread."""
    X = normal(128, 4_000_000)
    return lambda _: [select.kmedoids(X, 2) for _ in range(9)]


def certificate() -> Call:
    """Bound by Lagrange."""
    D = np.abs(normal(3000, 3000))
    D += D.T
    return lambda t: [
        select.kmedoids(D, 50, metric="precomputed", certify=True, n_threads=t) for _ in range(9)
    ]


def opt_select_groups() -> Call:
    """Many small groups."""
    X, R = normal(20_000, 32, 128), RNG.random((20_000, 32))
    return lambda t: select.opt_select(X, R, k=7, n_init=60, n_threads=t)


def opt_select_large() -> Call:
    """One large group."""
    X, R = normal(6000, 1024), RNG.random(6000)
    return lambda t: select.opt_select(X, R, k=200, n_threads=t)


def opt_select_wide() -> Call:
    """One group of rows of 32,768 numbers."""
    X, R = normal(3000, 32_768), RNG.random(3000)
    return lambda t: [select.opt_select(X, R, k=7, n_threads=t) for _ in range(9)]


def opt_select_narrow() -> Call:
    """One group whose distances are far more than its points."""
    X, R = normal(12_000, 4), RNG.random(12_000)
    return lambda t: [select.opt_select(X, R, k=2, n_threads=t) for _ in range(9)]


def coreset_groups() -> Call:
    """Many small groups."""
    X, R = normal(20_000, 32, 128), RNG.random((20_000, 32))
    return lambda t: [select.coreset(X, R, k=7, n_threads=t) for _ in range(9)]


def coreset_large() -> Call:
    """One large group."""
    X, R = normal(60_000, 64), RNG.random(60_000)
    return lambda t: select.coreset(X, R, k=2000, n_threads=t)


def coreset_wide() -> Call:
    """Two clusters of rows of 8192 numbers."""
    X, R = normal(20_000, 8192), RNG.random(20_000)
    return lambda t: [select.coreset(X, R, k=2, n_threads=t) for _ in range(9)]


def coreset_two() -> Call:
    """Two clusters of rows of 1024 numbers."""
    X, R = normal(20_000, 1024), RNG.random(20_000)
    return lambda t: [select.coreset(X, R, k=2, n_threads=t) for _ in range(9)]


def bottom_k() -> Call:
    """All scores equal, so that similarity decides."""
    X, R = normal(20_000, 512), np.zeros(20_000)
    return lambda t: select.bottom_k(R, k=3000, embeddings=X, n_threads=t)


def logdet_rows() -> Call:
    """Most of a pool."""
    V = normal(6000, 1500)
    return lambda t: select.logdet(V, 6000, n_threads=t)


def logdet_long_rows() -> Call:
    """Few picks, each of which passes over a gigabyte."""
    V = normal(4000, 65_536)
    return lambda t: select.logdet(V, 300, n_threads=t)


def logdet_groups() -> Call:
    """Many small groups."""
    V = normal(4000, 64, 512)
    return lambda t: [select.logdet(V, 48, n_threads=t) for _ in range(9)]


def mass_dpo() -> Call:
    """Many small groups."""
    F, P = normal(4000, 64, 512), -100 * RNG.random((4000, 64))
    chosen = np.zeros(4000, np.int64)
    return lambda t: [select.mass_dpo(F, P, P, chosen, k=40, n_threads=t) for _ in range(9)]


def mass_dpo_wide() -> Call:
    """One pick from a group of rows of 32,768 numbers."""
    F, P = normal(4000, 32_768), -100 * RNG.random(4000)
    return lambda t: [select.mass_dpo(F, P, P, 0, k=1, n_threads=t) for _ in range(9)]


def active_dpo() -> Call:
    """Many pairs of long sketches."""
    S = normal(6000, 8192)
    pairs = np.stack([RNG.permutation(6000)[:2] for _ in range(40_000)])
    return lambda t: select.active_dpo(S, pairs, k=500, n_threads=t)


def project() -> Call:
    """Long vectors."""
    v = normal(40, 5_000_000)
    return lambda t: [sketch.project(v, dim=65_536, seed=0) for _ in range(30)]


def random_large() -> Call:
    """Draw half of one group."""
    return lambda _: [select.random(20_000_000, 10_000_000) for _ in range(9)]


def random_groups() -> Call:
    """Draw half of many groups."""
    sizes = np.full(200_000, 1000)
    return lambda _: [select.random(sizes, 500) for _ in range(9)]


def factors() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the factors of four responses' gradients: 8192 tokens, 8192 x 128 numbers."""
    return torch.from_numpy(normal(4, 8192, 8192)), torch.from_numpy(normal(4, 8192, 128))


def multiply() -> Call:
    """Make gradients from their factors."""
    wide, narrow = factors()
    return lambda t: [products(wide, narrow, t) for _ in range(9)]


def multiply_and_project() -> Call:
    """Sketch gradients from their factors."""
    wide, narrow = factors()
    out = torch.zeros(4, 65_536)
    return lambda t: [add_products(wide, narrow, out, 0, 0, t) for _ in range(9)]


def scan_values() -> Call:
    """Find a bad value behind a gigabyte of good ones."""
    D = np.ones((20_000, 20_000), np.float32)
    D[-1, -1] = np.nan
    return lambda t: [_ignore(D, t) for _ in range(9)]


def scan_symmetry() -> Call:
    """Find the one pair that differs, behind all others."""
    D = np.ones((20_000, 20_000), np.float32)
    D[-1, -2] = 2
    return lambda t: [_ignore(D, t) for _ in range(9)]


def _ignore(D: np.ndarray, threads: int) -> None:
    """Have a call refused."""
    try:
        select.kmedoids(D, 3, metric="precomputed", n_threads=threads)
    except ValueError:
        return


CALLS: dict[str, Callable[[], Call]] = {
    "kmedoids, distances given": kmedoids_given,
    "kmedoids, best swaps": kmedoids_best,
    "kmedoids, greedy start": kmedoids_greedy,
    "kmedoids, from points": kmedoids_points,
    "kmedoids, sampled": kmedoids_sampled,
    "kmedoids, batch": kmedoids_batch,
    "kmedoids, d=4096": kmedoids_wide_points,
    "kmedoids, d=30000": kmedoids_wide,
    "kmedoids, d=4000000": kmedoids_widest,
    "kmedoids, plain call": kmedoids_plain,
    "kmedoids, certify": certificate,
    "opt_select, many groups": opt_select_groups,
    "opt_select, one large group": opt_select_large,
    "opt_select, d=32768": opt_select_wide,
    "opt_select, d=4": opt_select_narrow,
    "coreset, many groups": coreset_groups,
    "coreset, one large group": coreset_large,
    "coreset, d=8192": coreset_wide,
    "coreset, d=1024": coreset_two,
    "bottom_k": bottom_k,
    "logdet": logdet_rows,
    "logdet, d=65536": logdet_long_rows,
    "logdet, many groups": logdet_groups,
    "mass_dpo": mass_dpo,
    "mass_dpo, d=32768": mass_dpo_wide,
    "active_dpo": active_dpo,
    "random, one large group": random_large,
    "random, many groups": random_groups,
    "sketch.project": project,
    "sketch, products": multiply,
    "sketch, products projected": multiply_and_project,
    "checks of values": scan_values,
    "checks of symmetry": scan_symmetry,
}
ON_ONE_THREAD = ("kmedoids, plain call", "random, one large group", "random, many groups")


@dataclass(frozen=True)
class Answer:
    """Delays in seconds from a signal, sent `moments` after the call, to KeyboardInterrupt."""

    call: str
    threads: int
    moments: list[float]
    delays: list[float]


def serve(name: str) -> None:
    """In a process of its own: make the call for every line of stdin, and say when it ended.

    Each line is followed by one signal. Where the call ends before, it is waited for here: reading
    the next line, it could take that line along.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
    call = CALLS[name]()
    for line in sys.stdin:
        try:
            print("start", flush=True)
            call(int(line))
            print("finished", flush=True)
            for _ in range(1000):
                time.sleep(0.01)
        except KeyboardInterrupt:
            print(time.monotonic(), flush=True)


def measure(name: str) -> list[Answer]:
    """Interrupt one call at all moments; those that it ended before are left out."""
    command = [sys.executable, __file__, "--serve", name]
    answers = []
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for threads in THREADS if name not in ON_ONE_THREAD else THREADS[:1]:
            answer = Answer(name, threads, [], [])
            for moment in MOMENTS:
                print(threads, file=child.stdin, flush=True)
                assert child.stdout.readline() == "start\n"
                time.sleep(moment)
                sent = time.monotonic()
                child.send_signal(signal.SIGINT)
                ended = child.stdout.readline().strip()
                if ended == "finished":  # too early for this moment and all later ones
                    child.stdout.readline()
                    break
                answer.moments.append(moment)
                answer.delays.append(float(ended) - sent)
            answers.append(answer)
        child.stdin.close()
    return answers


def line(answer: Answer) -> str:
    """Lay out one line of the table."""
    start = f"| {answer.call} | {answer.threads} "
    if not answer.delays:
        return f"{start}| ended within {MOMENTS[0]} s | - | - |"
    worst = int(np.argmax(answer.delays))
    median = np.median(answer.delays)
    return (
        f"{start}| {answer.delays[worst] * 1e3:.0f} | {answer.moments[worst]} "
        f"| {median * 1e3:.0f} |"
    )


def main() -> None:
    """Measure all, or those whose names hold a text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--only", default="", help="calls whose names hold this")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    found: list[Answer] = []
    print("| call | threads | worst delay, ms | at, s | median, ms |\n|---|---|---|---|---|")
    for name in (n for n in CALLS if options.only in n):
        for answer in measure(name):
            found.append(answer)
            print(line(answer), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    data = [asdict(answer) for answer in found]
    (options.out / "interrupts.json").write_text(json.dumps(data, indent=1) + "\n")
    late = {a.call for a in found if max(a.delays, default=0) > TARGET}
    if late:
        raise SystemExit(f"later than {TARGET} s: {', '.join(sorted(late))}")


if __name__ == "__main__":
    main()
