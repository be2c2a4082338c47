"""Hard preference sampling: probabilities, draws, streams and the schedule of gamma."""

import numpy as np
import pytest

from pyfast import select
from pyfast.select import reference as ref


def test_follows_the_reference() -> None:
    rng = np.random.default_rng(0)
    for seed in (0, 1, 2**64 - 1):
        rewards = rng.normal(size=(4, 9))
        for gamma in (-5.0, 0.0, 0.5, 5.0):
            batch = select.hard_preference(rewards, gamma, 6, seed)
            for b in range(4):
                q, drawn = ref.hard_preference(rewards[b], gamma, 6, seed, stream=b)
                assert batch.probabilities[b] == pytest.approx(q, rel=1e-12, abs=1e-15)
                assert batch.negatives[b].tolist() == drawn
            one = select.hard_preference(rewards[0], gamma, 6, seed)
            assert (one.negatives == batch.negatives[0]).all()
            assert one.preferred == int(np.argmax(rewards[0]))


def test_draws_have_the_stated_probabilities() -> None:
    rewards = np.tile([0.0, 1.0, 2.0, 9.0], (20_000, 1))
    found = select.hard_preference(rewards, 0.7)
    counts = np.bincount(found.negatives.ravel(), minlength=4)
    q = np.exp(0.7 * np.array([0.0, 1.0, 2.0]))
    expected = 20_000 * q / q.sum()
    assert counts[3] == 0
    assert np.abs(counts[:3] - expected).max() < 5 * np.sqrt(expected.max())


def test_without_replacement_all_are_different() -> None:
    rewards = np.random.default_rng(1).normal(size=(200, 6)) * 1000
    found = select.hard_preference(rewards, 5.0, 5, replace=False)
    for b in range(200):
        best = int(np.argmax(rewards[b]))
        assert sorted([*found.negatives[b], best]) == list(range(6))
        # So steep that the order of the draws is that of the rewards.
    order = np.argsort(-rewards, axis=1)[:, 1:]
    assert (found.negatives == order).mean() > 0.98


def test_given_preferred_ragged_and_extreme_scores() -> None:
    rewards = np.array([1e308, -1e308, 0.0, 3.0, 3.0, 1.0])
    found = select.hard_preference(rewards, 1.0, 2, offsets=[0, 3, 6], preferred=[2, 1])
    assert found.preferred.tolist() == [2, 1]
    assert found.negatives[0].tolist() == [0, 0]
    assert 1 not in found.negatives[1]
    assert found.probabilities[[2, 4]].tolist() == [0.0, 0.0]
    assert found.probabilities[:3].sum() == pytest.approx(1)
    assert found.probabilities.shape == (6,)


def test_schedule() -> None:
    steps = [select.hard_preference_gamma(p / 10) for p in range(11)]
    assert steps == [-5.0, -5.0, -2.5, -2.5, 0.0, 0.0, 2.5, 2.5, 5.0, 5.0, 5.0]
    assert select.hard_preference_gamma(0.7, low=0.0, high=4.0) == 3.0
