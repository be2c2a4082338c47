import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
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


def test_what_dead_processes_of_this_machine_left_is_removed_at_once(tmp_path):
    child = os.fork()
    if child == 0:
        with _files.written_whole(tmp_path / "a.json") as beside:
            beside.write_text("half")
            (tmp_path / "name").write_text(beside.name)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    left = tmp_path / (tmp_path / "name").read_text()
    (tmp_path / "name").unlink()
    assert left.exists()
    ours = _files._this_machine()
    elsewhere = tmp_path / left.name.replace(ours, "00000000" if ours != "0" * 8 else "1" * 8)
    elsewhere.write_text("half")
    foreign = tmp_path / ".a.tmp-notes.json"
    foreign.write_text("precious")
    os.utime(foreign, (0, 0))
    with _files.written_whole(tmp_path / "a.json") as slow:
        slow.write_text("1")
        write(tmp_path / "a.json", "2")  # the slow writer is alive
    assert (tmp_path / "a.json").read_text() == "1"
    assert {p.name for p in tmp_path.iterdir()} == {"a.json", elsewhere.name, foreign.name}
    _files.clear_leftovers(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"a.json", foreign.name}


def test_leftovers_are_never_removed_through_links(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis").write_text("all")
    folder = tmp_path / "folder"
    folder.mkdir()
    link = folder / ".a.tmp-1-00000000"
    link.symlink_to(precious)
    _files.clear_leftovers(folder)
    assert not link.is_symlink()
    assert (precious / "thesis").read_text() == "all"


def test_links_are_written_through(tmp_path):
    folder, other = tmp_path / "folder", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    target = folder / "target.json"
    for name, to in (("one", "../folder/target.json"), ("two", "one"), ("three", other / "two")):
        link = other / name
        link.symlink_to(to)
        write(link, name)  # the first one makes the file
        assert link.is_symlink()
        assert target.read_text() == name
        assert not target.is_symlink()
    (tmp_path / "way").symlink_to(folder)
    write(tmp_path / "way" / "target.json", "by a folder")
    assert target.read_text() == "by a folder"
    (other / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links"):
        write(other / "loop", "")
    (other / "nowhere").symlink_to(tmp_path / "missing" / "file")
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*missing"):
        write(other / "nowhere", "")
    assert {p.name for p in folder.iterdir()} == {"target.json"}
    assert {p.name for p in other.iterdir()} == {"one", "two", "three", "loop", "nowhere"}


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o755, 0o4750])
def test_a_file_keeps_its_mode(tmp_path, mode):
    path = tmp_path / "a"
    path.write_text("1")
    path.chmod(mode)
    write(path, "2")
    assert path.read_text() == "2"
    assert path.stat().st_mode & 0o7777 == mode


def test_a_new_file_has_the_mode_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write(tmp_path / "a", "1")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_keeps_its_owner(tmp_path):
    path = tmp_path / "a"
    path.write_text("1")
    os.chown(path, 1234, 2345)
    write(path, "2")
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 2345)


def test_other_names_of_a_file_keep_what_it_was(tmp_path):
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_text("1")
    other.hardlink_to(path)
    write(path, "2")
    assert (path.read_text(), other.read_text()) == ("2", "1")


def test_pipes_and_devices_are_written_to(tmp_path):
    pipe = tmp_path / "pipe.txt"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    for path in (pipe, tmp_path / "link"):
        with ThreadPoolExecutor(1) as reader:
            read = reader.submit(pipe.read_text)
            write(path, "through")
            assert read.result(timeout=10) == "through"
        assert pipe.is_fifo()
    before = os.stat("/dev/null")
    write(Path("/dev/null"), "nothing")
    assert os.stat("/dev/null").st_rdev == before.st_rdev
    with pytest.raises(OSError, match="No space left"):
        write(Path("/dev/full"), "something")
    assert {p.name for p in tmp_path.iterdir()} == {"pipe.txt", "link"}


def test_standard_output_goes_on_where_it_stands(tmp_path, run_python):
    code = """
import sys
from pathlib import Path
from pyfast import _files
for name in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"):
    with _files.written_whole(Path(name)) as beside:
        beside.write_text(name + " ")
"""
    assert run_python(code) == "/dev/stdout /dev/fd/1 /proc/self/fd/1"
    script = tmp_path / "script.py"
    script.write_text(code)
    log = tmp_path / "log"
    log.write_text("before ")
    with log.open("a") as stream:
        subprocess.run([sys.executable, script], stdout=stream, check=True)
    assert log.read_text() == "before /dev/stdout /dev/fd/1 /proc/self/fd/1 "


def test_what_cannot_be_written_is_named(tmp_path):
    with pytest.raises(IsADirectoryError, match=f"{tmp_path}'$"):
        write(tmp_path, "")
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*missing'$"):
        write(tmp_path / "missing" / "a", "")
    with pytest.raises(OSError, match="too long"):
        write(tmp_path / ("a" * 256), "")
    write(tmp_path / ("\u00e4" * 127), "1")  # 254 bytes: there is no room beside it
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"no such folder|Not a directory"):
        write(tmp_path / "file" / "a", "")
    with pytest.raises(OSError, match=r"a\.json"), _files.written_whole(tmp_path / "a.json"):
        pass  # nothing was written
    assert {p.name for p in tmp_path.iterdir()} == {"file", "\u00e4" * 127}


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
