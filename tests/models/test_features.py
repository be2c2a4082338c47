"""Feature vectors of responses, against one response at a time in transformers' own forward."""

import pytest
import torch
from made_up import SIZES, one_at_a_time, small
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

from pyfast.models.layout import lay_out
from pyfast.models.shared_prompt import GroupScorer

GROUPS = [
    ([4, 9, 12, 7, 20], [[5, 6, 3], [8], [9, 9, 9, 10, 11, 12, 13]]),
    ([6], [[4, 3], [4, 3], [7, 8, 9, 10], [3], [11, 12]]),
    ([8, 8], [[5]]),
]


def phi3():
    """Frequencies that change at 8 tokens: one call for the short, one for the long."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0, 9.0, 2.0, 6.0],
        "original_max_position_embeddings": 8,
    }
    settings = {**SIZES, "rope_parameters": rope, "original_max_position_embeddings": 8}
    return small(Phi3ForCausalLM, Phi3Config, **settings)


MODELS = {
    "llama": lambda: small(LlamaForCausalLM, LlamaConfig, **SIZES),
    "gemma2": lambda: small(Gemma2ForCausalLM, Gemma2Config, **SIZES, head_dim=8),
    "window": lambda: small(MistralForCausalLM, MistralConfig, **SIZES, sliding_window=6),
    "lengths": phi3,
    "absolute": lambda: small(
        GPT2LMHeadModel, GPT2Config, vocab_size=40, n_embd=32, n_layer=2, n_head=4
    ),
    "no attention": lambda: small(
        MambaForCausalLM, MambaConfig, vocab_size=40, hidden_size=16, num_hidden_layers=2
    ),
}


def slow_features(model, prompt, response, features):
    """One response, no cache, no padding: the mean of the last hidden states."""
    ids = torch.tensor([[*prompt, *response]])
    states = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
    first = len(prompt) if features == "response" else 0
    return states[first:].mean(0)


def expected_of(model, features):
    return torch.stack([slow_features(model, x, y, features) for x, ys in GROUPS for y in ys])


@torch.no_grad()
@pytest.mark.parametrize("features", ["response", "all"])
@pytest.mark.parametrize("share", ["auto", False])
@pytest.mark.parametrize("kind", MODELS)
def test_features_are_those_of_one_response_at_a_time(kind, share, features):
    model = MODELS[kind]().double()
    scorer = GroupScorer(model, share=share)
    logps, vectors = scorer.logps_and_features(GROUPS, features)
    assert vectors.dtype == torch.float64
    torch.testing.assert_close(vectors, expected_of(model, features), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logps, one_at_a_time(model, GROUPS).float(), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_model_that_is_fed_one_by_one():
    model = MODELS["llama"]().double()
    scorer = GroupScorer(model)
    scorer.why_not_shared = scorer.why_alone = "for the test"
    for features in ("response", "all"):
        _, vectors = scorer.logps_and_features(GROUPS, features)
        torch.testing.assert_close(vectors, expected_of(model, features), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_they_are_not_the_states_that_predict_the_response():
    model = MODELS["llama"]()
    prompt, (response, *_) = GROUPS[0]
    states = model.model(torch.tensor([[*prompt, *response]])).last_hidden_state[0]
    _, (vector,) = GroupScorer(model).logps_and_features([(prompt, [response])])
    torch.testing.assert_close(vector, states[len(prompt) :].mean(0), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(vector, states[len(prompt) - 1 : -1].mean(0), rtol=0.05)


@torch.no_grad()
def test_bfloat16_is_averaged_in_float32():
    model = MODELS["llama"]().bfloat16()
    _, vectors = GroupScorer(model).logps_and_features(GROUPS)
    assert vectors.dtype == torch.float32
    wide = expected_of(model.float(), "response")  # of the same, rounded weights
    assert ((vectors - wide).norm(dim=-1) <= 0.05 * wide.norm(dim=-1)).all()
    assert (vectors != vectors.bfloat16().float()).any()


def test_own_places_of_a_worked_example():
    layout = lay_out([([10, 11], [[1, 2, 3], [4]]), ([12], [[7, 8]])], whole=True)
    assert layout.tokens.tolist() == [[10, 11, 1, 2, 3, 4], [12, 7, 8, 0, 0, 0]]
    assert layout.own.tolist() == [2, 3, 4, 5, 7, 8]
    assert layout.prompts == [(0, 2), (0, 2), (6, 1)]
    assert lay_out(GROUPS).own is None  # the last tokens are not read


def test_a_row_with_its_last_tokens_may_be_too_long():
    model = MODELS["llama"]()
    scorer = GroupScorer(model)
    scorer._longest_row = 13  # GROUPS[0] has 5 + 2 + 0 + 6 tokens without the last ones
    assert scorer.why_apart(GROUPS[:1]) is None
    assert scorer.why_apart(GROUPS[:1], whole=True).startswith("16 tokens of a row exceed the 13")


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"^features: expected 'response' or 'all', got 'last'$"):
        GroupScorer(MODELS["llama"]()).logps_and_features(GROUPS, "last")


def test_a_policy_and_its_reference_have_features(make_policy):
    policy = make_policy()
    prompt, responses = GROUPS[0]
    logps, vectors = policy.logps_and_features(prompt, responses)
    assert not vectors.requires_grad
    torch.testing.assert_close(
        logps, policy.logps(prompt, responses).detach(), rtol=1e-5, atol=1e-5
    )
    ref_logps, ref_vectors = policy.logps_and_features(prompt, responses, reference=True)
    torch.testing.assert_close(ref_logps, policy.logps(prompt, responses, reference=True))
    assert not torch.allclose(vectors, ref_vectors)
    base = policy.model.get_base_model()
    with torch.no_grad(), policy.model.disable_adapter():
        for response, vector in zip(responses, ref_vectors, strict=True):
            slow = slow_features(base, prompt, response, "response")
            torch.testing.assert_close(vector, slow, rtol=1e-4, atol=1e-5)
