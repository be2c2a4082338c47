import pytest
import torch

from pyfast.train import policy as policies
from pyfast.train.config import PolicyConfig
from pyfast.train.errors import UserError


def plain_logp(model, prompt, response):
    """Log-probability of one response: all the logits, one response, no cache, no padding."""
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0]
    logps = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return logps.gather(1, torch.tensor(response)[:, None]).sum()


PROMPT = [4, 9, 12, 7, 20]
RESPONSES = [[5, 6, 3], [8], [3], [9, 9, 9, 10, 11, 12, 13], [4, 3]]


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
        return policies.Policy(tiny.model(), tiny.tokenizer(), rank=2, seed=seed).trainable()

    before = torch.get_rng_state()
    first, again, other = make(0), make(0), make(1)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def sample(policy, prompts, n=6, seeds=None, **changes):
    settings = {"max_new_tokens": 10, "temperature": 1.0, **changes}
    return policy.sample(prompts, n, seeds=seeds or list(range(len(prompts))), **settings)


def test_samples_keep_their_own_tokens(make_policy):
    policy = make_policy()
    (samples,) = sample(policy, [PROMPT], n=40)
    assert len(samples.token_ids) == len(samples.texts) == len(samples.finished) == 40
    assert 0 < sum(samples.finished) < 40
    for tokens, text, finished in zip(
        samples.token_ids, samples.texts, samples.finished, strict=True
    ):
        assert 1 <= len(tokens) <= 10
        assert 3 not in tokens[:-1]
        assert finished == (tokens[-1] == 3)
        assert finished or len(tokens) == 10
        assert text == policy.tokenizer.decode(tokens, skip_special_tokens=True)
        assert "</s>" not in text


def slow_sample(model, prompt, uniform, end):
    """Sample one response, without cache, padding or batch."""
    tokens = []
    for u in uniform:
        logits = model(input_ids=torch.tensor([prompt + tokens])).logits[0, -1]
        cumulative = logits.softmax(-1).double().cumsum(0)
        tokens.append(int((cumulative <= u * cumulative[-1]).sum()))
        if tokens[-1] == end:
            break
    return tokens


@torch.no_grad()
def test_sampling_is_that_of_one_response_at_a_time_also_with_prompts_of_different_lengths(
    make_policy,
):
    policy = make_policy()
    prompts = [PROMPT, [4, 5], [6] * 9]
    for prompt, seed, samples in zip(
        prompts, [7, 8, 9], sample(policy, prompts, seeds=[7, 8, 9]), strict=True
    ):
        uniform = torch.rand(
            6, 10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        for row in range(6):
            assert samples.token_ids[row] == slow_sample(policy.model, prompt, uniform[row], 3)


def test_merged_weights_are_the_same_policy_and_are_put_back_exactly(make_policy):
    policy = make_policy()
    before = {name: value.clone() for name, value in policy.model.state_dict().items()}
    (apart,) = sample(policy, [PROMPT], n=20)
    expected = policy.logps(PROMPT, RESPONSES)
    with policy.merged():
        (together,) = sample(policy, [PROMPT], n=20)
        torch.testing.assert_close(policy.logps(PROMPT, RESPONSES), expected.detach())
    assert together == apart
    after = policy.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert policy.logps(PROMPT, RESPONSES).requires_grad  # the adapter is on again
    assert torch.equal(policy.logps(PROMPT, RESPONSES), expected)


def test_sampling_is_seeded(make_policy):
    policy = make_policy()
    (first,), (again,), (other,) = (sample(policy, [PROMPT], seeds=[s]) for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_sampling_follows_the_temperature(make_policy):
    policy = make_policy()
    (cold,) = sample(policy, [PROMPT], n=20, temperature=1e-3, max_new_tokens=1)
    best = int(policy.model(input_ids=torch.tensor([PROMPT])).logits[0, -1].argmax())
    assert cold.token_ids == [[best]] * 20
    (warm,) = sample(policy, [PROMPT], n=4000, temperature=2.0, max_new_tokens=1)
    counts = torch.bincount(torch.tensor(warm.token_ids).flatten(), minlength=32) / 4000
    expected = (policy.model(input_ids=torch.tensor([PROMPT])).logits[0, -1] / 2).softmax(-1)
    assert (counts - expected).abs().max() < 0.03


def test_drawing_never_takes_a_token_of_probability_zero():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    ends = torch.tensor([[0.0], [0.5 - 1e-12], [0.5], [1 - 1e-16]], dtype=torch.float64)
    drawn = [int(policies._draw(logits, u[None])) for u in ends]
    assert drawn == [1, 1, 3, 3]


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
    (samples,) = sample(policy, [PROMPT], n=3, seeds=[7])
    with torch.no_grad():
        for row, tokens in enumerate(samples.token_ids):
            assert tokens == slow_sample(policy.model, PROMPT, uniform[row], 3)
    with pytest.raises(UserError, match=r"policy\.model: LlamaForCausalLM changes its logits"):
        policies.Policy(tiny.model(), tiny.tokenizer(), rank=2)  # its settings do not say so


def test_a_head_with_an_adapter_of_its_own(tiny):
    from peft import LoraConfig, get_peft_model

    from pyfast.models.shared_prompt import GroupScorer

    settings = LoraConfig(r=2, target_modules=["lm_head", "q_proj"], init_lora_weights=False)
    model = get_peft_model(tiny.model(), settings).eval()
    expected = torch.stack([plain_logp(model, PROMPT, y) for y in RESPONSES])
    actual = GroupScorer(model).logps([(PROMPT, RESPONSES)])
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_loading_and_saving(tiny_model, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    policy = policies.load(PolicyConfig(model=str(tiny_model), lora_rank=2, device="cpu"), seed=0)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(0.1)
    policy.save_adapter(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").exists()
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    loaded = PeftModel.from_pretrained(base, tmp_path).eval()
    expected = policy.logps(PROMPT, RESPONSES)
    actual = torch.stack([plain_logp(loaded, PROMPT, y) for y in RESPONSES])
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: "./nowhere", "no such file or folder: ./nowhere"),
        (lambda p: str(p / "x.gguf"), "no such file or folder"),
        (lambda p: str(p), "cannot load"),
    ],
)
def test_models_that_are_not_there(tmp_path, make, message):
    with pytest.raises(UserError, match=r"^policy\.model: ") as caught:
        policies.load(PolicyConfig(model=make(tmp_path)), seed=0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_gguf_file_is_converted_once(tmp_path, monkeypatch):
    converted = []

    def convert(path, folder):
        converted.append(path)
        (folder / "config.json").write_text("{}")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(policies, "_convert_gguf", convert)
    gguf = tmp_path / "small.gguf"
    gguf.write_bytes(b"one")
    folder = policies.gguf_folder(gguf)
    assert policies.gguf_folder(gguf) == folder
    assert folder.is_relative_to(tmp_path / "cache" / "pyfast")
    gguf.write_bytes(b"two")  # other content, other folder
    assert policies.gguf_folder(gguf) != folder
    assert len(converted) == 2
