import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import FalconConfig, FalconForCausalLM, OPTConfig, OPTForCausalLM

from pyfast.models import checkpointing
from pyfast.train.errors import UserError
from pyfast.train.policy.policy import Policy

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
    monkeypatch.setattr(checkpointing, "CHEAP_PRODUCT", 8)
    found = {how: scored(make_policy(how=how)) for how in ("none", "selective", "full")}
    expected, all_bytes, fewest = found["none"]
    for how in ("selective", "full"):
        values, kept_bytes, _ = found[how]
        assert all(torch.equal(one, other) for one, other in zip(values, expected, strict=True))
        assert kept_bytes < all_bytes
    assert found["selective"][2] <= fewest  # no large product is made twice
    assert found["full"][2] > fewest + 10


@pytest.mark.parametrize("how", ["selective", "full"])
def test_sampling_is_untouched(make_policy, how):
    settings = {"max_new_tokens": 6, "temperature": 1.0, "seeds": [3]}
    expected = make_policy().sample([PROMPT], 4, **settings)
    policy = make_policy(how=how)
    policy.logps(PROMPT, RESPONSES).sum().backward()
    assert policy.sample([PROMPT], 4, **settings) == expected
    assert not any(module.training for module in policy.model.modules())


def test_the_reference_has_nothing_to_make_anew(make_policy, monkeypatch):
    expected = make_policy().logps(PROMPT, RESPONSES, reference=True)
    calls, checkpoint = [], checkpointing.checkpoint
    monkeypatch.setattr(
        checkpointing, "checkpoint", lambda *a, **k: calls.append(a) or checkpoint(*a, **k)
    )
    policy = make_policy(how="selective")
    assert torch.equal(policy.logps(PROMPT, RESPONSES, reference=True), expected)
    assert calls == []
    policy.logps(PROMPT, RESPONSES)
    assert len(calls) == 2  # one a layer


def with_dropout(kind, tiny, how):
    """A policy that is its reference, of a model whose layers drop out in their own forward."""
    sizes = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}
    sizes |= {"bos_token_id": 2, "eos_token_id": 3}
    if kind == "opt":
        attention = {"num_attention_heads": 2, "ffn_dim": 48, "max_position_embeddings": 64}
        config = OPTConfig(**sizes, **attention, word_embed_proj_dim=32, dropout=0.5)
        make = OPTForCausalLM
    else:
        config = FalconConfig(**sizes, num_attention_heads=2, hidden_dropout=0.5)
        make = FalconForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Policy(make(config), tiny.tokenizer(), rank=2, gradient_checkpointing=how)


@pytest.mark.parametrize("kind", ["opt", "falcon"])
def test_dropout_in_a_layer_stays_off(tiny, kind):
    found = {how: scored(with_dropout(kind, tiny, how))[0] for how in ("none", "selective", "full")}
    reference = with_dropout(kind, tiny, "full").logps(PROMPT, RESPONSES, reference=True)
    for values in found.values():
        assert torch.equal(values[0], reference)  # B is zero
        for one, other in zip(values, found["none"], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_layers_keep_a_forward_of_their_own(make_policy):
    policy = make_policy(how="full")
    expected = policy.logps(PROMPT, RESPONSES)
    layer = policy.model.get_base_model().model.layers[0]
    passes, forward = [], layer.forward
    layer.forward = lambda *a, **k: passes.append(1) or forward(*a, **k)
    own = layer.forward
    assert torch.equal(policy.logps(PROMPT, RESPONSES), expected)
    assert passes == [1]
    assert layer.forward is own
    assert not any("forward" in vars(m) for m in policy.model.get_base_model().model.layers[1:])


def test_a_plain_model_has_layers_too(tiny):
    model = tiny.model()
    assert checkpointing.layers_to_checkpoint(model) == list(model.model.layers)


def test_a_model_without_such_layers_says_so(tiny, make_policy, monkeypatch):
    message = "gradient_checkpointing: Linear does not support it, expected 'none'"
    with pytest.raises(ValueError, match=f"^{message}$"):
        checkpointing.layers_to_checkpoint(torch.nn.Linear(2, 2))
    monkeypatch.setattr(type(tiny.model()), "supports_gradient_checkpointing", False)
    make_policy()
    with pytest.raises(UserError, match=r"^policy\.gradient_checkpointing: LlamaForCausalLM does"):
        make_policy(how="full")
