"""Greedy log-det beside numpy: answers checked first, then timed in the same run on one core.

Usage: python benchmarks/bench_logdet.py [--out FOLDER] [--repeats N]
Writes logdet.json and logdet.md. "limit" is the time to read the vectors once from where they lie,
at the bandwidth measured in this run: every method must at least do that.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before numpy loads its BLAS

import numpy as np  # noqa: E402

from pyfast import select  # noqa: E402

GAMMA = 0.1


@dataclass(frozen=True)
class Case:
    """`groups` pools of n vectors of d numbers, k picks each."""

    name: str
    groups: int
    n: int
    d: int
    k: int
    unit: bool
    target_us: float

    def data(self) -> np.ndarray:
        """Return the vectors, (groups, n, d) in float32."""
        rng = np.random.default_rng(0)
        V = rng.standard_normal((self.groups, self.n, self.d), np.float32)
        if self.unit:
            V /= np.linalg.norm(V, axis=2, keepdims=True)
        return V


CASES = [
    Case("N=20 d=576 n=3", 1000, 20, 576, 3, False, 8),
    Case("N=20 d=576 n=3, unit rows", 1000, 20, 576, 3, True, 8),
    Case("N=64 d=2048 n=8", 200, 64, 2048, 8, False, 60),
    Case("N=64 d=2048 n=8, unit rows", 200, 64, 2048, 8, True, 60),
    Case("N=3000 d=8192 n=50", 1, 3000, 8192, 50, False, 80_000),
    Case("N=3000 d=8192 n=50, unit rows", 1, 3000, 8192, 50, True, 80_000),
]


def matrix_free(V: np.ndarray, k: int) -> list[int]:
    """Partial Cholesky in numpy: one product of the whole V with the last pick each time."""
    square = np.einsum("ij,ij->i", V, V, dtype=np.float64) / GAMMA
    U = np.empty((k, len(V)))
    picks: list[int] = []
    for t in range(k):
        best = square.copy()
        best[picks] = -1
        i = int(np.argmax(best))
        column = (V @ V[i]).astype(np.float64) / GAMMA
        U[t] = (column - U[:t].T @ U[:t, i]) / np.sqrt(1 + square[i])
        square -= U[t] ** 2
        picks.append(i)
    return picks


def sherman_morrison(V: np.ndarray, k: int) -> list[int]:
    """H^-1 as a d x d matrix, as in MASS-DPO's text."""
    V = V.astype(np.float64)
    inverse = np.eye(V.shape[1]) / GAMMA
    picks: list[int] = []
    for _ in range(k):
        values = np.einsum("ij,ij->i", V @ inverse, V)
        values[picks] = -1
        i = int(np.argmax(values))
        Hv = inverse @ V[i]
        inverse -= np.outer(Hv, Hv) / (1 + values[i])
        picks.append(i)
    return picks


def best_of(repeats: int, call: Callable[[], Any]) -> float:
    """Return the shortest of several times, in microseconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e6 * min(times)


def verify(case: Case, V: np.ndarray) -> None:
    """Raise unless picks follow a float64 numpy greedy and logdet an independent computation."""
    found = select.logdet(V, case.k, GAMMA, n_threads=1)
    wide = select.logdet(V[:8].astype(np.float64), case.k, GAMMA, n_threads=1)
    for b in range(min(8, case.groups)):
        picks = found.indices[b].tolist()
        group = V[b].astype(np.float64)
        if not case.unit:  # unit rows tie but for the rounding of their normalisation
            assert picks == matrix_free(group, case.k), case.name
        assert picks == wide.indices[b].tolist(), case.name
        S = group[picks]
        inside = np.linalg.slogdet(np.eye(case.k) + S @ S.T / GAMMA)[1]
        whole = case.d * np.log(GAMMA) + inside
        assert abs(found.logdet[b] - whole) <= 1e-9 * abs(whole), case.name


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Check one case, then time it beside its peers."""
    V = case.data()
    verify(case, V)
    flat = V.reshape(-1)
    row: dict[str, Any] = asdict(case)
    ours = best_of(repeats, lambda: select.logdet(V, case.k, GAMMA, n_threads=1))
    row["pyfast_us"] = ours / case.groups
    few = V[: min(case.groups, 20)]
    row["numpy_us"] = best_of(
        min(repeats, 5), lambda: [matrix_free(group, case.k) for group in few]
    ) / len(few)
    if case.d <= 2048:
        row["sherman_morrison_us"] = best_of(1, lambda: sherman_morrison(V[0], case.k))
    row["limit_us"] = best_of(repeats, lambda: flat @ flat) / case.groups
    row["bandwidth_gb_s"] = V.nbytes / case.groups / row["limit_us"] / 1e3
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| case | pyfast us | target | numpy us | ratio | Sherman-Morrison us | read once us |"
        " times limit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        full = f"{r['sherman_morrison_us']:,.0f}" if "sherman_morrison_us" in r else "-"
        lines.append(
            f"| {r['name']} | {r['pyfast_us']:,.1f} | {r['target_us']:,.0f} | {r['numpy_us']:,.0f}"
            f" | {r['numpy_us'] / r['pyfast_us']:.1f}x | {full} | {r['limit_us']:,.1f}"
            f" | {r['pyfast_us'] / r['limit_us']:.1f}x |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    rows = [measure(case, options.repeats) for case in CASES]
    options.out.mkdir(parents=True, exist_ok=True)
    machine = {"machine": platform.machine(), "numpy": np.__version__, "threads": 1}
    text = json.dumps({**machine, "rows": rows}, indent=1)
    (options.out / "logdet.json").write_text(text + "\n")
    (options.out / "logdet.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
