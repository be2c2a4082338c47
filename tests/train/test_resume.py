"""A run that is killed, anywhere, and resumed ends as one that was not."""

import json
import os
import random

import pytest
from nursery import INTERRUPT, KILL, Nursery, contents, touches

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def nursery(make_settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    config = folder / "config.json"
    config.write_text(json.dumps(make_settings(folder)))
    nursery = Nursery(folder, config)
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def uninterrupted(nursery):
    return nursery.finish(nursery.folder / "run-whole")


def test_the_files_compared_are_those_that_matter(uninterrupted):
    assert {
        "adapter/adapter_model.safetensors",
        "checkpoint/step-6/adapter.safetensors",
        "checkpoint/step-6/optimiser.safetensors",
        "checkpoint/step-6/state.json",
        "config.json",
        "environment.json",
        "eval_after.jsonl",
        "eval_before.jsonl",
        "groups.jsonl",
        "metrics.jsonl",
        "summary.json",
    } == set(uninterrupted)


def test_killed_at_random_touches_of_files(nursery, uninterrupted):
    """Killed just before some file of the run is opened, renamed, cut or removed, many times."""
    at = touches(1, 130, seed=7)
    for trial in range(3):
        out = nursery.folder / f"run-touched-{trial}"
        assert nursery.kill_at_random(out, at) > 0
        assert nursery.finish(out) == uninterrupted


def test_killed_at_random_times(nursery, uninterrupted):
    generator = random.Random(8)
    out = nursery.folder / "run-timed"
    for _ in range(4):
        status, output = nursery.run(out, seconds=generator.uniform(0.2, 1.2))
        assert status in (-KILL, 0), output
    assert nursery.finish(out) == uninterrupted


def test_ctrl_c_says_how_to_go_on(nursery, uninterrupted):
    out = nursery.folder / "run-interrupted"
    status, output = nursery.run(out, touch=25, signal=INTERRUPT)
    assert status == 130
    assert "interrupted; to go on from the last checkpoint, run again: pyfast train ampo" in output
    assert f"--out {out}" in output
    assert "Traceback" not in output
    status, output = nursery.run(out)
    assert status == 0, output
    assert "resuming" in output
    assert contents(out) == uninterrupted


def test_other_settings_are_refused(nursery):
    out = nursery.folder / "run-changed"
    status, _ = nursery.run(out, touch=80)
    assert status == -KILL
    assert (out / "checkpoint" / "step-2").is_dir()
    status, output = nursery.run(out, "--lr", "0.01")
    assert status == 2
    assert "was started with optimisation.lr = 0.02, not 0.01" in output
    assert "Traceback" not in output


def test_other_prompts_are_refused(nursery):
    out = nursery.folder / "run-prompts"
    prompts = nursery.folder / "prompts.jsonl"
    old = prompts.read_text()
    nursery.run(out, touch=80)
    assert (out / "checkpoint" / "step-2").is_dir()
    prompts.write_text(old + '\n{"prompt": "more"}\n')
    status, output = nursery.run(out)
    prompts.write_text(old)
    assert status == 2
    assert f"data.prompts: the file has changed since {out} was started" in output


def test_a_file_that_lost_lines_is_told(nursery):
    out = nursery.folder / "run-lost"
    nursery.run(out, touch=80)
    assert (out / "checkpoint" / "step-2").is_dir()
    (out / "metrics.jsonl").write_text("")
    status, output = nursery.run(out)
    assert status == 2
    assert "metrics.jsonl: the checkpoint counts" in output
