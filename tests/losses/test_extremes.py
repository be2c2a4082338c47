"""Every loss at scores of 1e4, in groups of 1 to 1000, where all are equal, or one has no value."""

import inspect
import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from pyfast import losses
from pyfast.losses import fused

EVERY = sorted(set(losses.__all__) - {"SequenceLogps", "advantages", "sequence_logps"})
BACKENDS = [
    (name, backend)
    for name in EVERY
    for backend in ("auto", "reference")
    if backend == "auto" or "backend" in inspect.signature(getattr(losses, name)).parameters
]
CLOSED = {name for name, backend in BACKENDS if backend == "reference"}  # have closed forms too
every_loss = pytest.mark.parametrize(("name", "backend"), BACKENDS)


def outcome(name, backend, policy, rewards, offsets=None, beta=1.0, **arguments):
    """Losses of the groups, and the gradient of their sum."""
    loss, leaf = getattr(losses, name), policy.clone().requires_grad_()
    needs = inspect.signature(loss).parameters.get("rewards", inspect.Parameter)
    more = (rewards,) if needs.default is inspect.Parameter.empty else ()
    arguments |= {} if backend == "auto" else {"backend": backend}
    ref = torch.zeros_like(policy)
    value = loss(leaf, ref, *more, beta=beta, offsets=offsets, reduction="none", **arguments)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


def check(name, backend, policy, rewards, offsets=None, **arguments):
    """Float32 is finite, and as good as the rounding of a score lets it be.

    Judged by float64, and where there is a closed form, not by that form itself.
    """
    scale = float(policy.abs().max())
    rounding = 1e-6 + 2 * torch.finfo(torch.float32).eps * scale
    loss, gradient = outcome(name, backend, policy, rewards, offsets, **arguments)
    judge = "reference" if name in CLOSED else "auto"
    exact, slope = outcome(name, judge, policy.double(), rewards.double(), offsets, **arguments)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(gradient).all()
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=rounding)
    torch.testing.assert_close(gradient.double(), slope, rtol=1e-5, atol=rounding)
    return exact, slope


def sizes_for(name, sizes):
    return torch.tensor([0, *([2] * len(sizes) if name == "dpo" else sizes)]).cumsum(0)


@every_loss
def test_gaps_of_1e4(name, backend):
    policy = torch.tensor([[1e4, 0.0], [0.0, 1e4], [-1e4, 0.0], [5e3, -5e3], [0.0, 1e-4]])
    if name != "dpo":
        policy = torch.cat([policy, torch.tensor([[-1e4], [0.0], [1e4], [5e3], [-1e4]])], 1)
    rewards = torch.tensor([1.0, 0.0, 0.5])[: policy.shape[1]].expand_as(policy)
    check(name, backend, policy, rewards)


@every_loss
def test_groups_of_1_to_1000(name, backend):
    offsets = sizes_for(name, [1, 1000, 2, 3, 999, 1, 17])
    generator = torch.Generator().manual_seed(5)
    policy = (torch.rand(int(offsets[-1]), generator=generator) * 2 - 1) * 1e4
    # Eighths, of which sums are exact: float32 and float64 agree on what is above the mean.
    rewards = torch.randint(0, 9, policy.shape, generator=generator) / 8
    check(name, backend, policy, rewards, offsets)


@every_loss
def test_all_equal(name, backend):
    offsets = sizes_for(name, [1, 1000, 2, 3])
    policy = torch.full((int(offsets[-1]),), -7.5)
    rewards, keep = torch.full_like(policy, 0.1), {"keep_ties": True} if name == "hps" else {}
    loss, _ = check(name, backend, policy, rewards, offsets, **keep)
    if name in ("plackett_luce_top1", "swepo", "hps"):  # one of n, at even odds
        expected = offsets.diff().double().log()
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    if name == "hps":  # where ties are no negatives, there are none
        loss, slope = check(name, backend, policy, rewards, offsets)
        assert not loss.any()
        assert not slope.any()


@pytest.mark.parametrize("name", sorted(CLOSED))
def test_a_wrong_closed_form_is_noticed(name, monkeypatch):
    """The check above must not take its truth from what it checks."""
    for compute in ("_contrast_arrays", "_listwise_arrays"):
        right = getattr(fused, compute)

        def wrong(*arguments, right=right):
            loss, slope = right(*arguments)
            return 1.5 * loss, 1.5 * slope

        monkeypatch.setattr(fused, compute, wrong)
    policy = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    with pytest.raises(AssertionError):
        check(name, "auto", policy, torch.tensor([1.0, 0.0]).expand_as(policy))


@pytest.mark.parametrize("name", EVERY)
def test_minus_infinity_of_a_masked_response(name):
    """Refused with its place; without it, as the message says, the others have values."""
    policy = torch.tensor([-3.0, -5.0, -4.0, -6.0, -math.inf])
    offsets, rewards = torch.tensor([0, 2, 5]), torch.tensor([1.0, 0.0, 1.0, 0.5, 0.0])
    if name == "dpo":
        policy, rewards, offsets = policy[1:], rewards[1:], torch.tensor([0, 2, 4])
    place = len(policy) - 1 - int(offsets[1])
    message = (
        f"^policy_logps must be finite, got -inf in group 1, position {place} "
        r"\(leave a response without a value out of its group\)$"
    )
    with pytest.raises(ValueError, match=message):
        outcome(name, "auto", policy, rewards, offsets)
    kept = slice(0, 2) if name == "dpo" else slice(0, 4)
    without = torch.tensor([0, 2]) if name == "dpo" else torch.tensor([0, 2, 4])
    check(name, "auto", policy[kept], rewards[kept], without)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("dtype", "gap"), [(torch.float32, 89.0), (torch.float64, 710.0)])
def test_where_the_formula_of_s_dpo_gives_inf_and_nan(dtype, gap, backend):
    policy = torch.tensor([[0.0, gap, gap - 1]], dtype=dtype)
    leaf = policy.clone().requires_grad_()
    formula = -logsigmoid(-(leaf[:, 1:] - leaf[:, :1]).exp().sum(1).log())
    assert formula.item() == math.inf
    assert torch.autograd.grad(formula.sum(), leaf)[0].isnan().any()
    loss, gradient = outcome("plackett_luce_top1", backend, policy, policy)
    assert loss.item() == pytest.approx(gap + math.log1p(math.exp(-1)), rel=1e-6)
    share = 1 / (1 + math.exp(-1))
    assert gradient[0].tolist() == pytest.approx([-1, share, 1 - share], rel=1e-6)
