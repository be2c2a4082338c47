"""Labelling that is killed just before each touch of a file: nothing is lost, nothing doubled."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import waiting_run

from pyfast._files import clear_leftovers
from pyfast.label.desk import Desk, Run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# Answers, undoes, answers; says after each what was promised. Every touch of a file of the run,
# and every flush, is counted, and one of them is the last.
WORK = """
import os, sys
from pathlib import Path
from pyfast.label.desk import Desk, Run

def work(run, deadly, told):
    seen = 0
    def touch(event, arguments):
        nonlocal seen
        if event in ("open", "os.rename", "os.remove", "os.truncate", "os.mkdir", "flush"):
            if event == "flush" or str(run) in str(arguments[0]):
                seen += 1
                if seen == deadly:
                    os.kill(os.getpid(), 9)
    flush = os.fsync
    def flushed(handle):
        touch("flush", ())
        flush(handle)
        touch("flush", ())
    os.fsync = flushed
    sys.addaudithook(touch)
    desk = Desk(Run(run), "ann", via="terminal")
    view = desk.look()
    for key in "1u2s":
        if key == "u":
            view = desk.undo(view.last)
        else:
            view = desk.answer(view.shown.id, key)
        os.write(told, key.encode())
    os.write(told, str(seen).encode())

for line in sys.stdin:
    run, deadly = line.split()
    told = os.open(run + "-told", os.O_WRONLY | os.O_CREAT)
    child = os.fork()
    if child == 0:
        work(Path(run), int(deadly), told)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def work(orders):
    """Return exit status and what was promised of each run, killed at its touch (0: not)."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WORK)],
        input="".join(f"{run} {deadly}\n" for run, deadly in orders),
        capture_output=True,
        text=True,
        check=True,
    )
    told = [run.with_name("run-told").read_text() for run, _ in orders]
    return list(zip(map(int, done.stdout.split()), told, strict=True))


@pytest.fixture(scope="module")
def touches(tmp_path_factory):
    run = waiting_run.make(tmp_path_factory.mktemp("whole"))
    ((status, told),) = work([(run, 0)])
    assert status == 0
    assert told.startswith("1u2s")
    return int(told[4:])


def test_every_kill_keeps_what_was_promised(tmp_path, touches):
    """What the annotator was told is on the disk: the next pair is shown only after that."""
    assert touches > 20
    orders = [
        (waiting_run.make(tmp_path / f"{deadly}"), deadly) for deadly in range(1, touches + 1)
    ]
    for (run, deadly), (status, told) in zip(orders, work(orders), strict=True):
        assert status == -9
        clear_leftovers(run)
        desk = Desk(Run(run), "ann", via="terminal")
        view = desk.look()
        lines = waiting_run.whole_annotations(run)
        answers = [line["answer"] for line in lines]
        # at most one more than was told: it was written, and the process died before telling
        assert len(told) <= len(lines) <= len(told) + 1, (deadly, told, answers)
        assert [answer is None for answer in answers] == [False, True, False, False][: len(lines)]
        stands = {line["id"]: line["answer"] for line in lines}
        assert view.done == sum(answer is not None for answer in stands.values())
        while view.shown is not None:  # going on asks for the others, each once
            assert stands.get(view.shown.id) is None
            view = desk.answer(view.shown.id, "1")
        assert len(waiting_run.take(run)) == 6


def test_half_a_line_is_dropped_and_never_part_of_the_next(tmp_path):
    run = waiting_run.make(tmp_path)
    desk = Desk(Run(run), "ann", via="terminal")
    desk.answer(desk.look().shown.id, "1")
    path = run / "annotations.jsonl"
    whole = path.read_bytes()
    for left in (whole[: len(whole) // 2], b"\0" * 4000, b'{"id": "' + b"\0" * 9):
        path.write_bytes(whole + left)
        assert desk.look().done == 1
        view = desk.answer(desk.look().shown.id, "2")
        assert path.read_bytes().startswith(whole)
        assert [json.loads(line)["annotator"] for line in path.open()] == ["ann", "ann"]
        desk.undo(view.last)


def test_each_label_is_flushed_before_the_next_is_shown(tmp_path, monkeypatch):
    """When an answer returns, the whole line is flushed, and at first the file's name too."""
    run = waiting_run.make(tmp_path)
    path, flushed, flush = run / "annotations.jsonl", [], os.fsync

    def noted(handle):
        flush(handle)
        found = os.fstat(handle)
        flushed.append((found.st_ino, found.st_size))

    monkeypatch.setattr(os, "fsync", noted)
    desk = Desk(Run(run), "ann", via="terminal")
    view = desk.look()
    assert flushed == []
    for key in "12us":
        flushed.clear()
        view = desk.undo(view.last) if key == "u" else desk.answer(view.shown.id, key)
        now = path.stat()
        assert flushed[-1] == (now.st_ino, now.st_size)
        if key == "1":
            assert run.stat().st_ino in [inode for inode, _ in flushed]
