"""Supervised fine-tuning before a recipe: the recipe's reference is the model after it."""

import json
import os

import pytest
import torch
from nursery import Nursery, touches
from one_at_a_time import plain_logp
from safetensors.torch import load_file

from pyfast.train import config as configs
from pyfast.train import loop, sft
from pyfast.train.data.group import read_groups
from pyfast.train.errors import UserError
from pyfast.train.evaluation import transfer
from pyfast.train.policy import loading
from pyfast.train.recipes.ampo import Ampo, AmpoSettings

EXAMPLES = [
    ("tell me about dog", "good happy dog"),
    ("tell me about rain", "sad rain"),
    ("tell me about sun", "great sun and nice day"),
]


pytestmark = pytest.mark.usefixtures("one_thread")


def with_sft(settings, folder, **changes):
    path = folder / "examples.jsonl"
    rows = [json.dumps({"prompt": x, "response": y}) for x, y in EXAMPLES]
    path.write_text("\n".join(rows) + "\n")
    section = {"epochs": 2, "data": str(path), "batch": 2, "lr": 0.02, **changes}
    return {**settings, "sft": section}


def parsed(settings, **changes):
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return configs.from_dict(AmpoSettings, settings, changes)


@pytest.mark.parametrize("training", ["lora", "full"])
def test_a_fine_tuned_run_on_its_own_data_answers_as_it_did(tiny_settings, tmp_path, training):
    settings = parsed(
        with_sft(tiny_settings, tmp_path), policy__training=training, optimisation__steps=2
    )
    run(settings, tmp_path / "run")
    data = tiny_settings["data"]["heldout"]
    transfer.evaluate_on(Ampo, tmp_path / "run", data, tmp_path / "again")
    for name in ("eval_before.jsonl", "eval_after.jsonl"):
        again = (tmp_path / "again" / name).read_bytes()
        assert again == (tmp_path / "run" / name).read_bytes()


def run(settings, out):
    return loop.run(Ampo, settings, Ampo.read(settings), out)


@pytest.mark.parametrize("training", ["lora", "full"])
def test_the_reference_is_the_fine_tuned_model(tiny, tiny_model, tiny_settings, tmp_path, training):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    settings = parsed(
        with_sft(tiny_settings, tmp_path), policy__training=training, optimisation__steps=3
    )
    out = tmp_path / "run"
    run(settings, out)

    base = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    if training == "lora":
        tuned = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(tiny_model), str(out / "sft" / "adapter")
        ).eval()  # the adapter beside the weights
    else:
        tuned = AutoModelForCausalLM.from_pretrained(out / "sft" / "model").eval()
    prompts = loading.load(settings.policy, seed=3)
    seen = 0
    for group in read_groups(out / "groups.jsonl"):
        ids = prompts.prompt_ids(group.prompt)
        for i in [group.positive, *group.negatives]:
            expected = plain_logp(tuned, ids, group.token_ids[i]).item()
            assert group.ref_logps[i] == pytest.approx(expected, rel=1e-4, abs=1e-4)
            seen += abs(expected - plain_logp(base, ids, group.token_ids[i]).item()) > 0.1
    assert seen > 5  # it is not the model that was never fine-tuned
    first = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)

    losses = [json.loads(line)["loss"] for line in (out / "sft" / "metrics.jsonl").open()]
    assert len(losses) == 3  # ceil(2 epochs * 3 / 2)
    assert losses[-1] < losses[0]


