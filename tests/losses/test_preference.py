import doctest
import inspect
import math
from fractions import Fraction
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from pyfast import losses
from pyfast.losses import dpo, plackett_luce_top1, preference, swepo

LN2, LN3, LN4 = math.log(2), math.log(3), math.log(4)


def double(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def random_logps(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    policy = -40 + 6 * torch.randn(*shape, generator=generator, dtype=torch.float64)
    ref = -40 + 6 * torch.randn(*shape, generator=generator, dtype=torch.float64)
    return policy.to(dtype), ref.to(dtype)


def loop_loss(scores, positives):
    """One group in Python floats: every response in the denominator, `positives` above it."""
    top = max(scores)
    best = max(scores[i] for i in positives)
    everything = top + math.log(math.fsum(math.exp(s - top) for s in scores))
    good = best + math.log(math.fsum(math.exp(scores[i] - best) for i in positives))
    return everything - good


# By hand ------------------------------------------------------------------------------------


def test_dpo_by_hand():
    # beta h = (ln 3, 0): the chosen has odds 3 to 1.
    loss = dpo(double([2 * LN3 - 7, -9]), double([-7, -9]), beta=0.5)
    assert loss.item() == pytest.approx(math.log(4 / 3), rel=1e-14)


def test_dpo_default_beta_is_a_tenth():
    loss = dpo(double([10 * LN3, 0]), double([0, 0]))
    assert loss.item() == pytest.approx(math.log(4 / 3), rel=1e-14)


def test_plackett_luce_top1_by_hand():
    # e^h = (4, 1, 3): the chosen has 4 of 8.
    policy, ref = double([LN4 - 5, -6, LN3 - 8]), double([-5, -6, -8])
    assert plackett_luce_top1(policy, ref, beta=1).item() == pytest.approx(LN2, rel=1e-14)


def test_plackett_luce_top1_default_beta_is_a_tenth():
    policy = double([10 * LN4, 0, 10 * LN3])
    assert plackett_luce_top1(policy, double([0, 0, 0])).item() == pytest.approx(LN2, rel=1e-14)


def test_swepo_by_hand():
    # Mean reward 1.5; e^{h} 2^{r} = (1, 3, 2, 1) * (8, 2, 4, 1) = (8, 6, 8, 1).
    policy, ref = double([-3, LN3 - 1, LN2 - 2, -2]), double([-3, -1, -2, -2])
    rewards = double([3, 1, 2, 0])
    loss = swepo(policy, ref, rewards, beta=1, alpha=LN2)
    assert loss.item() == pytest.approx(math.log(23 / 16), rel=1e-14)
    loss = swepo(policy, ref, rewards, beta=1, alpha=LN2, positives="top")
    assert loss.item() == pytest.approx(math.log(23 / 8), rel=1e-14)
    # Without the reward term the weights are (1, 3, 2, 1).
    loss = swepo(policy, ref, rewards, beta=1, alpha=0)
    assert loss.item() == pytest.approx(math.log(7 / 3), rel=1e-14)


def test_swepo_default_beta_and_alpha():
    # 0.1 h = (ln 4, 0), rewards (ln 3, 0): odds of 12 to 1.
    loss = swepo(double([10 * LN4, 0]), double([0, 0]), double([LN3, 0]))
    assert loss.item() == pytest.approx(math.log(13 / 12), rel=1e-14)


def test_swepo_finds_its_positive_anywhere_in_the_group():
    policy, ref, rewards = double([0, 0, LN4]), double([0, 0, 0]), double([0, 0, 1])
    for positives in ("mean", "top"):
        loss = swepo(policy, ref, rewards, beta=1, alpha=0, positives=positives)
        assert loss.item() == pytest.approx(math.log(6 / 4), rel=1e-14)


def test_reductions_by_hand():
    policy = double([LN3, 0, LN4, 0, LN3, 0, 0])
    ref, offsets = torch.zeros_like(policy), torch.tensor([0, 2, 5, 7])
    expected = [math.log(4 / 3), LN2, LN2]
    out = {
        reduction: plackett_luce_top1(policy, ref, beta=1, offsets=offsets, reduction=reduction)
        for reduction in ("none", "sum", "mean")
    }
    assert out["none"].tolist() == pytest.approx(expected, rel=1e-14)
    assert out["sum"].item() == pytest.approx(sum(expected), rel=1e-14)
    assert out["mean"].item() == pytest.approx(sum(expected) / 3, rel=1e-14)


# Identities ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_negative_is_dpo_is_minus_logsigmoid(dtype):
    policy, ref = random_logps(50, 2, dtype=dtype)
    pl = plackett_luce_top1(policy, ref, beta=0.3, reduction="none")
    ratios = policy - ref
    assert torch.equal(pl, dpo(policy, ref, beta=0.3, reduction="none"))
    expected = -logsigmoid(0.3 * (ratios[:, 0] - ratios[:, 1]))
    # Scores are scaled before they are subtracted, the formula does it after.
    tolerance = 8 * torch.finfo(dtype).eps * float(ratios.abs().max())
    torch.testing.assert_close(pl, expected, rtol=tolerance, atol=0)


@pytest.mark.parametrize("size", [2, 3, 9])
def test_plackett_luce_top1_is_the_formula_of_s_dpo(size):
    policy, ref = random_logps(20, size)
    ratios = policy - ref
    gaps = ratios[:, 1:] - ratios[:, :1]
    expected = -logsigmoid(-(0.7 * gaps).exp().sum(1).log())
    loss = plackett_luce_top1(policy, ref, beta=0.7, reduction="none")
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-14)


def test_stays_finite_where_the_formula_of_s_dpo_overflows():
    policy = torch.tensor([0.0, 89.0, 88.0], requires_grad=True)
    ref = torch.zeros(3)
    naive = -logsigmoid(-(policy[1:] - policy[0]).exp().sum().log())
    assert naive == math.inf
    loss = plackett_luce_top1(policy, ref, beta=1.0)
    loss.backward()
    assert loss.item() == pytest.approx(89 + math.log1p(math.exp(-1)), rel=1e-6)
    sigmoid = 1 / (1 + math.exp(-1))
    assert policy.grad.tolist() == pytest.approx([-1, sigmoid, 1 - sigmoid], rel=1e-6)


def test_swepo_with_the_chosen_on_top_and_no_reward_weight_is_plackett_luce():
    policy, ref = random_logps(30, 5)
    rewards = torch.rand(30, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rewards[:, 0] = 2.0
    arguments = {"beta": 0.4, "reduction": "none"}
    expected = plackett_luce_top1(policy, ref, **arguments)
    assert torch.equal(swepo(policy, ref, rewards, alpha=0, positives="top", **arguments), expected)
    # Raising the rewards' weight lifts the chosen over the rest, so the loss must fall.
    assert (swepo(policy, ref, rewards, alpha=1, positives="top", **arguments) < expected).all()


def test_rewards_may_be_shifted():
    policy, ref = random_logps(6)
    rewards = double([0.25, 0.5, -1.0, 0.75, 0.0, 0.5])
    for positives in ("mean", "top"):
        expected = swepo(policy, ref, rewards, positives=positives)
        torch.testing.assert_close(
            swepo(policy, ref, rewards + 1e6, positives=positives), expected, rtol=1e-12, atol=0
        )


# Ties and small groups ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reward", [0.1, -0.7, 1e-30, 12345.678, 0.0])
@pytest.mark.parametrize("size", [2, 3, 7, 10, 1000])
def test_equal_rewards_make_the_first_the_positive(size, reward, dtype):
    # The rounded mean of equal numbers may lie below them: then all would be positives.
    policy, ref = random_logps(size, dtype=dtype)
    rewards = torch.full((size,), reward, dtype=dtype)
    expected = plackett_luce_top1(policy, ref)
    assert expected > 0
    for positives in ("mean", "top"):
        assert torch.equal(swepo(policy, ref, rewards, positives=positives), expected)


def test_of_equal_best_rewards_top_takes_the_first_and_mean_takes_both():
    policy, ref, rewards = double([0, LN2, LN4]), double([0, 0, 0]), double([0, 1, 1])
    top = swepo(policy, ref, rewards, beta=1, alpha=0, positives="top")
    assert top.item() == pytest.approx(math.log(7 / 2), rel=1e-14)
    mean = swepo(policy, ref, rewards, beta=1, alpha=0, positives="mean")
    assert mean.item() == pytest.approx(math.log(7 / 6), rel=1e-14)


def test_reward_equal_to_the_mean_is_not_above_it():
    policy, ref, rewards = double([LN3, 0, 0]), double([0, 0, 0]), double([0.3, 0.2, 0.1])
    loss = swepo(policy, ref, double([3, 2, 1]), beta=1, alpha=0)
    assert loss.item() == pytest.approx(math.log(5 / 3), rel=1e-14)
    assert swepo(policy, ref, rewards, beta=1, alpha=0, positives="top") == loss


def test_group_of_one_has_no_loss_and_no_gradient_but_counts_in_the_mean():
    policy = double([-3, LN3 - 2, -2]).requires_grad_()
    ref, rewards, offsets = double([-4, -2, -2]), double([5, 1, 0]), torch.tensor([0, 1, 3])
    for loss in (
        plackett_luce_top1(policy, ref, beta=1, offsets=offsets),
        swepo(policy, ref, rewards, beta=1, alpha=0, offsets=offsets),
    ):
        assert loss.item() == pytest.approx(math.log(4 / 3) / 2, rel=1e-14)
        (gradient,) = torch.autograd.grad(loss, policy)
        assert gradient.tolist() == pytest.approx([0, -0.125, 0.125], rel=1e-14)


# Gradients ----------------------------------------------------------------------------------

LAYOUTS = {
    "one": ((6,), None),
    "batch": ((3, 4), None),
    "ragged": ((10,), torch.tensor([0, 3, 4, 10])),
    "pair": ((2,), None),
    "pairs": ((4, 2), None),
    "ragged pairs": ((6,), torch.tensor([0, 2, 4, 6])),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("positives", ["mean", "top"])
def test_gradcheck_of_swepo(positives, layout):
    shape, offsets = LAYOUTS[layout]
    inputs = (*random_logps(*shape), random_logps(*shape, seed=5)[0])

    def loss(policy, ref, rewards):
        return swepo(
            policy, ref, rewards, alpha=0.3, positives=positives, offsets=offsets, reduction="none"
        )

    assert torch.autograd.gradcheck(loss, tuple(x.requires_grad_() for x in inputs))


@pytest.mark.parametrize(
    ("loss", "layout"),
    [(dpo, layout) for layout in LAYOUTS if "pair" in layout]
    + [(plackett_luce_top1, layout) for layout in LAYOUTS],
)
def test_gradcheck_of_the_chosen_against_the_rest(loss, layout):
    shape, offsets = LAYOUTS[layout]

    def call(policy, ref):
        return loss(policy, ref, beta=0.2, offsets=offsets, reduction="none")

    assert torch.autograd.gradcheck(call, tuple(x.requires_grad_() for x in random_logps(*shape)))


def test_gradient_in_closed_form():
    policy, ref = (x.requires_grad_() for x in random_logps(4, 6))
    rewards = random_logps(4, 6, seed=3)[0].requires_grad_()
    loss = swepo(policy, ref, rewards, beta=0.2, alpha=0.3, reduction="sum")
    gradients = torch.autograd.grad(loss, (policy, ref, rewards))
    with torch.no_grad():
        scores = 0.2 * (policy - ref) + 0.3 * rewards
        above = rewards > rewards.mean(1, keepdim=True)
        slope = scores.softmax(1) - scores.masked_fill(~above, -math.inf).softmax(1)
    for gradient, factor in zip(gradients, (0.2, -0.2, 0.3), strict=True):
        torch.testing.assert_close(gradient, factor * slope, rtol=1e-11, atol=1e-13)


def test_gradient_asked_of_the_policy_alone():
    policy, ref = random_logps(4, 3)
    policy.requires_grad_()
    plackett_luce_top1(policy, ref).backward()
    assert policy.grad.abs().min() > 0
    assert ref.grad is None
    assert not plackett_luce_top1(policy.detach(), ref).requires_grad


@pytest.mark.parametrize("layout", ["one", "batch", "ragged"])
def test_gradient_in_weights_of_which_some_are_0(layout):
    """That of a weight of 0 is the limit of those above it; a chosen response's weight has none."""
    shape, offsets = {
        "one": ((6,), None),
        "batch": ((2, 3), None),
        "ragged": ((6,), torch.tensor([0, 4, 5, 6])),
    }[layout]
    policy, ref = random_logps(*shape)
    weights = double([0.0, 0.0, 1.0, 0.0, 0.5, 2.0]).reshape(shape)
    how = {"beta": 0.3, "margin": 0.2, "offsets": offsets, "reduction": "none"}

    def gradients(w):
        leaves = policy.clone().requires_grad_(), w.clone().requires_grad_()
        loss = plackett_luce_top1(leaves[0], ref, weights=leaves[1], **how)
        scale = torch.linspace(1, 2, loss.numel(), dtype=loss.dtype).reshape(loss.shape)
        return loss.detach(), *torch.autograd.grad((loss * scale).sum(), leaves)

    found, near = gradients(weights), gradients(weights.clamp(min=1e-12))
    for at_0, limit in zip(found, near, strict=True):
        torch.testing.assert_close(at_0, limit, rtol=1e-9, atol=1e-9)
    assert found[2].reshape(-1)[0] == 0
    assert found[2].reshape(-1)[1] > 0
    plain = plackett_luce_top1(policy, ref, weights=weights, **how)
    torch.testing.assert_close(found[0], plain, rtol=1e-13, atol=1e-15)


def test_all_weights_0_and_extreme_scores_have_finite_gradients():
    for gap in (1e4, -1e4):
        policy = torch.tensor([gap, 0.0, 0.0], requires_grad=True)
        weights = torch.zeros(3, requires_grad=True)
        loss = plackett_luce_top1(policy, torch.zeros(3), beta=1.0, weights=weights)
        gradients = torch.autograd.grad(loss, (policy, weights))
        assert loss == 0
        assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_weights_do_not_widen_the_loss(backend):
    policy, ref, weights = torch.randn(3), torch.zeros(3), torch.ones(3, dtype=torch.float64)
    how = {"weights": weights, "backend": backend}
    assert plackett_luce_top1(policy, ref, **how).dtype is torch.float32
    assert plackett_luce_top1(policy.double(), ref, **how).dtype is torch.float64
    how["weights"] = double([1.0, 1e300, 1e-300])  # neither fits float32, but their logarithms do
    found = plackett_luce_top1(policy, ref, **how)
    expected = plackett_luce_top1(policy.double(), ref.double(), **how)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


# Layouts ------------------------------------------------------------------------------------


def call(name, policy, ref, rewards, **arguments):
    if name == "swepo":
        return swepo(policy, ref, rewards, **arguments)
    return getattr(losses, name)(policy, ref, **arguments)


@pytest.mark.parametrize("name", ["dpo", "plackett_luce_top1", "swepo"])
def test_layouts_agree_to_the_bit(name):
    size = 2 if name == "dpo" else 5
    inputs = (*random_logps(7, size, dtype=torch.float32), torch.rand(7, size))
    batch = call(name, *inputs, reduction="none")
    offsets = torch.arange(8) * size
    for kind in (torch.int32, torch.int64):
        flat = [x.reshape(-1) for x in inputs]
        ragged = call(name, *flat, offsets=offsets.to(kind), reduction="none")
        assert torch.equal(batch, ragged)
    one = [call(name, *(x[g] for x in inputs), reduction="none") for g in range(7)]
    assert batch.shape == (7,)
    assert one[0].shape == ()
    assert torch.equal(batch, torch.stack(one))
    torch.testing.assert_close(call(name, *inputs), batch.mean())
    torch.testing.assert_close(call(name, *inputs, reduction="sum"), batch.sum())


@pytest.mark.parametrize("name", ["dpo", "plackett_luce_top1", "swepo"])
def test_strided_inputs_work_and_stay_as_they_were(name):
    size = 2 if name == "dpo" else 4
    inputs = (*random_logps(5, size), torch.rand(5, size))
    expected = call(name, *inputs, reduction="none")
    strided = [x.t().contiguous().t() for x in inputs]
    copies = [x.clone() for x in strided]
    assert not strided[0].is_contiguous()
    assert torch.equal(call(name, *strided, reduction="none"), expected)
    assert all(torch.equal(x, copy) for x, copy in zip(strided, copies, strict=True))


@st.composite
def ragged_groups(draw):
    groups = []
    for size in draw(st.lists(st.integers(1, 8), min_size=1, max_size=6)):
        logps = st.lists(st.floats(-1e4, 0), min_size=size, max_size=size)
        # Eighths: sums are exact, so that the loop and the tensors agree on what is above.
        rewards = st.lists(st.integers(-20, 20).map(lambda n: n / 8), min_size=size, max_size=size)
        groups.append((draw(logps), draw(logps), draw(rewards)))
    return groups


def flatten(groups):
    tensors = [double([*chain(*part)]) for part in zip(*groups, strict=True)]
    ends = torch.tensor([len(group[0]) for group in groups]).cumsum(0)
    return *tensors, torch.cat([torch.zeros(1, dtype=torch.int64), ends])


@settings(max_examples=100, deadline=None)
@given(ragged_groups(), st.sampled_from([0.1, 1.0, 5.0]))
def test_plackett_luce_top1_agrees_with_a_loop(groups, beta):
    policy, ref, _, offsets = flatten(groups)
    expected = [
        loop_loss([beta * (p - q) for p, q in zip(policy, ref, strict=True)], [0])
        for policy, ref, _ in groups
    ]
    loss = plackett_luce_top1(policy, ref, beta=beta, offsets=offsets, reduction="none")
    torch.testing.assert_close(loss, double(expected), rtol=1e-9, atol=1e-9)


@settings(max_examples=150, deadline=None)
@given(ragged_groups(), st.sampled_from([0.0, 1.0, 30.0]), st.sampled_from(["mean", "top"]))
def test_swepo_agrees_with_a_loop(groups, alpha, positives):
    expected = []
    for policy, ref, rewards in groups:
        exact = [Fraction(reward) for reward in rewards]
        mean = sum(exact) / len(exact)
        chosen = [i for i, reward in enumerate(exact) if reward > mean]
        if positives == "top" or not chosen:
            chosen = [exact.index(max(exact))]
        scores = [
            2.0 * (p - q) + alpha * float(reward - mean)
            for p, q, reward in zip(policy, ref, exact, strict=True)
        ]
        expected.append(loop_loss(scores, chosen))
    policy, ref, rewards, offsets = flatten(groups)
    loss = swepo(
        policy,
        ref,
        rewards,
        beta=2.0,
        alpha=alpha,
        positives=positives,
        offsets=offsets,
        reduction="none",
    )
    torch.testing.assert_close(loss, double(expected), rtol=1e-9, atol=1e-9)


def test_order_of_the_negatives_does_not_matter():
    policy, ref = random_logps(9)
    order = torch.cat([torch.tensor([0]), 1 + torch.randperm(8)])
    moved = order.roll(3)
    rewards = double([8, 1, 2, 3, 4, 5, 6, 7, 0])
    pl = plackett_luce_top1(policy, ref)
    torch.testing.assert_close(plackett_luce_top1(policy[order], ref[order]), pl)
    assert abs(plackett_luce_top1(policy.roll(1), ref.roll(1)) - pl) > 1e-3
    # SWEPO knows its positives by their rewards, so the whole group may move.
    torch.testing.assert_close(
        swepo(policy[moved], ref[moved], rewards[moved]), swepo(policy, ref, rewards)
    )


# Extremes and dtypes ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gaps_of_1e4(sign, dtype):
    policy = torch.tensor([[sign * 1e4, 0, 0], [0, sign * 1e4, -sign * 1e4]], dtype=dtype)
    policy.requires_grad_()
    ref, rewards = torch.zeros(2, 3, dtype=dtype), torch.tensor([[1.0, 0, 0], [1, 0, 0]])
    wins, loses = 0.0, 1e4
    expected = [wins if sign > 0 else loses + math.log(2), loses]
    slope = [[0.0, 0, 0] if sign > 0 else [-1, 0.5, 0.5], [-1, 1, 0] if sign > 0 else [-1, 0, 1]]
    for loss in (
        plackett_luce_top1(policy, ref, beta=1, reduction="none"),
        swepo(policy, ref, rewards, beta=1, alpha=0, reduction="none"),
    ):
        (gradient,) = torch.autograd.grad(loss.sum(), policy)
        assert loss.tolist() == pytest.approx(expected, rel=1e-6, abs=0)
        assert gradient.tolist() == [pytest.approx(row, abs=1e-6) for row in slope]


def test_groups_of_1_to_1000_with_extreme_scores():
    sizes = [1, 1000, 2, 3, 999, 1, 17]
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    generator = torch.Generator().manual_seed(2)
    policy = (torch.rand(sum(sizes), generator=generator) * 2 - 1) * 1e4
    policy.requires_grad_()
    ref = torch.zeros_like(policy)
    loss = plackett_luce_top1(policy, ref, beta=1, offsets=offsets, reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), policy)
    assert torch.isfinite(gradient).all()
    groups = policy.detach().double().split(sizes)
    expected = [loop_loss(group.tolist(), [0]) for group in groups]
    assert loss.tolist() == pytest.approx(expected, rel=1e-6)
    for part in gradient.split(sizes):
        assert part.sum().item() == pytest.approx(0, abs=1e-5)


def test_thread_count_does_not_change_a_bit():
    sizes = torch.randint(1, 60, (3000,))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    inputs = 30 * torch.randn(3, int(offsets[-1]))
    threads, outcomes = torch.get_num_threads(), []
    try:
        for n_threads in (1, 2, 5):
            torch.set_num_threads(n_threads)
            policy = inputs[0].clone().requires_grad_()
            loss = swepo(policy, *inputs[1:], offsets=offsets, reduction="none")
            outcomes.append((loss, *torch.autograd.grad(loss.mean(), policy)))
    finally:
        torch.set_num_threads(threads)
    for loss, gradient in outcomes[1:]:
        assert torch.equal(loss, outcomes[0][0])
        assert torch.equal(gradient, outcomes[0][1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["dpo", "plackett_luce_top1", "swepo"])
def test_half_types_are_computed_in_float32(name, dtype):
    size = 2 if name == "dpo" else 6
    half = [x.to(dtype) for x in (*random_logps(8, size), torch.rand(8, size))]
    wide = [x.float() for x in half]
    half[0].requires_grad_()
    wide[0].requires_grad_()
    loss, expected = call(name, *half), call(name, *wide)
    assert loss.dtype is torch.float32
    assert torch.equal(loss, expected)
    loss.backward()
    expected.backward()
    assert half[0].grad.dtype is dtype
    assert torch.equal(half[0].grad, wide[0].grad.to(dtype))


def test_half_types_are_widened_before_the_log_ratio():
    # 60000 - -60000 does not fit float16.
    policy = torch.tensor([-60000.0, 60000.0], dtype=torch.float16)
    assert dpo(policy, -policy, beta=0.5).item() == pytest.approx(120000.0)


def test_wider_of_two_dtypes_is_kept():
    policy, ref = random_logps(4, 2)
    rewards = torch.rand(4, 2, dtype=torch.float64)
    assert dpo(policy.bfloat16(), ref.float()).dtype is torch.float32
    assert dpo(policy, ref.float()).dtype is torch.float64
    assert dpo(policy.float(), ref).dtype is torch.float64
    assert swepo(policy.float(), ref.float(), rewards).dtype is torch.float32


def test_rewards_are_compared_in_their_own_dtype():
    # In float32 the two rewards are equal, and the first would be taken.
    policy, ref = torch.tensor([math.log(3.0), 0.0]), torch.zeros(2)
    loss = swepo(policy, ref, double([1.0, 1.0 + 1e-12]), beta=1, alpha=0)
    assert loss.item() == pytest.approx(LN4, rel=1e-6)


def test_numbers_of_numpy_are_numbers():
    policy, ref = random_logps(4, 2)
    policy.requires_grad_()
    loss = dpo(policy, ref, beta=np.float32(0.5))
    assert torch.equal(loss, dpo(policy, ref, beta=0.5))
    rewards = torch.rand(4, 2)
    loss = swepo(policy, ref, rewards, beta=np.int64(2), alpha=np.float64(0.25))
    assert torch.equal(loss, swepo(policy, ref, rewards, beta=2, alpha=0.25))


# What is said -------------------------------------------------------------------------------


def test_examples_in_the_docstrings():
    outcome = doctest.testmod(preference)
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_public_names():
    assert losses.__all__ == sorted(losses.__all__)
    for name in sorted(set(losses.__all__) - {"SequenceLogps", "advantages", "sequence_logps"}):
        parameters = inspect.signature(getattr(losses, name)).parameters
        assert {"beta", "offsets", "reduction"} <= set(parameters)
