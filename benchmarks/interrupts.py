"""How long every native entry point takes to answer Ctrl-C: the worst delay at several moments.

``python benchmarks/interrupts.py`` (about three minutes, on Linux or macOS) prints a table and
writes ``interrupts.json`` to ``--out``. Each call runs for seconds in a process of its own; another
process sends SIGINT, so that a call that kept the interpreter's lock could not delay the signal.
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

from pyfast import select, sketch

TARGET = 0.2  # seconds
MOMENTS = (0.02, 0.1, 0.25, 0.5, 0.8, 1.2, 1.7)  # seconds after the call
THREADS = (1, 2)

RNG = np.random.default_rng(0)
Call = Callable[[int], object]


def normal(*shape: int) -> np.ndarray:
    """Return float32 numbers."""
    return RNG.normal(size=shape).astype(np.float32)


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


def coreset_groups() -> Call:
    """Many small groups."""
    X, R = normal(20_000, 32, 128), RNG.random((20_000, 32))
    return lambda t: [select.coreset(X, R, k=7, n_threads=t) for _ in range(9)]


def coreset_large() -> Call:
    """One large group."""
    X, R = normal(60_000, 64), RNG.random(60_000)
    return lambda t: select.coreset(X, R, k=2000, n_threads=t)


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


def active_dpo() -> Call:
    """Many pairs of long sketches."""
    S = normal(6000, 8192)
    pairs = np.stack([RNG.permutation(6000)[:2] for _ in range(40_000)])
    return lambda t: select.active_dpo(S, pairs, k=500, n_threads=t)


def project() -> Call:
    """Long vectors."""
    v = normal(40, 5_000_000)
    return lambda t: [sketch.project(v, dim=65_536, seed=0) for _ in range(30)]


def scan_values() -> Call:
    """Find a bad value behind a gigabyte of good ones."""
    D = np.ones((20_000, 20_000), np.float32)
    D[-1, -1] = np.nan
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
    "kmedoids, certify": certificate,
    "opt_select, many groups": opt_select_groups,
    "opt_select, one large group": opt_select_large,
    "coreset, many groups": coreset_groups,
    "coreset, one large group": coreset_large,
    "bottom_k": bottom_k,
    "logdet": logdet_rows,
    "logdet, d=65536": logdet_long_rows,
    "logdet, many groups": logdet_groups,
    "mass_dpo": mass_dpo,
    "active_dpo": active_dpo,
    "sketch.project": project,
    "checks of values": scan_values,
}


@dataclass(frozen=True)
class Answer:
    """Delays in seconds from a signal, sent `moments` after the call, to KeyboardInterrupt."""

    call: str
    threads: int
    moments: list[float]
    delays: list[float]


def serve(name: str) -> None:
    """In a process of its own: make the call for every line of stdin, and say when it ended."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
    call = CALLS[name]()
    while True:
        try:
            line = sys.stdin.readline()
        except KeyboardInterrupt:  # the call had ended before the signal came
            continue
        if not line:
            return
        try:
            print("start", flush=True)
            call(int(line))
            print("finished", flush=True)
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
        for threads in THREADS:
            answer = Answer(name, threads, [], [])
            for moment in MOMENTS:
                print(threads, file=child.stdin, flush=True)
                assert child.stdout.readline() == "start\n"
                time.sleep(moment)
                sent = time.monotonic()
                child.send_signal(signal.SIGINT)
                ended = child.stdout.readline().strip()
                if ended == "finished":  # too early for this moment and all later ones
                    break
                answer.moments.append(moment)
                answer.delays.append(float(ended) - sent)
            answers.append(answer)
        child.stdin.close()
    return answers


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
            worst = int(np.argmax(answer.delays))
            print(
                f"| {name} | {answer.threads} | {answer.delays[worst] * 1e3:.0f} "
                f"| {answer.moments[worst]} | {np.median(answer.delays) * 1e3:.0f} |",
                flush=True,
            )
    options.out.mkdir(parents=True, exist_ok=True)
    data = [asdict(answer) for answer in found]
    (options.out / "interrupts.json").write_text(json.dumps(data, indent=1) + "\n")
    late = {a.call for a in found if max(a.delays) > TARGET}
    if late:
        raise SystemExit(f"later than {TARGET} s: {', '.join(sorted(late))}")


if __name__ == "__main__":
    main()
