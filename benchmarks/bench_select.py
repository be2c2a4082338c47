"""Selectors beside their peers: ``python benchmarks/bench_select.py`` (about three minutes)."""

import argparse
from pathlib import Path

import cases_groups
import cases_kmedoids
import cases_logdet
from harness import report
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
        report([case for case in cases if options.only in case.name], options.out, "selectors")
        if options.hard:
            found = cases_groups.hard_problems(options.hard)
            print(f"optima that ten starts found, of {options.hard} hard problems: {found}")


if __name__ == "__main__":
    main()
