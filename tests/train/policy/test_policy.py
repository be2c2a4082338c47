import pytest
import torch
from one_at_a_time import PROMPT, RESPONSES, plain_logp, slow_sample

from pyfast.train.errors import UserError
from pyfast.train.policy.policy import Policy


def test_logps_are_those_of_one_response_at_a_time(make_policy):
    policy = make_policy()
    expected = torch.stack([plain_logp(policy.model, PROMPT, y) for y in RESPONSES])
    actual = policy.logps(PROMPT, RESPONSES)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_one_response_at_a_time(make_policy):
    policy = make_policy()
    policy.model.double()  # so that only a wrong formula can differ
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0])
    parameters = list(policy.trainable().values())
    summed = sum(
        w * plain_logp(policy.model, PROMPT, y) for w, y in zip(weights, RESPONSES, strict=True)
    )
    expected = torch.autograd.grad(summed, parameters)
    actual = torch.autograd.grad((weights * policy.logps(PROMPT, RESPONSES)).sum(), parameters)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_padding_of_the_others_changes_nothing(make_policy):
    policy = make_policy()
    together = policy.logps(PROMPT, RESPONSES)
    alone = torch.cat([policy.logps(PROMPT, [y]) for y in RESPONSES])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_reference_is_the_model_without_the_adapter(make_policy, tiny):
    policy = make_policy()
    bare = tiny.model().eval()
    expected = torch.stack([plain_logp(bare, PROMPT, y) for y in RESPONSES])
    reference = policy.logps(PROMPT, RESPONSES, reference=True)
    torch.testing.assert_close(reference, expected, rtol=1e-5, atol=1e-5)
    assert not reference.requires_grad
    assert not torch.allclose(reference, policy.logps(PROMPT, RESPONSES), atol=0.1)
    # the adapter is on again, and at its usual start it changes nothing
    fresh = make_policy(adapter=0.0)
    assert torch.equal(
        fresh.logps(PROMPT, RESPONSES), fresh.logps(PROMPT, RESPONSES, reference=True)
    )


def test_only_the_adapter_is_trained(make_policy):
    policy = make_policy()
    assert all("lora_" in name for name in policy.trainable())
    assert not any("lm_head" in name for name in policy.trainable())
    assert not policy.model.training


def test_the_start_of_the_adapter_is_seeded_and_leaves_the_global_generator_alone(tiny):
    def make(seed):
        return Policy(tiny.model(), tiny.tokenizer(), rank=2, seed=seed).trainable()

    before = torch.get_rng_state()
    first, again, other = make(0), make(0), make(1)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_prompts_go_through_the_chat_template_if_there_is_one(make_policy, tiny):
    plain, chat = make_policy(), make_policy(tiny.chat_template)
    assert plain.tokenizer.decode(plain.prompt_ids("good day")) == "good day"
    assert chat.tokenizer.decode(chat.prompt_ids("good day")) == "user good day </s> assistant"


def test_empty_responses_are_refused(make_policy):
    with pytest.raises(ValueError, match="each of at least one token"):
        make_policy().logps(PROMPT, [[3], []])
    with pytest.raises(ValueError, match="expected at least one"):
        make_policy().logps(PROMPT, [])


@pytest.mark.parametrize(
    "changes", [{"logit_scale": 0.5}, {"final_logit_softcapping": 0.7}, {"logits_scaling": 3.0}]
)
def test_logits_that_change_after_the_head(make_policy, monkeypatch, tiny, changes):
    """Cohere's, Gemma's and Granite's, done here by hand to one small model."""
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward

    def changed(self, *args, **settings):
        out = forward(self, *args, **settings)
        logits = out.logits * changes.get("logit_scale", 1) / changes.get("logits_scaling", 1)
        if cap := changes.get("final_logit_softcapping"):
            logits = cap * torch.tanh(logits / cap)
        out.logits = logits
        return out

    monkeypatch.setattr(LlamaForCausalLM, "forward", changed)
    policy = make_policy(**changes)
    expected = torch.stack([plain_logp(policy.model, PROMPT, y) for y in RESPONSES])
    torch.testing.assert_close(policy.logps(PROMPT, RESPONSES), expected, rtol=1e-5, atol=1e-5)
    uniform = torch.rand(3, 10, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    (samples,) = policy.sample([PROMPT], 3, max_new_tokens=10, temperature=1.0, seeds=[7])
    with torch.no_grad():
        for row, tokens in enumerate(samples.token_ids):
            assert tokens == slow_sample(policy.model, PROMPT, uniform[row], 3)
    with pytest.raises(UserError, match=r"policy\.model: LlamaForCausalLM changes its logits"):
        Policy(tiny.model(), tiny.tokenizer(), rank=2)  # its settings do not say so


def test_a_head_with_an_adapter_of_its_own(tiny):
    from peft import LoraConfig, get_peft_model

    from pyfast.models.shared_prompt import GroupScorer

    settings = LoraConfig(r=2, target_modules=["lm_head", "q_proj"], init_lora_weights=False)
    model = get_peft_model(tiny.model(), settings).eval()
    expected = torch.stack([plain_logp(model, PROMPT, y) for y in RESPONSES])
    actual = GroupScorer(model).logps([(PROMPT, RESPONSES)])
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
