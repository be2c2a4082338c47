"""HPS as a run: what it reads, refuses, forwards and measures, on a made-up model."""

import itertools
import json
import os
import random
import shutil

import numpy as np
import pytest
from nursery import Nursery, touches

from pyfast import cli
from pyfast.train import config as configs
from pyfast.train.errors import UserError
from pyfast.train.recipes.hps import Hps, HpsSettings, heldout_pairs
from pyfast.train.recipes.hps import inputs as hps_inputs
from pyfast.train.recipes.hps.hard_negatives import negatives_of

WORDS = ["good", "great", "happy", "love", "nice", "bad", "sad", "awful", "hate", "poor"]


def record(number, n=6, **fields):
    generator = random.Random(number)
    responses = [" ".join(generator.choices(WORDS, k=1 + i % 4)) for i in range(n)]
    scores = [round(generator.uniform(-1, 1), 2) for _ in responses]
    return {
        "prompt": f"tell me about {WORDS[number]}",
        "responses": responses,
        "scores": scores,
        **fields,
    }


def write(path, records):
    path.write_text("".join(json.dumps(row) + "\n" for row in records))
    return str(path)


def make(folder, tiny_model, records=None, heldout=True, **changes):
    """Return the settings of a run that takes a second."""
    records = records or [record(i) for i in range(5)]
    values = {
        "recipe": "hps",
        "data": {"groups": write(folder / "groups.jsonl", records)},
        "policy": {"model": str(tiny_model), "lora_rank": 2, "lora_alpha": 4, "device": "cpu"},
        "sampling": {"max_new_tokens": 6},
        "scoring": {"reward": "made"},
        "optimisation": {"lr": 0.02, "epochs": 1.2},
        "evaluation": {"reward": "vader", "responses": 2, "bootstrap": 100},
        "run": {"seed": 3, "checkpoint_every": 2, "threads": 1},
    }
    if heldout:
        pairs = [record(i, 2, positive=i % 2) for i in (6, 7, 8)]
        values["data"]["heldout"] = write(folder / "pairs.jsonl", pairs)
    for name, section in changes.items():
        values.setdefault(name, {}).update(section)
    return values


def settings_of(values):
    return configs.from_dict(HpsSettings, values)


def test_what_is_written_is_checked_before_a_model_is_loaded(run_python):
    run_python("""
import sys
from pyfast.train.recipes.hps import Hps
assert "torch" not in sys.modules
""")


def test_the_best_response_and_its_negatives(tmp_path, tiny_model):
    inputs = Hps.read(settings_of(make(tmp_path, tiny_model)))
    assert len(inputs.examples) == 5
    for example in inputs.examples:
        assert example.scores[example.heads[0]] == example.scores.max()
    assert inputs.same_scorer is False
    assert [item.prompt for item in inputs.pairs] == inputs.heldout
    assert inputs.pairs[0].chosen == record(6, 2)["responses"][0]
    assert inputs.pairs[1].chosen == record(7, 2)["responses"][1]


def test_sets_nest(tmp_path, tiny_model):
    records = [record(i, 9) for i in range(3)]
    seen = []
    for first in (2, 5, 9, None):
        values = make(tmp_path, tiny_model, records, negatives={"first": first})
        inputs = Hps.read(settings_of(values))
        seen.append([example.record.responses for example in inputs.examples])
        assert inputs.counts["short"] == 0
    for small, large in itertools.pairwise(seen):
        assert all(a == b[: len(a)] for a, b in zip(small, large, strict=True))
    assert [len(rows[0]) for rows in seen] == [2, 5, 9, 9]


def test_groups_without_a_negative_are_skipped_and_counted(tmp_path, tiny_model, capsys):
    records = [record(0), record(1) | {"scores": [0.5] * 6}, record(2)]
    inputs = Hps.read(settings_of(make(tmp_path, tiny_model, records)))
    assert inputs.counts == {"groups": 3, "skipped": 1, "short": 0}
    assert [example.number for example in inputs.examples] == [0, 2]
    assert "1 of 3 groups have no negative and are skipped" in capsys.readouterr().err
    kept = make(tmp_path, tiny_model, records, negatives={"keep_ties": True})
    assert len(Hps.read(settings_of(kept)).examples) == 3
    with pytest.raises(UserError, match="expected a group with a negative"):
        Hps.read(settings_of(make(tmp_path, tiny_model, records[1:2])))


