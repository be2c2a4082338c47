import math

import numpy as np
import pytest
import torch

from pyfast import select
from pyfast.train.recipes.ampo import recipe as ampo
from pyfast.train.recipes.ampo import selection
from pyfast.train.recipes.ampo.selection import SELECTORS, SelectionConfig
from pyfast.train.recipes.ampo.settings import LossConfig


@pytest.fixture
def group():
    generator = np.random.default_rng(0)
    return list(generator.random(20)), generator.normal(size=(20, 6)).astype(np.float32)


@pytest.mark.parametrize("selector", SELECTORS)
def test_every_selector_takes_the_best_and_k_others(selector, group):
    scores, embeddings = group
    config = SelectionConfig(selector=selector, k=5)
    chosen = selection.choose(config, scores, embeddings, seed=3)
    assert chosen.positive == int(np.argmax(scores))
    assert len(set(chosen.negatives)) == (1 if selector == "worst" else 5)
    assert chosen.positive not in chosen.negatives
    assert chosen.indices == [chosen.positive, *chosen.negatives]
    assert chosen == selection.choose(config, scores, embeddings, seed=3)
    assert set(chosen.measured) == ({"selection/cost"} if selector == "opt-select" else set())


def test_selectors_are_the_public_ones(group):
    scores, embeddings = group
    opt = selection.choose(SelectionConfig("opt-select", 5, 4), scores, embeddings, seed=3)
    expected = select.opt_select(embeddings, scores, k=5, n_init=4, seed=3)
    assert opt.negatives == expected.negatives.tolist()
    assert opt.measured["selection/cost"] == expected.cost
    lowest = selection.choose(SelectionConfig("bottom-k", 5), scores, None, seed=3)
    assert sorted(lowest.negatives) == sorted(np.argsort(scores)[:5].tolist())
    coreset = selection.choose(SelectionConfig("coreset", 5), scores, embeddings, seed=3)
    expected = select.coreset(embeddings, scores, k=5, seed=3)
    assert coreset.negatives == expected.negatives.tolist()


def test_random_draws_every_other_response_sometimes(group):
    scores, _ = group
    seen = set()
    for seed in range(60):
        seen.update(selection.choose(SelectionConfig("random", 5), scores, None, seed).negatives)
    assert seen == set(range(20)) - {int(np.argmax(scores))}


@pytest.mark.parametrize("selector", ["opt-select", "coreset"])
def test_embeddings_are_asked_for(selector, group):
    with pytest.raises(ValueError, match=f"{selector} needs embeddings"):
        selection.choose(SelectionConfig(selector, 5), group[0], None, seed=0)


def test_loss_is_algorithm_1_line_12():
    policy = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    ref = torch.tensor([-1.5, -1.0, -3.5])
    scores = torch.tensor([0.9, 0.3, 0.0])
    config = LossConfig(beta=0.5, alpha=2.0)
    s = [0.5 * 0.5 + 2.0 * 0.5, 0.5 * -1.0 + 2.0 * -0.1, 0.5 * 0.5 + 2.0 * -0.4]
    expected = -math.log(math.exp(s[0]) / sum(math.exp(x) for x in s))
    loss = ampo.loss(config, policy, ref, scores)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()
    assert policy.grad[0] < 0 < policy.grad[1]  # descent lifts the positive, lowers a negative


def test_metrics_come_from_the_scores_of_the_loss():
    policy = torch.tensor([-1.0, -4.0, -3.0], requires_grad=True)
    ref = torch.tensor([-2.0, -3.0, -3.0])
    scores = torch.tensor([1.0, 0.2, 0.0])
    found = {}
    ampo.loss(LossConfig(beta=0.5, alpha=2.0), policy, ref, scores, found)
    weight = 1 / (1 + math.exp(0.5 - 2 * 0.2))  # of beta h + alpha r = -0.1 and 0
    entropy = -weight * math.log(weight) - (1 - weight) * math.log(1 - weight)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {
            "rewards/chosen": 0.5,
            "rewards/rejected": -0.25,
            "rewards/margins": 0.75,
            "rewards/accuracies": 1.0,
            "logps/chosen": -1.0,
            "logps/rejected": -3.5,
            "negatives/effective": math.exp(entropy),
        }
    )


