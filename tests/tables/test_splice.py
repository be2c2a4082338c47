"""Columns set in Parquet files, the others copied as they lie: against reading and writing all."""

import datetime
import inspect
import struct
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pyfast.tables import footers, splice, units
from pyfast.tables.files import run
from pyfast.tables.units import Work

ROWS = 23


def groups(count=ROWS, seed=0):
    """Rows of every kind of column that a file of responses may have."""
    draw, ids = np.random.default_rng(seed), range(count)
    vectors = draw.normal(size=(count * 4, 3)).astype(np.float32)
    inner = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 3)
    return pa.table({
        "id": pa.array(range(count), pa.int16()),
        "positive": pa.array([7.5] * count),  # is set: was of another type
        "messages": [[{"role": "a", "content": f"é{i}", "x": None}] * (i % 3) for i in ids],
        "scores": pa.array(draw.random((count, 4)).tolist()),
        "when": pa.array([datetime.datetime(2026, 1, 1)] * count, pa.timestamp("ms", "UTC")),
        "kind": pa.array([["a", "b", None][i % 3] for i in range(count)]).dictionary_encode(),
        "nothing": pa.nulls(count),
        "embeddings": pa.ListArray.from_arrays(
            pa.array(range(0, count * 4 + 1, 4), pa.int32()), inner
        ),
        "flag": pa.array([i % 2 == 0 for i in range(count)]),
        "text": pa.array([f"text {i}" for i in range(count)], pa.large_string()),
    }).replace_schema_metadata({"origin": "here"})  # fmt: skip


def best(table):
    """Say which score is the best, and how many there are."""
    scores = table["scores"].to_pylist()
    table = table.set_column(
        table.schema.get_field_index("positive"), "positive",
        pa.array([int(np.argmax(row)) for row in scores], pa.int32()),
    ) if "positive" in table.column_names else table.append_column(
        "positive", pa.array([int(np.argmax(row)) for row in scores], pa.int32())
    )  # fmt: skip
    return table.append_column("negatives", pa.array([[0, len(row)] for row in scores]))


def plain(table):
    """Texts as they are: dictionaries are other ones in other row groups."""
    kinds = pa.array(table["kind"].to_pylist(), pa.string())
    return table.set_column(table.schema.get_field_index("kind"), "kind", kinds)


WORK = Work("best", best, {"scores": None}, ("positive", "negatives"), {}, little=True)
WHOLE = replace(WORK, little=False)


BLOOM = pytest.mark.skipif(
    "bloom_filter_options" not in inspect.signature(pq.ParquetWriter.__init__).parameters,
    reason="this pyarrow writes no Bloom filters",
)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr("pyfast.tables.units.BATCH_BYTES", 2000)


@pytest.fixture
def spliced(monkeypatch):
    """How often row groups were spliced."""
    calls = []
    add = splice.Writer.add

    def counted(self, path, group, table):
        calls.append((path.name, group))
        add(self, path, group, table)

    monkeypatch.setattr(splice.Writer, "add", counted)
    return calls


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"compression": "none", "use_dictionary": False},
        {"compression": "zstd", "data_page_version": "2.0", "write_page_index": True},
        {"store_schema": False},
        {"version": "1.0", "data_page_size": 100, "write_statistics": False},
        {"compression": {"id": "gzip", "text": "brotli"}, "column_encoding": None},
        pytest.param({"bloom_filter_options": {"text": True}}, marks=BLOOM),
    ],
    ids=lambda settings: "-".join(settings) or "plain",
)
def test_equals_reading_and_writing_all(tmp_path, spliced, settings):
    path = tmp_path / "a.parquet"
    pq.write_table(groups(), path, row_group_size=10, **settings)
    assert run(WORK, [path], tmp_path / "new.parquet", progress=False) == ROWS
    assert spliced == [("a.parquet", 0), ("a.parquet", 1), ("a.parquet", 2)]
    run(WHOLE, [path], tmp_path / "old.parquet", progress=False)
    new, old = (pq.read_table(tmp_path / name) for name in ("new.parquet", "old.parquet"))
    assert plain(new).equals(plain(old))
    assert new.schema.equals(old.schema, check_metadata=False)
    assert plain(new.drop_columns(["positive", "negatives"])).equals(
        plain(pq.read_table(path).drop_columns(["positive"]))
    )
    before, after = pq.ParquetFile(path).metadata, pq.ParquetFile(tmp_path / "new.parquet").metadata
    assert after.num_row_groups == 3
    of = {before.row_group(1).column(i).path_in_schema: i for i in range(before.num_columns)}
    for i in range(after.num_columns):
        new_chunk = after.row_group(1).column(i)
        name = new_chunk.path_in_schema
        if name.split(".")[0] in ("positive", "negatives"):
            continue
        chunk = before.row_group(1).column(of[name])
        for what in (
            "compression",
            "encodings",
            "statistics",
            "num_values",
            "total_compressed_size",
        ):
            assert getattr(new_chunk, what) == getattr(chunk, what), (name, what)
    if settings.get("store_schema", True):
        assert pq.read_schema(tmp_path / "new.parquet").metadata[b"origin"] == b"here"


