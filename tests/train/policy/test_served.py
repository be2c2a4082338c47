"""A round's responses from a real small server that loads the round's adapter."""

import json
import os
import shutil

import pytest
import torch
from lora_server import LoraServer
from nursery import KILL, Nursery, contents

from pyfast.tables import http_client
from pyfast.train import config as configs
from pyfast.train import loop
from pyfast.train.errors import UserError
from pyfast.train.recipes.active_dpo import ActiveDpo
from pyfast.train.recipes.active_dpo.recipe import ActiveDpoSettings
from pyfast.train.recipes.ampo import Ampo
from pyfast.train.recipes.ampo.recipe import AmpoSettings


@pytest.fixture
def server(tiny_model, monkeypatch):
    monkeypatch.setattr(http_client, "_FIRST_WAIT", 0.01)
    made = LoraServer(tiny_model)
    yield made
    made.close()


@pytest.fixture
def values(make_active_settings, tmp_path, server):
    found = make_active_settings(tmp_path)
    found["active"] = {"rounds": 2, "labels": 4, "method": "random"}
    found["sampling"] |= {"server": server.url, "server_retries": 2, "merge": False}
    del found["data"]["heldout"]
    return found


def train(values, out, kind=ActiveDpo, settings=ActiveDpoSettings):
    made = configs.from_dict(settings, values)
    loop.run(kind, made, kind.read(made), out)
    return contents(out)


def test_each_round_samples_from_its_own_adapter(values, server, tmp_path, one_thread):
    out = tmp_path / "run"
    files = train(values, out)
    loaded = [body for path, body in server.requests if path == "/v1/load_lora_adapter"]
    names = [body["lora_name"] for body in loaded]
    assert len(set(names)) == 2
    assert [body["lora_path"] for body in loaded] == [
        str(out / "kept" / f"round-{number}-served") for number in (1, 2)
    ]
    assert server.adapters == {}  # they are unloaded, and not kept
    assert not list((out / "kept").glob("*-served"))
    asked = [body for path, body in server.requests if path == "/v1/completions"]
    assert {body["model"] for body in asked} == set(names)
    assert all(isinstance(token, int) for token in asked[0]["prompt"])
    # Else vLLM would sample as the model's generation_config.json says, not from the policy.
    whole = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
    assert all(whole.items() <= body.items() for body in asked)
    assert all(body["presence_penalty"] == body["frequency_penalty"] == 0 for body in asked)
    seeds = [body["seed"] for body in asked if body["temperature"]]
    assert len(set(seeds)) == len(seeds) == 10
    # What is learnt is what our own scorer says of our own tokens.
    made = configs.from_dict(ActiveDpoSettings, values)
    recipe = loop.load(ActiveDpo, made, ActiveDpo.read(made), tmp_path / "other")
    pair = json.loads(files["kept/round-1/labelled.json"])["pairs"][0]
    for text, tokens in zip(pair["texts"], pair["token_ids"], strict=True):
        assert recipe.ctx.tokens.response(text)[: len(tokens)] == tokens
    logps = recipe.ctx.policy.logps(pair["prompt_ids"], pair["token_ids"], reference=True)
    assert torch.equal(logps, torch.tensor(pair["ref_logps"]))


def test_a_server_that_fails_or_dies_in_a_round(values, server, tmp_path, one_thread, capsys):
    whole = train(values, tmp_path / "whole")
    out = tmp_path / "run"
    seen = []

    def dies_in_the_second_round(path, body):
        seen.append(path)
        asked = path == "/v1/completions" and body["temperature"] > 0
        return "dies" if asked and "/v1/load_lora_adapter" in seen else None

    server.script = [
        lambda path, body: (503, "busy") if path == "/v1/completions" else None,
        *[dies_in_the_second_round] * 20,
    ]
    with pytest.raises(UserError, match=r"sampling\.server: .*tried 3 times; .* is kept, and the"):
        train(values, out)
    assert (out / "kept" / "round-1" / "labelled.json").exists()
    server.script = []
    asked = len(server.requests)
    assert train(values, out) == whole
    again = [body for path, body in server.requests[asked:] if path == "/v1/load_lora_adapter"]
    assert len(again) == 1  # the first round's answers were kept


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_in_a_served_round_it_ends_the_same(values, server, tmp_path, one_thread, processes):
    """Before a batch of answers is written, between the lines of a round, after the adapter's end.

    What is on the disk is not sampled again, and everything has the bytes that it would have had.
    """
    values["sampling"]["responses"] = 16  # two prompts a batch
    config = tmp_path / "served.json"
    config.write_text(json.dumps(values))
    nursery = Nursery(tmp_path, config, "active-dpo")
    try:
        statuses, logs = nursery.run_together(tmp_path / "run-whole", processes=processes)
        assert statuses == [0] * processes, logs
        whole = contents(tmp_path / "run-whole")
        seeds = seeds_of(server)
        assert len(set(seeds)) == len(seeds) == 10
        server.requests.clear()
        out = tmp_path / "run-killed"
        for path, touch in (
            ("round-1/.answers-2.tmp", 1),
            ("round-2/.answers-4.tmp", 1),
            ("round-2/.labelled.tmp", 1),
        ):
            statuses, logs = nursery.run_together(out, processes=processes, touch=touch, path=path)
            assert statuses[0] == -KILL, logs
        statuses, logs = nursery.run_together(out, processes=processes)
        assert statuses == [0] * processes, logs
        assert contents(out) == whole
        asked = seeds_of(server)
        assert set(asked) == set(seeds)
        # only what was not on the disk: at most the batches that the processes had at once
        assert len(asked) - len(seeds) <= 2 * 2 * processes
    finally:
        nursery.close()