def test_a_step_is_adamw_on_the_mean_nll_of_a_token(tiny_settings, tmp_path):
    settings = parsed(
        with_sft(tiny_settings, tmp_path, epochs=1, batch=5, warmup=0.0), optimisation__steps=1
    )
    run(settings, tmp_path / "run")
    policy = loading.load(settings.policy, loop.sft.derive(3, "sft"))
    total, count = torch.zeros(()), 0
    for x, y in EXAMPLES:
        tokens = [*policy.tokenizer(y)["input_ids"], 3]
        total = total - plain_logp(policy.model, policy.prompt_ids(x), tokens)
        count += len(tokens)
    (total / count).backward()
    parameters = policy.trainable()
    norm = torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
    torch.optim.AdamW(parameters.values(), 0.02, weight_decay=0.0).step()
    (line,) = map(json.loads, (tmp_path / "run" / "sft" / "metrics.jsonl").open())
    assert line["loss"] == pytest.approx((total / count).item(), rel=1e-5)
    assert line["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    saved = load_file(tmp_path / "run" / "sft" / "adapter" / "adapter_model.safetensors")
    for name, parameter in parameters.items():
        found = saved[name.replace(".default", "")]
        torch.testing.assert_close(found, parameter.detach(), rtol=1e-3, atol=1e-5)


def test_the_runs_adapter_goes_on_top_of_it(tiny_settings, tmp_path):
    out = tmp_path / "run"
    settings = parsed(with_sft(tiny_settings, tmp_path), optimisation__steps=2)
    run(settings, out)
    whole = loading.load(configs.PolicyConfig(model=str(out / "adapter"), device="cpu"), seed=0)
    *_, group = read_groups(out / "eval_after.jsonl")
    ids = whole.prompt_ids(group.prompt)
    seed = loop.Context(whole, 3, out).seed("evaluate", 2)
    (again,) = whole.answer([ids], 4, settings.sampling, [seed])
    assert again.texts == group.responses


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_anywhere_it_ends_the_same(make_settings, tmp_path):
    config = tmp_path / "config.json"
    settings = make_settings(tmp_path)
    settings["optimisation"]["steps"] = 2
    config.write_text(json.dumps(with_sft(settings, tmp_path, epochs=3)))
    nursery = Nursery(tmp_path, config)
    try:
        whole = nursery.finish(tmp_path / "run-whole")
        assert "sft/adapter/adapter_model.safetensors" in whole
        assert not any(name.startswith("sft/checkpoint") for name in whole)
        assert nursery.kill_at_random(tmp_path / "run-killed", touches(20, 90, seed=2), most=3) > 0
        assert nursery.finish(tmp_path / "run-killed") == whole
    finally:
        nursery.close()


def test_what_it_learns_is_read_first(tiny_settings, tmp_path):
    settings = with_sft(tiny_settings, tmp_path)
    for line, message in (
        ('{"prompt": "a"}', r":1: expected a non-empty string \"response\", got None"),
        ('{"prompt": "a", "response": " "}', ":1: expected a non-empty string"),
        ('{"response": "a"}', ':1: expected a non-empty string "prompt"'),
        ("[]", ":1: expected an object like"),
        ("", ": expected at least one example"),
    ):
        (tmp_path / "examples.jsonl").write_text(line + "\n")
        with pytest.raises(UserError, match=message):
            run(parsed(settings), tmp_path / "run")
        assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"sft\.data: no such file"):
        run(parsed(settings, sft__data="nothing.jsonl"), tmp_path / "run")
    with pytest.raises(UserError, match=r"sft\.data: expected a file .* before ampo trains"):
        run(parsed(settings, sft__data=None), tmp_path / "run")
    assert sft.read(Ampo, parsed(settings, sft__epochs=0.0, sft__data=None), None) == []

    (tmp_path / "examples.jsonl").write_text(
        json.dumps({"prompt": "a", "response": "dog " * 200}) + "\n"
    )
    with pytest.raises(UserError, match=r"examples\.jsonl:1: prompt and response have 20\d tokens"):
        run(parsed(settings), tmp_path / "run")


def test_other_examples_are_another_run(tiny_settings, tmp_path):
    settings = parsed(with_sft(tiny_settings, tmp_path), optimisation__steps=1)
    out = tmp_path / "run"
    run(settings, out)
    (out / "summary.json").unlink()
    os.rename(out / "adapter", tmp_path / "adapter")
    (tmp_path / "examples.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    with pytest.raises(UserError, match="started with another supervised fine-tuning"):
        run(settings, out)


def test_a_recipes_chosen_responses_are_the_default(tiny_settings, tmp_path, monkeypatch):
    from pyfast.train.data.prompts import Prompt

    pairs = [(Prompt(x), y, f"groups:{i}") for i, (x, y) in enumerate(EXAMPLES)]
    settings = with_sft(tiny_settings, tmp_path)
    given = parsed(settings, optimisation__steps=1)
    run(given, tmp_path / "file")
    monkeypatch.setattr(Ampo, "chosen", staticmethod(lambda settings, inputs: pairs))
    run(parsed(settings, optimisation__steps=1, sft__data=None), tmp_path / "chosen")
    names = ("sft/adapter/adapter_model.safetensors", "groups.jsonl")
    for name in names:
        assert (tmp_path / "file" / name).read_bytes() == (tmp_path / "chosen" / name).read_bytes()
