import functools
import math

import pytest
import torch
from one_at_a_time import PROMPT, RESPONSES, slow_sample

from pyfast.train.config import SamplingConfig
from pyfast.train.errors import DivergedError, UserError
from pyfast.train.policy import decoding
from pyfast.train.policy.policy import Policy
from pyfast.train.policy.sampling import _draw


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
    drawn = [int(_draw(logits, 1.0, u[None])) for u in ends]
    assert drawn == [1, 1, 3, 3]


@pytest.mark.parametrize("temperature", [0, 0.0, 1e-40, 1e-9])
def test_at_temperature_0_the_largest_logit_is_taken(make_policy, temperature):
    policy = make_policy()
    (samples,) = sample(policy, [PROMPT], n=3, temperature=temperature)
    tokens = []
    while len(tokens) < 10 and 3 not in tokens:
        with torch.no_grad():
            logits = policy.model(input_ids=torch.tensor([PROMPT + tokens])).logits[0, -1]
        tokens.append(int(logits.argmax()))
    assert samples.token_ids == [tokens] * 3


def test_of_equal_logits_the_first_is_taken():
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0], [-torch.inf, 1.0, -torch.inf, 1.0]])
    for temperature in (0.0, 1e-40):
        drawn = _draw(logits, temperature, torch.full((2, 1), 0.99, dtype=torch.float64))
        assert drawn.tolist() == [1, 1]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_frequencies_are_those_of_the_softmax(temperature):
    """Chi-squared of 200,000 draws, which the right distribution exceeds once in 10,000 times."""
    generator = torch.Generator().manual_seed(4)
    logits = 2 * torch.randn(12, generator=generator)
    count = 200_000
    uniform = torch.rand(count, 1, generator=generator, dtype=torch.float64)
    drawn = _draw(logits.expand(count, -1), temperature, uniform)
    seen = torch.bincount(drawn, minlength=12).double()
    expected = count * (logits.double() / temperature).softmax(-1)
    kept = expected > 5
    assert float(((seen - expected) ** 2 / expected)[kept].sum()) < 37.4  # 11 degrees


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_no_tokens(make_policy, number, temperature):
    policy = make_policy()
    sample(policy, [PROMPT])
    with torch.no_grad():
        names = [n for n in policy.trainable() if "down_proj" in n and "lora_B" in n]
        policy.trainable()[names[0]][0, 0] = number
    with pytest.raises(DivergedError, match="not finite at token 0 of response 0 to prompt 0"):
        sample(policy, [PROMPT], temperature=temperature)
    with pytest.raises(DivergedError):
        policy.answer([PROMPT], 2, SamplingConfig(2, 4, temperature), [0])


def test_which_prompt_diverged_is_told(make_policy):
    """Only the third prompt, and not at once, reaches the token whose embedding is broken."""
    policy = make_policy(adapter=0.0)
    sample(policy, [PROMPT])
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[9] = torch.nan
    with pytest.raises(DivergedError, match="at token 0 of response 0 to prompt 2"):
        sample(policy, [[4, 5], [6, 7], [9]])


def test_a_policy_that_diverged_before_it_sampled(make_policy):
    policy = make_policy(adapter=math.nan)
    with pytest.raises(DivergedError, match="its logits are not finite"):
        sample(policy, [PROMPT])


@pytest.mark.parametrize(
    ("prompts", "changes", "message"),
    [
        ([], {}, "expected one for each of at least one prompt"),
        ([[4], [5]], {"seeds": [1]}, "expected one for each of at least one prompt, got 1 for 2"),
        ([[4], []], {}, "at least one token in prompt 1"),
        ([[4, 32]], {}, ""),
        ([[4, 10**6]], {}, "got 1000000 in prompt 0"),
        ([[-1]], {}, "got -1 in prompt 0"),
        ([[4]], {"temperature": -1.0}, "temperature: expected a finite number >= 0"),
        ([[4]], {"temperature": math.nan}, "temperature: expected a finite number >= 0"),
        ([[4]], {"max_new_tokens": 0}, "expected at least 1"),
        ([[4]], {"n": 0}, "expected at least 1"),
    ],
)
def test_bad_requests(make_policy, tiny, prompts, changes, message):
    policy = make_policy()
    if prompts == [[4, 32]]:
        prompts = [[4, tiny.vocabulary]]
        message = f"got {tiny.vocabulary} in prompt 0"
    with pytest.raises(ValueError, match=message):
        sample(policy, prompts, **changes)


def assert_as_one_at_a_time(policy, prompts):
    seeds = list(range(7, 7 + len(prompts)))
    for how in ("apart", "merged"):
        if how == "apart":
            found = policy.sample(prompts, 3, max_new_tokens=8, temperature=1.0, seeds=seeds)
        else:
            found = policy.answer(prompts, 3, SamplingConfig(3, 8, 1.0), seeds)
        for prompt, seed, samples in zip(prompts, seeds, found, strict=True):
            generator = torch.Generator().manual_seed(seed)
            uniform = torch.rand(3, 8, generator=generator, dtype=torch.float64)
            for row in range(3):
                with torch.no_grad():
                    expected = slow_sample(policy.model, prompt, uniform[row], 3)
                assert samples.token_ids[row] == expected


PROMPTS = [PROMPT, [4, 5], [6] * 9]


def shaken_policy(model, tokenizer):
    policy = Policy(model.eval(), tokenizer, rank=2)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return policy


