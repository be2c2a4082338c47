import pytest
import torch

from pyfast import losses

POLICY = torch.tensor([-12.0, -15.0, -14.0, -9.0, -9.5, -30.0])
REF = torch.tensor([-13.0, -14.0, -14.0, -9.25, -9.0, -28.0])
REWARDS = torch.tensor([0.9, 0.1, 0.4, 2.0, -1.0, 0.0])
OFFSETS = torch.tensor([0, 3, 6])


@pytest.mark.parametrize("name", ["swepo", "hps", "plackett_luce", "lipo_lambda", "ipo", "dpo_k"])
def test_a_step_along_the_advantages_is_a_step_on_the_loss(name):
    """A made-up policy of four parameters: both ways give its gradient."""
    loss = getattr(losses, name)
    theta = torch.tensor([0.3, -1.2, 0.7, 0.1], requires_grad=True)
    features = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))

    def policy():
        return POLICY + torch.tanh(features @ theta)

    direct = loss(policy(), REF, REWARDS, offsets=OFFSETS, beta=0.3)
    (expected,) = torch.autograd.grad(direct, theta)
    found = losses.advantages(loss, policy(), REF, REWARDS, offsets=OFFSETS, beta=0.3)
    assert not found.requires_grad
    (gradient,) = torch.autograd.grad(-(found * policy()).sum() / 2, theta)  # mean of two groups
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)


def test_other_groups_do_not_matter():
    both = losses.advantages(losses.swepo, POLICY, REF, REWARDS, offsets=OFFSETS)
    one = losses.advantages(losses.swepo, POLICY[:3], REF[:3], REWARDS[:3])
    torch.testing.assert_close(both[:3], one)


def test_without_gradients_and_under_inference_mode():
    expected = losses.advantages(losses.plackett_luce_top1, POLICY, REF)
    torch.testing.assert_close(expected.sum(), torch.tensor(0.0), atol=1e-7, rtol=0)
    with torch.no_grad():
        assert torch.equal(losses.advantages(losses.plackett_luce_top1, POLICY, REF), expected)
    with torch.inference_mode():
        found = losses.advantages(losses.plackett_luce_top1, POLICY * 1, REF * 1)
    assert torch.equal(found, expected)


def test_a_reduction_is_refused():
    with pytest.raises(TypeError, match="reduction: expected none"):
        losses.advantages(losses.dpo, POLICY, REF, reduction="mean")


def test_a_name_is_no_loss():
    with pytest.raises(TypeError, match=r"loss: expected a function, such as .* got 'swepo'"):
        losses.advantages("swepo", POLICY, REF)