def test_other_columns_are_not_decoded(tmp_path):
    """Bytes that are no pages at all come out as they went in."""
    path = tmp_path / "a.parquet"
    pq.write_table(groups(), path, compression="none", use_dictionary=False)
    chunk = next(
        c for i in range(99)
        if (c := pq.ParquetFile(path).metadata.row_group(0).column(i)).path_in_schema == "text"
    )  # fmt: skip
    data = bytearray(path.read_bytes())
    spoilt = bytes(255 - b for b in data[chunk.data_page_offset :][: chunk.total_compressed_size])
    data[chunk.data_page_offset : chunk.data_page_offset + len(spoilt)] = spoilt
    path.write_bytes(data)
    run(WORK, [path], tmp_path / "out.parquet", progress=False)
    assert spoilt in (tmp_path / "out.parquet").read_bytes()
    scores = pq.read_table(path, columns=["scores"])["scores"].to_pylist()
    found = pq.read_table(tmp_path / "out.parquet", columns=["positive"])["positive"].to_pylist()
    assert found == [int(np.argmax(row)) for row in scores]


def test_several_files_into_one_and_into_a_folder(tmp_path, spliced):
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for seed, path in enumerate(paths):
        pq.write_table(groups(seed=seed), path, row_group_size=9)
    run(WORK, paths, tmp_path / "out.parquet", progress=False)
    run(WORK, paths, tmp_path / "out", progress=False)
    assert len(spliced) == 12
    expected = best(pa.concat_tables([pq.read_table(path) for path in paths]))
    assert plain(pq.read_table(tmp_path / "out.parquet")).equals(plain(expected))
    parts = sorted((tmp_path / "out").glob("*.parquet"))
    assert plain(pa.concat_tables([pq.read_table(path) for path in parts])).equals(plain(expected))
    # and what came out goes in again
    run(WORK_AGAIN, [tmp_path / "out.parquet"], tmp_path / "again.parquet", progress=False)
    expected = expected.append_column("id2", pa.array([1] * 2 * ROWS))
    assert plain(pq.read_table(tmp_path / "again.parquet")).equals(plain(expected))


WORK_AGAIN = Work(
    "again", lambda t: t.append_column("id2", pa.array([1] * len(t))), {"scores": None}, ("id2",),
    little=True,
)  # fmt: skip


def test_files_of_other_types_are_read_and_written(tmp_path, spliced):
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    pq.write_table(groups(), paths[0])
    other = groups()
    pq.write_table(other.set_column(0, "id", other["id"].cast(pa.int64())), paths[1])
    assert not splice.usable(paths)
    run(WORK, paths, tmp_path / "out.parquet", progress=False)
    assert spliced == []
    assert pq.read_table(tmp_path / "out.parquet")["id"].to_pylist() == list(range(ROWS)) * 2


def test_columns_of_one_name_are_not_told_apart(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table([pa.array([1]), pa.array([2])], names=["id", "id"])
    pq.write_table(table, path)
    assert not splice.usable([path])


@pytest.mark.parametrize("end", [b"PARE", b"what"])
def test_what_is_not_a_plain_footer(tmp_path, end):
    path = tmp_path / "a.parquet"
    pq.write_table(groups(), path)
    path.write_bytes(path.read_bytes()[:-4] + end)
    assert not splice.usable([path])
    path.write_bytes(b"PAR1")
    assert not splice.usable([path])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (8, (footers.STRUCT, {})),  # encrypted columns
        (6, (footers.BINARY, b"parquet-mr version 1.2.8 (build abc)")),  # told sizes wrong
    ],
)
def test_footers_of_files_that_cannot_be_copied(tmp_path, field, value):
    path = tmp_path / "a.parquet"
    pq.write_table(groups(), path)
    assert splice.usable([path])
    data = path.read_bytes()
    (length,) = struct.unpack("<I", data[-8:-4])
    meta = footers.decode(data[-8 - length : -8])
    new = footers.encode(meta | {field: value})
    path.write_bytes(data[: -8 - length] + new + struct.pack("<I", len(new)) + b"PAR1")
    assert not splice.usable([path])


