import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfast import losses
from pyfast.losses import dpo, dpo_k, hps, plackett_luce_top1
from pyfast.losses.reference import Groups

OFFSETS = torch.tensor([0, 4, 5, 7, 12])


def random_groups(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(3, 12, generator=generator, dtype=torch.float64)


def by_hand(scores, rewards, gamma, scale=None, m=0.0):
    """One group in Python floats; `scale` replaces N."""
    tilt = [math.exp(gamma * r) for r in rewards[1:]]
    scale = len(tilt) if scale is None else scale
    rest = sum(scale * t / sum(tilt) * math.exp(s) for t, s in zip(tilt, scores[1:], strict=True))
    return math.log((math.exp(scores[0]) + math.exp(m) * rest) / math.exp(scores[0]))


@pytest.mark.parametrize("gamma", [-2.0, 0.0, 0.7, 5.0])
def test_full_by_hand(group, gamma):
    policy, ref, rewards = group
    scores, r = (policy - ref).tolist(), rewards.tolist()
    loss = hps(policy, ref, rewards, gamma=gamma, beta=1)
    assert loss.item() == pytest.approx(by_hand(scores, r, gamma), rel=1e-12)
    loss = hps(policy, ref, rewards, gamma=gamma, beta=1, normalize="sum", margin=0.4)
    assert loss.item() == pytest.approx(by_hand(scores, r, gamma, scale=1, m=0.4), rel=1e-12)


def test_gamma_0_is_plackett_luce_top1():
    policy, ref, rewards = random_groups()
    arguments = {"beta": 0.3, "offsets": OFFSETS, "reduction": "none"}
    torch.testing.assert_close(
        hps(policy, ref, rewards, gamma=0.0, **arguments),
        plackett_luce_top1(policy, ref, **arguments),
        rtol=1e-12,
        atol=1e-14,
    )


def test_one_negative_is_dpo_for_any_gamma():
    policy, ref, rewards = (x[:10].reshape(5, 2) for x in random_groups())
    for gamma in (-3.0, 0.0, 4.0):
        torch.testing.assert_close(hps(policy, ref, rewards, gamma=gamma), dpo(policy, ref))
        torch.testing.assert_close(
            hps(policy, ref, rewards, gamma=gamma, draws=3), dpo(policy, ref)
        )


def test_the_chosen_ones_reward_does_not_count():
    policy, ref, rewards = random_groups()
    before = hps(policy, ref, rewards, offsets=OFFSETS)
    rewards[OFFSETS[:-1]] += 50
    assert hps(policy, ref, rewards, offsets=OFFSETS) == before


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_extreme_tilt_leaves_the_hardest(group, scale):
    policy, ref, rewards = group
    policy.requires_grad_()
    loss = hps(policy, ref, rewards, gamma=scale, beta=1)
    (gradient,) = torch.autograd.grad(loss, policy)
    hardest = 2 if scale > 0 else 1
    expected = math.log1p(3 * math.exp((policy - ref)[hardest].item() - 1))
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert torch.isfinite(gradient).all()
    assert gradient.nonzero().flatten().tolist() == [0, hardest]


@pytest.mark.parametrize("gamma", [5.0, -5.0, 0.0])
def test_rewards_whose_tilt_does_not_fit_the_dtype(gamma):
    """Only differences count: 1e38 gamma overflows, and so do those of the extremes."""
    zeros, rewards = torch.zeros(4), torch.tensor([0.0, 3e38, 1e38, -3e38])
    loss = hps(zeros, zeros, rewards, gamma=gamma)
    assert loss.item() == pytest.approx(math.log(4))
    policy = torch.tensor([0.0, 1.0, 2.0, 3.0])
    found = dpo_k(policy, zeros, rewards, beta=1.0, gamma=gamma, weighting="hps")
    pairs = [math.log1p(math.exp(s)) for s in (1.0, 2.0, 3.0)]
    expected = {5.0: pairs[0], -5.0: pairs[2], 0.0: sum(pairs) / 3}[gamma]
    assert found.item() == pytest.approx(expected)
    drawn = hps(policy, zeros, rewards, beta=1.0, gamma=gamma, draws=3, importance=False)
    assert torch.isfinite(drawn)


def test_draws_without_importance_are_dpo_against_one_drawn_negative(group):
    policy, ref, rewards = group
    pairs = [dpo(policy[[0, i]], ref[[0, i]], beta=1).item() for i in (1, 2, 3)]
    seen = set()
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        arguments = {"draws": 1, "importance": False, "generator": generator}
        loss = hps(policy, ref, rewards, beta=1, gamma=0.3, **arguments).item()
        assert any(loss == pytest.approx(pair, rel=1e-12) for pair in pairs)
        seen.add(round(loss, 9))
    assert len(seen) == 3


def test_one_draw_with_importance_stands_for_all_negatives(group):
    policy, ref, rewards = group
    expected = [math.log1p(3 * math.exp(s - 1)) for s in (-1.0, 0.0, 0.5)]
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        loss = hps(policy, ref, rewards, beta=1, draws=1, generator=generator).item()
        assert any(loss == pytest.approx(value, rel=1e-12) for value in expected)


def test_one_draw_by_equation_10_as_it_reads(group):
    """N q(y) e^s on the drawn one; m draws share N."""
    policy, ref, rewards = group
    tilts = [math.exp(0.3 * r) for r in (0.0, 2.0, 1.0)]
    terms = [3 * t / sum(tilts) * math.exp(s) for t, s in zip(tilts, (-1, 0, 0.5), strict=True)]
    expected = [math.log1p(term / math.e) for term in terms]
    arguments = {"beta": 1, "gamma": 0.3, "importance": "q"}
    seen = set()
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        loss = hps(policy, ref, rewards, draws=1, generator=generator, **arguments).item()
        seen.add(next(i for i in range(3) if loss == pytest.approx(expected[i], rel=1e-12)))
    assert seen == {0, 1, 2}
    generator = torch.Generator().manual_seed(0)
    alone = hps(policy[:2], ref[:2], rewards[:2], draws=7, generator=generator, **arguments)
    assert alone.item() == pytest.approx(dpo(policy[:2], ref[:2], beta=1).item(), rel=1e-12)
    loss = hps(policy, ref, rewards, draws=20_000, generator=generator, **arguments)
    mean = sum(t * term for t, term in zip(tilts, terms, strict=True)) / sum(tilts)
    assert loss.item() == pytest.approx(math.log1p(mean / math.e), abs=0.01)
    loss = hps(policy, ref, rewards, draws=20_000, normalize="sum", **arguments)
    assert loss.item() == pytest.approx(math.log1p(mean / 3 / math.e), abs=0.01)


# Ties ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [-2.0, 0.0, 30.0])
def test_responses_as_good_as_the_chosen_one_are_no_negatives(gamma):
    policy = torch.tensor([1.0, -1.0, 0.0, 0.5, 3.0]).double().requires_grad_()
    rewards, zeros = torch.tensor([3.0, 0.0, 3.0, 2.5, 3.0]).double(), torch.zeros(5).double()
    loss = hps(policy, zeros, rewards, gamma=gamma, beta=1)
    (gradient,) = torch.autograd.grad(loss, policy)
    kept = [0, 1, 3]
    s, r = policy[kept].tolist(), rewards[kept].tolist()
    assert loss.item() == pytest.approx(by_hand(s, r, gamma), rel=1e-12)  # N = 2
    assert gradient[[2, 4]].tolist() == [0, 0]
    tied = hps(policy, zeros, rewards, gamma=gamma, beta=1, keep_ties=True).item()
    expected = by_hand(policy.tolist(), rewards.tolist(), gamma)
    assert tied == pytest.approx(expected, rel=1e-12)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        arguments = {"draws": 3, "generator": generator, "gamma": gamma, "importance": False}
        loss = hps(policy, zeros, rewards, **arguments)
        (gradient,) = torch.autograd.grad(loss, policy)
        assert gradient[[2, 4]].tolist() == [0, 0]
    pairs = [math.log1p(math.exp(x - 1)) for x in s[1:]]
    tilts = [math.exp(gamma * (x - 2.5)) for x in r[1:]]
    expected = sum(p * t for p, t in zip(pairs, tilts, strict=True)) / sum(tilts)
    weighted = dpo_k(policy, zeros, rewards, beta=1, gamma=gamma, weighting="hps")
    assert weighted.item() == pytest.approx(expected, rel=1e-12)


RESPONSE = st.tuples(st.floats(-30, 30), st.sampled_from([0.0, 0.5, 1.0]), st.booleans())


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(RESPONSE, min_size=1, max_size=6), min_size=1, max_size=4),
    st.floats(-6, 6),
    st.booleans(),
    st.booleans(),
    st.floats(0, 3),
)
def test_ties_and_valid_responses_agree_with_a_loop(groups, gamma, keep, printed, weight):
    """Groups whose rewards tie often, one response after the other in Python floats."""

    def loss(group):
        total = 0.0
        for head, (s, r, valid) in enumerate(group):
            if head > 0 and not valid:
                continue
            others = [
                (t, q)
                for i, (t, q, other) in enumerate(group)
                if i != head and (keep or q != r)
                if (i > head if printed else not (other or i == 0))
            ]
            if others:
                one = by_hand([s, *(t for t, _ in others)], [r, *(q for _, q in others)], gamma)
                total += one if head == 0 else weight * one
        return total

    flat = torch.tensor([response for group in groups for response in group], dtype=torch.float64)
    offsets = torch.tensor([0, *(len(group) for group in groups)]).cumsum(0)
    valid = flat[:, 2].bool().index_fill(0, offsets[:-1], True)
    arguments = {"valid": valid, "valid_as_negatives": printed, "valid_weight": weight}
    found = hps(
        flat[:, 0],
        torch.zeros(len(flat)).double(),
        flat[:, 1],
        beta=1,
        gamma=gamma,
        keep_ties=keep,
        offsets=offsets,
        reduction="none",
        **arguments,
    )
    assert found.tolist() == pytest.approx([loss(group) for group in groups], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ["dpo_k", "ipo", "exo", "sppo", "nca", "slic"])
