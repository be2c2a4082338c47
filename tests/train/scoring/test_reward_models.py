"""Reward models, held to one response at a time through the model as transformers runs it."""

import json
import shutil

import pytest
import torch

from pyfast.train import config as configs
from pyfast.train import loop
from pyfast.train.data.prompts import Prompt
from pyfast.train.errors import UserError
from pyfast.train.recipes.ampo import Ampo, AmpoSettings
from pyfast.train.scoring import rewards
from pyfast.train.scoring.reward_models import RewardModel

RESPONSES = ["good day", "sad awful hate poor rain", "nice", "the dog is happy and the sun is"]


def llama(folder, tiny, labels=1, template=None, save=True, **changes):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    config = LlamaConfig(
        vocab_size=tiny.vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
        initializer_range=0.3, pad_token_id=0, bos_token_id=2, eos_token_id=3, num_labels=labels,
        **changes,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = LlamaForSequenceClassification(config).eval()
    if save:
        model.save_pretrained(folder)
        tiny.tokenizer(template).save_pretrained(folder)
    return model


def bert(folder, tiny, labels, **changes):
    from tokenizers import processors
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=tiny.vocabulary, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=24, initializer_range=0.5,
        num_labels=labels, **changes,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = BertForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", "<s> $A </s> $B:1 </s>:1", [("<s>", 2), ("</s>", 3)]
    )
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    names = ["input_ids", "token_type_ids", "attention_mask"]
    text = json.dumps({**config, "model_input_names": names})
    (folder / "tokenizer_config.json").write_text(text)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert max(tokenizer("good", "day")["token_type_ids"]) == 1
    return model, tokenizer


def test_scores_are_those_of_one_text_at_a_time_in_the_chat_template(tiny, tmp_path):
    model = llama(tmp_path, tiny, template=tiny.chat_template)
    tokenizer = tiny.tokenizer()
    expected = []
    for y in RESPONSES:
        text = f"user tell me </s> assistant {y} </s> "
        row = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            expected.append(model(row).logits[0, 0].item())
    reward = rewards.load(f"model:{tmp_path}")
    assert rewards.score(reward, "tell me", RESPONSES) == pytest.approx(expected, rel=1e-5)
    assert reward.cut == 0

    chat = [{"role": "system", "content": "is good"}, {"role": "user", "content": "tell me"}]
    text = "system is good </s> user tell me </s> assistant nice </s> "
    row = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        expected = [model(row).logits[0, 0].item()]
    assert reward(chat, ["nice"]) == pytest.approx(expected, rel=1e-5)
    assert rewards.score(reward, Prompt(chat), ["nice"]) == pytest.approx(expected, rel=1e-5)


def test_a_model_without_a_padding_token_scores_one_at_a_time(tiny, tmp_path):
    model = llama(tmp_path, tiny, template=tiny.chat_template)
    with_pad = rewards.load(f"model:{tmp_path}")("tell me", RESPONSES)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "pad_token_id": None}))
    reward = rewards.load(f"model:{tmp_path}")
    assert reward("tell me", RESPONSES) == pytest.approx(with_pad, rel=1e-5)
    assert reward.batch_size == 1
    assert model.config.pad_token_id == 0


def test_a_model_that_padding_disturbs_is_not_padded(tiny, tmp_path, monkeypatch):
    from transformers import LlamaForSequenceClassification

    model = llama(tmp_path, tiny, template=tiny.chat_template)
    plain = LlamaForSequenceClassification.forward

    def last_column(self, input_ids, **rest):  # as if it took the last token, padding or not
        out = plain(self, input_ids, **rest)
        out.logits = self.score(self.model(input_ids).last_hidden_state)[:, -1]
        return out

    expected = rewards.load(f"model:{tmp_path}")("tell me", RESPONSES)
    monkeypatch.setattr(LlamaForSequenceClassification, "forward", last_column)
    reward = rewards.load(f"model:{tmp_path}")
    assert reward("tell me", RESPONSES) == pytest.approx(expected, rel=1e-5)
    assert reward.batch_size == 1
    assert model is not None


