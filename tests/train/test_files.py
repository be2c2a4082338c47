import os
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


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"x": 1})

    def write_half():
        with files.written_whole(path) as beside:
            beside.write_text("half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_half()
    assert files.read_json(path) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder"
    files.write_folder(path, lambda folder: (folder / "a").write_text("1"))

    def fail(folder: Path) -> None:
        (folder / "a").write_text("2")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        files.write_folder(path, fail)
    assert (path / "a").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_two_writers_of_one_file(tmp_path):
    path = tmp_path / "a.json"
    with files.written_whole(path) as slow:
        slow.write_text("slow")
        with files.written_whole(path) as fast:
            fast.write_text("fast")
        assert path.read_text() == "fast"
    assert path.read_text() == "slow"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_two_writers_of_one_folder(tmp_path):
    path = tmp_path / "folder"

    def fill(folder: Path, who: str) -> None:
        (folder / "a").write_text(who)
        if who == "slow":
            files.write_folder(path, lambda other: fill(other, "fast"))
        (folder / "b").write_text(who)

    files.write_folder(path, lambda folder: fill(folder, "slow"))
    assert [(path / name).read_text() for name in "ab"] == ["fast", "fast"]
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_folder_never_takes_the_place_of_a_file(tmp_path):
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(OSError, match="folder"):
        files.write_folder(tmp_path / "folder", lambda folder: (folder / "a").write_text("1"))
    assert (tmp_path / "folder").read_text() == "a file"


def test_what_killed_writers_left_is_cleared_away_in_time(tmp_path):
    old, young = tmp_path / ".a.tmp-1-00000000.json", tmp_path / ".a.tmp-2-00000000.json"
    other = tmp_path / ".b.tmp-1-00000000.json"
    folder = tmp_path / ".c.tmp-1-00000000"
    folder.mkdir()
    for path in (old, young, other, folder / "model"):
        path.write_text("half")
    for path in (old, other, folder):
        os.utime(path, (0, 0))
    files.write_json(tmp_path / "a.json", 1)
    assert not old.exists()
    assert young.exists()  # perhaps its writer is at work
    assert other.exists()
    files.write_folder(tmp_path / "c", lambda beside: (beside / "model").write_text("1"))
    assert not folder.exists()


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
