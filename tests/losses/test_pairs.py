import doctest
import importlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfast import losses
from pyfast.losses import dmpo, dpo, dpo_k, exo, ipo, kto, lipo_lambda, nca, slic, sppo

PAIRWISE = {"dpo_k": dpo_k, "ipo": ipo, "exo": exo, "sppo": sppo, "nca": nca, "slic": slic}
OFFSETS = torch.tensor([0, 4, 5, 7, 12])


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def softplus(x):
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


def one_pair(name, win, lose, beta):
    """Each formula for one pair of log-ratios, in Python floats."""
    s, t = beta * win, beta * lose
    if name == "dpo_k":
        return softplus(t - s)
    if name == "ipo":
        return (win - lose - 1 / (2 * beta)) ** 2
    if name == "exo":
        p = 1 / (1 + math.exp(t - s))
        return p * math.log(p / (1 - 1e-3)) + (1 - p) * math.log((1 - p) / 1e-3)
    if name == "sppo":
        return (win - 1 / (2 * beta)) ** 2 + (lose + 1 / (2 * beta)) ** 2
    if name == "nca":
        return softplus(-s) + 0.5 * softplus(s) + 0.5 * softplus(t)
    return max(0.0, 1 - s + t)


@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize("beta", [1.0, 0.4])
def test_one_pair_by_hand(name, beta):
    policy, ref = torch.tensor([-3.0, -5.0]).double(), torch.tensor([-4.0, -4.5]).double()
    for weighting in ("mean", "bt", "pl", "hps"):
        rewards = torch.tensor([1.0, 0.0]).double()
        loss = PAIRWISE[name](policy, ref, rewards, beta=beta, weighting=weighting)
        assert loss.item() == pytest.approx(one_pair(name, 1.0, -0.5, beta), rel=1e-12)


@pytest.mark.parametrize("name", PAIRWISE)
def test_weightings_by_hand(group, name):
    policy, ref, rewards = group  # log-ratios (1, -1, 0, 0.5), ranked 0, 2, 3, 1

    def pair(i, j):
        return one_pair(name, (policy - ref)[i].item(), (policy - ref)[j].item(), 0.5)

    def loss(weighting, r=rewards, **arguments):
        return PAIRWISE[name](policy, ref, r, beta=0.5, weighting=weighting, **arguments).item()

    assert loss("mean") == pytest.approx((pair(0, 1) + pair(0, 2) + pair(0, 3)) / 3, rel=1e-12)
    assert loss("bt") == pytest.approx(pair(0, 1), rel=1e-12)
    assert loss("bt", None) == pytest.approx(pair(0, 3), rel=1e-12)
    tilt = [math.exp(0.7 * r) for r in (0.0, 2.0, 1.0)]
    expected = sum(t * pair(0, i) for t, i in zip(tilt, (1, 2, 3), strict=True)) / sum(tilt)
    assert loss("hps", gamma=0.7) == pytest.approx(expected, rel=1e-12)
    assert loss("hps", gamma=0.0) == pytest.approx(loss("mean"), rel=1e-12)
    expected = loss("mean") + (pair(2, 3) + pair(2, 1)) / 2 + pair(3, 1)
    assert loss("pl") == pytest.approx(expected, rel=1e-12)
    expected = loss("mean") + (pair(1, 2) + pair(1, 3)) / 2 + pair(2, 3)
    assert loss("pl", None) == pytest.approx(expected, rel=1e-12)


def test_bt_takes_the_last_of_equal_rewards(group):
    policy, ref, _ = group
    rewards = torch.zeros(4, dtype=torch.float64)
    loss = dpo_k(policy, ref, rewards, beta=1, weighting="bt")
    assert loss == dpo(policy[[0, 3]], ref[[0, 3]], beta=1)


def test_dpo_k_and_dmpo_of_one_negative_are_dpo():
    logps = torch.randn(2, 6, 2, dtype=torch.float64)
    for loss in (dpo_k, dmpo):
        torch.testing.assert_close(loss(*logps, margin=0.3), dpo(*logps, margin=0.3))