def test_a_missing_column_is_told_beside_those_that_are_there(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(groups().drop_columns(["scores"]), path)
    with pytest.raises(KeyError, match="scores"):
        run(WORK, [path], tmp_path / "out.parquet", progress=False)
    work = replace(WORK, run=lambda table: 1 / 0 if "text" in table.column_names else table)
    with pytest.raises(ZeroDivisionError):
        run(work, [path], tmp_path / "out.parquet", progress=False)
    assert not (tmp_path / "out.parquet").exists()


def test_rows_that_are_not_as_many_are_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(groups(), path)
    with splice.Writer(tmp_path / "out", "none") as writer:
        with pytest.raises(ValueError, match="expected 23 rows of row group 0, got 22"):
            writer.add(path, 0, pa.table({"x": range(22)}))
        writer.add(path, 0, pa.table({"x": range(ROWS)}))
        with pytest.raises(ValueError, match="columns of the same types in all row groups"):
            writer.add(path, 0, pa.table({"x": [0.5] * ROWS}))


def test_no_rows(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(groups(0), path)
    with pytest.raises(ValueError, match="expected rows to write, there are none"):
        run(WORK, [path], tmp_path / "out.parquet", progress=False)


def test_a_column_that_ends_early_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(groups(), path)
    data = path.read_bytes()
    (length,) = struct.unpack("<I", data[-8:-4])
    meta = footers.decode(data[-8 - length : -8])
    chunk = meta[4][1][1][0][1][1][1][-1][3][1]
    chunk[7] = (footers.I64, 10 * len(data))
    new = footers.encode(meta)
    path.write_bytes(data[: -8 - length] + new + struct.pack("<I", len(new)) + b"PAR1")
    with (
        splice.Writer(tmp_path / "out", "none") as writer,
        pytest.raises(ValueError, match="a column's bytes end early"),
    ):
        writer.add(path, 0, pa.table({"x": range(ROWS)}))


def test_footers_come_back_as_they_were(tmp_path):
    path = tmp_path / "a.parquet"
    for settings in ({}, {"write_page_index": True}, {"sorting_columns": [pq.SortingColumn(0)]}):
        pq.write_table(groups(), path, row_group_size=1, **settings)
        data = path.read_bytes()
        (length,) = struct.unpack("<I", data[-8:-4])
        data = data[-8 - length : -8]
        assert footers.encode(footers.decode(data)) == data
        for cut in (1, 17, length // 2, length - 1):
            with pytest.raises(ValueError, match="footer"):
                footers.decode(data[:cut])
        with pytest.raises(ValueError, match="something follows"):
            footers.decode(data + b"\0")


def test_every_kind_of_value_in_a_footer():
    value = {
        1: (footers.TRUE, True), 2: (footers.FALSE, False), 3: (footers.BYTE, 200),
        4: (footers.I16, -3), 5: (footers.I32, 2**31 - 1), 6: (footers.I64, -(2**63)),
        7: (footers.DOUBLE, struct.pack("<d", 0.1)), 40: (footers.BINARY, b"x" * 300),
        41: (footers.LIST, (footers.TRUE, [1, 2, 1])),
        400: (footers.SET, (footers.I32, list(range(20)))),
        401: (footers.STRUCT, {1: (footers.LIST, (footers.STRUCT, [{}, {9: (footers.I64, 0)}]))}),
    }  # fmt: skip
    assert footers.decode(footers.encode(value)) == value
    with pytest.raises(ValueError, match="type 11"):
        footers.decode(b"\x1b\x00\x00")


def test_what_plots_needs_no_other_column(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(groups(), path)
    (part,) = units.units([path])
    found = [batch.table.column_names for batch in units.batches(WORK, part, lean=True)]
    assert found[0] == ["scores"]