def test_a_group_of_ties_has_no_loss(name):
    policy = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], requires_grad=True)
    rewards = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    arguments = {"weighting": "hps", "reduction": "none", "beta": 1.0}
    loss = getattr(losses, name)(policy, torch.zeros(2, 3), rewards, **arguments)
    loss.sum().backward()
    pair = getattr(losses, name)(policy[1, [0, 2]], torch.zeros(2), beta=1.0)
    assert loss[0] == 0
    assert loss[1] == pair
    assert policy.grad[0].tolist() == [0, 0, 0]
    kept = getattr(losses, name)(policy, torch.zeros(2, 3), rewards, keep_ties=True, **arguments)
    mean = getattr(losses, name)(policy[0], torch.zeros(3), beta=1.0)
    torch.testing.assert_close(kept[0], mean)


def test_ties_of_valid_responses_are_those_of_each_head():
    policy, zeros = torch.tensor([1.0, -1.0, 0.0, 0.5]).double(), torch.zeros(4).double()
    rewards = torch.tensor([2.0, 1.0, 2.0, 1.0]).double()
    valid = torch.tensor([True, True, False, False])
    s, r = policy.tolist(), rewards.tolist()
    first = by_hand([s[0], s[3]], [r[0], r[3]], 0.7)  # not the third, which ties with it
    second = by_hand([s[1], s[2]], [r[1], r[2]], 0.7)  # nor the last one
    loss = hps(policy, zeros, rewards, valid=valid, gamma=0.7, beta=1)
    assert loss.item() == pytest.approx(first + second, rel=1e-12)


