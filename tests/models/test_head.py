"""Heads that are more than their weight, and what is done to logits after them."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from made_up import SIZES, one_at_a_time, small
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import parametrizations, weight_norm
from transformers import LlamaConfig, LlamaForCausalLM

from pyfast.models.causal_lm import CausalLM
from pyfast.models.head import is_plain
from pyfast.models.shared_prompt import GroupScorer

GROUPS = [([4, 9, 12, 7], [[5, 6, 3], [8], [9, 9, 9, 10, 11]]), ([6], [[4, 3], [7, 8, 9, 10]])]


@pytest.fixture
def model():
    return small(LlamaForCausalLM, LlamaConfig, **SIZES)


def assert_right(model, scorer=None, **tolerance):
    scorer = scorer or GroupScorer(model)
    with torch.no_grad():
        expected = one_at_a_time(model, GROUPS)
        tolerance = tolerance or {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(scorer.logps(GROUPS), expected.float(), **tolerance)
    return expected


class Bent(nn.Linear):
    def forward(self, x):
        return super().forward(x) + x.mean(-1, keepdim=True) * torch.arange(40.0) / 9


def with_hook(head):
    head.register_forward_hook(lambda _m, _i, out: 1.5 * out)


def with_pre_hook(head):
    head.register_forward_pre_hook(lambda _m, inputs: (inputs[0] * 0.5,))


def with_patched_forward(head):
    forward = head.forward
    head.forward = lambda x: forward(x) + torch.arange(40.0) / 9


def as_subclass(head):
    head.__class__ = Bent


CHANGES = [
    with_hook,
    with_pre_hook,
    with_patched_forward,
    as_subclass,
    weight_norm,
    parametrizations.spectral_norm,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_head_that_is_more_than_its_weight_takes_its_own_forward(model, change):
    before = assert_right(model)
    assert is_plain(model.lm_head)
    change(model.lm_head)
    assert not is_plain(model.lm_head)
    after = assert_right(model)
    if change is not weight_norm:  # which changes how W is kept, not W
        assert (after - before).abs().max() > 0.1


@pytest.mark.parametrize("change", CHANGES)
def test_a_scorer_made_before_the_head_changed(model, change):
    scorer = GroupScorer(model)
    change(model.lm_head)
    assert_right(model, scorer)


def test_a_patched_linear(model, monkeypatch):
    before, forward = assert_right(model), nn.Linear.forward
    scorer = GroupScorer(model)

    def bent(self, x):
        out = forward(self, x)
        return out + torch.arange(40.0) / 9 if self is model.lm_head else out

    monkeypatch.setattr(nn.Linear, "forward", bent)
    assert (assert_right(model, scorer) - before).abs().max() > 0.1


def new_adapter(model):
    settings = LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False)
    get_peft_model(model, settings)


def added_adapter(model):
    model.add_adapter(LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False))


def more_words(model):
    model.resize_token_embeddings(50)


def another_head(model):
    model.set_output_embeddings(nn.Linear(32, 40))


def tied(model):
    model.lm_head.weight = model.model.embed_tokens.weight


def scaled_in_place(model):
    model.lm_head.weight.data.mul_(1.3)


def doubles(model):
    model.double()


@pytest.mark.parametrize(
    "change",
    [new_adapter, added_adapter, more_words, another_head, tied, scaled_in_place, doubles],
)
def test_a_scorer_made_before_the_model_changed(model, change):
    scorer = GroupScorer(model)
    before = assert_right(model, scorer)
    change(model)
    after = assert_right(model, scorer)
    if change is not doubles:
        assert (after - before).abs().max() > 0.01


def test_an_adapter_merged_and_unloaded(model):
    settings = LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False)
    adapted = get_peft_model(model, settings)
    scorer = GroupScorer(adapted)
    assert_right(adapted, scorer)
    assert_right(adapted.merge_and_unload(), scorer)


def capped(logits):
    return 30 * torch.tanh(logits / 30)


def scaled(logits):
    return 1.01 * logits


def shifted(logits):
    return logits + torch.arange(40) / 99


def suppressed(logits):
    return logits.index_fill(-1, torch.tensor([17]), -1e4)


@pytest.mark.parametrize("after", [capped, scaled, shifted, suppressed])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_follows_the_head_and_is_not_known_is_refused(after, dtype, monkeypatch):
    model = small(LlamaForCausalLM, LlamaConfig, **{**SIZES, "initializer_range": 0.02}).to(dtype)
    scorer = GroupScorer(model)  # logits of hundredths, which a cap at 30 leaves alone
    forward = LlamaForCausalLM.forward

    def changed(self, **given):
        output = forward(self, **given)
        output.logits = after(output.logits)
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", changed)
    message = "^model: LlamaForCausalLM changes its logits after the head in a way that is not"
    with pytest.raises(ValueError, match=message):
        GroupScorer(model)
    with pytest.raises(ValueError, match=message):
        scorer.logps(GROUPS)


def test_what_is_done_before_the_head_is_refused(model, monkeypatch):
    def late(self, input_ids, **_):
        hidden = self.model(input_ids=input_ids).last_hidden_state
        return SimpleNamespace(logits=self.lm_head(hidden / 2))

    monkeypatch.setattr(LlamaForCausalLM, "forward", late)
    with pytest.raises(ValueError, match="changes its hidden states before the head"):
        CausalLM(model)


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_models_from_accelerate(model, kind, fresh_accelerate):
    exact = one_at_a_time(model, GROUPS).detach()
    if kind == "bf16":
        prepared = Accelerator(mixed_precision="bf16", cpu=True).prepare(model)
    else:  # accelerate has it on GPUs alone: what it does, by hand
        forward = model.forward

        def half(*args, **named):
            with torch.autocast("cpu", torch.float16):
                output = forward(*args, **named)
            output.logits = output.logits.float()
            return output

        model.forward, prepared = half, model
    scorer = GroupScorer(prepared)
    theirs = one_at_a_time(prepared, GROUPS)
    assert scorer.lm.autocast_type is (torch.bfloat16 if kind == "bf16" else torch.float16)
    found = scorer.logps(GROUPS)
    assert found.dtype == torch.float32
    assert 0 < (found - exact).abs().max() <= 3 * (theirs - exact).abs().max() + 0.02


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("made", ["inside", "outside"])
def test_models_inside_autocast(model, dtype, made):
    exact = one_at_a_time(model, GROUPS)
    scorer = GroupScorer(model) if made == "outside" else None
    with torch.autocast("cpu", dtype):
        scorer = scorer or GroupScorer(model)
        found = scorer.logps(GROUPS)
        theirs = one_at_a_time(model, GROUPS)
    assert scorer.why_not_shared is None
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() <= 2 * (theirs - exact).abs().max() + 0.02
    model.zero_grad()
    found.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
