"""AMPO in rounds: one pool a round, by the policy that begins it; killed anywhere, the same end."""

import json
import os

import pytest
import torch
from nursery import Nursery, touches
from one_at_a_time import plain_logp

from pyfast import cli
from pyfast.train import config as configs
from pyfast.train import loop
from pyfast.train.data.group import read_groups
from pyfast.train.data.records import read_records
from pyfast.train.errors import UserError
from pyfast.train.policy import loading
from pyfast.train.recipes.ampo import Ampo, AmpoSettings

PROMPTS = 5  # of `make_settings`
FORMATS = (
    "groups", "list", "numbered", "pairs", "nemo", "sharegpt", "alpaca", "swift", "ultrafeedback"
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


def in_rounds(settings, **changes):
    values = {**settings, "rounds": {"rounds": 2}}
    values["optimisation"] = {"lr": 0.02, "groups_per_step": 2, "epochs": 1}
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return configs.from_dict(AmpoSettings, values, changes)


def run(settings, out):
    return loop.run(Ampo, settings, Ampo.read(settings), out)


def metrics_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").open()]


@pytest.mark.parametrize("reference", ["loaded", "round"])
def test_each_round_learns_from_all_prompts_sampled_by_its_policy(
    tiny_settings, tmp_path, reference
):
    settings = in_rounds(tiny_settings, rounds__reference=reference)
    out = tmp_path / "run"
    summary = run(settings, out)
    steps = 3  # ceil(5 prompts / 2)
    assert summary["steps"] == 2 * steps
    first, second = (read_groups(out / "kept" / f"round-{r}.jsonl") for r in (1, 2))
    trained = read_groups(out / "groups.jsonl")
    for number, pool in enumerate((first, second)):
        assert len(pool) == PROMPTS
        seen = trained[number * 2 * steps : (number + 1) * 2 * steps]
        assert {group.prompt for group in seen} == {group.prompt for group in pool}
        by_prompt = {group.prompt: group for group in pool}
        for group in seen:
            assert group.responses == by_prompt[group.prompt].responses
            assert group.negatives == by_prompt[group.prompt].negatives
            assert group.ref_logps == by_prompt[group.prompt].ref_logps
    assert [g.responses for g in first] != [g.responses for g in second]

    # a round's warm-up and cosine are its own
    rates = [line["lr"] for line in metrics_of(out)]
    assert rates[:steps] == rates[steps:]

    # the reference of the second round, against the model as loaded and the policy of then
    bare = loading.load(settings.policy, seed=3)
    begins = loading.load(settings.policy, seed=3)
    short = in_rounds(tiny_settings, rounds__reference=reference, rounds__rounds=1)
    run(short, tmp_path / "short")
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "short" / "adapter" / "adapter_model.safetensors")
    with torch.no_grad():
        for name, parameter in begins.trainable().items():
            parameter.copy_(saved[name.replace(".default", "")])
    model = bare.model if reference == "loaded" else begins.model
    for group in second:
        ids = bare.prompt_ids(group.prompt)
        for i in [group.positive, *group.negatives]:
            expected = plain_logp(model, ids, group.token_ids[i]).item()
            assert group.ref_logps[i] == pytest.approx(expected, rel=1e-4, abs=1e-4)
    margin = metrics_of(out)[steps]["rewards/margins"]
    assert (abs(margin) < 1e-4) == (reference == "round")


def test_epochs_learn_from_a_pool_again(tiny_settings, tmp_path):
    settings = in_rounds(tiny_settings, optimisation__epochs=2.0, rounds__rounds=1)
    run(settings, tmp_path / "run")
    prompts = [group.prompt for group in read_groups(tmp_path / "run" / "groups.jsonl")]
    assert len(prompts) == 2 * PROMPTS
    assert all(prompts.count(prompt) == 2 for prompt in prompts)
    assert len(set(prompts[:PROMPTS])) == PROMPTS  # an epoch goes through all


def test_epochs_on_policy(tiny_settings, tmp_path):
    values = {**tiny_settings, "optimisation": {"lr": 0.02, "groups_per_step": 2, "epochs": 1}}
    settings = configs.from_dict(AmpoSettings, values)
    assert run(settings, tmp_path / "run")["steps"] == 3


