"""What a run folder may be gone on with, and what it is kept from."""

import json
import os
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pyfast.train import config as configs
from pyfast.train import loop
from pyfast.train.data.inputs import read_inputs
from pyfast.train.errors import DivergedError, UserError
from pyfast.train.recipes.ampo import Ampo, AmpoSettings
from pyfast.train.recipes.ampo import recipe as ampo
from pyfast.train.runs import checkpoint, layout, rundir

STEPS = "optimisation.steps"


def run(settings, out, changes=None):
    config = configs.from_dict(AmpoSettings, settings, changes)
    return loop.run(Ampo, config, Ampo.read(config), out)


def stopped(settings, out, monkeypatch, after):
    """Run until some steps are done, and stop as if killed."""
    save = checkpoint.save

    def saved(run, step, *rest):
        save(run, step, *rest)
        if step >= after:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", saved)
    with pytest.raises(KeyboardInterrupt):
        run(settings, out)
    monkeypatch.undo()


@pytest.fixture
def settings(tiny_settings):
    tiny_settings["data"]["heldout"] = None
    tiny_settings["optimisation"]["steps"] = 4
    return tiny_settings


@pytest.fixture
def begun(settings, tmp_path, monkeypatch):
    stopped(settings, tmp_path / "run", monkeypatch, after=2)
    return settings, tmp_path / "run"


@pytest.fixture
def bare(settings, tmp_path):
    """A run folder as a kill before the first step leaves it."""
    out = tmp_path / "run"
    out.mkdir()
    config = configs.from_dict(AmpoSettings, settings)
    inputs = read_inputs(config)
    with rundir.claim(out):
        assert not rundir.open_run(config, inputs, 4, out)
    return settings, out


def steps_of(out):
    return [json.loads(x)["step"] for x in (out / "metrics.jsonl").read_text().splitlines()]


def adapter(out):
    return (out / "adapter" / "adapter_model.safetensors").read_bytes()


