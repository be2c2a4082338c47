import math

import pytest
import torch

from pyfast.losses import lipo_lambda, plackett_luce, plackett_luce_top1, swepo
from pyfast.losses.metrics import ranking_metrics, reward_margins


def test_preference_metrics_by_hand(group):
    policy, ref, _ = group
    found = {}
    plackett_luce_top1(policy, ref, beta=2.0, metrics=found)
    weights = [math.exp(2 * s) for s in (-1.0, 0.0, 0.5)]
    shares = [w / sum(weights) for w in weights]
    expected = {
        "rewards/chosen": 2.0,
        "rewards/rejected": 2 * (-0.5) / 3,
        "rewards/margins": 2.0 + 1 / 3,
        "rewards/accuracies": 1.0,
        "logps/chosen": -3.0,
        "logps/rejected": (-5 - 4 - 3.5) / 3,
        "negatives/effective": math.exp(-sum(p * math.log(p) for p in shares)),
    }
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected)


def test_metrics_do_not_touch_the_graph_and_skip_lone_responses():
    policy = torch.tensor([-1.0, -2.0, -3.0, -3.0, -9.0], requires_grad=True)
    offsets = torch.tensor([0, 1, 4, 5])
    found = {}
    plackett_luce_top1(policy, torch.zeros(5), beta=1.0, offsets=offsets, metrics=found).backward()
    assert not any(value.requires_grad for value in found.values())
    assert found["rewards/chosen"].item() == pytest.approx((-1 - 2 - 9) / 3)
    assert found["rewards/rejected"].item() == pytest.approx(-3)
    assert found["rewards/margins"].item() == pytest.approx(1)
    assert found["negatives/effective"].item() == pytest.approx(2)


def test_a_tie_is_no_win():
    found = {}
    plackett_luce_top1(torch.zeros(2, 3), torch.zeros(2, 3), metrics=found)
    assert found["rewards/accuracies"] == 0
    assert found["negatives/effective"].item() == pytest.approx(2)


def test_weights_and_rewards_count_in_the_effective_number():
    zeros, found = torch.zeros(4), {}
    plackett_luce_top1(zeros, zeros, weights=torch.tensor([1.0, 1, 1, 0]), metrics=found)
    assert found["negatives/effective"].item() == pytest.approx(2)
    swepo(zeros, zeros, torch.tensor([50.0, 0, 0, -100]), metrics=found)
    assert found["negatives/effective"].item() == pytest.approx(2)


@pytest.mark.parametrize("loss", [plackett_luce, swepo, lipo_lambda])
def test_where_rewards_rank_their_best_response_is_the_chosen_one(loss):
    policy = torch.tensor([-9.0, -1.0, -3.0, -2.0, -4.0])
    rewards, offsets = torch.tensor([0.0, 1.0, 0.5, 1.0, 1.0]), torch.tensor([0, 3, 5])
    found = {}
    loss(policy, torch.zeros(5), rewards, beta=2.0, offsets=offsets, metrics=found)
    expected = {
        "rewards/chosen": 2 * (-1 - 2) / 2,
        "rewards/rejected": 2 * (-6 - 4) / 2,
        "rewards/margins": 2 * (5 + 2) / 2,
        "rewards/accuracies": 1.0,
        "logps/chosen": (-1 - 2) / 2,
        "logps/rejected": (-6 - 4) / 2,
    }
    del found["negatives/effective"]
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected)


def test_without_a_negative_only_the_chosen_have_metrics():
    found = {}
    plackett_luce_top1(torch.zeros(3, 1), torch.zeros(3, 1), metrics=found)
    given = {name for name, value in found.items() if not math.isnan(value)}
    assert given == {"rewards/chosen", "logps/chosen"}


def test_ranking_metrics_by_hand():
    scores = torch.tensor([2.0, 3.0, 1.0, 5.0, 0.0, 0.0, 1.0, 1.0])
    offsets = torch.tensor([0, 3, 4, 8])  # ranks 2, 1 and 4 of which one is a tie
    found = ranking_metrics(scores, offsets=offsets, at=(1, 2, 3))

    expected = {
        "hit@1": 1 / 3,
        "mrr": (1 / 2 + 1 + 1 / 4) / 3,
        "recall@1": 1 / 3,
        "ndcg@1": 1 / 3,
        "recall@2": 2 / 3,
        "ndcg@2": (1 + 1 / math.log2(3)) / 3,
        "recall@3": 2 / 3,
        "ndcg@3": (1 + 1 / math.log2(3)) / 3,
    }
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected)


@pytest.mark.parametrize("at", [(), (0,), (1, True), (1.5,)])
def test_bad_cut_offs(at, raises):
    with raises(ValueError, f"at must hold whole numbers of at least 1, got {at}"):
        ranking_metrics(torch.zeros(3), at=at)


def test_reward_margins_by_hand():
    policy = torch.tensor([1.0, -1.0, 0.0, 9.0, 2.0, 4.0])
    lengths, offsets = torch.tensor([10, 20, 40, 7, 5, 1]), torch.tensor([0, 3, 4, 6])
    found = reward_margins(policy, torch.zeros(6), lengths, beta=2.0, offsets=offsets)
    plain = [2 * (1 + 0.5), 2 * (2 - 4)]  # the group of one has nothing to beat
    assert found["rm_dpo"].item() == pytest.approx(sum(plain) / 2)
    fined = [plain[0] - 0.01 * (10 - 30), plain[1] - 0.01 * (5 - 1)]
    assert found["rm_r_dpo"].item() == pytest.approx(sum(fined) / 2)