def test_a_pool_is_a_data_set(tiny_settings, tmp_path):
    run(in_rounds(tiny_settings, rounds__rounds=1), tmp_path / "run")
    pool = tmp_path / "run" / "kept" / "round-1.jsonl"
    records = read_records(pool, needs=("scores", "positive"))
    groups = read_groups(pool)
    for record, group in zip(records, groups, strict=True):
        assert record.responses == group.responses
        assert record.scores == group.scores
        assert record.positive == group.positive
    for name in FORMATS:
        out = tmp_path / f"{name}.jsonl"
        assert cli.main(["export", str(pool), "--format", name, "--out", str(out)]) == 0
        assert out.stat().st_size > 0
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").open()]
    assert [(pair["prompt"], pair["chosen"], pair["rejected"]) for pair in pairs] == [
        (group.prompt, group.responses[group.positive], group.responses[i])
        for group in groups
        for i in group.negatives
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds__rounds": None, "rounds__reference": "round"}, r"rounds\.reference: expected lo"),
        ({"optimisation__steps": 5}, r"optimisation\.steps: expected null beside rounds\.rounds"),
        (
            {"optimisation__steps": 5, "rounds__rounds": None},
            r"optimisation\.steps: expected null beside optimisation\.epochs",
        ),
        ({"selection__selector": "worst", "selection__exact": True}, r"selection\.exact: expected"),
    ],
)
def test_settings_that_contradict_each_other(tiny_settings, changes, message):
    with pytest.raises(UserError, match=message):
        in_rounds(tiny_settings, **changes)


def test_greedy_sampling_is_told(tiny_settings, capsys):
    Ampo.read(in_rounds(tiny_settings, sampling__temperature=0.0))
    assert "warning: sampling.temperature: at 0 all responses" in capsys.readouterr().err


def test_a_damaged_pool_is_told(tiny_settings, tmp_path, monkeypatch):
    settings = in_rounds(tiny_settings)
    out = tmp_path / "run"

    def stop(*arguments):
        raise KeyboardInterrupt

    real = loop.learn
    monkeypatch.setattr(loop, "learn", stop)
    with pytest.raises(KeyboardInterrupt):
        run(settings, out)
    monkeypatch.setattr(loop, "learn", real)
    pool = out / "kept" / "round-1.jsonl"
    whole = pool.read_text()
    rows = whole.splitlines(keepends=True)
    pool.write_text("".join([rows[1], rows[0], *rows[2:]]))
    with pytest.raises(UserError, match=r"round-1\.jsonl:1: expected the group of 'tell me about"):
        run(settings, out)
    other = json.loads(rows[1])
    other["scores"] = other["scores"][::-1]
    pool.write_text("".join([rows[0], json.dumps(other) + "\n", *rows[2:]]))
    with pytest.raises(UserError, match=r"round-1\.jsonl: expected what the run has kept there"):
        run(settings, out)
    pool.write_text("".join(rows[:2]) + rows[2][: len(rows[2]) // 2])  # a kill while it was written
    run(settings, out)
    assert pool.read_text() == whole


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_anywhere_it_ends_the_same(make_settings, tmp_path):
    values = make_settings(tmp_path)
    values["rounds"] = {"rounds": 2, "reference": "round"}
    values["optimisation"] = {"lr": 0.02, "groups_per_step": 3, "epochs": 1}
    config = tmp_path / "config.json"
    config.write_text(json.dumps(values))
    nursery = Nursery(tmp_path, config)
    try:
        whole = nursery.finish(tmp_path / "run-whole")
        assert {"kept/round-1.jsonl", "kept/round-2.jsonl"} <= set(whole)
        assert nursery.kill_at_random(tmp_path / "run-killed", touches(15, 70, seed=4), most=3) > 0
        assert nursery.finish(tmp_path / "run-killed") == whole
    finally:
        nursery.close()


def test_what_is_answered_between_makes_a_curve(tiny_settings, tmp_path):
    out = tmp_path / "run"
    summary = run(in_rounds(tiny_settings, evaluation__every=2), out)
    lines = [json.loads(line) for line in (out / "evaluation" / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == [0, 2, 3, 4, 6]  # rounds end at 3 and 6
    assert lines[0]["score/mean"] == pytest.approx(summary["metrics"]["score/before"]["mean"])
    assert lines[-1]["score/mean"] == pytest.approx(summary["metrics"]["score/after"]["mean"])
    groups = read_groups(out / "evaluation" / "step-3.jsonl")
    means = [sum(group.scores) / len(group.scores) for group in groups]
    assert lines[2]["score/mean"] == pytest.approx(sum(means) / len(means))


def test_prompts_that_are_cut_are_counted(tiny_settings, tmp_path, capsys):
    values = {**tiny_settings, "text": {"max_prompt": 6}}
    summary = run(in_rounds(values, rounds__rounds=1), tmp_path / "run")
    # "user tell me about TOPIC </s> assistant": 7 tokens, 8 of a topic of two words
    told = capsys.readouterr().err
    count = summary["cut"]["prompts"]
    assert 5 <= count <= 8
    assert f"pyfast: {count} of 8 prompts are longer than text.max_prompt" in told


def test_scores_that_cannot_be_weighed_are_told_with_their_prompt(
    tiny_settings, tmp_path, monkeypatch
):
    code = "def big(p, ys): return [1000.0 * i for i in range(len(ys))]\n"
    (tmp_path / "big_reward.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    changes = {"scoring__reward": "big_reward:big", "selection__reward_scale": "none"}
    wanted = r"^selection, prompt 'tell me about [\w ]+': reward_scale: 'none' expects rewards with"
    with pytest.raises(UserError, match=wanted):
        run(in_rounds(tiny_settings, **changes), tmp_path / "run")