def test_dmpo_by_hand(group):
    policy, ref, _ = group
    mean = (-1 + 0 + 0.5) / 3
    loss = dmpo(policy, ref, beta=2.0, margin=0.25)
    assert loss.item() == pytest.approx(softplus(2 * (mean - 1) + 0.25), rel=1e-12)


def test_slic_pulls_to_the_target(group):
    policy, ref, _ = group
    hinges = [max(0.0, 2 - 1 + s) for s in (-1.0, 0.0, 0.5)]
    chosen = policy[0].item()
    arguments = {"delta": 2.0, "regularizer": 0.1}
    loss = slic(policy, ref, **arguments).item()
    assert loss == pytest.approx(sum(hinges) / 3 - 0.1 * chosen, rel=1e-12)
    target = torch.tensor(-7.0, dtype=torch.float64)
    loss = slic(policy, ref, None, target, **arguments).item()
    assert loss == pytest.approx(sum(hinges) / 3 + 0.7, rel=1e-12)
    inside = sum(max(0.0, 2 - 1 + s + 0.7) for s in (-1.0, 0.0, 0.5)) / 3
    loss = slic(policy, ref, None, target, regularizer_inside=True, **arguments).item()
    assert loss == pytest.approx(inside, rel=1e-12)


def lipo_loop(scores, rewards):
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    rank = {i: place for place, i in enumerate(order, 1)}
    total = 0.0
    for i, r in enumerate(rewards):
        for j, q in enumerate(rewards):
            if r > q:
                gain = abs(2**r - 2**q)
                discount = abs(1 / math.log(1 + rank[i]) - 1 / math.log(1 + rank[j]))
                total += gain * discount * softplus(scores[j] - scores[i])
    return total


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(
            st.tuples(st.floats(-1e4, 1e4), st.sampled_from([0.0, 0.25, 0.5, 1.0])),
            min_size=1,
            max_size=6,
        ),
        min_size=1,
        max_size=4,
    )
)
def test_lipo_lambda_agrees_with_a_loop(groups):
    flat = torch.tensor([pair for group in groups for pair in group], dtype=torch.float64)
    offsets = torch.tensor([0, *(len(group) for group in groups)]).cumsum(0)
    zeros = torch.zeros(len(flat), dtype=torch.float64)
    loss = lipo_lambda(flat[:, 0], zeros, flat[:, 1], beta=1, offsets=offsets, reduction="none")
    expected = [lipo_loop([s for s, _ in group], [r for _, r in group]) for group in groups]
    torch.testing.assert_close(loss, double(expected), rtol=1e-9, atol=1e-9)


def test_kto_by_hand(group):
    policy, ref, _ = group

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    loss = kto(policy, ref, beta=0.5, kl=0.3, desirable_weight=2.0, undesirable_weight=1.5)
    scores = [0.5 * h - 0.15 for h in (1.0, -1.0, 0.0, 0.5)]
    bad = sum(1.5 * sigmoid(s) for s in scores[1:])
    assert loss.item() == pytest.approx((2 * sigmoid(-scores[0]) + bad) / 4, rel=1e-12)
    mask = torch.tensor([True, False, False, True])
    loss = kto(policy, ref, beta=0.5, kl=double(0.3), desirable=mask)
    good = sigmoid(-scores[0]) + sigmoid(-scores[3])
    expected = (good + sigmoid(scores[1]) + sigmoid(scores[2])) / 4
    assert loss.item() == pytest.approx(expected, rel=1e-12)


# Every loss ---------------------------------------------------------------------------------

WITH_REWARDS = {"swepo", "hps", "lipo_lambda"}
ALL = sorted(set(losses.__all__) - {"dpo", "SequenceLogps", "advantages", "sequence_logps"})


def call(name, policy, ref, rewards, **arguments):
    loss = getattr(losses, name)
    if name in WITH_REWARDS:
        return loss(policy, ref, rewards, **arguments)
    return loss(policy, ref, **arguments)


