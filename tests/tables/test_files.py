import datetime
import gzip
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pyfast.tables import stages
from pyfast.tables.files import MARK, run
from pyfast.tables.units import Work, units


def rows(count, seed=0):
    draw = np.random.default_rng(seed)
    return [
        {
            "id": number,
            "prompt": f"prompt {number}",
            "responses": [f"r{i}" for i in range(5)],
            "scores": draw.random(5).tolist(),
            "embeddings": draw.normal(size=(5, 3)).astype(np.float32).tolist(),
        }
        for number in range(count)
    ]


@pytest.fixture
def work():
    def select(table):
        return stages.select(table, k=2)

    needs = stages.select_needs("opt-select")
    return Work("select", select, needs, ("positive", "negatives"), {"k": 2}, little=True)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr("pyfast.tables.units.BATCH_BYTES", 4000)


def parquet(path, count, seed=0, group=7, **settings):
    pq.write_table(pa.Table.from_pylist(rows(count, seed)), path, row_group_size=group, **settings)
    return path


def lines(path, count, seed=0):
    text = "".join(json.dumps(row) + "\n" for row in rows(count, seed))
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


EXPECTED = ("positive", "negatives")


def expected(count, seed=0):
    table = stages.select(pa.Table.from_pylist(rows(count, seed)), k=2)
    return table.select(list(EXPECTED)).to_pylist()


def test_parquet_in_row_groups_to_a_folder(work, tmp_path):
    paths = [parquet(tmp_path / "a.parquet", 20), parquet(tmp_path / "b.parquet", 3, seed=1)]
    assert [(part.path.name, part.group, part.rows) for part in units(paths)] == [
        ("a.parquet", 0, 7), ("a.parquet", 1, 7), ("a.parquet", 2, 6), ("b.parquet", 0, 3)
    ]  # fmt: skip
    assert run(work, paths, tmp_path / "out", progress=False) == 23
    found = pa.concat_tables(
        [pq.read_table(path) for path in sorted((tmp_path / "out").glob("*.parquet"))]
    )
    assert found.select(list(EXPECTED)).to_pylist() == expected(20) + expected(3, seed=1)
    inputs = pa.concat_tables([pq.read_table(path) for path in paths])
    assert found.drop_columns(list(EXPECTED)).equals(inputs)


@pytest.mark.parametrize("codec", ["none", "zstd", "snappy"])
def test_to_one_parquet_file_packed_as_the_input_is(work, tmp_path, codec):
    path = parquet(tmp_path / "a.parquet", 20, compression=codec)
    run(work, [path], tmp_path / "out.parquet", progress=False)
    found = pq.ParquetFile(tmp_path / "out.parquet")
    assert found.read().select(list(EXPECTED)).to_pylist() == expected(20)
    packed = found.metadata.row_group(0).column(0).compression
    assert packed == ("UNCOMPRESSED" if codec == "none" else codec.upper())


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_lines_come_out_as_they_went_in(work, tmp_path, suffix):
    path = lines(tmp_path / f"a{suffix}", 20)
    target = tmp_path / f"out{suffix}"
    run(work, [path], target, progress=False)
    unpack = gzip.decompress if suffix.endswith("gz") else bytes
    before, after = (unpack(p.read_bytes()).decode().splitlines() for p in (path, target))
    assert [json.loads(line) for line in after] == [
        row | choice for row, choice in zip(rows(20), expected(20), strict=True)
    ]
    assert all(new.startswith(old[:-1]) for old, new in zip(before, after, strict=True))


def test_odd_lines(work, tmp_path):
    base = rows(1)[0]
    plain = json.dumps(base)
    odd = [
        "\ufeff" + plain,
        "",
        "   " + plain.replace("0.", "0.0E1 ,0.", 0) + "\t\r",
        json.dumps(base | {"positive": 9, "note": 'a "positive" word', "big": 2**70}),
        json.dumps(base, ensure_ascii=False, separators=(",", ":")) + "\r",
        json.dumps({"é": 1e-7} | base),
    ]
    path = tmp_path / "odd.jsonl"
    path.write_bytes("\n".join(odd).encode())  # no end of the last line
    run(work, [path], tmp_path / "out.jsonl", progress=False)
    found = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["negatives"] for line in found] == [expected(1)[0]["negatives"]] * 5
    assert f'"big": {2**70}' in found[2]
    assert json.loads(found[2])["positive"] == expected(1)[0]["positive"]
    assert '"\\u00e9": 1e-07' in found[4]


