"""MASS-DPO: choice of negatives, losses, steps, evaluation, and a run from end to end."""

import json

import numpy as np
import pytest
import torch

from pyfast import cli
from pyfast.losses.metrics import heldout_metrics
from pyfast.select import reference as slow
from pyfast.train import config as configs
from pyfast.train import ranking
from pyfast.train.context import Context
from pyfast.train.errors import UserError
from pyfast.train.recipes import mass_dpo
from pyfast.train.recipes.mass_dpo import METHODS, MassDpo, MassDpoSettings, MassSelection

TOPICS = ["dog", "day", "rain", "sun", "sad dog", "happy dog", "love"]
CANDIDATES = ["good day", "bad rain", "the sun is nice", "awful", "a happy dog", "not poor"]


def write_groups(path, splits=("train",) * 5 + ("validation", "test")):
    """Groups of four to six candidates; the right one stands anywhere."""
    rows = []
    for i, (topic, split) in enumerate(zip(TOPICS, splits, strict=True)):
        responses = CANDIDATES[: 4 + i % 3]
        row = {"prompt": f"tell me about {topic}", "responses": responses, "split": split}
        rows.append(row | {"positive": i % len(responses), "id": f"g{i}"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def settings(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return {
        "data": {"groups": str(write_groups(tmp_path / "groups.jsonl"))},
        "policy": {"model": str(tiny_model), "lora_rank": 2, "lora_alpha": 4, "device": "cpu"},
        "selection": {"k": 2},
        "optimisation": {"epochs": 2, "groups_per_step": 2, "lr": 0.02},
        "evaluation": {"bootstrap": 200, "every": 2},
        "run": {"seed": 3, "checkpoint_every": 2, "threads": 1},
    }


def run(tmp_path, settings, name="run", **changes):
    """Run the command line; return the folder."""
    config = tmp_path / f"{name}.json"
    merged = {**settings}
    for section, values in changes.items():
        merged[section] = {**merged.get(section, {}), **values}
    config.write_text(json.dumps(merged))
    out = tmp_path / f"run-{name}"
    assert cli.main(["train", "mass-dpo", "--config", str(config), "--out", str(out)]) == 0
    return out


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_from_end_to_end(tmp_path, settings, capsys):
    out = run(tmp_path, settings)
    shown = capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    assert summary["steps"] == 5  # ceil(2 epochs * 5 groups / 2): nothing is dropped
    assert (
        summary["metrics"]["eval_rewards/MRR"]["low"]
        <= summary["metrics"]["eval_rewards/MRR"]["mean"]
    )
    assert "MRR, by beta h" in shown
    assert "MRR, by log pi" in shown
    curve = lines(out / "evaluation" / "metrics.jsonl")
    assert [row["step"] for row in curve] == [0, 2, 4, 5]
    assert {path.name for path in out.glob("*.png")} == {
        "heldout_curves.png",
        "training_curves.png",
    }
    seen = [row["meta"]["id"] for row in lines(out / "groups.jsonl")]
    assert sorted(seen[:5]) == sorted(seen[5:]) == ["g0", "g1", "g2", "g3", "g4"]
    for row in lines(out / "groups.jsonl"):
        assert row["positive"] not in row["negatives"]
        assert len(set(row["negatives"])) == 2
        assert sum(value is not None for value in row["policy_logps"]) == 3
        assert None not in row["ref_logps"]
    for row in lines(out / "metrics.jsonl"):
        assert row["selection/logdet"] >= row["selection/logdet_random"] - 1e-9
        assert 0 <= row["selection/overlap_random"] <= 1
