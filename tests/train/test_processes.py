"""Several processes of one run give what one gives; what goes wrong in one stops all."""

import json
import os
import socket
import subprocess
import sys

import pytest
from four_runs import largest_differences, write_settings
from nursery import KILL, Nursery, contents
from peak_memory import MEASURED

from pyfast import cli
from pyfast._files import locked
from pyfast.train.errors import ProcessesError, UserError
from pyfast.train.processes import check_accelerate, of_environment, team
from pyfast.train.recipes.ampo import AmpoSettings

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

RECIPES = ("ampo", "ampo-rounds", "active-dpo", "hps", "mass-dpo")


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        nursery = Nursery(folder, None)
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def of_recipe(nursery, make_settings, tiny_model):
    """Return a function that makes the nursery one of a recipe's runs; and its folder."""

    def choose(recipe):
        folder = nursery.folder / recipe
        folder.mkdir(exist_ok=True)
        nursery.config = write_settings(folder, recipe, make_settings(folder), tiny_model)
        nursery.recipe = recipe.removesuffix("-rounds")
        return folder

    return choose


@pytest.fixture(scope="module")
def finished(nursery, of_recipe):
    """Return a function that gives the files of a recipe's run by one or two processes."""
    known = {}

    def files(recipe, processes):
        if (recipe, processes) not in known:
            out = of_recipe(recipe) / f"run-by-{processes}"
            statuses, logs = nursery.run_together(out, processes=processes)
            assert statuses == [0] * processes, logs
            known[recipe, processes] = contents(out)
        of_recipe(recipe)
        return known[recipe, processes]

    return files


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_processes_give_what_one_gives(finished, recipe):
    """Three groups a step, so that the processes have unequal shares, and sum in another order."""
    differences = largest_differences(finished(recipe, 1), finished(recipe, 2))
    learnt = {
        name: difference
        for name, difference in differences.items()
        if name.endswith(".safetensors") or name in ("groups.jsonl", "metrics.jsonl: loss")
    }
    assert {"adapter/adapter_model.safetensors", "metrics.jsonl: loss"} <= set(learnt)
    assert max(learnt.values()) < 1e-6, differences
    # Rewards and margins are differences of log-probs of some 40 nats, which float32 holds to 4e-6.
    assert max(differences.values()) < 1e-5, differences


@pytest.mark.parametrize("recipe", ["active-dpo", "mass-dpo"])
def test_three_of_which_one_is_slow(nursery, of_recipe, finished, recipe):
    """Two processes' work for three: 5 groups in steps of 3 and 2, answers in uneven shares."""
    one, out = finished(recipe, 1), of_recipe(recipe) / "run-by-3"
    statuses, logs = nursery.run_together(out, processes=3, bad=[2, "slow", 0.01])
    assert statuses == [0, 0, 0], logs
    differences = largest_differences(one, contents(out))
    assert max(differences.values()) < 1e-5, differences


@pytest.mark.parametrize("changed", ["a score", "its last line"])
def test_one_that_reads_other_content_under_the_same_name_is_refused(nursery, of_recipe, changed):
    folder = of_recipe("hps")
    elsewhere = folder / f"elsewhere-{changed.replace(' ', '-')}"
    elsewhere.mkdir()
    rows = (folder / "groups.jsonl").read_text().splitlines(keepends=True)
    other = rows[:-1] if changed == "its last line" else [rows[0].replace("0.0", "0.5"), *rows[1:]]
    assert other != rows
    for place, lines in ((folder, rows), (elsewhere, other)):
        (place / "mine.jsonl").write_text("".join(lines))
    values = json.loads((folder / "config.json").read_text())
    values["data"]["groups"] = "mine.jsonl"
    config = folder / "relative.json"
    config.write_text(json.dumps(values))
    nursery.config, out = config, folder / f"run-other-{changed.replace(' ', '-')}"
    bad = [1, "stands_in", str(elsewhere)]
    statuses, logs = nursery.run_together(out, bad=bad, cwd=str(folder))
    assert statuses == [2, 2], logs
    assert "the settings, or the files that they name: process 1 of the run has not" in logs[0]
    assert not (out / "checkpoint").exists()