def test_names_that_are_written_with_escapes_are_set_too(work, tmp_path):
    row = rows(1)[0]
    text = json.dumps(row | {"positive": 9, "negatives": [9]})
    text = text.replace("positive", r"p\u006fsitive").replace("negatives", r"\u006eegatives")
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    run(work, [path], tmp_path / "out.jsonl", progress=False)
    found = json.loads((tmp_path / "out.jsonl").read_text(), object_pairs_hook=lambda pairs: pairs)
    assert sorted(name for name, _ in found) == sorted([*row, *EXPECTED])
    assert {name: value for name, value in found if name in EXPECTED} == expected(1)[0]


def test_files_with_marks_of_utf8_one_behind_the_other(work, tmp_path):
    one = b"\xef\xbb\xbf" + json.dumps(rows(1)[0]).encode() + b"\n"
    (tmp_path / "a.jsonl").write_bytes(one + one)
    run(work, [tmp_path / "a.jsonl"], tmp_path / "out.jsonl", progress=False)
    found = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["positive"] for line in found] == [expected(1)[0]["positive"]] * 2


@pytest.mark.parametrize(
    "values",
    [[[None, 1.5], [2.5, None]], [[None, 2], [1.5, None]], [[None, "a"], ["b", None], [None, "c"]]],
)
def test_lists_that_begin_with_null_keep_their_last(tmp_path, values):
    """Arrow's reader by itself loses a null of these, and reads beyond the end."""
    path = tmp_path / "in.jsonl"
    rest = {"prompt": "p", "responses": ["a", "b"], "scores": [1, 2]}
    path.write_text("".join(json.dumps({**rest, "other": one}) + "\n" for one in values))
    export = Work("export", lambda t: stages.export(t, format="list"), {}, None)
    run(export, [path], tmp_path / "out.jsonl", progress=False)
    out = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["other"] for row in out] == values


@pytest.mark.parametrize(
    ("ids", "bad"),
    [
        (["1", "18446744073709551615"], 2),  # beyond int64: a hash
        (["1", "123456789012345678901234567890"], 2),
        (["9007199254740993", "0.5"], 1),  # one type for all
        (['{"a": [1, null]}', '{"a": [0.5, -9007199254740993]}'], 2),
        (["9007199254740993", "9223372036854775807", "-9223372036854775808"], None),
        (["9007199254740992", "1e300", "0.5"], None),
        (['{"a": 9007199254740993, "b": 1e300}', '{"a": 1, "b": 2}'], None),
    ],
)
@pytest.mark.parametrize("out", ["out.jsonl", "out.parquet"])
def test_numbers_of_other_fields_are_the_same_or_refused(tmp_path, ids, bad, out):
    """Arrow takes the numbers of a field for float64 where one does not fit into int64."""
    rest = '"prompt": "p", "responses": ["a", "b"], "scores": [1, 2]'
    (tmp_path / "a.jsonl").write_text("".join(f'{{"id": {x}, {rest}}}\n' for x in ids))
    export = Work("export", lambda t: stages.export(t, format="list"), {}, None)
    if bad is not None:
        with pytest.raises(ValueError, match=rf"a\.jsonl:{bad}: id: expected numbers that float64"):
            run(export, [tmp_path / "a.jsonl"], tmp_path / out, progress=False)
        return
    run(export, [tmp_path / "a.jsonl"], tmp_path / out, progress=False)
    if out == "out.parquet":
        found = pq.read_table(tmp_path / out).to_pylist()
    else:
        found = [json.loads(line) for line in (tmp_path / out).read_text().splitlines()]
    assert [row["id"] for row in found] == [json.loads(x) for x in ids]


NO_JSON = {
    "nan": (float("nan"), "not JSON compliant"),
    "inf": ([1.0, float("-inf")], "not JSON compliant"),
    "bytes": (b"\xff", "bytes is not JSON serializable"),
    "time": (datetime.datetime(2026, 1, 1), "datetime is not JSON serializable"),
}


