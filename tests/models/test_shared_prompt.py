from types import SimpleNamespace

import pytest
import torch
from made_up import one_at_a_time, small
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from pyfast.models import checkpointing
from pyfast.models.shared_prompt import GroupScorer, block_mask, lay_out, visible

GROUPS = [
    ([4, 9, 12, 7, 20], [[5, 6, 3], [8], [9, 9, 9, 10, 11, 12, 13]]),
    ([6], [[4, 3], [4, 3], [7, 8, 9, 10], [3], [11, 12]]),
    ([8, 8], [[5]]),
]


SMALL = {"vocab_size": 32, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
VOCABULARY = 34  # of `tiny`


def assert_scores(model, groups, **tolerance):
    """Scores are those of one response at a time, shared or not."""
    scorer = GroupScorer(model)
    expected = one_at_a_time(model, groups)
    torch.testing.assert_close(scorer.logps(groups), expected, **tolerance)
    apart = GroupScorer(model, share=False).logps(groups)
    torch.testing.assert_close(apart, expected, **tolerance)
    return scorer


def test_layout_of_a_worked_example():
    layout = lay_out([([10, 11], [[1, 2, 3], [4], [5, 6]]), ([12], [[7, 8]])])
    assert layout.tokens.tolist() == [[10, 11, 1, 2, 5], [12, 7, 0, 0, 0]]
    assert layout.positions.tolist() == [[0, 1, 2, 3, 2], [0, 1, 0, 0, 0]]
    assert layout.segments.tolist() == [[0, 0, 1, 1, 3], [0, 1, -1, -1, -1]]
    assert layout.sources.tolist() == [1, 2, 3, 1, 1, 4, 5, 6]
    assert layout.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert layout.counts == [3, 1, 2, 2]


def test_layout_with_a_row_for_each_response():
    layout = lay_out([([10, 11], [[1, 2, 3], [4]])], share=False)
    assert layout.tokens.tolist() == [[10, 11, 1, 2], [10, 11, 0, 0]]
    assert layout.positions.tolist() == [[0, 1, 2, 3], [0, 1, 0, 0]]
    assert layout.sources.tolist() == [1, 2, 3, 5]
    assert layout.labels.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([], "expected at least one$"),
        ([([1], [[1]]), ([], [[1]])], "in the prompt of group 1"),
        ([([1], [])], "at least one response in group 0"),
        ([([1], [[3], []])], "group 0, each of at least one token"),
    ],
)
def test_bad_groups(tiny, groups, message):
    with pytest.raises(ValueError, match=message):
        GroupScorer(tiny.model().eval()).logps(groups)
    with pytest.raises(ValueError, match=r"^groups: expected at least one"):
        lay_out(groups)


def test_who_sees_whom():
    segments = lay_out(GROUPS).segments
    seen = visible(segments)
    for row, line in enumerate(segments.tolist()):
        for a, mine in enumerate(line):
            for b, theirs in enumerate(line):
                expected = a == b or (mine >= 0 and b <= a and theirs in (0, mine))
                assert bool(seen[row, a, b]) == expected


def test_flex_attentions_mask_is_the_same():
    segments = lay_out(GROUPS).segments
    mask = block_mask(segments)
    rows, length = segments.shape
    places = torch.arange(length)
    zero = torch.tensor(0)
    for row in range(rows):
        seen = mask.mask_mod(torch.tensor(row), zero, places[:, None], places[None, :])
        assert torch.equal(seen, visible(segments)[row])


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])
def test_scores_are_those_of_one_response_at_a_time(tiny, attention):
    model = tiny.model().eval()
    model.set_attn_implementation(attention)
    with torch.no_grad():  # FlexAttention has no backward pass on CPUs
        scorer = GroupScorer(model)
        actual = scorer.logps(GROUPS)
    model.set_attn_implementation("eager")
    expected = one_at_a_time(model, GROUPS)
    assert scorer.why_not_shared is None
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def gradients(model, logps):
    weights = torch.linspace(-2, 3, len(logps), dtype=logps.dtype)
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.autograd.grad((weights * logps).sum(), parameters)


