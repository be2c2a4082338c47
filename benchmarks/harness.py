"""Verify first, then time: ours and a peer in turn, the least of several repeats of each.

A case that fails its check has no time. Results go to JSON and to a Markdown table, with the
distance from what this machine could do at best, measured in the same run.
"""

import importlib
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Machine:
    """What one core did in this run: bytes and float32 multiply-adds per second of its time."""

    bandwidth: float
    flops: float
    name: str = platform.processor() or platform.machine()

    @classmethod
    def measure(cls) -> "Machine":
        """Sum 256 MB, and multiply two 768 x 768 float32 matrices; the least of ten times each."""
        numbers = np.ones(32_000_000)
        square = np.ones((768, 768), np.float32)
        read = least_time(numbers.sum, 10, time.process_time)
        multiply = least_time(lambda: square @ square, 10, time.process_time)
        return cls(bandwidth=numbers.nbytes / read, flops=768**3 / multiply)


@dataclass(frozen=True)
class Case:
    """Something to time, per item: `ours` and `theirs` return what `check` compares.

    ``bytes`` and ``multiply_adds`` are what the item needs at the very least; or ``least`` is a
    call that does no more than that, with its name, to be timed in turn with both sides.
    ``target`` is a time, ``target_ratio`` how many times faster than the peer it has to be.
    """

    name: str
    unit: str
    items: int
    ours: Callable[[], object]
    theirs: Callable[[], object]
    peer: str
    check: Callable[[object, object], str]
    target: float | None = None
    bytes: float = 0
    multiply_adds: float = 0
    peer_items: int | None = None
    repeats: int = 5
    target_ratio: float | None = None
    least: tuple[str, Callable[[], object]] | None = None
    clock: Callable[[], float] = time.perf_counter


@dataclass(frozen=True)
class Row:
    """One line of the table; times in seconds an item."""

    name: str
    unit: str
    ours: float
    theirs: float
    peer: str
    target: float | None
    limit: float
    bound_by: str
    checked: str
    ratio: float = field(default=0.0)
    target_ratio: float | None = None


def optional(name: str) -> Any:
    """Return a peer's module, or None with a line that says so."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        print(f"{name} is not installed ({error}): its cases are left out")
        return None


def least_time(
    call: Callable[[], object], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Least time of `repeats` calls by a clock, by default the one on the wall, in seconds."""
    times = []
    for _ in range(repeats):
        start = clock()
        call()
        times.append(clock() - start)
    return min(times)


def run(case: Case, machine: Machine) -> Row:
    """Check a case, then time both sides in turn, each twice.

    Memory that one side has given back may be slow to get again, as on a virtual machine whose host
    takes it away; the first of the two calls pays for that, and the least time counts.
    """
    checked = case.check(case.ours(), case.theirs())
    ours, theirs, least = [], [], []
    for _ in range(case.repeats):
        ours.append(least_time(case.ours, 2, case.clock) / case.items)
        theirs.append(least_time(case.theirs, 2, case.clock) / (case.peer_items or case.items))
        if case.least:
            least.append(least_time(case.least[1], 2, case.clock) / case.items)
    reading, multiplying = case.bytes / machine.bandwidth, case.multiply_adds / machine.flops
    bound_by = "reading" if reading > multiplying else "multiplying"
    return Row(
        name=case.name,
        unit=case.unit,
        ours=min(ours),
        theirs=min(theirs),
        peer=case.peer,
        target=case.target,
        limit=min(least, default=max(reading, multiplying)),
        bound_by=case.least[0] if case.least else bound_by,
        checked=checked,
        ratio=min(theirs) / min(ours),
        target_ratio=case.target_ratio,
    )


def verdict(target: str, met: bool) -> str:
    """Say whether a target was met."""
    return f"{target}: {'met' if met else 'missed'}"


def targets(row: Row) -> str:
    """Say which targets a row has, and whether this run met them."""
    said = []
    if row.target is not None:
        said.append(verdict(f"<= {row.target * 1e6:,.10g}", row.ours <= row.target))
    if row.target_ratio is not None:
        said.append(verdict(f">= {row.target_ratio:g}x", row.ratio >= row.target_ratio))
    return ", ".join(said) or "-"


def markdown(rows: list[Row]) -> str:
    """Lay the rows out as a table in microseconds an item."""
    lines = [
        "| case | ours, us | target | peer, us | ratio | times the limit | checked |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        limit = f"{row.ours / row.limit:.1f} ({row.bound_by})" if row.limit else "-"
        lines.append(
            f"| {row.name} | {row.ours * 1e6:,.1f} / {row.unit} | {targets(row)} "
            f"| {row.peer}: {row.theirs * 1e6:,.1f} | {row.ratio:.1f}x | {limit} | {row.checked} |"
        )
    return "\n".join(lines)


def report(cases: list[Case], out: Path, name: str) -> None:
    """Run all cases; print the table and write it and the data beside it."""
    machine = Machine.measure()
    print(
        f"one core: {machine.bandwidth / 1e9:.1f} GB/s read, "
        f"{machine.flops / 1e9:.1f} G float32 multiply-adds/s (BLAS)"
    )
    rows, failed = [], []
    for case in cases:
        try:
            rows.append(run(case, machine))
        except AssertionError as error:  # a wrong answer has no time; the other cases do
            failed.append(f"{case.name} beside {case.peer}: wrong answer {error}")
            print(failed[-1], flush=True)
            continue
        print(markdown(rows[-1:]).splitlines()[-1], flush=True)
    out.mkdir(parents=True, exist_ok=True)
    data = {"machine": asdict(machine), "rows": [asdict(row) for row in rows]}
    (out / f"{name}.json").write_text(json.dumps(data, indent=2) + "\n")
    (out / f"{name}.md").write_text(markdown(rows) + "\n")
    print("\n" + markdown(rows))
    if failed:
        raise SystemExit("\n".join(failed))