def seeds_of(server):
    asked = [body for path, body in server.requests if path == "/v1/completions"]
    return [body["seed"] for body in asked if body["temperature"]]


def test_a_server_that_lost_the_adapter(values, server, tmp_path, one_thread):
    whole = train(values, tmp_path / "whole")

    def forgets(path, body):
        if path == "/v1/completions" and body["temperature"] > 0:
            server.adapters.clear()
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        return None

    server.script = [forgets]
    with pytest.raises(UserError, match=r"status 404: The model `pyfast-\w+` does not exist"):
        train(values, tmp_path / "run")
    server.script = []
    assert train(values, tmp_path / "run") == whole


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            (400, {"error": {"message": "LoRA rank 2 is greater than max_lora_rank 1"}}),
            "max_lora_rank 1",
        ),
        (
            (200, {"error": "Unexpected endpoint or method. (POST /v1/load_lora_adapter)"}),
            r"tried 3 times; Unexpected endpoint or method",
        ),
        ((404, {"detail": "Not Found"}), r"status 404: Not Found \(vLLM: --enable-lora, and VLLM_"),
    ],
)
def test_an_adapter_that_is_refused(values, server, tmp_path, answer, message):
    server.script = [lambda path, body: answer if path == "/v1/load_lora_adapter" else None] * 3
    with pytest.raises(UserError, match=message):
        train(values, tmp_path / "run")
    server.script = []


def test_a_server_that_cuts_the_prompt(values, server, tmp_path):
    def cuts(path, body):
        if path != "/v1/completions":
            return None
        status, content = server.answer(path, body)
        read = len(body["prompt"]) - (len(body["prompt"]) > 2)
        return status, {**content, "usage": {"prompt_tokens": read}}

    server.script = [cuts] * 20
    with pytest.raises(UserError, match=r"has read \d+ of the prompt's \d+ tokens, and cut off"):
        train(values, tmp_path / "run")


def test_a_server_that_answers_without_the_adapter(values, server, tmp_path):
    def passes_over(path, body):
        if path != "/v1/completions":
            return None
        status, content = server.answer(path, body)
        return status, {**content, "model": "the-base-model"}

    server.script = [passes_over]
    with pytest.raises(UserError, match=r"that the-base-model has answered, in place of pyfast-"):
        train(values, tmp_path / "run")


def test_two_runs_of_one_seed_keep_off_each_others_adapter(values, server, tmp_path, one_thread):
    values["active"]["rounds"] = 1
    names = []
    for name in ("one", "other"):
        train(values, tmp_path / name)
        names.append({body["lora_name"] for path, body in server.requests if "/load" in path})
        server.requests.clear()
    assert names[0].isdisjoint(names[1])


def test_a_server_of_another_model(values, server, tiny_model, tmp_path):
    from transformers import AutoModelForCausalLM

    other = tmp_path / "other-model"
    shutil.copytree(tiny_model, other)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        model.get_output_embeddings().weight.neg_()
    model.save_pretrained(other)
    server.folder = str(other)
    with pytest.raises(UserError, match=r"answers as another model than policy\.model would"):
        train(values, tmp_path / "run")


def test_ampo_in_rounds(make_settings, server, tmp_path, one_thread):
    values = make_settings(tmp_path)
    values["sampling"] |= {"server": server.url, "merge": False, "responses": 4}
    values["optimisation"] = {"epochs": 1, "groups_per_step": 3, "lr": 0.02}
    values["rounds"] = {"rounds": 2}
    del values["data"]["heldout"]
    train(values, tmp_path / "run", Ampo, AmpoSettings)
    paths = [path for path, _ in server.requests]
    assert paths.count("/v1/load_lora_adapter") == 2
    del values["rounds"]
    values["optimisation"] = {"steps": 2}
    with pytest.raises(UserError, match=r"sampling\.server: expected rounds\.rounds beside it"):
        configs.from_dict(AmpoSettings, values)


def test_what_a_server_has_not_is_refused(values):
    for section, name, value, message in (
        ("policy", "training", "full", "expected policy.training lora"),
        ("sft", "epochs", 1.0, "expected sft.epochs 0"),
    ):
        changed = {**values, section: {**values.get(section, {}), name: value}}
        with pytest.raises(UserError, match=rf"sampling\.server: .*{message}"):
            configs.from_dict(ActiveDpoSettings, changed)
