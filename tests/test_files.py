import os
import signal
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


def test_a_lock_is_held_by_one_or_shared_by_many(tmp_path):
    path = tmp_path / ".a.lock"
    with _files.locked(path):
        for shared in (False, True):
            with pytest.raises(BlockingIOError, match="in use"), _files.locked(path, shared=shared):
                pass
    assert not path.exists()
    shared = _files.locked(path, shared=True)
    with shared, pytest.raises(BlockingIOError, match="in use"), _files.locked(path):
        pass
    with _files.locked(path, shared=True), _files.locked(path, shared=True):
        pass
    assert path.exists()
    with _files.locked(path):
        pass


def test_a_lock_goes_with_its_process_and_is_never_of_a_removed_file(tmp_path):
    path = tmp_path / ".a.lock"
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        with _files.locked(path):
            os.write(tell, b"1")
            signal.pause()
    os.read(ready, 1)
    with pytest.raises(BlockingIOError), _files.locked(path):
        pass
    before = os.open(path, os.O_RDWR)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    path.unlink()
    with _files.locked(path):
        assert not os.path.samestat(os.fstat(before), path.stat())
        with pytest.raises(BlockingIOError), _files.locked(path):
            pass
    os.close(before)


def test_a_lock_empties_nothing_and_follows_no_link(tmp_path):
    precious, link = tmp_path / "precious", tmp_path / ".lock"
    precious.write_text("all")
    link.symlink_to(precious)
    with pytest.raises(OSError, match="symbolic links"), _files.locked(link):
        pass
    assert precious.read_text() == "all"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="expected a regular file"), _files.locked(tmp_path / "pipe"):
        pass
    with _files.locked(precious, shared=True):
        assert precious.read_text() == "all"


def test_a_lock_taken_while_its_file_is_removed_is_taken_again(tmp_path, monkeypatch):
    path, plain = tmp_path / ".a.lock", _files._open_lock

    def opened(path):
        monkeypatch.setattr(_files, "_open_lock", plain)
        handle = plain(path)
        path.unlink()  # by the holder before, between opening and locking
        return handle

    monkeypatch.setattr(_files, "_open_lock", opened)
    with _files.locked(path), pytest.raises(BlockingIOError), _files.locked(path):
        pass


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.warns(UserWarning, match="cannot be locked here"), _files.locked(tmp_path / "a"):
        pass