@pytest.mark.parametrize(
    ("kind", "function"),
    [
        ("single_label_classification", lambda x: x.softmax(-1)),
        ("multi_label_classification", torch.sigmoid),
        ("regression", lambda x: x),
    ],
)
def test_a_named_label_of_several(tiny, tmp_path, kind, function):
    names = {0: "BAD", 1: "SO-SO", 2: "GOOD"}
    model, tokenizer = bert(tmp_path, tiny, 3, id2label=names, problem_type=kind)
    pairs = [tokenizer("tell me", y, return_tensors="pt") for y in RESPONSES]
    with torch.no_grad():
        expected = [function(model(**pair).logits)[0, 2].item() for pair in pairs]
        alone = [
            function(model(**tokenizer(y, return_tensors="pt")).logits)[0, 2].item()
            for y in RESPONSES
        ]
    for label in ("GOOD", "2"):
        reward = rewards.load(f"model:{tmp_path}#{label}")
        assert reward("tell me", RESPONSES) == pytest.approx(expected, rel=1e-5)
    reward = rewards.load(f"response-model:{tmp_path}#GOOD")
    assert reward("tell me", RESPONSES) == pytest.approx(alone, rel=1e-5)
    for spec in (f"model:{tmp_path}", f"model:{tmp_path}#good", f"model:{tmp_path}#3"):
        with pytest.raises(UserError, match=r"^scoring\.reward: .*BAD, SO-SO, GOOD"):
            rewards.load(spec)("tell me", RESPONSES)


def test_what_is_too_long_is_counted_and_loses_the_start_of_its_prompt(tiny, tmp_path, capsys):
    model = llama(tmp_path / "chat", tiny, template=tiny.chat_template)
    reward = rewards.load(f"model:{tmp_path / 'chat'}")
    prompt = " ".join(["rain"] * 30 + ["good"])
    scores = reward(prompt, RESPONSES[:2])
    assert reward.cut == 2
    assert "pyfast: warning: scoring.reward: 1 text was longer than the 32 tokens" in (
        capsys.readouterr().err
    )
    tokenizer = tiny.tokenizer()
    for y, score in zip(RESPONSES[:2], scores, strict=True):
        text = f"user {prompt} </s> assistant {y} </s> "
        row = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"][-32:]])
        with torch.no_grad():
            assert score == pytest.approx(model(row).logits[0, 0].item(), rel=1e-5)

    model, tokenizer = bert(tmp_path / "pair", tiny, 1)
    reward = rewards.load(f"model:{tmp_path / 'pair'}")
    (score,) = reward(prompt, ["nice dog"])
    left = " ".join(["rain"] * 18 + ["good"])
    with torch.no_grad():
        row = tokenizer(left, "nice dog", return_tensors="pt")
        assert row["input_ids"].shape == (1, 24)
        assert score == pytest.approx(model(**row).logits[0, 0].item(), rel=1e-5)
    assert reward(prompt, ["nice " * 40])  # the response alone fills the model
    assert reward.cut == 2


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_a_template_that_leaves_a_role_out_is_refused(tiny, tmp_path, role):
    template = (
        f"{{% for m in messages if m['role'] != '{role}' %}}{{{{ m['content'] }}}}{{% endfor %}}"
    )
    llama(tmp_path, tiny, template=template)
    with pytest.raises(UserError, match=f"drops or changes the message of the role {role}"):
        rewards.load(f"model:{tmp_path}")("p", ["a"])


