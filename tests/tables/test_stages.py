import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pyfast import select
from pyfast.tables import arrays, stages
from pyfast.tables.server import Drawn

SIZES = [5, 2, 8, 3]


@pytest.fixture(scope="module")
def groups():
    draw = np.random.default_rng(0)
    rows = []
    for number, size in enumerate(SIZES):
        rows.append(
            {
                "id": number,
                "prompt": f"prompt {number}",
                "responses": [f"r{number}.{i}" for i in range(size)],
                "scores": draw.random(size).tolist(),
                "embeddings": draw.normal(size=(size, 4)).astype(np.float32).tolist(),
                "features": draw.normal(size=(size, 3)).tolist(),
                "policy_logps": (-10 * draw.random(size)).tolist(),
                "ref_logps": (-10 * draw.random(size)).tolist(),
            }
        )
    table = pa.Table.from_pylist(rows)
    field = pa.field("embeddings", pa.list_(pa.list_(pa.float32())))
    return table.set_column(4, field, table["embeddings"].cast(field.type))


@pytest.mark.parametrize("k", [1, 3, 20])
def test_choices_are_those_of_the_selectors_row_by_row(groups, k):
    for name, function in (("opt-select", select.opt_select), ("coreset", select.coreset)):
        found = stages.select(groups, selector=name, k=k, seed=5).to_pylist()
        for row in found:
            X = np.array(row["embeddings"], np.float32)
            expected = function(X, row["scores"], k=k, seed=5)
            assert row["positive"] == expected.positive
            assert row["negatives"] == expected.negatives.tolist()
    for row in stages.select(groups, selector="bottom-k", k=k).to_pylist():
        X = np.array(row["embeddings"], np.float32)
        expected = select.bottom_k(row["scores"], k=k, embeddings=X)
        assert row["negatives"] == expected.negatives.tolist()
    for row in stages.select(groups, selector="mass-dpo", k=k).to_pylist():
        expected = select.mass_dpo(
            row["features"],
            row["policy_logps"],
            row["ref_logps"],
            int(np.argmax(row["scores"])),
            k=min(k, len(row["scores"]) - 1),
        )
        assert row["negatives"] == expected.negatives.tolist()


@pytest.mark.parametrize("name", stages.SELECTORS)
def test_a_row_does_not_depend_on_its_batch(groups, name):
    whole = stages.select(groups, selector=name, k=2, seed=9)
    assert whole.column_names == [*groups.column_names, "positive", "negatives"]
    apart = [stages.select(groups.slice(i, 1), selector=name, k=2, seed=9) for i in range(4)]
    assert pa.concat_tables(apart).to_pylist() == whole.to_pylist()
    other = stages.select(groups, selector=name, k=2, seed=10 + 2**40)
    assert other.column_names == whole.column_names
    for row in whole.to_pylist():
        assert row["positive"] not in row["negatives"]
    again = stages.select(whole.drop_columns("negatives"), selector=name, k=2, seed=9)
    assert again.to_pylist() == whole.to_pylist()


def test_datasets_map_calls_a_stage_as_it_is(groups):
    rows = datasets.Dataset(groups).with_format("arrow")
    mapped = rows.map(stages.select, batched=True, batch_size=3, fn_kwargs={"k": 2})
    assert (
        mapped.with_format(None)["negatives"]
        == stages.select(groups, k=2).column("negatives").to_pylist()
    )


KINDS = {
    "lists": pa.list_(pa.list_(pa.float32())),
    "large lists": pa.large_list(pa.large_list(pa.float64())),
    "fixed vectors": pa.list_(pa.list_(pa.float32(), 4)),
    "halves": pa.list_(pa.list_(pa.float16())),
}


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_of_every_arrow_type(groups, kind):
    wanted = np.array([v for row in groups["embeddings"].to_pylist() for v in row])
    if kind == "halves":
        rows = [np.array(row, np.float16) for row in groups["embeddings"].to_pylist()]
        table = pa.table({"e": pa.array([list(map(list, r)) for r in rows], KINDS[kind])})
        wanted = wanted.astype(np.float16)
    else:
        table = pa.table({"e": groups["embeddings"].cast(KINDS[kind])})
    found, offsets = arrays.vectors(table, "e")
    assert (found == wanted).all()
    assert offsets.tolist() == np.cumsum([0, *SIZES]).tolist()
    # a slice, and several chunks
    found, offsets = arrays.vectors(table.slice(1, 2), "e")
    assert (found == wanted[5:15]).all()
    assert offsets.tolist() == [0, 2, 10]
    found, _ = arrays.vectors(pa.concat_tables([table.slice(0, 1), table.slice(1)]), "e")
    assert (found == wanted).all()


def test_vectors_lie_where_arrow_has_them():
    table = pa.table({"e": pa.array(np.arange(24, dtype=np.float32))})
    inner = pa.FixedSizeListArray.from_arrays(table["e"].chunk(0), 4)
    column = pa.FixedSizeListArray.from_arrays(inner, 3)
    found, offsets = arrays.vectors(pa.table({"e": column}), "e")
    assert np.shares_memory(found, table["e"].chunk(0).to_numpy())
    assert (found.shape, offsets.tolist()) == ((6, 4), [0, 3, 6])


