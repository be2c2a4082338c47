"""HPS's losses on one group: by hand, and against `losses.reference`, in every mode and base."""

import math

import numpy as np
import pytest
import torch

from pyfast import losses
from pyfast.losses import reference
from pyfast.train.recipes.hps.hard_negatives import NegativesConfig, heads_of, plan
from pyfast.train.recipes.hps.recipe import loss
from pyfast.train.recipes.hps.settings import BASES, HpsLossConfig

SCORES = np.array([0.2, 0.9, 0.9, -0.5, 0.4, 0.7])
POLICY = torch.tensor([-3.0, -2.0, -5.0, -4.5, -1.0, -2.5], dtype=torch.float64)
REF = torch.tensor([-3.5, -2.5, -4.0, -4.0, -2.0, -2.25], dtype=torch.float64)
H = (POLICY - REF).tolist()
BETA, GAMMA = 0.7, 1.5


def pair(base, win, lose):
    """A pair's loss of its log-ratios, as their papers have it."""
    gap = BETA * (win - lose)
    p = 1 / (1 + math.exp(-gap))

    def log_sigmoid(x):
        return -math.log1p(math.exp(-x))

    return {
        "dpo": -math.log(p),
        "exo": p * math.log(p / (1 - 1e-3)) + (1 - p) * math.log((1 - p) / 1e-3),
        "ipo": (win - lose - 1 / (2 * BETA)) ** 2,
        "sppo": (win - 1 / (2 * BETA)) ** 2 + (lose + 1 / (2 * BETA)) ** 2,
        "nca": -log_sigmoid(BETA * win)
        - 0.5 * log_sigmoid(-BETA * win)
        - 0.5 * log_sigmoid(-BETA * lose),
    }[base]


def run(base, metrics=None, scores=SCORES, valid=None, label=None, seed=5, weight=1.0, **negatives):
    config = NegativesConfig(**negatives)
    heads = heads_of(config, scores, label, valid)
    found = plan(config, scores, heads, GAMMA, lambda n: seed + n, likelihood=base == "dpo")
    logps = [x[found.responses] for x in (POLICY, REF)]
    settings = HpsLossConfig(base=base, beta=BETA)
    return loss(settings, *logps, found, metrics, valid_weight=weight).item(), found


@pytest.mark.parametrize("base", BASES)
def test_bt_is_the_best_against_the_worst(base):
    value, _ = run(base, mode="bt")
    assert value == pytest.approx(pair(base, H[1], H[3]))


@pytest.mark.parametrize("base", BASES)
def test_one_draw_is_the_plain_pair(base):
    value, found = run(base)
    assert value == pytest.approx(pair(base, H[1], H[found.responses[1]]))


def q_of(pool):
    tilt = np.exp(GAMMA * SCORES[pool])
    return tilt / tilt.sum()


def test_full_dpo_is_equation_8():
    value, _ = run("dpo", draws=0)
    pool = [0, 3, 4, 5]
    against = 4 * sum(q * math.exp(BETA * H[i]) for q, i in zip(q_of(pool), pool, strict=True))
    chosen = math.exp(BETA * H[1])
    assert value == pytest.approx(-math.log(chosen / (chosen + against)))
    order = [1, *pool]
    weights = torch.tensor([1.0, *(4 * q_of(pool))]).double().log()
    slow = reference.contrast(BETA * (POLICY - REF)[order], log_weights=weights)
    assert value == pytest.approx(slow.item())
    named = losses.hps(
        POLICY[[1, 0, 2, 3, 4, 5]],
        REF[[1, 0, 2, 3, 4, 5]],
        torch.tensor(SCORES[[1, 0, 2, 3, 4, 5]]),
        gamma=GAMMA,
        beta=BETA,
    )
    assert value == pytest.approx(named.item())


@pytest.mark.parametrize("base", BASES[1:])
def test_full_pairwise_is_the_mean_over_q(base):
    value, _ = run(base, draws=0)
    pool = [0, 3, 4, 5]
    expected = sum(q * pair(base, H[1], H[i]) for q, i in zip(q_of(pool), pool, strict=True))
    assert value == pytest.approx(expected)


@pytest.mark.parametrize("base", BASES)
def test_m_draws(base):
    value, found = run(base, draws=5)
    weights = found.weights[0, 1:].tolist()
    own = found.responses[1:]
    if base == "dpo":
        against = sum(w * math.exp(BETA * H[i]) for w, i in zip(weights, own, strict=True))
        expected = math.log1p(against / math.exp(BETA * H[1]))
        assert sum(weights) == pytest.approx(4)
    else:
        expected = sum(w * pair(base, H[1], H[i]) for w, i in zip(weights, own, strict=True))
        assert sum(weights) == pytest.approx(1)
    assert len(own) > 1
    assert value == pytest.approx(expected)


