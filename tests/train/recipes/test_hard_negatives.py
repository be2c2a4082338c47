"""What HPS forwards, and how it counts, by hand and against the slow truths."""

import numpy as np
import pytest

from pyfast.select import reference
from pyfast.train.recipes.hps import hard_negatives
from pyfast.train.recipes.hps.hard_negatives import (
    NegativesConfig,
    heads_of,
    negatives_of,
    plan,
    scaled,
)

SCORES = np.array([0.2, 0.9, 0.9, -0.5, 0.4, 0.7])


def plan_of(config, scores=SCORES, label=None, valid=None, gamma=2.0, seed=0, likelihood=True):
    heads = heads_of(config, scores, label, valid)
    return plan(config, scores, heads, gamma, lambda n: seed + n, likelihood=likelihood)


def test_one_draw_forwards_two_responses():
    found = plan_of(NegativesConfig())
    assert len(found.responses) == 2
    assert found.responses[0] == 1  # the first of the best
    assert found.responses[1] not in (1, 2)  # nor the one that ties
    assert found.weights.tolist() == [[0, 1]]


def test_draws_follow_equation_9():
    """Of 4000 draws, each negative's share is q_i to four standard errors; seeds give streams."""
    q, _ = reference.hard_preference(SCORES, 2.0, 1)
    drawn = [plan_of(NegativesConfig(), seed=seed).responses[1] for seed in range(4000)]
    share = np.bincount(drawn, minlength=6) / 4000
    assert share == pytest.approx(q, abs=4 * 0.5 / np.sqrt(4000))
    assert q[1] == q[2] == 0
    assert (share[q > 0] > 0).all()


def test_all_negatives_count_by_n_q():
    q, _ = reference.hard_preference(SCORES, 2.0, 1)
    found = plan_of(NegativesConfig(draws=0))
    assert found.responses == [1, 0, 3, 4, 5]
    assert found.weights[0, 1:] == pytest.approx(4 * q[[0, 3, 4, 5]])
    assert found.weights[0, 0] == 0
    found = plan_of(NegativesConfig(draws=0), likelihood=False)
    assert found.weights.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("importance", "likelihood", "sums_to"),
    [
        ("none", True, 7),
        ("mean", True, 4),
        ("auto", True, 4),
        ("none", False, 1),
        ("mean", False, 1),
        ("auto", False, 1),
    ],
)
def test_m_draws_are_forwarded_once_each(importance, likelihood, sums_to):
    config = NegativesConfig(draws=7, importance=importance)
    found = plan_of(config, likelihood=likelihood)
    assert len(set(found.responses)) == len(found.responses) <= 5
    assert found.weights.sum() == pytest.approx(sums_to)
    assert (found.weights[0, 1:] > 0).all()


@pytest.mark.parametrize("likelihood", [True, False])
def test_equation_10_read_literally(likelihood):
    q, _ = reference.hard_preference(SCORES, 2.0, 1)
    found = plan_of(NegativesConfig(importance="q"), likelihood=likelihood)
    drawn = found.responses[1]
    assert found.weights[0, 1] == pytest.approx(4 * q[drawn])


def test_m_draws_estimate_the_full_weights():
    full = plan_of(NegativesConfig(draws=0)).weights[0, 1:]
    config = NegativesConfig(draws=20)
    total = np.zeros(6)
    for seed in range(300):
        found = plan_of(config, seed=seed)
        total[found.responses] += found.weights[0]
    assert total[[0, 3, 4, 5]] / 300 == pytest.approx(full, abs=0.1)


def test_bt_takes_the_lowest_and_of_equals_the_last():
    scores = np.array([0.1, 0.9, -0.5, 0.3, -0.5])
    found = plan_of(NegativesConfig(mode="bt"), scores)
    assert found.responses == [1, 4]
    assert found.weights.tolist() == [[0, 1]]


def test_pl_ranks_the_whole_list():
    found = plan_of(NegativesConfig(mode="pl"))
    assert found.responses == [1, 2, 5, 4, 0, 3]
    assert found.weights is None


