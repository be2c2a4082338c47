"""What tests measure memory with: as the benchmarks do (`benchmarks/resident.py`)."""

import os
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from resident import peak, reset

__all__ = ["MEASURED", "peak", "reset"]

MEASURED = pytest.mark.skipif(
    not sys.platform.startswith("linux") or "asan" in os.environ.get("LD_PRELOAD", ""),
    reason="reads the peak as Linux tells it, and a sanitizer keeps what is freed",
)