def test_gradients_are_those_of_one_response_at_a_time(tiny):
    model = tiny.model().eval().double()  # so that only a wrong formula can differ
    scorer = GroupScorer(model)
    for actual, expected in zip(
        gradients(model, scorer.logps(GROUPS)),
        gradients(model, one_at_a_time(model, GROUPS)),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", ["reentrant", "not reentrant", "selective"])
def test_gradient_checkpointing_changes_nothing(make_policy, monkeypatch, how):
    monkeypatch.setattr(checkpointing, "CHEAP_PRODUCT", 8)  # else these are all cheap
    decisions, keep = set(), checkpointing._keep
    monkeypatch.setattr(
        checkpointing, "_keep", lambda *a, **k: decisions.add(kept := keep(*a, **k)) or kept
    )
    settings = {
        "reentrant": {"use_reentrant": True},
        "not reentrant": {"use_reentrant": False},
        "selective": checkpointing.selective_checkpointing(),
    }[how]
    policy = make_policy()
    model = policy.model
    scorer = GroupScorer(model)
    expected = gradients(model, scorer.logps(GROUPS))
    model.train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(settings)
    passes = []
    inner = model.get_base_model().model.layers[0].self_attn
    inner.register_forward_hook(lambda *_: passes.append(1))
    logps = scorer.logps(GROUPS)
    (torch.linspace(-2, 3, len(logps)) * logps).sum().backward()
    actual = [p.grad for p in model.parameters() if p.requires_grad]
    assert len(passes) == 2  # once more in the backward pass: checkpoints were at work
    assert {kept.name for kept in decisions} == (
        {"MUST_SAVE", "PREFER_RECOMPUTE"} if how == "selective" else set()
    )
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_other_groups_change_nothing(tiny):
    scorer = GroupScorer(tiny.model().eval())
    alone = torch.cat([scorer.logps([group]) for group in GROUPS])
    torch.testing.assert_close(scorer.logps(GROUPS), alone, rtol=1e-5, atol=1e-5)


def test_bfloat16(tiny):
    model = tiny.model().eval().bfloat16()
    scorer = GroupScorer(model)
    assert scorer.why_not_shared is None
    exact = one_at_a_time(tiny.model().eval(), GROUPS)
    apart = GroupScorer(model, share=False).logps(GROUPS)
    # No farther from float32 than the same type one response a row, but for a rounding.
    error, allowed = (scorer.logps(GROUPS) - exact).abs(), (apart - exact).abs().max()
    assert error.max() <= 2 * allowed + 0.05


def test_absolute_positions_start_anew_like_any_other():
    model = small(
        GPT2LMHeadModel, GPT2Config, vocab_size=32, n_embd=16, n_head=2, n_layer=2, n_positions=32
    )
    assert assert_scores(model, GROUPS, rtol=1e-4, atol=1e-5).why_not_shared is None


def test_a_row_may_be_longer_than_the_positions():
    model = small(
        GPT2LMHeadModel, GPT2Config, vocab_size=32, n_embd=16, n_head=2, n_layer=2, n_positions=16
    )
    scorer = assert_scores(model, GROUPS, rtol=1e-4, atol=1e-5)
    assert lay_out(GROUPS).tokens.shape[1] == 13
    groups = [(prompt, responses * 3) for prompt, responses in GROUPS]
    assert lay_out(groups).tokens.shape[1] > 16
    assert scorer.why_apart(groups) is None
    torch.testing.assert_close(scorer.logps(groups), one_at_a_time(model, groups))


@pytest.mark.parametrize(
    ("changes", "span"),
    [({"window_size": 10}, 10), ({"max_position_embeddings": 12}, 12)],
    ids=["a window over places", "a causal mask that ends"],
)
def test_a_mask_kept_by_places_in_the_row(changes, span):
    settings = {"window_size": 64, "max_position_embeddings": 64, **changes}
    model = small(
        GPTNeoForCausalLM,
        GPTNeoConfig,
        vocab_size=32,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        intermediate_size=48,
        initializer_range=0.3,
        **settings,
    )
    scorer = assert_scores(model, GROUPS, rtol=1e-4, atol=1e-4)
    assert scorer.why_not_shared is None
    reason = f"13 tokens of a row exceed the {span} that a layer's mask spans"
    assert scorer.why_apart(GROUPS) == reason
    short = [([4, 9, 12], [[5, 6, 3], [8, 7, 7], [9, 3, 9, 1]])]  # a row of 10
    assert scorer.why_apart(short) is None
    assert_scores(model, short, rtol=1e-4, atol=1e-4)


def test_chunks_of_attention_are_a_window(tiny):
    model = tiny.model(attention_chunk_size=8).eval()
    scorer = assert_scores(model, GROUPS, rtol=1e-4, atol=1e-4)
    reason = "12 tokens of a prompt and response exceed the window of 8"
    assert scorer.why_apart(GROUPS) == reason
    assert scorer.why_apart(GROUPS[1:]) is None


def test_a_model_without_hidden_states_says_so(tiny, monkeypatch):
    model = tiny.model().eval()
    forward = model.model.forward
    monkeypatch.setattr(model.model, "forward", lambda **given: forward(**given).to_tuple())
    monkeypatch.setattr(
        model, "forward", lambda **_: SimpleNamespace(logits=model.lm_head(torch.zeros(1, 8, 32)))
    )
    message = r"^model: LlamaForCausalLM does not give its last hidden states$"
    with pytest.raises(ValueError, match=message):
        GroupScorer(model)


def test_a_model_without_a_head_says_so(tiny):
    with pytest.raises(ValueError, match=r"^model: LlamaModel has no head that gives logits$"):
        GroupScorer(tiny.model().model)


@pytest.mark.parametrize("share", ["auto", False])
def test_dropout_is_no_reason_and_stays_as_it_was(share):
    model = small(
        GPT2LMHeadModel, GPT2Config, vocab_size=32, n_embd=16, n_head=2, n_layer=2, resid_pdrop=0.5
    )
    expected = GroupScorer(model, share=share).logps(GROUPS)
    model.train()
    model.transformer.h[0].eval()  # someone's choice
    before = {name: module.training for name, module in model.named_modules()}
    scorer = GroupScorer(model, share=share)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert set(before.values()) == {True, False}
    assert not torch.equal(scorer.logps(GROUPS), expected)  # dropout is at work
    model.eval()
    assert torch.equal(scorer.logps(GROUPS), expected)


@pytest.mark.parametrize("kind", ["gemma", "granite"])
def test_logits_capped_and_scaled_in_bfloat16(kind):
    sizes = {**SMALL, "intermediate_size": 24, "num_key_value_heads": 1}
    if kind == "gemma":
        model = small(Gemma2ForCausalLM, Gemma2Config, **sizes, head_dim=8, initializer_range=4.0)
    else:
        model = small(
            GraniteForCausalLM, GraniteConfig, **sizes, logits_scaling=6.0, initializer_range=8.0
        )
    model = model.bfloat16()
    scorer = GroupScorer(model)
    tokens = torch.arange(16)[None]
    theirs = model(input_ids=tokens).logits.float()
    ours = scorer.lm.logits(model.model(input_ids=tokens).last_hidden_state)
    assert theirs.abs().max() > 10  # as large as real ones
    assert not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3)  # what a rounding does


