"""A run of mass-dpo that is killed, anywhere, and resumed ends as one that was not."""

import json
import os

import pytest
from nursery import KILL, Nursery, contents, touches

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

CANDIDATES = ["good day", "bad rain", "the sun is nice", "awful", "a happy dog"]


@pytest.fixture(scope="module", params=["step", "epoch"])
def nursery(request, tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp(f"resume-mass-{request.param}")
    groups = folder / "groups.jsonl"
    topics = ["dog", "day", "rain", "sun", "sad dog", "love", "the sad rain"]
    rows = [
        {"prompt": f"about {topic}", "responses": CANDIDATES, "positive": i % 5, "split": split}
        for i, (topic, split) in enumerate(
            zip(topics, ("train",) * 5 + ("validation", "test"), strict=True)
        )
    ]
    groups.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = folder / "config.json"
    settings = {
        "data": {"groups": str(groups)},
        "policy": {"model": str(tiny_model), "lora_rank": 2, "lora_alpha": 4, "device": "cpu"},
        "selection": {"k": 2, "reselect": request.param, "gamma": 1e-3},
        "loss": {"beta": 1.0},
        "optimisation": {"epochs": 2, "groups_per_step": 2, "lr": 0.02},
        "evaluation": {"bootstrap": 200, "every": 2},
        "run": {"seed": 3, "checkpoint_every": 2, "threads": 1},
    }
    config.write_text(json.dumps(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        nursery = Nursery(folder, config, "mass-dpo")
        nursery.finish(folder / "run-whole")
        yield nursery
        nursery.close()


def test_killed_at_random_touches_of_files(nursery):
    """Also while the reference is scored, negatives are kept, or candidates are ranked."""
    whole = contents(nursery.folder / "run-whole")
    assert "kept/cut.json" in whole
    assert {"evaluation/validation-2.jsonl", "evaluation/metrics.jsonl"} <= set(whole)
    at = touches(1, 110, seed=11)
    for trial in range(2):
        out = nursery.folder / f"run-touched-{trial}"
        assert nursery.kill_at_random(out, at) > 0
        assert nursery.finish(out) == whole


def test_without_the_cache_it_ends_the_same(nursery):
    """The reference's log-probs are made again, to the same bits."""
    out = nursery.folder / "run-uncached"
    status, output = nursery.run(out, touch=70)
    assert status == -KILL, output
    for chunk in (nursery.folder / "cache").rglob("*.safetensors"):
        chunk.unlink()
    assert nursery.finish(out) == contents(nursery.folder / "run-whole")


def test_other_groups_are_refused(nursery):
    out = nursery.folder / "run-other"
    path = nursery.folder / "groups.jsonl"
    old = path.read_text()
    status, _ = nursery.run(out, touch=1, path="checkpoint/.step-4.tmp")
    assert status == -KILL
    assert (out / "checkpoint" / "step-2").is_dir()  # something is learnt that would be lost
    path.write_text(old.replace("awful", "poor"))
    status, output = nursery.run(out)
    path.write_text(old)
    assert status == 2
    assert f"data.groups: the file has changed since {out} was started" in output