@pytest.mark.parametrize("kind", NO_JSON)
@pytest.mark.parametrize("format", ["list", "pairs"])
def test_what_json_has_no_words_for_is_refused_with_its_place(tmp_path, format, kind):
    """A row may become several: the place is that of the row it comes from."""
    value, reason = NO_JSON[kind]
    found = [{**row, "more": value if row["id"] == 5 else None} for row in rows(8)]
    source = tmp_path / "in.parquet"
    pq.write_table(pa.Table.from_pylist(found), source, row_group_size=3)

    def export(table):
        return stages.export(stages.select(table, k=2), format=format)

    work = Work("export", export, {}, None, {})
    place = r"in\.parquet: row group 1, row 2 of a batch: more: expected what JSON holds .*"
    with pytest.raises(ValueError, match=place + reason):
        run(work, [source], tmp_path / "out.jsonl", progress=False)
    assert not (tmp_path / "out.jsonl").exists()
    run(work, [source], tmp_path / "out.parquet", progress=False)


def test_a_stage_whose_numbers_are_none_is_named_with_the_line(tmp_path):
    def fails(table):
        values = [float("nan") if i == 4 else 1.0 for i in table["id"].to_pylist()]
        return table.append_column("value", pa.array(values))

    work = Work("fails", fails, {"id": None}, ("value",), {})
    source = lines(tmp_path / "in.jsonl", 8)
    with pytest.raises(ValueError, match=r"in\.jsonl:5: value: expected what JSON holds"):
        run(work, [source], tmp_path / "out.jsonl", progress=False)


def test_row_groups_without_rows_have_no_output(work, tmp_path):
    table = pa.Table.from_pylist(rows(9))
    with pq.ParquetWriter(tmp_path / "a.parquet", table.schema) as writer:
        for piece in (table[:4], table[:0], table[4:]):
            writer.write_table(piece)
    run(work, [tmp_path / "a.parquet"], tmp_path / "out", progress=False)
    found = [pq.read_table(tmp_path / "out" / f"a.0000{i}.parquet") for i in (0, 2)]
    assert [row for piece in found for row in piece.select(EXPECTED).to_pylist()] == expected(9)
    assert not (tmp_path / "out" / "a.00001.parquet").exists()


def test_a_column_to_set_that_is_there_twice_is_refused(work, tmp_path):
    table = pa.Table.from_pylist(rows(3))
    for _ in range(2):
        table = table.append_column("positive", pa.array([0, 0, 0]))
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="positive: expected one column of this name"):
        run(work, [tmp_path / "a.parquet"], tmp_path / "out.parquet", progress=False)


def test_from_lines_to_parquet_and_back(work, tmp_path):
    path = lines(tmp_path / "a.jsonl", 9)

    def export(table):
        return stages.export(stages.select(table, k=2), format="list")

    made = Work("export", export, {}, None)
    run(made, [path], tmp_path / "out.parquet", progress=False)
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 9
    run(made, [path], tmp_path / "out.jsonl", progress=False)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert found[8]["rejected"] == [f"r{i}" for i in expected(9)[8]["negatives"]]