def test_a_port_that_is_taken_is_told(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for name, value in (
            ("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"),
            ("MASTER_PORT", str(taken.getsockname()[1])),
        ):  # fmt: skip
            monkeypatch.setenv(name, value)
        message = r"process 0 of 2 cannot join the others: .*(EADDRINUSE|in use)"
        with pytest.raises(ProcessesError, match=message), team(AmpoSettings()):
            pass


def test_ctrl_c_is_told_once_and_names_the_launcher(monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", stop)
    assert cli.main(["train", "ampo"]) == 130
    assert "run again: pyfast train ampo" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, told in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        assert cli.main(["train", "ampo"]) == 130
        err = capsys.readouterr().err
        assert ("run the launcher's command again" in err) is told


@pytest.mark.parametrize(("killed", "word"), [(0, 45), (1, 20)])
def test_one_is_killed_the_others_stop_and_the_run_goes_on(
    nursery, of_recipe, finished, killed, word
):
    whole = finished("active-dpo", 2)
    out = of_recipe("active-dpo") / f"run-killed-{killed}"
    bad = [killed, "fails_at", word, "SIGKILL"]
    statuses, logs = nursery.run_together(out, bad=bad, within=120)
    assert statuses[killed] == -KILL
    assert statuses[1 - killed] == 2, logs
    assert f"process {1 - killed} of 2 has lost another one" in logs[1 - killed]
    assert "the same command goes on from the last checkpoint" in logs[1 - killed]
    assert "Traceback" not in logs[1 - killed]
    statuses, logs = nursery.run_together(out)
    assert statuses == [0, 0], logs
    assert contents(out) == whole


def test_one_that_hangs_counts_as_lost_after_a_while(nursery, of_recipe):
    out = of_recipe("mass-dpo") / "run-hangs"
    bad = [1, "fails_at", 30, "SIGSTOP"]
    statuses, logs = nursery.run_together(out, "--timeout", "2", bad=bad, within=120)
    assert statuses == [2, None]
    assert "process 0 of 2 has lost another one" in logs[0]
    assert "not answered for 2 s (run.timeout)" in logs[0]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("otherwise", "the groups of step 3: process 1 of the run has not what process 0 has"),
        ("drifts", "the gradient of step 3: process 1 of the run has not what process 0 has"),
    ],
)
def test_one_that_disagrees_stops_all(nursery, of_recipe, finished, bad, message):
    whole = finished("mass-dpo", 2)
    out = of_recipe("mass-dpo") / f"run-{bad}"
    statuses, logs = nursery.run_together(out, bad=[1, bad, 2], within=120)
    assert statuses == [2, 2], logs
    assert message in logs[0]
    assert "error" not in logs[1]  # it is told once
    assert contents(out)["metrics.jsonl"].count(b"\n") == 2
    statuses, logs = nursery.run_together(out)
    assert statuses == [0, 0], logs
    assert contents(out) == whole


@pytest.mark.parametrize("recipe", ["ampo-rounds", "mass-dpo"])
def test_the_first_alone_writes(nursery, of_recipe, recipe):
    out = of_recipe(recipe) / "run-watched"
    statuses, logs = nursery.run_together(out, bad=[0, "writes", "/run-watched"])
    assert statuses == [0, 0], logs
    assert "writes open" in logs[0]
    assert "writes os.mkdir" in logs[0]
    statuses, logs = nursery.run_together(
        out.with_name("run-watched-2"), bad=[1, "writes", "/run-"]
    )
    assert statuses == [0, 0], logs
    assert "writes" not in logs[1]


