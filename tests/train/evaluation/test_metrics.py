import math

import numpy as np
import pytest

from pyfast.train import config as configs
from pyfast.train.config import OptimisationConfig
from pyfast.train.data.group import Group, write_groups
from pyfast.train.data.order import of_step
from pyfast.train.evaluation import evaluate, metrics
from pyfast.train.loop import learning_rate
from pyfast.train.recipes.ampo import AmpoSettings


def test_sample_metrics_by_hand():
    found = metrics.sample_metrics(
        [0.0, 1.0, 0.5], 1, [0, 2], [4, 8, 6], [True, False, True], ["a", "b", "a"]
    )
    assert found == pytest.approx(
        {
            "scores/mean": 0.5,
            "scores/std": math.sqrt(1 / 6),
            "scores/chosen": 1.0,
            "scores/rejected": 0.25,
            "responses/length": 6.0,
            "responses/finished": 2 / 3,
            "responses/unique": 2 / 3,
            "groups/copies_of_best": 0.0,
        }
    )


def test_means_are_over_the_records_that_have_the_key():
    assert metrics.mean_of([{"a": 1.0, "b": 2.0}, {"a": 3.0}]) == {"a": 2.0, "b": 2.0}


@pytest.mark.parametrize("at_once", [1, 7, 1000, 10**9])
def test_bootstrap_draws_the_same_however_it_is_cut(monkeypatch, at_once):
    """All at once is the definition; 10,000 prompts would take 800 MB so."""
    values = np.random.default_rng(4).normal(size=50)
    monkeypatch.setattr(metrics, "_AT_ONCE", at_once)
    found = metrics.bootstrap_interval(values, confidence=0.9, resamples=300, seed=5)
    picks = np.random.default_rng(5).integers(50, size=(300, 50))
    tail = (1 - 0.9) / 2
    assert found == tuple(np.quantile(values[picks].mean(axis=1), [tail, 1 - tail]))


def test_bootstrap_agrees_with_the_normal_interval_and_is_seeded():
    values = np.random.default_rng(0).normal(2.0, 1.0, size=400)
    low, high = metrics.bootstrap_interval(values, confidence=0.95, resamples=4000, seed=1)
    half = 1.96 * values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.01)
    assert high == pytest.approx(values.mean() + half, abs=0.01)
    again = metrics.bootstrap_interval(values, confidence=0.95, resamples=4000, seed=1)
    assert (low, high) == again


def test_comparison_is_paired_by_prompt(tmp_path):
    # The prompts differ wildly, the gain is the same for each: no doubt about the difference.
    before = [Group(f"p{i}", ["a", "b"], [i - 0.5, i + 0.5]) for i in range(10)]
    after = [Group(f"p{i}", ["a", "b"], [i + 1.0, i + 1.0]) for i in range(10)]
    write_groups(tmp_path / "b", before)
    write_groups(tmp_path / "a", after)
    found = evaluate.compare(tmp_path / "b", tmp_path / "a", configs.from_dict(AmpoSettings, {}))
    assert found["difference"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert found["before"]["mean"] == 4.5
    assert found["before"]["high"] - found["before"]["low"] > 2
    assert found["prompts"] == found["prompts_improved"] == 10


def test_learning_rate_warms_up_and_follows_the_cosine():
    config = OptimisationConfig(steps=10, lr=1.0, warmup=0.2, min_lr_ratio=0.1)
    rates = [learning_rate(config, step, 10) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    for step in range(2, 10):
        cosine = (1 + math.cos(math.pi * (step - 2) / 8)) / 2
        assert rates[step] == pytest.approx(0.1 + 0.9 * cosine)
    assert rates[6] == pytest.approx(0.55)
    assert learning_rate(OptimisationConfig(steps=4, lr=1.0, warmup=0.0), 0, 4) == 1.0
    assert learning_rate(OptimisationConfig(steps=4, lr=1.0, warmup=1.0), 3, 4) == 1.0


def test_every_epoch_goes_through_all_groups_in_its_own_order():
    stream = [pair for step in range(14) for pair in of_step(7, 3, 0, step)]
    epochs = [stream[i : i + 7] for i in range(0, 42, 7)]
    for number, epoch in enumerate(epochs):
        assert sorted(epoch) == [(number, i) for i in range(7)]
    assert len({tuple(i for _, i in epoch) for epoch in epochs}) > 1
    assert epochs[0] == [pair for s in range(3) for pair in of_step(7, 3, 0, s)][:7]