@pytest.mark.parametrize("selector", ["opt-select", "coreset", "bottom-k"])
def test_embeddings_go_to_the_core_where_arrow_has_them(tmp_path, monkeypatch, selector):
    """Of a table, and of a Parquet file read back: the same address, so no copy on the way."""
    draw = np.random.default_rng(0)
    numbers = pa.array(draw.normal(size=96).astype(np.float32))
    vectors = pa.ListArray.from_arrays(pa.array(range(0, 97, 4), pa.int32()), numbers)
    column = pa.ListArray.from_arrays(pa.array([0, 8, 16, 24], pa.int32()), vectors)
    scores = pa.array(draw.random((3, 8)).tolist())
    table = pa.table({"prompt": ["a", "b", "c"], "scores": scores, "embeddings": column})
    pq.write_table(table, tmp_path / "a.parquet")
    seen = []
    name = selector.replace("-", "_")
    real = getattr(select, name)

    def spy(*args, **kwargs):
        X = kwargs.get("embeddings", args[0] if args else None)
        seen.append((X.__array_interface__["data"][0], X.dtype, X.shape))
        return real(*args, **kwargs)

    monkeypatch.setattr(select, name, spy)
    for given in (table, pq.read_table(tmp_path / "a.parquet")):
        seen.clear()
        chunk = given["embeddings"].chunk(0)
        stages.select(given, selector=selector, k=2)
        start = chunk.values.values.buffers()[1].address
        assert seen == [(start, np.dtype(np.float32), (24, 4))]


def test_scores_and_embeddings_are_added(groups):
    def reward(prompt, responses):
        responses.sort()  # a copy: nothing of ours is disturbed
        return [len(prompt) + int(text[1]) for text in responses]

    found = stages.score(groups.drop_columns("scores"), reward)
    assert found["scores"].to_pylist()[2] == [10.0] * 8
    assert found["responses"].equals(groups["responses"])
    encoded = stages.embed(found, lambda texts: np.array([[len(t), 1.0] for t in texts]))
    assert encoded["embeddings"].to_pylist()[0] == [[4.0, 1.0]] * 5
    assert stages.select(encoded, k=1).num_rows == 4


@pytest.mark.parametrize("format", ["pairs", "list", "numbered", "nemo", "swift"])
def test_a_data_set_comes_out(groups, format):
    chosen = stages.select(groups, k=2)
    rows = stages.export(chosen, format=format).to_pylist()
    assert len(rows) == (7 if format in ("pairs", "swift") else 4)
    assert rows[0]["id"] == 0
    assert "embeddings" not in rows[0]
    if format == "list":
        first = chosen.to_pylist()[0]
        assert rows[0]["chosen"] == first["responses"][first["positive"]]
        assert rows[0]["rejected"] == [first["responses"][i] for i in first["negatives"]]