def random_groups(dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logps = 3 * torch.randn(2, 12, generator=generator, dtype=torch.float64)
    rewards = torch.rand(12, generator=generator, dtype=torch.float64)
    return logps[0].to(dtype), logps[1].to(dtype), rewards.to(dtype)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("reward", ["dpo", "simpo", "length_normalized", "kto"])
def test_gradcheck_with_every_reward(name, reward):
    policy, ref, rewards = random_groups()
    lengths = torch.arange(1, 13)

    def loss(p, r):
        return call(
            name,
            p,
            r,
            rewards,
            beta=0.37,
            reward=reward,
            lengths=lengths,
            offsets=OFFSETS,
            reduction="none",
        )

    assert torch.autograd.gradcheck(loss, (policy.requires_grad_(), ref.requires_grad_()))


@pytest.mark.parametrize("name", ALL)
def test_rewards_are_scores_of_another_scale(name):
    """Each reward equals the plain one on log-probs that were scaled by hand."""
    policy, ref, rewards = random_groups()
    lengths = torch.arange(1, 13)
    zeros = torch.zeros_like(ref)
    arguments = {"beta": 0.6, "offsets": OFFSETS, "reduction": "none"}
    for reward, scaled, base in (
        ("length_normalized", policy / lengths, ref / lengths),
        ("simpo", policy / lengths, zeros),
        ("kto", policy * lengths, ref * lengths),
    ):
        loss = call(
            name,
            policy,
            None if reward == "simpo" else ref,
            rewards,
            reward=reward,
            lengths=lengths,
            **arguments,
        )
        expected = call(name, scaled, base, rewards, **arguments)
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_ragged_groups_are_each_group_alone(name):
    policy, ref, rewards = random_groups()
    found = {}
    whole = call(
        name, policy, ref, rewards, beta=0.3, offsets=OFFSETS, reduction="none", metrics=found
    )
    for g in range(4):
        part = slice(OFFSETS[g], OFFSETS[g + 1])
        alone = call(name, policy[part], ref[part], rewards[part], beta=0.3, reduction="none")
        torch.testing.assert_close(whole[g], alone, rtol=1e-12, atol=1e-14)
    batch = call(name, policy.view(3, 4), ref.view(3, 4), rewards.view(3, 4), reduction="none")
    assert batch.shape == (3,)
    mean = call(name, policy.view(3, 4), ref.view(3, 4), rewards.view(3, 4))
    torch.testing.assert_close(mean, batch.mean())
    assert all(torch.isfinite(value) for value in found.values())


@pytest.mark.parametrize("name", sorted(set(ALL) - {"slic", "kto"}))
def test_a_lone_response_has_no_loss(name):
    policy = torch.tensor([-3.0], requires_grad=True)
    loss = call(name, policy, torch.zeros(1), torch.zeros(1))
    loss.backward()
    assert loss.item() == 0
    assert policy.grad.item() == 0


@pytest.mark.parametrize("name", ALL)
def test_half_types_are_computed_in_float32(name):
    half = [x.to(torch.bfloat16) for x in random_groups()]
    loss = call(name, *half, offsets=OFFSETS)
    assert loss.dtype is torch.float32
    torch.testing.assert_close(loss, call(name, *(x.float() for x in half), offsets=OFFSETS))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_autocast_changes_no_bit(name, dtype):
    policy, ref, rewards = random_groups(dtype)

    def outcome():
        found, leaf = {}, policy.clone().requires_grad_()
        loss = call(name, leaf, ref, rewards, offsets=OFFSETS, metrics=found)
        loss.backward()
        return [loss.detach(), leaf.grad, *found.values()]

    expected = outcome()
    for low in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", low):
            inside = outcome()
        for value, alone in zip(inside, expected, strict=True):
            assert value.dtype == alone.dtype
            assert torch.equal(value, alone)


PRECISE = {
    **{name: {"weighting": "hps"} for name in PAIRWISE},
    **{f"{name} pl": {"weighting": "pl"} for name in PAIRWISE},
    **{name: {} for name in ("swepo", "lipo_lambda", "plackett_luce")},
    "hps": {"gamma": 3.0},
    "hps draws": {"gamma": 3.0, "draws": 4},
    "hps valid": {"valid": torch.tensor([1, 1, 0, 1, 1, 1, 1, 1, 0, 0, 1, 0]).bool()},
}


@pytest.mark.parametrize("case", PRECISE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rewards_of_a_narrower_dtype_lose_nothing_more(case, dtype):
    policy, ref, rewards = random_groups()
    rewards = rewards.to(dtype)

    def loss(r):
        torch.manual_seed(0)
        return getattr(losses, case.split()[0])(policy, ref, r, offsets=OFFSETS, **PRECISE[case])

    assert loss(rewards) == pytest.approx(loss(rewards.double()).item(), rel=1e-15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64])
def test_other_arguments_of_a_narrower_dtype_lose_nothing_more(dtype):
    policy, ref, rewards = random_groups()
    kl = torch.tensor(1.3).to(dtype)
    found = kto(policy, ref, kl=kl, beta=0.37)
    assert found.item() == pytest.approx(
        kto(policy, ref, kl=kl.item(), beta=0.37).item(), rel=1e-15
    )
    if dtype is torch.int64:
        return
    rewards = rewards.to(dtype)
    found = losses.plackett_luce_top1(policy, ref, weights=rewards)
    expected = losses.plackett_luce_top1(policy, ref, weights=rewards.double())
    assert found.item() == pytest.approx(expected.item(), rel=1e-15)
    target = torch.tensor(-7.3).to(dtype)
    found = slic(policy, ref, None, target, regularizer=0.1)
    expected = slic(policy, ref, None, target.double(), regularizer=0.1)
    assert found.item() == pytest.approx(expected.item(), rel=1e-15)


@pytest.mark.parametrize("module", ["pairs", "lists", "unpaired", "hard_preference", "metrics"])
def test_examples_in_the_docstrings(module):
    outcome = doctest.testmod(importlib.import_module(f"pyfast.losses.{module}"))
    assert outcome.attempted > 0
    assert outcome.failed == 0


# What is refused ----------------------------------------------------------------------------

TWO, PAIRS = torch.zeros(2), torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: ipo(TWO, TWO, weighting="x"),
            ValueError,
            "weighting must be one of mean, bt, pl, hps, got 'x'",
        ),
        (
            lambda: nca(TWO, TWO, weighting="hps"),
            TypeError,
            "rewards must be a torch.Tensor for weighting hps, got None",
        ),
        (
            lambda: exo(TWO, TWO, smoothing=1.0),
            ValueError,
            "smoothing must be finite and greater than 0 and less than 1.0, got 1.0",
        ),
        (
            lambda: dpo(TWO, TWO, reward="x"),
            ValueError,
            "reward must be one of dpo, simpo, length_normalized, kto, got 'x'",
        ),
        (
            lambda: dpo(TWO, None),
            TypeError,
            "ref_logps must be a torch.Tensor, got None: only simpo needs none",
        ),
        (
            lambda: dpo(TWO, None, reward="simpo"),
            TypeError,
            "lengths must be a torch.Tensor for reward simpo, got None",
        ),
        (
            lambda: dpo(TWO, TWO, reward="simpo", lengths=torch.tensor([3, 0])),
            ValueError,
            "lengths must be greater than 0, got 0 in group 0, position 1",
        ),
        (
            lambda: losses.plackett_luce_top1(TWO, TWO, weights=torch.tensor([1.0, -1.0])),
            ValueError,
            "weights must be at least 0, got -1.0 in group 0, position 1",
        ),
        (
            lambda: lipo_lambda(TWO, TWO, torch.tensor([101.0, 0.0])),
            ValueError,
            "rewards must be at most 100, got 101.0 in group 0, position 0",
        ),
        (
            lambda: slic(TWO, TWO, None, torch.zeros(3), regularizer=1.0),
            ValueError,
            "target_logps must hold one value for each of 1 groups in shape (), got shape (3,)",
        ),
        (
            lambda: slic(PAIRS, PAIRS, None, torch.zeros(1, 2), regularizer=1.0),
            ValueError,
            "target_logps must hold one value for each of 2 groups in shape (2,), got shape (1, 2)",
        ),
        (
            lambda: slic(TWO, TWO, None, [1.0], regularizer=1.0),
            TypeError,
            "target_logps must be a torch.Tensor, got list",
        ),
        (
            lambda: slic(TWO, TWO, None, torch.tensor(1), regularizer=1.0),
            TypeError,
            "target_logps must have a floating-point dtype (float16, bfloat16, float32, float64), "
            "got torch.int64",
        ),
        (
            lambda: slic(TWO, TWO, None, torch.zeros((), device="meta"), regularizer=1.0),
            ValueError,
            "target_logps must be on the device of policy_logps (cpu), got meta",
        ),
        (
            lambda: slic(PAIRS, PAIRS, None, torch.tensor([0.0, math.nan]), regularizer=1.0),
            ValueError,
            "target_logps must be finite, got nan in group 1",
        ),
        (
            lambda: kto(TWO, TWO, kl=torch.tensor(-1.0)),
            ValueError,
            "kl must be finite and at least 0, got -1.0",
        ),
        (
            lambda: kto(TWO, TWO, kl=torch.tensor(math.nan)),
            ValueError,
            "kl must be finite and at least 0, got nan",
        ),
        (
            lambda: kto(TWO, TWO, kl=torch.tensor(True)),
            TypeError,
            "kl must have a number dtype (float16, bfloat16, float32, float64, int32, int64), "
            "got torch.bool",
        ),
        (
            lambda: kto(TWO, TWO, kl=torch.zeros((), device="meta")),
            ValueError,
            "kl must be on the CPU or the device of policy_logps (cpu), got meta",
        ),
        (
            lambda: kto(TWO, TWO, kl=torch.zeros(2)),
            ValueError,
            "kl must be one number, got shape (2,)",
        ),
        (
            lambda: kto(TWO, TWO, desirable=torch.ones(2)),
            TypeError,
            "desirable must have a boolean dtype (bool), got torch.float32",
        ),
        (
            lambda: losses.plackett_luce_top1(
                TWO, TWO, weights=torch.ones(2, requires_grad=True), reduction="x"
            ),
            ValueError,
            "reduction must be one of mean, sum, none, got 'x'",
        ),
        (lambda: dpo(TWO, TWO, margin=math.nan), ValueError, "margin must be finite, got nan"),
    ],
)
def test_bad_arguments(call, kind, message, raises):
    with raises(kind, message):
        call()


def test_values_are_not_looked_at_without_validate():
    policy = torch.tensor([0.0, math.nan])
    assert math.isnan(dpo(policy, TWO, validate=False).item())
    target = policy[1]
    assert math.isnan(slic(TWO, TWO, None, target, regularizer=1.0, validate=False).item())
    assert math.isnan(kto(TWO, TWO, kl=target, validate=False).item())
    for offsets in (None, torch.tensor([0, 2])):
        for backend in ("auto", "reference"):
            arguments = {"offsets": offsets, "backend": backend, "validate": False}
            assert math.isnan(losses.swepo(TWO, TWO, policy, **arguments).item())


def test_weights_count_negatives():
    policy, ref, _ = random_groups()
    weights = torch.ones(12, dtype=torch.float64)
    weights[[2, 8]] = 0.0  # a weight of 0 leaves a negative out
    kept = torch.ones(12, dtype=torch.bool)
    kept[[2, 8]] = False
    without = torch.tensor([0, 3, 4, 6, 10])
    torch.testing.assert_close(
        losses.plackett_luce_top1(policy, ref, weights=weights, offsets=OFFSETS),
        losses.plackett_luce_top1(policy[kept], ref[kept], offsets=without),
        rtol=1e-12,
        atol=0,
    )
