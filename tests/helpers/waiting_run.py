"""A run folder that waits for labels, made without a model."""

import json

import pytest

from pyfast.train.errors import WaitingError
from pyfast.train.recipes.active_dpo import labels, oracle
from pyfast.train.recipes.active_dpo.oracle import Question

QUESTIONS = [Question(f"prompt {i}", f"response {i} x", f"response {i} y") for i in range(6)]


def make(folder, questions=QUESTIONS, seed=5, batch="round-1"):
    """Make a run that has asked these questions, and return its folder."""
    run = folder / "run"
    run.mkdir(parents=True, exist_ok=True)
    config = {"recipe": "active-dpo", "oracle": {"oracle": "file"}, "run": {"seed": seed}}
    (run / "config.json").write_text(json.dumps(config))
    (run / "environment.json").write_text("{}")
    with pytest.raises(WaitingError):
        take(run, questions, batch)
    return run


def take(run, questions=QUESTIONS, batch="round-1"):
    """Do what a run does when it is started again: it takes its answers, or waits."""
    return labels.ask(run / "labels.jsonl", oracle.Files(run / "questions"), questions, batch)


def annotations(run):
    """Return the lines of the file of what people said."""
    path = run / "annotations.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def whole_annotations(run):
    """Return them without what a kill has left of a last line."""
    path = run / "annotations.jsonl"
    data = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]
