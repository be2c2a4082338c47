"""Adapters, heads and tokens that a scorer has to refuse, or to take as they are."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import T5Config, T5ForConditionalGeneration

from pyfast.models.shared_prompt import GroupScorer


def test_an_encoder_decoder_is_refused():
    config = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(ValueError, match="T5ForConditionalGeneration is an encoder-decoder"):
        GroupScorer(T5ForConditionalGeneration(config))


@pytest.mark.parametrize("kind", ["layers", "tied copy"])
def test_heads_that_do_not_say_how_many_tokens_they_score(tiny, kind):
    model = tiny.model(tie_word_embeddings=kind == "tied copy")
    if kind == "layers":
        wide, narrow = torch.nn.Linear(32, 16), torch.nn.Linear(16, tiny.vocabulary)
        model.lm_head = torch.nn.Sequential(wide, narrow)
    else:  # peft makes a head whose sizes are named the wrong way round
        settings = LoraConfig(
            task_type="CAUSAL_LM",
            r=2,
            target_modules=["q_proj"],
            modules_to_save=["embed_tokens"],
            ensure_weight_tying=True,
        )
        model = get_peft_model(model, settings)
    model.eval()
    last = tiny.vocabulary - 1
    groups = [([4, last, 5], [[last], [6, 7, last]])]
    expected = []
    for prompt, responses in groups:
        for y in responses:
            with torch.no_grad():
                logps = model(input_ids=torch.tensor([[*prompt, *y]])).logits[0].log_softmax(-1)
            expected.append(sum(float(logps[len(prompt) - 1 + i, t]) for i, t in enumerate(y)))
    torch.testing.assert_close(GroupScorer(model).logps(groups).detach(), torch.tensor(expected))


@pytest.mark.parametrize("token", [1.0, True, None, "a", torch.tensor(1.0), torch.tensor(True)])
def test_tokens_that_are_no_integers_are_refused(tiny, token):
    scorer = GroupScorer(tiny.model())
    for groups in ([([4, token], [[5]])], [([4], [[5]]), ([4], [[5, token]])]):
        with pytest.raises(
            TypeError, match=rf"^groups: expected integers.*group {len(groups) - 1}"
        ):
            scorer.logps(groups)
    as_tensors = [(torch.tensor([4, 5]), [torch.tensor([6, 7])])]
    assert torch.equal(scorer.logps(as_tensors), scorer.logps([([4, 5], [[6, 7]])]))