def test_a_chosen_response_among_its_own_negatives_is_told(tmp_path, tiny_model, capsys):
    some = {"responses": ["good", "bad", "good"], "scores": [1.0, 0.0, 0.5]}
    tied = {"responses": ["good", "bad", "good"], "scores": [1.0, 0.0, 1.0]}  # no negative
    Hps.read(settings_of(make(tmp_path, tiny_model, [record(0), record(1) | tied])))
    assert "copy of the chosen" not in capsys.readouterr().err
    Hps.read(settings_of(make(tmp_path, tiny_model, [record(0), record(1) | some])))
    said = capsys.readouterr().err
    assert "1 groups have a copy of the chosen response among its negatives" in said
    assert "groups.jsonl:2" in said


def test_too_few_responses_are_told(tmp_path, tiny_model, capsys):
    records = [record(0), record(1, 3)]
    values = make(tmp_path, tiny_model, records, negatives={"first": 5})
    assert Hps.read(settings_of(values)).counts["short"] == 1
    assert "1 groups have fewer" in capsys.readouterr().err


BAD = [
    ({"scores": None}, {}, "scores: expected one number a response"),
    ({"scores": [1, 2]}, {}, "scores: expected 6 numbers"),
    ({"responses": ["good"]}, {}, "responses: expected at least 2"),
    ({"responses": "good"}, {}, "responses: expected a list of strings"),
    ({}, {"chosen": "label"}, "positive: expected the index of the chosen response"),
    ({"positive": 6}, {"chosen": "label"}, r"positive: expected a whole number in 0\.\.5"),
    ({"positive": 4}, {"chosen": "label", "first": 3}, "positive: expected one of the first 3"),
    ({"valid": [4, 5]}, {"first": 3}, "valid: expected one of the first 3"),
    ({"valid": [0, 1], "positive": 2}, {"chosen": "label"}, "positive: expected a valid response"),
    ({"valid": []}, {}, "valid: expected a list"),
    ({"scores": [1e308, 2, 3, 4, 5, 6]}, {}, "gamma times scores overflows"),
    ({"prompt": ""}, {}, "expected a non-empty string"),
]


@pytest.mark.parametrize(("fields", "negatives", "message"), BAD)
def test_a_bad_group_is_told_with_file_and_line(tmp_path, tiny_model, fields, negatives, message):
    good = {"positive": 0} if "positive" in message or negatives.get("chosen") else {}
    records = [record(0, **good), {**record(1), **fields}]
    values = make(tmp_path, tiny_model, records, negatives=negatives)
    with pytest.raises(UserError, match=message) as told:
        Hps.read(settings_of(values))
    assert f"{tmp_path / 'groups.jsonl'}:2: " in str(told.value)


def test_a_broken_line_and_no_file(tmp_path, tiny_model):
    values = make(tmp_path, tiny_model)
    (tmp_path / "groups.jsonl").write_text(json.dumps(record(0)) + '\n{"prompt": "a", ')
    with pytest.raises(UserError, match=r"groups\.jsonl:2: .*not JSON"):
        Hps.read(settings_of(values))
    (tmp_path / "groups.jsonl").unlink()
    with pytest.raises(UserError, match=r"data\.groups: no such file"):
        Hps.read(settings_of(values))
    with pytest.raises(UserError, match=r"data\.groups: expected a groups file"):
        Hps.read(HpsSettings())


def test_the_demo_says_how_its_data_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "hps", "--demo"]) == 2
    assert "make demo RECIPE=hps makes it" in capsys.readouterr().err