def test_a_folder_with_no_step_done_takes_new_settings(
    tiny_settings, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "run"
    monkeypatch.setattr(loop, "learn", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(tiny_settings, out)
    assert (out / "eval_before.jsonl").exists()
    monkeypatch.undo()
    changes = {"run.seed": 9, "loss.beta": 0.5, STEPS: 2}
    run(tiny_settings, out, changes)
    assert "has no step done; starting it again" in capsys.readouterr().err
    run(tiny_settings, tmp_path / "run-fresh", changes)
    for name in ("eval_before.jsonl", "groups.jsonl", "metrics.jsonl", "config.json"):
        assert (out / name).read_bytes() == (tmp_path / "run-fresh" / name).read_bytes()
    assert adapter(out) == adapter(tmp_path / "run-fresh")


def test_settings_that_change_no_mathematics_may_differ(begun, tmp_path, capsys, monkeypatch):
    settings, out = begun
    run(settings, tmp_path / "run-whole")
    prompts = settings["data"]["prompts"]
    (tmp_path / "link").symlink_to(settings["policy"]["model"])
    (tmp_path / "copy.jsonl").write_bytes((tmp_path / "prompts.jsonl").read_bytes())
    monkeypatch.chdir(tmp_path)
    changes = {
        "policy.gradient_checkpointing": "none",
        "policy.model": str(tmp_path / "link"),
        "scoring.encoder": os.path.relpath(settings["scoring"]["encoder"]),
        "data.prompts": "./copy.jsonl",
        "run.checkpoint_every": 1,
        "evaluation.bootstrap": 300,
        "policy.device": "auto" if not torch.cuda.is_available() else "cpu",
    }
    capsys.readouterr()
    run(settings, out, changes)
    assert adapter(out) == adapter(tmp_path / "run-whole")
    assert (out / "groups.jsonl").read_bytes() == (tmp_path / "run-whole/groups.jsonl").read_bytes()
    written = configs.from_file(AmpoSettings, out / "config.json")
    assert written == configs.from_dict(AmpoSettings, settings, changes)
    (entry,) = json.loads((out / "environment.json").read_text())["history"]
    assert entry["after_step"] == 2
    assert entry["changed"]["data.prompts"] == [prompts, "./copy.jsonl"]
    assert entry["changed"]["run.checkpoint_every"] == [2, 1]


def test_more_threads_are_taken_up_and_told(begun, capsys):
    settings, out = begun
    run(settings, out, {"run.threads": 2})
    assert "run.threads changed: the run may differ in its last bits" in capsys.readouterr().err
    assert json.loads((out / "environment.json").read_text())["threads"] == 2
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("finished", [False, True])
def test_more_steps_extend_a_run(settings, tmp_path, capsys, monkeypatch, finished):
    settings["data"]["heldout"] = str(tmp_path / "heldout.txt")
    out = tmp_path / "run"
    if finished:
        run(settings, out)
    else:
        stopped(settings, out, monkeypatch, after=2)
    done = 4 if finished else 2
    before = (out / "metrics.jsonl").read_bytes()
    after = (out / "eval_after.jsonl").read_bytes() if finished else b""
    summary = run(settings, out, {STEPS: 6})
    assert summary["steps"] == 6
    assert steps_of(out) == [1, 2, 3, 4, 5, 6]
    assert (out / "metrics.jsonl").read_bytes().startswith(before)
    assert (out / "eval_after.jsonl").read_bytes() != after
    error = capsys.readouterr().err
    assert f"from step {done + 1} on the learning rate is that of a run of 6 steps" in error
    rates = [json.loads(x)["lr"] for x in (out / "metrics.jsonl").read_text().splitlines()]
    for steps, part in ((4, range(done)), (6, range(done, 6))):
        schedule = configs.from_dict(AmpoSettings, settings, {STEPS: steps}).optimisation
        assert [rates[i] for i in part] == [loop.learning_rate(schedule, i, steps) for i in part]
    history = json.loads((out / "environment.json").read_text())["history"]
    assert history == [{"after_step": done, "changed": {STEPS: [4, 6]}}]
    saved = load_file(out / "adapter" / "adapter_model.safetensors")
    last = load_file(out / "checkpoint" / "step-6" / "adapter.safetensors")
    assert all(
        torch.equal(last[name.replace(".weight", ".default.weight")], saved[name]) for name in saved
    )


def test_fewer_steps_than_are_done_are_refused(settings, tmp_path):
    run(settings, tmp_path / "run")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(
        UserError, match=r"has done 4 steps; expected optimisation\.steps >= 4, got 2"
    ):
        run(settings, tmp_path / "run", {STEPS: 2})
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}


def test_a_finished_run_is_summarised_anew(tiny_settings, tmp_path, monkeypatch):
    tiny_settings["optimisation"]["steps"] = 1
    out = tmp_path / "run"
    first = run(tiny_settings, out)
    monkeypatch.setattr(loop.loading, "load", None)  # no model is needed
    again = run(tiny_settings, out, {"evaluation.confidence": 0.5})
    assert again["heldout"]["confidence"] == 0.5
    assert again["heldout"]["after"]["mean"] == first["heldout"]["after"]["mean"]
    assert run(tiny_settings, out) == first


def test_another_model_under_the_same_name_is_refused(begun, tmp_path, tiny):
    settings, out = begun
    for setting, name, change in (
        (("policy", "model"), "weights", weights),
        (("policy", "model"), "settings", rms_norm),
        (("policy", "model"), "tokenizer", template),
        (("scoring", "encoder"), "weights", weights),
    ):
        section, key = setting
        copy = tmp_path / f"{section}-{name}"
        shutil.copytree(settings[section][key], copy)
        run_again = {f"{section}.{key}": str(copy)}
        change(copy)
        message = (
            rf"{section}\.{key}: .*run was started with a model of another content: the {name}"
        )
        with pytest.raises(UserError, match=message):
            run(settings, out, run_again)
    run(settings, out)


def weights(folder):
    path = folder / "model.safetensors"
    with safe_open(path, "pt") as stream:
        metadata = stream.metadata()
    tensors = load_file(path)
    first = next(name for name in sorted(tensors) if "weight" in name)
    tensors[first].view(-1)[0] += 1e-6
    save_file(tensors, path, metadata=metadata)


def rms_norm(folder):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rms_norm_eps": 1e-5}))


def template(folder):
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text() + " ")


def test_a_prompt_that_leaves_no_room_is_told_before_the_first_step(settings, tmp_path):
    path = tmp_path / "prompts.jsonl"
    long = json.dumps({"prompt": " ".join(["dog"] * 120)})
    path.write_text(path.read_text() + "\n\n" + long + "\n")
    with pytest.raises(UserError) as caught:
        run(settings, tmp_path / "run")
    assert str(caught.value).startswith(f"{path}:7: the prompt has 12")
    assert "sampling.max_new_tokens = 8 may follow; the model has 128 positions" in str(
        caught.value
    )
    heldout = tmp_path / "heldout.txt"
    heldout.write_text("a day\n" + " ".join(["rain"] * 118) + "\n")
    path.write_text('{"prompt": "a dog"}')
    with pytest.raises(UserError, match=r"heldout\.txt:2: the prompt has 121 tokens"):
        run(settings, tmp_path / "run", {"data.heldout": str(heldout)})
    heldout.write_text("a day\n" + " ".join(["rain"] * 117) + "\n")
    run(settings, tmp_path / "run", {"data.heldout": str(heldout), STEPS: 1})


