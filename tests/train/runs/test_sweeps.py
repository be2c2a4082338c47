"""Sweeps: what a file plans, that it runs, goes on and is compared."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from pyfast import cli
from pyfast.cli import sweep
from pyfast.cli.train import DEMOS, recipe
from pyfast.train.errors import UserError
from pyfast.train.runs.sweeps import read_sweep

SWEEP = {
    "recipe": "ampo",
    "settings": {"optimisation": {"lr": 0.5}},
    "cases": {"ours": {"selection.selector": "opt-select"}, "theirs": {"selection.k": 2}},
    "grid": {"loss.beta": [0.1, 0.5], "run.seed": [0, 1]},
}


def plan(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return read_sweep(path, recipe, DEMOS)


def test_a_file_plans_all_combinations(tmp_path):
    runs = plan(tmp_path / "s.json", SWEEP)
    assert [run.name for run in runs] == [
        f"{case},beta={beta},seed={seed}"
        for case in ("ours", "theirs")
        for beta in (0.1, 0.5)
        for seed in (0, 1)
    ]
    last = runs[-1]
    assert last.case == "theirs"
    assert last.values == {"loss.beta": 0.5, "run.seed": 1}
    assert (last.settings.selection.k, last.settings.loss.beta) == (2, 0.5)
    assert (last.settings.optimisation.lr, last.settings.run.seed) == (0.5, 1)


def test_yaml_says_the_same(tmp_path):
    text = """
    recipe: ampo
    config: demo
    grid: {optimisation.lr: [1e-4, 2.5e-4], run.seed: [0, 1]}
    """
    runs = plan(tmp_path / "s.yaml", text)
    assert [run.settings.optimisation.lr for run in runs] == [1e-4, 1e-4, 2.5e-4, 2.5e-4]
    assert runs[0].settings.sampling.max_new_tokens == 40  # the demo's
    (tmp_path / "base.json").write_text(json.dumps({"recipe": "ampo", "loss": {"beta": 7.0}}))
    (run,) = plan(tmp_path / "t.yaml", "{recipe: ampo, config: base.json}")
    assert (run.name, run.settings.loss.beta) == ("run", 7.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": "amp"}, "expected one of"),
        ({"recipe": None}, "recipe: expected the name of a recipe, got None"),
        ({"gird": {}}, "gird: unknown; expected one of recipe, config"),
        ({"grid": {"beta": [1]}}, "grid: 'beta' is no setting of ampo"),
        ({"grid": {"loss.beta": 1}}, "grid.loss.beta: expected a list"),
        ({"grid": {"loss.beta": []}}, "grid.loss.beta: expected a list"),
        ({"grid": {"loss.beta": [-1]}}, "run ours,beta=-1: loss.beta: expected a number > 0"),
        ({"grid": {"selection.k": [1]}}, "cases.theirs.selection.k: the grid says it too"),
        ({"cases": {"a/b": {}}}, "cases: expected names of letters"),
        ({"cases": {"a": {"x": 1}}}, "cases.a: 'x' is no setting"),
        ({"cases": {"a": {}, "b": {}}}, "have the same settings"),
        ({"grid": {"scoring.encoder": ["a/b", "a b"]}}, "two runs would have the folder"),
        ({"settings": {"optimisation": 3}}, "settings: expected an object of sections"),
        ({"config": "nowhere.json"}, "nowhere.json: No such file"),
    ],
)
def test_a_bad_file_is_told_before_anything_runs(tmp_path, change, message):
    with pytest.raises(UserError) as caught:
        plan(tmp_path / "s.json", {**SWEEP, **change})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe: [", "expected YAML"),
        ("recipe: ampo\nrecipe: hps", "'recipe' stands twice"),
        ("{recipe: ampo, grid: {run.seed: [.nan]}}", "expected plain values"),
        ("!!python/object/apply:os.system [true]", "expected YAML"),
    ],
)
def test_bad_yaml(tmp_path, text, message):
    with pytest.raises(UserError, match=r"s\.yaml: ") as caught:
        plan(tmp_path / "s.yaml", text)
    assert message in str(caught.value)


def test_a_finished_run_that_read_other_files_is_not_called_finished(
    tiny_settings, tmp_path, monkeypatch, capsys
):
    tiny_settings["optimisation"]["steps"] = 1
    (tmp_path / "base.json").write_text(json.dumps(tiny_settings))
    (tmp_path / "s.json").write_text(json.dumps({"recipe": "ampo", "config": "base.json"}))
    out = tmp_path / "out"
    command = ["train", "ampo", "--config", str(tmp_path / "base.json"), "--out", str(out / "run")]
    assert cli.main(command) == 0
    asked = []
    monkeypatch.setattr(sweep, "_train", lambda out, run: asked.append(run.name) or "failed (2)")
    command = ["sweep", str(tmp_path / "s.json"), "--out", str(out)]
    assert (cli.main(command), asked) == (0, [])
    for name in ("prompts.jsonl", "heldout.txt"):
        path = tmp_path / name
        text = path.read_text()
        path.write_text(text.replace("rain", "snow"))
        capsys.readouterr()
        assert cli.main([*command, "--dry-run", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["runs"] == {"run": "unfinished"}
        assert cli.main(command) == 2  # the run says which file it is
        assert asked.pop() == "run"
        path.write_text(text)
    assert (cli.main(command), asked) == (0, [])


def test_two_sweeps_in_one_folder_do_not_change_each_others_settings(
    tiny_settings, tmp_path, monkeypatch, capsys
):
    (tmp_path / "base.json").write_text(json.dumps(tiny_settings))
    for name, steps in (("one", 1), ("two", 2)):
        value = {"recipe": "ampo", "config": "base.json", "grid": {"run.seed": [0, 1]}}
        value["settings"] = {"optimisation": {"steps": steps}}
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    out, seen = tmp_path / "out", []

    def train(folder, run):
        """Begin the other sweep while this one is at work, then read what the run would read."""
        if not seen:
            assert cli.main(["sweep", str(tmp_path / "two.json"), "--out", str(out)]) == 2
        settings = json.loads((folder / f"{run.name}.json").read_text())
        seen.append(settings["optimisation"]["steps"])
        return "finished"

    monkeypatch.setattr(sweep, "_train", train)
    assert cli.main(["sweep", str(tmp_path / "one.json"), "--out", str(out)]) == 0
    assert seen == [1, 1]
    assert "another sweep is at work in this folder" in capsys.readouterr().err


@pytest.fixture(scope="module")
def swept(make_settings, tmp_path_factory):
    """A sweep of two selectors and two seeds, interrupted once and gone on with."""
    folder = tmp_path_factory.mktemp("swept")
    settings = make_settings(folder)
    settings["optimisation"]["steps"] = 3
    (folder / "base.json").write_text(json.dumps(settings))
    grid = {"selection.selector": ["random", "opt-select"], "run.seed": [0, 1]}
    value = {"recipe": "ampo", "config": "base.json", "grid": grid}
    (folder / "sweep.json").write_text(json.dumps(value))
    command = ["sweep", str(folder / "sweep.json"), "--out", str(folder / "out")]
    child = subprocess.Popen([sys.executable, "-m", "pyfast.cli", *command], start_new_session=True)
    first = folder / "out" / "selector=random,seed=0" / "summary.json"
    deadline = time.monotonic() + 300
    while not first.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGINT)  # as Ctrl-C: the whole foreground group
    assert child.wait() == 130
    assert not (folder / "out" / "selector=opt-select,seed=1" / "summary.json").exists()
    assert cli.main(command) == 0
    return folder, command


@pytest.mark.slow
def test_a_sweep_goes_on_and_skips_what_is_finished(swept, capsys):
    folder, command = swept
    times = {path: path.stat().st_mtime_ns for path in folder.glob("out/*/summary.json")}
    assert len(times) == 4
    assert cli.main([*command, "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["runs"].values()) == {"finished"}
    assert {path: path.stat().st_mtime_ns for path in times} == times


@pytest.mark.slow
def test_a_sweep_is_compared(swept, capsys):
    folder, _ = swept
    out = str(folder / "out")
    assert cli.main(["compare", out, "--baseline", "selector=random"]) == 0
    assert "score/difference" in capsys.readouterr().out
    result = json.loads((folder / "out" / "comparison.json").read_text())
    rows = {row["label"]: row for row in result["rows"]}
    assert set(rows) == {"selector=random", "selector=opt-select"}
    for label, row in rows.items():
        seeds = {}
        for seed in (0, 1):
            summary = folder / "out" / f"{label},seed={seed}" / "summary.json"
            seeds[str(seed)] = json.loads(summary.read_text())["heldout"]["after"]["mean"]
        assert row["metrics"]["score/after"]["by_seed"] == seeds
    assert (folder / "out" / "comparison.png").stat().st_size > 5000
    assert cli.main(["compare", out, "--metrics", "nothing"]) == 2
    assert "no run has 'nothing'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_is_evaluated_on_other_data(swept, capsys):
    """On its own held-out prompts it has its own answers again; the run stays as it was."""
    folder, _ = swept
    run = folder / "out" / "selector=random,seed=0"
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    own = str(folder / "heldout.txt")
    command = ["evaluate", str(run), "--data", own, "--out", str(folder / "again")]
    assert cli.main(command) == 0
    for name in ("eval_before.jsonl", "eval_after.jsonl"):
        assert (folder / "again" / name).read_bytes() == (run / name).read_bytes()
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    (folder / "other.txt").write_text("about love\n")
    other = ["evaluate", str(run), "--data", str(folder / "other.txt")]
    assert cli.main(other) == 0
    there = folder / "out" / "selector=random,seed=0-on-other"
    assert json.loads((there / "summary.json").read_text())["heldout"]["prompts"] == 1
    assert cli.main([*other, "--out", str(folder / "again")]) == 2
    assert "it is of another run or other data" in capsys.readouterr().err
    (folder / "trained.txt").write_text("tell me about dog\n")
    assert cli.main(["evaluate", str(run), "--data", str(folder / "trained.txt")]) == 2
    assert "is also a training prompt" in capsys.readouterr().err