def test_held_out_records(tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a"}\n{"prompt": "b", "responses": ["good", "bad"]}\n')
    with pytest.raises(UserError, match=r":2: expected responses in all records or in none"):
        heldout_pairs.read(str(prompts))
    pairs = tmp_path / "pairs.jsonl"
    row = record(0, 4)
    write(pairs, [row, row | {"positive": 1}, row | {"scores": [1] * 4}])
    scored, labelled, tied = heldout_pairs.read(str(pairs))
    order = np.argsort(row["scores"])
    assert scored.chosen == row["responses"][order[-1]]
    assert scored.rejected == row["responses"][order[0]]
    assert (labelled.chosen, labelled.rejected) == (row["responses"][1], row["responses"][0])
    assert tied.chosen is None
    write(pairs, [row, row | {"positive": 2}])
    with pytest.raises(UserError, match=r":2: positive: expected 0 or 1"):
        heldout_pairs.read(str(pairs))
    write(pairs, [{"prompt": "a", "responses": ["good", "bad"]}])
    with pytest.raises(UserError, match=r":1: expected positive or scores"):
        heldout_pairs.read(str(pairs))


def test_splits_are_kept_apart(tmp_path, tiny_model, capsys):
    splits = ["train", "test", "validation", "train", "test", None]
    records = [record(i, split=split) for i, split in enumerate(splits)]
    values = make(tmp_path, tiny_model, records)
    values["data"]["heldout"] = values["data"]["groups"]  # one file for both
    with pytest.raises(UserError, match="expected groups of the split test"):
        heldout_pairs.read(write(tmp_path / "train.jsonl", records[:1]))
    inputs = Hps.read(settings_of(values))
    assert [example.record.prompt for example in inputs.examples] == [
        records[i]["prompt"] for i in (0, 3, 5)
    ]
    assert inputs.heldout == [records[i]["prompt"] for i in (1, 4)]
    assert "3 groups are of other splits than train" in capsys.readouterr().err
    values = make(tmp_path, tiny_model, records[1:3])
    with pytest.raises(UserError, match="expected groups of the split train"):
        Hps.read(settings_of(values))


def test_one_scorer_for_both_is_warned_of(tmp_path, tiny_model, capsys):
    values = make(tmp_path, tiny_model, scoring={"reward": "vader"})
    assert Hps.read(settings_of(values)).same_scorer is True
    assert "vader made the training scores too" in capsys.readouterr().err
    values = make(tmp_path, tiny_model, scoring={"reward": None})
    assert Hps.read(settings_of(values)).same_scorer is None
    records = [record(i, scored_by="vader") for i in range(3)]
    values = make(tmp_path, tiny_model, records, scoring={"reward": None})
    assert Hps.read(settings_of(values)).same_scorer is True
    values = make(tmp_path, tiny_model, scoring={"reward": None}, evaluation={"reward": None})
    with pytest.raises(UserError, match=r"evaluation\.reward: expected what scores the answers"):
        Hps.read(settings_of(values))


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("negatives", {"gamma_low": 6.0}, "gamma_low: expected at most"),
        ("negatives", {"draws": 0, "importance": "q"}, "importance: expected auto"),
        ("scoring", {"judge": "a:b", "tolerance": 0.5}, "tolerance: expected less than 0.5"),
        ("negatives", {"mode": "pairs"}, "mode: expected one of hps, bt, pl"),
    ],
)
def test_settings_that_do_not_go_together(section, values, message):
    with pytest.raises(UserError, match=message):
        configs.from_dict(HpsSettings, {section: values})


def run(folder, values, name="run", *flags):
    config = folder / f"{name}.json"
    config.write_text(json.dumps(values))
    out = folder / name
    status = cli.main(["train", "hps", "--config", str(config), "--out", str(out), *flags])
    return status, out


