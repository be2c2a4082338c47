import doctest
import math
from itertools import chain, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from pyfast.losses import reference
from pyfast.losses.reference import Groups, lse_loss, widen

OUT = -math.inf


def loop_lse(values):
    top = max(values)
    if top == OUT:
        return OUT
    return top + math.log(math.fsum(math.exp(value - top) for value in values))


def loop_loss(scores, log_positive, log_rest):
    """One group in Python floats: log sum over P and rest, minus log sum over P."""
    positive = [s + w for s, w in zip(scores, log_positive, strict=True)]
    rest = [s + w for s, w in zip(scores, log_rest, strict=True)]
    return loop_lse(positive + rest) - loop_lse(positive)


def sizes_to_offsets(sizes):
    return torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()])


def columns(groups, dtype):
    """Lay the groups' scores, positive weights and rest weights end to end."""
    return [torch.tensor([*chain(*part)], dtype=dtype) for part in zip(*groups, strict=True)]


def random_case(sizes, dtype=torch.float64, seed=0):
    """Ragged scores, positives with one certain member a group, and a rest that overlaps."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(sizes)
    offsets = sizes_to_offsets(sizes)
    scores = 3 * torch.randn(total, generator=generator, dtype=dtype)
    log_positive = torch.randn(total, generator=generator, dtype=dtype)
    log_rest = torch.randn(total, generator=generator, dtype=dtype)
    outside = torch.rand(total, generator=generator) < 0.4
    outside[offsets[:-1]] = False
    log_positive[outside] = OUT
    log_rest[torch.rand(total, generator=generator) < 0.3] = OUT
    return scores, log_positive, log_rest, offsets


@st.composite
def ragged_groups(draw):
    score = st.floats(-1e4, 1e4)
    weight = st.one_of(st.just(OUT), st.just(0.0), st.floats(-5, 5))
    groups = []
    for size in draw(st.lists(st.integers(1, 7), min_size=1, max_size=5)):
        column = st.lists(weight, min_size=size, max_size=size)
        log_positive = draw(column)
        log_positive[draw(st.integers(0, size - 1))] = draw(st.floats(-5, 5))
        scores = draw(st.lists(score, min_size=size, max_size=size))
        groups.append((scores, log_positive, draw(column)))
    return groups


@settings(max_examples=150, deadline=None)
@given(ragged_groups())
def test_agrees_with_a_loop_over_python_floats(groups):
    flat = columns(groups, torch.float64)
    offsets = sizes_to_offsets([len(scores) for scores, _, _ in groups])
    expected = torch.tensor([loop_loss(*group) for group in groups], dtype=torch.float64)
    torch.testing.assert_close(lse_loss(*flat, offsets), expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=100, deadline=None)
@given(ragged_groups())
def test_float32_losses_and_gradients_are_finite_and_right(groups):
    scores, log_positive, log_rest = columns(groups, torch.float32)
    offsets = sizes_to_offsets([len(group[0]) for group in groups])
    scores.requires_grad_()
    losses = lse_loss(scores, log_positive, log_rest, offsets)
    (gradient,) = torch.autograd.grad(losses.sum(), scores)

    wide = scores.detach().double().requires_grad_()
    expected = lse_loss(wide, log_positive.double(), log_rest.double(), offsets)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), wide)
    # A score and its log-weight are added in float32, so that scores of 1e4 leave 1e-3.
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=4e-3)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=0, atol=4e-3)


def test_gradient_is_softmax_over_all_minus_softmax_over_positives():
    scores, log_positive, log_rest, offsets = random_case([4, 1, 6, 2, 3])
    scores.requires_grad_()
    (gradient,) = torch.autograd.grad(
        lse_loss(scores, log_positive, log_rest, offsets).sum(), scores
    )
    for start, end in pairwise(offsets.tolist()):
        part = slice(start, end)
        both = torch.logaddexp(log_positive[part], log_rest[part])
        expected = (scores[part] + both).softmax(0) - (scores[part] + log_positive[part]).softmax(0)
        torch.testing.assert_close(gradient[part], expected.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("layout", ["one", "batch", "ragged"])
def test_gradcheck_to_second_order(layout):
    scores, log_positive, log_rest, offsets = random_case([4, 4, 4] if layout != "one" else [5])
    if layout == "batch":
        scores, log_positive, log_rest = (x.reshape(3, 4) for x in (scores, log_positive, log_rest))
    offsets = offsets if layout == "ragged" else None

    def loss(s):
        return lse_loss(s, log_positive, log_rest, offsets)

    scores.requires_grad_()
    assert torch.autograd.gradcheck(loss, (scores,))
    assert torch.autograd.gradgradcheck(loss, (scores,))


def test_gradcheck_of_weights():
    scores, log_positive, log_rest, offsets = random_case([3, 4])
    kept_positive, kept_rest = log_positive > OUT, log_rest > OUT

    def loss(positive, rest):
        return lse_loss(
            scores,
            log_positive.masked_scatter(kept_positive, positive),
            log_rest.masked_scatter(kept_rest, rest),
            offsets,
        )

    weights = (log_positive[kept_positive], log_rest[kept_rest])
    assert torch.autograd.gradcheck(loss, tuple(w.requires_grad_() for w in weights))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_layouts_agree_to_the_bit(dtype):
    scores, log_positive, log_rest, offsets = random_case([6] * 5, dtype)
    flat = scores, log_positive, log_rest
    ragged = lse_loss(*flat, offsets)
    batch = lse_loss(*(x.reshape(5, 6) for x in flat))
    one = [lse_loss(*(x.reshape(5, 6)[g] for x in flat)) for g in range(5)]
    assert ragged.shape == batch.shape == (5,)
    assert one[0].shape == ()
    assert torch.equal(ragged, batch)
    assert torch.equal(ragged, torch.stack(one))


def test_a_group_does_not_feel_its_neighbours():
    scores, log_positive, log_rest, offsets = random_case([3, 5, 2])
    before = lse_loss(scores, log_positive, log_rest, offsets)
    scores[3:8] += torch.tensor([1e4, -1e4, 0.0, 3.0, 1e4])
    after = lse_loss(scores, log_positive, log_rest, offsets)
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert before[1] != after[1]


def test_unequal_weights_by_hand():
    # a = (1, 0, 3), c = (1, 2, 0), e^s = (1, 2, 4): P weighs 13, the rest 5.
    scores = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64).log()
    log_positive = torch.tensor([1.0, 0.0, 3.0], dtype=torch.float64).log()
    log_rest = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64).log()
    loss = lse_loss(scores, log_positive, log_rest)
    assert loss.item() == pytest.approx(math.log(18 / 13), rel=1e-14)


@pytest.mark.parametrize("gap", [20.0, 60.0, 80.0])
def test_small_losses_keep_their_digits_in_float32(gap):
    scores = torch.tensor([gap, 0.0], requires_grad=True)
    loss = lse_loss(scores, torch.tensor([0.0, OUT]), torch.tensor([OUT, 0.0]))
    loss.backward()
    assert loss.item() == pytest.approx(math.exp(-gap), rel=1e-5)
    assert scores.grad.tolist() == pytest.approx([-math.exp(-gap), math.exp(-gap)], rel=1e-5)


def test_large_common_shift_costs_no_digits_in_float32():
    scores = torch.tensor([3.0, 1.0, 2.0, 2.0])  # whole numbers: the shifted scores are exact
    weights = torch.tensor([0.0, OUT, OUT, OUT]), torch.tensor([OUT, 0.0, 0.0, 0.0])
    expected = lse_loss(scores, *weights)
    assert expected > 0
    for shift in (1e4, -1e4, 1e6):
        assert torch.equal(lse_loss(scores + shift, *weights), expected)


@pytest.mark.parametrize("gap", [1e4, 1e30])
def test_gaps_of_any_size(gap):
    scores = torch.tensor([[gap, 0.0], [-gap, 0.0], [0.0, gap], [0.0, -gap]], requires_grad=True)
    log_positive = torch.tensor([[0.0, OUT]]).expand(4, 2)
    log_rest = torch.tensor([[OUT, 0.0]]).expand(4, 2)
    losses = lse_loss(scores, log_positive, log_rest)
    losses.sum().backward()
    assert torch.equal(losses, torch.tensor([0.0, gap, gap, 0.0]))
    assert scores.grad.tolist() == [[0.0, 0.0], [-1.0, 1.0], [-1.0, 1.0], [0.0, 0.0]]


def test_group_without_a_rest_has_no_loss_and_no_gradient():
    scores = torch.tensor([5.0, -2.0, 1.0], requires_grad=True)
    losses = lse_loss(scores, torch.zeros(3), torch.full((3,), OUT), torch.tensor([0, 1, 3]))
    losses.sum().backward()
    assert losses.tolist() == [0.0, 0.0]
    assert not torch.signbit(losses).any()
    assert scores.grad.tolist() == [0.0, 0.0, 0.0]


def test_equal_scores_count_the_responses_in_groups_of_1_to_1000():
    sizes = torch.arange(1, 1001)
    offsets = sizes_to_offsets(sizes.tolist())
    total = int(offsets[-1])
    log_positive = torch.full((total,), OUT).index_fill(0, offsets[:-1], 0.0)
    log_rest = torch.zeros(total).index_fill(0, offsets[:-1], OUT)
    losses = lse_loss(torch.full((total,), 7.5), log_positive, log_rest, offsets)
    torch.testing.assert_close(losses, sizes.float().log(), rtol=1e-6, atol=1e-6)


def test_half_types_are_widened_and_wide_ones_kept():
    for dtype, wide in [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ]:
        assert widen(torch.ones(2, dtype=dtype)).dtype is wide
        scores = torch.ones(1000, dtype=dtype)
        log_positive = torch.full((1000,), OUT, dtype=dtype).index_fill(0, torch.tensor([0]), 0.0)
        log_rest = torch.zeros(1000, dtype=dtype).index_fill(0, torch.tensor([0]), OUT)
        loss = lse_loss(scores, log_positive, log_rest)
        assert loss.dtype is wide
        # Summed in bfloat16, 999 ones stop at 256.
        assert loss.item() == pytest.approx(math.log(1000), rel=1e-6)


def test_groups_reduce_segments():
    groups = Groups.of(torch.empty(6), torch.tensor([0, 1, 4, 6], dtype=torch.int32))
    values = torch.tensor([-1.0, 2.0, 5.0, 5.0, -3.0, -4.0])
    assert groups.ids.tolist() == [0, 1, 1, 1, 2, 2]
    assert groups.sum(values).tolist() == [-1.0, 12.0, -7.0]
    assert groups.mean(values).tolist() == [-1.0, 4.0, -3.5]
    assert groups.max(values).tolist() == [-1.0, 5.0, -3.0]
    assert groups.spread(torch.tensor([7, 8, 9])).tolist() == [7, 8, 8, 8, 9, 9]
    mask = torch.tensor([True, False, True, True, False, True])
    assert groups.first(mask).tolist() == [True, False, True, False, False, True]


def test_work_is_not_done_group_by_group():
    class Count(TorchFunctionMode):
        calls = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.calls += 1
            return func(*args, **(kwargs or {}))

    counts = []
    for n_groups in (2, 500):
        case = random_case([1, 4] * (n_groups // 2))
        with Count() as counter:
            lse_loss(*case)
        counts.append(counter.calls)
    assert counts[0] > 0
    assert counts[0] == counts[1]


def test_examples_in_the_docstrings():
    outcome = doctest.testmod(reference)
    assert outcome.attempted > 0
    assert outcome.failed == 0