def test_weights_that_are_missing_are_named(tiny_model, tiny, tmp_path):
    with pytest.raises(UserError, match=r"^scoring\.reward: .*missing from it: score\.weight"):
        rewards.load(f"model:{tiny_model}")("p", ["a"])
    model = llama(tmp_path, tiny, save=False)
    with torch.no_grad():
        model.score.weight[0, 0] = torch.nan
    model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"scoring\.reward: weights that are not finite: score"):
        rewards.load(f"model:{tmp_path}")("p", ["a"])


def test_folders_that_hold_no_model_are_told_before_anything_is_loaded(tmp_path):
    for spec in ("model:", "model:./nothing", f"model:{tmp_path / 'nothing'}"):
        with pytest.raises(UserError, match=r"^evaluation\.reward: no such folder"):
            rewards.load(spec, "evaluation.reward")
    with pytest.raises(UserError, match=r"scoring\.reward: .* has no config\.json"):
        rewards.load(f"model:{tmp_path}")


def settings_of(tiny_settings, **changes):
    return configs.from_dict(
        AmpoSettings, tiny_settings, {k.replace("__", "."): v for k, v in changes.items()}
    )


def test_a_run_scores_by_one_model_and_is_judged_by_another(tiny_settings, tiny, tmp_path, capsys):
    llama(tmp_path / "trains", tiny, template=tiny.chat_template)
    bert(tmp_path / "judges", tiny, 2, id2label={0: "NO", 1: "YES"})
    settings = settings_of(
        tiny_settings,
        scoring__reward=f"model:{tmp_path / 'trains'}",
        evaluation__reward=f"model:{tmp_path / 'judges'}#YES",
        optimisation__steps=1,
    )
    inputs = Ampo.read(settings)
    assert inputs.rewards == {"reward": inputs.reward, "judge": inputs.judge}
    assert isinstance(inputs.judge, RewardModel)
    out = tmp_path / "run"
    loop.run(Ampo, settings, inputs, out)
    (line,) = (out / "groups.jsonl").read_text().splitlines()
    group = json.loads(line)
    assert group["scores"] == inputs.reward(group["prompt"], group["responses"])
    for line in (out / "eval_after.jsonl").read_text().splitlines():
        answers = json.loads(line)
        assert answers["scores"] == inputs.judge(answers["prompt"], answers["responses"])
    assert {"reward", "judge"} <= set(json.loads((out / "environment.json").read_text())["models"])

    # another model in the same place is another reward
    shutil.rmtree(tmp_path / "judges")
    (out / "summary.json").unlink()
    shutil.rmtree(out / "adapter")
    bert(tmp_path / "judges", tiny, 2, id2label={0: "NO", 1: "YES"}, hidden_act="relu")
    with pytest.raises(UserError, match=r"evaluation\.reward: .* a model of another content"):
        loop.run(Ampo, settings, Ampo.read(settings), out)
    assert "warning" not in capsys.readouterr().err


def test_one_scorer_for_both_is_told_where_they_must_differ(tiny_settings, capsys):
    settings = settings_of(tiny_settings)
    reward = rewards.load("vader")
    assert rewards.load_judge(settings, reward) is reward
    assert capsys.readouterr().err == ""
    for changes in ({}, {"evaluation__reward": "vader"}):
        settings = settings_of(tiny_settings, **changes)
        assert rewards.load_judge(settings, reward, differs=True) is reward
        told = capsys.readouterr().err
        assert told.startswith("pyfast: warning: evaluation.reward: the scorer that trains also")
        assert told.count("\n") == 1


def test_the_evaluation_has_a_temperature_of_its_own(tiny_settings, tmp_path):
    settings = settings_of(tiny_settings, evaluation__temperature=0.0, optimisation__steps=1)
    loop.run(Ampo, settings, Ampo.read(settings), tmp_path / "run")
    for line in (tmp_path / "run" / "eval_after.jsonl").read_text().splitlines():
        assert len(set(json.loads(line)["responses"])) == 1
    (line,) = (tmp_path / "run" / "groups.jsonl").read_text().splitlines()
    assert len(set(json.loads(line)["responses"])) > 1