def metrics_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def measured_run(tmp_path_factory, tiny_model):
    """Return a run's settings and its folder; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("hps")
    values = make(folder, tiny_model, evaluation={"every": 3})
    status, out = run(folder, values)
    assert status == 0
    return values, out


def test_a_run_measures_what_the_paper_has(measured_run):
    _, out = measured_run
    summary = json.loads((out / "summary.json").read_text())
    metrics = summary["metrics"]
    wanted = {"score/mean", "score/best", "score/difference", *heldout_pairs.MEASURES}
    wanted |= {f"{name}/before" for name in ("win", "tie", "lose", "win_rate")}
    assert wanted <= set(metrics)
    assert all({"mean", "low", "high"} == set(metrics[name]) for name in wanted)
    shares = [metrics[f"{name}/before"]["mean"] for name in ("win", "tie", "lose")]
    assert sum(shares) == pytest.approx(1)
    assert metrics["win_rate/before"]["mean"] == pytest.approx(shares[0] + shares[1] / 2)
    assert metrics["score/best"]["mean"] >= metrics["score/mean"]["mean"]
    assert metrics["score/mean"]["mean"] == pytest.approx(metrics["score/after"]["mean"])
    steps = metrics_of(out)
    assert len(steps) == 6
    assert metrics["tokens/forwarded"] == sum(step["tokens/forwarded"] for step in steps)
    assert metrics["responses/forwarded"] == 12
    curve = [
        json.loads(line) for line in (out / "evaluation" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in curve] == [0, 3, 6]
    as_loaded = {name: curve[0][name] for name in heldout_pairs.MEASURES if name != "rm_r_dpo"}
    assert set(as_loaded.values()) == {0}
    assert curve[-1]["rm_dpo"] == pytest.approx(metrics["rm_dpo"]["mean"])
    assert curve[-1]["rm_dpo"] != 0
    assert "rm_r_dpo" in Hps.table(summary)
    for name in ("training_curves", "heldout_scores", "heldout_curves"):
        assert (out / f"{name}.png").stat().st_size > 10_000
    assert [step["negatives/gamma"] for step in steps] == [-5, -5, -3, -1, 1, 3]


def test_margins_are_those_of_one_response_at_a_time(measured_run, tiny_model):
    """RM_DPO, RM_R-DPO and the log-ratio of the chosen response, from logits of one text each."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, out = measured_run
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    base = AutoModelForCausalLM.from_pretrained(tiny_model).double()
    tuned = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_model), out / "adapter"
    ).double()

    def logp(model, prompt, response):
        turns = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        before = tokenizer(text, add_special_tokens=False)["input_ids"]
        after = [*tokenizer(response, add_special_tokens=False)["input_ids"], 3]
        with torch.no_grad():
            logits = model(torch.tensor([before + after])).logits[0].log_softmax(-1)
        at = range(len(before) - 1, len(before) + len(after) - 1)
        return sum(logits[i, token].item() for i, token in zip(at, after, strict=True)), len(after)

    lines = (out / "evaluation" / "pairs-step-6.jsonl").read_text().splitlines()
    for number, line in zip((6, 7, 8), lines, strict=True):
        row, found = record(number, 2), json.loads(line)
        order = [number % 2, 1 - number % 2]
        h, sizes = [], []
        for i in order:
            policy, size = logp(tuned, row["prompt"], row["responses"][i])
            reference, _ = logp(base, row["prompt"], row["responses"][i])
            h.append(policy - reference)
            sizes.append(size)
        margin = h[0] - h[1]
        assert found["rm_dpo"] == pytest.approx(margin, abs=2e-5)
        assert found["rm_r_dpo"] == pytest.approx(margin - 0.01 * (sizes[0] - sizes[1]), abs=2e-5)
        assert found["kl_chosen"] == pytest.approx(h[0], abs=2e-5)
        assert found["rewards/margins"] == pytest.approx(0.1 * margin, abs=2e-5)
        assert found["lengths"][:2] == sizes


@pytest.fixture(scope="module")
def policy(tiny_model):
    from pyfast.train.config import PolicyConfig
    from pyfast.train.policy import loading

    return loading.load(PolicyConfig(model=str(tiny_model), lora_rank=2, device="cpu"), 0)


def steps_of(values, policy, folder):
    """Return the groups of each step, without training."""
    from pyfast.train.context import Context

    settings = settings_of(values)
    inputs = Hps.read(settings)
    recipe = Hps(settings, inputs, Context(policy, settings.run.seed, folder))
    return [recipe.groups(step) for step in range(Hps.steps(settings, inputs))]


