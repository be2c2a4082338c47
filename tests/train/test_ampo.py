import math

import numpy as np
import pytest
import torch

from pyfast import select
from pyfast.train.recipes import ampo
from pyfast.train.recipes.ampo import SELECTORS, LossConfig, SelectionConfig


@pytest.fixture
def group():
    generator = np.random.default_rng(0)
    return list(generator.random(20)), generator.normal(size=(20, 6)).astype(np.float32)


@pytest.mark.parametrize("selector", SELECTORS)
def test_every_selector_takes_the_best_and_k_others(selector, group):
    scores, embeddings = group
    config = SelectionConfig(selector=selector, k=5)
    chosen = ampo.choose(config, scores, embeddings, seed=3)
    assert chosen.positive == int(np.argmax(scores))
    assert len(set(chosen.negatives)) == 5
    assert chosen.positive not in chosen.negatives
    assert chosen.indices == [chosen.positive, *chosen.negatives]
    assert chosen == ampo.choose(config, scores, embeddings, seed=3)
    assert (chosen.cost is not None) == (selector == "opt-select")


def test_selectors_are_the_public_ones(group):
    scores, embeddings = group
    opt = ampo.choose(SelectionConfig("opt-select", 5, 4), scores, embeddings, seed=3)
    expected = select.opt_select(embeddings, scores, k=5, n_init=4, seed=3)
    assert opt.negatives == expected.negatives.tolist()
    assert opt.cost == expected.cost
    lowest = ampo.choose(SelectionConfig("bottom-k", 5), scores, None, seed=3)
    assert sorted(lowest.negatives) == sorted(np.argsort(scores)[:5].tolist())
    coreset = ampo.choose(SelectionConfig("coreset", 5), scores, embeddings, seed=3)
    expected = select.coreset(embeddings, scores, k=5, seed=3)
    assert coreset.negatives == expected.negatives.tolist()


def test_random_draws_every_other_response_sometimes(group):
    scores, _ = group
    seen = set()
    for seed in range(60):
        seen.update(ampo.choose(SelectionConfig("random", 5), scores, None, seed).negatives)
    assert seen == set(range(20)) - {int(np.argmax(scores))}


@pytest.mark.parametrize("selector", ["opt-select", "coreset"])
def test_embeddings_are_asked_for(selector, group):
    with pytest.raises(ValueError, match=f"{selector} needs embeddings"):
        ampo.choose(SelectionConfig(selector, 5), group[0], None, seed=0)


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