@pytest.mark.parametrize(
    "recipe",
    ["mass-dpo", *(pytest.param(x, marks=pytest.mark.slow) for x in RECIPES if x != "mass-dpo")],
)
def test_a_checkpoint_of_two_is_gone_on_from_by_one_and_the_other_way_round(
    nursery, of_recipe, finished, recipe
):
    one = finished(recipe, 1)
    folder = of_recipe(recipe)
    for before, after in ((2, 1), (1, 2)):
        out = folder / f"run-from-{before}-to-{after}"
        bad = [0, "otherwise" if before == 2 else "stops", 2]
        statuses, logs = nursery.run_together(out, processes=before, bad=bad)
        assert statuses == [2] * before, logs
        assert (out / "checkpoint" / "step-2").is_dir()
        statuses, logs = nursery.run_together(out, processes=after)
        assert statuses == [0] * after, logs
        assert "after step 2 of 4" in logs[0]
        assert f"{before} processes shared {out} and now {after} do" in logs[0]
        differences = largest_differences(one, contents(out))
        assert max(differences.values()) < 1e-5, differences
        environment = json.loads((out / "environment.json").read_text())
        assert environment["processes"] == after
        changed = {"after_step": 2, "changed": {"processes": [before, after]}}
        assert environment["history"] == [changed]


def test_a_run_folder_is_claimed_once(nursery, of_recipe):
    out = of_recipe("hps") / "run-claimed"
    out.mkdir()
    with locked(out / ".lock"):
        statuses, logs = nursery.run_together(out)
    assert statuses == [2, 2], logs
    assert "another process is training in this folder" in logs[0]
    assert "error" not in logs[1]


@MEASURED
def test_no_process_takes_more_memory_than_one_alone(nursery, of_recipe):
    folder, peaks = of_recipe("hps"), []
    for processes in (1, 2):
        name = str(folder / f"peak-{processes}")
        out = folder / f"run-measured-{processes}"
        statuses, logs = nursery.run_together(out, processes=processes, peak=name)
        assert statuses == [0] * processes, logs
        for rank in range(processes):
            text = (folder / f"peak-{processes}.{rank}").read_text()
            peaks.append(int(text.partition("VmHWM:")[2].split()[0]) / 1024)
    alone, *together = peaks
    assert max(together) < alone + 48, peaks  # MiB; gloo's buffers, and its threads


def test_what_a_launcher_sets():
    both = {"RANK": "1", "WORLD_SIZE": "2"}
    assert of_environment({}) == (0, 1)
    assert of_environment(both) == (1, 2)
    for name, value in (("RANK", "2"), ("RANK", "x"), ("WORLD_SIZE", "0")):
        with pytest.raises(UserError, match="RANK and WORLD_SIZE: expected whole numbers"):
            of_environment({**both, name: value})
    with pytest.raises(UserError, match="starts one process, whatever --num_processes says"):
        of_environment({"ACCELERATE_USE_CPU": "True", "MASTER_PORT": "29500"})


def test_what_accelerate_is_asked_for_is_refused_in_one_process_too(monkeypatch):
    for name, value in (
        ("USE_DEEPSPEED", "true"),
        ("USE_FSDP", "true"),
        ("MIXED_PRECISION", "bf16"),
        ("DYNAMO_BACKEND", "INDUCTOR"),
        ("GRADIENT_ACCUMULATION_STEPS", "4"),
    ):
        with pytest.raises(UserError, match=f"ACCELERATE_{name}: .*, got '{value}'"):
            check_accelerate({f"ACCELERATE_{name}": value})
    check_accelerate({"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO"})
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(UserError, match="sets the number type"), team(None):
        pass
    assert cli.main(["env"]) == 0  # no run's business


def test_other_commands_are_refused(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["env"]) == 2
    assert "only pyfast train runs in several processes" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        "torch.distributed.run --standalone --nproc-per-node 2",
        "accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port 0",
    ],
)
def test_the_same_command_under_a_launcher(nursery, of_recipe, finished, launcher):
    whole = finished("mass-dpo", 2)
    out = of_recipe("mass-dpo") / f"run-{launcher.partition('.')[0]}"
    command = [
        sys.executable, "-m", *launcher.split(), "-m", "pyfast.cli", "train", "mass-dpo",
        "--config", str(nursery.config), "--out", str(out),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["XDG_CACHE_HOME"] = str(nursery.folder / "cache")
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment, cwd=nursery.folder
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("metrics, groups, adapter and pictures") == 1
    assert contents(out) == whole