def test_divergence_stops_the_run_and_keeps_what_was_good(settings, tmp_path):
    """The first steps are good; then the learning rate is far too high."""
    out = tmp_path / "run"
    settings["optimisation"]["steps"] = 200
    settings["run"]["checkpoint_every"] = 1
    # warm-up from 0.02 to 1e38 in 200 steps takes some steps until a product overflows
    changes = {"optimisation.lr": 1e37, "optimisation.warmup": 1.0}
    with pytest.raises(DivergedError) as caught:
        run(settings, out, changes)
    message = str(caught.value)
    assert message.startswith("diverged at step ")
    assert "kept" in message or "no checkpoint was made" in message
    assert "\n" not in message
    for path in (out / "checkpoint").glob("*/*.safetensors"):
        assert all(value.isfinite().all() for value in load_file(path).values())
    assert not (out / "adapter").exists()
    assert not (out / "summary.json").exists()
    for name in ("metrics.jsonl", "groups.jsonl"):
        if (out / name).exists():
            assert "NaN" not in (out / name).read_text()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["loss", "gradient", "step"])
def test_each_number_is_watched(settings, tmp_path, monkeypatch, bad, where):
    plain_loss, plain_step = ampo.loss, torch.optim.AdamW.step
    calls = []

    def loss(*arguments):
        calls.append(1)
        value = plain_loss(*arguments)
        if len(calls) < 4:
            return value
        if where == "loss":
            return value * bad
        if where == "gradient":
            value.register_hook(lambda gradient: gradient * bad)
        return value

    def step(self, *arguments):
        plain_step(self, *arguments)
        if where == "step" and len(calls) == 4:
            with torch.no_grad():
                self.param_groups[0]["params"][-1].view(-1)[-1] = bad

    monkeypatch.setattr(ampo, "loss", loss)
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(DivergedError) as caught:
        run(settings, tmp_path / "run")
    what = {"loss": "the loss", "gradient": "the gradient's norm", "step": "the adapter"}[where]
    assert f"diverged at step 4: {what} is " in str(caught.value)
    assert "the checkpoint of step 2 is kept" in str(caught.value)
    assert checkpoint.latest_step(tmp_path / "run") == 2
    monkeypatch.undo()
    run(settings, tmp_path / "run")
    run(settings, tmp_path / "run-whole")
    assert adapter(tmp_path / "run") == adapter(tmp_path / "run-whole")


@pytest.mark.parametrize("name", [*layout.FILES, *layout.FOLDERS])
def test_links_in_a_run_folder_are_not_followed(bare, tmp_path, name):
    settings, out = bare
    precious = tmp_path / "precious"
    if name in layout.FOLDERS:
        (precious / "step-1").mkdir(parents=True)
        shutil.rmtree(out / name, ignore_errors=True)
    else:
        precious.write_text('{"precious": 1}\n')
        (out / name).unlink(missing_ok=True)
    (out / name).symlink_to(precious)
    with pytest.raises(
        UserError, match=rf"run/{name}: expected a .* got a symbolic link|not a run"
    ):
        run(settings, out)
    assert (precious / "step-1").is_dir() or precious.read_text() == '{"precious": 1}\n'


def test_a_run_folder_may_be_a_link_itself(settings, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    run(settings, tmp_path / "run", {STEPS: 1})
    assert (tmp_path / "disk" / "adapter").is_dir()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        "null",
        "\ufeff\0",
        '{"versions": {}, "threads": 100000, "inputs": {}}',
        '{"versions": {}, "threads": true, "inputs": {}}',
        '{"versions": {}, "threads": 1, "inputs": []}',
        '{"versions": 3, "threads": 1, "inputs": {}}',
        '{"versions": {}, "threads": 1, "inputs": {}, "models": [1]}',
        '{"versions": {}, "threads": 1, "inputs": {}, "history": {}}',
    ],
)
@pytest.mark.parametrize("with_config", [True, False])
def test_a_damaged_record_is_told(bare, text, with_config):
    settings, out = bare
    (out / "environment.json").write_text(text, "utf-8")
    if not with_config:
        (out / "config.json").unlink()
    with pytest.raises(UserError, match=r"environment\.json:"):
        run(settings, out)
    assert (out / "environment.json").read_text("utf-8") == text