def test_what_is_there_is_not_made_again(work, tmp_path):
    path = parquet(tmp_path / "a.parquet", 20)
    calls = []

    def counted(table):
        calls.append(table.num_rows)
        return work.run(table)

    counting = Work(work.name, counted, work.needs, work.adds, work.settings)
    run(counting, [path], tmp_path / "out", progress=False)
    first = sum(calls)
    (tmp_path / "out" / "a.00001.parquet").unlink()
    run(counting, [path], tmp_path / "out", progress=False)
    assert (first, sum(calls) - first) == (20, 7)
    run(counting, [path], tmp_path / "out", progress=False)
    assert sum(calls) == 27
    # other settings, other inputs, somebody's folder
    other = Work(work.name, work.run, work.needs, work.adds, {"k": 3})
    with pytest.raises(ValueError, match="outputs of other settings"):
        run(other, [path], tmp_path / "out", progress=False)
    parquet(path, 20, seed=4)
    with pytest.raises(ValueError, match="outputs of other inputs"):
        run(work, [path], tmp_path / "out", progress=False)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "file").touch()
    with pytest.raises(ValueError, match="expected an empty folder"):
        run(work, [path], tmp_path / "theirs", progress=False)
    (tmp_path / "out" / MARK).write_text("[]")
    with pytest.raises(ValueError, match="expected the mark"):
        run(work, [path], tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "a.jsonl:4: expected a JSON object, got list"),
        ('{"scores": ', "a.jsonl:4: expected a JSON object; "),
        (
            '{"scores": [NaN, 1], "embeddings": [[1], [2]]}',
            "a.jsonl:4: rewards: expected a finite number, got nan",
        ),
        ('{"scores": "high"}', "a.jsonl:4: scores: expected list"),
        ('{"scores": [1, 2]}', "a.jsonl:4: embeddings: expected a list in every row, got null$"),
        (
            '{"scores": [1e300, 4611686018427387905], "embeddings": [[1], [2]]}',
            "a.jsonl:4: scores: expected numbers that float64 holds, got 4611686018427387905",
        ),
        (
            '{"positive": 0, "scores": [1, 2], "embeddings": [[1, 2, 3], [2, 1, 1]], '
            '"positive": 1}',
            "a.jsonl:4: 'positive' stands twice in one object",
        ),
        (
            '{"positive": 0, "scores": [1, 2], "embeddings": [[1, 2, 3], [2, 1, 1]], '
            r'"posi\u0074ive": 1}',
            "a.jsonl:4: 'positive' stands twice in one object",
        ),
        (
            '{"scores": [1, 2], "embeddings": [[1, 2, 3], [2, 1, 1]], "scores": [1, 3]}',
            r"a.jsonl:4: JSON parse error: Column\(/scores\) was specified twice$",
        ),
        (
            '{"scores": [1, 1e400], "embeddings": [[1, 2, 3], [2, 1, 1]]}',
            "a.jsonl:4: JSON parse error: Number",
        ),
        (
            b'{"prompt": "\xff", "scores": [1, 2], "embeddings": [[1, 2, 3], [2, 1, 1]]}',
            "a.jsonl:4: expected UTF-8 text",
        ),
        (
            '{"scores": [1, 2], "embeddings": [[1], [2]]}',
            "a.jsonl:4: embeddings: expected vectors of 3 numbers, got 1$",
        ),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_written(work, tmp_path, text, message):
    good = [json.dumps(row) for row in rows(3)]
    path = tmp_path / "a.jsonl"
    text = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(b"\n".join([good[0].encode(), b"", good[1].encode(), text, good[2].encode()]))
    with pytest.raises(ValueError, match=message):
        run(work, [path], tmp_path / "out.jsonl", progress=False)
    assert not (tmp_path / "out.jsonl").exists()
    assert not list(tmp_path.glob(".*"))


def test_files_that_are_none(work, tmp_path):
    bad = tmp_path / "a.parquet"
    bad.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: expected a Parquet file"):
        run(work, [bad], tmp_path / "out.parquet", progress=False)
    with pytest.raises(ValueError, match=r"a\.csv: expected a file of .parquet"):
        run(work, [tmp_path / "a.csv"], tmp_path / "out.parquet", progress=False)
    with pytest.raises(FileNotFoundError):
        run(work, [tmp_path / "none.jsonl"], tmp_path / "out.jsonl", progress=False)
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps(rows(1)[0]).encode() * 50)[:-30])
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz"):
        run(work, [packed], tmp_path / "out.jsonl", progress=False)


@pytest.mark.slow
def test_a_kill_loses_and_doubles_nothing(work, tmp_path):
    path = parquet(tmp_path / "a.parquet", 400, group=5)
    code = textwrap.dedent(f"""
        import time
        from pyfast.tables import stages
        from pyfast.tables.files import run
        from pyfast.tables.units import Work
        def select(table):
            time.sleep(0.02)
            return stages.select(table, k=2)
        work = Work("select", select, {{}}, ("positive", "negatives"), {{"k": 2}})
        run(work, [{str(path)!r}], {str(tmp_path / "out")!r}, progress=False)
    """)
    for delay in (0.9, 1.2, 1.6):
        process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    run(work, [path], tmp_path / "out", progress=False)
    parts = sorted((tmp_path / "out").glob("*.parquet"))
    assert len(parts) == 80
    found = pa.concat_tables([pq.read_table(part) for part in parts])
    assert found["id"].to_pylist() == list(range(400))
    assert found.select(list(EXPECTED)).to_pylist() == expected(400)
    assert {p.name for p in (tmp_path / "out").glob(".*")} <= {".lock"}