@pytest.mark.parametrize("base", BASES)
def test_equation_10_read_literally(base):
    value, found = run(base, importance="q")
    pool, drawn = [0, 3, 4, 5], found.responses[1]
    weight = 4 * q_of(pool)[pool.index(drawn)]
    if base == "dpo":
        expected = math.log1p(weight * math.exp(BETA * (H[drawn] - H[1])))
    else:
        expected = weight * pair(base, H[1], H[drawn])
    assert value == pytest.approx(expected, rel=1e-6)


def test_pl_dpo_is_equation_4():
    value, found = run("dpo", mode="pl")
    slow = reference.listwise(BETA * (POLICY - REF)[[1, 2, 5, 4, 0, 3]])
    assert found.responses == [1, 2, 5, 4, 0, 3]
    assert value == pytest.approx(slow.item())


@pytest.mark.parametrize("base", BASES[1:])
def test_pl_pairwise_ranks_all_pairs(base):
    value, found = run(base, mode="pl")
    order, expected = found.responses, 0.0
    for place, winner in enumerate(order[:-1]):
        below = order[place + 1 :]
        expected += sum(pair(base, H[winner], H[i]) for i in below) / len(below)
    assert value == pytest.approx(expected)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("weight", [0.0, 1.0, 0.3])
def test_appendix_e_adds_each_valid_one(base, weight):
    value, found = run(base, valid=[4, 5], weight=weight, draws=0)
    pool = [0, 1, 2, 3]

    def term(head):
        if base == "dpo":
            against = sum(
                4 * q * math.exp(BETA * (H[i] - H[head]))
                for q, i in zip(q_of(pool), pool, strict=True)
            )
            return math.log1p(against)
        return sum(q * pair(base, H[head], H[i]) for q, i in zip(q_of(pool), pool, strict=True))

    assert found.responses[:2] == [5, 4]
    assert value == pytest.approx(term(5) + weight * term(4))


def test_appendix_e_is_the_named_loss():
    value, _ = run("dpo", valid=[4, 5], weight=0.3, draws=0)
    order = [5, 4, 0, 1, 2, 3]
    named = losses.hps(
        POLICY[order],
        REF[order],
        torch.tensor(SCORES[order]),
        gamma=GAMMA,
        beta=BETA,
        valid=torch.tensor([True, True, False, False, False, False]),
        valid_weight=0.3,
    )
    assert value == pytest.approx(named.item())


@pytest.mark.parametrize("base", BASES)
def test_one_negative_makes_all_modes_equal(base):
    scores = SCORES[[1, 3]]
    found = []
    for negatives in ({"mode": "bt"}, {"mode": "pl"}, {}, {"draws": 0}, {"draws": 3}):
        config = NegativesConfig(**negatives)
        chosen = plan(config, scores, [0], GAMMA, lambda n: n, likelihood=base == "dpo")
        assert chosen.responses == [0, 1]
        settings = HpsLossConfig(base=base, beta=BETA)
        found.append(loss(settings, POLICY[[1, 3]], REF[[1, 3]], chosen).item())
    assert found == pytest.approx([pair(base, H[1], H[3])] * 5)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(
    "negatives",
    [{"mode": "bt"}, {"mode": "pl"}, {}, {"draws": 0}, {"draws": 4}, {"importance": "q"}],
)
def test_gradients_are_those_of_finite_differences(base, negatives):
    config = NegativesConfig(**negatives)
    found = plan(config, SCORES, [1], GAMMA, lambda n: n, likelihood=base == "dpo")
    settings = HpsLossConfig(base=base, beta=BETA)
    policy, ref = POLICY[found.responses].clone().requires_grad_(), REF[found.responses]
    assert torch.autograd.gradcheck(lambda p: loss(settings, p, ref, found), policy)


@pytest.mark.parametrize("base", BASES)
def test_metrics_are_of_the_chosen_response(base):
    metrics = {}
    run(base, metrics, draws=0)
    assert metrics["rewards/chosen"].item() == pytest.approx(BETA * H[1])
    rejected = np.mean([H[i] for i in (0, 3, 4, 5)])
    assert metrics["rewards/rejected"].item() == pytest.approx(BETA * rejected)
    assert metrics["rewards/accuracies"].item() == 0  # H[4] = 1 wins


@pytest.mark.parametrize("base", BASES)
def test_gaps_of_ten_thousand_stay_finite(base):
    config = NegativesConfig(draws=0)
    scores = np.array([1.0, 0.0, 0.5])
    found = plan(config, scores, [0], 500.0, lambda n: n, likelihood=base == "dpo")
    settings = HpsLossConfig(base=base, beta=BETA)
    policy = torch.tensor([-1e4, 0.0, -1.0], requires_grad=True)
    value = loss(settings, policy[found.responses], torch.zeros(len(found.responses)), found)
    value.backward()
    assert value.isfinite()
    assert policy.grad.isfinite().all()