@pytest.mark.parametrize(
    ("negatives", "forwarded"),
    [({"mode": "bt"}, 2), ({}, 2), ({"mode": "pl"}, 6), ({"draws": 0}, 6)],
)
def test_what_goes_through_the_model(
    tmp_path, tiny_model, policy, negatives, forwarded, monkeypatch
):
    """One draw forwards two responses, as many as bt; their tokens are counted as they are."""
    from pyfast.train.context import Context

    seen, logps = [], type(policy).logps

    def counted(self, prompt, responses, *, reference=False):
        seen.append((len(responses), len(prompt) + sum(map(len, responses))))
        return logps(self, prompt, responses, reference=reference)

    monkeypatch.setattr(type(policy), "logps", counted)
    values = make(tmp_path, tiny_model, negatives=negatives, heldout=False)
    steps = steps_of(values, policy, tmp_path)
    assert seen == []  # nothing is forwarded to draw
    for (group,) in steps:
        Context(policy, 0, tmp_path).score(group)
        tokens = group.measured["tokens/forwarded"]
        assert seen[-2:] == [(forwarded, tokens)] * 2  # the policy, and the reference
        assert group.measured["responses/forwarded"] == forwarded
    assert len(seen) == 12


def test_draws_are_new_each_epoch_and_the_same_in_each_run(tmp_path, tiny_model, policy):
    records = [record(i, 30) for i in range(2)]
    drawn = []
    for seed in (3, 3, 4):
        values = make(
            tmp_path, tiny_model, records, heldout=False, optimisation={"epochs": 8.0},
            negatives={"schedule": "constant", "gamma_high": 0.0, "gamma_low": 0.0},
            run={"seed": seed},
        )  # fmt: skip
        groups = [group for step in steps_of(values, policy, tmp_path) for group in step]
        assert len(groups) == 16
        drawn.append([tuple(group.responses[1]) for group in groups])
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) > 8


def test_all_modes_see_the_same_groups_in_the_same_order(tmp_path, tiny_model, policy):
    chosen = []
    for mode in ("hps", "bt", "pl"):
        values = make(tmp_path, tiny_model, heldout=False, negatives={"mode": mode})
        steps = steps_of(values, policy, tmp_path)
        chosen.append([(group.prompt, group.responses[0]) for step in steps for group in step])
    assert chosen[0] == chosen[1] == chosen[2]


def test_skipped_groups_leave_the_draws_of_others_alone(tmp_path, tiny_model, policy):
    """Draws belong to a record's number in the file: whether another is skipped changes none."""
    records = [record(i, 30) for i in range(3)]
    found = []
    for first in (records[0], record(0, 30) | {"scores": [0.5] * 30}):
        values = make(
            tmp_path, tiny_model, [first, *records[1:]], optimisation={"epochs": 1.0},
            negatives={"schedule": "constant"},
        )  # fmt: skip
        steps = steps_of(values, policy, tmp_path)
        found.append({tuple(g.prompt): g.responses[1] for step in steps for g in step})
    assert len(found[0]) == 3
    assert len(found[1]) == 2
    assert found[1].items() <= found[0].items()


def test_a_response_of_no_text_is_its_end_token(tmp_path, tiny_model):
    records = [record(i) for i in range(3)]
    for row in records:
        row["responses"][0] = ""
    values = make(tmp_path, tiny_model, records, negatives={"draws": 0})
    status, out = run(tmp_path, values)
    assert status == 0
    assert all(np.isfinite(step["loss"]) for step in metrics_of(out))


def test_a_response_without_room_is_told_with_its_place(tmp_path, tiny_model, capsys):
    records = [record(0), record(1)]
    records[1]["responses"][3] = "good " * 130
    status, _ = run(tmp_path, make(tmp_path, tiny_model, records))
    assert status == 2
    told = capsys.readouterr().err
    assert f"{tmp_path / 'groups.jsonl'}:2: prompt and response have" in told
    values = make(tmp_path, tiny_model, records, text={"max_response": 20}, negatives={"draws": 0})
    status, out = run(tmp_path, values, "cut")
    assert status == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["cut"] == {"responses": 1}