def test_at_step_0_nothing_is_won():
    found, logps = {}, torch.tensor([-1.0, -2.0, -3.0])
    ampo.loss(LossConfig(), logps, logps, torch.tensor([1.0, 0.5, 0.0]), found)
    assert found["rewards/accuracies"] == 0
    assert found["rewards/margins"] == 0


def test_best_against_worst_with_simpo_is_simpo():
    """AMPO's baseline of table 1, by SimPO's equation 6 (Meng et al. 2024)."""
    config = LossConfig(implicit_reward="simpo", beta=2.5, margin=1.2, alpha=0.0)
    policy = torch.tensor([-6.0, -9.0])
    lengths = torch.tensor([3, 6])
    gap = 2.5 * (-6.0 / 3 - -9.0 / 6) - 1.2
    found = {}
    loss = ampo.loss(config, policy, policy, torch.tensor([0.9, 0.1]), found, lengths)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-gap)), rel=1e-6)
    assert found["rewards/chosen"].item() == pytest.approx(2.5 * -2.0)
    scores = [0.5, 0.9, 0.1, 0.4]
    worst = selection.choose(SelectionConfig("worst", 3), scores, None, seed=0)
    assert worst.indices == [1, 2]


@pytest.mark.parametrize("kind", ["dpo", "length_normalized", "simpo"])
def test_implicit_rewards_and_margin_one_response_at_a_time(kind):
    config = LossConfig(implicit_reward=kind, beta=0.7, margin=0.4, alpha=0.5, positives="mean")
    policy, ref = [-6.0, -9.0, -4.0], [-5.0, -8.5, -6.0]
    scores, lengths = [0.9, 0.1, 0.7], [3, 6, 2]
    mean = sum(scores) / 3
    shifted = []
    for p, q, r, n in zip(policy, ref, scores, lengths, strict=True):
        implicit = {"dpo": p - q, "length_normalized": (p - q) / n, "simpo": p / n}[kind]
        shifted.append(0.7 * implicit + 0.5 * (r - mean))
    top = math.exp(shifted[0]) + math.exp(shifted[2])
    expected = -math.log(top / (top + math.exp(0.4 + shifted[1])))
    tensors = [torch.tensor(values) for values in (policy, ref, scores)]
    loss = ampo.loss(config, *tensors, lengths=torch.tensor(lengths))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_opt_selects_settings_are_select_s_own(group):
    scores, embeddings = group
    for changes, expected in (
        ({"search": "eager", "n_init": 1}, {"search": "eager", "n_init": 1}),
        ({"cover_top": True}, {"cover_top": True}),
        ({"reward_scale": "none"}, {"reward_scale": "none"}),
        ({"certify": True}, {"certify": True}),
        ({"exact": True}, {"exact": True}),
    ):
        config = SelectionConfig(k=4, **changes)
        chosen = selection.choose(config, scores, embeddings, seed=2)
        other = select.opt_select(embeddings, scores, k=4, seed=2, **expected)
        assert chosen.negatives == other.negatives.tolist(), changes
        assert chosen.measured["selection/cost"] == other.cost
        assert chosen.measured.get("selection/gap") == other.gap
    spread = [100 * score for score in scores]  # one scale is not the other
    raw = selection.choose(SelectionConfig(k=4, reward_scale="none"), spread, embeddings, seed=2)
    scaled = selection.choose(SelectionConfig(k=4), spread, embeddings, seed=2)
    assert raw.negatives != scaled.negatives


def test_one_score_scale_serves_selection_and_loss():
    scores = [3.0, 1.0, 2.0]
    assert selection.scale(SelectionConfig(), scores) == scores
    assert selection.scale(SelectionConfig(reward_scale="none"), scores) == scores
    assert selection.scale(SelectionConfig(reward_scale="minmax"), scores) == [1.0, 0.0, 0.5]
    assert selection.scale(SelectionConfig(reward_scale="minmax"), [2.0, 2.0]) == [0.5, 0.5]