@pytest.mark.parametrize("kind", ["prompt", "prefix", "p"])
def test_virtual_tokens_are_refused(tiny, kind):
    settings = {
        "prompt": PromptTuningConfig,
        "prefix": PrefixTuningConfig,
        "p": PromptEncoderConfig,
    }[kind](task_type="CAUSAL_LM", num_virtual_tokens=2)
    message = rf"^model: its adapter, {settings.peft_type.value}, is virtual tokens, which is not"
    with pytest.raises(ValueError, match=message):
        GroupScorer(get_peft_model(tiny.model(), settings))


@pytest.mark.parametrize(
    ("group", "wrong"),
    [
        (([4], [[3, -1]]), -1),
        (([4], [[5], [3, -100]]), -100),
        (([4], [[3, VOCABULARY]]), VOCABULARY),
        (([-1, 4], [[3]]), -1),
        (([VOCABULARY], [[3]]), VOCABULARY),
    ],
)
def test_tokens_that_the_model_does_not_have(tiny, group, wrong):
    scorer = GroupScorer(tiny.model().eval())
    message = f"^groups: expected tokens from 0 to {VOCABULARY - 1}, got {wrong} in group 1$"
    with pytest.raises(ValueError, match=message):
        scorer.logps([([4], [[VOCABULARY - 1]]), group])