def test_a_prompt_that_fills_the_context_is_told(tmp_path, tiny_model, capsys):
    records = [record(0), record(1) | {"prompt": "good " * 126}]
    status, _ = run(tmp_path, make(tmp_path, tiny_model, records))
    assert status == 2
    assert ":2: prompt and response have" in capsys.readouterr().err
    values = make(tmp_path, tiny_model)
    write(tmp_path / "pairs.jsonl", [record(6, 2, positive=0), record(7, 2, positive=0)])
    rows = [record(6, 2, positive=0), record(7, 2, positive=0) | {"prompt": "good " * 124}]
    write(tmp_path / "pairs.jsonl", rows)
    status, _ = run(tmp_path, values, "pairs")
    assert status == 2
    assert "pairs.jsonl:2: the prompt has" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, tiny_model, capsys, monkeypatch):
    import torch

    from pyfast.train.recipes.hps import recipe as hps

    monkeypatch.setattr(hps, "loss", lambda *a, **k: torch.tensor(float("nan")))
    status, out = run(tmp_path, make(tmp_path, tiny_model))
    assert status == 2
    assert "diverged at step 1: the loss is nan" in capsys.readouterr().err
    assert not (out / "metrics.jsonl").exists()


def test_held_out_prompts_are_not_trained_on(tmp_path, tiny_model):
    values = make(tmp_path, tiny_model)
    write(tmp_path / "pairs.jsonl", [record(1, 2, positive=0)])
    with pytest.raises(UserError, match="held-out prompt is also a training prompt"):
        Hps.read(settings_of(values))


def test_wins_against_another_run(measured_run, tmp_path, tiny_model, capsys):
    other = measured_run[1].rename(measured_run[1].with_name("other"))
    values = make(tmp_path, tiny_model, negatives={"mode": "bt"})
    values["scoring"]["against"] = str(other)
    status, out = run(tmp_path, values)
    other.rename(measured_run[1])
    assert status == 0
    metrics = json.loads((out / "summary.json").read_text())["metrics"]
    assert {"win/other", "tie/other", "lose/other", "win_rate/other"} <= set(metrics)
    key = json.loads((out / "evaluation" / "blind_key.json").read_text())
    assert sorted(key.values()) == ["after"] * 3 + ["before"] * 3 + ["other"] * 3
    values["scoring"]["against"] = str(tmp_path)
    capsys.readouterr()
    assert run(tmp_path, values)[0] == 2
    assert "no answers of a finished run here" in capsys.readouterr().err


def test_a_run_against_itself_ties(measured_run, tmp_path):
    values, other = measured_run
    values = {**values, "scoring": {**values["scoring"], "against": str(other)}}
    _, out = run(tmp_path, values)
    metrics = json.loads((out / "summary.json").read_text())["metrics"]
    assert metrics["tie/run"]["mean"] == 1
    assert metrics["win_rate/run"]["mean"] == 0.5


def test_a_finished_run_is_judged_again_by_another_judge(tmp_path, tiny_model, monkeypatch):
    (tmp_path / "longest.py").write_text(
        "def judge(prompt, first, second):\n"
        "    return 0.5 + 0.5 * ((len(first) > len(second)) - (len(first) < len(second)))\n"
    )
    monkeypatch.chdir(tmp_path)
    values = make(tmp_path, tiny_model)
    _, out = run(tmp_path, values)
    before = (out / "adapter" / "adapter_model.safetensors").read_bytes()
    values["scoring"]["judge"] = "longest:judge"
    status, out = run(tmp_path, values)
    assert status == 0
    assert (out / "adapter" / "adapter_model.safetensors").read_bytes() == before
    config = json.loads((out / "config.json").read_text())
    assert config["scoring"]["judge"] == "longest:judge"
    best = [
        [row["responses"][int(np.argmax(row["scores"]))] for row in map(json.loads, lines)]
        for lines in (
            (out / f"eval_{n}.jsonl").read_text().splitlines() for n in ("after", "before")
        )
    ]
    metrics = json.loads((out / "summary.json").read_text())["metrics"]
    longer = np.mean([len(a) > len(b) for a, b in zip(*best, strict=True)])
    assert metrics["win/before"]["mean"] == pytest.approx(longer)


