import torch
from one_at_a_time import PROMPT, RESPONSES, slow_sample

from pyfast.train.sampling import _draw


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
    drawn = [int(_draw(logits, u[None])) for u in ends]
    assert drawn == [1, 1, 3, 3]
