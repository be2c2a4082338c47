import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pyfast.train import activations

PROMPT, RESPONSES = [4, 9, 12, 7], [[5, 6, 3], [8], [9, 9, 9, 10, 11, 3]]


class Products(TorchDispatchMode):
    """Counts the products over more than 8 numbers that are computed."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.mm.default and args[1].shape[0] > 8:
            self.count += 1
        return function(*args, **(kwargs or {}))


def scored(policy):
    """Log-probs, gradients, numbers kept for the backward pass, and products in it."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logps = policy.logps(PROMPT, RESPONSES)
    weights = torch.linspace(-2, 3, len(logps))
    with Products() as products:
        gradients = torch.autograd.grad((weights * logps).sum(), policy.trainable().values())
    return [logps, *gradients], sum(kept.values()), products.count


def test_the_same_bits_for_less_memory(make_policy, monkeypatch):
    monkeypatch.setattr(activations, "CHEAP_PRODUCT", 8)
    found = {how: scored(make_policy(how=how)) for how in ("none", "selective", "full")}
    expected, all_bytes, fewest = found["none"]
    for how in ("selective", "full"):
        values, kept_bytes, _ = found[how]
        assert all(torch.equal(one, other) for one, other in zip(values, expected, strict=True))
        assert kept_bytes < all_bytes
    # No large product is made twice. Where transformers asks for the gradient of the embeddings
    # beside checkpoints, three layers read them.
    assert found["selective"][2] <= fewest + 3
    assert found["full"][2] > fewest + 10


@pytest.mark.parametrize("how", ["selective", "full"])
def test_sampling_is_untouched(make_policy, how):
    settings = {"max_new_tokens": 6, "temperature": 1.0, "seeds": [3]}
    expected = make_policy().sample([PROMPT], 4, **settings)
    policy = make_policy(how=how)
    policy.logps(PROMPT, RESPONSES).sum().backward()
    assert policy.sample([PROMPT], 4, **settings) == expected
    assert not any(module.training for module in policy.model.modules())


def test_the_reference_has_nothing_to_make_anew(make_policy):
    expected = make_policy().logps(PROMPT, RESPONSES, reference=True)
    policy = make_policy(how="selective")
    assert torch.equal(policy.logps(PROMPT, RESPONSES, reference=True), expected)
