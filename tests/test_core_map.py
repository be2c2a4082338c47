"""The map of the native core is true: its names resolve, and folders know only whom they may."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = ROOT / "csrc" / "core"
MAP = (ROOT / "csrc" / "README.md").read_text()

# Folder: the folders of core that it may include, beside itself.
EDGES = {
    "run": set(),
    "distance": {"run"},
    "kmedoids": {"run", "distance"},
    "kmeans": {"run", "distance"},
    "ampo": {"run", "distance", "kmedoids", "kmeans"},
    "json": {"run"},
    "logdet": {"run"},
    "sketch": {"run"},
    "naive": {"run", "kmedoids", "logdet"},
}


def included(path: Path) -> list[str]:
    return re.findall(r'#include "([^"]+)"', path.read_text())


@pytest.mark.parametrize("folder", sorted(path.name for path in CORE.iterdir()))
def test_folders_of_the_core_include_only_whom_they_may(folder: str) -> None:
    for path in (CORE / folder).iterdir():
        for name in included(path):
            where = name.split("/")
            if where[0] == "simd":
                assert name == "simd/simd.hpp", (path, name)
                continue
            assert where[0] == "core", (path, name)
            assert where[1] in EDGES[folder] | {folder}, (path, name)


def test_simd_knows_views_alone() -> None:
    for path in (ROOT / "csrc" / "simd").iterdir():
        for name in included(path):
            assert name.startswith("simd/") or name == "core/run/views.hpp", (path, name)


def test_nobody_but_bind_knows_python_and_bind_is_known_by_nobody() -> None:
    for path in (ROOT / "csrc").rglob("*.?pp"):
        if path.parent.name != "bind":
            text = path.read_text()
            assert "pybind11" not in text, path
            assert "Python.h" not in text, path
            assert not any(name.startswith("bind/") for name in included(path)), path


def test_bind_asks_for_whole_solutions() -> None:
    """It names none of the parts that a solution is put together from, so it chooses none."""
    parts = ("best_swap", "build", "fasterpam", "small", "sampled", "polish", "state", "kmedoids")
    for path in (ROOT / "csrc" / "bind").iterdir():
        for name in included(path):
            assert name not in [f"core/kmedoids/{part}.hpp" for part in parts], (path, name)
        assert "Way::" not in path.read_text(), path


def test_every_name_on_the_map_resolves() -> None:
    names = re.findall(r"`([\w/.]+)::(\w+)`", MAP)
    assert len(names) >= 30
    for file, name in names:
        base = ROOT / "pyfast" if file.endswith(".py") else CORE
        text = (base / file).read_text()
        defined = rf"def {name}\(" if file.endswith(".py") else rf"\b{name}\b"
        assert re.search(defined, text), (file, name)
    for file in re.findall(r"`(\w+/\w+\.[hc]pp)`", MAP):
        assert (CORE / file).exists() or (ROOT / "csrc" / file).exists(), file


def test_every_kernel_on_the_map_is_in_the_table_and_none_is_missing() -> None:
    rows = MAP.split("## From the papers")[1].split("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", rows))
    table = (ROOT / "csrc" / "simd" / "simd.hpp").read_text().split("struct Kernels {")[1]
    table = table.split("\n};")[0]
    kernels = set(re.findall(r"\(\*(\w+)\)\(", table))
    for line in re.findall(r"(?:Block|PairSquares)<[^;]*> ([\w, ]+);", table):
        kernels |= set(line.split(", "))
    assert named <= kernels, named - kernels
    types = re.compile(r"_(f32|f64|wide|mixed)$")
    helpers = {"narrow", "mirrored", "valid"}  # copies and checks, of no paper
    missing = {types.sub("", k) for k in kernels} - {types.sub("", k) for k in named} - helpers
    assert not missing, missing


def test_every_folder_is_on_the_map() -> None:
    folders = {path.name for path in CORE.iterdir()}
    assert folders == set(EDGES)
    assert folders == set(re.findall(r"^core/(\w+) ", MAP, re.MULTILINE))
