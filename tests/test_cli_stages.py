"""From responses to a preference data set on the command line, stage by stage."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pyfast import select
from pyfast.cli import main
from pyfast.tables.stages import SELECTORS

ROWS = [
    {"id": i, "prompt": f"say {i}", "responses": ["what a great day", "meh", "I hate it", "nice"]}
    for i in range(6)
]


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_stage_by_stage(tmp_path, capsys, tiny_encoder, suffix):
    source = tmp_path / f"samples{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), source, row_group_size=4)
    else:
        source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    scored, embedded = tmp_path / f"scored{suffix}", tmp_path / "embedded"
    assert main(["score", str(source), "--reward", "vader", "--out", str(scored)]) == 0
    encoder = ["--encoder", str(tiny_encoder)]
    assert main(["embed", str(scored), *encoder, "--out", str(embedded)]) == 0
    parts = sorted(str(path) for path in embedded.glob(f"*{suffix}"))
    assert len(parts) == (2 if suffix == ".parquet" else 1)  # one for each row group
    selected, pairs = tmp_path / f"selected{suffix}", tmp_path / "pairs.jsonl"
    assert main(["select", *parts, "--k", "2", "--out", str(selected)]) == 0
    assert main(["export", str(selected), "--format", "pairs", "--out", str(pairs)]) == 0
    found = [json.loads(line) for line in pairs.read_text().splitlines()]
    assert len(found) == 12
    assert found[0]["chosen"] == "what a great day"
    assert found[11]["id"] == 5
    assert "export: 6 groups" in capsys.readouterr().err
    again = ["embed", str(scored), *encoder, "--out", str(embedded)]
    assert main(again) == 0  # all is there


def test_choices_are_those_of_the_command_on_lines(tmp_path, capsys):
    rows = [row | {"scores": [0.9, 0.5, 0.1, 0.6], "embeddings": [[i, j] for j in range(4)]}
            for i, row in enumerate(ROWS)]  # fmt: skip
    source = tmp_path / "groups.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "groups.parquet")
    assert main(["select", str(source), "--k", "2"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    out = str(tmp_path / "out.parquet")
    assert main(["select", str(tmp_path / "groups.parquet"), "--k", "2", "--out", out]) == 0
    table = pq.read_table(out).to_pylist()
    assert [row["negatives"] for row in table] == [row["negatives"] for row in lines]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "none.parquet", "--out", "x.jsonl"], "none.parquet"),
        (["export", "rows.csv", "--out", "x.jsonl"], "expected a file of .parquet"),
        (["export", "a.jsonl", "--format", "csv"], "--format: invalid choice: 'csv'"),
        (["score", "a.jsonl", "--reward", "nothing"], "error: --reward: expected vader"),
        (["score", "a.jsonl", "--reward", "model:./no"], "error: --reward: no such folder: ./no"),
        (["embed", "a.jsonl", "--encoder", "./no"], "error: --encoder: no such folder: ./no"),
        (["sample", "a.jsonl", "--model", "./no"], "error: --model: no such file or folder: ./no"),
        (["sample", "a.jsonl", "--model", "x", "--temperature", "-1"], "error: --temperature: "),
        (["select", "a.jsonl", "--k", "0"], "error: --k: expected a whole number >= 1, got 0"),
        (["select", "a.parquet", "--n-init", "0"], "error: --n-init: expected"),
        (["select", "a.parquet", "b.parquet"], "a.parquet: No such file"),
        (["select", "a.jsonl", "--plot", "x.png"], "--plot: expected a file or a folder"),
        (["select", "a.jsonl", "--gamma", "2"], "--gamma: expected only with --selector logdet"),
        (["select", "a.jsonl", "--selector", "logdet", "--beta", "2"], "--beta: expected only"),
        (
            ["select", "a.jsonl", "--seed", "-1"],
            "--seed: expected 0 to 18446744073709551615, got -1",
        ),
        (["select", "a.parquet", "--seed", str(2**64)], "--seed: expected 0 to"),
    ],
)
def test_errors_are_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said


def test_a_column_to_leave_out_that_is_nowhere_is_told(tmp_path, capsys):
    """A file that is named after --drop is taken for a column, and its rows would be missed."""
    source, out = tmp_path / "a.jsonl", tmp_path / "out"
    rows = [row | {"positive": 0, "mood": "x"} for row in ROWS]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["export", str(source), "--out", str(out), "--drop", "mood", "b.jsonl"]
    assert main(command) == 0
    assert "note: --drop: nothing that was read has b.jsonl\n" in capsys.readouterr().err
    assert "mood" not in (out / "a.jsonl").read_text()
    assert main(command) == 0  # all is there: nothing was read
    assert "note" not in capsys.readouterr().err


@pytest.mark.parametrize("out", ["out.jsonl", "out.parquet"])
def test_fields_that_are_nested_too_deeply_are_one_line(tmp_path, capsys, out):
    source = tmp_path / "a.jsonl"
    deep = '"x": ' + "[" * 2000 + "]" * 2000
    source.write_text(f'{{"prompt": "p", "responses": ["a", "b"], "scores": [1, 2], {deep}}}')
    command = ["select", str(source), "--selector", "bottom-k", "--out", str(tmp_path / out)]
    assert main(command) == 2
    assert "nested so deeply" in capsys.readouterr().err
    assert not (tmp_path / out).exists()


GROUPS = [
    {
        "prompt": f"say {i}",
        "responses": [f"r{i}.{j}" for j in range(9)],
        "scores": np.random.default_rng(i).random(9).tolist(),
        "embeddings": np.random.default_rng(i).normal(size=(9, 5)).astype(np.float32).tolist(),
        "features": np.random.default_rng(-1 - i + 99).normal(size=(9, 4)).tolist(),
        "policy_logps": (-np.random.default_rng(i + 9).random(9)).tolist(),
        "ref_logps": (-np.random.default_rng(i + 8).random(9)).tolist(),
    }
    for i in range(7)
]


@pytest.fixture
def groups(tmp_path):
    path = tmp_path / "groups.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in GROUPS))
    return path


@pytest.mark.parametrize("selector", SELECTORS)
def test_every_selector_the_same_from_lines_and_from_tables(tmp_path, capsys, groups, selector):
    pq.write_table(pa.Table.from_pylist(GROUPS), tmp_path / "groups.parquet", row_group_size=3)
    command = ["--selector", selector, "--k", "3", "--seed", "5"]
    assert main(["select", str(groups), *command]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    out = str(tmp_path / "out.parquet")
    assert main(["select", str(tmp_path / "groups.parquet"), *command, "--out", out]) == 0
    rows = pq.read_table(out).to_pylist()
    wanted = [(row["positive"], row["negatives"]) for row in lines]
    assert [(row["positive"], row["negatives"]) for row in rows] == wanted
    for row, (positive, negatives) in zip(lines, wanted, strict=True):
        assert positive == np.argmax(row["scores"])
        assert positive not in negatives
        assert len(negatives) == 3


def test_those_that_know_no_scores_are_pyfast_select_on_the_others(groups, capsys):
    for selector, more in (("kmedoids", ["--n-init", "4"]), ("logdet", ["--gamma", "0.7"])):
        command = ["select", str(groups), "--selector", selector, "--k", "3", "--seed", "2", *more]
        assert main(command) == 0
        for line in capsys.readouterr().out.splitlines():
            row = json.loads(line)
            others = np.delete(np.arange(9), row["positive"])
            X = np.array(row["embeddings"], np.float32)[others]
            if selector == "kmedoids":
                picked = select.kmedoids(X, 3, n_init=4, seed=2).medoids
            else:
                picked = select.logdet(X, 3, 0.7).indices
            assert row["negatives"] == others[picked].tolist()
    command = ["select", str(groups), "--selector", "mass-dpo", "--k", "3", "--beta", "2"]
    assert main([*command, "--gamma", "0.3"]) == 0
    row = json.loads(capsys.readouterr().out.splitlines()[0])
    found = select.mass_dpo(
        *(row[n] for n in ("features", "policy_logps", "ref_logps")),
        row["positive"], k=3, beta=2.0, gamma=0.3,
    )  # fmt: skip
    assert row["negatives"] == found.negatives.tolist()


@pytest.mark.parametrize("packed", ["plain", "gzip", "zstd"])
def test_stages_make_a_pipe(tmp_path, packed):
    text = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    if packed == "gzip":
        text = gzip.compress(text)
    elif packed == "zstd":
        text = pa.compress(text, "zstd", asbytes=True)
    for command in (
        ["score", "-", "--reward", "vader"],
        ["select", "-", "--k", "2", "--selector", "bottom-k"],
        ["export", "-", "--format", "pairs", "--out", "-"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "pyfast.cli", *command],
            input=text, capture_output=True, cwd=tmp_path, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
        text = done.stdout
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["id"] for row in rows] == [i for i in range(6) for _ in range(2)]
    assert {row["chosen"] for row in rows} == {"what a great day"}


def test_packed_groups_from_a_pipe(groups, tmp_path, capsys, monkeypatch):
    assert main(["select", str(groups), "--k", "2"]) == 0
    expected = capsys.readouterr().out
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(groups.read_bytes()))
    for out in ([], ["--out", "-"]):
        with open(packed) as stream:
            monkeypatch.setattr(sys, "stdin", stream)
            assert main(["select", "-", "--k", "2", *out]) == 0
        assert capsys.readouterr().out == expected
    target = tmp_path / "out.jsonl.zst"
    with open(packed) as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        assert main(["select", "-", "--k", "2", "--out", str(target)]) == 0
    with pa.input_stream(str(target), compression="zstd") as unpacked:
        assert unpacked.read().decode() == expected
    packed.write_bytes(gzip.compress(b'{"scores": [1, 2], "embeddings": [[1], [2]]}\n{"a": '))
    with open(packed) as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        assert main(["select", "-", "--k", "2"]) == 2
    assert "standard input:2: expected a JSON object" in capsys.readouterr().err
    with open(packed) as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        assert main(["select", "-", "--k", "2", "--out", str(tmp_path)]) == 2
    assert "for standard input; got a folder" in capsys.readouterr().err


def test_a_large_file_of_lines_is_read_in_blocks_with_the_same_choices(
    groups, tmp_path, monkeypatch
):
    outs = [tmp_path / f"{name}.jsonl" for name in ("small", "large")]
    for selector in ("opt-select", "random"):
        for out, least in zip(outs, (1 << 30, 1), strict=True):
            monkeypatch.setattr("pyfast.cli.select.LARGE", least)
            command = ["select", str(groups), "--k", "2", "--selector", selector]
            assert main([*command, "--out", str(out)]) == 0
        assert outs[0].read_bytes() == outs[1].read_bytes()


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet", "out"])
def test_a_picture_of_the_choices(groups, tmp_path, name, capsys):
    from matplotlib.image import imread

    picture = tmp_path / "choices.png"
    command = ["select", str(groups), "--k", "3", "--plot", str(picture)]
    (tmp_path / "out").mkdir()
    assert main([*command, "--out", str(tmp_path / name)]) == 0
    image = imread(picture)[..., :3]
    for colour in ("#0072b2", "#d55e00", "#7f7f7f"):  # positives, negatives, left out
        rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        assert (np.abs(image - rgb).max(axis=2) < 0.02).sum() > 50, colour
    assert main([*command[:-1], str(tmp_path / "x.docx"), "--out", str(tmp_path / name)]) == 2
    assert "--plot: " in capsys.readouterr().err


def test_a_folder_of_scores_is_not_gone_on_with_by_a_reward_that_has_changed(
    tmp_path, monkeypatch, capsys
):
    """The name is the same; half of the scores would be of the old code."""
    monkeypatch.chdir(tmp_path)
    module = tmp_path / "some_rewards_of_mine.py"
    module.write_text("def length(prompt, responses):\n    return [len(y) for y in responses]\n")
    for name in ("a", "b"):
        row = {"prompt": "p", "responses": ["x", "yy"]}
        Path(f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    command = ["score", "a.jsonl", "b.jsonl", "--reward", "some_rewards_of_mine:length"]
    command += ["--out", "scored"]
    assert main(command) == 0
    assert main(command) == 0
    next(Path("scored").glob("*b*.jsonl")).unlink()
    module.write_text(module.read_text().replace("len(y)", "-len(y)"))
    assert main(command) == 2
    assert "holds outputs of other settings" in capsys.readouterr().err