def test_draws_follow_q():
    from pyfast.losses.hard_preference import _draw

    tilt = torch.tensor([-math.inf, 0.0, 1.0, 2.0] * 3 + [-math.inf], dtype=torch.float64)
    groups = Groups.of(tilt, torch.tensor([0, 4, 8, 12, 13]))
    n = 4000
    times = _draw(tilt, groups, n, torch.Generator().manual_seed(1))
    q = torch.softmax(tilt[:4], 0)
    for g in range(3):
        counts = times[4 * g : 4 * g + 4]
        assert counts.sum() == n
        assert ((counts / n - q).abs() <= 4.5 * (q * (1 - q) / n).sqrt()).all()
    assert times[12] == 0


def test_many_draws_come_to_the_full_loss(group):
    policy, ref, rewards = group
    generator = torch.Generator().manual_seed(0)
    loss = hps(policy, ref, rewards, beta=1, draws=5000, generator=generator)
    assert loss.item() == pytest.approx(hps(policy, ref, rewards, beta=1).item(), abs=0.03)


def test_the_generator_decides_the_draws():
    policy, ref, rewards = random_groups()
    outcomes = [
        hps(
            policy,
            ref,
            rewards,
            draws=2,
            offsets=OFFSETS,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in (3, 3, 4)
    ]
    assert outcomes[0] == outcomes[1] != outcomes[2]


# Appendix E ---------------------------------------------------------------------------------


def test_two_valid_responses_by_hand(group):
    policy, ref, rewards = group
    valid = torch.tensor([True, False, True, False])
    s, r = (policy - ref).tolist(), rewards.tolist()
    first = by_hand([s[0], s[1], s[3]], [r[0], r[1], r[3]], 0.7)
    second = by_hand([s[2], s[1], s[3]], [r[2], r[1], r[3]], 0.7)
    arguments = {"valid": valid, "gamma": 0.7, "beta": 1}
    loss = hps(policy, ref, rewards, valid_weight=0.25, **arguments)
    assert loss.item() == pytest.approx(first + 0.25 * second, rel=1e-12)
    # As printed: the first has all others as its negatives, the next those after it.
    first, second = by_hand(s, r, 0.7), by_hand(s[2:], r[2:], 0.7)
    loss = hps(policy, ref, rewards, valid_as_negatives=True, **arguments)
    assert loss.item() == pytest.approx(first + second, rel=1e-12)


def test_metrics_of_valid_responses_are_those_of_the_first_loss():
    policy, ref, rewards = random_groups()
    valid = torch.tensor([1, 0, 1, 0, 1, 1, 1, 1, 0, 0, 0, 1]).bool()
    found, expected = {}, {}
    hps(policy, ref, rewards, valid=valid, offsets=OFFSETS, metrics=found)
    kept = [0, 1, 3, 4, 5, 7, 8, 9, 10]  # the chosen ones and what is not valid
    logps, ends = (x[kept] for x in (policy, ref, rewards)), torch.tensor([0, 3, 4, 5, 9])
    hps(*logps, offsets=ends, metrics=expected)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize("keep", [False, True])
def test_valid_in_ragged_groups_is_each_group_alone(keep):
    policy, ref, rewards = random_groups()
    valid = torch.tensor([1, 1, 0, 1, 1, 1, 1, 1, 0, 0, 1, 0]).bool()
    arguments = {"gamma": 0.2, "reduction": "none", "valid_as_negatives": keep}
    whole = hps(policy, ref, rewards, valid=valid, offsets=OFFSETS, **arguments)
    for g in range(4):
        part = slice(OFFSETS[g], OFFSETS[g + 1])
        alone = hps(policy[part], ref[part], rewards[part], valid=valid[part], **arguments)
        torch.testing.assert_close(whole[g], alone, rtol=1e-12, atol=1e-14)
    assert whole[1] == 0
    if not keep:
        assert whole[2] == 0  # both valid: nothing to reject


def test_first_alone_valid_is_the_plain_loss():
    policy, ref, rewards = random_groups()
    valid = torch.zeros(12, dtype=torch.bool).index_fill(0, OFFSETS[:-1], True)
    torch.testing.assert_close(
        hps(policy, ref, rewards, valid=valid, offsets=OFFSETS),
        hps(policy, ref, rewards, offsets=OFFSETS),
        rtol=1e-12,
        atol=0,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"normalize": "sum", "gamma": -1.0},
        {"valid": torch.tensor([1, 1, 0, 1, 1, 1, 1, 1, 0, 0, 1, 0]).bool()},
    ],
)
def test_gradcheck(arguments):
    inputs = tuple(x.requires_grad_() for x in random_groups())

    def loss(policy, ref, rewards):
        return hps(policy, ref, rewards, beta=0.2, offsets=OFFSETS, reduction="none", **arguments)

    assert torch.autograd.gradcheck(loss, inputs)


