import json

import pytest
import torch
from safetensors.torch import load_file

from pyfast import losses
from pyfast.train import config as configs
from pyfast.train import loop
from pyfast.train.data.group import read_groups
from pyfast.train.data.inputs import read_inputs
from pyfast.train.errors import UserError
from pyfast.train.policy import loading
from pyfast.train.recipes.ampo import Ampo, AmpoSettings


def run(settings, out, **changes):
    config = configs.from_dict(
        AmpoSettings, settings, {k.replace("__", "."): v for k, v in changes.items()}
    )
    return loop.run(Ampo, config, Ampo.read(config), out)


@pytest.fixture(scope="module")
def finished(make_settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    settings = make_settings(folder)
    return settings, folder / "run", run(settings, folder / "run")


def test_a_run_leaves_all_its_files(finished):
    settings, out, summary = finished
    names = {path.name for path in out.iterdir()}
    assert names == {
        ".lock",
        "adapter",
        "checkpoint",
        "config.json",
        "environment.json",
        "eval_after.jsonl",
        "eval_after.jsonl.sha256",
        "eval_before.jsonl",
        "eval_before.jsonl.sha256",
        "groups.jsonl",
        "heldout_scores.png",
        "metrics.jsonl",
        "selected_responses.png",
        "summary.json",
        "timings.jsonl",
        "training_curves.png",
    }
    assert configs.from_file(AmpoSettings, out / "config.json") == configs.from_dict(
        AmpoSettings, settings
    )
    assert [path.name for path in (out / "checkpoint").iterdir()] == ["step-6"]
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["heldout"]["prompts"] == 3

    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    expected = {"loss", "lr", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/margins"}
    expected |= {"rewards/accuracies", "logps/chosen", "logps/rejected", "negatives/effective"}
    expected |= {"scores/mean", "responses/length", "selection/cost"}
    assert expected <= set(lines[0])
    assert lines[0]["rewards/chosen"] == 0.0  # the policy starts as its reference
    assert lines[-1]["rewards/chosen"] != 0.0


def test_groups_hold_what_was_trained_on(finished):
    settings, out, _ = finished
    groups = read_groups(out / "groups.jsonl")
    assert len(groups) == 6
    reference = loading.load(configs.PolicyConfig(**settings["policy"]), seed=3)
    for step, group in enumerate(groups, start=1):
        assert group.meta == {"step": step, "selector": "opt-select"}
        assert len(group.responses) == 8
        assert group.embeddings.shape == (8, 16)
        assert max(group.scores) == group.scores[group.positive]
        picked = [group.positive, *group.negatives]
        assert [i for i, x in enumerate(group.policy_logps) if x is not None] == sorted(picked)
        ids = reference.prompt_ids(group.prompt)
        expected = reference.logps(ids, [group.token_ids[i] for i in picked], reference=True)
        torch.testing.assert_close(torch.tensor([group.ref_logps[i] for i in picked]), expected)


def test_the_adapter_that_is_saved_is_the_one_that_was_evaluated(finished):
    settings, out, _ = finished
    tuned = loading.load(configs.PolicyConfig(**settings["policy"]), seed=3)
    saved = load_file(out / "adapter" / "adapter_model.safetensors")
    with torch.no_grad():
        for name, parameter in tuned.trainable().items():
            parameter.copy_(saved[name.replace(".default", "")])
    config = configs.from_dict(AmpoSettings, settings)
    for name in ("before", "after"):
        answers = read_groups(out / f"eval_{name}.jsonl")
        assert [len(group.responses) for group in answers] == [4, 4, 4]
    from pyfast.train.context import Context
    from pyfast.train.evaluation import evaluate
    from pyfast.train.scoring import rewards

    prompts = read_inputs(config).heldout
    ctx = Context(tuned, config.run.seed, out)
    evaluate.answer(ctx, prompts, rewards.load("vader"), config, out.parent / "again.jsonl")
    assert (out.parent / "again.jsonl").read_bytes() == (out / "eval_after.jsonl").read_bytes()


def test_a_finished_run_is_left_alone(finished):
    settings, out, summary = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != ".lock"}
    assert run(settings, out) == summary
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.name != ".lock"}
    with pytest.raises(UserError, match=r"started with loss\.beta = 0\.1, not 0\.2"):
        run(settings, out, loss__beta=0.2)


