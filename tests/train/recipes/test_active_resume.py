"""ActiveDPO killed at points of a round, and resumed: the same end, and no question twice."""

import json
import os
import shutil

import pytest
from nursery import KILL, Nursery, contents, touches

from pyfast.train.recipes.active_dpo import labels

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# Writes down what it answers, outside of the run's folder; dies at the questions it is told to.
ORACLE = """
import os, signal
from pathlib import Path
HERE = Path(__file__).parent
def first(prompt, a, b):
    log, deadly = HERE / "asked.txt", HERE / "deadly.txt"
    count = len(log.read_text().splitlines()) if log.exists() else 0
    if deadly.exists() and count == int(deadly.read_text()):
        deadly.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    with open(log, "a") as file:
        file.write(repr((prompt, *sorted((a, b)))) + "\\n")
    return "skip" if len(a) + len(b) == 20 else "a" if a < b else "b"
"""


class Oracle:
    """The log of a module's oracle."""

    def __init__(self, folder):
        self.log, self.deadly = folder / "asked.txt", folder / "deadly.txt"

    def forget(self):
        self.log.unlink(missing_ok=True)
        self.deadly.unlink(missing_ok=True)

    def asked(self):
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("oracle")
    (folder / "counting_oracle.py").write_text(ORACLE)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), before]))
    yield Oracle(folder)
    os.environ.pop("PYTHONPATH")
    if before is not None:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="module")
def nursery(make_active_settings, oracle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("active-resume")
    settings = make_active_settings(folder)
    settings["oracle"] = {"oracle": "counting_oracle:first"}
    settings["active"]["rounds"] = 2
    settings["run"]["checkpoint_every"] = 3
    (folder / "config.json").write_text(json.dumps(settings))
    nursery = Nursery(folder, folder / "config.json", "active-dpo")
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def uninterrupted(nursery, oracle):
    oracle.forget()
    status, output = nursery.run(nursery.folder / "run-whole")
    assert status == 0, output
    found = contents(nursery.folder / "run-whole")
    asked = oracle.asked()
    told = labels.read(nursery.folder / "run-whole" / "labels.jsonl")
    assert len(set(asked)) == len(asked) == len(told)
    return found, asked


def finish(nursery, oracle, out, uninterrupted):
    status, output = nursery.run(out)
    assert status == 0, output
    expected, asked = uninterrupted
    assert contents(out) == expected
    assert oracle.asked() == asked  # the same questions in the same order, each once


def test_what_is_compared_is_what_matters(uninterrupted):
    names = set(uninterrupted[0])
    assert {"labels.jsonl", "metrics.jsonl", "groups.jsonl", "summary.json"} <= names
    assert {"kept/round-1/labelled.json", "kept/round-2/labelled.json"} <= names
    assert "adapter/adapter_model.safetensors" in names
    assert "evaluation/metrics.jsonl" in names


PLACES = [
    ("round-1/.answers-0.tmp", 2),  # about to be renamed
    ("round-1/.sketches.partial", 9),
    ("round-1/.V.tmp", 1),
    ("round-1/.labelled.tmp", 2),
    ("/run-place/labels.jsonl", 3),
    ("checkpoint/.step-3.tmp", 3),
    ("evaluation/.step-4.tmp", 1),
    ("round-2/.answers-0.tmp", 1),
    ("round-2/.sketches.partial", 12),
    ("round-2/.sketches.partial", 30),
    ("round-2/.V.tmp", 2),
    ("round-2/.labelled.tmp", 1),
    ("evaluation/.metrics.tmp", 1),
]


@pytest.mark.parametrize(("path", "touch"), PLACES)
def test_killed_just_before_a_file_is_touched(nursery, oracle, uninterrupted, path, touch):
    oracle.forget()
    out = nursery.folder / "run-place"
    shutil.rmtree(out, ignore_errors=True)
    status, output = nursery.run(out, touch=touch, path=path)
    assert status == -KILL, output
    finish(nursery, oracle, out, uninterrupted)


def test_killed_while_a_question_is_answered(nursery, oracle, uninterrupted):
    """Half a round labelled: what was answered is not asked again."""
    for count in (0, 2, len(uninterrupted[1]) - 1):
        oracle.forget()
        out = nursery.folder / f"run-asked-{count}"
        oracle.deadly.write_text(str(count))
        status, output = nursery.run(out)
        assert status == -KILL, output
        assert len(labels.read(out / "labels.jsonl")) == count
        finish(nursery, oracle, out, uninterrupted)


def test_killed_at_random_touches_again_and_again(nursery, oracle, uninterrupted):
    at = touches(1, 120, seed=11)
    for trial in range(2):
        oracle.forget()
        out = nursery.folder / f"run-touched-{trial}"
        assert nursery.kill_at_random(out, at, most=5) > 0
        finish(nursery, oracle, out, uninterrupted)


def test_a_damaged_checkpoint_takes_the_one_before_and_asks_nobody(nursery, oracle, uninterrupted):
    """Back over the start of a round: it is made again from what was kept."""
    oracle.forget()
    out = nursery.folder / "run-damaged"
    status, output = nursery.run(out, touch=1, path="evaluation/.metrics.tmp")
    assert status == -KILL, output
    newest, before = sorted(out.glob("checkpoint/step-*"), reverse=True)
    assert (newest.name, before.name) == ("step-8", "step-6")
    for folder in (newest, out / "adapter"):
        shutil.rmtree(folder)
    status, output = nursery.run(out, touch=1, path="checkpoint/.step-8.tmp")
    assert status == -KILL, output
    finish(nursery, oracle, out, uninterrupted)