def test_appendix_e_trains_on_each_valid_one(tmp_path, tiny_model):
    records = [record(i, valid=[1, 3]) for i in range(5)]
    values = make(tmp_path, tiny_model, records, heldout=False)
    status, out = run(tmp_path, values)
    assert status == 0
    counts = [step["responses/forwarded"] for step in metrics_of(out)]
    assert set(counts) <= {3, 4}  # two valid ones, and one or two negatives
    inputs = Hps.read(settings_of(values))
    for example in inputs.examples:
        assert set(example.heads) == {1, 3}
        assert not {1, 3} & set(
            negatives_of(settings_of(values).negatives, example.scores, example.heads)
        )


@pytest.mark.parametrize(("name", "value"), [("valid_weight", 0.5), ("valid_as_negatives", True)])
def test_what_is_for_several_valid_ones_is_refused_without_them(tmp_path, tiny_model, name, value):
    records = [record(0), record(1, valid=[2])]
    values = make(tmp_path, tiny_model, records, negatives={name: value})
    with pytest.raises(UserError, match=f"negatives.{name}: expected groups with several valid"):
        Hps.read(settings_of(values))
    records.append(record(2, valid=[1, 3]))
    values = make(tmp_path, tiny_model, records, negatives={name: value})
    assert len(Hps.read(settings_of(values)).examples) == 3