def test_a_window_shorter_than_a_response_is_kept():
    model = small(
        MistralForCausalLM,
        MistralConfig,
        **SMALL,
        intermediate_size=24,
        num_key_value_heads=1,
        sliding_window=6,
        initializer_range=0.5,
    )
    scorer = assert_scores(model, GROUPS, rtol=1e-4, atol=1e-5)
    reason = "12 tokens of a prompt and response exceed the window of 6"
    assert scorer.why_not_shared is None
    assert scorer.why_apart(GROUPS) == reason
    assert scorer.why_apart(GROUPS[1:]) is None  # short ones are shared
    with pytest.raises(ValueError, match=f"^share: the prompt cannot be shared: {reason}$"):
        GroupScorer(model, share=True).logps(GROUPS)
    wide = small(
        MistralForCausalLM,
        MistralConfig,
        **SMALL,
        intermediate_size=24,
        num_key_value_heads=1,
        sliding_window=None,
        initializer_range=0.5,
    )
    with torch.no_grad():  # the window matters
        assert not torch.allclose(one_at_a_time(wide, GROUPS), one_at_a_time(model, GROUPS))


@pytest.mark.parametrize(
    "make",
    [
        lambda: small(
            MambaForCausalLM,
            MambaConfig,
            vocab_size=32,
            hidden_size=16,
            state_size=4,
            num_hidden_layers=2,
        ),
        lambda: small(BloomForCausalLM, BloomConfig, vocab_size=32, hidden_size=16, n_head=2),
    ],
    ids=["no attention at all", "positions from a mask of two dimensions"],
)
def test_models_that_cannot_share_read_the_prompt_with_every_response(make):
    model = make()
    scorer = assert_scores(model, GROUPS, rtol=1e-3, atol=1e-4)
    assert scorer.why_not_shared.startswith("the model does not take a block mask (")
    with pytest.raises(ValueError, match=r"^share: the prompt cannot be shared: "):
        GroupScorer(model, share=True)


def test_not_sharing_on_request_says_so(tiny):
    scorer = GroupScorer(tiny.model().eval(), share=False)
    assert scorer.why_not_shared == scorer.why_apart(GROUPS) == "it was not asked for"


def test_a_model_that_overlooks_the_mask_is_found_out(tiny, monkeypatch):
    model = tiny.model().eval()
    forward = model.model.forward
    monkeypatch.setattr(model.model, "forward", lambda attention_mask=None, **rest: forward(**rest))
    reason = GroupScorer(model).why_not_shared
    assert reason.startswith("hidden states in a shared row differ by ")


def test_attention_without_block_masks_has_its_reason(tiny):
    AttentionInterface.register("somebodys", sdpa_attention_forward)
    AttentionMaskInterface.register("somebodys", sdpa_mask)
    model = tiny.model().eval()
    model.set_attn_implementation("somebodys")
    scorer = assert_scores(model, GROUPS, rtol=1e-5, atol=1e-5)
    assert scorer.why_not_shared == "its attention, somebodys, takes no block mask"


def test_gradients_of_a_shared_state_are_added_in_one_order(tiny):
    """Indexing by [...] adds them in the order of threads: other bits on a busy machine."""
    logps = GroupScorer(tiny.model().eval()).logps(GROUPS)
    nodes, names = [logps.grad_fn], set()
    while nodes:
        node = nodes.pop()
        names.add(node.name())
        nodes += [above for above, _ in node.next_functions if above is not None]
    assert any(name.startswith("IndexSelectBackward") for name in names)
    assert not any(name.startswith(("IndexBackward", "IndexPutBackward")) for name in names)
