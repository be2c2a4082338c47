"""Labelling in a terminal: keys, and that nothing a model wrote steers it."""

import contextlib
import os
import re
import select
import shlex
import subprocess
import sys

import pytest
import waiting_run
from waiting_run import QUESTIONS, Question

from pyfast import cli
from pyfast.label import terminal
from pyfast.label.desk import Desk, Run


@pytest.fixture
def run(tmp_path):
    return waiting_run.make(tmp_path)


def label(run, keys, name="ann", width=80):
    said = []
    desk = Desk(Run(run), name, via="terminal")
    view = terminal.run(desk, iter(keys), said.append, width)
    return view, "".join(said)


def test_keys(run):
    view, said = label(run, ["1", "2", "x", "u", "s\n", " S ", "q", "1"])
    assert (view.done, view.total) == (3, 6)
    answers = [line["answer"] for line in waiting_run.annotations(run)]
    assert (answers[2], answers[3:]) == (None, ["skip", "skip"])
    assert "1 of 6 (round-1)" in said
    assert "4 of 6" in said
    assert said.count("1 or 2: that response is better") == 7  # with each question, and for x
    view, said = label(run, ["1", "1", "1"])
    assert (view.done, view.waiting) == (6, 0)
    assert "All are answered" in said
    view, said = label(run, ["u", "2"])
    assert view.done == 6
    assert label(run, ["q"])[0].done == 6


def test_nothing_to_undo(run):
    assert "nothing to undo" in label(run, ["u"])[1]


def test_what_models_write_does_not_steer_the_terminal(tmp_path):
    nasty = "red \x1b[31m\x1b]0;title\x07 \x9b2J back\b\b\r over \u202e evil \ud7ff\x00"
    chat = [{"role": "system", "content": "be\x1b[2J"}, {"role": "user", "content": ["x\x1b"]}]
    run = waiting_run.make(tmp_path, [Question(chat, nasty, "שלום 👩\u200d💻\n\tcode")])
    _, said = label(run, [])
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", said)
    assert r"\x1b[31m" in said
    assert r"\u202e" in said
    assert "שלום 👩\u200d💻" in said


def test_an_answer_of_another_window_is_told(run):
    other = Desk(Run(run), "ann", via="page")

    def keys():
        shown = other.look().shown
        other.answer(shown.id, "2")
        yield "1"
        yield "q"

    view, said = label(run, keys())
    assert "that pair has your answer already: response 2. It stands." in said
    assert view.done == 1
    assert [line["via"] for line in waiting_run.annotations(run)] == ["page"]


def pyfast(*arguments, keys=""):
    command = [sys.executable, "-m", "pyfast.cli", *map(str, arguments)]
    return subprocess.run(command, input=keys, capture_output=True, text=True)


def test_the_command_reads_keys_from_standard_input(run):
    done = pyfast("label", run, keys="1\n2\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"waits for 4 more labels; to go on: pyfast label {run}\n")
    done = pyfast("label", run, "--annotator", "bob", keys="1\ns\n1\n2\n1\n2\n")
    assert "has all the labels that it waits for" in done.stdout
    assert "first - bob" in done.stdout  # how far they agree
    assert f"pyfast train active-dpo --config {run}/config.json --out {run}" in done.stdout
    assert len(waiting_run.take(run)) == len(QUESTIONS)
    assert "waits for no labels" in pyfast("label", run, keys="").stdout


def test_ctrl_c_stops_as_q_does(run, capsys, monkeypatch):
    def pressed():
        yield "1"
        raise KeyboardInterrupt

    monkeypatch.setattr(terminal, "keys_of", lambda stream: contextlib.nullcontext(pressed()))
    assert cli.main(["label", str(run)]) == 0
    assert "the run waits for 5 more labels; to go on: pyfast label" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x.json"], "--out and --export go together"),
        (["--export", "argilla"], "--out and --export go together"),
        (["--import", "argilla"], "--from and --import go together"),
        (["--annotator", "a/b"], "annotator: expected a name"),
        (["--annotator", ""], "annotator: expected a name"),
        (["--export", "argilla", "--out", "-"], "--out: expected the name of a file"),
        (["--port", "8000"], "--port goes with --web"),
        (["--json"], "--json goes with --agreement"),
        (["--agreement", "--annotator", "bob"], "--annotator has no effect on --agreement"),
        (["--agreement", "--web"], "--web has no effect on --agreement"),
        (["--import", "argilla", "--from", "x", "--disagreements"], "no effect on --import"),
    ],
)
def test_arguments_that_do_not_fit(run, capsys, arguments, message):
    assert cli.main(["label", str(run), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_in_a_real_terminal_keys_typed_ahead_answer_nothing(run):
    """A key that is pressed twice labels one pair: the second one is dropped."""
    import pty

    command = shlex.join([sys.executable, "-m", "pyfast.cli", "label", str(run)])
    main, child = pty.openpty()
    process = subprocess.Popen(command, shell=True, stdin=child, stdout=child, stderr=child)
    os.close(child)
    seen = b""

    def until(mark, keys=b""):
        """Read up to a mark; keys that come before the terminal is read are dropped: again."""
        nonlocal seen
        while mark not in seen:
            if keys and not select.select([main], [], [], 0.5)[0]:
                os.write(main, keys)
            seen += os.read(main, 4096)

    until(b"1 of 6")
    until(b"q: stop")
    until(b"2 of 6", b"11")
    until(b"waits for 5 more labels", b"q")
    assert process.wait() == 0
    os.close(main)
    assert len(waiting_run.annotations(run)) == 1


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_what_was_typed_before_a_question_was_shown_is_dropped():
    import pty
    import threading

    main, child = pty.openpty()
    asked = threading.Event()

    def type_later():
        while not asked.wait(0.05):
            os.write(main, b"2")

    with os.fdopen(child, "r") as stream, terminal.keys_of(stream) as keys:
        os.write(main, b"1")  # before the question
        thread = threading.Thread(target=type_later)
        thread.start()
        key = next(keys)
        asked.set()
        thread.join()
    os.close(main)
    assert key == "2"
