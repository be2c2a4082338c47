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


def test_responses_as_good_as_the_preferred_one_are_no_negatives() -> None:
    rewards = np.array([1.0, 5.0, 4.9, 5.0, 5.0])
    found = select.hard_preference(rewards, 30.0, 400)
    assert found.preferred == 1
    assert set(found.negatives.tolist()) == {2}
    tilted = np.exp(30.0 * np.array([1.0, 4.9]) - 150.0)
    assert found.probabilities[[0, 2]] == pytest.approx(tilted / tilted.sum(), rel=1e-12)
    assert found.probabilities[[1, 3, 4]].tolist() == [0.0, 0.0, 0.0]
    # As printed, equation 9 sums over all but the preferred one.
    printed = select.hard_preference(rewards, 0.0, keep_ties=True)
    assert printed.probabilities.tolist() == [0.25, 0.0, 0.25, 0.25, 0.25]


def test_ties_are_those_of_the_one_that_is_preferred() -> None:
    rewards = np.array([[3.0, 2.0, 2.0, 9.0], [0.0, 1.0, 0.0, 1.0]], np.float32)
    found = select.hard_preference(rewards, 0.0, preferred=[1, 3])
    assert found.probabilities.tolist() == [[0.5, 0.0, 0.0, 0.5], [0.5, 0.0, 0.5, 0.0]]
    ragged = select.hard_preference(rewards.ravel(), 0.0, preferred=[1, 3], offsets=[0, 4, 8])
    assert (ragged.probabilities == found.probabilities.ravel()).all()


@pytest.mark.parametrize("keep", [False, True])
def test_ties_follow_the_reference(keep: bool) -> None:
    rewards = np.random.default_rng(4).integers(0, 4, size=(40, 8)).astype(float)
    rewards[:, 5] = -1.0  # so that every group has a negative
    found = select.hard_preference(rewards, 0.8, 5, 3, keep_ties=keep)
    for b in range(40):
        q, drawn = ref.hard_preference(rewards[b], 0.8, 5, 3, stream=b, keep_ties=keep)
        assert found.probabilities[b] == pytest.approx(q, rel=1e-12)
        assert found.negatives[b].tolist() == drawn


def test_schedules() -> None:
    def gammas(*args: float, **how: str) -> list[float]:
        return [select.hard_preference_gamma(p / 10, *args, **how) for p in range(11)]

    assert gammas() == [-5.0, -5.0, -3.0, -3.0, -1.0, -1.0, 1.0, 1.0, 3.0, 3.0, 5.0]
    levels = [-5.0, -5.0, -2.5, -2.5, 0.0, 0.0, 2.5, 2.5, 5.0, 5.0, 5.0]
    assert gammas(schedule="levels") == levels
    assert gammas(schedule="constant") == [5.0] * 11
    assert gammas(0.0, 4.0, schedule="levels")[7] == 3.0
    assert gammas(0.0, 10.0)[7] == 6.0


@pytest.mark.parametrize("steps", [5, 7, 100, 333])
def test_gamma_moves_at_every_fifth_of_the_steps(steps: int) -> None:
    for step in range(steps):
        expected = -5 + 10 * (5 * step // steps) / 5
        assert select.hard_preference_gamma(step / steps) == expected