def other_models():
    import transformers as t

    shape = {
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "initializer_range": 0.3,
    }
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    return {
        "Mixtral": (lambda: t.MixtralForCausalLM(t.MixtralConfig(**shape, **experts)), None, None),
        "Bloom": (
            lambda: t.BloomForCausalLM(t.BloomConfig(**shape, n_layer=2, n_head=2)),
            None,
            None,
        ),
        "LFM2": (
            lambda: t.Lfm2ForCausalLM(
                t.Lfm2Config(**shape, layer_types=["conv", "full_attention"])
            ),
            "one prompt after the other, with a cache for each response: ",
            None,
        ),
        "RWKV": (
            lambda: t.RwkvForCausalLM(t.RwkvConfig(**shape, attention_hidden_size=16)),
            "without a cache: ",
            None,
        ),
        "Jamba": (
            lambda: t.JambaForCausalLM(
                t.JambaConfig(
                    **shape,
                    num_experts=2,
                    attn_layer_period=2,
                    attn_layer_offset=1,
                    mamba_d_state=4,
                    mamba_dt_rank=2,
                    use_mamba_kernels=False,
                )
            ),
            "one prompt after the other, with a cache for each response: ",
            "its logits then differ by",
        ),
    }


@pytest.mark.parametrize("name", other_models())
def test_models_are_sampled_as_they_are_read_one_at_a_time(tiny, capfd, name):
    """Fused experts, states that padding changes or that cannot be copied, no cache at all."""
    make, slower, not_merged = other_models()[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
    policy = shaken_policy(model, tiny.tokenizer())
    assert_as_one_at_a_time(policy, PROMPTS)
    assert_as_one_at_a_time(policy, PROMPTS)
    for reason, expected in ((policy.why_slower, slower), (policy.why_not_merged, not_merged)):
        assert reason is None if expected is None else reason.startswith(expected)
    told = capfd.readouterr().err
    assert told.count("pyfast: sampling") == (slower is not None) + (not_merged is not None)


@pytest.mark.parametrize("changes", [{}, {"sliding_window": 4}])
def test_windows_of_attention(tiny, changes):
    from transformers import MistralConfig, MistralForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = {**tiny.model().config.to_dict(), **changes, "model_type": "mistral"}
        model = MistralForCausalLM(MistralConfig(**settings))
    policy = shaken_policy(model, tiny.tokenizer())
    assert_as_one_at_a_time(policy, PROMPTS)
    assert policy.why_slower is None


def with_rope(tiny, kind, **changes):
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, **changes}
    return tiny.model(rope_parameters=rope, max_position_embeddings=12)


def test_rotary_embeddings_that_change_with_the_length(tiny):
    factors = {"short_factor": [1.0] * 4, "long_factor": [9.0] * 4}
    model = with_rope(tiny, "longrope", original_max_position_embeddings=12, **factors)
    policy = shaken_policy(model, tiny.tokenizer())
    assert_as_one_at_a_time(policy, PROMPTS)  # across the length of 12, and short of it
    assert policy.why_slower is not None
    assert "rotary embeddings change in rows as long as 17" in policy.why_slower
    assert policy._sampler._way is decoding.FAST  # for rows short of it


def test_rotary_embeddings_that_remember_the_longest_row(tiny):
    """A response is what a fresh model says, whatever was read before."""
    policy = shaken_policy(with_rope(tiny, "dynamic"), tiny.tokenizer())
    fresh = shaken_policy(with_rope(tiny, "dynamic"), tiny.tokenizer())

    def forgetful(input_ids):
        fresh.model(input_ids=input_ids[:, :1])  # a short row has it forget a long one
        return fresh.model(input_ids=input_ids)

    for prompts in (PROMPTS, [[4, 5], [6], [7, 8, 9]]):
        found = policy.sample(prompts, 2, max_new_tokens=8, temperature=1.0, seeds=[1, 2, 3])
        for prompt, seed, samples in zip(prompts, [1, 2, 3], found, strict=True):
            generator = torch.Generator().manual_seed(seed)
            uniform = torch.rand(2, 8, generator=generator, dtype=torch.float64)
            for row in range(2):
                with torch.no_grad():
                    expected = slow_sample(forgetful, prompt, uniform[row], 3)
                assert samples.token_ids[row] == expected
    assert policy.why_slower is not None
    assert policy.why_slower.startswith("without a cache: its rotary embeddings change")
    policy.sample([[4, 5, 6]], 1, max_new_tokens=3, temperature=1.0, seeds=[1])
    assert policy._sampler._way is decoding.FAST


@pytest.mark.parametrize("broken", ["padding", "cache", "batch", "memory", "all"])
def test_ways_that_a_model_gets_wrong_are_not_gone(tiny, monkeypatch, broken):
    """One small model, spoilt by hand: what it is asked in a certain way, it answers wrongly."""
    from transformers import LlamaModel

    plain = LlamaModel.forward

    @functools.wraps(plain)
    def forward(self, *args, **given):
        out = plain(self, *args, **given)
        mask = given.get("attention_mask")
        wrong = {
            "padding": mask is not None and bool((mask == 0).any()),
            "cache": bool(given.get("use_cache", False)) and len(out.past_key_values.layers) > 0,
            "batch": len(out.last_hidden_state) > 1,
            "memory": getattr(self, "seen", False),
            "all": given.get("use_cache") is not None,
        }[broken]
        if broken == "memory" and given.get("use_cache"):
            self.seen = True
        if wrong:
            out.last_hidden_state = out.last_hidden_state + 0.05
        return out

    policy = shaken_policy(tiny.model(), tiny.tokenizer())
    monkeypatch.setattr(LlamaModel, "forward", forward)
    if broken in ("memory", "all"):
        with pytest.raises(UserError, match="cannot be sampled"):
            sample(policy, [PROMPT])
        return
    sample(policy, [PROMPT])
    ways = {"padding": 1, "cache": 3, "batch": 4}
    assert policy._sampler._way is decoding.WAYS[ways[broken]]
