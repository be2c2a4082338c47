"""What several rooms' tests share."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., str]:
    """Run a snippet in a fresh interpreter, fail on a bad exit or a hang, return its output."""

    def run(code: str, timeout: float = 120) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=tmp_path,  # not the tree: -c would import its unbuilt sources
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run