def test_an_accumulated_step_is_one_big_batch(tiny_settings, tmp_path):
    """One step over three prompts: the mean loss of the three groups at once."""
    steps = {"optimisation__steps": 1, "optimisation__groups_per_step": 3}
    run(tiny_settings, tmp_path / "run", **steps)
    groups = read_groups(tmp_path / "run" / "groups.jsonl")
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())

    model = loading.load(configs.PolicyConfig(**tiny_settings["policy"]), seed=3)
    logps, reference, scores = [], [], []
    for group in groups:
        picked = [group.positive, *group.negatives]
        ids, tokens = model.prompt_ids(group.prompt), [group.token_ids[i] for i in picked]
        logps.append(model.logps(ids, tokens))
        reference.append(model.logps(ids, tokens, reference=True))
        scores.append(torch.tensor([group.scores[i] for i in picked]))
    batch = [torch.stack(part) for part in (logps, reference, scores)]
    loss = losses.swepo(*batch, beta=0.1, alpha=1.0, positives="top")
    loss.backward()
    parameters = model.trainable()
    norm = torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
    torch.optim.AdamW(parameters.values(), 0.02, weight_decay=0.0).step()

    assert line["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert line["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    saved = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    for name, parameter in parameters.items():
        found = saved[name.replace(".default", "")]
        torch.testing.assert_close(found, parameter.detach(), rtol=1e-3, atol=1e-5)


def test_a_group_of_equals_changes_nothing(tiny_settings, tmp_path, monkeypatch):
    (tmp_path / "flat_reward.py").write_text("def flat(p, ys): return [0.5] * len(ys)\n")
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "run"
    summary = run(tiny_settings, out, scoring__reward="flat_reward:flat", optimisation__steps=2)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["groups/tied"] for line in lines] == [1.0, 1.0]
    assert [line["grad_norm"] for line in lines] == [0.0, 0.0]
    assert summary["heldout"]["difference"] == {"mean": 0.0, "low": 0.0, "high": 0.0}


@pytest.mark.parametrize("selector", ["coreset", "bottom-k", "random"])
def test_the_other_selectors_train_too(tiny_settings, tmp_path, selector):
    out = tmp_path / "run"
    summary = run(
        tiny_settings,
        out,
        selection__selector=selector,
        optimisation__steps=1,
        data__heldout=None,
        run__save_embeddings=False,
    )
    assert summary["label"] == selector
    assert summary["heldout"] is None
    assert not (out / "eval_before.jsonl").exists()
    assert read_groups(out / "groups.jsonl")[0].embeddings is None
    assert (out / "adapter" / "adapter_model.safetensors").exists()


def test_folders_that_are_not_runs_are_left_alone(tiny_settings, tmp_path):
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "config.json").write_text("precious")
    with pytest.raises(UserError, match="exists and is not a run folder"):
        run(tiny_settings, out)
    assert [p.name for p in out.iterdir()] == ["config.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make the run folder"):
        run(tiny_settings, tmp_path / "file" / "run")


def test_what_a_killed_run_was_writing(tmp_path):
    from pyfast.train.runs import rundir

    for name in (".lock", ".environment.tmp.json", ".environment.tmp-7-01234567.json"):
        (tmp_path / name).write_text("half")
    with rundir.claim(tmp_path):  # killed at the very start, it is a run folder nonetheless
        assert not (tmp_path / ".environment.tmp-7-01234567.json").exists()
    (tmp_path / "environment.json").write_text("{}")
    (tmp_path / "checkpoint" / ".step-2.tmp-7-01234567").mkdir(parents=True)
    (tmp_path / "checkpoint" / "step-1").mkdir()
    with rundir.claim(tmp_path):
        assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["step-1"]


def test_one_process_at_a_time(tiny_settings, tmp_path):
    from pyfast.train.runs import rundir

    with (
        rundir.claim(tmp_path / "run"),
        pytest.raises(UserError, match="another process is training in this folder"),
    ):
        run(tiny_settings, tmp_path / "run")


def test_inputs_are_checked_before_any_model(tiny_settings, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n{"promt": "b"}\n')
    nowhere = {"policy__model": "./nowhere", "scoring__encoder": "./nowhere"}
    with pytest.raises(UserError, match=r"prompts\.jsonl:2: expected a non-empty string"):
        run(tiny_settings, tmp_path / "run", **nowhere)
    with pytest.raises(UserError, match=r"data\.heldout: no such file: \./gone"):
        run(
            tiny_settings,
            tmp_path / "run",
            data__prompts=tiny_settings["data"]["heldout"],
            data__heldout="./gone",
        )
    assert not (tmp_path / "run").exists()
