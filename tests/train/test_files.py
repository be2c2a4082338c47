from pathlib import Path

import pytest

from pyfast.train import files
from pyfast.train.errors import UserError
from pyfast.train.seeds import derive


def test_package_paths_are_found_without_importing(tmp_path, monkeypatch):
    package = tmp_path / "heavy_pkg"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "data.bin").write_text("x")
    monkeypatch.syspath_prepend(tmp_path)
    assert files.resolve("pkg://heavy_pkg/data.bin") == package / "data.bin"
    with pytest.raises(UserError, match=r"package 'heavy_pkg' holds no 'other\.bin'"):
        files.resolve("pkg://heavy_pkg/other.bin")
    with pytest.raises(UserError, match="pip install --no-deps no-such-pkg"):
        files.resolve("pkg://no_such_pkg/x")
    with pytest.raises(UserError, match="expected pkg://PACKAGE/PATH"):
        files.resolve("pkg:///x")


def test_plain_paths(tmp_path):
    assert files.resolve(str(tmp_path)) == tmp_path
    assert files.resolve("some-org/some-model") is None


def test_json_is_strict(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(tmp_path / "a.json", float("nan"))
    assert not list(tmp_path.iterdir())


def test_cache_follows_xdg(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert files.cache_dir() == Path("/somewhere/pyfast")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert files.cache_dir() == Path.home() / ".cache" / "pyfast"


def test_seeds_depend_on_everything_and_on_nothing_else():
    seeds = {derive(s, p, i) for s in range(5) for p in ("a", "b") for i in range(5)}
    assert len(seeds) == 50
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive(0, "sample", 3, 1) == 775450601695390944  # the same on every machine