def test_what_does_not_fit_is_told(groups):
    for table, settings, message in (
        (groups.drop_columns("scores"), {}, "scores: expected a column"),
        (groups.drop_columns("embeddings"), {}, "embeddings: expected a column"),
        (groups, {"selector": "best"}, "selector: expected one of"),
        (groups, {"k": 0}, "k: expected at least 1"),
        (arrays.set_column(groups, "scores", groups["prompt"]), {}, "scores: expected lists"),
        (
            arrays.set_column(groups, "scores", pa.array([[1.0]] * 4)),
            {},
            "embeddings: expected one for each score, not so in row 0",
        ),
        (
            arrays.set_column(groups, "embeddings", pa.array([[[1.0], [1.0, 2.0]]] * 4)),
            {},
            "embeddings: expected vectors of 1 numbers, got 2 in row 0",
        ),
        (
            arrays.set_column(groups, "scores", pa.array([[1.0], None, [1.0], [2.0]])),
            {},
            "scores: expected a list in every row, got null in row 1",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            stages.select(table, **settings)
    with pytest.raises(ValueError, match="expected 5 finite scores for row 0"):
        stages.score(groups, lambda prompt, responses: [1.0])
    with pytest.raises(ValueError, match=r"encoder: expected shape \(18, d\), got \(18,\)"):
        stages.embed(groups, lambda texts: np.zeros(len(texts)))
    for bad in (np.nan, 1e39):  # beyond float32
        values = np.zeros((18, 2))
        values[7, 1] = bad
        with pytest.raises(ValueError, match="encoder: expected finite numbers for row 2, got"):
            stages.embed(groups, lambda texts, values=values: values)
    with pytest.raises(ValueError, match="format: expected one of"):
        stages.export(groups, format="csv")
    assert stages.select(groups.slice(0, 0)).num_rows == 0


@pytest.mark.parametrize("name", ["scores", "embeddings"])
def test_integers_that_float64_would_round_are_refused(groups, name):
    near = [[2**62 + 1 + i for i in range(size)] for size in SIZES]
    column = pa.array(near if name == "scores" else [[[x, 1] for x in row] for row in near])
    table = arrays.set_column(groups, name, column)
    with pytest.raises(ValueError, match=rf"{name}: .* float64 holds exactly, got {2**62 + 1} at"):
        stages.select(table, selector="opt-select", k=1)
    exact = arrays.set_column(groups, "scores", pa.array([list(range(size)) for size in SIZES]))
    found = stages.select(exact, selector="bottom-k", k=1)
    assert found["positive"].to_pylist() == [size - 1 for size in SIZES]


def test_a_column_that_is_there_twice_is_refused(groups):
    twice = groups.append_column("scores", groups["scores"])
    with pytest.raises(ValueError, match="scores: expected one column of this name, got"):
        stages.select(twice, selector="bottom-k", k=1)


@pytest.mark.parametrize("first", [1, 4])
def test_rows_of_several_sizes_lose_no_column(first):
    """Arrow takes the names of the first row for those of all."""
    sizes = [first, 2, 4]
    rows = [
        {
            "prompt": f"p{size}",
            "responses": [f"r{i}" for i in range(size + 1)],
            "positive": 0,
            "negatives": list(range(1, size + 1)),
        }
        for size in sizes
    ]
    found = stages.export(pa.Table.from_pylist(rows), format="numbered").to_pylist()
    for row, size in zip(found, sizes, strict=True):
        rejected = [row[f"rejected{i}"] for i in range(1, 5)]
        assert rejected == [f"r{i}" for i in range(1, size + 1)] + [None] * (4 - size)
    back = stages.export(pa.Table.from_pylist(found), format="list").to_pylist()
    assert [len(row["rejected"]) for row in back] == sizes
    rows[0]["scores"], rows[1]["scores"] = None, [0.5, 0.1, 0.2]
    table = pa.Table.from_pylist([{"scores": None, **row} for row in rows])
    for format in ("list", "pairs", "groups"):
        name = "scores" if format == "groups" else "score_chosen"
        known = stages.export(table, format=format).column(name).to_pylist()
        assert None in known, format
        assert any(value is not None for value in known), format


@pytest.mark.parametrize("name", stages.OF_RESPONSES)
def test_no_column_of_other_responses_stays_beside_new_ones(name):
    """Scores of old responses would choose among new ones."""

    def sampler(prompts):
        return [Drawn(["new", "newer"], ["stop", "stop"]) for _ in prompts]

    known = [0, 1] if name != "positive" else 0
    rows = {"prompt": ["p", "q"], "responses": [["a", "b"]] * 2}
    with pytest.raises(ValueError, match=f"{name}: expected no such column beside the prompts"):
        stages.sample(pa.table({**rows, name: [None, known]}), sampler)
    found = stages.sample(pa.table({**rows, name: [None, None]}), sampler)
    assert found["responses"].to_pylist() == [["new", "newer"]] * 2


def test_what_counts_responses_follows_them_into_groups():
    """The chosen one comes first, and those not set against it are left out."""
    rows = [
        {"prompt": "p", "responses": ["a", "b", "c"], "scores": [1, 3, 2], "valid": [1, 2]},
        {"prompt": "q", "responses": ["a", "b"], "scores": [1, 3], "valid": [0]},
        {
            "prompt": "r",
            "responses": ["a", "b", "c", "d"],
            "scores": [1, 3, 2, 0],
            "positive": 2,
            "negatives": [3],
            "valid": [0, 2],
        },
    ]
    for row in rows:  # Arrow takes the names of the first row
        row |= {name: row.get(name) for name in ("positive", "negatives")}
        row["who"] = [text.upper() for text in row["responses"]]
    table = pa.Table.from_pylist(rows)
    found = stages.export(table, format="groups", drop=["who"]).to_pylist()
    for before, after in zip(rows, found, strict=True):
        right = {before["responses"][i] for i in before["valid"]} & set(after["responses"])
        assert {after["responses"][i] for i in after["valid"]} == right
    assert found[2]["responses"] == ["c", "d"]
    assert "valid" not in stages.export(table, format="list", drop=["who"]).column_names
    with pytest.raises(ValueError, match="who: expected no list of one entry a response"):
        stages.export(table, format="groups")
    for row in rows:  # as they stand: nothing moves
        row["scores"] = sorted(row["scores"], reverse=True)
        row |= {"positive": 0, "negatives": list(range(1, len(row["responses"])))}
    kept = stages.export(pa.Table.from_pylist(rows), format="groups").to_pylist()
    assert [row["who"] for row in kept] == [row["who"] for row in rows]
    rows[1]["valid"] = [2]
    with pytest.raises(ValueError, match="row 1: valid: expected places of 2 responses, got 2"):
        stages.export(pa.Table.from_pylist(rows), format="groups")


@pytest.mark.parametrize("stage", ["sample", "score", "embed", "select", "export"])
def test_batches_of_another_kind_are_refused_with_what_to_ask_for(groups, stage):
    arguments = {"sample": [list], "score": [len], "embed": [list]}.get(stage, [])
    for batch in (groups.to_pydict(), groups.to_pylist(), groups.to_batches()[0]):
        with pytest.raises(TypeError, match=r"table: expected a pyarrow\.Table, got .*with_format"):
            getattr(stages, stage)(batch, *arguments)
