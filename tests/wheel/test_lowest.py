"""lowest.txt says what pyproject.toml says."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
LINES = (Path(__file__).parent / "lowest.txt").read_text(encoding="utf-8").splitlines()
PINS = dict(line.split("==") for line in LINES if "==" in line)


def numbers(version):
    """Return 1.26.0 as (1, 26), as 1.26 is."""
    return tuple(map(int, re.sub(r"(\.0)+$", "", version).split(".")))


def bounds(text):
    """Return the lower bounds of a list of requirements, and its names without one."""
    names = re.findall(r'"([A-Za-z][\w.-]*)([^"]*)"', text)
    found = {name: re.match(r">=([0-9.]+)", rest) for name, rest in names}
    return {name: match and match[1] for name, match in found.items()}


@pytest.mark.parametrize("name", PINS)
def test_lowest_versions_are_those_of_the_project(name):
    least = re.findall(rf'"{re.escape(name)}>=([0-9.]+)', PROJECT)
    assert least, name
    assert numbers(PINS[name]) == min(map(numbers, least))


@pytest.mark.parametrize("section", ["requires", "dependencies", "exact", "sklearn"])
def test_what_is_built_and_run_with_has_a_lowest_version(section):
    (listed,) = re.findall(rf"^{section} = \[(.*?)\]$", PROJECT, flags=re.MULTILINE)
    assert {name: numbers(version) for name, version in bounds(listed).items()} == {
        name: numbers(PINS[name]) for name in bounds(listed)
    }
