"""What a run tells to dashboards: its own numbers, each step once, also after a kill."""

import json
import sys
import types

import pytest

from pyfast.train import config as configs
from pyfast.train import loop
from pyfast.train.errors import UserError
from pyfast.train.recipes.ampo import Ampo, AmpoSettings
from pyfast.train.reports import reporting


def settings_of(tiny_settings, kind, **changes):
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    changes = {"run.report_to": kind, "optimisation.steps": 4, **changes}
    return configs.from_dict(AmpoSettings, tiny_settings, changes)


def run(settings, out):
    return loop.run(Ampo, settings, Ampo.read(settings), out)


def killed_in_step(number, settings, out, monkeypatch):
    real, seen = loop.learn, []

    def learn(*arguments):
        seen.append(1)
        if len(seen) == number:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "learn", learn)
        with pytest.raises(KeyboardInterrupt):
            run(settings, out)


def written(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").open()]


def check_told(told, out, summary):
    """`told` is {name: {step: value}}."""
    lines = written(out)
    names = {name for line in lines for name in line} - {"step"}
    for name in names:
        expected = {line["step"]: line[name] for line in lines if name in line}
        assert told[name] == pytest.approx(expected, rel=1e-6), name
    for name, value in summary["metrics"].items():
        assert told[f"summary/{name}"] == {4: pytest.approx(value["mean"], rel=1e-6)}


def test_tensorboard_reads_what_the_run_wrote(tiny_settings, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = settings_of(tiny_settings, "tensorboard")
    for out in (tmp_path / "whole", tmp_path / "killed"):
        if out.name == "killed":
            killed_in_step(4, settings, out, monkeypatch)  # the checkpoint is of step 2
        summary = run(settings, out)
        events = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0}).Reload()
        told = {}
        for name in events.Tags()["scalars"]:
            points = events.Scalars(name)
            told[name] = {point.step: point.value for point in points}
            assert len(points) == len(told[name])  # no step twice
        check_told(told, out, summary)
        text = events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
        assert '"selector": "opt-select"' in text


@pytest.fixture
def wandb(monkeypatch):
    """Return what stands for the library: runs by id, with all that they were told."""
    fake = types.ModuleType("wandb")
    fake.__spec__ = types.SimpleNamespace(name="wandb")
    fake.runs = {}

    class Run:
        def __init__(self, **settings):
            self.settings, self.lines, self.metrics, self.finished = settings, [], {}, 0

        def define_metric(self, name, step_metric=None):
            self.metrics[name] = step_metric

        def log(self, values):
            self.lines.append(values)

        def finish(self):
            self.finished += 1

    def init(*, id, resume, **settings):
        assert resume == "allow"
        return fake.runs.setdefault(id, Run(**settings))

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_is_told_the_same(tiny_settings, tmp_path, monkeypatch, wandb):
    settings, out = settings_of(tiny_settings, "wandb"), tmp_path / "run"
    killed_in_step(4, settings, out, monkeypatch)
    summary = run(settings, out)
    (found,) = wandb.runs.values()  # the same run was gone on with
    assert found.settings["config"] == settings.to_dict()
    assert found.settings["dir"] == str(out)
    assert found.metrics == {"step": None, "*": "step"}
    assert found.finished == 2
    told = {}
    for line in found.lines:
        for name in line:
            told.setdefault(name, {})[line["step"]] = line[name]
    check_told(told, out, summary)


def test_what_the_library_raises_is_one_line(tiny_settings, tmp_path, wandb, monkeypatch):
    def init(**settings):
        raise RuntimeError("no API key configured\nmore")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(UserError, match=r"^run\.report_to: wandb: no API key configured$"):
        run(settings_of(tiny_settings, "wandb"), tmp_path / "run")


def test_held_out_curves_are_told_once(tmp_path, wandb):
    settings = configs.from_dict(AmpoSettings, {"run": {"report_to": "wandb"}})
    folder = tmp_path / "evaluation"
    folder.mkdir()
    curve = folder / "metrics.jsonl"
    with reporting.reporter(settings, tmp_path) as report:
        report.begin(0)
        curve.write_text('{"step": 0, "accuracy": 0.25, "score": {"mean": 0.5, "low": 0.1}}\n')
        report.curves(0)
        curve.write_text(curve.read_text() + '{"step": 2, "accuracy": 0.5, "split": "test"}\n{"s')
        report.curves(2)
        report.curves(2)
    (found,) = wandb.runs.values()
    assert found.lines == [
        {"step": 0, "eval/accuracy": 0.25, "eval/score": 0.5},
        {"step": 2, "eval/accuracy": 0.5},
    ]


def test_a_library_that_is_missing_is_told_before_anything_is_loaded(
    tiny_settings, tmp_path, monkeypatch
):
    monkeypatch.setattr(reporting.importlib.util, "find_spec", lambda name: None)
    for kind in ("tensorboard", "wandb"):
        wanted = rf"^run\.report_to: {kind} needs the package {kind} \(pip install {kind}\)$"
        with pytest.raises(UserError, match=wanted):
            run(settings_of(tiny_settings, kind), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    reporting.check("none")


def test_it_is_free_to_change(tiny_settings, tmp_path, wandb):
    out = tmp_path / "run"
    run(settings_of(tiny_settings, "none"), out)
    assert wandb.runs == {}
    assert not (out / "wandb.json").exists()
    run(settings_of(tiny_settings, "wandb", optimisation__steps=5), out)  # goes on, and is told
    (found,) = wandb.runs.values()
    assert [line["step"] for line in found.lines if "loss" in line] == [5]
