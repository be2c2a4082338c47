"""What is found out about a model before it is trusted."""

import pytest
import torch
from made_up import SIZES, one_at_a_time, small
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    MptConfig,
    MptForCausalLM,
)

from pyfast.models.shared_prompt import GroupScorer
from pyfast.models.wide import InFloat32


def draw(*lengths):
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(3, 40, (n,), generator=generator).tolist() for n in lengths]


GROUPS = [(draw(11)[0], draw(100, 3, 40)), (draw(5)[0], draw(70, 70))]


def mpt():
    settings = {"vocab_size": 40, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256}
    return small(MptForCausalLM, MptConfig, **settings, initializer_range=0.3)


def falcon():
    settings = {**SIZES, "alibi": True, "num_kv_heads": 4, "new_decoder_architecture": False}
    del settings["num_key_value_heads"], settings["max_position_embeddings"]
    return small(FalconForCausalLM, FalconConfig, **settings, bias=False)


@pytest.mark.parametrize("make", [mpt, falcon])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_alibi_is_found_out_in_any_type(make, dtype):
    model = make().to(dtype)
    with torch.no_grad():
        scorer = GroupScorer(model)
        found = scorer.logps(GROUPS)
        with InFloat32():
            truth = one_at_a_time(model, GROUPS)
        own = (one_at_a_time(model, GROUPS) - truth).abs().max()
    assert scorer.why_not_shared is not None
    assert (found - truth).abs().max() <= 3 * own + 1e-3
    with pytest.raises(ValueError, match=r"^share: the prompt cannot be shared: "):
        GroupScorer(model, share=True)


def test_a_bidirectional_model_is_refused():
    model = small(LlamaForCausalLM, LlamaConfig, **SIZES)
    forward = model.model.forward

    def both_ways(input_ids, **given):
        length = input_ids.shape[1]
        given["attention_mask"] = torch.zeros(len(input_ids), 1, length, length)
        return forward(input_ids=input_ids, **given)

    model.model.forward = both_ways
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(ValueError, match=r"^model: it is not causal: its hidden states depend"):
            GroupScorer(model.to(dtype))


def crowded(model):
    """Have a model's experts drop what is beyond a capacity: a row's states depend on others."""
    forward = model.model.layers[0].mlp.forward

    def with_capacity(states):
        rows = torch.arange(states.shape[0] * states.shape[1]).view(*states.shape[:2])
        return forward(states) * (rows < 120)[..., None]

    model.model.layers[0].mlp.forward = with_capacity
    return model


def test_a_model_that_minds_company_is_fed_alone():
    settings = {**SIZES, "num_local_experts": 4}
    model = crowded(small(MixtralForCausalLM, MixtralConfig, **settings))
    scorer = GroupScorer(model)
    assert scorer.why_alone.startswith("hidden states of padded rows differ by ")
    with torch.no_grad():
        torch.testing.assert_close(
            scorer.logps(GROUPS), one_at_a_time(model, GROUPS), rtol=1e-4, atol=1e-4
        )
    with pytest.raises(ValueError, match=r"^share: the prompt cannot be shared: hidden states of"):
        GroupScorer(model, share=True)


def test_half_types_are_computed_in_float32():
    model = small(LlamaForCausalLM, LlamaConfig, **SIZES).bfloat16()
    tokens = torch.tensor([draw(30)[0]])
    with torch.no_grad():
        half = model(input_ids=tokens).logits.float()
        with InFloat32():
            wide = model(input_ids=tokens).logits
        exact = model.float()(input_ids=tokens).logits
    assert wide.dtype == torch.float32
    torch.testing.assert_close(wide, exact, rtol=1e-4, atol=1e-4)
    assert (half - exact).abs().max() > 100 * (wide - exact).abs().max()
    assert next(model.parameters()).dtype == torch.float32