def test_inputs_whose_outputs_would_have_one_name_are_refused(work, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    for make, name, other in ((parquet, "a.parquet", "a.pq"), (lines, "a.jsonl", "a.jsonl")):
        one, two = make(tmp_path / "x" / name, 5), make(tmp_path / "y" / other, 5, seed=1)
        for paths in ([one, two], [one, one]):
            with pytest.raises(ValueError, match="expected files of different names"):
                run(work, paths, tmp_path / "out", progress=False)


def test_rows_that_are_dear_are_made_once(tmp_path):
    calls = []

    def dear(table):
        calls.extend(table["id"].to_pylist())
        if 8 in calls and calls.count(7) == 1:
            raise ValueError("prompt: expected a text in row 1")
        return table.append_column("x", table["id"])

    path = lines(tmp_path / "a.jsonl", 20)
    out = tmp_path / "out.parquet"
    work = Work("dear", dear, {"id": None}, ("x",), {}, 7)
    with pytest.raises(ValueError, match=r"a\.jsonl:9: prompt: expected a text$"):
        run(work, [path], out, progress=False)
    assert calls == list(range(14))
    run(work, [path], out, progress=False)
    assert calls == [*range(14), *range(7, 20)]
    assert pq.read_table(out)["x"].to_pylist() == list(range(20))
    assert not (tmp_path / "out.parquet.parts").exists()


def test_lines_keep_all_their_fields_in_parquet(work, tmp_path):
    """Also where a field is null, whole or empty for longer than a batch (datasets' issue 7222)."""
    made = rows(20)
    for row in made:
        late = row["id"] >= 12
        row |= {"note": "text" if late else None, "size": 1.5 if late else row["id"]}
        row |= {"meta": [{"a": None}, {"a": 1}] if late else []}
        if late:
            row["more"] = True
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, made)))  # and no end of the last line
    run(work, [path], tmp_path / "out.parquet", progress=False)
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.select(list(EXPECTED)).to_pylist() == expected(20)
    for row, before in zip(found.to_pylist(), made, strict=True):
        assert row["more"] == before.get("more")
        for name in ("id", "prompt", "responses", "scores", "note", "size", "meta"):
            assert row[name] == before[name], name
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    made[19]["note"] = ["no text"]
    path.write_text("\n".join(map(json.dumps, made)))
    with pytest.raises(ValueError, match=r"(out\.parquet: expected columns of one type|a\.jsonl)"):
        run(work, [path], tmp_path / "out.parquet", progress=False)
    run(work, [path], tmp_path / "out.jsonl", progress=False)


def test_texts_that_look_like_dates_stay_texts(tmp_path):
    """Arrow guesses times (datasets' issues 2799 and 7664)."""
    made = [
        {"prompt": f"202{i}-01-02", "responses": ["2020-01-01", "1999-12-31T23:59:59"],
         "scores": [1.0, 0.0], "meta": {"at": "2021-05-05 10:00:00"}}
        for i in range(3)
    ]  # fmt: skip
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    export = Work("export", lambda t: stages.export(t, format="list"), {}, None)
    for name in ("out.jsonl", "out.parquet"):
        run(export, [path], tmp_path / name, progress=False)
    from_lines = [json.loads(x) for x in (tmp_path / "out.jsonl").read_text().splitlines()]
    for found in (from_lines, pq.read_table(tmp_path / "out.parquet").to_pylist()):
        for row, before in zip(found, made, strict=True):
            assert row["prompt"] == before["prompt"]
            assert [row["chosen"], *row["rejected"]] == before["responses"]
            assert row["meta"] == before["meta"]
    seen = []
    look = Work("look", lambda t: seen.extend(t["prompt"].to_pylist()) or t, {"prompt": None}, ())
    run(look, [path], tmp_path / "x.jsonl", progress=False)
    assert seen == [row["prompt"] for row in made]
