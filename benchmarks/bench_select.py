"""Selectors beside their peers: ``python benchmarks/bench_select.py`` (about four minutes)."""

import argparse
import math
from pathlib import Path

import busy
import cases_groups
import cases_kmedoids
import cases_logdet
from harness import report, verdict
from threadpoolctl import threadpool_limits


def main() -> None:
    """Run all cases, or those whose name holds a word."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--only", default="", help="a word in the names of the cases to run")
    parser.add_argument("--hard", type=int, default=160, help="problems solved exactly as well")
    options = parser.parse_args()
    with threadpool_limits(1):  # the peers' matrix products too run on one core
        cases = [*cases_groups.cases(), *cases_kmedoids.cases(), *cases_logdet.cases()]
        cases = [case for case in cases if options.only in case.name]
        hard = options.hard if options.only in "hard problems" else 0
        enough = not hard or hard_problems(hard)
        calm = options.only not in "small batches" or busy.small_batches()
        if cases:
            report(cases, options.out, "selectors")
    if not enough:
        raise SystemExit("ten starts of the default search found too few optima")
    if not calm:
        raise SystemExit("small batches took too long beside other work")


def hard_problems(count: int) -> bool:
    """Print how many optima ten starts found; whether the default search found 158 of 160."""
    found, least = cases_groups.hard_problems(count), math.ceil(count * 158 / 160)
    met = found["default"] >= least
    target = verdict(f"default search >= {least}", met)
    print(f"optima that ten starts found, of {count} hard problems: {found}, {target}", flush=True)
    return met


if __name__ == "__main__":
    main()
