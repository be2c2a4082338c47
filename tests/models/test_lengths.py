"""Models whose rotary embeddings depend on the longest position of a call."""

import pytest
import torch
from made_up import SIZES, one_at_a_time, small
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

from pyfast.models.length import find_regime
from pyfast.models.shared_prompt import GroupScorer

LENGTH = 16  # where the frequencies change


def phi3():
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0, 9.0, 2.0, 6.0],
        "original_max_position_embeddings": LENGTH,
    }
    return small(
        Phi3ForCausalLM,
        Phi3Config,
        **SIZES,
        rope_parameters=rope,
        original_max_position_embeddings=LENGTH,
    )


def dynamic():
    settings = {**SIZES, "max_position_embeddings": LENGTH}
    rope = {"rope_type": "dynamic", "factor": 8.0, "rope_theta": 100.0}
    return small(LlamaForCausalLM, LlamaConfig, **settings, rope_parameters=rope)


def draw(*lengths):
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(3, 40, (n,), generator=generator).tolist() for n in lengths]


# Prompts of 9: whole sequences one below the switch, at it, one beyond, and far beyond.
GROUPS = [
    (draw(9)[0], draw(LENGTH - 10, LENGTH - 9, LENGTH - 8, 30, 30, 1, 55)),
    (draw(20)[0], draw(3, 9, 2)),
    (draw(4)[0], draw(2, 2)),
]


@pytest.mark.parametrize("make", [phi3, dynamic])
@pytest.mark.parametrize("share", ["auto", False])
def test_a_log_prob_depends_on_nothing_else_in_the_call(make, share):
    scorer = GroupScorer(make(), share=share)
    with torch.no_grad():
        # A fresh model for each: dynamic frequencies remember longer calls.
        expected = torch.cat([one_at_a_time(make(), [(x, [y])]) for x, ys in GROUPS for y in ys])
        for groups, part in [(GROUPS, expected), (GROUPS[2:], expected[-2:]), (GROUPS, expected)]:
            torch.testing.assert_close(scorer.logps(groups), part, rtol=1e-4, atol=1e-3)
    assert scorer.why_alone is None  # no slower than it must be
    assert (scorer.why_not_shared is None) == (share == "auto")


@pytest.mark.parametrize("make", [phi3, dynamic])
def test_company_does_matter_to_the_model(make):
    with torch.no_grad():
        model, (prompt, responses) = make(), GROUPS[0]
        short = prompt + responses[0]
        alone = model(input_ids=torch.tensor([short])).logits[0]
        longer = torch.tensor([short + responses[3]])
        beside = model(input_ids=longer).logits[0, : len(short)]
    assert (alone - beside).abs().max() > 0.1


def test_gradients_through_several_calls_are_those_of_one_at_a_time():
    model = phi3().double()
    scorer = GroupScorer(model)
    weights = torch.linspace(-2, 3, 12)
    parameters = list(model.parameters())
    one = torch.autograd.grad((weights * scorer.logps(GROUPS)).sum(), parameters)
    other = torch.autograd.grad((weights * one_at_a_time(model, GROUPS)).sum(), parameters)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_regimes():
    longrope, ntk = phi3(), dynamic()
    of = find_regime(longrope.model, longrope.config)
    assert [of(n) for n in (1, LENGTH, LENGTH + 1, 255)] == [0, 0, 1, 1]
    of = find_regime(ntk.model, ntk.config)
    assert len({of(n) for n in (LENGTH + 1, LENGTH + 2, 200)}) == 3
    assert of(3) == of(LENGTH - 1) == 0
    plain = small(LlamaForCausalLM, LlamaConfig, **SIZES)
    assert find_regime(plain.model, plain.config) is None
