"""Checkpoints: what is damaged is told and gone round, and nothing outside is ever touched."""

import json
import os

import pytest
import torch

from pyfast.train import files
from pyfast.train.errors import DivergedError, UserError
from pyfast.train.runs import checkpoint, layout


@pytest.fixture
def run(tmp_path):
    """A run folder of three checkpoints, of which two are kept, and what was in them."""
    out = tmp_path / "run"
    out.mkdir()
    kept = {}
    parameters, optimiser = make()
    for step in (2, 4, 6):
        learn(parameters, optimiser)
        for name in (*layout.APPENDED, layout.TIMES):
            checkpoint.append(out / name, json.dumps({"step": step, "ä": "x" * step}))
        checkpoint.save(out, step, parameters, optimiser)
        kept[step] = {name: value.detach().clone() for name, value in parameters.items()}
    return out, kept


def make():
    parameters = {f"p{i}": torch.nn.Parameter(torch.zeros(3, 2)) for i in range(2)}
    return parameters, torch.optim.AdamW(parameters.values(), 0.1)


def learn(parameters, optimiser):
    sum((value - 1).square().sum() for value in parameters.values()).backward()
    optimiser.step()


def restore(out):
    parameters, optimiser = make()
    return checkpoint.restore(out, parameters, optimiser), parameters, optimiser


def test_the_newest_is_restored_and_the_one_before_kept(run):
    out, kept = run
    assert {p.name for p in (out / "checkpoint").iterdir()} == {"step-4", "step-6"}
    step, parameters, optimiser = restore(out)
    assert step == checkpoint.latest_step(out) == 6
    assert all(torch.equal(parameters[name], kept[6][name]) for name in parameters)
    assert optimiser.state[parameters["p0"]]["step"] == 3
    checkpoint.keep(out, 1)
    assert {p.name for p in (out / "checkpoint").iterdir()} == {"step-6"}


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def empty(path):
    path.write_bytes(b"")


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def gone(path):
    path.unlink()


def folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [flip, empty, half, gone, folder])
@pytest.mark.parametrize("name", ["adapter.safetensors", "optimiser.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_taken(run, capsys, name, damage):
    out, kept = run
    damage(out / "checkpoint" / "step-6" / name)
    step, parameters, optimiser = restore(out)
    assert step == 4
    assert all(torch.equal(parameters[key], kept[4][key]) for key in parameters)
    assert optimiser.state[parameters["p1"]]["step"] == 2
    err = capsys.readouterr().err
    assert err.startswith(f"pyfast: warning: {out / 'checkpoint' / 'step-6' / name}:")
    assert err.endswith("going on from step-4\n")
    assert err.count("\n") == 1
    for file in (*layout.APPENDED, layout.TIMES):
        assert [json.loads(x)["step"] for x in (out / file).read_text("utf-8").splitlines()] == [
            2,
            4,
        ]
    assert {p.name for p in (out / "checkpoint").iterdir()} == {"step-4"}


@pytest.mark.parametrize("damage", [flip, half])
def test_without_a_whole_checkpoint_nothing_is_lost(run, damage):
    out, _ = run
    for step in (4, 6):
        damage(out / "checkpoint" / f"step-{step}" / "adapter.safetensors")
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(
        UserError, match=r"step-6/adapter\.safetensors: .*no checkpoint of this run"
    ):
        restore(out)
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_lines_that_were_lost_after_the_checkpoint_before(run, capsys):
    out, _ = run
    lines = (out / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (out / "metrics.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:5])
    assert restore(out)[0] == 4
    assert "metrics.jsonl: the checkpoint counts" in capsys.readouterr().err
    assert (out / "metrics.jsonl").read_bytes() == b"".join(lines[:2])


@pytest.mark.parametrize(
    "sizes",
    [
        {"../../precious": 0},
        {"PRECIOUS": 0},
        {"metrics.jsonl": 0, "groups.jsonl": 0, "../precious": 0},
        {"metrics.jsonl": 0, "groups.jsonl": -1},
        {"metrics.jsonl": 0.0, "groups.jsonl": 0},
        {"metrics.jsonl": True, "groups.jsonl": 0},
        {"metrics.jsonl": None, "groups.jsonl": 0},
        {"metrics.jsonl": 10**30, "groups.jsonl": 0},
        {"metrics.jsonl": 3, "groups.jsonl": 0},
        ["metrics.jsonl", "groups.jsonl"],
        {},
    ],
)
def test_a_state_of_a_strangers_cuts_nothing(run, tmp_path, sizes):
    """With the right checksums too: those keep no secret."""
    out, _ = run
    precious = tmp_path / "precious"
    precious.write_text("all")
    text = json.dumps(sizes).replace("PRECIOUS", str(precious))
    for step in (4, 6):
        path = out / "checkpoint" / f"step-{step}" / "state.json"
        state = {**json.loads(path.read_text()), "sizes": json.loads(text)}
        del state["state_sha256"]
        path.write_text(json.dumps({**state, "state_sha256": checkpoint._digest(state)}))
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=r"sizes: expected|state of a checkpoint|checkpoint counts"):
        restore(out)
    assert precious.read_text() == "all"
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_what_lies_beside_the_checkpoints_stays(run, tmp_path):
    out, _ = run
    beside = out / "checkpoint"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "thesis").write_text("all")
    strangers = ["notes", "step-x", "step-07", "step-1.bak", "step-\u0661", "best"]
    for name in strangers:
        (beside / name).mkdir()
    (beside / "step-3").symlink_to(elsewhere)
    (beside / "step-1").write_text("a file")
    checkpoint.save(out, 8, *make())
    names = {p.name for p in beside.iterdir()}
    assert names == {*strangers, "step-1", "step-3", "step-6", "step-8"}
    assert (elsewhere / "thesis").read_text() == "all"
    checkpoint.keep(out, 0)
    assert checkpoint.latest_step(out) == 0
    assert (beside / "step-3").is_symlink()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["adapter", "moments"])
def test_what_is_not_finite_is_never_saved(run, bad, where):
    out, _ = run
    step, parameters, optimiser = restore(out)
    with torch.no_grad():
        if where == "adapter":
            parameters["p1"][1, 1] = bad
        else:
            optimiser.state[parameters["p1"]]["exp_avg_sq"][0, 0] = bad
    with pytest.raises(DivergedError, match="p1 is not finite"):
        checkpoint.save(out, step + 2, parameters, optimiser)
    assert {p.name for p in (out / "checkpoint").iterdir()} == {"step-4", "step-6"}


def test_a_different_adapter_is_refused(run):
    out, _ = run
    other = {"p0": torch.nn.Parameter(torch.zeros(3, 2))}
    with pytest.raises(UserError, match="holds other weights than those that are trained"):
        checkpoint.restore(out, other, torch.optim.AdamW(other.values()))


def test_lines_are_not_appended_through_links(tmp_path):
    (tmp_path / "precious").write_text("all")
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"):
        checkpoint.append(tmp_path / "metrics.jsonl", "line")
    assert (tmp_path / "precious").read_text() == "all"


def test_times_survive_what_a_kill_left(run):
    out, _ = run
    path = out / layout.TIMES
    lines = path.read_text("utf-8").splitlines()
    again = json.dumps({"step": 4, "seconds": 9.0})
    torn = [*lines[:2], again, "", "\0\0", "[1]", '{"step": "x"}', lines[2], '{"step": 7}', '{"st']
    path.write_text("\n".join(torn), "utf-8")
    assert restore(out)[0] == 6
    assert path.read_text("utf-8").splitlines() == lines
    checkpoint.append(path, files.to_json({"step": 7}))
    assert [json.loads(x)["step"] for x in path.read_text("utf-8").splitlines()] == [2, 4, 6, 7]


def test_a_checkpoint_of_that_name_that_is_there_is_replaced(run):
    out, _ = run
    left = out / "checkpoint" / "step-8"
    left.mkdir()
    (left / "state.json").write_text("{}")
    checkpoint.save(out, 8, *make())
    assert restore(out)[0] == 8
    assert os.path.exists(left / "adapter.safetensors")