def test_chats_of_all_weights_with_prompts_alone_held_out(tmp_path, tiny_model):
    """Prompts as messages, full training, and held-out prompts that have no responses."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    chat = [{"role": "system", "content": "nice"}, {"role": "user", "content": "tell me"}]
    records = [{**record(i), "prompt": chat} for i in range(3)]
    values = make(tmp_path, tiny_model, records, policy={"training": "full"})
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "groups.parquet")
    values["data"]["groups"] = str(tmp_path / "groups.parquet")
    held = [{"prompt": [{"role": "user", "content": "about love"}]}, {"prompt": "about rain"}]
    values["data"]["heldout"] = write(tmp_path / "prompts.jsonl", held)
    values["optimisation"] = {"lr": 1e-3, "epochs": 1.0}
    status, out = run(tmp_path, values)
    assert status == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["pairs"] == 0
    assert "rm_dpo" not in summary["metrics"]
    assert summary["metrics"]["kl_sampled"]["mean"] != 0
    assert summary["heldout"]["prompts"] == 2
    assert all(step["grad_norm"] > 0 for step in metrics_of(out))


def test_fine_tuning_before_is_on_the_chosen_responses(tmp_path, tiny_model):
    values = make(tmp_path, tiny_model, sft={"epochs": 1.0, "lr": 0.01})
    inputs = Hps.read(settings_of(values))
    rows = [record(i) for i in range(5)]
    best = [row["responses"][int(np.argmax(row["scores"]))] for row in rows]
    assert [text for _, text, _ in Hps.chosen(settings_of(values), inputs)] == best
    status, out = run(tmp_path, values)
    assert status == 0
    curve = (out / "evaluation" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(curve[0])["rm_dpo"] == 0  # the reference is the fine-tuned model


def test_a_run_on_other_data_is_only_measured(measured_run, tmp_path, capsys):
    values, out = measured_run
    other = write(tmp_path / "other.jsonl", [record(i, 2, positive=0) for i in (8, 9)])
    on_other = tmp_path / "on-other"
    assert cli.main(["evaluate", str(out), "--data", other, "--out", str(on_other)]) == 0
    found = json.loads((on_other / "summary.json").read_text())
    assert found["heldout"]["prompts"] == 2
    assert set(heldout_pairs.MEASURES) <= set(found["metrics"])
    assert "tokens/forwarded" not in found["metrics"]  # nothing was trained
    # the same pairs again give the same margins
    again = tmp_path / "again"
    same = values["data"]["heldout"]
    assert cli.main(["evaluate", str(out), "--data", same, "--out", str(again)]) == 0
    first, second = (
        json.loads((folder / "summary.json").read_text())["metrics"] for folder in (out, again)
    )
    assert second["rm_dpo"] == first["rm_dpo"]
    capsys.readouterr()
    assert cli.main(["compare", str(out), str(on_other), "--json"]) == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("evaluation/pairs-step-6.jsonl", "", "expected 3 lines, one a held-out prompt, got 0"),
        ("evaluation/pairs-step-6.jsonl", '{"rm_dpo": "1"}\n' * 3, "rm_dpo: expected numbers"),
        ("evaluation/pairs-step-6.jsonl", "{\n", "not JSON"),
        ("eval_before.jsonl", '{"prompt": "a", "responses": ["b"], "scores": [1]}\n', "expected"),
        ("metrics.jsonl", "3\n", "expected"),
    ],
)
def test_damaged_measures_are_told(measured_run, tmp_path, name, content, message, capsys):
    values, out = measured_run
    folder = tmp_path / "damaged"
    shutil.copytree(out, folder)
    (folder / name).write_text(content)
    (folder / f"{name}.sha256").unlink(missing_ok=True)  # which would be refused before
    (folder / "summary.json").unlink()
    (tmp_path / "values.json").write_text(json.dumps(values))
    command = ["train", "hps", "--config", str(tmp_path / "values.json"), "--out", str(folder)]
    assert cli.main(command) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told


@pytest.mark.parametrize("name", ["eval_before.jsonl", "evaluation/pairs-step-6.jsonl"])
@pytest.mark.parametrize("summary", [True, False])
def test_measures_that_somebody_has_changed_are_refused(
    measured_run, tmp_path, name, summary, capsys
):
    """Though they have the right form: what is counted once more would be wrong in silence."""
    values, out = measured_run
    folder = tmp_path / "changed"
    shutil.copytree(out, folder)
    first, *others = (folder / name).read_text().splitlines(keepends=True)
    row = json.loads(first)
    measured, at = (row["scores"], 0) if "scores" in row else (row, "rm_dpo")
    measured[at] += 0.5
    (folder / name).write_text("".join([json.dumps(row) + "\n", *others]))
    if not summary:
        (folder / "summary.json").unlink()
    (tmp_path / "values.json").write_text(json.dumps(values))
    command = ["train", "hps", "--config", str(tmp_path / "values.json"), "--out", str(folder)]
    assert cli.main(command) == 2
    assert (
        f"{name}: expected what the run has kept there, as it was written"
        in capsys.readouterr().err
    )


def test_the_score_of_clean_language():
    pytest.importorskip("profanity_check")
    from pyfast.train.scoring.profanity import clean

    good, bad = clean("x", ["What a lovely day it is.", "you fucking idiot"])
    assert good > 0.8 > 0.2 > bad
    assert clean("x", [""])[0] > 0.5


def test_inputs_hash_their_files(tmp_path, tiny_model):
    values = make(tmp_path, tiny_model)
    inputs = hps_inputs.read(settings_of(values))
    assert set(inputs.hashes) == {"groups", "heldout"}


@pytest.fixture(scope="module")
def nursery(tiny_model, tmp_path_factory):
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    folder = tmp_path_factory.mktemp("hps-resume")
    config = folder / "config.json"
    values = make(folder, tiny_model, evaluation={"every": 4}, negatives={"draws": 2})
    config.write_text(json.dumps(values))
    nursery = Nursery(folder, config, "hps")
    yield nursery
    nursery.close()


def test_killed_anywhere_it_ends_the_same(nursery):
    whole = nursery.finish(nursery.folder / "run-whole")
    assert "evaluation/pairs-step-6.jsonl" in whole
    at, kills = touches(1, 160, seed=11), 0
    for trial in range(3):
        out = nursery.folder / f"run-{trial}"
        kills += nursery.kill_at_random(out, at, most=3)
        assert nursery.finish(out) == whole
    assert kills > 3
