"""The scripts that show what of the papers' theory does not hold: each asserts what it prints."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[1] / "benchmarks" / "theory").glob("*.py"))


def test_every_claim_has_its_script():
    assert [path.stem for path in SCRIPTS] == [
        "ampo_theorems",
        "hps_theorem_2",
        "mass_dpo_greedy",
        "mass_dpo_preferred",
        "swap_search_bound",
    ]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_what_it_prints_is_so(path, tmp_path):
    done = subprocess.run(
        [sys.executable, path], capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 3
