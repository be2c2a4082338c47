import os
from pathlib import Path

import pytest

from pyfast import _files


def write(path, text):
    with _files.written_whole(path) as beside:
        beside.write_text(text)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    write(path, "1")

    def write_half():
        with _files.written_whole(path) as beside:
            beside.write_text("half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder"
    _files.write_folder(path, lambda folder: (folder / "a").write_text("1"))

    def fail(folder: Path) -> None:
        (folder / "a").write_text("2")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        _files.write_folder(path, fail)
    assert (path / "a").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_two_writers_of_one_file(tmp_path):
    path = tmp_path / "a.json"
    with _files.written_whole(path) as slow:
        slow.write_text("slow")
        with _files.written_whole(path) as fast:
            fast.write_text("fast")
        assert path.read_text() == "fast"
    assert path.read_text() == "slow"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_two_writers_of_one_folder(tmp_path):
    path = tmp_path / "folder"

    def fill(folder: Path, who: str) -> None:
        (folder / "a").write_text(who)
        if who == "slow":
            _files.write_folder(path, lambda other: fill(other, "fast"))
        (folder / "b").write_text(who)

    _files.write_folder(path, lambda folder: fill(folder, "slow"))
    assert [(path / name).read_text() for name in "ab"] == ["fast", "fast"]
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_folder_never_takes_the_place_of_a_file(tmp_path):
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(OSError, match="folder"):
        _files.write_folder(tmp_path / "folder", lambda folder: (folder / "a").write_text("1"))
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
    write(tmp_path / "a.json", "1")
    assert not old.exists()
    assert young.exists()  # perhaps its writer is at work
    assert other.exists()
    _files.write_folder(tmp_path / "c", lambda beside: (beside / "model").write_text("1"))
    assert not folder.exists()
