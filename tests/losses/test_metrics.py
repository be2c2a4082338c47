import math

import pytest
import torch

from pyfast.losses import lipo_lambda, plackett_luce, plackett_luce_top1, swepo
from pyfast.losses.metrics import (
    heldout_metrics,
    kl_sampled,
    ranking_metrics,
    reward_margins,
)


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
    offsets = torch.tensor([0, 3, 4, 8, 10])  # ranks 2, none, 4 of which one is a tie, and 1
    scores = torch.cat([scores, torch.tensor([0.5, 0.25])])
    found = ranking_metrics(scores, offsets=offsets, at=(1, 2, 3))

    expected = {
        "hit@1": 1 / 3,
        "MRR": (1 / 2 + 1 + 1 / 4) / 3,
        "Recall@1": 1 / 3,
        "NDCG@1": 1 / 3,
        "Recall@2": 2 / 3,
        "NDCG@2": (1 + 1 / math.log2(3)) / 3,
        "Recall@3": 2 / 3,
        "NDCG@3": (1 + 1 / math.log2(3)) / 3,
    }
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected)


@pytest.mark.parametrize("at", [(), (0,), (1, True), (1.5,)])
def test_bad_cut_offs(at, raises):
    with raises(ValueError, f"at must hold whole numbers of at least 1, got {at}"):
        ranking_metrics(torch.zeros(3), at=at)


def test_reward_margins_by_hand():
    policy = torch.tensor([1.0, -1.0, 0.0, 9.0, 2.0, 4.0])
    lengths, offsets = torch.tensor([10, 20, 40, 7, 5, 1]), torch.tensor([0, 3, 4, 6])
    found = reward_margins(policy, torch.zeros(6), lengths, offsets=offsets)
    plain = [1 + 0.5, 2 - 4]  # log-ratios, without beta; the group of one has nothing to beat
    assert found["rm_dpo"].item() == pytest.approx(sum(plain) / 2)
    fined = [plain[0] - 0.01 * (10 - 30), plain[1] - 0.01 * (5 - 1)]
    assert found["rm_r_dpo"].item() == pytest.approx(sum(fined) / 2)


def test_heldout_metrics_by_hand():
    policy = torch.tensor([[-10.0, -12.0, -9.0], [-20.0, -25.0, -30.0]])
    ref = torch.tensor([[-11.0, -12.0, -9.5], [-19.0, -25.0, -29.0]])
    lengths = torch.tensor([[10, 20, 40], [30, 10, 20]])
    found = heldout_metrics(policy, ref, beta=0.2, lengths=lengths, at=(1, 2))
    expected = {  # h is (1, 0, 0.5) and (-1, 0, -1): ranks 1 and 3; by log pi 2 and 1
        "rewards/chosen": 0.0,
        "rewards/rejected": 0.2 * (0.25 - 0.5) / 2,
        "rewards/margins": 0.2 * (0.75 - 0.5) / 2,
        "rewards/accuracies": 0.5,
        "logps/chosen": -15.0,
        "logps/rejected": (-10.5 - 27.5) / 2,
        "rewards/hit@1": 0.5,
        "rewards/MRR": (1 + 1 / 3) / 2,
        "rewards/Recall@1": 0.5,
        "rewards/NDCG@1": 0.5,
        "rewards/Recall@2": 0.5,
        "rewards/NDCG@2": 0.5,
        "logps/hit@1": 0.5,
        "logps/MRR": (1 / 2 + 1) / 2,
        "logps/Recall@1": 0.5,
        "logps/NDCG@1": 0.5,
        "logps/Recall@2": 1.0,
        "logps/NDCG@2": (1 / math.log2(3) + 1) / 2,
        "rm_dpo": (0.75 - 0.5) / 2,
        "rm_r_dpo": (0.75 + 0.2 - 0.5 - 0.15) / 2,
        "kl_chosen": 0.0,
    }
    effective = found.pop("eval_negatives/effective").item()
    assert 1.9 < effective < 2.0
    expected = {f"eval_{name}": value for name, value in expected.items()}
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected)
    plain = heldout_metrics(policy, ref, beta=3.0, prefix="")
    assert plain["rm_dpo"] == found["eval_rm_dpo"]  # beta scales rewards alone
    assert "rm_r_dpo" not in plain


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_where_the_policy_is_its_reference_nothing_is_won(dtype):
    logps = (-50 * torch.rand(5, 20, generator=torch.Generator().manual_seed(0))).to(dtype)
    found = heldout_metrics(logps, logps, at=(1, 3))
    for name in ("accuracies", "margins", "hit@1", "Recall@1", "Recall@3", "NDCG@1", "NDCG@3"):
        assert found[f"eval_rewards/{name}"] == 0
    assert found["eval_rewards/MRR"].item() == pytest.approx(1 / 20)
    for name in ("rm_dpo", "kl_chosen"):
        assert found[f"eval_{name}"] == 0
    assert heldout_metrics(logps[:, :1], logps[:, :1])["eval_rewards/hit@1"].isnan()


def test_heldout_metrics_of_a_normalized_reward():
    policy, ref = torch.tensor([-2.0, -9.0]), torch.tensor([-4.0, -16.0])
    lengths = torch.tensor([2, 20])  # h is 2 and 7, h / length 1 and 0.35
    assert heldout_metrics(policy, ref)["eval_rewards/hit@1"] == 0
    found = heldout_metrics(policy, ref, reward="length_normalized", lengths=lengths)
    assert found["eval_rewards/hit@1"] == 1
    assert found["eval_rm_dpo"] == -5


def test_sampled_kl_is_that_of_two_categorical_policies():
    p, q = torch.tensor([0.7, 0.2, 0.1]).double(), torch.tensor([0.3, 0.3, 0.4]).double()
    drawn = torch.multinomial(p, 100_000, replacement=True, generator=torch.Generator())
    kl = (p * (p / q).log()).sum().item()
    assert kl_sampled(p.log()[drawn], q.log()[drawn]).item() == pytest.approx(kl, abs=0.01)


def test_bad_groups_of_the_metrics(raises):
    two = torch.zeros(2)
    with raises(TypeError, "ref_logps must be a torch.Tensor, got NoneType"):
        heldout_metrics(two, None, reward="simpo", lengths=two + 1)
    with raises(ValueError, "ref_logps must have the shape of policy_logps (2,), got (3,)"):
        kl_sampled(two, torch.zeros(3))
    with raises(ValueError, "lengths must be greater than 0, got 0.0 in group 0, position 0"):
        heldout_metrics(two, two, lengths=two)
