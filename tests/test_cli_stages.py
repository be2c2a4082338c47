"""From responses to a preference data set on the command line, stage by stage."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pyfast.cli import main

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
        (["export", "a.jsonl", "--out", "x.jsonl", "--format", "csv"], "--format: expected one of"),
        (["score", "a.jsonl", "--out", "x.jsonl", "--reward", "nothing"], "scoring.reward"),
        (["select", "a.parquet", "b.parquet"], "--out: expected a file or a folder"),
    ],
)
def test_errors_are_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said
