"""lowest.txt says what pyproject.toml says."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINES = (Path(__file__).parent / "lowest.txt").read_text().splitlines()
PINS = dict(line.split("==") for line in LINES if "==" in line)


@pytest.mark.parametrize("name", PINS)
def test_lowest_versions_are_those_of_the_project(name):
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    least = re.findall(rf'"{re.escape(name)}>=([0-9.]+)', text)
    assert least, name
    lowest = min(least, key=lambda version: tuple(map(int, version.split("."))))
    assert PINS[name].startswith(lowest)