def test_a_label_may_be_scored_below_its_negatives():
    config = NegativesConfig(chosen="label", draws=0)
    found = plan_of(config, label=4)
    assert found.responses == [4, 0, 1, 2, 3, 5]
    ranked = plan_of(NegativesConfig(chosen="label", mode="pl"), label=4)
    assert ranked.responses == [4, 1, 2, 5, 0, 3]


def test_ties_are_negatives_where_that_is_asked():
    found = plan_of(NegativesConfig(draws=0, keep_ties=True))
    assert found.responses == [1, 0, 2, 3, 4, 5]


def test_valid_responses_are_each_chosen_in_turn():
    config = NegativesConfig(draws=0)
    found = plan_of(config, valid=[4, 5])
    assert found.responses == [5, 4, 0, 1, 2, 3]  # 5 scores more than 4
    assert (found.weights[:, :2] == 0).all()
    pool = [0, 1, 2, 3]
    tilt = np.exp(2 * SCORES[pool])
    for row in found.weights:
        assert row[2:] == pytest.approx(4 * tilt / tilt.sum())


def test_valid_as_printed_has_later_valid_ones_as_negatives():
    config = NegativesConfig(draws=0, valid_as_negatives=True)
    found = plan_of(config, valid=[4, 5])
    assert found.weights[0, 1] > 0
    assert found.weights[1, 0] == 0
    assert found.weights[0].sum() == pytest.approx(5)
    assert found.weights[1].sum() == pytest.approx(4)


def test_draws_of_two_heads_are_their_own():
    config = NegativesConfig()
    pairs = {
        tuple(plan_of(config, valid=[4, 5], seed=2 * s).weights.argmax(axis=1)) for s in range(40)
    }
    assert any(a != b for a, b in pairs)


@pytest.mark.parametrize("how", ["none", "zscore", "minmax"])
def test_scales(how):
    scores = np.array([1.0, 3.0, 2.0, 6.0])
    expected = {
        "none": scores,
        "zscore": (scores - 3) / np.sqrt(3.5),
        "minmax": [0, 0.4, 0.2, 1],
    }
    assert scaled(scores, how) == pytest.approx(expected[how])
    huge = scaled(np.array([-1.7e308, 1.7e308, 0.0]), how)
    assert np.isfinite(huge).all()
    if how != "none":
        assert scaled(np.full(3, 2.0), how).tolist() == [0, 0, 0]
        assert scaled(np.array([0.0, 5e-324]), how)[1] > 0


def test_scaled_scores_change_who_is_drawn():
    """Between -0.5 and 0.7 there are 1.2, scaled to [0, 1] less: q is less steep."""
    raw = plan_of(NegativesConfig(draws=0)).weights[0]
    soft = plan_of(NegativesConfig(draws=0, score_scale="minmax")).weights[0]
    assert raw.max() > soft.max()
    tilt = np.exp(2 * (SCORES[[0, 3, 4, 5]] + 0.5) / 1.4)
    assert soft[1:] == pytest.approx(4 * tilt / tilt.sum())


def test_all_equal_leaves_no_negative():
    scores = np.full(4, 0.5)
    config = NegativesConfig()
    assert negatives_of(config, scores, heads_of(config, scores, None, None)) == []
    config = NegativesConfig(keep_ties=True)
    assert negatives_of(config, scores, heads_of(config, scores, None, None)) == [1, 2, 3]


def test_gamma_schedules():
    progress = [0, 0.2, 0.4, 0.6, 0.8]
    for schedule, values in (
        ("linear", [-5, -3, -1, 1, 3]),
        ("levels", [-5, -2.5, 0, 2.5, 5]),
        ("constant", [5] * 5),
    ):
        config = NegativesConfig(schedule=schedule)
        assert [config.gamma(p) for p in progress] == values
    assert hard_negatives.NegativesConfig(gamma_low=0.0, gamma_high=1.0).gamma(0.5) == 0.4