def test_gradcheck_of_the_closed_form():
    policy, ref, rewards = random_groups()

    def loss(p):
        return hps(p, ref, rewards, offsets=OFFSETS, reduction="none")

    assert torch.autograd.gradcheck(loss, (policy.requires_grad_(),))


@pytest.mark.parametrize("weight", [0.1, 1 / 3, 1e-9])
def test_lambda_is_in_the_losses_own_precision(group, weight):
    policy, ref, rewards = group
    valid = torch.tensor([True, False, True, False])
    whole = hps(policy, ref, rewards, valid=valid, valid_weight=weight, beta=1)
    first, second = (
        hps(policy, ref, rewards, valid=valid, valid_weight=w, beta=1).item() for w in (0.0, 1.0)
    )
    assert whole.item() == pytest.approx(first + weight * (second - first), rel=1e-15)


# What is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"draws": 0}, ValueError, "draws must be at least 1, got 0"),
        ({"draws": 1.5}, TypeError, "draws must be a whole number, got float"),
        (
            {"importance": False},
            ValueError,
            "importance=False needs draws: without them nothing is drawn",
        ),
        (
            {"importance": "q"},
            ValueError,
            "importance='q' needs draws: without them nothing is drawn",
        ),
        (
            {"importance": "p", "draws": 1},
            ValueError,
            "importance must be True, False or 'q', got 'p'",
        ),
        (
            {"importance": False, "normalize": "sum", "draws": 4},
            ValueError,
            "importance=False gives each draw the weight 1, normalize='sum' 1 / draws: "
            "leave out one of them, got both with 4 draws",
        ),
        ({"normalize": "n"}, ValueError, "normalize must be one of mean, sum, got 'n'"),
        ({"gamma": math.inf}, ValueError, "gamma must be finite, got inf"),
        ({"valid_weight": -1}, ValueError, "valid_weight must be finite and at least 0, got -1"),
        (
            {"valid": torch.ones(4)},
            TypeError,
            "valid must have a boolean dtype (bool), got torch.float32",
        ),
        (
            {"valid": torch.tensor([False, True, False, False])},
            ValueError,
            "valid must hold the first response of every group, not so in 0",
        ),
        (
            {"valid": torch.ones(3, dtype=torch.bool)},
            ValueError,
            "valid must have the shape of policy_logps (4,), got (3,)",
        ),
    ],
)
def test_bad_arguments(group, raises, arguments, kind, message):
    with raises(kind, message):
        hps(*group, **arguments)
